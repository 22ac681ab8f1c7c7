"""The calibrated planner at the controls of a simulated pool, compiled: what calibration and pre-training run.

It sees what a host sees and obeys what a host obeys: no removal while a ticket waits or within the cooldown of the last
change, limits, and an order never cancels what is starting up. The arithmetic is `policy.demand`'s own.
"""

from __future__ import annotations

import math
from typing import Any, Final

from nhm_sched_plugin.policy import demand
from nhm_sched_plugin.policy.crowds import SLOT_S
from nhm_sched_plugin.twin.compiled import compiled, inner
from nhm_sched_plugin.twin.engine import active, advance, count_arrivals, ordered, scale_to
from nhm_sched_plugin.twin.layout import ARRIVALS, BUSY, END, NOW, SERVICE_S, WAITING

__all__ = ["LIMITS", "crowd_at", "fly", "hours_since", "need_now", "order"]

LIMITS: Final = ("min_workers", "max_workers", "max_step", "cooldown_s")
"""What the array `limits` holds, in order."""

expected = inner(demand.expected)
needed = inner(demand.needed)


@inner
def crowd_at(crowds: Any, start: float, now: float) -> float:
    """Of an array with a number for each slot, the first being that of `start`; the last holds on."""
    slot = int(now // SLOT_S) - int(start // SLOT_S)
    return crowds[min(slot, len(crowds) - 1)]  # type: ignore[no-any-return]


@inner
def hours_since(start: float, now: float) -> int:
    """Hours of the clock that began after `start`, up to `now`."""
    return int(now // 3600.0) - int(start // 3600.0)


@inner
def need_now(sim: Any, offered: float, crowd: float, dispersion: float, w: Any) -> float:
    """The planner's need for what can be measured now; NaN while the service time is unknown."""
    service_s = sim.t[SERVICE_S]
    if not service_s > 0.0:
        return math.nan
    count_arrivals(sim)
    in_system, seen = float(sim.n[BUSY] + sim.n[WAITING]), sim.seen
    return needed(
        in_system,
        seen[ARRIVALS],
        seen[ARRIVALS + 1],
        seen[ARRIVALS + 2],
        seen[ARRIVALS + 3],
        seen[ARRIVALS + 4],
        seen[ARRIVALS + 5],
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
def fly(sim: Any, tick_s: float, offered: Any, crowds: Any, dispersion: float, w: Any, limits: Any) -> None:
    """Runs the simulation to its end under the planner.

    `offered` has the forecast's Erlangs per hour from the start, `crowds` what `CrowdsAhead.between` gives.

    `sim` needs room for an order per control tick of a start-up (see `layout.new_sim`).
    """
    start, last_change = sim.t[NOW], -math.inf
    while sim.t[NOW] < sim.t[END]:
        hour = min(int((sim.t[NOW] - start) / 3600.0), len(offered) - 1)
        crowd = crowd_at(crowds, start, sim.t[NOW])
        target = need_now(sim, offered[hour], crowd, dispersion, w)
        last_change = order(sim, target, last_change, limits)
        advance(sim, sim.t[NOW] + tick_s, False)
