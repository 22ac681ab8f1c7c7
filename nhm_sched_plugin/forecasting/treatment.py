"""What is done about flaws before anything is learned from a history. Each treatment says what it touched.

* gaps under 3 h: linear interpolation; 3 to 24 h stay missing (`interpolate`);
* isolated glitches: missing (`glitches`, `without_glitches`);
* other features than volume: the median (`impute`). A missing volume is never imputed.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting.quality import runs
from nhm_sched_plugin.forecasting.series import INTERPOLATED_HOURS, Floats, hour_of_week, stamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Glitch", "Glitches", "glitches", "impute", "interpolate", "without_glitches"]

SIGMAS: Final = 3.0
FACTOR: Final = 3.0
"""A glitch is also at least so many times what was expected, or at most that part of it."""
LONGEST_GLITCH: Final = 2
"""Hours. What lasts longer is an event or a new level."""
_AROUND: Final = 2
"""Hours before and after a glitch that must be known and ordinary."""
MOST: Final = 0.01
"""Of the known hours. A series with more peaks (or holes) is like that by nature."""
_SHORTEST_HISTORY: Final = 336
_POISSON: Final = 2.0
_LEVEL_WINDOW: Final = 25
_ENOUGH: Final = 3
_AGAIN_DAYS: Final = (*range(1, 8), 14, 21, *range(28, 36), *range(56, 64), 90, 91, 92, 364, 365, 366)
"""A deviation that returned after so many days is a pattern: daily, weekly, monthly, quarterly, yearly."""
_AGAIN_SHARE: Final = 0.5


class Glitch(msgspec.Struct, frozen=True, kw_only=True):
    """An hour that is not believed."""

    at: str
    """Start of the hour (ISO)."""
    value: float
    expected: float
    sigmas: float


class Glitches(msgspec.Struct, frozen=True, kw_only=True):
    found: list[Glitch] = []
    """In order of time."""
    left: str = ""
    """Why nothing was looked for, or why peaks or holes stay; empty: neither."""


def interpolate(values: Floats) -> Floats:
    """Hourly counts with inner gaps under 3 h filled linearly. Longer gaps, and missing ends, stay NaN."""
    missing = np.isnan(values)
    known = np.flatnonzero(~missing)
    if not len(known) or len(known) == len(values):
        return values
    after = np.searchsorted(known, np.arange(len(values)))
    inner = missing & (after > 0) & (after < len(known))
    span = np.zeros(len(values), dtype=np.int64)
    span[inner] = known[after[inner]] - known[after[inner] - 1] - 1
    short = inner & (span <= INTERPOLATED_HOURS)
    filled = values.copy()
    filled[short] = np.interp(np.flatnonzero(short), known, values[known])
    return filled


def without_glitches(
    series: pd.Series[float], holidays: Collection[dt.date] = ()
) -> tuple[pd.Series[float], list[Glitch]]:
    """Hourly counts (as `hours` makes them) with the hours that `glitches` finds missing (NaN), and those hours."""
    found = glitches(series, holidays).found
    if not found:
        return series, []
    treated = series.copy()
    treated[[pd.Timestamp(glitch.at) for glitch in found]] = np.nan
    return treated, found


def glitches(series: pd.Series[float], holidays: Collection[dt.date] = ()) -> Glitches:
    """Isolated hours that are far from anything the season and the day explain.

    With z = log(1 + count), p the median of z at that hour of the week, and l the median of z - p over the 25 hours
    around, the residual is r = z - max(p + l, 0). Its scale s is 1.4826 times the median of |r| at that hour of the
    day, and at least twice that of a Poisson count, 2 / sqrt(1 + expected count): a quiet hour without tickets is
    chance. An hour is a glitch when all of this holds:

    1. |r| > 3 s, and the count is off by a factor of 3 or more (|r| >= log 3);
    2. it is isolated: at most two such hours in a row, the two hours before and after known and within 3 s. What lasts
       is an event or a new level, and the newest hours are never judged, since nobody knows yet;
    3. it does not recur: no residual of the same sign and half its size within an hour of the same time 1 to 7, 14, 21,
       28 to 35, 56 to 63, 90 to 92 or 364 to 366 days before or after;
    4. it is not on a holiday, nor on the day before or after one;
    5. at most 1 % of the known hours are such peaks (or holes): otherwise the series is like that, and they stay.

    Two weeks of known hours are the least it works with.
    """
    count = int(series.notna().sum())
    if count < _SHORTEST_HISTORY:
        return Glitches(left=f"{count} known hours are too few to tell a glitch ({_SHORTEST_HISTORY} are needed)")
    index = stamps(series)
    residual, expected, scale = _residuals(series)
    far = np.abs(residual) > SIGMAS * scale
    candidate = far & (np.abs(residual) >= math.log(FACTOR))
    ordinary = ~far & ~np.isnan(residual)
    isolated: list[int] = []
    for start, length in runs(candidate):
        end = start + length
        around = [*range(start - _AROUND, start), *range(end, end + _AROUND)]
        if length > LONGEST_GLITCH or around[0] < 0 or around[-1] >= len(series) or not ordinary[around].all():
            continue
        isolated += range(start, end)
    spared = _near(index, holidays)
    found, left = [], []
    for what, sign in (("peaks", 1), ("holes", -1)):
        same = [at for at in isolated if sign * residual[at] > 0]
        if len(same) > MOST * count:
            left.append(f"{len(same)} isolated {what} in {count} hours are the nature of this series; they stay")
        else:
            found += [at for at in same if not spared[at] and not _recurs(residual, at)]
    return Glitches(
        found=[
            Glitch(
                at=index[at].isoformat(),
                value=float(series.iloc[at]),
                expected=round(float(expected[at]), 3),
                sigmas=round(float(abs(residual[at]) / scale[at]), 2),
            )
            for at in sorted(found)
        ],
        left="; ".join(left),
    )


def _residuals(series: pd.Series[float]) -> tuple[Floats, Floats, Floats]:
    """Residual on the log scale, expected count, and robust scale of the residual, of each hour."""
    week = hour_of_week(stamps(series))
    z = np.log1p(series.to_numpy(dtype=np.float64))
    profile = _by_clock(z, week)
    level = pd.Series(z - profile).rolling(_LEVEL_WINDOW, center=True, min_periods=7).median().to_numpy()
    usual = np.maximum(profile + level, 0.0)
    residual, expected = np.asarray(z - usual, dtype=np.float64), np.asarray(np.expm1(usual), dtype=np.float64)
    spread = 1.4826 * _by_clock(np.abs(residual), week % 24)
    return residual, expected, np.fmax(spread, _POISSON / np.sqrt(1.0 + np.nan_to_num(expected)))


def _by_clock(values: Floats, clock: NDArray[np.int64]) -> Floats:
    """The median at each hour's place on the clock; of the hour of the day, else of all, where known too rarely."""
    result = _medians(values, clock)[clock]
    if np.isnan(result).any():
        result = np.where(np.isnan(result), _medians(values, clock % 24)[clock % 24], result)
        result = np.where(np.isnan(result), np.nanmedian(values), result)
    return np.asarray(result, dtype=np.float64)


