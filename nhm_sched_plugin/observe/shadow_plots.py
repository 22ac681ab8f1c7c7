"""The plots of the shadow report, in the manner of `plots`: inline SVG, a wide and a narrow drawing of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.observe import canvas
from nhm_sched_plugin.observe.canvas import Plot

if TYPE_CHECKING:
    from nhm_sched_plugin.experiment.arms import Comparison
    from nhm_sched_plugin.experiment.shadow import Agreement, Bin

__all__ = ["agreement", "apart", "calibration", "confidence", "forest", "sequence"]

_DASHED: Final = (0, (4, 3))
Span = tuple[str, float, float | None, float | None]
"""Name, value and the ends of its interval."""


def confidence(tenths: Sequence[int], threshold: float) -> Plot:
    """Recommendations by tenth of confidence, those that may be followed in colour."""
    total = max(1, sum(tenths))

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 2.9)
        for tenth, count in enumerate(tenths):
            sure = (tenth + 1) / 10 > threshold
            colour = canvas.SERIES[0] if sure else canvas.MUTED
            axes.bar(tenth / 10 + 0.05, 100 * count / total, 0.092, color=colour, alpha=1.0 if sure else 0.45)
        axes.axvline(threshold, color=canvas.INK, linestyle=_DASHED, linewidth=1)
        axes.set_xlim(0, 1)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("confidence")
        axes.set_ylabel("percent of recommendations")
        return figure

    return canvas.both("shadow-confidence", draw)


def agreement(rows: Sequence[Agreement]) -> Plot:
    """A bar for each state: the same, more workers, fewer, something else."""
    parts: tuple[tuple[str, str, Callable[[Agreement], int]], ...] = (
        ("the same", canvas.SERIES[2], lambda row: row.same),
        ("policy: more workers", canvas.SERIES[0], lambda row: row.more),
        ("policy: fewer workers", canvas.SERIES[1], lambda row: row.fewer),
        ("something else, or not known", canvas.MUTED, lambda row: row.other),
    )

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 0.34 * len(rows) + (1.2 if wide else 1.6))
        base = [0.0] * len(rows)
        for name, colour, count in parts:
            shares = [100 * count(row) / row.decisions for row in rows]
            axes.barh(range(len(rows)), shares, 0.68, left=base, color=colour, label=name)
            base = [start + share for start, share in zip(base, shares, strict=True)]
        axes.set_yticks(range(len(rows)), [canvas.short(row.name, 18) for row in rows], color=canvas.INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("percent of the decisions in that state")
        canvas.legend(figure, axes, 4 if wide else 1)
        return figure

    return canvas.both("shadow-agreement", draw)


def apart(edges: Sequence[float], counts: Sequence[int]) -> Plot:
    """Workers, policy less rules, where they differ."""

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 2.9)
        width = edges[1] - edges[0]
        for low, count in zip(edges, counts, strict=False):
            middle = low + width / 2
            axes.bar(middle, count, 0.9 * width, color=canvas.SERIES[0] if middle > 0 else canvas.SERIES[1])
        axes.axvline(0, color=canvas.INK, linewidth=1)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("workers, policy less rules")
        axes.set_ylabel("decisions")
        return figure

    return canvas.both("shadow-apart", draw)


def forest(name: str, label: str, spans: Sequence[Span], dotted: Sequence[str] = ()) -> Plot:
    """Values with their intervals, a line each; those named in `dotted` hollow."""

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 0.42 * len(spans) + 1.0)
        for row, (title, value, low, high) in enumerate(spans):
            hollow = title in dotted
            colour = canvas.MUTED if hollow else canvas.SERIES[0]
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
            face = canvas.PAPER if hollow else colour
            axes.plot([value], [row], marker="o", markersize=7, color=colour, markerfacecolor=face)
        axes.axvline(0, color=canvas.INK, linestyle=_DASHED, linewidth=1)
        names = [canvas.short(span[0], 44 if wide else 20) for span in spans]
        axes.set_yticks(range(len(spans)), names, color=canvas.INK)
        axes.set_ylim(len(spans) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=7 if wide else 4)
        axes.set_xlabel(label)
        return figure

    return canvas.both(name, draw)


def sequence(found: Comparison) -> Plot:
    """What was known of the effect after each block."""
    seen = found.sequential

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.0)
        if seen is not None and seen.means:
            first = seen.blocks - len(seen.means) + 1
            blocks = range(first, seen.blocks + 1)
            axes.fill_between(blocks, seen.lows, seen.highs, color=canvas.SERIES[0], alpha=0.2, linewidth=0)
            axes.plot(blocks, seen.means, color=canvas.SERIES[0], linewidth=1.8)
        axes.axhline(0, color=canvas.INK, linestyle=_DASHED, linewidth=1)
        axes.margins(x=0.01)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("blocks of the comparison so far")
        axes.set_ylabel("treatment less control")
        return figure

    return canvas.both("shadow-sequence", draw)


def calibration(bins: Sequence[Bin]) -> Plot:
    """How often the followed action was at least as good, against the confidence."""
    known = [(one.mean_confidence, one.at_least_as_good) for one in bins if one.at_least_as_good is not None]

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.4)
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linestyle=_DASHED, linewidth=1)
        across, up = zip(*known, strict=True)
        axes.plot(across, up, color=canvas.SERIES[0], marker="o", markersize=7, linewidth=1.5)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("confidence")
        axes.set_ylabel("at least as good")
        return figure

    return canvas.both("shadow-calibration", draw)
