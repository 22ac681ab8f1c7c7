"""The calibrated planner at the controls of a simulated pool, compiled: what calibration and pre-training run.

It sees what a host sees and obeys what a host obeys: no removal while a ticket waits or within the cooldown of the last
change, limits, and an order never cancels what is starting up. The arithmetic is `policy.demand`'s own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nhm_sched_plugin.policy import demand
from nhm_sched_plugin.policy.crowds import SLOT_S
from nhm_sched_plugin.twin.compiled import compiled, inner
from nhm_sched_plugin.twin.engine import active, advance, ordered, scale_to
from nhm_sched_plugin.twin.layout import BUSY, COMING, END, NOW, SERVICE_S, WAITING

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LIMITS", "WINDOWS", "crowd_at", "fly", "need_now", "order", "windows"]

WINDOWS: Final = np.array(demand.WINDOWS_S)
LIMITS: Final = ("min_workers", "max_workers", "max_step", "cooldown_s")
"""What the array `limits` holds, in order."""

expected = inner(demand.expected)
needed = inner(demand.needed)


def windows() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Fresh (marks, counts) for `need_now`: per window the first ticket inside it, and how many there are."""
    return np.zeros(len(WINDOWS), np.int64), np.zeros(len(WINDOWS))


@inner
def _count(sim: Any, marks: Any, counts: Any, lengths: Any) -> None:
    """Tickets that arrived in (now - window, now]."""
    now, coming = sim.t[NOW], sim.n[COMING]
    for at in range(len(marks)):
        mark, oldest = marks[at], now - lengths[at]
        while mark < coming and sim.arrivals[mark] <= oldest:
            mark += 1
        marks[at] = mark
        counts[at] = coming - mark


@inner
def crowd_at(crowds: Any, start: float, now: float) -> float:
    """Of an array with a number for each slot, the first being that of `start`; the last holds on."""
    slot = int(now // SLOT_S) - int(start // SLOT_S)
    return crowds[min(slot, len(crowds) - 1)]  # type: ignore[no-any-return]


@inner
def need_now(
    sim: Any, marks: Any, counts: Any, lengths: Any, offered: float, crowd: float, dispersion: float, w: Any
) -> float:
    """The planner's need for what can be measured now; NaN while the service time is unknown."""
    service_s = sim.t[SERVICE_S]
    if not service_s > 0.0:
        return math.nan
    _count(sim, marks, counts, lengths)
    in_system = float(sim.n[BUSY] + sim.n[WAITING])
    return needed(
        in_system,
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        counts[4],
        counts[5],
        service_s,
        offered,
        crowd,
        dispersion,
        w,
    )


@inner
def order(sim: Any, target: float, last_change: float, limits: Any) -> float:
    """Brings the pool to `target` (rounded up) as far as guards and limits allow; the time of the last change then."""
    if math.isnan(target):
        return last_change
    workers, up, now = active(sim), ordered(sim), sim.t[NOW]
    wanted = min(max(math.ceil(target), limits[0]), limits[1])
    if wanted > up:
        wanted = min(wanted, workers + limits[2])
        if wanted > up:
            scale_to(sim, int(wanted))
            return now  # type: ignore[no-any-return]
    elif wanted < workers and sim.n[WAITING] == 0 and not abs(now - last_change) < limits[3]:
        scale_to(sim, int(max(wanted, workers - limits[2])))
        return now  # type: ignore[no-any-return]
    return last_change


@compiled
def fly(
    sim: Any,
    tick_s: float,
    marks: Any,
    counts: Any,
    lengths: Any,
    offered: Any,
    crowds: Any,
    dispersion: float,
    w: Any,
    limits: Any,
) -> None:
    """Runs the simulation to its end under the planner.

    `offered` has the forecast's Erlangs per hour from the start, `crowds` what `CrowdsAhead.between` gives.

    `sim` needs room for an order per control tick of a start-up (see `layout.new_sim`).
    """
    start, last_change = sim.t[NOW], -math.inf
    while sim.t[NOW] < sim.t[END]:
        hour = min(int((sim.t[NOW] - start) / 3600.0), len(offered) - 1)
        crowd = crowd_at(crowds, start, sim.t[NOW])
        target = need_now(sim, marks, counts, lengths, offered[hour], crowd, dispersion, w)
        last_change = order(sim, target, last_change, limits)
        advance(sim, sim.t[NOW] + tick_s, False)
