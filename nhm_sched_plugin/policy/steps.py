"""What one executed step does to a Q-table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.policy.arms import ACTIONS, ARMS, arm_index
from nhm_sched_plugin.policy.planner import Planner
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.policy.state_key import state_key
from nhm_sched_plugin.types import Action, Experience, SchedulingState

__all__ = ["Steps", "arm_of", "carry_loads"]

_PLACES: Final = {action: place for place, action in enumerate(ACTIONS)}


def arm_of(action: Action, parameters: Mapping[str, Any], planned: float | None) -> str:
    """The Q-table's name for an executed action: with `+` or `-` when its target is above or below the planned one.

    The planned target is `parameters["planned_workers"]` (the policy's own actions carry it), else `planned`.
    """
    place = _PLACES[action]
    if action not in POOL_ACTIONS:
        return ARMS[3 * place]
    target = parameters.get("target_workers")
    planned = known(parameters.get("planned_workers", planned))
    if type(target) is not int or planned is None:
        return ARMS[3 * place]
    return ARMS[arm_index(place, target, planned)]


def carry_loads(before: SchedulingState, after: SchedulingState) -> SchedulingState:
    """`after`, with the predicted loads (and the service time) of `before` where it has none."""
    missing = {
        name: getattr(before, name)
        for name in ("predicted_load_1h", "predicted_load_6h", "avg_task_duration_ms")
        if getattr(after, name) is None and getattr(before, name) is not None
    }
    return msgspec.structs.replace(after, **missing) if missing else after


class Steps:
    """Q(s,a) += learning_rate * (reward + discount_factor * max_a' Q(s',a') - Q(s,a)), for executed steps.

    `live`: the rewards come from the real pool, and are counted as such.
    """

    def __init__(self, planner: Planner, learning_rate: float, discount: float, *, live: bool) -> None:
        self._planner, self._learning_rate, self._discount, self._live = planner, learning_rate, discount, live

    def settled(self, experience: Experience) -> Experience:
        """The step with the planned target written into it: what it does no longer depends on today's planner."""
        action, parameters = experience.action, experience.parameters
        if action not in POOL_ACTIONS or "target_workers" not in parameters or "planned_workers" in parameters:
            return experience
        planned = self._planner.planned(self._planner.plan(experience.state), action)
        # NaN is no number, so nobody plans again where there was no plan.
        told = {**parameters, "planned_workers": math.nan if planned is None else planned}
        return msgspec.structs.replace(experience, parameters=told)

    def apply(self, table: QTable, experience: Experience) -> float:
        """Update the table; returns the new Q-value."""
        experience = self.settled(experience)
        target = experience.reward
        if experience.next_state is not None:
            # A host's `state_after` has no predicted loads; over one control interval the old ones still hold.
            after = carry_loads(experience.state, experience.next_state)
            target += self._discount * table.best(state_key(after))
        live = experience.reward if self._live else None
        return table.update(*_place(experience), target, self._learning_rate, live)

    def q_value(self, table: QTable, experience: Experience) -> float:
        """What the table says now of the step's state and action; 0, the initial value, where it knows nothing."""
        cell = table.cell(*_place(self.settled(experience)))
        return 0.0 if cell is None else cell.q


def _place(experience: Experience) -> tuple[str, str]:
    """State key and arm of a settled step."""
    return state_key(experience.state), arm_of(experience.action, experience.parameters, None)
