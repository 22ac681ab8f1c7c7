"""Pre-training: the policy tries its actions on simulated pools before it advises a real one.

1. The planner is calibrated to the trace, where that has not been done (`calibrate`).
2. Drill: many compiled episodes (`lessons.episode`) of Q-learning on the planner's candidates, on windows of the trace
   and of its variations, with a random number of workers to begin with.
3. Practice: fewer episodes in Python, with the real rule book, whose actions get their visits there. At random ticks
   the moment is tried with every action (`trials`): the trials that confidence is counted from.

State key, reward, arms, rule book and Q-table are the live path's own. The forecast is a mean of other days, on days
held out of those before. Episodes are seeded by their number: an interrupted run goes on from its checkpoint to the
same result.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.calibrate import calibrate
from nhm_sched_plugin.twin.checkpoint import Checkpoint, Progress
from nhm_sched_plugin.twin.controllers import RulesController
from nhm_sched_plugin.twin.drill import Drill
from nhm_sched_plugin.twin.gap import gap_of
from nhm_sched_plugin.twin.practice import lead_s, practise
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.twin.trials import Reliability, reliability

__all__ = ["LearnReport", "calibrated", "lead_s", "learn", "pretrain"]

PRACTICE: Final = 150_000
"""Most decisions of the part in Python."""
HELD_OUT: Final = 0.2
"""Share of the days, the last ones, that `learn` keeps to see whether confidence comes true."""
_FRESH_S: Final = 7 * 86_400.0
"""A calibration is used again for as long as the trace has grown by less."""
_DAY: Final = 86_400.0
Told = Callable[[float], Any]


class LearnReport(msgspec.Struct, kw_only=True):
    """What pre-training did."""

    decisions: int
    episodes: int
    trials: int
    """Moments that were tried with every action."""
    states: int
    updates: int
    """Of the Q-table, over its life."""
    reward_mean: float
    elapsed_s: float
    decisions_per_s: float
    """Of the compiled part; 0 without one."""
    actions: dict[str, int]
    """Executed while practising."""
    path: str
    planner_path: str = ""
    planner_sla: float | None = None
    """Share in time under the calibrated planner, on the tickets that it was calibrated on,"""
    planner_cost: float | None = None
    """and its cost there, over that of the clairvoyant oracle."""
    resumed: bool = False
    reliability: Reliability | None = None
    """On the days held out; None where there were too few."""
    gap_closed: float | None = None
    """On those days, a week at most: share of the reward's gap between rules and oracle (`twin.gap`)."""
    version: str = ""
    """Of `scheduling_policy` in the registry, where it was registered."""


def calibrated(
    settings: Settings, trace: Trace, *, again: bool = False, seed: int = 0, progress: Told | None = None
) -> DemandModel:
    """The planner's calibration: the file's where it is fresh, else a new one, which is saved.

    Fresh: made with the same start-up time, SLA wait and cost of a late ticket, from tickets that end at most a week
    before those of `trace`, and not after them. Raises `ModelError` when the file cannot be written.
    """
    path, planner = settings.planner_path, settings.planner
    if not again:
        try:
            model = DemandModel.load(path)
        except (FileNotFoundError, ModelError):
            pass
        else:
            asked = planner.startup_s, planner.sla_wait_s, planner.late_cost
            alike = (model.startup_s, model.sla_wait_s, model.late_cost) == asked
            if alike and 0 <= trace.end - model.end <= _FRESH_S:
                return model
    model = calibrate(settings, trace, seed=seed, progress=progress)
    model.save(path)
    return model


def learn(
    settings: Settings,
    trace: Trace,
    *,
    decisions: int = 1_000_000,
    tick_s: float = 15.0,
    seed: int = 0,
    fresh: bool = False,
    recalibrate: bool = False,
    moments: int = 10_000,
    progress: Callable[[str, float], Any] | None = None,
) -> LearnReport:
    """Calibrate, pre-train, and count on the last fifth of the days whether confidence comes true.

    Also what the policy closes there of the gap between rules and oracle. With fewer than five days nothing is held
    out and nothing counted. `progress` gets what is being done and the share of it, in [0, 1]. `fresh` forgets an
    interrupted run; `moments` are tried on the days held out. Raises as `pretrain` does.
    """

    def telling(what: str) -> Told | None:
        return None if progress is None else lambda share: progress(what, share)

    days = (trace.end - trace.start) / _DAY
    split = trace.end - math.floor(days * HELD_OUT) * _DAY
    past, kept = trace.slice(trace.start, split), trace.slice(split, trace.end)
    if not len(past):
        past, kept = trace, trace.slice(trace.end, trace.end)
    model = calibrated(settings, past, again=recalibrate, seed=seed, progress=telling("calibrate the planner"))
    report = pretrain(
        settings,
        past,
        decisions=decisions,
        practice=(decisions + 1) // 2,
        tick_s=tick_s,
        seed=seed,
        fresh=fresh,
        progress=telling("learn"),
    )
    if len(kept):
        told = telling("check the confidence")
        table = QTable.load(Path(report.path))
        report.reliability = reliability(
            settings, table, kept, model, past=past, tick_s=tick_s, seed=seed, moments=moments, progress=told
        )
        told = telling("measure against rules and oracle")
        report.gap_closed = gap_of(settings, table, model, kept, past=past, tick_s=tick_s, progress=told)
        if report.gap_closed is not None:
            _note_gap(Path(report.path), report.gap_closed)
    return report


