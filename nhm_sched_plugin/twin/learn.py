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

import contextlib
import datetime as dt
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, set_aside
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.calibrate import calibrate, recent
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
"""A calibration is used again for as long as the trace has grown by less,"""
_ALIKE: Final = 1.25
"""and its mean service time and tickets an hour differ by no more than this factor."""
_SHORTEST_S: Final = 3600.0
_FEWEST: Final = 20
"""Tickets. There is nothing to learn from less."""
_DAY: Final = 86_400.0
Told = Callable[[float], Any]
_log = logging.getLogger(__name__)


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
    planner_reused: bool = False
    """The calibration of an earlier run was fresh enough."""
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
    notes: list[str] = []
    """What to know about these figures."""


def calibrated(
    settings: Settings, trace: Trace, *, again: bool = False, seed: int = 0, progress: Told | None = None
) -> DemandModel:
    """The planner's calibration: the file's where it is fresh, else a new one, which is saved.

    Fresh: made with the same start-up time, SLA wait and cost of a late ticket, from tickets that end at most a week
    before those of `trace`, and not after them, and are about as many and as long. A file that is of no use is kept
    beside the new one. Raises `ModelError` when the file cannot be written.
    """
    kept = None if again else _fresh(settings, trace)
    if kept is not None:
        return kept
    model = calibrate(settings, trace, seed=seed, progress=progress)
    path = settings.planner_path
    try:
        DemandModel.load(path)
    except FileNotFoundError:
        pass
    except ModelError as error:
        _log.warning("%s. It is kept as %s.", error, set_aside(path))
    model.save(path)
    return model


def _fresh(settings: Settings, trace: Trace) -> DemandModel | None:
    try:
        model = DemandModel.load(settings.planner_path)
    except (FileNotFoundError, ModelError):
        return None
    planner, seen = settings.planner, recent(trace)
    asked = planner.startup_s, planner.sla_wait_s, planner.late_cost
    if (model.startup_s, model.sla_wait_s, model.late_cost) != asked or not 0 <= trace.end - model.end <= _FRESH_S:
        return None
    pace, was = (
        tickets / max(end - start, 1.0)
        for tickets, start, end in ((len(seen), seen.start, seen.end), (model.tickets, model.start, model.end))
    )
    alike = _like(pace, was) and _like(seen.service_mean_s, model.service_s)
    return model if alike else None


def _like(one: float, other: float) -> bool:
    return max(one, other) <= _ALIKE * min(one, other)


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
    interrupted run; `moments` are tried on the days held out. Raises as `pretrain` does, and `TraceError` for a history
    of less than an hour or 20 tickets.
    """
    if trace.end - trace.start < _SHORTEST_S or len(trace) < _FEWEST:
        raise TraceError(
            f"{trace.name}: {len(trace)} tickets in {trace.end - trace.start:,.0f} s say too little to learn from; an "
            f"hour and {_FEWEST} tickets are needed, a week or more is good"
        )

    def telling(what: str) -> Told | None:
        return None if progress is None else lambda share: progress(what, share)

    days = (trace.end - trace.start) / _DAY
    split = trace.end - math.floor(days * HELD_OUT) * _DAY
    past, kept = trace.slice(trace.start, split), trace.slice(split, trace.end)
    if not len(past):
        past, kept = trace, trace.slice(trace.end, trace.end)
    with _alone(settings.q_table_path):
        reused = None if recalibrate else _fresh(settings, past)
        told = telling("calibrate the planner")
        model = reused or calibrated(settings, past, again=True, seed=seed, progress=told)
        course = _Course(decisions, min((decisions + 1) // 2, PRACTICE), tick_s, seed)
        learned = _learn(settings, past, model, course, None, fresh, telling("learn"))
        report, table = learned.report, learned.policy.table
        table.gap = None
        if len(kept):
            told = telling("check the confidence")
            report.reliability = reliability(
                settings, table, kept, model, past=past, tick_s=tick_s, seed=seed, moments=moments, progress=told
            )
            told = telling("measure against rules and oracle")
            table.gap = gap_of(settings, table, model, kept, past=past, tick_s=tick_s, progress=told)
        report.gap_closed, report.planner_reused = table.gap, reused is not None
        learned.save()
    if reused is not None:
        made_to = dt.datetime.fromtimestamp(model.end, dt.UTC)
        report.notes.append(
            f"the planner's calibration of an earlier run is used, made from {model.tickets:,} tickets until "
            f"{made_to:%Y-%m-%d %H:%M} UTC; --recalibrate makes a new one"
        )
    if trace.drawn:
        report.notes.append(
            f"{trace.name} has no service times: they are drawn, {trace.service_mean_s:,.0f} s on average"
        )
    return report


@contextlib.contextmanager
def _alone(q_table: Path) -> Iterator[None]:
    """One run in a folder: two would write the planner of one beside the Q-table of the other. Raises `ModelError`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(Checkpoint(q_table).path, wait=False))
        except BlockingIOError:
            raise ModelError(
                f"{q_table.parent}: another pre-training is at work in this folder; wait for it, or set data_dir to "
                "another"
            ) from None
        except OSError as error:
            why = error.strerror or error
            raise ModelError(
                f"{q_table.parent}: cannot be written ({why}); data_dir must be a folder to write in"
            ) from None
        yield


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
    with _alone(settings.q_table_path if path is None else path):
        model = calibrated(settings, trace, seed=seed)
        course = _Course(decisions, min(decisions if practice is None else practice, decisions, PRACTICE), tick_s, seed)
        learned = _learn(settings, trace, model, course, path, fresh, progress)
        learned.save()
    return learned.report


class _Course(NamedTuple):
    """What there is to learn."""

    decisions: int
    practice: int
    """Of them in Python, with the rules and with trials."""
    tick_s: float
    seed: int


class _Learned(NamedTuple):
    """A policy that has learned in the twin; nothing but its checkpoint is on the disk before `save`."""

    report: LearnReport
    policy: QPolicy
    checkpoint: Checkpoint

    def save(self) -> None:
        """Save the Q-table; there is nothing to go on with any more. Raises `ModelError`."""
        self.policy.save()
        self.checkpoint.forget()


def _learn(
    settings: Settings,
    trace: Trace,
    model: DemandModel,
    course: _Course,
    path: Path | None,
    fresh: bool,
    progress: Told | None,
) -> _Learned:
    """Drill and practice, from the checkpoint on where there is one."""
    began, (decisions, practice, tick_s, seed) = time.perf_counter(), course
    rules = RulesController(settings)
    policy = QPolicy(settings, rules.rules, path=path, autosave=False)
    policy.planner.model = model
    policy.table.forget_trials()
    checkpoint = Checkpoint(policy.path)
    run = _digest(settings, trace, model, policy.table, course)
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
    # Who is interrupted from here on finds everything done.
    checkpoint.keep(done, lambda: policy.table, now=True)
    report = LearnReport(
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
    return _Learned(report, policy, checkpoint)


def _digest(settings: Settings, trace: Trace, model: DemandModel, table: QTable, course: _Course) -> str:
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
        *(trace.start, trace.end, *course),
    )
    found.update(repr(about).encode())
    found.update(table.dump())
    return found.hexdigest()
