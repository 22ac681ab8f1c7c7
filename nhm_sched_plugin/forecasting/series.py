"""From whatever history there is to clean hours: one count per hour, missing hours marked.

What cannot be read in one way only is refused in words (`HistoryError`); nothing is guessed in silence. `quality` says
what is wrong with a history and treats it.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nhm_sched_plugin.errors import IngestError

__all__ = [
    "INTERPOLATED_HOURS",
    "Floats",
    "HistoryError",
    "epoch",
    "following",
    "holiday_dates",
    "hour_of_week",
    "hours",
    "join",
    "stamps",
]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
INTERPOLATED_HOURS: Final = 2
"""Longest gap that is interpolated: under 3 hours."""
_HOUR: Final = pd.Timedelta(hours=1)
_COARSE_FROM: Final = 100
"""With fewer stamps than this a wide and uneven spacing is taken for gaps, not for a coarse series."""
_SAME_SPACING: Final = 24
"""So many equal steps in a row are a spacing that somebody chose, not a chain of lost rows."""
_HUG_S: Final = 120
"""Hourly rows that all lie this near to a full hour, before or after it, are meant for that hour."""
_MAX_HOURS: Final = 100 * 366 * 24


class HistoryError(IngestError, ValueError):
    """A history that no forecast can be made from; the text says what to do."""


def hours(history: pd.Series[Any]) -> pd.Series[float]:
    """Counts per hour on a gapless hourly index (labels are starts of hours, time zone kept), NaN where unknown.

    Takes an hourly or finer Series on a DatetimeIndex in any order. Duplicated stamps: the last one stands, and a
    warning is logged where they differ. Rows finer than an hour and evenly spaced are summed, an hour with at least
    half of its rows scaled up to a full one, with fewer taken for missing; uneven rows are summed as they are, their
    first and last hour taken for complete. An hour without rows is missing, not zero. Hours begin on the clock of the
    time zone, also where that is half an hour off.
    Raises `HistoryError` for anything that holds no counts in time, or whose spacing is hourly at one time and
    something else at another.
    """
    clean, rows_at = _checked(history)
    _check_spacing(rows_at)
    floor = _starts(stamps(clean), rows_at)
    if floor.equals(stamps(clean)):
        per_hour = clean
    else:
        per_hour = clean.groupby(floor).sum()
        expected = _rows_per_hour(rows_at)
        if expected > 1:
            rows = clean.groupby(floor).count()
            per_hour = (per_hour * expected / rows).where(rows * 2 >= expected)
    full = pd.date_range(per_hour.index[0], per_hour.index[-1], freq="h", unit="s")
    result = per_hour.reindex(full).astype(float)
    result.name = "volume"
    return result


def _checked(history: pd.Series[Any]) -> tuple[pd.Series[float], pd.DatetimeIndex]:
    """Known counts in order of time, and the stamps of all rows: an unknown count is a row, too."""
    if not isinstance(history, pd.Series) or not isinstance(history.index, pd.DatetimeIndex):
        kind = type(history.index).__name__ if isinstance(history, pd.Series) else type(history).__name__
        raise HistoryError(f"history is indexed by {kind}; give a pandas Series of counts on a DatetimeIndex")
    values = _numbers(history)
    values = values[values.index.notna()]
    if np.isinf(values.to_numpy()).any():
        where = values.index[np.isinf(values.to_numpy())][0]
        raise HistoryError(f"history holds an infinite count at {where}; correct it, or write NaN for an unknown hour")
    rows_at = cast("pd.DatetimeIndex", values.index.unique().sort_values())
    values = _deduplicated(values[values.notna()]).sort_index()
    if values.empty:
        raise HistoryError("history is empty or holds nothing but missing values; give at least one hourly count")
    if (values < 0).any():
        worst = values.idxmin()
        raise HistoryError(f"history holds {values.min():g} at {worst}; counts cannot be negative: correct or drop it")
    first, last = values.index[0], values.index[-1]
    if (last - first) / _HOUR > _MAX_HOURS:
        raise HistoryError(f"history goes from {first} to {last}, over a century; correct or drop the wrong stamps")
    return values, rows_at


def _numbers(history: pd.Series[Any]) -> pd.Series[float]:
    if history.dtype.kind in "mMc":
        raise HistoryError(f"history holds {history.dtype} values; give counts")
    try:
        return pd.to_numeric(history).astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise HistoryError(f"history holds values that are no numbers ({error}); give counts") from None


def _deduplicated(values: pd.Series[float]) -> pd.Series[float]:
    """The last row of each stamp. Local stamps without a zone repeat an hour when the clock is set back."""
    twice = values.index.duplicated(keep=False)
    if twice.any():
        differ = values[twice].groupby(level=0).nunique()
        differ = differ[differ > 1]
        if len(differ):
            logger.warning(
                "%d stamps of the history stand more than once with different counts, the first at %s; "
                "the last one of each counts",
                len(differ),
                differ.index[0],
            )
    return values[~values.index.duplicated(keep="last")]


def _check_spacing(index: pd.DatetimeIndex) -> None:
    """Refuse what is coarser than hourly, and a spacing that changes on the way: both would be read wrongly."""
    steps = np.diff(epoch(index))
    if not len(steps):
        return
    coarse = float(np.median(steps)) > 3600
    if coarse and (len(index) >= _COARSE_FROM or (len(steps) >= 3 and len(set(steps.tolist())) == 1)):
        raise HistoryError("history is coarser than hourly; give counts per hour or finer (and zeros for idle hours)")
    edges = np.flatnonzero(np.diff(steps)) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [len(steps)])))
    long = starts[lengths >= _SAME_SPACING]
    spacings, first = np.unique(steps[long], return_index=True)
    if len(spacings) > 1:
        told = ", ".join(f"{step} s from {index[long[at]]}" for step, at in zip(spacings, first, strict=True))
        raise HistoryError(
            f"the spacing of the history changes ({told}); bring it to one, for example with "
            'history.resample("h").sum(min_count=1)'
        )


def _starts(index: pd.DatetimeIndex, rows_at: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Starts of hours in absolute time, so that the doubled hour of a clock change stays two hours.

    The first stamp's offset from UTC says where hours begin, so that India's begin at its own full hours. Whether the
    rows are hourly is told by the stamps of all of them, `rows_at`.
    """
    seconds = epoch(index)
    offset = None if index.tz is None else index[0].utcoffset()
    phase = 0 if offset is None else int(offset.total_seconds()) % 3600
    since = seconds + phase
    steps = np.diff(epoch(rows_at))
    hourly = len(steps) > 0 and abs(float(np.median(steps)) - 3600) <= _HUG_S
    # Hourly rows a moment before or after the full hour would else meet in one hour and leave the next one empty.
    shift = _HUG_S if hourly and bool(((since + _HUG_S) % 3600 <= 2 * _HUG_S).all()) else 0
    start = (since + shift) // 3600 * 3600 - phase
    zoned = pd.DatetimeIndex(pd.to_datetime(start, unit="s", utc=True))
    return (zoned.tz_localize(None) if index.tz is None else zoned.tz_convert(index.tz)).as_unit("s")


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

    Raises `HistoryError` when only one of them has a time zone, or their hours begin at different minutes.
    """
    zone, given = stamps(old).tz, stamps(recent).tz
    if (zone is None) != (given is None):
        raise HistoryError(f"recent counts have time zone {given}, the history has {zone}; use the same for both")
    if zone is not None:
        recent = recent.tz_convert(zone)
    if int(epoch(stamps(old)[:1])[0] - epoch(stamps(recent)[:1])[0]) % 3600:
        raise HistoryError(
            f"recent hours begin at other minutes ({recent.index[0]}) than the history's ({old.index[0]}); "
            "convert the recent counts to the history's time zone first"
        )
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
