"""From counts of the hours that have tickets to a series that tells idle hours from outages."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OUTAGE_HOURS", "fill_hours"]

OUTAGE_HOURS: Final = 24
"""Silent hours in a row that are an outage where nothing else tells."""


def fill_hours(
    counts: Mapping[int, int],
    busy: Set[int],
    watched: Set[int],
    since: int | None = None,
    until: int | None = None,
) -> pd.Series[float]:
    """One value for every hour, hours being whole hours since 1970.

    Args:
        counts: tickets of the slice, by hour; hours without any may be absent.
        busy: hours in which any ticket of any slice was logged: the system was up.
        watched: hours with telemetry or queue snapshots: the system was up, and somebody was looking.
        since, until: first hour wanted, and the first no longer wanted.

    An hour is 0 when it is busy or watched. A silent hour between the first and the last watched one is NaN, since
    somebody would have seen life; outside of that it belongs to a run of silent hours that is idle (0) when shorter
    than `OUTAGE_HOURS`, else an outage (NaN).
    """
    import numpy as np
    import pandas as pd

    if not counts:
        return pd.Series(np.zeros(0), index=pd.DatetimeIndex([], tz="UTC"), name="volume")
    first, last = min(counts), max(*busy, *watched, max(counts))
    values = np.zeros(last - first + 1)
    alive = np.zeros(last - first + 1, dtype=bool)
    for hour in (*busy, *watched, *counts):
        if hour >= first:
            alive[hour - first] = True
    for hour, count in counts.items():
        values[hour - first] = count
    start, end = (min(watched), max(watched)) if watched else (0, 0)
    run_start: int | None = None
    for at in range(len(alive) + 1):
        silent = at < len(alive) and not alive[at]
        if silent and run_start is None:
            run_start = at
        elif not silent and run_start is not None:
            hours = np.arange(run_start, at) + first
            outage = np.full(at - run_start, at - run_start >= OUTAGE_HOURS)
            if watched:
                outage |= (hours > start) & (hours < end)
            values[run_start:at][outage] = np.nan
            run_start = None
    low = first if since is None else max(first, since)
    high = last + 1 if until is None else min(last + 1, until)
    values = values[low - first : max(low, high) - first]
    index = pd.to_datetime((np.arange(len(values)) + low) * 3600, unit="s", utc=True)
    return pd.Series(values, index=pd.DatetimeIndex(index, freq="h") if len(values) else index, name="volume")
