"""Forecasts inside the twin: the real forecaster moving through simulated time, and hourly means for training.

None has seen the day that it speaks of: `RollingForecasts` is fitted on the training part and gets counts of hours that
are over; `HourlyGuess` knows means of other days; `SeasonalGuess`, a rival's, those of the training part.
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

__all__ = ["HourlyGuess", "RollingForecasts", "SeasonalGuess", "hourly_series"]

_HOUR: Final = 3600.0
_DAY, _WEEK = 24, 168


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
    """Mean arrivals by hour of the week (from two weeks on; else by hour of the day)."""

    def __init__(self, trace: Trace) -> None:
        counts = trace.hourly()
        self._period = _WEEK if len(counts) >= 2 * _WEEK else _DAY
        sums, hours = [0.0] * self._period, [0] * self._period
        for start, count in counts:
            slot = self._slot(start)
            sums[slot] += count
            hours[slot] += 1
        overall = len(trace) / max((trace.end - trace.start) / _HOUR, 1e-9)
        self._means = [total / n if n else overall for total, n in zip(sums, hours, strict=True)]

    def _slot(self, start: float) -> int:
        return int(start // _HOUR) % self._period

    def rate(self, now: float, hours_ahead: int = 0) -> float:
        """Tickets per hour in the hour of `now`, or so many hours later."""
        return self._means[self._slot(now + hours_ahead * _HOUR)]


class HourlyGuess:
    """What could have been expected in each hour of a trace without having seen its day: a mean of other days.

    Of days that are learned from, all the others; of a trace with a `past`, the days before alone, those of the past
    included. By hour of the day, from four weeks on by hour of the week. Where there is no other day it is the mean of
    all hours (of the past, where there is one).
    """

    def __init__(self, trace: Trace, past: Trace | None = None) -> None:
        import numpy as np

        known = trace if past is None else past
        self.service_s = known.service_mean_s
        overall = len(known) / max((known.end - known.start) / _HOUR, 1e-9)
        self._first, end = math.ceil(known.start / _HOUR), math.floor(trace.end / _HOUR)
        hours = max(end - self._first, 0)
        self._period = _WEEK if known.end - known.start >= 4 * _WEEK * _HOUR else _DAY
        # A row a day (a week), a column an hour of it; hours outside of the trace are nobody's.
        rows = math.ceil(hours / self._period)
        tickets, seen = np.zeros((rows, self._period)), np.zeros((rows, self._period))
        arrivals = trace.arrivals if past is None else np.concatenate([past.arrivals, trace.arrivals])
        places = (arrivals // _HOUR).astype(np.int64) - self._first
        tickets.flat[:hours] = np.bincount(places[(places >= 0) & (places < hours)], minlength=hours)
        seen.flat[:hours] = 1.0
        if past is None:
            others, days = tickets.sum(axis=0) - tickets, seen.sum(axis=0) - seen
        else:
            others, days = np.cumsum(tickets, axis=0) - tickets, np.cumsum(seen, axis=0) - seen
        expected = np.where(days > 0, others / np.maximum(days, 1.0), overall).ravel()[:hours]
        whole = np.where(seen.sum(axis=0) > 0, tickets.sum(axis=0) / np.maximum(seen.sum(axis=0), 1.0), overall)
        self._expected: list[float] = expected.tolist()
        self._means: list[float] = whole.tolist()
        # The 0.9 quantile of count / expected, of hours that may be known.
        until = max(math.floor(known.end / _HOUR) - self._first, 0)
        told, there = expected[:until], tickets.ravel()[:hours][:until]
        ratios = np.sort(there[told > 0] / told[told > 0])
        self._spread = max(1.0, float(ratios[math.ceil(0.9 * len(ratios)) - 1])) if len(ratios) else 1.0

    def rate(self, now: float, hours_ahead: int = 0) -> float:
        """Tickets per hour in the hour of `now`, or so many hours later."""
        place = int(now // _HOUR) + hours_ahead - self._first
        if 0 <= place < len(self._expected):
            return self._expected[place]
        return self._means[place % self._period]

    def highest(self, now: float, ahead_s: float) -> float:
        """The highest rate of the hours that begin by then, that of `now` included."""
        return max([self.rate(now, ahead) for ahead in range(1 + math.ceil(ahead_s / _HOUR))])

    def forecast(self, now: float) -> Forecast:
        """For the next 60 minutes. The 0.9 quantile is the mean times that of count / mean, and at least Poisson's."""
        mean = self.highest(now, _HOUR)
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
