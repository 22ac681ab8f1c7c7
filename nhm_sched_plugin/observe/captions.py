"""What each part of a report means, in sentences with its own numbers: what you see, and what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.report_data import HorizonError, HourLoad, PolicyResult, ReportData
from nhm_sched_plugin.observe.series import coverage, total_error

__all__ = ["Caption", "Card", "cards", "confidence", "decisions", "errors", "load", "outcomes", "reward", "workers"]


class Caption(NamedTuple):
    """Two sentences below a plot. Together they are also its text for those who do not see it."""

    see: str
    means: str


class Card(NamedTuple):
    """A key figure."""

    value: str
    label: str
    hint: str


def cards(data: ReportData) -> list[Card]:
    """The key figures that the data allows, most important first."""
    made = []
    first, others = (data.policies[0], data.policies[1:]) if data.policies else (None, [])
    if first is not None and first.sla_pct is not None:
        rest = [f"{other.name} {other.sla_pct:.1f} %" for other in others if other.sla_pct is not None]
        wait = f" within {words.duration(data.sla_wait_s)}" if data.sla_wait_s else " in time"
        made.append(Card(f"{first.sla_pct:.1f} %", f"of tickets started{wait}", "; ".join(rest)))
    if first is not None and first.worker_hours is not None:
        rest = [f"{_against(first, other)} {other.name}" for other in others if other.worker_hours]
        made.append(Card(words.number(first.worker_hours), "worker-hours used", "; ".join(rest)))
    near = min((error for error in data.horizon_errors if error.wape_pct is not None), key=_horizon, default=None)
    if near is not None and near.wape_pct is not None:
        label = f"forecast error, {words.duration(near.horizon_minutes * 60)} ahead"
        hint = "" if near.naive_wape_pct is None else f"“as a week before”: {near.naive_wape_pct:.1f} %"
        made.append(Card(f"{near.wape_pct:.1f} %", label, hint))
    if data.tickets is not None:
        made.append(Card(words.number(data.tickets), "tickets", _span(data)))
    total = data.decisions if data.decisions is not None else sum(count.count for count in data.decision_counts)
    if total:
        followed = sum(count.count for count in data.decision_counts if count.reason == "applied")
        hint = f"{words.percent(followed / total)} followed the policy" if data.decision_counts else ""
        made.append(Card(words.number(total), "decisions", hint))
    weight = sum(sample.weight for sample in data.rewards)
    if weight:
        mean = sum(sample.reward * sample.weight for sample in data.rewards) / weight
        made.append(Card(f"{mean:+.3f}", "mean reward", "from -1 worse to +1 better; about 0 when all is steady"))
    return made


def _horizon(error: HorizonError) -> int:
    return error.horizon_minutes


def _span(data: ReportData) -> str:
    starts = [hour.epoch for hour in data.load] or [phase.start for phase in data.phases]
    ends = [hour.epoch + 3600 for hour in data.load] or [phase.end for phase in data.phases]
    return f"in {words.duration(max(ends) - min(starts))}" if starts else ""


def _against(first: PolicyResult, other: PolicyResult) -> str:
    """`12 % fewer than`, for a sentence that goes on with the other's name."""
    mine, theirs = first.worker_hours or 0.0, other.worker_hours or 0.0
    change = (mine - theirs) / theirs
    if abs(change) < 0.0005:
        return "as many as"
    return f"{words.percent(abs(change), 1)} {'fewer' if change < 0 else 'more'} than"


def load(hours: Sequence[HourLoad], phases: bool) -> Caption:
    """The load and its forecast."""
    see = (
        "The thin line is the number of tickets that came in each hour; "
        "the coloured line is what had been expected one hour before"
    )
    inside, judged = coverage(hours)
    if judged:
        see += ", and the pale band is the range in which 8 of 10 hours should end up"
    if phases:
        see += ". The names on top say how large a share of the decisions the policy could make"
    wape = total_error(hours)
    means = []
    if wape is not None:
        means.append(
            f"Over these {words.duration(len(hours) * 3600)} the forecast misjudged {wape:.1f} % of the tickets."
        )
    if judged:
        share = words.percent(inside / judged)
        means.append(f"{share} of the hours lie inside the band (80 % would be perfect), {_band(inside, judged)}.")
    return Caption(see + ".", " ".join(means))


def _band(inside: int, judged: int) -> str:
    """What that says of a band for 8 of 10 hours, beyond what so few hours show by chance (95 % of the time)."""
    off = inside / judged - 0.8
    if abs(off) <= 1.96 * math.sqrt(0.8 * 0.2 / judged):
        return f"as near to it as {words.count(judged, 'hour')} can tell"
    slightly = "a little " if abs(off) <= 0.1 else ""
    return f"so the band is {slightly}{'too narrow' if off < 0 else 'wider than it needs to be'}"