def _note_gap(path: Path, gap: float) -> None:
    """Into the Q-table, so that whoever serves it can tell how good it was. Raises `ModelError`."""
    with file_lock(path):  # a host of the same folder may have saved meanwhile
        table = QTable.load(path)
        table.gap = gap
        try:
            table.save(path)
        except OSError as error:
            raise ModelError(f"{path}: cannot be written ({error.strerror or error}); free space") from None


def pretrain(
    settings: Settings,
    trace: Trace,
    *,
    decisions: int = 20_000,
    practice: int | None = None,
    tick_s: float = 60.0,
    seed: int = 0,
    path: Path | None = None,
    fresh: bool = False,
    progress: Told | None = None,
) -> LearnReport:
    """Learn from `decisions` simulated control decisions and save the Q-table (`settings.q_table_path` or `path`).

    `practice` of them (default: all, at most `PRACTICE`) are made in Python, with the rules and with trials; the rest
    is compiled. The planner is calibrated first when it has not been (`calibrated`). An existing table is continued;
    its trials are replaced. `progress` gets the share done, in [0, 1]. An interrupted run is continued unless `fresh`.
    Raises `TraceError` for a trace without tickets, `ModelError` when a file cannot be saved.
    """
    if not len(trace):
        raise TraceError(f"{trace.name}: no tickets to learn from")
    practice = min(decisions if practice is None else practice, decisions, PRACTICE)
    model = calibrated(settings, trace, seed=seed)
    began = time.perf_counter()
    rules = RulesController(settings)
    policy = QPolicy(settings, rules.rules, path=path, autosave=False)
    policy.planner.model = model
    policy.table.forget_trials()
    checkpoint = Checkpoint(policy.path)
    run = _digest(settings, trace, model, policy.table, decisions, practice, tick_s, seed)
    left = None if fresh else checkpoint.load(run)
    done = Progress(run=run)
    if left is not None:
        done, policy.table = left

    def told() -> None:
        if progress is not None:
            progress(min((done.drilled + done.made) / decisions, 1.0))

    drilled, drill_s = done.drilled, 0.0
    if done.drilled < decisions - practice:
        drill_began = time.perf_counter()
        drill = Drill(settings, trace, model, tick_s, seed)
        policy.table = drill.run(policy.table, done, decisions - practice, checkpoint, told)
        drill_s = time.perf_counter() - drill_began
    practise(settings, trace, model, policy, rules, done, practice, tick_s, seed, checkpoint, told)
    policy.save()
    checkpoint.forget()
    return LearnReport(
        decisions=done.drilled + done.made,
        episodes=done.drills + done.episodes,
        trials=done.trials,
        states=len(policy.table),
        updates=policy.table.updates,
        reward_mean=done.reward_sum / max(done.rewards, 1),
        elapsed_s=time.perf_counter() - began,
        decisions_per_s=(done.drilled - drilled) / drill_s if drill_s else 0.0,
        actions=dict(done.actions),
        path=str(policy.path),
        planner_path=str(settings.planner_path),
        planner_sla=model.sla,
        planner_cost=model.cost,
        resumed=left is not None,
    )


def _digest(
    settings: Settings,
    trace: Trace,
    model: DemandModel,
    table: QTable,
    decisions: int,
    practice: int,
    tick_s: float,
    seed: int,
) -> str:
    """Of all that the result of a run depends on."""
    found = hashlib.sha256()
    for array in (trace.arrivals, trace.durations):
        found.update(array.tobytes())
    about = (
        *(
            tree.model_dump_json()
            for tree in (settings.planner, settings.limits, settings.fallback, settings.ml.scheduling)
        ),
        msgspec.json.encode(model).decode(),
        *(trace.start, trace.end, decisions, practice, tick_s, seed),
    )
    found.update(repr(about).encode())
    found.update(table.dump())
    return found.hexdigest()
