"""The page of `nhm-sched learn` - does confidence come true? - and the Q-table as a picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nhm_sched_plugin.observe import canvas
from nhm_sched_plugin.observe.page import write_page

__all__ = ["Point", "colour_limit", "draw_table", "learn_page", "reliability_plot"]


class Point(NamedTuple):
    """A bin of confidences: what was said on average, how often it came true, and how many there were."""

    said: float
    found: float
    trials: int


def reliability_plot(points: Sequence[Point]) -> canvas.Plot:
    """A reliability diagram: on the diagonal, confidence is true. Areas of the dots are shares of the trials."""
    filled = [point for point in points if point.trials]
    total = sum(point.trials for point in filled) or 1

    def draw(wide: bool) -> Any:
        drawing, ((axes,),) = canvas.figure(wide, 4.2)
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linestyle=(0, (4, 3)), linewidth=1.2, label="true confidence")
        said, found = [point.said for point in filled], [point.found for point in filled]
        sizes = [30 + 900 * point.trials / total for point in filled]
        axes.plot(said, found, color=canvas.SERIES[0], linewidth=1.2)
        axes.scatter(said, found, s=sizes, color=canvas.SERIES[0], alpha=0.8, zorder=3, clip_on=False)
        axes.scatter([], [], s=60, color=canvas.SERIES[0], alpha=0.8, label="counted")  # the legend's, of one size
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence said", ylabel="share that came true")
        canvas.legend(drawing, axes, 2)
        return drawing

    return canvas.both("reliability", draw)


def learn_page(path: Path, facts: Mapping[str, str], points: Sequence[Point], ece: float | None) -> Path:
    """Write the page; `ece` None: nothing was held out. Raises `OSError` when it cannot be written."""
    plot = reliability_plot(points) if ece is not None else None
    return write_page("learn.html.j2", path, facts=facts, points=[p for p in points if p.trials], ece=ece, plot=plot)


def colour_limit(numbers: Collection[float]) -> float:
    """Where the colours end: nineteen numbers of twenty are inside, so that a few extreme ones do not pale the rest."""
    sizes = sorted(abs(number) for number in numbers)
    return next((size for size in sizes[int(0.95 * len(sizes)) :] if size), 1.0)


def draw_table(path: Path, cells: Mapping[tuple[str, str], float], title: str) -> Path:
    """A heat map as PNG (or what the name ends in): states down, arms across, `cells[state, arm]` around 0.

    Raises `OSError` when it cannot be written, `ValueError` for an ending that is no picture's.
    """
    from matplotlib.figure import Figure

    states, arms = (sorted({pair[place] for pair in cells}) for place in (0, 1))
    most = colour_limit(cells.values())
    drawing = Figure(figsize=(2.8 + 0.5 * len(arms), 2.2 + 0.19 * len(states)), layout="constrained")
    axes: Any = drawing.subplots()
    grid = [[cells.get((state, arm), float("nan")) for arm in arms] for state in states]
    if grid:
        image = axes.imshow(grid, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        drawing.colorbar(image, ax=axes, shrink=0.6, extend="both")
    axes.set_xticks(range(len(arms)), arms, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(states)), states, fontsize=7)
    axes.set_title(title, fontsize=10)
    drawing.savefig(path, dpi=130)
    return path.absolute()
