"""The run in the terminal: what the HTML report says, in tables; and the same as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.report_data import DecisionCount, Difference, PolicyResult, ReportData
from nhm_sched_plugin.observe.series import coverage, total_error

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_summary", "summary_json"]


class _Grid(NamedTuple):
    """A table as text: the first column to the left, numbers to the right."""

    title: str
    head: list[str]
    rows: list[list[str]]


def print_summary(data: ReportData, console: Console) -> None:
    """Print the summary: forecast error, decisions, service and cost, reward, where the report is, what to try next.

    Parts without data are left out. Names and ids are printed as they are, never read as markup.
    """
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(data.title, style="bold"))
    if data.subtitle:
        console.print(Text(data.subtitle, style="dim"))
    for build in (_errors, _policies, _differences, _decisions, _rewards):
        grid = build(data)
        if grid is None:
            continue
        table = Table(show_edge=False, pad_edge=False)
        for index, name in enumerate(grid.head):
            table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
        for row in grid.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print()
        console.print(Text(grid.title, style="bold"))  # not the table's own title, which wraps at the table's width
        console.print(table)
    console.print()
    for line in _closing(data):
        console.print(line, soft_wrap=True)


def summary_json(data: ReportData) -> dict[str, Any]:
    """The figures of the summary as JSON-ready values; what is not known is None or an empty list."""
    inside, judged = coverage(data.load)
    return {
        "title": data.title,
        "tickets": data.tickets,
        "decisions": _total(data),
        "duration_s": data.duration_s,
        "forecast": {
            "horizons": msgspec.to_builtins(sorted(data.horizon_errors, key=lambda error: error.horizon_minutes)),
            "replayed_hours": len(data.load),
            "replayed_wape_pct": total_error(data.load),
            "hours_inside_band": inside / judged if judged else None,
        },
        "policies": [_without_timeline(policy) for policy in data.policies],
        "decisions_by": {field: _sums(data.decision_counts, field) for field in ("action", "source", "arm", "reason")},
        "decisions_by_phase": {phase: _total_of(counts) for phase, counts in _phases(data).items()},
        "rewards_by_arm": {arm: {"mean": mean, "count": weight} for arm, (mean, weight) in _means(data).items()},
        "confidence_threshold": data.confidence_threshold,
        "report": data.report_path or None,
        "environment": dict(data.environment),
    }


def _errors(data: ReportData) -> _Grid | None:
    if not data.horizon_errors:
        return None
    rows = [
        [
            words.duration(error.horizon_minutes * 60),
            _shown(error.wape_pct, _pct),
            _shown(error.mape_pct, _pct),
            _shown(error.naive_wape_pct, _pct),
            error.method.replace("_", " ") or "–",
        ]
        for error in sorted(data.horizon_errors, key=lambda error: error.horizon_minutes)
    ]
    return _Grid(
        "Forecast error (WAPE: tickets misjudged, of all; MAPE: error of a typical hour)",
        ["looking ahead", "WAPE", "MAPE", "a week before (WAPE)", "model"],
        rows,
    )


def _policies(data: ReportData) -> _Grid | None:
    if not data.policies:
        return None
    wait = f"within {words.duration(data.sla_wait_s)}" if data.sla_wait_s else "in time"
    target = "" if data.sla_target_pct is None else f" (target {data.sla_target_pct:g} %)"
    compared = any(policy.cost_ratio is not None for policy in data.policies)
    rows = [
        [
            f"{policy.name} ({policy.note})" if policy.note else policy.name,
            _shown(policy.sla_pct, _pct),
            _shown(policy.worker_hours, words.number),
            _shown(policy.wait_p95_s, _seconds if compared else words.duration),
            _shown(policy.scale_events, words.number),
        ]
        for policy in data.policies
    ]
    head = ["way of deciding", "SLA met", "worker-hours", "95 % wait less than", "pool changes"]
    if compared:  # more columns, so shorter ones
        head = ["policy", "SLA met", "hours", "95 % wait", "changes"]
    for title, known in _MORE.items():
        cells = [known(policy) for policy in data.policies]
        if any(cell is not None for cell in cells):
            head.append(title)
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell or "–")
    of = f", means of {data.seeds} seeds" if data.seeds and data.seeds > 1 else ""
    to = "; cost 1 is the oracle's" if compared else ""
    return _Grid(f"Service and cost on the same tickets: started {wait}{target}{of}{to}", head, rows)


_MORE: Final[dict[str, Callable[[PolicyResult], str | None]]] = {
    "cost": lambda policy: None if policy.cost_ratio is None else f"{policy.cost_ratio:.2f}",
    "at equal SLA": lambda policy: None if policy.equal_sla_ratio is None else f"{policy.equal_sla_ratio:.2f}",
    "gap closed": lambda policy: None if policy.gap_closed_pct is None else f"{policy.gap_closed_pct:.0f} %",
}
"""Columns that only replays have: worker-hours over the oracle's, and over the best rival's at the same SLA."""


def _seconds(value: float) -> str:
    return f"{words.number(value)} s"


def _differences(data: ReportData) -> _Grid | None:
    compared = [policy for policy in data.policies if policy.differences]
    if not compared:
        return None
    rows = [
        [policy.name, *(_bounded(policy.differences.get(figure)) for figure in ("sla_pct", "cost_ratio"))]
        for policy in compared
    ]
    first = data.policies[0].name
    return _Grid(
        f"Differences to {first} (95 % confidence intervals, paired by seed)", ["", "SLA, points", "cost"], rows
    )


def _bounded(found: Difference | None) -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def _decisions(data: ReportData) -> _Grid | None:
    everything = _total_of(data.decision_counts)
    if not everything:
        return None
    rows = [
        [f"{field}: {name}", words.number(count), words.percent(count / everything, 1)]
        for field in ("action", "source", "arm", "reason")
        for name, count in _sums(data.decision_counts, field).items()
    ]
    return _Grid(f"{words.number(everything)} decisions", ["what", "decisions", "share"], rows)


def _rewards(data: ReportData) -> _Grid | None:
    means = _means(data)
    if not means:
        return None
    rows = [[arm, f"{mean:+.4f}", words.number(weight)] for arm, (mean, weight) in means.items()]
    return _Grid("Reward (-1 worse, 0 steady, +1 better)", ["rollout group", "mean", "outcomes"], rows)


def _closing(data: ReportData) -> list[Any]:
    from rich.text import Text

    lines = [Text(f"* {note}", style="dim") for note in data.notes]
    if data.duration_s is not None:
        lines.append(Text(f"Took {words.duration(round(data.duration_s))}."))
    if data.report_path:
        lines.append(Text.assemble("Report with plots: ", (data.report_path, "bold")))
    if data.next_commands:
        lines.append(Text("Next:"))
        width = max(len(command) for command, _ in data.next_commands)
        lines += [
            Text.assemble("  ", (command.ljust(width), "bold"), f"  {meaning}")
            for command, meaning in data.next_commands
        ]
    return lines


def _shown(value: float | None, say: Callable[[float], str]) -> str:
    return "–" if value is None else say(value)


def _pct(value: float) -> str:
    return f"{value:.1f} %"


def _total_of(counts: Sequence[DecisionCount]) -> int:
    return sum(count.count for count in counts)


def _total(data: ReportData) -> int | None:
    return data.decisions if data.decisions is not None else _total_of(data.decision_counts) or None


def _sums(counts: Sequence[DecisionCount], field: str) -> dict[str, int]:
    """Decisions by the value of a field, the most frequent first."""
    sums: dict[str, int] = {}
    for count in counts:
        name = str(getattr(count, field))
        sums[name] = sums.get(name, 0) + count.count
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _phases(data: ReportData) -> dict[str, list[DecisionCount]]:
    phases: dict[str, list[DecisionCount]] = {}
    for count in data.decision_counts:
        phases.setdefault(count.phase, []).append(count)
    return phases


def _means(data: ReportData) -> dict[str, tuple[float, float]]:
    """Mean reward and number of rewards by arm."""
    sums: dict[str, tuple[float, float]] = {}
    for sample in data.rewards:
        total, weight = sums.get(sample.arm, (0.0, 0.0))
        sums[sample.arm] = (total + sample.reward * sample.weight, weight + sample.weight)
    return {arm: (total / weight, weight) for arm, (total, weight) in sorted(sums.items()) if weight > 0}


def _without_timeline(policy: PolicyResult) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(policy)
    del plain["timeline"]
    return plain
