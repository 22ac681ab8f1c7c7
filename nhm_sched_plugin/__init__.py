"""Predictive scheduling for workflow orchestrators.

Everything a host or a hook author needs is importable from here; nothing is imported until it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nhm_sched_plugin.advice.client import OptimizerGRPCClient
    from nhm_sched_plugin.decision.reward import calculate_reward
    from nhm_sched_plugin.errors import NhmSchedError
    from nhm_sched_plugin.hookspecs import hookimpl
    from nhm_sched_plugin.host import SchedulerHost
    from nhm_sched_plugin.settings import Settings, load_settings
    from nhm_sched_plugin.types import (
        Action,
        Arm,
        Decision,
        Forecast,
        ForecastPoint,
        Health,
        Outcome,
        Reason,
        Recommendation,
        SchedulingState,
        Source,
        Ticket,
        Veto,
    )

__all__ = [
    "Action",
    "Arm",
    "Decision",
    "Forecast",
    "ForecastPoint",
    "Health",
    "NhmSchedError",
    "OptimizerGRPCClient",
    "Outcome",
    "Reason",
    "Recommendation",
    "SchedulerHost",
    "SchedulingState",
    "Settings",
    "Source",
    "Ticket",
    "Veto",
    "__version__",
    "calculate_reward",
    "hookimpl",
    "load_settings",
]

__version__: Final = "0.1.0"

_HOME: Final = {
    "NhmSchedError": "errors",
    "OptimizerGRPCClient": "advice.client",
    "SchedulerHost": "host",
    "Settings": "settings",
    "calculate_reward": "decision.reward",
    "hookimpl": "hookspecs",
    "load_settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'types')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
