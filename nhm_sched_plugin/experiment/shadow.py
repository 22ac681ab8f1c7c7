"""The shadow report: what the records say about following the policy everywhere, as one value for page and JSON."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.experiment.arms import Comparison, compare, fixed
from nhm_sched_plugin.experiment.bootstrap import Bools, Floats, Replicates, clusters, interval, multiplicities, sums
from nhm_sched_plugin.experiment.log import Decided, decided, observed, sample
from nhm_sched_plugin.experiment.ope import Evaluated, estimates
from nhm_sched_plugin.experiment.verdict import Step, Verdict, judge
from nhm_sched_plugin.types import Arm

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Agreement", "ArmResult", "Bin", "Pair", "ShadowReport", "comparisons", "read", "shadow_report"]

MOST: Final = 500_000
"""Decisions looked at one by one; of more, the newest."""
MIN_IN_BIN: Final = 30
_BINS: Final = 10


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How often policy and rules would do the same."""

    name: str
    """A state key, or everything."""
    decisions: int
    """Where the policy's advice would be followed (and the rules decided, so that both are known)."""
    same: int
    more: int = 0
    """The policy would have more workers."""
    fewer: int = 0
    other: int = 0
    """Another action, or the difference is not known."""
    median_apart: float | None = None
    """Workers, policy less rules, where they differ; None: never, or not known."""

    @property
    def share(self) -> float:
        return self.same / self.decisions if self.decisions else math.nan


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """How often the rules did this while the policy advised that."""

    rules: str
    policy: str
    decisions: int
    same: int


class ArmResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was reached in an arm."""

    arm: str
    decisions: int
    rewarded: int
    mean_reward: float | None = None
    low: float | None = None
    high: float | None = None
    sla: float | None = None


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Recommendations of about the same confidence; those followed, beside those that could have been."""

    low: float
    high: float
    recommendations: int
    treatment: int = 0
    control: int = 0
    """Rewarded outcomes where policy and rules differ, and the advice was followed, or drawn not to be."""
    mean_confidence: float | None = None
    at_least_as_good: float | None = None
    """Share of (treatment, control) pairs in which the reward of the first is no less (Mann-Whitney)."""


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that the report shows. Rewards are in [-1, 1]; times are Unix seconds."""

    verdict: Verdict
    first: float
    last: float
    """First and last decision looked at."""
    ticks: bool
    """Control ticks are looked at; else tickets."""
    decisions: int
    others: int
    """Decisions of the other kind in the same time."""
    left_out: int
    """Older ones than the newest `MOST`."""
    hosts: int
    asked: int
    """The policy was asked: load enough, forecast there."""
    followable: int
    """And its advice would be followed: sure enough, no veto."""
    reasons: dict[str, int]
    refused: int
    """Decisions of both kinds that the host reported as not applied."""
    learned_from: int
    """Decisions of both kinds with a reward: the policy learns from every one, whoever decided."""
    updates: int | None
    """Of the Q-table, all times together; None: there is none."""
    confidence_threshold: float
    confidences: list[int]
    """Recommendations by tenth of confidence; 1.0 is in the last."""
    overall: Agreement
    by_state: list[Agreement]
    by_action: list[Pair]
    apart: list[int]
    """Decisions by workers that the policy would have more than the rules, in the bins of `apart_edges`."""
    apart_edges: list[float]
    evaluated: Evaluated
    evaluated_on: str
    """`ramp` (both arms were possible), `shadow` or `full` (100 %)."""
    episode_minutes: int
    arms: list[ArmResult]
    reward: Comparison
    sla: Comparison
    workers: Comparison
    calibration: list[Bin]
    block_minutes: int
    min_samples: int
    percentages: list[int]
    """Rollout percentages of the time looked at."""


def read(store: Store, settings: Settings, window_s: float | None = None) -> tuple[Decided, bool, list[dict[str, Any]]]:
    """The decisions of the last `window_s` seconds before the newest one (None: all), and whether they are ticks.

    Control ticks where any has a reward, else tickets. Also what `questions.kinds` counts in that time.
    Raises `StoreError` when there is none.
    """
    from nhm_sched_plugin.store import questions

    last = questions.last_decision(store)
    if last is None:
        raise StoreError(
            "the records hold no decisions: let a host run with recording.enabled (in shadow mode: "
            "rollout.percentage 0), bring them in with `nhm-sched drain`, and ask again"
        )
    since = None if window_s is None else dt.datetime.fromtimestamp(last - window_s, dt.UTC)
    counted = questions.kinds(store, since)
    ticks = max(counted, key=lambda kind: (kind["rewarded"] > 0, kind["tick"]))["tick"] == 1
    frame = questions.decision_log(store, ticks=ticks, since=since, most=MOST)
    return decided(frame, settings, ticks=ticks), ticks, counted


def shadow_report(
    store: Store,
    settings: Settings,
    *,
    window_s: float | None = None,
    episode_minutes: int | None = None,
    config: str = "",
) -> ShadowReport:
    """Look at the records. Raises `StoreError` when they hold no decision.

    Args:
        window_s: seconds before the newest decision; None: all of them.
        episode_minutes: of control ticks; None: a block.
        config: the configuration file, for the commands that the verdict names.
    """
    found, ticks, counted = read(store, settings, window_s)
    name, mask = _regime(found)
    evaluated = estimates(sample(found.where(mask), settings, ticks=ticks, episode_minutes=episode_minutes))
    reward, sla, workers = comparisons(found, settings, ticks=ticks)
    of_kind = next(kind for kind in counted if kind["tick"] == int(ticks))
    asked, followable = found.advised != "", found.followable
    # Where the rules decided both sides are known; where the policy did, the rules are so only by its confidence.
    both = followable & found.by_rules
    advised = found.where(both if both.any() else followable)
    overall = _agreement("all states", advised)
    percentages = sorted({round(float(value)) for value in np.unique(found.percentage)})
    step = _step(found, name, overall, settings, config)
    verdict = judge(step, evaluated, (reward, sla, workers), settings)
    edges, apart = _histogram(found)
    return ShadowReport(
        verdict=verdict,
        first=float(found.at.min()),
        last=float(found.at.max()),
        ticks=ticks,
        decisions=len(found),
        others=sum(kind["decisions"] for kind in counted if kind["tick"] != int(ticks)),
        left_out=max(0, of_kind["decisions"] - len(found)),
        hosts=len(np.unique(found.host)),
        asked=int(asked.sum()),
        followable=int(followable.sum()),
        reasons=_counts(found.reason),
        refused=sum(kind["refused"] for kind in counted),
        learned_from=sum(kind["rewarded"] for kind in counted),
        updates=_updates(settings),
        confidence_threshold=settings.optimizer.recommendation_confidence_threshold,
        confidences=_tenths(found.confidence[asked]),
        overall=overall,
        by_state=_by_state(advised),
        by_action=_pairs(advised),
        apart=apart,
        apart_edges=edges,
        evaluated=evaluated,
        evaluated_on=name,
        episode_minutes=episode_minutes or settings.rollout.block_minutes,
        arms=[_arm(arm, found.where(found.arm == arm), settings) for arm in Arm if (found.arm == arm).any()],
        reward=reward,
        sla=sla,
        workers=workers,
        calibration=_calibration(found),
        block_minutes=settings.rollout.block_minutes,
        min_samples=settings.experiment.min_samples,
        percentages=percentages,
    )


def _step(found: Decided, regime: str, overall: Agreement, settings: Settings, config: str) -> Step:
    return Step(
        regime=regime,
        percentage=round(float(found.percentage[found.at.argmax()])),
        rewarded=int(np.isfinite(found.reward).sum()),
        asked=int((found.advised != "").sum()),
        followable=int(found.followable.sum()),
        agreement=overall.share,
        span_s=float(found.at.max() - found.at.min()),
        switchback=settings.rollout.unit == "switchback",
        config=config,
        usual=next(iter(_counts(found.reason)), ""),
    )


def comparisons(found: Decided, settings: Settings, *, ticks: bool) -> tuple[Comparison, Comparison, Comparison]:
    """Treatment against control: reward, SLA, and active workers."""
    tuning = settings.experiment

    def against(metric: str, values: Floats) -> Comparison:
        if settings.rollout.unit == "task_type" and not ticks:
            return fixed(metric)
        seen = observed(found, values, settings, ticks=ticks)
        return compare(metric, seen, min_samples=tuning.min_samples, level=tuning.confidence_threshold)

    ended = np.where(np.isfinite(found.reward), found.workers, np.nan)
    return against("reward", found.reward), against("SLA", found.sla), against("workers", ended)


def _regime(found: Decided) -> tuple[str, Bools]:
    """What to evaluate on: the ramp where there is one, since only there both arms were possible."""
    rewarded = np.isfinite(found.reward)
    masks = {"ramp": (found.chance > 0) & (found.chance < 1), "shadow": found.chance == 0, "full": found.chance == 1}
    for name, mask in masks.items():
        if (mask & rewarded).any():
            return name, mask
    return "shadow", masks["shadow"]


def _agreement(name: str, found: Decided) -> Agreement:
    known = found.apart[~found.same & np.isfinite(found.apart)]
    more, fewer = int((known > 0).sum()), int((known < 0).sum())
    same = int(found.same.sum())
    return Agreement(
        name=name,
        decisions=len(found),
        same=same,
        more=more,
        fewer=fewer,
        other=len(found) - same - more - fewer,
        median_apart=float(np.median(known)) if len(known) else None,
    )


def _by_state(found: Decided) -> list[Agreement]:
    states, counts = np.unique(found.state.astype(str), return_counts=True)
    return [_agreement(str(states[i]), found.where(found.state == states[i])) for i in np.argsort(-counts)]


def _pairs(found: Decided) -> list[Pair]:
    """Only where the rules' action was executed: elsewhere it is not recorded."""
    seen = found.where(found.by_rules)
    pairs: dict[tuple[str, str], list[int]] = {}
    for rules, policy, same in zip(seen.action, seen.advised, seen.same, strict=True):
        entry = pairs.setdefault((str(rules), str(policy)), [0, 0])
        entry[0] += 1
        entry[1] += bool(same)
    made = [Pair(rules=rules, policy=policy, decisions=n, same=s) for (rules, policy), (n, s) in pairs.items()]
    return sorted(made, key=lambda pair: -pair.decisions)


