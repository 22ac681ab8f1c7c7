"""The hours since the fit, held against what was said of them an hour before: does the load still follow the models?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np

from nhm_sched_plugin.forecasting.correction import UNCORRECTED, Correction, corrected
from nhm_sched_plugin.forecasting.models.base import pack
from nhm_sched_plugin.forecasting.series import Floats
from nhm_sched_plugin.forecasting.shift import Hour, LevelWatch

__all__ = ["COMPARED_HOURS", "Tracker"]

COMPARED_HOURS: Final = 48


class Tracker:
    """Keeps the last hours, and says what they mean for the hours ahead."""

    def __init__(self, seen: Sequence[Hour] = ()) -> None:
        self._seen = list(seen)[-COMPARED_HOURS:]
        self._correction: Correction | None = None

    def note(self, counts: Floats, means: Floats, quantiles: Floats) -> None:
        """More hours: their counts (NaN: unknown), and mean and quantiles (hours x LEVELS) as forecast for each."""
        self._seen += [
            Hour(None if math.isnan(count) else float(count), float(mean), tuple(row.tolist()))
            for count, mean, row in zip(counts, means, quantiles, strict=True)
        ]
        self._seen = self._seen[-COMPARED_HOURS:]
        self._correction = None

    @property
    def correction(self) -> Correction:
        """A level shift or an outage that is on; `UNCORRECTED` otherwise."""
        if self._correction is None:
            watch, saved = LevelWatch(), 0.0
            for hour in self._seen:
                before = watch.correction()
                if before.kind != "none" and hour.actual is not None:
                    moved = hour.mean * before.factor(1.0)
                    saved += abs(_log_ratio(hour.actual, hour.mean)) - abs(_log_ratio(hour.actual, moved))
                watch.observe(hour)
            now = watch.correction()
            # Bursts that are over in an hour look like a shift each time; a correction that made it worse is dropped.
            self._correction = now if now.kind != "none" and saved >= 0 else UNCORRECTED
        return self._correction

    def correct(self, mean: Floats, quantiles: Floats) -> None:
        """Change mean (hours) and quantiles (hours x LEVELS) of the hours ahead in place."""
        by = self.correction
        if by.kind != "none":
            for i in range(len(mean)):
                mean[i], quantiles[i] = corrected(float(mean[i]), quantiles[i].tolist(), i + 1.0, by)

    def to_state(self) -> list[list[Any]]:
        return [[hour.actual, *pack(np.array([hour.mean, *hour.quantiles]))] for hour in self._seen]

    @classmethod
    def from_state(cls, state: Sequence[Sequence[Any]]) -> Self:
        return cls([Hour(actual, mean, tuple(row)) for actual, mean, *row in state])


def _log_ratio(actual: float, forecast: float) -> float:
    return math.log((actual + 1.0) / (forecast + 1.0))
