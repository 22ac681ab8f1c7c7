"""The live arrival counter: how many tickets came in the last seconds, minutes and hour, and in each hour before it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from nhm_sched_plugin.forecasting.live import MAX_TASK_TYPES, Counted
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.policy.crowds import AHEAD, SLOT_S, Crowds
from nhm_sched_plugin.policy.demand import ARRIVED, WINDOWS_S

__all__ = ["KEPT_HOURS", "ArrivalCounter"]

KEPT_HOURS: Final = 72
"""Completed hours in memory."""

_BIN_S = 5.0
"""Resolution of the windows."""
_BINS_A_MINUTE = int(60 / _BIN_S)
_BINS_A_SLOT = int(SLOT_S / _BIN_S)
_BINS = int(WINDOWS_S[-1] / _BIN_S) + 1
_MINUTES = 60
_HOUR = 3600.0
_BACK_MINUTES = 2
"""A clock set back by more makes the hour's count unusable."""
_BLIND_MINUTES = 120
"""Without a ticket or a look at the counter for longer, the process did not run: nobody knows what came."""
_BLIND_SLOTS = int(_BLIND_MINUTES * 60 / SLOT_S)


class ArrivalCounter:
    """Tickets per minute over the last 60 minutes and per hour over the last days, on the host's clock.

    Thread-safe, and of bounded size. Hours are those of the clock. A forked child counts its own tickets from then on.
    """

    def __init__(self, startup_s: float = 0.0) -> None:
        """`startup_s` of a worker: how far ahead a crowd matters."""
        self._startup_s = startup_s
        self._counts = [0] * _MINUTES
        self._total = 0
        self._minute: int | None = None
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child sees its own part of the tickets: the hours of its parent say nothing of it."""
        self._lock = threading.Lock()
        self._so_far = 0.0
        self._bin: int | None = None
        self._crowds = Crowds(self._startup_s)
        self._ahead = 0.0
        self._slot: int | None = None
        self._in_slot: int | None = None
        self._before = [0.0] * _BINS
        self._marks: list[tuple[str, float]] = []
        self._hours: deque[Counted] = deque(maxlen=KEPT_HOURS)
        self._hour: int | None = None
        self._whole = False
        self._in_hour = 0
        self._by_type: dict[str, int] = {}
        self._last: float | None = None

    def remember(self, crowds: Iterable[tuple[int, float]]) -> None:
        """Crowds of the days before this process ran, see `Crowds.seen`."""
        with self._lock:
            self._crowds.add(crowds)
            if self._bin is not None:
                self._ahead = self._crowds.ahead(self._bin * _BIN_S)

    def observe(self, now: float, task_type: str | None = None) -> None:
        """A ticket arrived at `now` (Unix seconds)."""
        to = int(now // _BIN_S)
        minute = to // _BINS_A_MINUTE
        with self._lock:
            if minute != self._minute or self._hour is None:
                self._move(minute)
            if to != self._bin:
                self._turn(to // _BINS_A_SLOT)
                self._advance(to)
            if self._in_slot is not None:
                self._in_slot += 1
            self._so_far += 1
            self._counts[minute % _MINUTES] += 1
            self._total += 1
            self._in_hour += 1
            self._last = now
            if task_type is not None:
                counts = self._by_type
                if task_type in counts or len(counts) < MAX_TASK_TYPES:
                    counts[task_type] = counts.get(task_type, 0) + 1

    def lately(self, now: float) -> dict[str, float] | None:
        """Tickets of the last seconds and minutes by the features' names (`ARRIVED`), and the crowd ahead (`AHEAD`).

        None before the first ticket.

        Counted in bins of five seconds: a window is at most that much longer than its name says.
        """
        with self._lock:
            to = int(now // _BIN_S)
            if to != self._bin:
                self._turn(to // _BINS_A_SLOT)
                if self._bin is None:
                    return None
                self._advance(to)
            so_far = self._so_far
            lately = {name: so_far - before for name, before in self._marks}
            lately[AHEAD] = self._ahead
            return lately

    def _turn(self, slot: int) -> None:
        """Closes the slots before this one. One that was not seen from its beginning counts for nothing."""
        last = self._slot
        if slot == last:
            return
        self._slot = slot
        if last is None or slot < last or slot - last > _BLIND_SLOTS:
            self._in_slot = None
            return
        if self._in_slot is not None:
            self._crowds.close(last, self._in_slot)
        for idle in range(last + 1, slot):
            self._crowds.close(idle, 0)
        self._in_slot = 0

    def _advance(self, to: int) -> None:
        """Opens the bins up to this one; each remembers how many tickets came before it."""
        newest = self._bin
        if newest is None or to < newest - _BINS:  # the first ticket, or the clock went far back
            self._so_far, self._before, newest = 0.0, [0.0] * _BINS, to
        elif to > newest:
            for opened in range(max(newest + 1, to - _BINS + 1), to + 1):
                self._before[opened % _BINS] = self._so_far
            newest = to
        else:
            return  # the clock went back a little
        self._bin = newest
        self._marks = [(name, self._before[(newest - bins) % _BINS]) for name, bins in _LATELY]
        self._ahead = self._crowds.ahead(newest * _BIN_S)

    def last_hour(self, now: float) -> int:
        """Tickets that arrived in the 60 minutes up to now, the current one included."""
        with self._lock:
            self._move(int(now // 60))
            return self._total

    def hours(self, now: float) -> tuple[list[Counted], Counted | None, float]:
        """The completed hours, oldest first, the running one, and for how many hours no ticket has come.

        Of the running one `total` is what came so far; it is None when the counter began within the hour.
        """
        with self._lock:
            self._move(int(now // 60))
            if self._hour is None:
                return [], None, 0.0
            running = Counted(
                self._hour * _HOUR, self._in_hour if self._whole else None, dict(self._by_type) if self._whole else {}
            )
            silent = 0.0 if self._last is None else max(now - self._last, 0.0) / _HOUR
            return list(self._hours), running, silent

    def _move(self, minute: int) -> None:
        before = self._minute
        if before is None or minute < before - _MINUTES:  # the first one, or the clock went far back
            self._counts, self._total = [0] * _MINUTES, 0
            self._begin(minute)
        elif minute > before:
            for passed in range(before + 1, min(minute, before + _MINUTES) + 1):
                self._total -= self._counts[passed % _MINUTES]
                self._counts[passed % _MINUTES] = 0
            if self._hour is None:  # forked
                self._begin(minute)
            elif minute // _MINUTES > self._hour:
                self._end_hours(minute // _MINUTES, blind=minute - before > _BLIND_MINUTES)
        else:
            if self._hour is None:
                self._begin(before)
            elif minute < before - _BACK_MINUTES:
                self._whole = False  # some minutes count twice
            return
        self._minute = minute

    def _begin(self, minute: int) -> None:
        """Count from here on; what is known of later hours on another clock is void."""
        self._hours.clear()
        self._hour, self._whole = minute // _MINUTES, minute % _MINUTES == 0
        self._in_hour, self._by_type, self._last = 0, {}, None

    def _end_hours(self, hour: int, *, blind: bool) -> None:
        """Close the running hour and the ones without a ticket after it."""
        assert self._hour is not None  # noqa: S101 - the caller has seen to it
        whole = self._whole and not blind
        self._hours.append(Counted(self._hour * _HOUR, self._in_hour if whole else None, self._by_type))
        for idle in range(max(self._hour + 1, hour - KEPT_HOURS), hour):
            self._hours.append(Counted(idle * _HOUR, None if blind else 0, {}))
        self._hour, self._whole, self._in_hour, self._by_type = hour, not blind, 0, {}


_LATELY = [(name, int(window / _BIN_S)) for name, window in ARRIVED.items()]
