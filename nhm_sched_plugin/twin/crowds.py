"""The crowds ahead on a trace: what `policy.crowds` says in each of its slots, having seen those before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from nhm_sched_plugin.policy.crowds import SLOT_S, Crowds
from nhm_sched_plugin.twin.traces import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CrowdsAhead"]


class CrowdsAhead:
    """Of every slot of a trace. Nothing that comes later than a slot has a part in its number."""

    def __init__(self, trace: Trace, startup_s: float, known: Iterable[tuple[int, float]] = ()) -> None:
        """`known` are the crowds before the trace, see `Crowds.seen`."""
        crowds = Crowds(startup_s, known)
        self._first = int(trace.start // SLOT_S)
        count = int(trace.end // SLOT_S) - self._first + 1
        slots = (np.asarray(trace.arrivals) // SLOT_S).astype(np.int64) - self._first
        tickets = np.bincount(np.clip(slots, 0, count - 1), minlength=count).tolist()
        self._found = np.empty(count)
        for at, came in enumerate(tickets):
            slot = self._first + at
            self._found[at] = crowds.ahead(slot * SLOT_S)
            if slot * SLOT_S >= trace.start and (slot + 1) * SLOT_S <= trace.end:  # all of it was seen
                crowds.close(slot, came)
        self.seen = crowds.seen
        """The crowds of the last days."""

    def at(self, now: float) -> float:
        """Tickets in five minutes beyond the usual ones, see `Crowds.ahead`."""
        return self._found.item(min(max(int(now // SLOT_S) - self._first, 0), len(self._found) - 1))

    def between(self, start: float, end: float) -> NDArray[np.float64]:
        """Of every slot from that of `start` to that of `end`."""
        return self._found[int(start // SLOT_S) - self._first : int(end // SLOT_S) - self._first + 1]
