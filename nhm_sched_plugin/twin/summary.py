"""A replay as the report and the terminal summary show it."""

from __future__ import annotations

import datetime as dt

from nhm_sched_plugin.observe.report_data import DecisionCount, PolicyResult, ReportData
from nhm_sched_plugin.twin.results import PolicyResult as Replayed
from nhm_sched_plugin.twin.results import ReplayReport

__all__ = ["report_data", "shown"]


def report_data(report: ReplayReport, command: str = "nhm-sched replay") -> ReportData:
    """What `observe.report` and `observe.summary` need of a replay."""
    start, end = (f"{dt.datetime.fromtimestamp(at, dt.UTC):%-d %B %Y}" for at in (report.start, report.end))
    plugin = [result for result in report.policies if result.name == "plugin"]
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
        tickets=report.tickets,
        decisions=sum(count.count for result in plugin for count in result.decisions),
        policies=[shown(result) for result in report.policies],
        sla_wait_s=report.sla_wait_s,
        decision_counts=[
            DecisionCount(
                action=count.action, source=count.source, arm=count.arm, reason=count.reason, count=count.count
            )
            for result in plugin
            for count in result.decisions
        ],
        command=command,
    )


def shown(result: Replayed, note: str = "") -> PolicyResult:
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
        timeline=[(hour.start, float(hour.arrivals), hour.workers, hour.queue) for hour in result.hours],
    )
