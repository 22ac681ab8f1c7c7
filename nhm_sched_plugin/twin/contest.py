"""Several policies on several seeds: the same tickets for everybody within a seed, and what can be said over all.

Differences are paired: a seed's tickets are the same for both policies, so what one seed has more of than another
drops out. Intervals are Student's t over the seeds' differences, 95 %.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from nhm_sched_plugin.decision.reward import gap_closed
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.bench import Bench, Progress, Rules
from nhm_sched_plugin.twin.loads import Load
from nhm_sched_plugin.twin.oracle import oracle
from nhm_sched_plugin.twin.results import Frontier, Interval, PolicyResult, SeedResult
from nhm_sched_plugin.twin.rivals import RIVALS
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.twin.tuning import Tuned, cost_at

__all__ = ["Plan", "Played", "interval", "play_seeds", "standings", "tune"]

_DAY: Final = 86_400.0
_COMPARED: Final = ("sla", "worker_hours", "cost", "wait_p95_s", "wait_p99_s")
_AVERAGED: Final = (
    "tickets",
    "sla",
    "missed",
    "worker_hours",
    "wait_mean_s",
    "wait_p50_s",
    "wait_p95_s",
    "wait_p99_s",
    "scale_events",
    "reward_mean",
    "elapsed_s",
    "finished",
    "busy_hours",
    "cost",
)
_WHOLE: Final = frozenset({"tickets", "missed", "scale_events", "finished"})


class Plan(NamedTuple):
    """What is to be played, for any seed."""

    load: Load
    names: tuple[str, ...]
    settings: Settings
    rules: Rules
    train_fraction: float

    def parts(self, seed: int) -> tuple[Trace, Trace]:
        """The training part and the rest, for a seed."""
        return self.load.parts(seed, self.train_fraction)


class Played(NamedTuple):
    """A seed's results and what was learned on the way."""

    result: SeedResult
    notes: list[str]
    mape: dict[str, float]


def tune(plan: Plan, seed: int, jobs: int, progress: Progress | None) -> list[Tuned]:
    """The rivals' knobs, on the training part of one seed, each rival on its own."""
    tasks = [(_tune, (plan, name, seed)) for name in plan.names if name in RIVALS]
    return list(_each(tasks, jobs, "tune the rivals", progress))


def _tune(plan: Plan, name: str, seed: int, progress: Progress | None) -> Tuned:
    train, test = plan.parts(seed)
    return Bench(plan.settings, train, test, Path(), plan.rules, seed, progress).tune([name])[0]


def play_seeds(
    plan: Plan,
    seeds: Sequence[int],
    knobs: Mapping[str, float],
    *,
    frontier_seeds: int,
    jobs: int,
    progress: Progress | None,
) -> list[Played]:
    """Every policy on every seed, in order of the seeds.

    Where the load is the same for every seed only what draws for itself (the plugin, and policies of the user's own) is
    played again; the others would repeat themselves. The rivals' frontiers are swept on the first `frontier_seeds`.
    """
    drawing = tuple(name for name in plan.names if name == "plugin" or ":" in name)
    tasks = []
    for place, seed in enumerate(seeds):
        mine = plan if place == 0 or plan.load.drawn else plan._replace(names=drawing)
        sweep = place < frontier_seeds and (place == 0 or plan.load.drawn)
        tasks.append((_play, (mine, seed, dict(knobs), sweep)))
    played = list(_each(tasks, jobs, "replay the seeds", progress))
    if plan.load.drawn:
        return played
    first = played[0].result
    return [played[0], *(_completed(later, first) for later in played[1:])]


def _completed(later: Played, first: SeedResult) -> Played:
    found = {result.name: result for result in later.result.policies}
    policies = [found.get(result.name, result) for result in first.policies]
    whole = msgspec.structs.replace(later.result, policies=policies, frontiers=first.frontiers)
    return later._replace(result=whole)


def _play(plan: Plan, seed: int, knobs: Mapping[str, float], sweep: bool, progress: Progress | None) -> Played:
    train, test = plan.parts(seed)
    with tempfile.TemporaryDirectory(prefix="nhm-sched-replay-") as folder:
        bench = Bench(plan.settings, train, test, Path(folder), plan.rules, seed, progress)
        policies = [bench.run(name, knobs) for name in plan.names]
        frontiers = bench.frontiers(plan.names) if sweep else []
    least = oracle(test, plan.rules.startup_s).worker_seconds / 3600
    costed = [
        msgspec.structs.replace(policy, cost=policy.worker_hours / least if least else None) for policy in policies
    ]
    result = SeedResult(seed=seed, tickets=len(test), oracle_hours=least, policies=costed, frontiers=frontiers)
    return Played(result, bench.notes, bench.mape)