def _histogram(found: Decided) -> tuple[list[float], list[int]]:
    known = found.apart[found.followable & np.isfinite(found.apart) & ~found.same]
    if not len(known):
        return [], []
    widest = max(1.0, float(np.quantile(np.abs(known), 0.98)))
    width = max(1.0, math.ceil(widest / 10))
    edges = np.arange(-10.0, 11.0) * width  # 0 is an edge: no bar holds both signs
    counts = np.histogram(np.clip(known, edges[0], edges[-1]), edges)[0]
    return edges.tolist(), counts.tolist()


def _counts(values: Any) -> dict[str, int]:
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(names[i]): int(counts[i]) for i in np.argsort(-counts)}


def _tenths(values: Floats) -> list[int]:
    counts = np.histogram(np.clip(values[np.isfinite(values)], 0.0, 1.0), _BINS, (0.0, 1.0))[0]
    return [int(count) for count in counts]


def _arm(arm: Arm, found: Decided, settings: Settings) -> ArmResult:
    rewarded = found.where(np.isfinite(found.reward))
    known = found.sla[np.isfinite(found.sla)]
    plain = ArmResult(
        arm=arm.value,
        decisions=len(found),
        rewarded=len(rewarded),
        sla=float(known.mean()) if len(known) else None,
    )
    if not len(rewarded):
        return plain
    cluster = clusters(rewarded.at, 60.0 * settings.rollout.block_minutes)
    count = int(cluster.max()) + 1
    total, size = sums(rewarded.reward, cluster, count), sums(np.ones(len(rewarded)), cluster, count)
    times = multiplicities(count)
    mean = Replicates(float(total.sum() / size.sum()), (times @ total) / (times @ size))
    low, high = interval(mean, count)
    ends = (low, high) if math.isfinite(low) else (None, None)
    return msgspec.structs.replace(plain, mean_reward=mean.value, low=ends[0], high=ends[1])


def _calibration(found: Decided) -> list[Bin]:
    """Only where both arms were possible and differ: elsewhere nothing shows what the other would have brought."""
    bins = []
    mixed = found.differs & np.isfinite(found.reward) & (found.chance > 0) & (found.chance < 1)
    number = np.minimum(np.nan_to_num(found.confidence, nan=-1.0) * _BINS, _BINS - 1).astype(np.int64)
    for tenth in range(_BINS):
        here = (number == tenth) & (found.confidence >= 0)
        treatment = found.reward[here & mixed & (found.arm == Arm.TREATMENT)]
        control = np.sort(found.reward[here & mixed & (found.arm == Arm.CONTROL)])
        enough = min(len(treatment), len(control)) >= MIN_IN_BIN
        bins.append(
            Bin(
                low=tenth / _BINS,
                high=(tenth + 1) / _BINS,
                recommendations=int(here.sum()),
                treatment=len(treatment),
                control=len(control),
                mean_confidence=float(found.confidence[here & mixed].mean()) if enough else None,
                at_least_as_good=float(np.searchsorted(control, treatment + 1e-12, "right").mean() / len(control))
                if enough
                else None,
            )
        )
    return bins


def _updates(settings: Settings) -> int | None:
    from nhm_sched_plugin.errors import ModelError
    from nhm_sched_plugin.policy.qtable import QTable

    try:
        return QTable.load(settings.q_table_path).updates if settings.q_table_path.exists() else None
    except ModelError:
        return None
