"""What a simulation is made of: a `Sim`, a named tuple of arrays that compiled code changes in place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from nhm_sched_plugin.policy.demand import WINDOWS_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["SPANS_S", "UNLIMITED", "Sim", "new_sim", "with_room"]

UNLIMITED: Final = 2**62
SPANS_S: Final = WINDOWS_S
"""Arrivals are counted over the last so many seconds, see `ARRIVALS`."""


class Sim(NamedTuple):
    """All there is to a simulation. N tickets in order of arrival, C classes, R room for orders."""

    arrivals: Floats
    """[N] Unix seconds."""
    durations: Floats
    """[N] seconds of service."""
    classes: NDArray[np.uint8]
    """[N] class of each ticket, below C."""
    started: Floats
    """[N] Unix seconds of the first start; NaN until then, infinite when turned away."""
    following: NDArray[np.int32]
    """[N] the ticket behind this one in the queue of its class; -1: none."""
    begun: NDArray[np.int32]
    """[N] tickets in order of their first start: the memory of recent SLAs."""
    ends: Floats
    """[N] a heap of when the running tickets end."""
    holders: NDArray[np.int32]
    """[N] the tickets of that heap."""
    ready: Floats
    """[R] when ordered workers get ready, in order of the orders."""
    fresh: NDArray[np.int64]
    """[R] how many workers that is."""
    weights: Floats
    """[C] priority gained per second of waiting, > 0. May be changed between calls."""
    sla_wait_s: Floats
    """[C] a ticket is in time when it starts within this."""
    first: NDArray[np.int32]
    """[C] head of the queue; -1: empty."""
    last: NDArray[np.int32]
    """[C] its tail."""
    in_time: NDArray[np.int32]
    """[C] the first ticket in the queue that is not known to be late; -1: none."""
    tally: NDArray[np.int64]
    """[C, 9] counts by class, see `ARRIVED` and what follows it."""
    n: NDArray[np.int64]
    """[19] counts, see `COMING` and what follows it."""
    t: Floats
    """[12] times and rates, see `NOW` and what follows it."""
    seen: Floats
    """[12] what a scheduler can measure, as of the last `observe`; see `QUEUE` and what follows it."""
    random: NDArray[np.uint64]
    """[2] states of the random numbers, see `STARTS` and `FAULTS`."""


# tally[class, ...]; a ticket is turned away, waits, runs or has ended.
ARRIVED: Final = 0
TURNED_AWAY: Final = 1
WAIT: Final = 2
LATE: Final = 3
"""Waiting, never started, and known to be late (as of the last `observe`)."""
STARTED: Final = 4
MET: Final = 5
ENDED: Final = 6
RECENT: Final = 7
"""First starts within the window."""
RECENT_MET: Final = 8

# n[...]
COMING: Final = 0
"""The next ticket to arrive."""
BUSY: Final = 1
IDLE: Final = 2
DRAINING: Final = 3
"""Busy workers that leave: the next so many to finish."""
STARTING: Final = 4
ORDERS: Final = 5
"""Entries of `ready`."""
WAITING: Final = 6
BEGUN: Final = 7
FORGOTTEN: Final = 8
"""First starts that are older than the window."""
FINISHED: Final = 9
FAILURES: Final = 10
LIMIT: Final = 11
"""Most tickets in the system."""
TICKET: Final = 12
"""The ticket of the last event."""
GONE_BY: Final = 13
"""And what follows it, for each of `SPANS_S`: tickets that arrived before that span (as of the last `observe`)."""

# t[...]
NOW: Final = 0
END: Final = 1
STARTUP_S: Final = 2
STARTUP_SIGMA: Final = 3
"""Of the logarithm of the start-up time; 0: always the mean."""
FAILURE_RATE: Final = 4
"""Failures per second of a worker."""
HAZARD: Final = 5
"""Worker-seconds x rate until the next failure: exponential, so it may be counted over all workers together."""
SERVICE_S: Final = 6
"""Running mean; NaN: unknown."""
WINDOW_S: Final = 7
WORKER_S: Final = 8
"""Integral of the workers paid for."""
BUSY_S: Final = 9
"""Integral of the running tickets."""
QUEUE_S: Final = 10
"""Integral of the waiting tickets."""
READY: Final = 11
"""When the next ordered worker is ready; infinite: none."""

# seen[...]
QUEUE: Final = 0
ACTIVE: Final = 1
MEAN_SERVICE_S: Final = 2
"""NaN: unknown."""
COMPLIANCE: Final = 3
"""Share in time of the tickets started in the window, late ones still waiting included; NaN: none."""
UTILISATION: Final = 4
"""NaN without workers."""
ON_THE_WAY: Final = 5
ARRIVALS: Final = 6
"""And what follows it: tickets that arrived in (now - span, now], for each of `SPANS_S`."""

STARTS: Final = 0
FAULTS: Final = 1


def new_sim(
    arrivals: Floats,
    durations: Floats,
    *,
    start: float,
    end: float,
    workers: int,
    startup_s: float,
    classes: NDArray[np.uint8] | None = None,
    sla_wait_s: Sequence[float] = (60.0,),
    weights: Sequence[float] = (1.0,),
    window_s: float = 600.0,
    service_s: float = math.nan,
    startup_cv: float = 0.0,
    failure_rate: float = 0.0,
    limit: int = UNLIMITED,
    room: int = 1024,
    seed: int = 0,
) -> Sim:
    """A simulation about to begin, with `workers` that are ready; see `simulator.Pool` for what the arguments mean.

    `arrivals` must ascend; they and `durations` are shared, not copied. `room`: for workers that start up, see
    `engine.scale_to`. Nothing is checked here.
    """
    count, kinds = len(arrivals), len(sla_wait_s)
    n, t = np.zeros(GONE_BY + len(SPANS_S), np.int64), np.zeros(12)
    n[IDLE], n[LIMIT] = workers, limit
    t[NOW], t[END], t[WINDOW_S], t[SERVICE_S], t[READY] = start, end, window_s, service_s, math.inf
    t[STARTUP_S], t[STARTUP_SIGMA] = startup_s, math.sqrt(math.log1p(startup_cv**2))
    random = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    t[FAILURE_RATE], t[HAZARD] = failure_rate, -math.log1p(-float(random[2] >> np.uint64(11)) * 2.0**-53)
    nobody = np.full(kinds, -1, np.int32)
    return Sim(
        arrivals=np.require(arrivals, np.float64, ["C", "W"]),
        durations=np.require(durations, np.float64, ["C", "W"]),
        classes=np.zeros(count, np.uint8) if classes is None else np.require(classes, np.uint8, ["C", "W"]),
        started=np.full(count, math.nan),
        following=np.empty(count, np.int32),
        begun=np.empty(count, np.int32),
        ends=np.empty(count),
        holders=np.empty(count, np.int32),
        ready=np.empty(room),
        fresh=np.empty(room, np.int64),
        weights=np.array(weights, np.float64),
        sla_wait_s=np.array(sla_wait_s, np.float64),
        first=nobody.copy(),
        last=nobody.copy(),
        in_time=nobody.copy(),
        tally=np.zeros((kinds, 9), np.int64),
        n=n,
        t=t,
        seen=np.zeros(ARRIVALS + len(SPANS_S)),
        random=random[:2].astype(np.uint64),
    )


def with_room(sim: Sim, workers: int) -> Sim:
    """The same simulation (it shares everything else) with room for so many more workers to start up."""
    entries = min(workers, 1) if sim.t[STARTUP_SIGMA] == 0.0 else max(workers, 0)
    room, needed = len(sim.ready), int(sim.n[ORDERS]) + entries
    if needed <= room:
        return sim
    more = max(needed, 2 * room) - room
    return sim._replace(
        ready=np.concatenate([sim.ready, np.empty(more)]),
        fresh=np.concatenate([sim.fresh, np.empty(more, np.int64)]),
    )
