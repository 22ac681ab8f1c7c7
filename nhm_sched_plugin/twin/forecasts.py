"""Forecasts inside the twin: the real forecaster moving through simulated time, and a seasonal guess for training.

Neither sees the future: `RollingForecasts` is fitted on the training part and gets counts of hours that are over;
`SeasonalGuess` knows averages over the training part.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.forecasting.table import ForecastTable, SnapshotForecaster, write_table
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import Forecast, ForecastPoint

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.forecasting.forecaster import LoadForecaster

__all__ = ["RollingForecasts", "SeasonalGuess", "hourly_series"]

_HOUR: Final = 3600.0


def hourly_series(counts: Sequence[tuple[float, int]]) -> pd.Series[float]:
    """(start of hour, count) pairs as a series on a UTC DatetimeIndex."""
    import pandas as pd

    index = pd.to_datetime([int(start) for start, _ in counts], unit="s", utc=True)
    return pd.Series([float(count) for _, count in counts], index=index, dtype=float)


class RollingForecasts:
    """Fit on `train`, then keep the table in `path` current: every `refresh_s` of simulated time the origin moves.

    `served` answers as the host's own forecaster does from that file.
    """

    def __init__(
        self,
        train: Trace,
        test: Trace,
        path: Path,
        *,
        horizons: Sequence[int],
        country: str | None,
        refresh_s: float = 6 * _HOUR,
    ) -> None:
        """Raises `ValueError` (`HistoryError`) when the training part is too short to fit anything."""
        from nhm_sched_plugin.forecasting.forecaster import LoadForecaster

        self.served = SnapshotForecaster(path)
        self._path, self._refresh_s = path, refresh_s
        self._fitted: LoadForecaster = LoadForecaster.fit(
            hourly_series(train.hourly()), horizons=horizons, country=country
        )
        self._coming = [*_seam(train, test), *test.hourly()]
        self._known = 0
        self._next = test.start
        self.advance(test.start)

    @property
    def mape(self) -> dict[str, float]:
        """Backtest MAPE in percent by horizon in minutes, on the training part."""
        return self._mape

    def advance(self, now: float) -> bool:
        """Take in the hours that are over by `now` and write a new table, when it is time. True when it did."""
        if now < self._next:
            return False
        self._next = now + self._refresh_s
        fresh = self._known
        while fresh < len(self._coming) and self._coming[fresh][0] + _HOUR <= now:
            fresh += 1
        if fresh > self._known:
            self._fitted.update(hourly_series(self._coming[self._known : fresh]))
            self._known = fresh
        ahead = self._fitted.table(math.ceil(self._refresh_s / _HOUR) + 48)
        self._mape = ahead.mape
        table = ForecastTable(
            generated_at=now, origin=ahead.first_hour, model_version="twin", method=ahead.method, slices={"": ahead}
        )
        write_table(self._path, table)
        self.served.refresh()
        return True


def _seam(train: Trace, test: Trace) -> list[tuple[float, int]]:
    """The hour that the cut goes through belongs to neither part; it is counted as soon as it is over."""
    start = math.floor(train.end / _HOUR) * _HOUR
    if start == train.end:
        return []
    later = [arrival for arrival in test.arrivals if arrival < start + _HOUR]
    return [(start, len([arrival for arrival in train.arrivals if arrival >= start]) + len(later))]


class SeasonalGuess:
    """Mean arrivals by hour of the week (from two weeks on; else by hour of the day), times a load factor.

    The 0.9 quantile is the mean times the 0.9 quantile of count / mean over the training part, and at least that of
    Poisson counts.
    """

    def __init__(self, trace: Trace) -> None:
        counts = trace.hourly()
        self._period = 168 if len(counts) >= 2 * 168 else 24
        sums, hours = [0.0] * self._period, [0] * self._period
        for start, count in counts:
            slot = self._slot(start)
            sums[slot] += count
            hours[slot] += 1
        overall = len(trace) / max((trace.end - trace.start) / _HOUR, 1e-9)
        self._means = [total / n if n else overall for total, n in zip(sums, hours, strict=True)]
        ratios = sorted(
            count / self._means[self._slot(start)] for start, count in counts if self._means[self._slot(start)]
        )
        self._spread = max(1.0, ratios[math.ceil(0.9 * len(ratios)) - 1]) if ratios else 1.0

    def _slot(self, start: float) -> int:
        return int(start // _HOUR) % self._period

    def rate(self, now: float, hours_ahead: int = 0) -> float:
        """Tickets per hour in the hour of `now`, or so many hours later."""
        return self._means[self._slot(now + hours_ahead * _HOUR)]

    def forecast(self, now: float, factor: float) -> Forecast:
        """For the next 60 minutes."""
        mean = factor * max(self.rate(now), self.rate(now, 1))
        upper = max(mean * self._spread, mean + 1.2816 * math.sqrt(mean))
        stamp = dt.datetime.fromtimestamp(now - now % _HOUR, dt.UTC)
        return Forecast(
            horizon_minutes=60,
            predicted_volume=mean,
            confidence=0.5,
            points=(ForecastPoint(stamp, mean, {0.5: mean, 0.9: upper}),),
            generated_at=stamp,
            method="seasonal_mean",
        )
