"""How much of the gap between the rules and a clairvoyant oracle a policy closes, by the components of the reward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from nhm_sched_plugin.decision.reward import gap_closed
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.gated import Gated
from nhm_sched_plugin.twin.oracle import oracle
from nhm_sched_plugin.twin.results import busy_s, levels
from nhm_sched_plugin.twin.simulator import simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.twin.trials import pool_of
from nhm_sched_plugin.twin.windows import Windows

__all__ = ["gap_of"]

_DAY: Final = 86_400.0
_MOST_DAYS: Final = 7


def gap_of(
    settings: Settings,
    table: QTable,
    model: DemandModel,
    trace: Trace,
    *,
    past: Trace | None = None,
    tick_s: float = 15.0,
    progress: Callable[[float], Any] | None = None,
) -> float | None:
    """`decision.reward.gap_closed` on the last days of a trace, a week at most: the policy behind its gate, asked at
    any load, against the rules alone and the oracle, on the same tickets.

    `past` is the history before, as in `trials.reliability`. None for less than a day, or where the oracle is not
    better than the rules in anything.
    """
    if not len(trace) or trace.end - trace.start < _DAY:
        return None
    window = Windows(settings, trace, 0, 0.0, past, model.crowds).last(_MOST_DAYS * _DAY)
    hours = (window.trace.end - window.trace.start) / 3600.0
    found: list[dict[str, float]] = []
    for number, gate in enumerate((None, math.inf)):
        controller = Gated(settings, table, model, gate)
        controller.enter(window)
        told = None if progress is None else _half(progress, number)
        run = simulate(pool_of(window, settings), controller, tick_s=tick_s, progress=told)
        busy = busy_s(window.trace, run)
        found.append(levels(run.sla, run.finished, busy / 3600.0, run.worker_seconds / 3600.0, hours))
    best = oracle(window.trace, settings.planner.startup_s)
    clairvoyant = levels(1.0, best.finished, best.busy_seconds / 3600.0, best.worker_seconds / 3600.0, hours)
    policy, rules = found
    return gap_closed(policy, rules, clairvoyant)


def _half(progress: Callable[[float], Any], number: int) -> Callable[[float], Any]:
    return lambda share: progress((number + share) / 2)
