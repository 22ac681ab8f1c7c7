"""The baselines: the mean of the hour of the week, and the same hour a week ago."""

from __future__ import annotations

from typing import ClassVar, Final, Self

import numpy as np

from nhm_sched_plugin.forecasting.models.base import WEEK, Refitted, State, Timeline, profile
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["SeasonalMean", "SeasonalNaive"]

_HALF_LIFE_WEEKS: Final = 3.0
_MEMORY: Final = 8 * WEEK
_LEAN_HOURS: Final = 8.0
"""Hours of ordinary traffic that the holiday factor leans on."""


class SeasonalMean(Refitted):
    """The mean of the hour of the week over the last eight weeks, half as much weight every three weeks back.

    Holidays stay out of that mean; what is learned is their factor: traffic on holidays over that of ordinary days
    in the same hours of the week, leaning on 1 as strongly as eight ordinary hours. Works from one known hour on.
    """

    name: ClassVar[str] = "seasonal_mean"
    min_hours: ClassVar[int] = 1

    def __init__(self, holiday_factor: float = 1.0) -> None:
        self._factor = holiday_factor

    def fit(self, past: Timeline) -> Self:
        count, week = len(past), past.week
        holiday = past.holiday[:count]
        ordinary = np.where(holiday, np.nan, past.values)
        usual = profile(ordinary, week)[week[:count]]
        on_holiday = holiday & ~np.isnan(past.values)
        level = float(np.nanmean(ordinary)) if np.isfinite(ordinary).any() else 0.0
        if level > 0:
            lean = _LEAN_HOURS * level
            seen, expected = past.values[on_holiday].sum(), usual[on_holiday].sum()
            self._factor = float((seen + lean) / (expected + lean))
        return self

    def predict(self, past: Timeline, steps: int) -> Floats:
        recent = past.until(len(past), _MEMORY)
        known, week = len(recent), recent.week
        ordinary = np.where(recent.holiday[:known], np.nan, recent.values)
        values = ordinary if np.isfinite(ordinary).any() else recent.values
        ahead = profile(values, week, _HALF_LIFE_WEEKS)[week[known : known + steps]]
        return np.where(recent.holiday[known : known + steps], ahead * self._factor, ahead)

    def to_state(self) -> State:
        return {"holiday_factor": self._factor}

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(float(state["holiday_factor"]))


class SeasonalNaive(SeasonalMean):
    """The same hour a week ago; where that is unknown, or either day is a holiday, the seasonal mean."""

    name: ClassVar[str] = "seasonal_naive"
    min_hours: ClassVar[int] = WEEK

    def predict(self, past: Timeline, steps: int) -> Floats:
        mean = super().predict(past, steps)
        back = len(past) - WEEK + np.arange(steps) % WEEK
        special = past.holiday[len(past) : len(past) + steps] | past.holiday[np.maximum(back, 0)]
        values = np.where(back >= 0, past.values[np.maximum(back, 0)], np.nan)
        return np.where(np.isnan(values) | special, mean, values)
