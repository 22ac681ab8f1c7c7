"""The twin: a simulated queue and worker pool, to try a policy before it touches the real one. Imports stay light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nhm_sched_plugin.twin.classes import TicketClass
    from nhm_sched_plugin.twin.learn import LearnReport, pretrain
    from nhm_sched_plugin.twin.results import ReplayReport
    from nhm_sched_plugin.twin.simulator import Order, Pool, Run, simulate
    from nhm_sched_plugin.twin.traces import Trace

__all__ = ["LearnReport", "Order", "Pool", "ReplayReport", "Run", "TicketClass", "Trace", "pretrain", "simulate"]

_HOMES = {
    "LearnReport": "learn",
    "Order": "simulator",
    "Pool": "simulator",
    "ReplayReport": "results",
    "Run": "simulator",
    "TicketClass": "classes",
    "Trace": "traces",
    "pretrain": "learn",
    "simulate": "simulator",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
