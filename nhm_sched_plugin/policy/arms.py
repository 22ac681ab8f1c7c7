"""The arms of the Q-table: plain arithmetic that the twin compiles as well.

An arm is an action, with `+` or `-` when it was executed with a target above or below the capacity planner's, by
more than `NEAR` and by a worker at least: the rules' "grow" and the planner's are different things.
"""

from __future__ import annotations

import math
from typing import Final

from nhm_sched_plugin.types import Action

__all__ = ["ACTIONS", "AMPLE", "ARMS", "LEAN", "NEAR", "arm_index", "within"]

NEAR: Final = 0.02
"""Targets closer than this to the planner's (relative) are the same arm."""
AMPLE: Final = 1.5
"""The candidate with more room than planned, in times the planned room above what is in the system,"""
LEAN: Final = 0.7
"""and the one with less."""
ACTIONS: Final = tuple(Action)
ARMS: Final = tuple(f"{action.value}{side}" for action in ACTIONS for side in ("", "+", "-"))
"""The arms' names, by `arm_index`."""


def arm_index(action: int, target: float, planned: float) -> int:
    """Where the arm is in `ARMS`; `action` by its place in `ACTIONS`, NaN for a target that is not there."""
    difference = target - planned
    if math.isnan(difference) or abs(difference) < 1.0 or abs(difference) <= NEAR * abs(planned):
        return 3 * action
    return 3 * action + (1 if difference > 0.0 else 2)


def within(target: float, active: float, low: float, high: float, step: float) -> float:
    """The target inside the limits; the step last: towards the limits, but not in one go."""
    return min(max(min(max(target, low), high), active - step), active + step)
