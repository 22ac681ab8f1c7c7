"""A discrete-event simulation of tickets against a pool of workers.

Tickets wait in one queue, first come first served; a worker takes one at a time. A worker ordered now takes tickets
after `startup_s`. Removing workers cancels the latest orders first, then takes idle workers, then lets busy ones finish
their ticket (the next to finish leave). A worker costs from its order until it is gone. The SLA is met when a ticket
starts within `sla_wait_s` of its arrival.

On demand (see `Pool`): classes of tickets with priorities and SLAs of their own, a limit of tickets in the system,
failing workers, start-up times that vary. The events themselves run compiled, in `engine.py`.

Time is Unix seconds throughout. With exponential arrivals and service times and a fixed pool this is M/M/c; the tests
compare it with Erlang's formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.twin import engine, layout
from nhm_sched_plugin.twin.classes import TicketClass, classified
from nhm_sched_plugin.twin.runs import Hour, Run, run_of
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import SchedulingState

if TYPE_CHECKING:
    from nhm_sched_plugin.twin.layout import Floats, Sim

__all__ = ["STARTING", "Controller", "Hour", "Order", "Pool", "Run", "TicketClass", "simulate"]

_HOUR: Final = 3600.0
STARTING: Final = "starting_workers"
"""The state's feature with the number of workers ordered and not yet ready."""
_FEATURES: Final = (STARTING, *ARRIVED)  # as they stand in `Sim.seen`


class Order(NamedTuple):
    """What a controller asks for at a tick; None: leave it."""

    workers: int | None = None
    """The number of workers to have, ordered ones included."""
    weights: Mapping[str, Any] | None = None
    """New priority weights, see `Pool.set_weights`."""


class Controller(Protocol):
    """Decides on the number of workers. `watches_tickets` False: `on_arrival` and `on_finished` are never called."""

    name: str
    watches_tickets: bool

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None:
        """Ticket `index` of the trace has just joined the queue (or started, when a worker was free)."""

    def on_tick(self, state: SchedulingState, now: float) -> int | Order | None:
        """The number of workers to have, ordered ones included, or an `Order`; None: leave it."""

    def on_finished(self, index: int, wait_s: float, now: float) -> None:
        """Ticket `index` ended; it had waited `wait_s`."""


