"""What a policy remembers of a state: what the planner says there, and what was last recommended."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from nhm_sched_plugin.policy.planner import Candidate, Plan
from nhm_sched_plugin.policy.qtable import Cell, QTable
from nhm_sched_plugin.types import Forecast, Recommendation

__all__ = ["Said", "Situation"]


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
