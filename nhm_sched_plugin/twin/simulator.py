"""A discrete-event simulation of tickets against a pool of workers.

Tickets wait in one queue, first come first served; a worker takes one at a time. A worker ordered now takes tickets
after `startup_s`. Removing workers cancels the latest orders first, then takes idle workers, then lets busy ones finish
their ticket (the next to finish leave). A worker costs from its order until it is gone. The SLA is met when a ticket
starts within `sla_wait_s` of its arrival.

Time is Unix seconds throughout. With exponential arrivals and service times and a fixed pool this is M/M/c; the tests
compare it with Erlang's formula.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import SchedulingState

__all__ = ["ARRIVED", "STARTING", "Controller", "Hour", "Pool", "Run", "simulate"]

_INF: Final = math.inf
_HOUR: Final = 3600.0
STARTING: Final = "starting_workers"
"""The state's feature with the number of workers ordered and not yet ready."""
ARRIVED: Final = {"arrivals_60s": 60.0, "arrivals_300s": 300.0, "arrivals_900s": 900.0}
"""The state's features with the number of tickets that arrived in the last so many seconds."""
_MEMORY: Final = 200
"""Finished tickets that the running mean of the service time looks back on, roughly."""


class Controller(Protocol):
    """Decides on the number of workers. `watches_tickets` False: `on_arrival` and `on_finished` are never called."""

    name: str
    watches_tickets: bool

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None:
        """Ticket `index` of the trace has just joined the queue (or started, when a worker was free)."""

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        """The number of workers to have, ordered ones included; None: leave it."""

    def on_finished(self, index: int, wait_s: float, now: float) -> None:
        """Ticket `index` ended; it had waited `wait_s`."""


class Hour(NamedTuple):
    """One hour of a run, for plots."""

    start: float
    arrivals: int
    workers: float
    """Mean number of workers paid for."""
    queue: float
    """Mean number of tickets waiting at control ticks."""


class Run(NamedTuple):
    """What happened."""

    waits: list[float]
    """Seconds each ticket waited, in order of arrival; those that never started waited until the end."""
    met: int
    """Tickets that started in time."""
    missed: int
    """Tickets that started late, or were late and still waiting at the end."""
    finished: int
    worker_seconds: float
    changes: int
    """Control ticks at which the number of workers ordered changed."""
    hours: list[Hour]
    ticks: int


class Pool:
    """The state of queue and pool. `simulate` drives it; controllers read `state()`."""

    def __init__(
        self,
        trace: Trace,
        *,
        workers: int,
        startup_s: float,
        sla_wait_s: float,
        sla_window_s: float = 600.0,
        service_s: float | None = None,
    ) -> None:
        self.trace = trace
        self.startup_s, self.sla_wait_s, self.window_s = startup_s, sla_wait_s, sla_window_s
        self.now = trace.start
        self.queue: deque[int] = deque()
        self.running: list[tuple[float, int]] = []
        self.idle, self.draining = workers, 0
        self.booting: deque[tuple[float, int]] = deque()
        self.service_s = service_s
        self.waits = [-1.0] * len(trace)
        self.met = self.started = self.finished = 0
        self.paid_since, self.worker_seconds = trace.start, 0.0
        self._recent: deque[tuple[float, bool]] = deque()
        self._recent_met = 0

    @property
    def active(self) -> int:
        """Workers that may take tickets: idle or busy, without those on their way in or out."""
        return self.idle + len(self.running) - self.draining

    @property
    def ordered(self) -> int:
        """Active workers and those that start up."""
        return self.active + sum([count for _, count in self.booting])

    def state(self) -> SchedulingState:
        """What a scheduler can measure now; never anything about the future."""
        active = self.active
        met, started, overdue = self._window()
        seen = started + overdue
        busy = len(self.running) - self.draining
        return SchedulingState(
            queue_depth=float(len(self.queue)),
            active_workers=float(active),
            avg_task_duration_ms=None if self.service_s is None else self.service_s * 1000.0,
            sla_compliance_rate=met / seen if seen else None,
            resource_cpu_avg=busy / active if active else None,
            features={STARTING: float(self.ordered - active), **self._arrived()},
        )

    def _arrived(self) -> dict[str, float]:
        """Tickets that arrived in (now - seconds, now]."""
        arrivals, coming = self.trace.arrivals, self.started + len(self.queue)
        return {
            name: float(coming - bisect_right(arrivals, self.now - seconds, 0, coming))
            for name, seconds in ARRIVED.items()
        }

    def _window(self) -> tuple[int, int, int]:
        """Tickets of the last `window_s`: started in time, started at all, still waiting and already too late."""
        recent, oldest = self._recent, self.now - self.window_s
        while recent and recent[0][0] < oldest:
            self._recent_met -= recent.popleft()[1]
        return self._recent_met, len(recent), self.overdue()

    def overdue(self) -> int:
        """Tickets waiting that have missed their SLA already."""
        queue = self.queue
        if not queue:
            return 0
        # While tickets wait every new one waits too, so the queue is a run of consecutive indices.
        return bisect_left(self.trace.arrivals, self.now - self.sla_wait_s, queue[0], queue[-1] + 1) - queue[0]

    def pay(self) -> None:
        """Count the cost up to now; call before the number of workers changes."""
        workers = self.idle + len(self.running) + sum([count for _, count in self.booting])
        self.worker_seconds += workers * (self.now - self.paid_since)
        self.paid_since = self.now

    def start(self, index: int) -> None:
        """An idle (or just freed) worker takes the ticket."""
        now, trace = self.now, self.trace
        wait = now - trace.arrivals[index]
        self.waits[index] = wait
        in_time = wait <= self.sla_wait_s
        self.started += 1
        self.met += in_time
        self._recent_met += in_time
        self._recent.append((now, in_time))
        heapq.heappush(self.running, (now + trace.durations[index], index))

    def finish(self) -> int:
        """The ticket that ends now; its worker takes the next one, leaves (when draining) or is idle."""
        if self.draining:
            self.pay()
        index = heapq.heappop(self.running)[1]
        self.finished += 1
        duration = self.trace.durations[index]
        if self.service_s is None:
            self.service_s = duration
        else:
            self.service_s += (duration - self.service_s) / min(self.finished + 1, _MEMORY)
        if self.draining:
            self.draining -= 1
        elif self.queue:
            self.start(self.queue.popleft())
        else:
            self.idle += 1
        return index

    def boot(self) -> None:
        """Ordered workers are ready."""
        self.idle += self.booting.popleft()[1]
        self._fill()

    def _fill(self) -> None:
        while self.idle and self.queue:
            self.idle -= 1
            self.start(self.queue.popleft())

    def scale_to(self, target: int) -> bool:
        """Order or remove workers so that `target` are active or starting up. True when that changes anything."""
        difference = max(target, 0) - self.ordered
        if not difference:
            return False
        self.pay()
        if difference > 0:
            kept = min(difference, self.draining)  # workers on their way out stay, which is free
            self.draining -= kept
            if difference > kept:
                self.booting.append((self.now + self.startup_s, difference - kept))
            return True
        surplus = -difference
        while surplus and self.booting:
            ready, count = self.booting.pop()
            cancelled = min(surplus, count)
            surplus -= cancelled
            if count > cancelled:
                self.booting.append((ready, count - cancelled))
        removed = min(surplus, self.idle)
        self.idle -= removed
        self.draining += surplus - removed
        return True


