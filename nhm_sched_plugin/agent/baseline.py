"""What an agent says of the load before it has a forecast: the last hour goes on."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from typing import Final

from nhm_sched_plugin.advice.arrivals import ArrivalCounter
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.live import MAX_TASK_TYPES
from nhm_sched_plugin.forecasting.table import UNKNOWN_SHARE
from nhm_sched_plugin.types import Forecast, ForecastPoint

__all__ = ["Baseline"]

CONFIDENCE: Final = 0.1
"""Of a mean of real counts; 0 of what nobody has seen."""
METHOD: Final = "mean"
_HOUR_S: Final = 3600.0


class Baseline:
    """Forecasts without a model. Any thread.

    The mean is that of the last hour's arrivals; where none were shown, the newest `predicted_load_1h` that a caller
    sent. Of a distribution of which only the mean is known, the exponential one assumes the least: its quantile at
    level p is -mean ln(1 - p).
    """

    def __init__(self, arrivals: ArrivalCounter, clock: Callable[[], float]) -> None:
        self._arrivals, self._clock = arrivals, clock
        self._told: tuple[float, float] | None = None
        self._total = 0
        self._by_type: dict[str, int] = {}

    def observe(self, now: float, task_type: str) -> None:
        """A ticket arrived."""
        self._arrivals.observe(now, task_type)
        self._total += 1
        counts = self._by_type
        if task_type in counts or len(counts) < MAX_TASK_TYPES:
            counts[task_type] = counts.get(task_type, 0) + 1

    def heard(self, predicted_load_1h: float) -> None:
        """A caller's own forecast of the next hour, in tickets."""
        self._told = self._clock(), predicted_load_1h

    def rate(self, now: float) -> float | None:
        """Tickets an hour of all types together; None when nobody has said anything in the last hour."""
        if self._arrivals.lately(now) is not None:
            counted = self._arrivals.last_hour(now)
            if counted:
                return float(counted)
        told = self._told
        return told[1] if told is not None and abs(now - told[0]) <= _HOUR_S else None

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast:
        """The mean of every hour up to the horizon, for a slice by its share."""
        rate = self.rate(now)
        mean = (rate or 0.0) * self._share(task_type, risk_band)
        quantiles = {level: -mean * math.log(1.0 - level) for level in LEVELS}
        start = now // 60 * 60
        hours = math.ceil(horizon_minutes / 60)
        return Forecast(
            horizon_minutes=horizon_minutes,
            predicted_volume=mean,
            confidence=0.0 if rate is None else CONFIDENCE,
            points=tuple(
                ForecastPoint(dt.datetime.fromtimestamp(start + hour * _HOUR_S, dt.UTC), mean, quantiles)
                for hour in range(hours)
            ),
            generated_at=dt.datetime.fromtimestamp(now, dt.UTC),
            method=METHOD,
        )

    def _share(self, task_type: str | None, risk_band: str | None) -> float:
        """Of all tickets; a slice that was not counted by itself is taken to have what an unknown one has."""
        if not task_type and not risk_band:
            return 1.0
        mine = 0 if risk_band else self._by_type.get(task_type or "", 0)
        return mine / self._total if mine else UNKNOWN_SHARE
