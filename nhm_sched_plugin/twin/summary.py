"""A replay as the report and the terminal summary show it."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Final

from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.report_data import DecisionCount, Difference, Frontier, PolicyResult, ReportData
from nhm_sched_plugin.twin.results import Interval, ReplayReport
from nhm_sched_plugin.twin.results import PolicyResult as Replayed

__all__ = ["report_data", "shown"]


def report_data(report: ReplayReport, command: str = "nhm-sched replay") -> ReportData:
    """What `observe.report` and `observe.summary` need of a replay."""
    start, end = (f"{dt.datetime.fromtimestamp(at, dt.UTC):%-d %B %Y}" for at in (report.start, report.end))
    first = report.result(report.reference)
    ordered = [first, *(result for result in report.policies if result is not first)]
    plugin = [result for result in ordered if result.name == "plugin"]
    drawn = _TIMED if len(ordered) > _MOST_LINES else [result.name for result in ordered]
    return ReportData(
        title=f"Replay of {report.trace}",
        subtitle=(
            f"{report.tickets:,} tickets, {start} to {end}; each takes {report.service_mean_s:,.0f} s on average, "
            f"a worker starts in {report.startup_s:,.0f} s"
        ),
        done=[
            f"Trained on the {report.train_tickets:,} tickets before.",
            f"Replayed {report.tickets:,} tickets under each way of deciding, a check every {report.tick_s:,.0f} s.",
            *report.notes,
        ],
        notes=report.notes,
        tickets=report.tickets,
        decisions=sum(count.count for result in plugin for count in result.decisions),
        policies=[shown(result, timeline=result is first or result.name in drawn) for result in ordered],
        frontiers=[
            Frontier(
                name=rival.policy,
                points=[
                    (point.worker_hours / report.seeds[0].oracle_hours, 100 * point.sla)
                    for point in sorted(rival.points, key=lambda point: point.worker_hours)
                ],
            )
            for rival in report.frontiers
            if report.seeds[0].oracle_hours
        ],
        seeds=len(report.seeds),
        sla_target_pct=100 * report.sla_target,
        sla_wait_s=None if any(result.sla_by_class for result in report.policies) else report.sla_wait_s,
        decision_counts=[
            DecisionCount(
                action=count.action, source=count.source, arm=count.arm, reason=count.reason, count=count.count
            )
            for result in plugin
            for count in result.decisions
        ],
        command=command,
    )


_MOST_LINES: Final = 5
_TIMED: Final = ("rules", "static", "oracle")
"""Whose workers are drawn over time where there are more policies than lines that can be told apart."""


def shown(result: Replayed, note: str = "", *, timeline: bool = True) -> PolicyResult:
    """One policy's figures; `note` is a word on what it is."""
    return PolicyResult(
        name=result.name,
        note=note,
        sla_pct=100 * result.sla,
        worker_hours=result.worker_hours,
        wait_p50_s=result.wait_p50_s,
        wait_p95_s=result.wait_p95_s,
        wait_p99_s=result.wait_p99_s,
        scale_events=result.scale_events,
        reward_mean=result.reward_mean,
        timeline=[(hour.start, float(hour.arrivals), hour.workers, hour.queue) for hour in result.hours]
        if timeline
        else [],
        cost_ratio=result.cost,
        decided_by=_decided_by(result),
        gap_closed_pct=None if result.gap_closed is None else 100 * result.gap_closed.mean,
        equal_sla_ratio=None if result.equal_sla is None else result.equal_sla.mean,
        differences={
            name: _difference(result.differences[figure], factor)
            for figure, (name, factor) in _COMPARED.items()
            if figure in result.differences
        },
    )


_COMPARED: Final = {
    "sla": ("sla_pct", 100.0),
    "cost": ("cost_ratio", 1.0),
    "wait_p95_s": ("wait_p95_s", 1.0),
    "wait_p99_s": ("wait_p99_s", 1.0),
}


def _difference(found: Interval, factor: float) -> Difference:
    low, high = (None if bound is None else factor * bound for bound in (found.low, found.high))
    return Difference(mean=factor * found.mean, low=low, high=high)


def _decided_by(result: Replayed) -> str:
    """The sources of the decisions with their shares, the most frequent first."""
    sources: Counter[str] = Counter()
    for count in result.decisions:
        sources[count.source] += count.count
    total = sources.total()
    names = {source.value: text for source, text in words.SOURCES.items()}
    return ", ".join(f"{names.get(source, source)} {words.percent(n / total)}" for source, n in sources.most_common())
