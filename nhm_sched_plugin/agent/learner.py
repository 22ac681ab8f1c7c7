"""Outcomes become what the policy has learned."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from nhm_sched_plugin.advice.protocols import Policy
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Experience

__all__ = ["Learner", "Recorded"]


class Recorded(NamedTuple):
    accepted: bool
    updates: int
    q_value: float


class Learner:
    """Has the policy of one process learn."""

    def __init__(self, settings: Settings, policy: Policy, faults: Faults) -> None:
        self._policy, self._faults = policy, faults
        self._lock = threading.Lock()

    def record(self, experiences: Sequence[Experience]) -> list[Recorded]:
        """Learn from these, in order; what was recorded before is not accepted again."""
        with self._lock:
            return [self._learned(experience) for experience in experiences]

    def _learned(self, experience: Experience) -> Recorded:
        table = getattr(self._policy, "table", None)
        before = 0 if table is None else table.updates
        self._policy.learn(experience)
        after = 0 if table is None else table.updates
        return Recorded(table is None or after > before, after, 0.0)

    def follow(self) -> None:
        """Nobody else learns here."""

    def close(self) -> None:
        """Make what was learned durable."""
        self._policy.save()
