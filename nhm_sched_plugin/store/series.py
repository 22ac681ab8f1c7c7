"""From counts of the hours that have tickets to a series that tells idle hours from outages.

Hours are whole hours since 1970. An hour shows life when any ticket was logged in it, or a row of telemetry or a queue
snapshot was taken; without tickets of a slice it is then an idle hour of that slice: 0. A silent hour shows no life:

* between the first and the last hour with telemetry or snapshots it is an outage (missing), as long as those can be
  believed there: nine in ten of the hours with tickets within half a week before and after have them as well.
  Telemetry that was off, or is taken once a day, would else turn every quiet night into an outage;
* elsewhere it belongs to a run of silent hours that is idle (0) when shorter than `OUTAGE_HOURS`, else an outage. A
  history from a file has no telemetry, and its nights are quiet far more often than its system was down: were they
  missing, every forecast would be too high.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["OUTAGE_HOURS", "Hours", "SystemHours"]

Hours = NDArray[np.int64]

OUTAGE_HOURS: Final = 24
"""Silent hours in a row that are an outage where nothing else tells."""
_HALF_WEEK: Final = 84
_BELIEVED: Final = 0.9


class SystemHours:
    """What the whole system did in every hour between its first and its last sign of life.

    Args:
        busy: hours in which any ticket of any slice was logged.
        watched: hours with telemetry or queue snapshots: somebody was looking.
    """

    def __init__(self, busy: Hours, watched: Hours) -> None:
        both = np.concatenate((busy, watched))
        self.first = int(both.min()) if len(both) else 0
        self.last = int(both.max()) if len(both) else -1
        span = self.last - self.first + 1
        was_busy, was_watched = np.zeros(span, dtype=bool), np.zeros(span, dtype=bool)
        was_busy[busy - self.first] = True
        was_watched[watched - self.first] = True
        silent = ~(was_busy | was_watched)
        self.outage = silent & (_long_runs(silent) | _believed(was_busy, was_watched))
        """Of each hour from `first` to `last`: whether nothing was alive."""

    def series(
        self, hours: Hours, counts: Hours, since: int | None = None, until: int | None = None
    ) -> pd.Series[float]:
        """A slice's tickets per hour: from its first ticket to the last sign of life, cut to [since, until).

        `hours` (not empty) are those with tickets of the slice, `counts` how many. 0 where idle, NaN in an outage.
        """
        start = int(hours.min())
        values = np.where(self.outage[start - self.first :], np.nan, 0.0)
        values[hours - start] = counts
        low = start if since is None else max(start, since)
        high = self.last + 1 if until is None else min(self.last + 1, until)
        values = values[low - start : max(low, high) - start]
        index = pd.to_datetime((np.arange(len(values)) + low) * 3600, unit="s", utc=True)
        return pd.Series(values, index=pd.DatetimeIndex(index, freq="h") if len(values) else index, name="volume")


def _long_runs(silent: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], silent, [False])).astype(np.int8)))
    result = np.zeros(len(silent), dtype=bool)
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        result[start:end] = end - start >= OUTAGE_HOURS
    return result


def _believed(busy: NDArray[np.bool_], watched: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Hours in which somebody would have seen life."""
    result = np.zeros(len(watched), dtype=bool)
    seen = np.flatnonzero(watched)
    if not len(seen):
        return result
    inside = slice(int(seen[0]), int(seen[-1]) + 1)
    busy, watched = busy[inside], watched[inside]
    size = len(busy)
    low, high = np.maximum(np.arange(size) - _HALF_WEEK, 0), np.minimum(np.arange(size) + _HALF_WEEK + 1, size)

    def around(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        total = np.concatenate(([0], np.cumsum(marked)))
        return np.asarray(total[high] - total[low], dtype=np.int64)

    result[inside] = around(busy & watched) >= _BELIEVED * around(busy)
    return result
