"""The simulator's event loop, compiled. `simulator.py` is its readable face; compiled loops call this directly.

A simulation is a `Sim`: a named tuple of arrays that the functions below change in place. Nothing here allocates, and
arrays by ticket are as long as they can ever have to be; the one of orders has room for those of a long start-up, and
`scale_to` refuses more. A compiled control loop is

    while sim.t[NOW] < sim.t[END]:
        advance(sim, sim.t[NOW] + tick_s, False)
        observe(sim)
        scale_to(sim, ...)  # reads sim.seen

What happens at one moment happens in this order: tickets end, workers get ready, the control tick, tickets arrive.

Sources:
    L. Kleinrock (1964), "A delay dependent queue discipline", Naval Research Logistics Quarterly 11; D. Stanford,
    P. Taylor, I. Ziedins (2014), "Waiting time distributions in the accumulating priority queue", Queueing Systems 77:
    a free worker takes the ticket with the highest weight x time waited.
"""

from __future__ import annotations

import math
from typing import Any, Final

from nhm_sched_plugin.twin import orders, running
from nhm_sched_plugin.twin.chance import uniform
from nhm_sched_plugin.twin.compiled import compiled, inner
from nhm_sched_plugin.twin.layout import (
    ACTIVE,
    ARRIVALS,
    ARRIVED,
    BEGUN,
    BUSY,
    BUSY_S,
    COMING,
    COMPLIANCE,
    DRAINING,
    END,
    ENDED,
    FAILURE_RATE,
    FAILURES,
    FAULTS,
    FINISHED,
    FORGOTTEN,
    GONE_BY,
    HAZARD,
    IDLE,
    LATE,
    LIMIT,
    MEAN_SERVICE_S,
    MET,
    NOW,
    ON_THE_WAY,
    QUEUE,
    QUEUE_S,
    READY,
    RECENT,
    RECENT_MET,
    SERVICE_S,
    SPANS_S,
    STARTED,
    STARTING,
    TICKET,
    TURNED_AWAY,
    UTILISATION,
    WAIT,
    WAITING,
    WINDOW_S,
    WORKER_S,
)

__all__ = ["ARRIVAL", "FINISH", "REACHED", "active", "advance", "count_arrivals", "observe", "ordered", "scale_to"]


# What `advance` stopped for.
REACHED: Final = 0
ARRIVAL: Final = 1
FINISH: Final = 2

_MEMORY: Final = 200
"""Finished tickets that the running mean of the service time looks back on, roughly."""


@compiled
def active(sim: Any) -> int:
    """Workers that may take tickets: idle or busy, without those on their way in or out."""
    n = sim.n
    return n[IDLE] + n[BUSY] - n[DRAINING]  # type: ignore[no-any-return]


@compiled
def ordered(sim: Any) -> int:
    """Active workers and those that start up."""
    return active(sim) + sim.n[STARTING]  # type: ignore[no-any-return]


@inner
def _elapse(sim: Any, now: float) -> None:
    """Moves the clock and the integrals."""
    n, t = sim.n, sim.t
    passed = now - t[NOW]
    if passed > 0.0:  # a trace may begin before the time it names
        t[NOW] = now
        up = n[IDLE] + n[BUSY]
        t[WORKER_S] += passed * (up + n[STARTING])
        t[BUSY_S] += passed * n[BUSY]
        t[QUEUE_S] += passed * n[WAITING]
        t[HAZARD] -= passed * t[FAILURE_RATE] * up


@inner
def _start(sim: Any, ticket: int) -> None:
    """A worker, no longer counted as idle, takes the ticket."""
    n, now = sim.n, sim.t[NOW]
    if math.isnan(sim.started[ticket]):
        kind = sim.classes[ticket]
        met = now - sim.arrivals[ticket] <= sim.sla_wait_s[kind]
        sim.started[ticket] = now
        sim.begun[n[BEGUN]] = ticket
        n[BEGUN] += 1
        sim.tally[kind, STARTED] += 1
        sim.tally[kind, MET] += met
        sim.tally[kind, RECENT] += 1
        sim.tally[kind, RECENT_MET] += met
    running.add(sim, ticket)


@inner
def _enqueue(sim: Any, ticket: int) -> None:
    kind = sim.classes[ticket]
    sim.following[ticket] = -1
    if sim.first[kind] < 0:
        sim.first[kind] = ticket
    else:
        sim.following[sim.last[kind]] = ticket
    sim.last[kind] = ticket
    if sim.in_time[kind] < 0:
        sim.in_time[kind] = ticket
    sim.n[WAITING] += 1
    sim.tally[kind, WAIT] += 1