def _medians(values: Floats, bins: NDArray[np.int64]) -> Floats:
    """Of the known values in each bin; NaN for bins with too few of them."""
    known = ~np.isnan(values)
    ordered = values[known][np.lexsort((values[known], bins[known]))]
    counts = np.bincount(bins[known], minlength=int(bins.max()) + 1)
    first = np.cumsum(counts) - counts
    enough = counts >= _ENOUGH
    result = np.full(len(counts), np.nan)
    low, high = first + (counts - 1) // 2, first + counts // 2
    result[enough] = (ordered[low[enough]] + ordered[high[enough]]) / 2
    return result


def _near(index: pd.DatetimeIndex, holidays: Collection[dt.date]) -> NDArray[np.bool_]:
    """Hours on a holiday and on the days around it."""
    days = {day + dt.timedelta(days=shift) for day in holidays for shift in (-1, 0, 1)}
    return np.isin(index.tz_localize(None).floor("D"), pd.DatetimeIndex(sorted(days)))


def _recurs(residual: Floats, at: int) -> bool:
    size = _AGAIN_SHARE * abs(residual[at])
    sign = math.copysign(1.0, residual[at])
    places = np.array([at + way * 24 * days + off for days in _AGAIN_DAYS for way in (-1, 1) for off in (-1, 0, 1)])
    places = places[(places >= 0) & (places < len(residual))]
    return bool((sign * np.nan_to_num(residual[places]) >= size).any())


def impute(frame: pd.DataFrame, columns: Sequence[str], by: Sequence[str] = ()) -> tuple[pd.DataFrame, dict[str, int]]:
    """Missing values of features become the median of their group (`by`), else of the whole column.

    Returns a new frame and how many values of each column were filled. A column without any value stays missing.
    Never give it the volume: a missing count is an outage, and the models know how to go around it.
    """
    result, filled = frame.copy(), {}
    for name in columns:
        values = frame[name].astype(float)
        if by:
            values = values.fillna(values.groupby([frame[key] for key in by], dropna=False).transform("median"))
        values = values.fillna(frame[name].astype(float).median())
        filled[name] = int(frame[name].isna().sum() - values.isna().sum())
        result[name] = values
    return result, filled
