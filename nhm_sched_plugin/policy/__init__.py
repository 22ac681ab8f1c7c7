"""What to do: the state key, the Q-table, the capacity planner and the policy that joins them. Imports stay light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nhm_sched_plugin.policy.learning import QPolicy
    from nhm_sched_plugin.policy.planner import Planner
    from nhm_sched_plugin.policy.qtable import QTable

__all__ = ["Planner", "QPolicy", "QTable"]

_HOMES = {"Planner": "planner", "QPolicy": "learning", "QTable": "qtable"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