@inner
def _put_back(sim: Any, ticket: int) -> None:
    """To the head of its class: its worker failed. Its SLA was decided when it started first."""
    kind = sim.classes[ticket]
    sim.following[ticket] = sim.first[kind]
    if sim.first[kind] < 0:
        sim.last[kind] = ticket
    sim.first[kind] = ticket
    sim.n[WAITING] += 1
    sim.tally[kind, WAIT] += 1


@inner
def _next_ticket(sim: Any) -> int:
    """Takes the waiting ticket with the most priority out of its queue. Somebody must wait."""
    first, kind = sim.first, 0
    if len(first) > 1:
        kind, most, now = -1, 0.0, sim.t[NOW]
        for other in range(len(first)):
            if first[other] < 0:
                continue
            score = sim.weights[other] * (now - sim.arrivals[first[other]])
            if kind < 0 or score > most or (score == most and first[other] < first[kind]):
                kind, most = other, score
    ticket = first[kind]
    first[kind] = sim.following[ticket]
    if sim.in_time[kind] == ticket:
        sim.in_time[kind] = first[kind]
    elif math.isnan(sim.started[ticket]):
        sim.tally[kind, LATE] -= 1
    sim.n[WAITING] -= 1
    sim.tally[kind, WAIT] -= 1
    return ticket  # type: ignore[no-any-return]


@inner
def _fill(sim: Any) -> None:
    """Idle workers take what waits."""
    n = sim.n
    while n[IDLE] > 0 and n[WAITING] > 0:
        n[IDLE] -= 1
        _start(sim, _next_ticket(sim))


@inner
def _arrive(sim: Any) -> bool:
    """The next ticket joins, or is turned away (False)."""
    n = sim.n
    ticket = n[COMING]
    kind = sim.classes[ticket]
    n[COMING] += 1
    n[TICKET] = ticket
    sim.tally[kind, ARRIVED] += 1
    if n[WAITING] + n[BUSY] >= n[LIMIT]:
        sim.tally[kind, TURNED_AWAY] += 1
        sim.started[ticket] = math.inf
        return False
    if n[IDLE] > 0:
        n[IDLE] -= 1
        _start(sim, ticket)
    else:
        _enqueue(sim, ticket)
    return True


@inner
def _finish(sim: Any) -> None:
    """The ticket that ends now; its worker takes the next one, leaves (when draining) or is idle."""
    n, t = sim.n, sim.t
    ticket = running.remove(sim, 0)
    n[TICKET] = ticket
    n[FINISHED] += 1
    sim.tally[sim.classes[ticket], ENDED] += 1
    duration = sim.durations[ticket]
    if math.isnan(t[SERVICE_S]):
        t[SERVICE_S] = duration
    else:
        t[SERVICE_S] += (duration - t[SERVICE_S]) / min(n[FINISHED] + 1, _MEMORY)
    if n[DRAINING] > 0:
        n[DRAINING] -= 1
    elif n[WAITING] > 0:
        _start(sim, _next_ticket(sim))
    else:
        n[IDLE] += 1


@inner
def _fail(sim: Any) -> None:
    """A worker is gone, any with the same probability; its ticket waits again. A busy one is of those that drain."""
    n = sim.n
    n[FAILURES] += 1
    sim.t[HAZARD] = -math.log(uniform(sim.random, FAULTS))
    chosen = int((1.0 - uniform(sim.random, FAULTS)) * (n[IDLE] + n[BUSY]))
    if chosen < n[IDLE]:
        n[IDLE] -= 1
        return
    _put_back(sim, running.remove(sim, chosen - n[IDLE]))
    if n[DRAINING] > 0:
        n[DRAINING] -= 1
    _fill(sim)


@inner
def _boot(sim: Any) -> None:
    """Ordered workers are ready."""
    sim.n[IDLE] += orders.receive(sim)
    _fill(sim)


