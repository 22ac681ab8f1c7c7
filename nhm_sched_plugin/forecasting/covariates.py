"""What is known about hours besides their counts, past and to come: public holidays and external regressors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
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

__all__ = ["MAX_AHEAD", "Covariates"]

MAX_AHEAD: Final = 504
"""Hours that a timeline goes on after its last known one."""
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
        middle, spread = np.nanmean(past, axis=0), np.nanstd(past, axis=0)
        scaled = (values - middle) / np.where(spread > 0, spread, 1.0)
        return cls(holidays, tuple(map(str, regressors.columns)), at, np.nan_to_num(scaled))

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
        if self.hours is not None and self.values is not None:
            wanted = np.concatenate([epoch(index), epoch(ahead)])
            place = np.minimum(np.searchsorted(self.hours, wanted), len(self.hours) - 1)
            found = self.hours[place] == wanted
            extra[found] = self.values[place[found]]
        return Timeline(np.asarray(known, dtype=np.float64), local, holiday, extra)

    def to_state(self, since: int) -> dict[str, Any]:
        """As JSON values; regressors only from `since` (Unix seconds) on."""
        state: dict[str, Any] = {"holidays": {str(day): name for day, name in sorted(self.holidays.items())}}
        if self.hours is not None and self.values is not None:
            kept = self.hours >= since
            state |= {
                "names": list(self.names),
                "hours": self.hours[kept].tolist(),
                "values": [pack(row) for row in self.values[kept]],
            }
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        holidays = {int(day): str(name) for day, name in state["holidays"].items()}
        if "names" not in state:
            return cls(holidays)
        values = np.array(state["values"], dtype=np.float64).reshape(-1, len(state["names"]))
        return cls(holidays, tuple(state["names"]), np.array(state["hours"], dtype=np.int64), values)


def _checked(regressors: pd.DataFrame, known: pd.Series[float]) -> tuple[NDArray[np.int64], Floats]:
    """Starts of hours and values by hour, rising."""
    import pandas as pd

    if not isinstance(regressors, pd.DataFrame) or not isinstance(regressors.index, pd.DatetimeIndex):
        raise HistoryError("regressors are no pandas DataFrame of numbers on a DatetimeIndex; give one row an hour")
    if (regressors.index.tz is None) != (stamps(known).tz is None):
        raise HistoryError(
            f"regressors have time zone {regressors.index.tz}, the history has {stamps(known).tz}; "
            "use the same for both"
        )
    try:
        numbers = regressors.astype(float)
    except (TypeError, ValueError) as error:
        raise HistoryError(f"regressors hold values that are no numbers ({error})") from None
    numbers = numbers[~numbers.index.duplicated(keep="last")].sort_index()
    numbers = numbers.where(np.isfinite(numbers)).groupby(epoch(numbers.index) // 3600 * 3600).mean()  # type: ignore[arg-type]
    at = np.asarray(numbers.index, dtype=np.int64)
    inside = (at >= epoch(stamps(known))[0]) & (at <= epoch(stamps(known))[-1])
    for name in numbers.columns:
        if not np.isfinite(numbers[name].to_numpy()[inside]).any():
            raise HistoryError(f"regressor {name!r} has no value in the hours of the history; give past values too")
    return at, numbers.to_numpy(dtype=np.float64)


def _local(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    """Seconds on the local clock."""
    return epoch(index if index.tz is None else index.tz_localize(None))
