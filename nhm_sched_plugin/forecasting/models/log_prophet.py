"""Prophet, configured well: on log counts, with a daily cycle for each kind of day, and what is left over corrected.

Prophet alone forgets what happened an hour ago. A regression per hour ahead on the last residuals brings it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np

from nhm_sched_plugin.forecasting.models.base import WEEK, Fold, State, Timeline, pack
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["LogProphet"]

_SHORT: Final = 24
_PENALTY: Final = 0.05
_ROWS: Final = 26 * WEEK
_MEMORY: Final = 2 * WEEK


class LogProphet(FrozenProphet):
    name: ClassVar[str] = "prophet_log"
    _kinds: ClassVar[tuple[str, ...]] = ("weekday", "saturday", "sunday")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._correction: Floats = np.zeros((_SHORT, 5))
        """For each of the next 24 hours: weights of the last residual, the one before, the last day's mean, and the
        residuals one day and one week before the target."""

    def fit(self, past: Timeline) -> Self:
        super().fit(past)
        past = past.interpolated().until(len(past), _ROWS)
        rest = self._residual(past)
        last = np.arange(WEEK, len(rest) - _SHORT)
        for lead in range(1, _SHORT + 1):
            rows, target = _columns(rest, last, lead), rest[last + lead]
            gram = rows.T @ rows
            gram[np.diag_indices_from(gram)] *= 1 + _PENALTY
            gram[np.diag_indices_from(gram)] += 1e-9
            self._correction[lead - 1] = np.linalg.solve(gram, rows.T @ target)
        return self

    def predict(self, past: Timeline, steps: int) -> Floats:
        past = past.interpolated().until(len(past), _MEMORY)
        level = self._level(past.local[len(past) : len(past) + steps])
        rest = self._residual(past)
        if len(rest) > WEEK:
            last = np.array([len(rest) - 1])
            for lead in range(1, min(steps, _SHORT) + 1):
                level[lead - 1] += float((_columns(rest, last, lead) @ self._correction[lead - 1])[0])
        return self._backward(level)

    def roll(self, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        self.fit(past.until(folds[0].start))
        past = past.interpolated(folds[0].start)
        origins = np.array([origin for fold in folds for origin in fold.origins])
        level = self._level(past.local)
        rest = np.nan_to_num(self._forward(past.values) - level[: len(past)])
        rows = level[origins[:, None] + np.arange(steps)[None, :]]
        for lead in range(1, min(steps, _SHORT) + 1):
            rows[:, lead - 1] += _columns(rest, origins - 1, lead) @ self._correction[lead - 1]
        return self._backward(rows)

    def _residual(self, past: Timeline) -> Floats:
        return np.nan_to_num(self._forward(past.values) - self._level(past.local[: len(past)]))

    def _forward(self, values: Floats) -> Floats:
        return np.log1p(values)

    def _backward(self, level: Floats) -> Floats:
        return np.expm1(np.clip(level, 0.0, 40.0))

    def to_state(self) -> State:
        return super().to_state() | {"correction": [pack(row) for row in self._correction]}

    @classmethod
    def from_state(cls, state: State) -> Self:
        model = super().from_state(state)
        model._correction = np.array(state["correction"], dtype=np.float64)
        return model


def _columns(rest: Floats, last: Any, lead: int) -> Floats:
    total = np.concatenate(([0.0], np.cumsum(rest)))
    day = (total[last + 1] - total[np.maximum(last + 1 - _SHORT, 0)]) / _SHORT
    return np.column_stack((rest[last], rest[last - 1], day, rest[last + lead - _SHORT], rest[last + lead - WEEK]))
