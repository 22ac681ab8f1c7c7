"""From whatever history there is to clean hours: one count per hour, missing hours marked, and a report of the flaws.

Rules of the data contract: gaps under 3 h are interpolated, longer ones stay missing (a gap of a day or more fails
validation); an outlier is a count above 10 times the median of its hour of the week.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, cast

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nhm_sched_plugin.errors import IngestError

__all__ = [
    "INTERPOLATED_HOURS",
    "Floats",
    "HistoryError",
    "QualityReport",
    "epoch",
    "following",
    "holiday_dates",
    "hour_of_week",
    "hours",
    "join",
    "stamps",
    "validate",
]

Floats = NDArray[np.float64]
INTERPOLATED_HOURS: Final = 2
"""Longest gap that is interpolated: under 3 hours."""
_FAILING_GAP_HOURS: Final = 24
_OUTLIER_FACTOR: Final = 10.0
_HOUR: Final = pd.Timedelta(hours=1)
_COARSE_FROM: Final = 100
"""With fewer stamps than this a wide spacing is taken for gaps, not for a coarse series."""


class HistoryError(IngestError, ValueError):
    """A history that no forecast can be made from; the text says what to do."""


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a history. `ok` when every rule of the data contract holds."""

    hours: int
    missing: int
    gaps: list[tuple[str, int]] = []
    """Start (ISO) and length in hours of each run of missing hours."""
    outliers: list[tuple[str, float]] = []
    """Stamp (ISO) and count of each outlier. They are reported, not removed: they may be real."""
    problems: list[str] = []

    @property
    def ok(self) -> bool:
        return not self.problems


def hours(history: pd.Series[Any]) -> pd.Series[float]:
    """Counts per hour on a gapless hourly index (labels are starts of hours, time zone kept), NaN where unknown.

    Takes an hourly or finer Series on a DatetimeIndex in any order. Duplicated stamps: the last one stands. Rows
    finer than an hour and evenly spaced are summed, an hour with at least half of its rows scaled up to a full one,
    with fewer taken for missing; uneven rows are summed as they are. An hour without rows is missing, not zero.
    Raises `HistoryError` for anything that holds no counts in time.
    """
    clean = _checked(history)
    floor = _floor(stamps(clean))
    per_hour = clean.groupby(floor).sum()
    expected = _rows_per_hour(stamps(clean))
    if expected > 1:
        rows = clean.groupby(floor).count()
        per_hour = (per_hour * expected / rows).where(rows * 2 >= expected)
    full = pd.date_range(per_hour.index[0], per_hour.index[-1], freq="h", unit="s")
    result = per_hour.reindex(full).astype(float)
    result.name = "volume"
    return result


def _checked(history: pd.Series[Any]) -> pd.Series[float]:
    if not isinstance(history, pd.Series) or not isinstance(history.index, pd.DatetimeIndex):
        kind = type(history.index).__name__ if isinstance(history, pd.Series) else type(history).__name__
        raise HistoryError(f"history is indexed by {kind}; give a pandas Series of counts on a DatetimeIndex")
    try:
        values = pd.to_numeric(history).astype(float)
    except (TypeError, ValueError) as error:
        raise HistoryError(f"history holds values that are no numbers ({error}); give counts") from None
    values = values[values.index.notna()]
    values = values[~values.index.duplicated(keep="last")].sort_index()
    values = values[np.isfinite(values.to_numpy())]
    if values.empty:
        raise HistoryError("history is empty or holds nothing but missing values; give at least one hourly count")
    if (values < 0).any():
        worst = values.idxmin()
        raise HistoryError(f"history holds {values.min():g} at {worst}; counts cannot be negative: correct or drop it")
    if len(values) >= _COARSE_FROM and float(np.median(np.diff(epoch(stamps(values))))) > 3600:
        raise HistoryError("history is coarser than hourly; give counts per hour or finer (and zeros for idle hours)")
    return values


