"""Replay a trace under several policies, side by side: SLA, worker-hours, waits, and what was decided.

The time is cut in two. The first part fits the forecaster, pre-trains the policy, sizes the fixed pool and tunes the
rivals; the second is replayed, with the same tickets for everyone and, but for the fixed pool, the same first number of
workers. Several seeds repeat that with other draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.twin.bench import POLICIES, Progress, Rules, checked
from nhm_sched_plugin.twin.contest import Plan, Played, play_seeds, standings, tune
from nhm_sched_plugin.twin.loads import Load
from nhm_sched_plugin.twin.results import (
    Count,
    HourLine,
    PolicyResult,
    ReplayReport,
    Scored,
    SeedResult,
    measured,
)
from nhm_sched_plugin.twin.rivals import Scene
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.twin.tuning import Tuned, first_workers

__all__ = ["POLICIES", "Count", "HourLine", "PolicyResult", "ReplayReport", "Scored", "measured", "replay"]


def replay(
    trace: Trace | Load,
    policies: Sequence[str] = POLICIES,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    train_fraction: float = 0.7,
    tick_s: float = 15.0,
    startup_s: float | None = None,
    sla_wait_s: float | None = None,
    sla_target: float = 0.95,
    seed: int = 0,
    seeds: int = 1,
    frontier_seeds: int = 0,
    jobs: int = 1,
    learn_decisions: int = 1_000_000,
    progress: Progress | None = None,
) -> ReplayReport:
    """Replay the last part of `trace` under each of `policies` (see `POLICIES`, or MODULE:FACTORY of your own).

    A `Load` draws its tickets for each seed and knows where it is cut; a `Trace` is the same for every seed, and is cut
    at `train_fraction`. `startup_s` and `sla_wait_s` default to `settings.planner`. The plugin runs as a real
    `SchedulerHost` at 100 % rollout, recording off, in a temporary folder: neither the user's Q-table nor the records
    are touched. It starts from the user's Q-table when there is one, else it is pre-trained for `learn_decisions` on
    the training part. The rivals' knobs are tuned to `sla_target` on the first seed's training part; their frontiers
    are swept on the replayed tickets of `frontier_seeds` seeds. `jobs` processes share the seeds.

    Raises `TraceError` (a ValueError) for an unknown policy or a trace that leaves no tickets in either part.
    """
    names = checked(policies)
    if seeds < 1 or jobs < 1 or frontier_seeds < 0:
        raise TraceError(f"seeds {seeds} and jobs {jobs} must be 1 or more, frontier_seeds {frontier_seeds} 0 or more")
    if not tick_s > 0:
        raise TraceError(f"tick_s is {tick_s}; it must be more than 0")
    known = load_settings(settings)
    load = trace if isinstance(trace, Load) else Load.fixed(trace)
    rules = Rules(
        tick_s=tick_s,
        startup_s=known.planner.startup_s if startup_s is None else startup_s,
        sla_wait_s=known.planner.sla_wait_s if sla_wait_s is None else sla_wait_s,
        sla_target=sla_target,
        learn_decisions=learn_decisions,
        classes=load.classes,
    )
    plan = Plan(load, tuple(names), known, rules, train_fraction)
    train, test = plan.parts(seed)
    if not len(train) or not len(test):
        raise TraceError(f"{load.name}: {len(train)} tickets before and {len(test)} after the split; both need some")
    knobs = tune(plan, seed, jobs, progress)
    played = play_seeds(
        plan,
        range(seed, seed + seeds),
        {found.policy: found.knob for found in knobs},
        frontier_seeds=frontier_seeds,
        jobs=jobs,
        progress=progress,
    )
    return _report(plan, train, test, seed, knobs, played)


def _report(
    plan: Plan, train: Trace, test: Trace, seed: int, knobs: list[Tuned], played: Sequence[Played]
) -> ReplayReport:
    rules, limits = plan.rules, plan.settings.limits
    results = [each.result for each in played]
    reference = "plugin" if "plugin" in plan.names else plan.names[0]
    scene = Scene(train, rules.tick_s, rules.startup_s, rules.sla_wait_s, limits.min_workers, limits.max_workers)
    return ReplayReport(
        trace=plan.load.name,
        tickets=len(test),
        train_tickets=len(train),
        start=test.start,
        end=test.end,
        erlangs=test.load,
        service_mean_s=test.service_mean_s,
        tick_s=rules.tick_s,
        startup_s=rules.startup_s,
        sla_wait_s=rules.sla_wait_s,
        seed=seed,
        first_workers=first_workers(scene),
        forecast_mape=played[0].mape,
        policies=standings(results, reference, hours=(test.end - test.start) / 3600),
        notes=[*_notes(plan, knobs, len(results), test.drawn), *played[0].notes],
        oracle_hours=sum(result.oracle_hours for result in results) / len(results),
        reference=reference,
        sla_target=rules.sla_target,
        tuned=knobs,
        seeds=[_slim(result) for result in results],
        frontiers=results[0].frontiers,
    )


def _notes(plan: Plan, knobs: Sequence[Tuned], seeds: int, drawn_times: bool) -> list[str]:
    notes = [
        f"{found.policy}: {found.what} {found.knob:g}, "
        + (
            f"the cheapest that starts {100 * plan.rules.sla_target:g} % in time on the training part"
            if found.reached
            else f"the most room that it has: only {100 * found.sla:.1f} % in time on the training part"
        )
        for found in knobs
    ]
    if seeds > 1:
        drawn = (
            "each with tickets of its own, the same for everyone"
            if plan.load.drawn
            else "of the policies alone: nothing about these tickets is drawn, so only what draws itself differs"
        )
        notes.append(f"{seeds} seeds, {drawn}; intervals are Student's t, 95 %, over differences paired by seed")
    if drawn_times:
        notes.append("the tickets have no service times of their own: they are drawn (--service-mean, --service-sigma)")
    if plan.rules.classes:
        waits = [plan.rules.sla_wait_s if kind.sla_wait_s is None else kind.sla_wait_s for kind in plan.rules.classes]
        each = ", ".join(f"{kind.name} {wait:g} s" for kind, wait in zip(plan.rules.classes, waits, strict=True))
        notes.append(f"each class of tickets is judged by its own wait: {each}")
    return notes


def _slim(result: SeedResult) -> SeedResult:
    """Without what would make the file large: it is told once, for the first seed."""
    policies = [msgspec.structs.replace(policy, decisions=[], hours=[]) for policy in result.policies]
    return msgspec.structs.replace(result, policies=policies)
