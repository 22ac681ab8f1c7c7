"""What a policy remembers of a state: what the planner says there, and what was last recommended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nhm_sched_plugin.policy.planner import Candidate, Plan, Planner
from nhm_sched_plugin.policy.qtable import Cell, QTable
from nhm_sched_plugin.policy.state_key import state_key
from nhm_sched_plugin.recurring import Recurring
from nhm_sched_plugin.types import Forecast, Recommendation, SchedulingState

__all__ = ["Said", "Situation", "Situations"]

_MOST: Final = 1024


class Said(msgspec.Struct, frozen=True, gc=False):
    """A recommendation, and what it depends on besides the situation."""

    base: Recommendation
    table: QTable
    trials: int
    row: Mapping[str, Cell]
    version: str
    recommendation: Recommendation


class Situation:
    """Plan and candidates for some numbers of a state, and what was last recommended there."""

    __slots__ = ("candidates", "forecast", "key", "plan", "said")

    def __init__(self, forecast: Forecast | None, key: str, plan: Plan, candidates: list[Candidate]) -> None:
        self.forecast, self.key, self.plan, self.candidates = forecast, key, plan, candidates
        self.said: Said | None = None


class Situations:
    """Many tickets come between two measurements of a pool: what the planner says is kept until the numbers change.

    Of one state of the planner: another calibration needs another memory.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._kept: Recurring[tuple[Any, ...], Situation] = Recurring(_MOST)

    def of(self, state: SchedulingState, forecast: Forecast | None) -> Situation:
        """State key, plan and candidates."""
        same = (
            state.queue_depth,
            state.active_workers,
            state.avg_task_duration_ms,
            state.sla_compliance_rate,
            state.predicted_load_1h,
            state.predicted_load_6h,
            state.resource_cpu_avg,
            id(forecast),
            *self._planner.features_of(state),
        )
        found = self._kept.get(same)
        # The forecast is kept beside the answer, so its id cannot be taken by another.
        if found is not None and found.forecast is forecast:
            return found
        key = state_key(state, None if forecast is None else forecast.predicted_volume)
        plan = self._planner.plan(state, forecast)
        found = Situation(forecast, key, plan, self._planner.candidates(plan, state))
        self._kept.keep(same, found)
        return found