def _floor(index: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Starts of hours in absolute time, so that the doubled hour of a clock change stays two hours."""
    if index.tz is None:
        return index.floor("h")
    return index.tz_convert("UTC").floor("h").tz_convert(index.tz)


def _rows_per_hour(index: pd.DatetimeIndex) -> float:
    """How many evenly spaced rows make an hour; 1 for an hourly or uneven series."""
    if len(index) < 3:
        return 1.0
    steps = np.diff(epoch(index))
    step = float(np.median(steps))
    even = float(np.mean(steps == step)) >= 0.9
    return 3600.0 / step if even and 0 < step < 3600 and 3600 % step == 0 else 1.0


def stamps(series: pd.Series[float]) -> pd.DatetimeIndex:
    """The index of a series that `hours` or `join` made."""
    return cast("pd.DatetimeIndex", series.index)


def epoch(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    """Unix seconds; a naive stamp is taken for UTC."""
    return np.asarray(index.as_unit("s").asi8, dtype=np.int64)


def join(old: pd.Series[float], recent: pd.Series[float]) -> pd.Series[float]:
    """Both as one gapless hourly series; where they overlap the recent count stands.

    Raises `HistoryError` when only one of them has a time zone.
    """
    zone, given = stamps(old).tz, stamps(recent).tz
    if (zone is None) != (given is None):
        raise HistoryError(f"recent counts have time zone {given}, the history has {zone}; use the same for both")
    if zone is not None:
        recent = recent.tz_convert(str(zone))
    merged = recent.combine_first(old)
    return merged.reindex(pd.date_range(merged.index[0], merged.index[-1], freq="h", unit="s"))


def following(index: pd.DatetimeIndex, steps: int) -> pd.DatetimeIndex:
    """The `steps` hours after the last one of `index`, in its time zone."""
    return pd.date_range(index[-1] + _HOUR, periods=steps, freq="h", unit="s")


def hour_of_week(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    """0 (Monday, midnight) to 167, on the clock of the index' time zone."""
    return np.asarray(index.day_of_week * 24 + index.hour, dtype=np.int64)


def holiday_dates(country: str | None, years: range) -> dict[dt.date, str]:
    """Public holidays of a country (ISO 3166 code) by date; several on one day are joined with "; ".

    Raises `HistoryError` for a country without a calendar.
    """
    if country is None:
        return {}
    import holidays

    try:
        calendar = holidays.country_holidays(country, years=years)
    except NotImplementedError:
        raise HistoryError(f"country {country!r} has no holiday calendar; give an ISO 3166 code or None") from None
    return dict(sorted(calendar.items()))


def _gaps(series: pd.Series[float]) -> list[tuple[int, int]]:
    """Position and length of each run of missing hours."""
    missing = np.concatenate(([False], series.isna().to_numpy(), [False]))
    edges = np.flatnonzero(missing[1:] != missing[:-1])
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def validate(series: pd.Series[float]) -> QualityReport:
    """Check hourly counts (as `hours` makes them) against the data contract."""
    gaps = _gaps(series)
    typical = series.groupby(hour_of_week(stamps(series))).transform("median")
    outliers = series[(series > _OUTLIER_FACTOR * typical) & (typical > 0)]
    problems = [
        f"no data for {length} h from {series.index[start]} (allowed: under {_FAILING_GAP_HOURS} h)"
        for start, length in gaps
        if length >= _FAILING_GAP_HOURS
    ]
    if len(outliers):
        problems.append(f"{len(outliers)} hours above {_OUTLIER_FACTOR:g} times the median of their hour of the week")
    return QualityReport(
        hours=len(series),
        missing=int(series.isna().sum()),
        gaps=[(series.index[start].isoformat(), length) for start, length in gaps],
        outliers=[(str(stamp), float(value)) for stamp, value in outliers.items()],
        problems=problems,
    )
