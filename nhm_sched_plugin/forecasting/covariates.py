"""What is known about hours besides their counts, past and to come: public holidays and external regressors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import Timeline, pack
from nhm_sched_plugin.forecasting.series import (
    Floats,
    HistoryError,
    epoch,
    following,
    holiday_dates,
    stamps,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAX_AHEAD", "Covariates", "known_in"]

MAX_AHEAD: Final = 504
"""Hours that a timeline goes on after its last known one."""
_STORED_AHEAD: Final = 2 * MAX_AHEAD
"""Hours of regressors after the last known one that a state keeps."""
_HOUR: Final = 3600
_EPOCH: Final = dt.date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Covariates:
    """Holidays of a country, more of the user's own, and regressors on the same clock as the history."""

    holidays: dict[int, str]
    """Day since 1970 -> names, joined with "; "."""
    names: tuple[str, ...] = ()
    hours: NDArray[np.int64] | None = None
    """Starts of the hours that the regressors are known for, Unix seconds (a naive stamp taken for UTC), rising."""
    values: Floats | None = None
    """Hours x regressors, standardised on the history; 0 (the mean) where unknown."""
    scale: tuple[tuple[float, float], ...] = ()
    """Mean and spread of each regressor in the history of the fit: newer values are scaled by them, too."""

    @classmethod
    def of(
        cls,
        known: pd.Series[float],
        country: str | None,
        extra_holidays: Mapping[dt.date, str] | None = None,
        regressors: pd.DataFrame | None = None,
    ) -> Self:
        """For a history of hourly counts. Raises `HistoryError` for an unknown country or unusable regressors."""
        index = stamps(known)
        days = holiday_dates(country, range(index[0].year, index[-1].year + 3)) | dict(extra_holidays or {})
        holidays = {(day - _EPOCH).days: name for day, name in days.items()}
        if regressors is None:
            return cls(holidays)
        at, values = _checked(regressors, known)
        past = values[at <= epoch(index)[-1]]
        _check_seen(regressors, at, values, index)
        middle, spread = np.nanmean(past, axis=0), np.nanstd(past, axis=0)
        scale = tuple(zip(middle.tolist(), np.where(spread > 0, spread, 1.0).tolist(), strict=True))
        made = cls(holidays, tuple(map(str, regressors.columns)), at, scale=scale)
        return replace(made, values=made._scaled(values))

    def renewed(self, regressors: pd.DataFrame, known: pd.Series[float]) -> Self:
        """With newer regressors: from their first hour on they stand alone, before it what was known stays.

        Columns that the fit did not have are ignored. Raises `HistoryError` when one that it had is missing, or for
        what cannot be used.
        """
        if self.hours is None or self.values is None:
            raise HistoryError("the forecaster was fitted without regressors; fit it anew with them")
        lacking = [name for name in self.names if name not in map(str, getattr(regressors, "columns", ()))]
        if lacking:
            raise HistoryError(
                f"regressors lack {', '.join(map(repr, lacking))}, which the forecaster was fitted with; "
                "add it, or fit anew without it"
            )
        own = regressors.rename(columns=str)[list(self.names)]
        at, values = _checked(own, known)
        if not len(at):
            return self
        before = self.hours < at[0]
        return replace(
            self,
            hours=np.concatenate((self.hours[before], at)),
            values=np.concatenate((self.values[before], self._scaled(values))),
        )

    def _scaled(self, values: Floats) -> Floats:
        middle, spread = np.array(self.scale).T
        return np.asarray(np.nan_to_num((values - middle) / spread), dtype=np.float64)

    @property
    def dates(self) -> dict[dt.date, str]:
        """Holidays as Prophet's features take them."""
        return {_EPOCH + dt.timedelta(days=day): name for day, name in self.holidays.items()}

    def timeline(self, known: pd.Series[float]) -> Timeline:
        """The hours as the models take them, with the calendar of the hours to come."""
        index = stamps(known)
        ahead = following(index, MAX_AHEAD)
        local = np.concatenate([_local(index), _local(ahead)])
        holiday = np.isin(local // 86_400, list(self.holidays))
        extra = np.zeros((len(local), len(self.names)))
        if self.hours is not None and self.values is not None and len(self.hours):
            wanted = np.concatenate([epoch(index), epoch(ahead)])
            place = np.minimum(np.searchsorted(self.hours, wanted), len(self.hours) - 1)
            found = self.hours[place] == wanted
            extra[found] = self.values[place[found]]
        return Timeline(np.asarray(known, dtype=np.float64), local, holiday, extra)

    def to_state(self, first: int, last: int) -> dict[str, Any]:
        """As JSON values: regressors only from the known hour `first` to six weeks after `last` (Unix seconds)."""
        state: dict[str, Any] = {"holidays": {str(day): name for day, name in sorted(self.holidays.items())}}
        if self.hours is not None and self.values is not None:
            kept = (self.hours >= first) & (self.hours <= last + _STORED_AHEAD * _HOUR)
            at = self.hours[kept]
            breaks = np.flatnonzero(np.diff(at) != _HOUR) + 1
            state |= {
                "names": list(self.names),
                "scale": [pack(np.array(pair)) for pair in self.scale],
                "runs": [[int(run[0]), len(run)] for run in np.split(at, breaks) if len(run)],
                "values": [pack(column) for column in self.values[kept].T],
            }
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        holidays = {int(day): str(name) for day, name in state["holidays"].items()}
        if "names" not in state:
            return cls(holidays)
        names = tuple(map(str, state["names"]))
        runs = [start + _HOUR * np.arange(count, dtype=np.int64) for start, count in state["runs"]]
        hours = np.concatenate([np.zeros(0, dtype=np.int64), *runs])
        values = np.array(state["values"], dtype=np.float64).reshape(len(names), len(hours)).T
        scale = tuple((float(middle), float(spread)) for middle, spread in state["scale"])
        return cls(holidays, names, hours, values, scale)


def known_in(regressors: pd.DataFrame | None, history: pd.Series[Any]) -> pd.DataFrame | None:
    """The columns with a value between the first and the last stamp of a history; None where there is no such column.

    For parts of a history, and for slices, that may be shorter than what was checked as a whole.
    """
    index: Any = history.index
    hourly: Any = None if regressors is None else regressors.index
    if regressors is None or not len(index) or (hourly.tz is None) != (getattr(index, "tz", None) is None):
        return regressors  # the fit says what is wrong
    inside = (hourly >= index.min().floor("h")) & (hourly <= index.max())
    known = regressors.loc[inside].notna().any()
    return regressors.loc[:, known.to_numpy()] if known.any() else None


def _checked(regressors: pd.DataFrame, known: pd.Series[float]) -> tuple[NDArray[np.int64], Floats]:
    """Starts of hours and values by hour, rising."""
    import pandas as pd

    if not isinstance(regressors, pd.DataFrame) or not isinstance(regressors.index, pd.DatetimeIndex):
        raise HistoryError("regressors are no pandas DataFrame of numbers on a DatetimeIndex; give one row an hour")
    if not len(regressors.columns):
        raise HistoryError("regressors have no column; give one for each, or None for no regressors")
    if (regressors.index.tz is None) != (stamps(known).tz is None):
        raise HistoryError(
            f"regressors have time zone {regressors.index.tz}, the history has {stamps(known).tz}; "
            "use the same for both"
        )
    try:
        numbers = regressors.astype(float)
    except (TypeError, ValueError) as error:
        raise HistoryError(f"regressors hold values that are no numbers ({error})") from None
    twice = numbers.columns[numbers.columns.astype(str).duplicated()]
    if len(twice):
        raise HistoryError(f"regressor {str(twice[0])!r} is given twice; name each column once")
    numbers = numbers[numbers.index.notna() & ~numbers.index.duplicated(keep="last")].sort_index()
    phase = int(epoch(stamps(known)[:1])[0]) % _HOUR  # hours begin where those of the history do
    start = (epoch(numbers.index) - phase) // _HOUR * _HOUR + phase  # type: ignore[arg-type]
    numbers = numbers.where(np.isfinite(numbers)).groupby(start).mean()
    return np.asarray(numbers.index, dtype=np.int64), numbers.to_numpy(dtype=np.float64)


def _check_seen(regressors: pd.DataFrame, at: NDArray[np.int64], values: Floats, index: pd.DatetimeIndex) -> None:
    """Nothing can be learned from a regressor that is unknown throughout the history."""
    inside = (at >= epoch(index)[0]) & (at <= epoch(index)[-1])
    for name, column in zip(regressors.columns, values.T, strict=True):
        if not np.isfinite(column[inside]).any():
            raise HistoryError(f"regressor {name!r} has no value in the hours of the history; give past values too")


def _local(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    """Seconds on the local clock."""
    return epoch(index if index.tz is None else index.tz_localize(None))