def errors(horizons: Sequence[HorizonError]) -> Caption:
    """The forecast error by horizon."""
    see = "How wrong the forecasts were, by how far ahead they looked; shorter bars are better."
    judged = [error for error in sorted(horizons, key=_horizon) if error.wape_pct is not None]
    means = (
        [
            f"Looking {words.duration(error.horizon_minutes * 60)} ahead, "
            f"{error.wape_pct:.1f} % of the tickets were misjudged."
            for error in (judged[0], judged[-1])[: len(judged)]
        ]
        if judged
        else []
    )
    compared = [
        (error, error.naive_wape_pct - error.wape_pct)
        for error in judged
        if error.naive_wape_pct is not None and error.wape_pct is not None
    ]
    if compared:
        better = sum(gain > 0 for _, gain in compared)
        tried = words.count(len(compared), "horizon")
        means.append(f"Simply expecting the same as a week before is beaten at {better} of {tried}.")
    return Caption(see, " ".join(means))


def workers(policies: Sequence[PolicyResult]) -> Caption:
    """Workers over time."""
    see = (
        "Each line is the number of workers that one way of deciding kept running; "
        "the grey area below shows the tickets that came."
    )
    ranges = []
    for policy in policies:
        if policy.timeline:
            counts = [point[2] for point in policy.timeline]
            low, high = words.number(min(counts)), words.number(max(counts))
            ranges.append(f"{policy.name} always {high}" if low == high else f"{policy.name} between {low} and {high}")
    means = f"Workers used: {', '.join(ranges)}. " if ranges else ""
    return Caption(see, means + "A line far above the load costs money; one that rises too late makes tickets wait.")


def outcomes(policies: Sequence[PolicyResult], target_pct: float | None) -> Caption:
    """SLA and worker-hours."""
    see = (
        "The dots show the share of tickets that started in time (further right is better), "
        "the bars the worker-hours that this took (shorter is cheaper)."
    )
    first, means = policies[0], []
    for other in policies[1:4]:  # a sentence each; the table has them all
        parts = []
        if first.sla_pct is not None and other.sla_pct is not None:
            gap = first.sla_pct - other.sla_pct
            side = "more" if gap > 0 else "fewer"
            parts.append(
                f"{abs(gap):.1f} points {side} tickets in time" if abs(gap) >= 0.05 else "as many tickets in time"
            )
        if first.worker_hours is not None and other.worker_hours:
            parts.append(f"{_against(first, other).removesuffix(' than').removesuffix(' as')} worker-hours")
        if parts:
            means.append(f"Against {other.name}, {first.name} had {' with '.join(parts)}.")
    if target_pct is not None and first.sla_pct is not None:
        verdict = "is met" if first.sla_pct >= target_pct else "is missed"
        means.append(f"The target of {target_pct:g} % {verdict} by {first.name}.")
    return Caption(see, " ".join(means))


def trade(data: ReportData) -> Caption:
    """SLA over cost."""
    see = "Each mark is one way of deciding: the higher, the more tickets were in time; the further left, the cheaper."
    if data.frontiers:
        see += " The lines show what the rivals can reach on these tickets when somebody turns their knob."
    if any(policy.name == "oracle" for policy in data.policies):
        see += " The star knows every arrival beforehand."
    first = data.policies[0]
    if first.equal_sla_ratio is None:
        return Caption(see, "Read both together; each alone is easy.")
    share = abs(1 - first.equal_sla_ratio)
    word = "less" if first.equal_sla_ratio < 1 else "more"
    return Caption(
        see,
        f"{first.name} paid {words.percent(share, 1)} {word} than the best rival would for the same service.",
    )


def decisions(data: ReportData) -> Caption:
    """Decisions by phase."""
    see = "Each bar is one phase of the rollout and shows how its decisions divide."
    total = sum(count.count for count in data.decision_counts)
    followed = sum(count.count for count in data.decision_counts if count.reason == "applied")
    share = words.percent(followed / total)
    means = f"Of {words.count(total, 'decision')}, {words.number(followed)} ({share}) followed the policy."
    last = data.decision_counts[-1].phase
    if last:
        inside = [count for count in data.decision_counts if count.phase == last]
        followed = sum(count.count for count in inside if count.reason == "applied")
        share = words.percent(followed / max(1, sum(count.count for count in inside)))
        means += f" In the last phase (“{last}”) it was {share}."
    return Caption(see, means)


def reward(data: ReportData, window_s: float) -> Caption:
    """Reward by arm."""
    see = (
        f"The mean reward of the last {words.duration(window_s)}, by rollout group: where the policy could decide "
        "(treatment), where the rules were kept for comparison (control) and where the policy only watched (shadow)."
    )
    arms: dict[str, tuple[float, float]] = {}
    for sample in data.rewards:
        total, weight = arms.get(sample.arm, (0.0, 0.0))
        arms[sample.arm] = (total + sample.reward * sample.weight, weight + sample.weight)
    shown = ", ".join(f"{arm} {total / weight:+.3f}" for arm, (total, weight) in sorted(arms.items()) if weight)
    return Caption(
        see,
        f"Mean over the whole time: {shown}. Above zero, things got better between a decision and its outcome. "
        "When all runs steadily even a perfect policy stays near zero.",
    )


def confidence(values: Sequence[float], threshold: float) -> Caption:
    """The confidence histogram."""
    passed = sum(round(value, 6) >= threshold for value in values)
    share = words.percent(passed / len(values))
    return Caption(
        "How sure the policy was of its advice; only advice right of the dashed line may be followed.",
        f"{words.number(passed)} of {words.number(len(values))} pieces of advice ({share}) "
        f"reached the {threshold:g} that is asked for; for the rest the rules decided.",
    )
