"""The report's plots, as inline SVG whose colours are CSS variables: the page's light and dark themes apply to them.

Each drawing is made twice, for a wide page and for a phone, because a scaled-down plot has unreadable text. Colours are
those of Okabe & Ito (2008), which people with any common colour vision can tell apart; lines also differ in dashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from nhm_sched_plugin.observe import canvas, words
from nhm_sched_plugin.observe.canvas import Plot
from nhm_sched_plugin.observe.report_data import (
    DecisionCount,
    Frontier,
    HorizonError,
    HourLoad,
    Phase,
    PolicyResult,
    RewardSample,
)
from nhm_sched_plugin.observe.series import buckets, rolling_mean, shares
from nhm_sched_plugin.types import Arm

__all__ = ["confidence", "decisions", "errors", "load", "outcomes", "rewards", "trade", "workers"]


def load(hours: Sequence[HourLoad], phases: Sequence[Phase]) -> Plot:
    """Tickets an hour, as they came and as expected."""

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.9 if wide else 3.5)
        moments = canvas.moments([hour.epoch for hour in hours])
        blank = float("nan")
        if any(hour.low is not None and hour.high is not None for hour in hours):
            low = [blank if hour.low is None else hour.low for hour in hours]
            high = [blank if hour.high is None else hour.high for hour in hours]
            axes.fill_between(
                moments,
                low,
                high,
                color=canvas.SERIES[0],
                alpha=0.22,
                linewidth=0,
                label="expected range (8 in 10 hours)",
            )
        expected = [blank if hour.forecast is None else hour.forecast for hour in hours]
        axes.plot(moments, expected, color=canvas.SERIES[0], linewidth=1.6, label="expected 1 hour before")
        actual = [blank if hour.actual is None else hour.actual for hour in hours]
        axes.plot(moments, actual, color=canvas.INK, linewidth=1.0, label="came")
        canvas.shade(axes, phases, wide)
        canvas.time_axis(axes, wide)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("tickets per hour")
        canvas.legend(figure, axes, 3 if wide else 1)
        return figure

    return canvas.both("load", draw)


def errors(horizons: Sequence[HorizonError]) -> Plot:
    """Bars of the forecast error, a group for each horizon."""
    kinds = [
        ("wape_pct", "share of tickets misjudged (WAPE)", canvas.SERIES[0]),
        ("mape_pct", "error of a typical hour (MAPE)", canvas.SERIES[4]),
        ("naive_wape_pct", "“as a week before” (WAPE)", canvas.MUTED),
    ]
    shown = [kind for kind in kinds if any(getattr(error, kind[0]) is not None for error in horizons)]

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.2 if wide else 3.4)
        width = 0.8 / max(len(shown), 1)
        for index, (field, label, colour) in enumerate(shown):
            places = [place + (index - (len(shown) - 1) / 2) * width for place in range(len(horizons))]
            values = [getattr(error, field) for error in horizons]
            bars = axes.bar(places, [value or 0 for value in values], width * 0.92, color=colour, label=label)
            texts = ["" if value is None else f"{value:.1f}" for value in values]
            axes.bar_label(bars, texts, padding=2, color=canvas.INK, fontsize="medium" if wide else "small")
        names = [words.duration(error.horizon_minutes * 60) + (" ahead" if wide else "") for error in horizons]
        axes.set_xticks(range(len(horizons)), names)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.14)
        axes.set_ylabel("error, percent")
        canvas.legend(figure, axes, 3 if wide else 1)
        return figure

    return canvas.both("errors", draw)


def policy_colours(policies: Sequence[PolicyResult]) -> dict[str, tuple[str, Any]]:
    """Colour and dash by name: the first in blue and solid, `static` in grey."""
    rest = iter(
        zip(
            (
                canvas.SERIES[1],
                canvas.SERIES[2],
                canvas.SERIES[3],
                canvas.SERIES[5],
                canvas.SERIES[4],
                canvas.SERIES[6],
            ),
            canvas.DASHES[1:] * 2,
            strict=False,
        )
    )
    result: dict[str, tuple[str, Any]] = {}
    for index, policy in enumerate(policies):
        if index == 0:
            result[policy.name] = (canvas.SERIES[0], "-")
        elif policy.name == "static":
            result[policy.name] = (canvas.MUTED, canvas.DASHES[2])
        elif policy.name == "oracle":
            result[policy.name] = (canvas.INK, canvas.DASHES[1])
        else:
            result[policy.name] = next(rest, (canvas.SERIES[7], canvas.DASHES[5]))
    return result


def workers(policies: Sequence[PolicyResult], phases: Sequence[Phase]) -> Plot:
    """Workers by policy above, the arrivals that they had to deal with below."""
    colours = policy_colours(policies)

    def draw(wide: bool) -> Any:
        points = 700 if wide else 300
        figure, grid = canvas.figure(wide, 4.7 if wide else 4.6, rows=2, sharex=True, height_ratios=(3, 1.15))
        axes, below = grid[0][0], grid[1][0]
        for order, policy in enumerate(policies):
            line = buckets(policy.timeline, points)
            colour, dash = colours[policy.name]
            axes.step(
                canvas.moments([point.epoch for point in line]),
                [point.workers for point in line],
                where="post",
                color=colour,
                linestyle=dash,
                linewidth=2.0 if order == 0 else 1.5,
                label=canvas.short(policy.name),
                zorder=2 if order == 0 else 3,  # its solid line shows between the others' dashes where they coincide
            )
        line = buckets(next((policy.timeline for policy in policies if policy.timeline), []), points)
        below.fill_between(
            canvas.moments([point.epoch for point in line]),
            [point.arrivals_per_hour for point in line],
            step="post",
            color=canvas.MUTED,
            alpha=0.45,
            linewidth=0,
        )
        canvas.shade(axes, phases, wide)
        canvas.shade(below, phases, wide, label=False)
        canvas.time_axis(below, wide)
        axes.grid(axis="x", visible=False)
        axes.set_ylim(bottom=0)
        below.set_ylim(bottom=0)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("workers")
        below.set_ylabel("tickets/h")
        canvas.legend(figure, axes, min(len(policies), 6 if wide else 3))
        return figure

    return canvas.both("workers", draw)


def outcomes(policies: Sequence[PolicyResult], target_pct: float | None) -> Plot:
    """SLA (points, zoomed in) and worker-hours (bars, from zero), a row for each policy."""
    colours = [colour for colour, _ in policy_colours(policies).values()]
    rows = list(range(len(policies)))

    def draw(wide: bool) -> Any:
        height = 0.42 * len(policies) + 1.3
        rows_columns = (1, 2) if wide else (2, 1)
        figure, grid = canvas.figure(wide, height if wide else 2 * height, *rows_columns)
        left, right = grid.ravel()
        met = [(row, policy.sla_pct, colours[row]) for row, policy in enumerate(policies) if policy.sla_pct is not None]
        if met:
            at, values = [row for row, _, _ in met], [value for _, value, _ in met]
            left.hlines(at, 0, values, color=canvas.GRID, linewidth=2)
            left.scatter(values, at, s=90, c=[colour for _, _, colour in met], zorder=3)
            lowest = min([*values, *([] if target_pct is None else [target_pct])])
            room = max(100 - lowest, 1.0)
            least = max(0.0, lowest - 0.35 * room)
            left.set_xlim(least, 100 + 0.3 * room)
            left.set_xticks([tick for tick in left.get_xticks() if least <= tick <= 100])
            for row, value, _ in met:
                left.annotate(f"{value:.1f} %", (value, row), (0, 8), textcoords="offset points", ha="center")
        if target_pct is not None:
            left.axvline(target_pct, color=canvas.INK, linestyle=(0, (4, 3)), linewidth=1)
            above = {"transform": left.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            left.text(target_pct, 1.01, f"target {target_pct:g} %", color=canvas.INK, **above)
        hours = [policy.worker_hours or 0 for policy in policies]
        bars = right.barh(rows, hours, 0.55, color=colours)
        texts = ["" if policy.worker_hours is None else words.number(policy.worker_hours) for policy in policies]
        right.bar_label(bars, texts, padding=4, color=canvas.INK)
        right.margins(x=0.16)
        left.set_xlabel("tickets that started in time, percent")
        right.set_xlabel("worker-hours (less is cheaper)")
        for axes in (left, right):
            axes.set_yticks(rows, [canvas.short(policy.name, 14) for policy in policies], color=canvas.INK)
            axes.set_ylim(len(policies) - 0.4, -0.75)
            axes.grid(axis="y", visible=False)
        return figure

    return canvas.both("outcomes", draw)


_MARKS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


def trade(policies: Sequence[PolicyResult], frontiers: Sequence[Frontier]) -> Plot:
    """SLA over cost: a point for each policy, a line for what each rival can do, a star for the oracle.

    The axes show the policies; lines go on outside.
    """
    colours = policy_colours(policies)
    shown = [
        (policy, policy.cost_ratio, policy.sla_pct)
        for policy in policies
        if policy.cost_ratio is not None and policy.sla_pct is not None
    ]

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 4.6 if wide else 4.9)
        for frontier in frontiers:
            colour, dash = colours.get(frontier.name, (canvas.MUTED, "-"))
            costs, served = zip(*frontier.points, strict=True)
            axes.plot(costs, served, color=colour, linestyle=dash, linewidth=1.3, alpha=0.75, zorder=2)
        for place, (policy, cost, sla) in enumerate(shown):
            oracle = policy.name == "oracle"
            axes.scatter(
                [cost],
                [sla],
                s=190 if oracle else 130 if place == 0 else 75,
                marker="*" if oracle else _MARKS[place % len(_MARKS)],
                color=colours[policy.name][0],
                edgecolors=canvas.PAPER,
                linewidths=0.8,
                zorder=5 if place == 0 else 4,
                label=canvas.short(policy.name),
            )
        left, right = min(cost for _, cost, _ in shown), max(cost for _, cost, _ in shown)
        lowest = min(sla for _, _, sla in shown)
        width, height = max(right - left, 0.1), max(100 - lowest, 0.5)
        axes.set_xlim(left - 0.06 * width, right + 0.06 * width)
        axes.set_ylim(lowest - 0.15 * height, 100 + 0.06 * height)
        axes.set_xlabel("worker-hours, as a multiple of the oracle's" + (" (left is cheaper)" if wide else ""))
        axes.set_ylabel("tickets in time, percent")
        canvas.legend(figure, axes, 5 if wide else 3)
        return figure

    return canvas.both("trade", draw)


_FIELDS: Final = (("action", "what was done"), ("source", "who decided"), ("arm", "rollout group"), ("reason", "why"))
_LOOKS: Final = {
    **dict.fromkeys(("policy", "applied", "treatment", "PREEMPTIVE_SCALING"), canvas.SERIES[0]),
    **dict.fromkeys(("fallback", "below_volume_threshold", "NO_ACTION", "control"), canvas.MUTED),
    **dict.fromkeys(("shadow", "INCREASE_WORKER_POOL"), canvas.SERIES[5]),
    **dict.fromkeys(("vetoed", "DECREASE_WORKER_POOL"), canvas.SERIES[1]),
    **dict.fromkeys(("not_in_rollout", "control_group", "default"), canvas.SERIES[4]),
    **dict.fromkeys(("confidence_below_threshold", "ADJUST_PRIORITY_WEIGHTS", "custom"), canvas.SERIES[3]),
    "LOAD_BALANCING_RECONFIG": canvas.SERIES[2],
}
"""The same colour for what belongs together: blue is the policy, grey the quiet normal case."""


def _label(category: str) -> str:
    """A code in a few words."""
    known = {str(code): text for table in (words.ACTIONS, words.SOURCES) for code, text in table.items()}
    return known.get(category, canvas.short(category.replace("_", " ")))


def decisions(counts: Sequence[DecisionCount]) -> Plot:
    """Shares of the decisions of each phase by action, source, arm and reason, as stacked bars."""

    def draw(wide: bool) -> Any:
        panels = [(title, *shares(counts, field)) for field, title in _FIELDS]
        phases = panels[0][1]
        legend = max(len(parts) for _, _, parts in panels) if not wide else 5
        one = 0.34 * len(phases) + 0.75 + 0.19 * legend
        figure, grid = canvas.figure(wide, (2 if wide else 4) * one, *((2, 2) if wide else (4, 1)))
        for axes, (title, names, parts) in zip(grid.ravel(), panels, strict=True):
            spare = iter((canvas.SERIES[2], canvas.SERIES[6], canvas.SERIES[7]) * 9)
            left = [0.0] * len(names)
            for category, values in parts.items():
                colour = _LOOKS.get(category) or next(spare)
                look = {"color": colour, "edgecolor": canvas.PAPER, "linewidth": 0.8, "label": _label(category)}
                axes.barh(range(len(names)), values, 0.66, left=left, **look)
                left = [before + value for before, value in zip(left, values, strict=True)]
            axes.set_yticks(range(len(names)), [canvas.short(name, 14) for name in names], color=canvas.INK)
            axes.invert_yaxis()
            axes.set_xlim(0, 100)
            axes.grid(axis="y", visible=False)
            axes.set_title(f"{title}, percent of decisions", loc="left", fontsize="medium", color=canvas.INK)
            if not parts:
                continue
            axes.legend(
                loc="upper left",
                bbox_to_anchor=(-0.02, -0.14 if len(names) > 2 else -0.24),
                fontsize="small",
                ncols=2 if wide and len(parts) > 3 else 1,
                borderaxespad=0,
                handlelength=1.2,
                columnspacing=1.2,
            )
        return figure

    return canvas.both("decisions", draw)


def rewards(samples: Sequence[RewardSample], phases: Sequence[Phase], window_s: float) -> Plot:
    """Rolling mean of the reward, a line for each arm."""
    looks: dict[str, Any] = {
        "treatment": (canvas.SERIES[0], "-"),
        "control": (canvas.SERIES[1], canvas.DASHES[1]),
        "shadow": (canvas.MUTED, canvas.DASHES[2]),
    }
    spare = iter(zip(canvas.SERIES[2:], canvas.DASHES * 2, strict=False))

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.4 if wide else 3.3)
        arms = sorted({sample.arm for sample in samples}, key=lambda arm: (arm not in looks, arm))
        for arm in arms:
            colour, dash = looks.setdefault(arm, next(spare, (canvas.INK, "-")))
            line = rolling_mean([sample for sample in samples if sample.arm == arm], window_s, 500 if wide else 250)
            axes.plot(
                canvas.moments([epoch for epoch, _ in line]),
                [value for _, value in line],
                color=colour,
                linestyle=dash,
                linewidth=1.8,
                label=words.ARMS[Arm(arm)] if wide and arm in list(Arm) else canvas.short(arm),
            )
        axes.axhline(0, color=canvas.INK, linewidth=0.8)
        canvas.shade(axes, phases, wide)
        canvas.time_axis(axes, wide)
        axes.set_ylabel("mean reward (-1 to +1)")
        canvas.legend(figure, axes, 3)
        return figure

    return canvas.both("rewards", draw)


def confidence(values: Sequence[float], threshold: float) -> Plot:
    """Histogram of the advice's confidence, with the gate."""

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.0 if wide else 3.1)
        bins = 20
        heights = [0] * bins
        for value in values:
            heights[min(bins - 1, max(0, int(value * bins + 1e-9)))] += 1
        places = [(index + 0.5) / bins for index in range(bins)]
        colours = [canvas.SERIES[0] if place >= threshold else canvas.MUTED for place in places]
        axes.bar(places, heights, 0.92 / bins, color=colours)
        axes.axvline(threshold, color=canvas.INK, linestyle=(0, (4, 3)), linewidth=1.2)
        above: dict[str, Any] = {
            "xycoords": axes.get_xaxis_transform(),
            "textcoords": "offset points",
            "va": "bottom",
        }
        axes.annotate("rules decide", (threshold, 1.02), (-7, 0), ha="right", color=canvas.MUTED, **above)
        may = f"may be followed (from {threshold:g})" if wide else "may be followed"
        axes.annotate(may, (threshold, 1.02), (7, 0), ha="left", color=canvas.SERIES[0], **above)
        axes.set_xlim(0, 1)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("confidence of the advice")
        axes.set_ylabel("pieces of advice")
        return figure

    return canvas.both("confidence", draw)