class Pool:
    """The state of queue and pool. `simulate` drives it; controllers read `state()`.

    `sim` is the simulation itself, for compiled loops (see `engine.py`).
    """

    def __init__(
        self,
        trace: Trace,
        *,
        workers: int,
        startup_s: float,
        sla_wait_s: float,
        sla_window_s: float = 600.0,
        service_s: float | None = None,
        classes: Sequence[TicketClass] = (),
        capacity: int | None = None,
        mtbf_s: float = math.inf,
        startup_cv: float = 0.0,
        price_per_hour: float = 0.0,
        seed: int = 0,
    ) -> None:
        """`workers` are ready from the start; `service_s` is what is known of the mean service time before.

        `classes`: priorities, and SLAs that differ from `sla_wait_s` (`TicketClass`); each ticket belongs to the first
        that it fits. A free worker takes the ticket with the highest weight x time waited, so that none starves
        (accumulating priority: Kleinrock 1964; Stanford, Taylor and Ziedins 2014).
        `capacity`: tickets that arrive while so many wait or run are turned away (M/M/c/K).
        `mtbf_s`: mean time between failures of a worker, exponential. The ticket goes back to the head of its class and
        starts anew; its wait and its SLA are those of the first start. The worker is gone, and paid for until then.
        `startup_cv`: coefficient of variation of the start-up time, lognormal with mean `startup_s`.
        `price_per_hour` of a worker. `seed` of failures and start-up times: the same seed gives the same run.

        Raises `ValueError` for a value out of range and for tickets that fit no class.
        """
        _check(
            workers=(workers, 0),
            startup_s=(startup_s, 0),
            sla_wait_s=(sla_wait_s, 0),
            sla_window_s=(sla_window_s, 0),
            startup_cv=(startup_cv, 0),
            price_per_hour=(price_per_hour, 0),
            capacity=(layout.UNLIMITED if capacity is None else capacity, 1),
        )
        if not mtbf_s > 0:
            raise ValueError(f"mtbf_s is {mtbf_s}; a mean time between failures must be above 0 s")
        self.trace = trace
        self.startup_s, self.sla_wait_s, self.window_s = startup_s, sla_wait_s, sla_window_s
        self.price_per_hour = price_per_hour
        self.classes = tuple(classes) or (TicketClass("all"),)
        self.sim: Sim = layout.new_sim(
            trace.arrivals,
            trace.durations,
            start=trace.start,
            end=trace.end,
            workers=workers,
            startup_s=startup_s,
            classes=classified(trace, self.classes),
            sla_wait_s=[sla_wait_s if kind.sla_wait_s is None else kind.sla_wait_s for kind in self.classes],
            weights=[kind.weight for kind in self.classes],
            window_s=sla_window_s,
            service_s=math.nan if service_s is None else service_s,
            startup_cv=startup_cv,
            failure_rate=1.0 / mtbf_s,
            limit=layout.UNLIMITED if capacity is None else capacity,
            seed=seed,
        )

    @property
    def now(self) -> float:
        return self.sim.t.item(layout.NOW)

    @property
    def idle(self) -> int:
        return self.sim.n.item(layout.IDLE)

    @property
    def busy(self) -> int:
        """Workers with a ticket, also those that leave when it ends."""
        return self.sim.n.item(layout.BUSY)

    @property
    def draining(self) -> int:
        """Busy workers that leave: the next so many to finish."""
        return self.sim.n.item(layout.DRAINING)

    @property
    def starting(self) -> int:
        """Workers ordered and not yet ready."""
        return self.sim.n.item(layout.STARTING)

    @property
    def active(self) -> int:
        """Workers that may take tickets: idle or busy, without those on their way in or out."""
        return self.idle + self.busy - self.draining

    @property
    def ordered(self) -> int:
        """Active workers and those that start up."""
        return self.active + self.starting

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return self.sim.n.item(layout.WAITING)

    @property
    def queue(self) -> list[int]:
        """The tickets that wait, class by class, in the order in which they will start."""
        found = []
        for ticket in self.sim.first.tolist():
            while ticket >= 0:
                found.append(ticket)
                ticket = self.sim.following.item(ticket)
        return found

    @property
    def running(self) -> list[int]:
        """The tickets that run, in no order."""
        return list(self.sim.holders[: self.busy].tolist())

    @property
    def started(self) -> int:
        """Tickets that have started, each counted once."""
        return self._total(layout.STARTED)

    @property
    def met(self) -> int:
        """Tickets that started in time."""
        return self._total(layout.MET)

    @property
    def missed(self) -> int:
        """Tickets that started late, or wait and are late already."""
        return self.started - self.met + self.overdue()

    @property
    def finished(self) -> int:
        return self.sim.n.item(layout.FINISHED)

    @property
    def turned_away(self) -> int:
        """Tickets that found the system full."""
        return self._total(layout.TURNED_AWAY)

    @property
    def failures(self) -> int:
        """Workers that failed."""
        return self.sim.n.item(layout.FAILURES)

    @property
    def service_s(self) -> float | None:
        """Running mean of the service times; None: nothing has finished yet."""
        return _known(self.sim.t.item(layout.SERVICE_S))

    @property
    def worker_seconds(self) -> float:
        """Paid for so far."""
        return self.sim.t.item(layout.WORKER_S)

    @property
    def cost(self) -> float:
        """Of the workers so far, at `price_per_hour`."""
        return self.price_per_hour * self.worker_seconds / _HOUR

    @property
    def waits(self) -> Floats:
        """Seconds each ticket waited for its first start; those that wait, until now; NaN: to come, or turned away."""
        waits = self.sim.started - self.sim.arrivals
        come = waits[: self.sim.n.item(layout.COMING)]
        never_started = np.isnan(come)
        come[never_started] = self.now - self.sim.arrivals[: len(come)][never_started]
        waits[np.isinf(waits)] = np.nan
        return waits

    def _total(self, column: int) -> int:
        return int(self.sim.tally[:, column].sum())

    def state(self) -> SchedulingState:
        """What a scheduler can measure now; never anything about the future."""
        engine.observe(self.sim)
        queue, active, service_s, compliance, utilisation, *features = self.sim.seen.tolist()
        return SchedulingState(
            queue_depth=queue,
            active_workers=active,
            avg_task_duration_ms=None if service_s != service_s else service_s * 1000.0,
            sla_compliance_rate=_known(compliance),
            resource_cpu_avg=_known(utilisation),
            features=dict(zip(_FEATURES, features, strict=True)),
        )

    def overdue(self) -> int:
        """Tickets waiting that have missed their SLA already."""
        engine.observe(self.sim)
        return self._total(layout.LATE)

    def advance(self, until: float, watch: bool = False) -> int:
        """Runs to that moment, at most to the trace's end: `engine.REACHED`. With `watch` it stops after each `ticket`
        that joined (`engine.ARRIVAL`) or ended (`engine.FINISH`)."""
        return engine.advance(self.sim, until, watch)

    @property
    def ticket(self) -> int:
        """The ticket that `advance` stopped for."""
        return self.sim.n.item(layout.TICKET)

    def scale_to(self, target: int) -> bool:
        """Order or remove workers so that `target` are active or starting up. True when that changes anything."""
        ordered = self.ordered
        if target == ordered:  # the usual answer, without a call into compiled code
            return False
        self.sim = layout.with_room(self.sim, target - ordered)
        return engine.scale_to(self.sim, target)

    def set_weights(self, weights: Mapping[str, Any]) -> bool:
        """New priority weights by class or risk band; other names are ignored. True when that changes anything.

        Only their ratios matter. Raises `ValueError` for a weight that is not above 0: its class would starve.
        """
        before = self.sim.weights.tolist()
        for at, kind in enumerate(self.classes):
            found = weights.get(kind.name, weights.get(kind.risk_band or ""))
            if found is not None:
                self.sim.weights[at] = TicketClass(kind.name, weight=float(found)).weight
        return bool(self.sim.weights.tolist() != before)