def simulate(
    pool: Pool,
    controller: Controller,
    *,
    tick_s: float = 60.0,
    progress: Callable[[float], Any] | None = None,
) -> Run:
    """Run the pool's trace under a controller, asked every `tick_s` seconds. Deterministic.

    `progress` is called about a hundred times with the share done, in [0, 1].
    """
    trace = pool.trace
    arrivals, end, watched = trace.arrivals, trace.end, controller.watches_tickets
    running, booting, queue = pool.running, pool.booting, pool.queue
    coming, count = 0, len(trace)
    next_arrival = arrivals[0] if count else _INF
    next_tick, ticks, changes = trace.start, 0, 0
    hours = _Hours(pool)
    report_at = trace.start
    while True:
        next_control = booting[0][0] if booting and booting[0][0] < next_tick else next_tick
        if next_arrival < next_control and (not running or next_arrival < running[0][0]):
            if next_arrival >= end:
                break
            pool.now = next_arrival
            index, coming = coming, coming + 1
            if pool.idle:
                pool.idle -= 1
                pool.start(index)
            else:
                queue.append(index)
            if watched:
                controller.on_arrival(index, pool.state(), next_arrival)
            next_arrival = arrivals[coming] if coming < count else _INF
        elif running and running[0][0] <= next_control:
            pool.now = running[0][0]
            if pool.now >= end:
                break
            index = pool.finish()
            if watched:
                controller.on_finished(index, pool.waits[index], pool.now)
        elif next_control >= end:
            break
        elif next_control < next_tick:
            pool.now = next_control
            pool.boot()
        else:
            pool.now = next_tick
            while booting and booting[0][0] <= next_tick:
                pool.boot()
            hours.at_tick(coming)
            target = controller.on_tick(pool.state(), next_tick)
            if target is not None:
                changes += pool.scale_to(target)
            ticks += 1
            next_tick += tick_s
            if progress is not None and next_tick >= report_at:
                progress((pool.now - trace.start) / (end - trace.start))
                report_at += (end - trace.start) / 100
    pool.now = end
    pool.pay()
    for index in queue:
        pool.waits[index] = end - arrivals[index]
    hours.close(coming)
    if progress is not None:
        progress(1.0)
    missed = pool.started - pool.met + pool.overdue()
    return Run(pool.waits, pool.met, missed, pool.finished, pool.worker_seconds, changes, hours.done, ticks)


class _Hours:
    """Collects the time line."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.done: list[Hour] = []
        self._start, self._arrivals, self._cost = pool.trace.start, 0, 0.0
        self._queued, self._ticks = 0, 0

    def at_tick(self, arrivals: int) -> None:
        pool = self._pool
        if pool.now - self._start >= _HOUR:
            self.close(arrivals)
        self._queued += len(pool.queue)
        self._ticks += 1

    def close(self, arrivals: int) -> None:
        pool = self._pool
        pool.pay()
        length = pool.now - self._start
        if length > 0:
            workers = (pool.worker_seconds - self._cost) / length
            self.done.append(Hour(self._start, arrivals - self._arrivals, workers, self._queued / max(self._ticks, 1)))
        self._start, self._arrivals, self._cost = pool.now, arrivals, pool.worker_seconds
        self._queued = self._ticks = 0
