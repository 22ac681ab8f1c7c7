"""Crowds that come back: what came at this time of the day on the days before, far more than just before it.

A job that starts at nine, a shift that begins, a mail that goes out every morning: for a few minutes there are many
times the tickets of the hour, so neither the hourly forecast nor the last minutes tell of them, but the days before do.
Tickets are counted in slots of five minutes. A slot's crowd is what it has beyond the mean of the slots before it, as
many as a worker takes to start, and beyond what chance explains:

    crowd(v) = n_v - m - 6 sqrt(m + 1)      with m the mean of n over the ceil(start-up / 300 s) + 1 slots before v

and what is ahead at a moment in slot u is the mean of the two highest of the last seven days, each day's being its
highest crowd in the slots from u - 1 to u + ceil(start-up / 300 s) + 1: crowds are no more punctual than that. Two
days, since a crowd that came once is no habit, while the half of it costs little.

Plain arithmetic, a few numbers a day in memory; the host and the twin run this very class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

__all__ = ["AHEAD", "DAYS", "SLOT_S", "Crowds"]

AHEAD: Final = "crowd_ahead"
"""The state's feature that holds it: tickets in five minutes."""
SLOT_S: Final = 300.0
DAYS: Final = 7
"""Long enough for what comes once a week."""
_PER_DAY: Final = 288
_SURPRISE: Final = 6.0
"""Standard deviations of Poisson counts; tickets cluster, so a smaller excess happens all the time."""
_EARLY: Final = 1
_LATE: Final = 1
"""Slots."""


class Crowds:
    """The crowds of the last `DAYS` days. Not thread-safe."""

    def __init__(self, startup_s: float, known: Iterable[tuple[int, float]] = ()) -> None:
        """`known` are crowds of before, see `seen`."""
        self._lead = math.ceil(startup_s / SLOT_S)
        self._before: deque[float] = deque(maxlen=self._lead + 1)
        self._last: int | None = None
        self._crowds: dict[int, float] = {}
        self._now: int | None = None
        self._ahead = 0.0
        self.add(known)

    @property
    def seen(self) -> tuple[tuple[int, float], ...]:
        """(slot, tickets beyond the usual) of each crowd, oldest first; a slot is Unix time // `SLOT_S`."""
        return tuple(sorted(self._crowds.items()))

    def add(self, known: Iterable[tuple[int, float]]) -> None:
        """Crowds that were seen elsewhere; a slot that is known already stays as it is."""
        for slot, crowd in known:
            self._crowds.setdefault(slot, crowd)
        self._now = None

    def close(self, slot: int, tickets: float) -> None:
        """So many tickets came in the slot, the next one after the last or a later one. Between, nobody counted."""
        before, last = self._before, self._last
        if last is not None and slot != last + 1:
            before.clear()
        if before:
            usual = sum(before) / len(before)
            crowd = tickets - usual - _SURPRISE * math.sqrt(usual + 1.0)
            if crowd > 0.0:
                self._crowds[slot] = crowd
        if slot % _PER_DAY == 0:
            oldest = slot - DAYS * _PER_DAY - _LATE
            self._crowds = {at: crowd for at, crowd in self._crowds.items() if at >= oldest}
        before.append(tickets)
        self._last, self._now = slot, None

    def ahead(self, now: float) -> float:
        """Tickets in five minutes beyond the usual ones, by the time that a worker ordered `now` can start."""
        slot = int(now // SLOT_S)
        if slot != self._now:
            self._ahead, self._now = self._found(slot), slot
        return self._ahead

    def _found(self, slot: int) -> float:
        crowds = self._crowds
        if not crowds:
            return 0.0
        first = second = 0.0
        for day in range(1, DAYS + 1):
            there = slot - day * _PER_DAY
            most = max([crowds.get(at, 0.0) for at in range(there - _LATE, there + self._lead + _EARLY + 1)])
            if most > first:
                first, second = most, first
            elif most > second:
                second = most
        return (first + second) / 2