def simulate(
    pool: Pool,
    controller: Controller,
    *,
    tick_s: float = 60.0,
    progress: Callable[[float], Any] | None = None,
) -> Run:
    """Run the pool's trace under a controller, asked every `tick_s` seconds. Deterministic.

    `progress` is called about a hundred times with the share done, in [0, 1]. Raises `ValueError` for a `tick_s` that
    is not above 0.
    """
    if not tick_s > 0:
        raise ValueError(f"tick_s is {tick_s}; the time between two control ticks must be above 0 s")
    start, end = pool.trace.start, pool.trace.end
    next_tick, ticks, changes = start, 0, 0
    hours = _Hours(pool)
    report_at = start
    while next_tick < end:
        _run_to(pool, next_tick, controller)
        hours.at_tick()
        changes += _obey(pool, controller.on_tick(pool.state(), next_tick))
        ticks += 1
        next_tick += tick_s
        if progress is not None and next_tick >= report_at:
            progress((pool.now - start) / (end - start))
            report_at += (end - start) / 100
    _run_to(pool, end, controller)
    hours.close()
    if progress is not None:
        progress(1.0)
    return run_of(pool, changes=changes, hours=hours.done, ticks=ticks)


def _run_to(pool: Pool, until: float, controller: Controller) -> None:
    watched = controller.watches_tickets
    while (event := pool.advance(until, watched)) != engine.REACHED:
        index, now = pool.ticket, pool.now
        if event == engine.ARRIVAL:
            controller.on_arrival(index, pool.state(), now)
        else:
            wait = pool.sim.started.item(index) - pool.trace.arrivals.item(index)
            controller.on_finished(index, wait, now)


def _obey(pool: Pool, order: int | Order | None) -> bool:
    """True when the number of workers changes."""
    if isinstance(order, Order):
        if order.weights is not None:
            pool.set_weights(order.weights)
        order = order.workers
    return order is not None and pool.scale_to(order)


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _check(**values: tuple[float, float]) -> None:
    for name, (value, least) in values.items():
        if not least <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a number, {least} or more")


class _Hours:
    """Collects the time line."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.done: list[Hour] = []
        self._start, self._arrivals, self._cost = pool.trace.start, 0, 0.0
        self._queued, self._ticks = 0, 0

    def at_tick(self) -> None:
        pool = self._pool
        if pool.now - self._start >= _HOUR:
            self.close()
        self._queued += pool.waiting
        self._ticks += 1

    def close(self) -> None:
        pool = self._pool
        arrivals = pool.sim.n.item(layout.COMING)
        length = pool.now - self._start
        if length > 0:
            workers = (pool.worker_seconds - self._cost) / length
            self.done.append(Hour(self._start, arrivals - self._arrivals, workers, self._queued / max(self._ticks, 1)))
        self._start, self._arrivals, self._cost = pool.now, arrivals, pool.worker_seconds
        self._queued = self._ticks = 0
