"""Double-seasonal exponential smoothing: level, hour of the day, hour of the week and an AR(1) error, all moving.

Taylor (2003), "Short-term electricity demand forecasting using double seasonal exponential smoothing", additive on
log(1 + count). It has four numbers to learn, so it adapts fastest, and does best on the shortest histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK, Fold, Plain, State, Timeline, pack
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["DoubleSeasonal"]

_DAY: Final = 24
_MEMORY: Final = 8 * WEEK
"""Hours it is run over before an origin: older ones have faded."""
_GRID: Final = tuple(product((0.005, 0.03, 0.1), (0.02, 0.1, 0.25), (0.05, 0.2, 0.4), (0.3, 0.6, 0.9)))
"""Candidates for the weights of level, hour of the day, hour of the week, and for the error's autocorrelation."""
Ints = NDArray[np.int64]


class DoubleSeasonal(Plain):
    name: ClassVar[str] = "holt_winters"
    min_hours: ClassVar[int] = WEEK
    rolls_on: ClassVar[bool] = True

    def __init__(self) -> None:
        self._weights: Floats = np.array(_GRID[0])

    def fit(self, past: Timeline) -> Self:
        past = past.interpolated().until(len(past), _MEMORY)
        self._weights = _best(np.log1p(past.values), past.week)
        return self

    def roll(self, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        """Weights from before each fold, then run through its origins; afterwards it is fitted on all of `past`."""
        past = past.interpolated(folds[0].start)
        rows = []
        for fold in folds:
            self._weights = self.fit(past.until(fold.start))._weights
            first = max(fold.start - _MEMORY, 0)
            state = _State.of(np.log1p(past.values[first : fold.start]), past.week[first:], self._weights[None, :])
            for origin in fold.origins:
                state.run(np.log1p(past.values[first:origin]), past.week[first:])
                rows.append(state.ahead(past.week[origin : origin + steps]))
        self.fit(past)
        return np.array(rows)

    def predict(self, past: Timeline, steps: int) -> Floats:
        past = past.interpolated().until(len(past), _MEMORY)
        level = np.log1p(past.values)
        state = _State.of(level, past.week, self._weights[None, :])
        state.run(level, past.week)
        return state.ahead(past.week[len(past) : len(past) + steps])

    def next_hours(self, past: Timeline, origins: Sequence[int]) -> Floats:
        first = max(origins[0] - _MEMORY, 0)
        state = _State.of(np.log1p(past.values[first : origins[0]]), past.week[first:], self._weights[None, :])
        expected = []
        for origin in origins:
            state.run(np.log1p(past.values[first:origin]), past.week[first:])
            expected.append(state.ahead(past.week[origin : origin + 1])[0])
        return np.array(expected)

    def to_state(self) -> State:
        return {"weights": pack(self._weights)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        model = cls()
        model._weights = np.array(state["weights"], dtype=np.float64)
        return model


def _best(level: Floats, week: Ints) -> Floats:
    """The candidate with the least absolute error one hour ahead, after a first week to settle in."""
    grid = np.array(_GRID)
    state = _State.of(level, week, grid)
    errors = np.abs(state.run(level, week)[min(WEEK, len(level) // 3) :])
    mean = np.nanmean(errors, axis=0) if np.isfinite(errors).any() else np.zeros(len(grid))
    return np.asarray(grid[int(np.nanargmin(mean))], dtype=np.float64)


@dataclass(slots=True)
class _State:
    """The components of some candidates side by side (last axis)."""

    weights: Floats
    level: Floats
    day: Floats
    week: Floats
    error: Floats
    seen: int = 0

    @classmethod
    def of(cls, level: Floats, week: Ints, weights: Floats) -> _State:
        count = len(weights)
        head, hours = level[: 2 * WEEK], week[: len(level)][: 2 * WEEK] % _DAY
        mean = float(np.nanmean(head)) if np.isfinite(head).any() else 0.0
        day = np.zeros((_DAY, count))
        for hour in range(_DAY):
            values = head[(hours == hour) & np.isfinite(head)]
            day[hour] = values.mean() - mean if len(values) else 0.0
        return cls(weights.T, np.full(count, mean), day, np.zeros((WEEK, count)), np.zeros(count))

    def run(self, level: Floats, week: Ints) -> Floats:
        """Go on through the hours not seen yet; returns their errors one hour ahead."""
        alpha, delta, omega, phi = self.weights
        errors = np.full((len(level) - self.seen, len(alpha)), np.nan)
        for i in range(self.seen, len(level)):
            slot = int(week[i])
            hour, value = slot % _DAY, level[i]
            if value != value:  # NaN: a missing hour teaches nothing, and the error fades
                self.error = phi * self.error
                continue
            plain = value - (self.level + self.day[hour] + self.week[slot])
            surprise = plain - phi * self.error
            self.level = self.level + alpha * surprise
            self.day[hour] += delta * surprise
            self.week[slot] += omega * surprise
            self.error = plain
            errors[i - self.seen] = surprise
        self.seen = max(self.seen, len(level))
        return errors

    def ahead(self, week: Ints) -> Floats:
        """Counts expected in the hours to come, of the first candidate."""
        fading = self.weights[3, 0] ** np.arange(1, len(week) + 1) * self.error[0]
        level: Floats = self.level[0] + self.day[week % _DAY, 0] + self.week[week, 0] + fading
        return np.expm1(np.clip(level, 0.0, 40.0))
