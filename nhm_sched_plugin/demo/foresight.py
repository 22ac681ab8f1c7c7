"""The forecasts during the replay, as they were made: published to the host, noted for the report."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.forecasting.table import ForecastTable, SnapshotForecaster, read_table, write_table
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.forecasts import hourly_series
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import Forecast

__all__ = ["HOUR_S", "Foresight", "Hindsight", "Said"]

HOUR_S: Final = 3600.0
REFRESH_S: Final = 6 * HOUR_S
"""How often, in simulated time, the forecasts take in the hours that are over."""


class Said(NamedTuple):
    """What was expected of the hour that starts at `hour`."""

    made_at: float
    hour: float
    forecast: Forecast

    @property
    def mean(self) -> float:
        return self.forecast.points[-1].mean

    def quantile(self, level: float) -> float:
        return self.forecast.points[-1].quantiles[level]


class Foresight:
    """Moves the forecasts' origin through simulated time, and notes at each full hour what they say."""

    def __init__(self, settings: Settings, past: Trace, coming: Trace) -> None:
        self.settings = settings
        self.horizons = settings.ml.forecasting.horizons
        self.said: dict[int, list[Said]] = {horizon: [] for horizon in self.horizons}
        self.tables: list[tuple[float, ForecastTable]] = []
        """(from when on, what was served)."""
        self._hours = coming.hourly()
        self._served = SnapshotForecaster(settings.forecast_table_path)
        self._next = coming.start

    def advance(self, now: float) -> bool:
        """At full hours note what is expected; every `REFRESH_S` publish forecasts from `now`. True: a new table."""
        fresh = now >= self._next
        if fresh:
            self._next = now + REFRESH_S
            self._publish(now)
        if now % HOUR_S == 0:
            for horizon in self.horizons:
                forecast = self._served.forecast(horizon, now)
                if forecast is not None:
                    self.said[horizon].append(Said(now, now + horizon * 60 - HOUR_S, forecast))
        return fresh

    def _publish(self, now: float) -> None:
        from nhm_sched_plugin.training.pipeline import republish

        over = [(start, count) for start, count in self._hours if start + HOUR_S <= now]
        if over:
            republish(self.settings, {"": hourly_series(over)}, now=now)
        self._served.refresh()
        self.tables.append((now, read_table(self.settings.forecast_table_path)))

    def rows(self) -> list[dict[str, Any]]:
        """Everything said, as rows of the `forecasts` table."""
        return [
            {
                "generated_at": dt.datetime.fromtimestamp(said.made_at, dt.UTC),
                "target": dt.datetime.fromtimestamp(said.hour, dt.UTC),
                "horizon_minutes": horizon,
                "mean": said.mean,
                "quantiles": {str(level): value for level, value in said.forecast.points[-1].quantiles.items()},
                "confidence": said.forecast.confidence,
                "method": said.forecast.method,
                "model_version": said.forecast.model_version,
            }
            for horizon, made in self.said.items()
            for said in made
        ]


class Hindsight:
    """The same forecasts once more, for the rules alone: each table is served from the time it was made."""

    def __init__(self, tables: list[tuple[float, ForecastTable]], scratch: Path) -> None:
        self._coming = list(reversed(tables))
        self._scratch = scratch
        self._served = SnapshotForecaster(scratch)

    def advance(self, now: float) -> None:
        while self._coming and self._coming[-1][0] <= now:
            write_table(self._scratch, self._coming.pop()[1])
            self._served.refresh()

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None:
        return self._served.forecast(horizon_minutes, now, task_type, risk_band)
