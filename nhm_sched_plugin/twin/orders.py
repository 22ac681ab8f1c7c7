"""Workers that start up, compiled, in the order in which they were ordered. Part of `engine.py`."""

from __future__ import annotations

import math
from typing import Any

from nhm_sched_plugin.twin.chance import uniform
from nhm_sched_plugin.twin.compiled import inner
from nhm_sched_plugin.twin.layout import (
    NOW,
    ORDERS,
    READY,
    STARTING,
    STARTS,
    STARTUP_S,
    STARTUP_SIGMA,
)

__all__ = ["cancel", "find_ready", "fit", "place", "receive"]


@inner
def _startup(sim: Any) -> float:
    """Lognormal with the mean `STARTUP_S`; the normal number is Box and Muller's (1958)."""
    sigma = sim.t[STARTUP_SIGMA]
    if sigma == 0.0:
        return float(sim.t[STARTUP_S])
    radius = math.sqrt(-2.0 * math.log(uniform(sim.random, STARTS)))
    normal = radius * math.cos(2.0 * math.pi * uniform(sim.random, STARTS))
    return float(sim.t[STARTUP_S] * math.exp(sigma * normal - sigma * sigma / 2.0))


@inner
def find_ready(sim: Any) -> None:
    earliest = math.inf
    for at in range(sim.n[ORDERS]):
        earliest = min(earliest, sim.ready[at])
    sim.t[READY] = earliest


@inner
def fit(sim: Any, workers: int) -> bool:
    """Whether there is room to order so many workers."""
    entries = min(workers, 1) if sim.t[STARTUP_SIGMA] == 0.0 else workers
    return sim.n[ORDERS] + entries <= len(sim.ready)  # type: ignore[no-any-return]


@inner
def place(sim: Any, workers: int) -> None:
    """Workers that start up together are one entry: with a fixed start-up time all of one moment."""
    n, t = sim.n, sim.t
    while workers > 0:
        ready = t[NOW] + _startup(sim)
        count = workers if t[STARTUP_SIGMA] == 0.0 else 1
        last = n[ORDERS] - 1
        if last >= 0 and sim.ready[last] == ready:
            sim.fresh[last] += count
        else:
            sim.ready[last + 1], sim.fresh[last + 1] = ready, count
            n[ORDERS] += 1
        n[STARTING] += count
        workers -= count
        t[READY] = min(t[READY], ready)


@inner
def cancel(sim: Any, surplus: int) -> int:
    """Takes back the latest orders; how many workers are still too many."""
    n = sim.n
    while surplus > 0 and n[ORDERS] > 0:
        last = n[ORDERS] - 1
        cancelled = min(surplus, sim.fresh[last])
        surplus -= cancelled
        n[STARTING] -= cancelled
        sim.fresh[last] -= cancelled
        if sim.fresh[last] == 0:
            n[ORDERS] -= 1
    find_ready(sim)
    return surplus


@inner
def receive(sim: Any) -> int:
    """Takes out the workers that are ready by the time of the next order; how many."""
    n, kept, workers = sim.n, 0, 0
    now = sim.t[READY]
    for at in range(n[ORDERS]):
        if sim.ready[at] <= now:
            workers += sim.fresh[at]
        else:
            sim.ready[kept], sim.fresh[kept] = sim.ready[at], sim.fresh[at]
            kept += 1
    n[ORDERS] = kept
    n[STARTING] -= workers
    find_ready(sim)
    return workers