@compiled
def scale_to(sim: Any, target: int) -> bool:
    """Order or remove workers so that `target` are active or starting up. True when that changes anything.

    Raises `ValueError` when the orders do not fit into `sim.ready`; nothing has changed then. They always do when it is
    as long as the largest target, and with a fixed start-up time when it is longer than a start-up has ticks.
    """
    n = sim.n
    difference = max(target, 0) - ordered(sim)
    if difference == 0:
        return False
    if difference > 0:
        kept = min(difference, n[DRAINING])  # workers on their way out stay, which is free
        if not orders.fit(sim, difference - kept):
            raise ValueError("more workers start up than the simulation has room for")
        n[DRAINING] -= kept
        orders.place(sim, difference - kept)
        return True
    surplus = orders.cancel(sim, -difference)
    removed = min(surplus, n[IDLE])
    n[IDLE] -= removed
    n[DRAINING] += surplus - removed
    return True


@compiled
def advance(sim: Any, until: float, watch: bool) -> int:
    """Runs the events up to `until` or the trace's end, and moves the clock there: returns `REACHED`.

    With `watch` it stops after each ticket that joined (`ARRIVAL`) or ended (`FINISH`), which is `sim.n[TICKET]`.
    """
    n, t = sim.n, sim.t
    end, count = t[END], len(sim.arrivals)
    until = min(until, end)
    while True:
        arrival = sim.arrivals[n[COMING]] if n[COMING] < count else math.inf
        finish = sim.ends[0] if n[BUSY] > 0 else math.inf
        ready, failure = t[READY], math.inf
        if t[FAILURE_RATE] > 0.0 and n[IDLE] + n[BUSY] > 0:
            failure = t[NOW] + max(t[HAZARD], 0.0) / (t[FAILURE_RATE] * (n[IDLE] + n[BUSY]))
        if finish <= ready and finish <= arrival and finish <= failure:
            if finish > until or finish >= end:
                break
            _elapse(sim, finish)
            _finish(sim)
            if watch:
                return FINISH
        elif ready <= arrival and ready <= failure:
            if ready > until or ready >= end:
                break
            _elapse(sim, ready)
            _boot(sim)
        elif arrival <= failure:
            if arrival >= until:
                break
            _elapse(sim, arrival)
            if _arrive(sim) and watch:
                return ARRIVAL
        elif failure >= until:
            break
        else:
            _elapse(sim, failure)
            _fail(sim)
    _elapse(sim, until)
    return REACHED


@inner
def count_arrivals(sim: Any) -> None:
    """Brings the counts of arrivals in `sim.seen` up to now; part of `observe`, for loops that need no more."""
    n, arrivals = sim.n, sim.arrivals
    for span in range(len(SPANS_S)):
        at, oldest = n[GONE_BY + span], sim.t[NOW] - SPANS_S[span]
        while at < n[COMING] and arrivals[at] <= oldest:
            at += 1
        n[GONE_BY + span] = at
        sim.seen[ARRIVALS + span] = n[COMING] - at


@compiled
def observe(sim: Any) -> None:
    """Brings `sim.seen` and the counts of late and recent tickets up to now. Nothing else changes.

    Whatever it counts is counted once on the way in and once on the way out, however often this is called.
    """
    n, seen, now = sim.n, sim.seen, sim.t[NOW]
    oldest = now - sim.t[WINDOW_S]
    while n[FORGOTTEN] < n[BEGUN]:
        ticket = sim.begun[n[FORGOTTEN]]
        if sim.started[ticket] >= oldest:
            break
        kind = sim.classes[ticket]
        met = sim.started[ticket] - sim.arrivals[ticket] <= sim.sla_wait_s[kind]
        sim.tally[kind, RECENT] -= 1
        sim.tally[kind, RECENT_MET] -= met
        n[FORGOTTEN] += 1
    judged = met_lately = 0
    for kind in range(len(sim.first)):
        at, due = sim.in_time[kind], now - sim.sla_wait_s[kind]
        while at >= 0 and sim.arrivals[at] < due:
            sim.tally[kind, LATE] += 1
            at = sim.following[at]
        sim.in_time[kind] = at
        judged += sim.tally[kind, RECENT] + sim.tally[kind, LATE]
        met_lately += sim.tally[kind, RECENT_MET]
    workers = active(sim)
    seen[QUEUE] = n[WAITING]
    seen[ACTIVE] = workers
    seen[MEAN_SERVICE_S] = sim.t[SERVICE_S]
    seen[COMPLIANCE] = met_lately / judged if judged > 0 else math.nan
    seen[UTILISATION] = (n[BUSY] - n[DRAINING]) / workers if workers > 0 else math.nan
    seen[ON_THE_WAY] = n[STARTING]
    count_arrivals(sim)