def _each(
    tasks: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], jobs: int, what: str, progress: Progress | None
) -> Iterator[Any]:
    """The tasks' results in order, in this process or in several (loky)."""
    if jobs == 1 or len(tasks) < 2:
        for number, (function, arguments) in enumerate(tasks, 1):
            prefix = f"{number}/{len(tasks)} " if len(tasks) > 1 and function is _play else ""
            yield function(*arguments, _prefixed(progress, prefix))
        return
    from joblib import Parallel, delayed

    work = (delayed(function)(*arguments, None) for function, arguments in tasks)
    for done, found in enumerate(Parallel(n_jobs=jobs, return_as="generator")(work), 1):
        if progress is not None:
            progress(what, done / len(tasks))
        yield found


def _prefixed(progress: Progress | None, prefix: str) -> Progress | None:
    if progress is None or not prefix:
        return progress
    return lambda what, share: progress(prefix + what, share)


def standings(results: Sequence[SeedResult], reference: str, *, hours: float) -> list[PolicyResult]:
    """The policies over all seeds: means, differences to `reference`, the gap closed and the cost at equal SLA.

    `hours` is the length of the replayed part: below a day no share of a gap is told. Decisions and hours are those of
    the first seed.
    """
    standing = []
    for place, first in enumerate(results[0].policies):
        every = [result.policies[place] for result in results]
        means = {name: _mean([getattr(policy, name) for policy in every], name) for name in _AVERAGED}
        by_class = {
            kind: statistics.fmean([policy.sla_by_class[kind] for policy in every]) for kind in first.sla_by_class
        }
        equal, how = _equal_sla(results, place)
        changes = {
            "sla_by_class": by_class,
            "equal_sla": equal,
            "equal_sla_how": how,
            "gap_closed": _gap(results, place, hours),
            "differences": {} if first.name == reference else _differences(results, first.name, reference),
        }
        standing.append(msgspec.structs.replace(first, **means, **changes))
    return standing


def _mean(values: Sequence[float | None], name: str) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    mean = statistics.fmean(known)
    return round(mean) if name in _WHOLE else mean


def _named(result: SeedResult, name: str) -> PolicyResult | None:
    return next((policy for policy in result.policies if policy.name == name), None)


def _differences(results: Sequence[SeedResult], name: str, reference: str) -> dict[str, Interval]:
    found = {}
    for figure in _COMPARED:
        here, there = ([getattr(_named(result, policy), figure) for result in results] for policy in (name, reference))
        if None not in here and None not in there:
            found[figure] = interval([mine - other for mine, other in zip(here, there, strict=True)])
    return found


def _gap(results: Sequence[SeedResult], place: int, hours: float) -> Interval | None:
    if hours * 3600 < _DAY:
        return None
    closed = []
    for result in results:
        rules, best = _named(result, "rules"), _named(result, "oracle")
        if rules is None or best is None:
            return None
        share = gap_closed(*(policy.levels(hours) for policy in (result.policies[place], rules, best)))
        if share is not None:
            closed.append(share)
    return interval(closed) if closed else None


def _equal_sla(results: Sequence[SeedResult], place: int) -> tuple[Interval | None, str]:
    """Worker-hours over those of the best rival at the same SLA, on the seeds whose frontiers were swept.

    A rival is compared with the others: its own frontier would always be there to meet it.
    """
    ratios, ways = [], []
    for result in results:
        policy = result.policies[place]
        found = cost_at(_others(result.frontiers, policy.name), policy.sla)
        if found is not None and policy.name != "oracle":
            ratios.append(policy.worker_hours / found.worker_hours)
            ways.append(found.how)
    return (interval(ratios), ", ".join(dict.fromkeys(ways))) if ratios else (None, "")


def _others(frontiers: Sequence[Frontier], name: str) -> list[Any]:
    own = name.partition("=")[0]
    return [point for frontier in frontiers if frontier.policy != own for point in frontier.points]


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value a seed and its 95 % confidence interval: Student's t with n - 1 degrees of freedom.

    One value has no bounds; values that are all alike have bounds that coincide. Raises `ValueError` without values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
