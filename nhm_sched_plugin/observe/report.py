"""The HTML report: one file without network, scripts or fonts of its own, that explains itself.

`render_report(data, path)` takes whatever parts `ReportData` has; one without data is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.observe import captions, story, words
from nhm_sched_plugin.observe.captions import Caption
from nhm_sched_plugin.observe.page import write_page
from nhm_sched_plugin.observe.report_data import Difference, Example, PolicyResult, ReportData

__all__ = ["render_report"]


class Table(NamedTuple):
    head: list[str]
    rows: list[list[str]]
    note: str = ""


class Section(NamedTuple):
    """One part of the page."""

    name: str
    title: str
    caption: Caption | None = None
    plot: Any = None
    table: Table | None = None


class Story(NamedTuple):
    title: str
    decision_id: str
    chapters: list[story.Chapter]


def render_report(data: ReportData, path: Path) -> Path:
    """Write the report to `path` (its folder is made) and return its absolute path.

    The file is replaced as a whole or not at all. Raises `OSError` when it cannot be written, `ValueError` when an
    example is no decision. Needs the `report` extra (matplotlib, jinja2).
    """
    return write_page(
        "report.html.j2",
        path,
        data=data,
        cards=captions.cards(data),
        sections=[section for build in _SECTIONS if (section := build(data)) is not None],
        stories=[_story(example, data) for example in data.examples],
        made=words.when(data.generated_at if data.generated_at is not None else time.time(), seconds=False),
        took="" if data.duration_s is None else words.duration(round(data.duration_s)),
    )


def _load(data: ReportData) -> Section | None:
    name, title = "load", "The load, and what was expected"
    if not any(hour.actual is not None for hour in data.load):
        return None
    from nhm_sched_plugin.observe import plots

    return Section(name, title, captions.load(data.load, bool(data.phases)), plots.load(data.load, data.phases))


def _errors(data: ReportData) -> Section | None:
    name, title = "errors", "How good the forecasts were"
    horizons = sorted(data.horizon_errors, key=lambda error: error.horizon_minutes)
    if not any(error.wape_pct is not None or error.mape_pct is not None for error in horizons):
        return None
    from nhm_sched_plugin.observe import plots

    rows = [
        [
            words.duration(error.horizon_minutes * 60),
            _pct(error.wape_pct),
            _pct(error.mape_pct),
            _pct(error.naive_wape_pct),
            error.method.replace("_", " ") or "–",
            _int(error.hours),
        ]
        for error in horizons
    ]
    head = ["Looking ahead", "WAPE", "MAPE", "“As a week before” (WAPE)", "Model", "Hours compared"]
    note = "WAPE: tickets misjudged, of all tickets that came. MAPE: mean error of an hour, in percent of that hour."
    return Section(name, title, captions.errors(horizons), plots.errors(horizons), Table(head, rows, note))


def _workers(data: ReportData) -> Section | None:
    name, title = "workers", "Workers over time"
    shown = [policy for policy in data.policies if policy.timeline]
    if not shown:
        return None
    from nhm_sched_plugin.observe import plots

    return Section(name, title, captions.workers(shown), plots.workers(shown, data.phases))


def _outcomes(data: ReportData) -> Section | None:
    name, title = "outcomes", "Service and cost, side by side"
    if not any(policy.sla_pct is not None or policy.worker_hours is not None for policy in data.policies):
        return None
    from nhm_sched_plugin.observe import plots

    head = ["", "Started in time", "Worker-hours", "Wait: half below", "95 % below", "99 % below", "Changes", "Reward"]
    extra = [title for title, known, _ in _EXTRA if any(known(policy) for policy in data.policies)]
    return Section(
        name,
        title,
        captions.outcomes(data.policies, data.sla_target_pct),
        plots.outcomes(data.policies, data.sla_target_pct),
        Table([*head, *extra], [_policy_row(policy, extra) for policy in data.policies], _policy_note(data)),
    )


_EXTRA: Final[tuple[tuple[str, Callable[[PolicyResult], Any], Callable[[PolicyResult], str]], ...]] = (
    ("Cost (oracle 1)", lambda policy: policy.cost_ratio, lambda policy: _ratio(policy.cost_ratio)),
    ("Cost at equal SLA", lambda policy: policy.equal_sla_ratio, lambda policy: _ratio(policy.equal_sla_ratio)),
    ("Gap closed", lambda policy: policy.gap_closed_pct is not None, lambda policy: _pct(policy.gap_closed_pct)),
    ("Decided by", lambda policy: policy.decided_by, lambda policy: policy.decided_by or "–"),
)
"""Columns that only some reports have: title, whether a policy has it, what it says."""


def _policy_row(policy: PolicyResult, extra: Sequence[str]) -> list[str]:
    waits = [policy.wait_p50_s, policy.wait_p95_s, policy.wait_p99_s]
    return [
        f"{policy.name} ({policy.note})" if policy.note else policy.name,
        _pct(policy.sla_pct),
        "–" if policy.worker_hours is None else words.number(policy.worker_hours),
        *("–" if wait is None else words.duration(wait) for wait in waits),
        _int(policy.scale_events),
        "–" if policy.reward_mean is None else f"{policy.reward_mean:+.3f}",
        *(say(policy) for title, _, say in _EXTRA if title in extra),
    ]


def _policy_note(data: ReportData) -> str:
    note = "Every row had the same tickets. “Changes” is how often the number of workers was changed."
    if any(policy.equal_sla_ratio for policy in data.policies):
        note += " “Cost at equal SLA” is over what the best rival needs for the same service, whatever its knob."
    if any(policy.gap_closed_pct is not None for policy in data.policies):
        note += " “Gap closed”: 0 % is as good as the rules, 100 % as good as knowing every arrival."
    if data.seeds and data.seeds > 1:
        note += f" Figures are means of {data.seeds} seeds."
    if data.sla_wait_s is None:
        return note
    return f"A ticket is in time when it starts within {words.duration(data.sla_wait_s)}. {note}"


def _trade(data: ReportData) -> Section | None:
    """Only of replays: elsewhere nobody knows what the oracle would have paid."""
    name, title = "trade", "Service against cost"
    if not any(policy.cost_ratio is not None and policy.sla_pct is not None for policy in data.policies):
        return None
    from nhm_sched_plugin.observe import plots

    return Section(name, title, captions.trade(data), plots.trade(data.policies, data.frontiers))


def _differences(data: ReportData) -> Section | None:
    """Only of replays over several seeds."""
    name, title = "differences", "How sure the differences are"
    rows = [
        [policy.name, *(_difference(policy.differences.get(figure), unit) for figure, _, unit in _COMPARED)]
        for policy in data.policies
        if policy.differences
    ]
    if not rows:
        return None
    head = [f"Against {data.policies[0].name}", *(heading for _, heading, _ in _COMPARED)]
    note = "In brackets: 95 % confidence intervals, paired by seed (Student's t). One that spans 0 may be chance."
    return Section(name, title, table=Table(head, rows, note))


_COMPARED: Final = (
    ("sla_pct", "Started in time (points)", " "),
    ("cost_ratio", "Cost (of the oracle's)", " "),
    ("wait_p95_s", "95 % wait below", " s"),
    ("wait_p99_s", "99 % wait below", " s"),
)


def _difference(found: Difference | None, unit: str) -> str:
    if found is None:
        return "–"
    digits = 0 if "s" in unit else 2
    mean = f"{found.mean:+.{digits}f}{unit.rstrip()}"
    if found.low is None or found.high is None:
        return mean
    return f"{mean} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def _decisions(data: ReportData) -> Section | None:
    name, title = "decisions", "What was decided, by whom and why"
    if not sum(count.count for count in data.decision_counts):
        return None
    from nhm_sched_plugin.observe import plots

    totals: dict[str, int] = {}
    for count in data.decision_counts:
        totals[count.reason] = totals.get(count.reason, 0) + count.count
    everything = sum(totals.values())
    rows = [
        [reason, _meaning(reason), words.number(total), words.percent(total / everything, 1)]
        for reason, total in sorted(totals.items(), key=lambda item: -item[1])
    ]
    table = Table(["Reason", "In plain words", "Decisions", "Share"], rows)
    return Section(name, title, captions.decisions(data), plots.decisions(data.decision_counts), table)


def _meaning(reason: str) -> str:
    return next((text for code, text in words.REASONS.items() if code == reason), "A reason of a newer version.")


def _rewards(data: ReportData) -> Section | None:
    name, title = "rewards", "Did things get better?"
    if not data.rewards:
        return None
    from nhm_sched_plugin.observe import plots

    epochs = [sample.epoch for sample in data.rewards]
    window_s = max(3600.0, round((max(epochs) - min(epochs)) / 14 / 3600) * 3600.0)
    plot = plots.rewards(data.rewards, data.phases, window_s)
    return Section(name, title, captions.reward(data, window_s), plot)


def _confidence(data: ReportData) -> Section | None:
    name, title = "confidence", "How sure the policy was"
    values = [value for value in data.confidences if 0 <= value <= 1]
    if not values:
        return None
    from nhm_sched_plugin.observe import plots

    threshold = data.confidence_threshold
    return Section(name, title, captions.confidence(values, threshold), plots.confidence(values, threshold))


_SECTIONS: Final[tuple[Callable[[ReportData], Section | None], ...]] = (
    _load,
    _errors,
    _outcomes,
    _trade,
    _differences,
    _workers,
    _decisions,
    _rewards,
    _confidence,
)


def _story(example: Example, data: ReportData) -> Story:
    known = story.facts(
        example.decision,
        example.outcome,
        confidence_threshold=data.confidence_threshold,
        volume_threshold=data.volume_threshold,
    )
    title = example.title or words.action(known["applied"]["action"], known["applied"]["parameters"])
    return Story(title[:1].upper() + title[1:], known["decision_id"], story.chapters(known))


def _pct(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _int(value: int | None) -> str:
    return "–" if value is None else words.number(value)
