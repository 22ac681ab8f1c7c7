"""A circuit breaker for one address: while the agent there does not answer, nobody waits for it.

    closed ──several failures in a row, or one that held a decision up──► open ──its pause is over──► one probe
      ▲                                                                     ▲                            │
      └──────────────────────── the probe succeeds ─────────────────────────┼────────────────────────────┘
                                                                            └── it fails: a longer pause

A new breaker is open with its pause over: the first call is a probe, so that no decision ever waits for an address that
has not answered yet. The pause grows to at most half a second, so an agent that comes back is found within one.

Why not a library: pybreaker holds its lock while the call runs, so that threads wait for each other and a hanging call
holds up the question whether to call; circuitbreaker takes no lock at all; purgatory and the asyncio ones lock nothing
between threads and let everybody through when half open. None has a pause that grows or is drawn at random.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final, Literal

from nhm_sched_plugin.forks import renew_after_fork

__all__ = ["Breaker", "Permit", "State"]

FAILURES: Final = 3
"""In a row, until a closed breaker opens."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 0.5
PROBE_LEASE_S: Final = 90.0
"""A probe that nobody has reported on by then does not count any more; no call takes as long."""

State = Literal["closed", "open", "half_open"]
Permit = Literal["call", "probe"]


class Breaker:
    """Thread-safe; no lock is held while a call runs.

    Whoever gets a permit reports how the call went: `succeeded`, `failed` or, when it tells nothing about the agent
    (cancelled, say), `undecided`.

    Args:
        clock: monotonic seconds.
        draw: a number in [0, 1), for the jitter.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random) -> None:
        self._clock, self._draw = clock, draw
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has not spoken to the agent yet."""
        self._lock = threading.Lock()
        self._failures = 0
        self._pause_s = 0.0
        self._open_until: float | None = self._clock()
        self._probe_ends: float | None = None

    @property
    def closed(self) -> bool:
        """Whether calls may go at any time: all that a decision asks. Costs nothing."""
        return self._open_until is None

    @property
    def tried(self) -> bool:
        """Whether the address has failed since it last answered."""
        return self._pause_s > 0

    @property
    def state(self) -> State:
        with self._lock:
            if self._open_until is None:
                return "closed"
            return "open" if self._probing() or self._clock() < self._open_until else "half_open"

    def wait_s(self) -> float:
        """Seconds until a call may go: 0 for now."""
        with self._lock:
            if self._open_until is None:
                return 0.0
            if self._probe_ends is not None and self._probing():
                return FIRST_PAUSE_S
            return max(self._open_until - self._clock(), 0.0)

    def permit(self) -> Permit | None:
        """Leave to make one call, or None. When open, the first to ask after the pause makes the probe."""
        if self._open_until is None:
            return "call"
        with self._lock:
            if self._open_until is None:
                return "call"
            now = self._clock()
            if now < self._open_until or self._probing():
                return None
            self._probe_ends = now + PROBE_LEASE_S
            return "probe"

    def succeeded(self) -> None:
        """The agent answered: close."""
        if self._open_until is None and not self._failures:
            return
        with self._lock:
            self._failures, self._pause_s = 0, 0.0
            self._open_until = self._probe_ends = None

    def failed(self, permit: Permit, *, at_once: bool = False) -> None:
        """No answer, or a useless one. `at_once`: open on this one alone."""
        with self._lock:
            if permit == "probe":
                self._probe_ends = None
            if self._open_until is None:
                self._failures += 1
                if not at_once and self._failures < FAILURES:
                    return
            elif permit != "probe":
                return  # sent before it opened: known already
            self._failures = 0
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) or FIRST_PAUSE_S
            # Jitter, so that many hosts do not come back to the agent in step.
            self._open_until = self._clock() + self._pause_s * (0.5 + 0.5 * self._draw())

    def undecided(self, permit: Permit) -> None:
        """The call ended without telling anything: somebody else may probe."""
        if permit == "probe":
            with self._lock:
                self._probe_ends = None

    def _probing(self) -> bool:
        return self._probe_ends is not None and self._clock() < self._probe_ends
