"""Direct ridge regression: for each hour ahead one linear model on recent deviations, lags and calendar.

Everything is a deviation from the weekly profile, so a strong penalty falls back to the seasonal mean. The first 24
hours have a model each; beyond, one model serves a block (it uses only lags that its farthest hour has).
"""

from __future__ import annotations

from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK, State, Timeline, pack, profile
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["LogRidge", "Ridge"]

_DAY: Final = 24
_BLOCKS: Final = (*range(1, 25), 48, 72, 96, 120, 144, 168, 336, 504)
"""Farthest hour of each block."""
_RECENT: Final = 24
_PENALTY: Final = 0.05
"""Ridge penalty per training row, on standardised columns."""
_MIN_ROWS: Final = WEEK
_MAX_ROWS: Final = 8760
_MEMORY: Final = 5 * WEEK
"""Hours before the origin that a prediction looks at (the oldest lag is 504 + 168 back)."""


class Ridge:
    """On counts. `LogRidge` is the same on log(1 + count), which suits traffic that swings by factors."""

    name = "ridge"
    min_hours = 2 * WEEK
    _log = False

    def __init__(self) -> None:
        self._scale = 1.0
        self._profile: Floats = np.zeros(WEEK)
        self._weights: dict[int, Floats] = {}

    def fit(self, past: Timeline) -> Self:
        past = past.interpolated().until(len(past), _MAX_ROWS + _MEMORY)
        known = past.values[~np.isnan(past.values)]
        self._scale = 1.0 if self._log else max(float(np.mean(known)), 1e-9)
        level = self._forward(past.values)
        week = past.week
        self._profile = profile(level, week)
        deviation = level - self._profile[week[: len(level)]]
        filled = np.nan_to_num(deviation)
        state = _recent_state(filled)
        self._weights = {}
        for block in _BLOCKS:
            origins = np.arange(min(WEEK, len(level) // 3), len(level) - block)
            target = origins + block
            origins = origins[~np.isnan(deviation[target])]
            if len(origins) < _MIN_ROWS:
                break
            design = _design(state, filled, origins, block, block, past)
            self._weights[block] = _solve(design, deviation[origins + block])
        if not self._weights:
            raise ValueError(f"{len(known)} known hours are too few for a ridge regression")
        return self

    def predict(self, past: Timeline, steps: int) -> Floats:
        past = past.interpolated().until(len(past), _MEMORY)
        if len(past) < WEEK:
            return self._backward(self._profile[past.week[len(past) : len(past) + steps]])
        week = past.week
        filled = np.nan_to_num(self._forward(past.values) - self._profile[week[: len(past)]])
        state = _recent_state(filled)
        ends = np.array(list(self._weights))
        lead = np.arange(1, steps + 1)
        # Beyond the last block its weights go on, on lags that its farthest hour has.
        block = ends[np.minimum(np.searchsorted(ends, lead), len(ends) - 1)]
        reach = lead - np.maximum(-(-(lead - block) // WEEK), 0) * WEEK
        design = _design(state, filled, np.full(steps, len(past) - 1), reach, block, past)
        weights = np.array([self._weights[int(end)] for end in block])
        ahead = np.einsum("ij,ij->i", design, weights)
        return self._backward(ahead + self._profile[week[len(past) : len(past) + steps]])

    def _forward(self, values: Floats) -> Floats:
        return np.log1p(values) if self._log else values / self._scale

    def _backward(self, level: Floats) -> Floats:
        return np.expm1(np.clip(level, 0.0, 40.0)) if self._log else level * self._scale

    def to_state(self) -> State:
        return {
            "scale": self._scale,
            "profile": pack(self._profile),
            "weights": {str(block): pack(weights) for block, weights in self._weights.items()},
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        model = cls()
        model._scale = float(state["scale"])
        model._profile = np.array(state["profile"], dtype=np.float64)
        weights: dict[str, list[Any]] = state["weights"]
        model._weights = {int(block): np.array(row, dtype=np.float64) for block, row in weights.items()}
        return model


class LogRidge(Ridge):
    name = "ridge_log"
    _log = True


def _recent_state(filled: Floats) -> Floats:
    """For each hour: its deviation and the 23 before it, and the means of the last day and the last week."""
    padded = np.concatenate((np.zeros(WEEK), filled))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _RECENT)[WEEK - _RECENT + 1 :]
    total = np.concatenate(([0.0], np.cumsum(padded)))
    here = np.arange(WEEK + 1, len(padded) + 1)
    day = (total[here] - total[here - _DAY]) / _DAY
    week = (total[here] - total[here - WEEK]) / WEEK
    return np.column_stack((windows, day, week))


def _design(
    state: Floats,
    filled: Floats,
    origins: NDArray[np.int64],
    ahead: int | NDArray[np.int64],
    block: int | NDArray[np.int64],
    past: Timeline,
) -> Floats:
    """One row per (origin, hours ahead): recent state, lags of the target, calendar of the target, constant."""
    target = origins + ahead
    count = len(target)
    day = -(-block // _DAY) * _DAY
    weeks = -(-block // WEEK) * WEEK
    lags = [_at(filled, target - back) for back in (day, day + _DAY, weeks, weeks + WEEK)]
    hour = past.week[target]
    kept, rows = state.shape[1], np.arange(count)
    clock = kept + len(lags)
    design = np.zeros((count, clock + _DAY + 7 + 2))
    design[:, :kept] = state[origins]
    for i, lag in enumerate(lags):
        design[:, kept + i] = lag
    design[rows, clock + hour % _DAY] = 1.0
    design[rows, clock + _DAY + hour // _DAY] = 1.0
    design[:, -2] = past.holiday[target]
    design[:, -1] = 1.0
    return design


def _at(filled: Floats, position: NDArray[np.int64]) -> Floats:
    return np.where(position >= 0, filled[np.clip(position, 0, len(filled) - 1)], 0.0)


def _solve(design: Floats, target: Floats) -> Floats:
    """Ridge weights for the raw columns, penalised as if those were standardised; the last, constant one is not."""
    count = len(target)
    gram = design.T @ design / count  # moments of all columns at once: the last row holds their means
    middle, centre = gram[-1, :-1], float(target.mean())
    covariance = gram[:-1, :-1] - np.outer(middle, middle)
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    spread[spread < 1e-6] = np.inf  # a column that never moves gets no weight
    covariance /= np.outer(spread, spread)
    covariance[np.diag_indices_from(covariance)] = 1.0 + _PENALTY
    toward = (design.T @ target)[:-1] / count - middle * centre
    weights = np.linalg.solve(covariance, toward / spread) / spread
    return np.append(weights, centre - middle @ weights)
