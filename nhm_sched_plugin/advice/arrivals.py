"""The live arrival counter: how many tickets came in the last hour."""

from __future__ import annotations

import threading

from nhm_sched_plugin.forks import renew_after_fork

__all__ = ["ArrivalCounter"]

_MINUTES = 60


class ArrivalCounter:
    """Tickets per minute over the last 60 minutes, on the host's clock. Thread-safe; a clock set back is tolerated."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)
        self._counts = [0] * _MINUTES
        self._total = 0
        self._minute: int | None = None

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def observe(self, now: float) -> None:
        """A ticket arrived at `now` (Unix seconds)."""
        with self._lock:
            self._move(now)
            self._counts[int(now // 60) % _MINUTES] += 1
            self._total += 1

    def last_hour(self, now: float) -> int:
        """Tickets that arrived in the 60 minutes up to now, the current one included."""
        with self._lock:
            self._move(now)
            return self._total

    def _move(self, now: float) -> None:
        minute = int(now // 60)
        if self._minute is None or minute < self._minute - _MINUTES:  # the first one, or the clock went far back
            self._counts, self._total = [0] * _MINUTES, 0
        elif minute > self._minute:
            for passed in range(self._minute + 1, min(minute, self._minute + _MINUTES) + 1):
                self._total -= self._counts[passed % _MINUTES]
                self._counts[passed % _MINUTES] = 0
        else:
            return
        self._minute = minute
