"""Q-learning in the twin, compiled: a whole episode in one call, and trials of one action from a copied moment.

The state index, the arms, the reward and the planner are the live path's own functions, compiled. What an episode
learns goes into a `Values`, arrays of states x arms that `learn` turns into the Q-table.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from nhm_sched_plugin.decision import reward
from nhm_sched_plugin.policy import arms, state_key
from nhm_sched_plugin.policy.arms import AMPLE, LEAN
from nhm_sched_plugin.twin import pilot
from nhm_sched_plugin.twin.chance import uniform
from nhm_sched_plugin.twin.compiled import compiled, inner
from nhm_sched_plugin.twin.engine import active, advance, observe
from nhm_sched_plugin.twin.layout import (
    ACTIVE,
    BUSY,
    COMPLIANCE,
    END,
    LATE,
    MEAN_SERVICE_S,
    MET,
    NOW,
    ON_THE_WAY,
    ORDERS,
    QUEUE,
    STARTED,
    UTILISATION,
    WAITING,
    WORKER_S,
)
from nhm_sched_plugin.types import Action

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PLANNERS_SHARE", "Values", "episode", "new_values", "trial"]

PLANNERS_SHARE: Final = 0.5
"""How often an episode's executed action is the planner's own; else it is any candidate."""
_CANDIDATES: Final = 6
_INCREASE: Final = arms.ACTIONS.index(Action.INCREASE_WORKER_POOL)
_DECREASE: Final = arms.ACTIONS.index(Action.DECREASE_WORKER_POOL)
_AHEAD: Final = arms.ACTIONS.index(Action.PREEMPTIVE_SCALING)
_WEIGHTS: Final = arms.ACTIONS.index(Action.ADJUST_PRIORITY_WEIGHTS)
_BALANCE: Final = arms.ACTIONS.index(Action.LOAD_BALANCING_RECONFIG)
_KEEP: Final = arms.ACTIONS.index(Action.NO_ACTION)
# What is kept of a decision until its reward is known.
_STATE, _ARM, _SLA, _THROUGHPUT, _EFFICIENCY, _WORKERS = range(6)

state_index = inner(state_key.state_index)
arm_index = inner(arms.arm_index)
within = inner(arms.within)
sla_delta = inner(reward.sla_delta)
growth = inner(reward.growth)
throughput_of = inner(reward.throughput_of)
weighted = inner(reward.weighted)


class Values(NamedTuple):
    """What was learned: arrays of (states, arms), in the order of `state_key.KEYS` and `arms.ARMS`."""

    q: NDArray[np.float64]
    visits: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]


def new_values() -> Values:
    """Nothing learned."""
    return Values(*(np.zeros((len(state_key.KEYS), len(arms.ARMS))) for _ in Values._fields))


@inner
def update(values: Any, state: int, arm: int, target: float, learning_rate: float) -> None:
    """As `QTable.update`."""
    values.visits[state, arm] += 1.0
    delta = target - values.mean[state, arm]
    values.mean[state, arm] += delta / values.visits[state, arm]
    values.m2[state, arm] += delta * (target - values.mean[state, arm])
    values.q[state, arm] += learning_rate * (target - values.q[state, arm])


@inner
def best(values: Any, state: int) -> float:
    """As `QTable.best`."""
    most, tried = 0.0, False
    for arm in range(values.q.shape[1]):
        if values.visits[state, arm] > 0.0 and (not tried or values.q[state, arm] > most):
            most, tried = values.q[state, arm], True
    return most


@inner
def _keep(state: int, arm: int, sim: Any, kept: Any) -> None:
    seen = sim.seen
    kept[_STATE], kept[_ARM] = state, arm
    kept[_SLA], kept[_WORKERS], kept[_EFFICIENCY] = seen[COMPLIANCE], seen[ACTIVE], seen[UTILISATION]
    kept[_THROUGHPUT] = throughput_of(seen[ACTIVE], seen[UTILISATION], 1000.0 * seen[MEAN_SERVICE_S])


@inner
def reward_between(before: Any, after: Any) -> float:
    """The contract's reward, as `decision.reward.components` finds it in the twin's states."""
    return weighted(
        sla_delta(before[_SLA], after[_SLA]),
        growth(before[_THROUGHPUT], after[_THROUGHPUT]),
        growth(before[_EFFICIENCY], after[_EFFICIENCY]),
        0.0 - growth(before[_WORKERS], after[_WORKERS]),
    )


@inner
def offers(sim: Any, need: float, may_remove: bool, limits: Any, targets: Any, found: Any) -> int:
    """Targets (NaN: none) and arms of the planner's candidates, its own first; how many. See `Planner.candidates`.

    One that would remove workers while the guard refuses that is left out; the planner's own is then to keep.
    """
    workers, ordered, waiting = float(active(sim)), float(active(sim)) + sim.seen[ON_THE_WAY], sim.n[WAITING]
    in_system, count = float(sim.n[BUSY] + waiting), 0
    planned = within(math.ceil(need - 1e-9), workers, limits[0], limits[1], limits[2])
    for factor in (1.0, AMPLE, LEAN):
        target = planned
        if factor != 1.0:
            wanted = float(math.ceil(in_system + factor * (planned - in_system)))
            target = within(wanted, workers, limits[0], limits[1], limits[2])
        action, asked = _KEEP, math.nan
        if target > ordered:
            action, asked = (_AHEAD if target > planned and waiting == 0 else _INCREASE), target
        elif target < workers and waiting == 0 and may_remove:
            action, asked = _DECREASE, target
        elif count > 0:
            continue
        targets[count], found[count] = asked, arm_index(action, asked, planned)
        count += 1
    targets[count], found[count] = math.nan, 3 * _KEEP
    count += 1
    if waiting >= workers:
        targets[count], found[count] = math.nan, 3 * _WEIGHTS
        count += 1
        if sim.seen[UTILISATION] < 0.5:
            targets[count], found[count] = math.nan, 3 * _BALANCE
            count += 1
    return count


@compiled
def episode(
    sim: Any,
    values: Any,
    chance: Any,
    tick_s: float,
    lead: int,
    open_steps: Any,
    loads: Any,
    crowds: Any,
    dispersion: float,
    w: Any,
    limits: Any,
    learning_rate: float,
    discount: float,
    targets: Any,
    found: Any,
) -> float:
    """Runs the simulation to its end, learning from every control tick `lead` ticks later; the sum of the rewards.

    `loads` [hours, 3]: per hour of the clock, from that of the start on, the tickets expected in the next hour, six
    hours later, and the Erlangs at the lead time; `crowds` as for `pilot.fly`. `open_steps` [lead, 6], `targets` and
    `found` [6] are room to work in, `chance` [1] the state of the random numbers.
    """
    start, last_change, made, total = sim.t[NOW], -math.inf, 0, 0.0
    after = open_steps[lead]
    while sim.t[NOW] < sim.t[END]:
        observe(sim)
        seen, now = sim.seen, sim.t[NOW]
        hour = min(pilot.hours_since(start, now), len(loads) - 1)
        duration = 1000.0 * seen[MEAN_SERVICE_S]
        state = state_index(
            seen[ACTIVE], seen[QUEUE], duration, seen[COMPLIANCE], loads[hour, 0], loads[hour, 1], seen[UTILISATION]
        )
        slot = made % lead
        if made >= lead:
            before = open_steps[slot]
            _keep(state, 0, sim, after)
            earned = reward_between(before, after)
            total += earned
            target = earned + discount * best(values, state)
            update(values, int(before[_STATE]), int(before[_ARM]), target, learning_rate)
        need = pilot.need_now(sim, loads[hour, 2], pilot.crowd_at(crowds, start, now), dispersion, w)
        asked, arm = math.nan, 3 * _KEEP
        if not math.isnan(need):
            may_remove = not abs(now - last_change) < limits[3]
            count, chosen = offers(sim, need, may_remove, limits, targets, found), 0
            if uniform(chance, 0) > PLANNERS_SHARE:
                chosen = min(int(uniform(chance, 0) * count), count - 1)
            asked, arm = targets[chosen], found[chosen]
        _keep(state, arm, sim, open_steps[slot])
        last_change = pilot.order(sim, asked, last_change, limits)
        made += 1
        advance(sim, now + tick_s, False)
    return total


@inner
def _late(sim: Any) -> float:
    """Tickets that started late, or wait and are late already (as of the last `observe`)."""
    late = 0
    for kind in range(len(sim.first)):
        late += sim.tally[kind, STARTED] - sim.tally[kind, MET] + sim.tally[kind, LATE]
    return float(late)


@inner
def _copy(source: Any, into: Any) -> None:
    for at in range(len(source.started)):
        into.started[at], into.following[at], into.begun[at] = (
            source.started[at],
            source.following[at],
            source.begun[at],
        )
    for at in range(source.n[BUSY]):
        into.ends[at], into.holders[at] = source.ends[at], source.holders[at]
    for at in range(source.n[ORDERS]):
        into.ready[at], into.fresh[at] = source.ready[at], source.fresh[at]
    for kind in range(len(source.first)):
        into.weights[kind], into.first[kind] = source.weights[kind], source.first[kind]
        into.last[kind], into.in_time[kind] = source.last[kind], source.in_time[kind]
        for column in range(source.tally.shape[1]):
            into.tally[kind, column] = source.tally[kind, column]
    for at in range(len(source.n)):
        into.n[at] = source.n[at]
    for at in range(len(source.t)):
        into.t[at] = source.t[at]
    for at in range(len(source.seen)):
        into.seen[at] = source.seen[at]
    for at in range(len(source.random)):
        into.random[at] = source.random[at]


@compiled
def trial(
    sim: Any,
    copy: Any,
    target: float,
    last_change: float,
    until: float,
    tick_s: float,
    start: float,
    offered: Any,
    crowds: Any,
    dispersion: float,
    w: Any,
    limits: Any,
    late_s: float,
) -> float:
    """What it costs to order `target` (NaN: nothing) once, and to leave the pool to the planner `until` then.

    Worker-seconds and `late_s` for each late ticket. `offered` has the forecast's Erlangs per hour of the clock, from
    that of `start` on, `crowds` begins with the slot of now. `sim` stays as it is; `copy` is of the same window.
    """
    observe(sim)
    _copy(sim, copy)
    paid, late, began = copy.t[WORKER_S], _late(copy), copy.t[NOW]
    last_change = pilot.order(copy, target, last_change, limits)
    advance(copy, copy.t[NOW] + tick_s, False)
    while copy.t[NOW] < until:
        hour = min(pilot.hours_since(start, copy.t[NOW]), len(offered) - 1)
        crowd = pilot.crowd_at(crowds, began, copy.t[NOW])
        need = pilot.need_now(copy, offered[hour], crowd, dispersion, w)
        last_change = pilot.order(copy, need, last_change, limits)
        advance(copy, copy.t[NOW] + tick_s, False)
    observe(copy)
    return copy.t[WORKER_S] - paid + late_s * (_late(copy) - late)  # type: ignore[no-any-return]
