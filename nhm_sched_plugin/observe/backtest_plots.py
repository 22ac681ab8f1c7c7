"""The plots of a backtest page, in the manner of `plots`: inline SVG, a wide and a narrow drawing of each."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.observe import canvas, words
from nhm_sched_plugin.observe.canvas import Plot

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.backtest_page import BacktestData, Fan

__all__ = ["coverage", "errors", "fans", "reliability"]

_DASHED: Final = (0, (4, 3))


def errors(data: BacktestData) -> Plot:
    """MAPE of every method, a panel for each horizon; the methods in the order of the farthest one."""
    horizons = sorted({error.horizon_minutes for error in data.errors})
    found = {(error.method, error.horizon_minutes): error.mape for error in data.errors}
    methods = sorted(
        {error.method for error in data.errors},
        key=lambda name: (found[name, horizons[-1]] is None, found[name, horizons[-1]]),
    )

    def draw(wide: bool) -> Any:
        height = 0.3 * len(methods) + 1.0
        shape = (1, len(horizons)) if wide else (len(horizons), 1)
        figure, grid = canvas.figure(wide, height if wide else len(horizons) * height, *shape, sharey=wide)
        for axes, horizon in zip(grid.ravel(), horizons, strict=True):
            values = [found[name, horizon] for name in methods]
            colours = [canvas.SERIES[0] if name == data.base else canvas.GRID for name in methods]
            shown = [0.0 if value is None or math.isnan(value) else value for value in values]
            bars = axes.barh(range(len(methods)), shown, 0.66, color=colours)
            texts = ["no traffic" if value is None else f"{value:.1f}" for value in values]
            behind = {"facecolor": canvas.PAPER, "edgecolor": "none", "pad": 1.0}  # the line stays behind the figures
            axes.bar_label(bars, texts, padding=4, color=canvas.INK, fontsize="small", bbox=behind, zorder=4)
            if horizon in data.targets:
                axes.axvline(data.targets[horizon], color=canvas.INK, linestyle=_DASHED, linewidth=1)
            axes.set_yticks(range(len(methods)), [canvas.short(name, 20) for name in methods], color=canvas.INK)
            axes.set_ylim(len(methods) - 0.4, -0.6)
            axes.margins(x=0.22)
            axes.grid(axis="y", visible=False)
            asked = f" (asked: {data.targets[horizon]:g})" if horizon in data.targets else ""
            title = f"{words.duration(horizon * 60)} ahead{asked}"
            axes.set_title(title, loc="left", fontsize="medium", color=canvas.INK)
        grid.ravel()[-1].set_xlabel("MAPE, percent")
        return figure

    return canvas.both("backtest-errors", draw)


def fans(data: BacktestData) -> Plot:
    """A panel for each fan: the two days before, the bands, the median and what came."""

    def draw(wide: bool) -> Any:
        figure, grid = canvas.figure(wide, 2.5 * len(data.fans) + 0.5, rows=len(data.fans))
        for axes, fan in zip(grid.ravel(), data.fans, strict=True):
            _fan(axes, fan, wide)
        canvas.legend(figure, grid[0][0], 5 if wide else 2)
        return figure

    return canvas.both("backtest-fans", draw)


def _fan(axes: Any, fan: Fan, wide: bool) -> None:
    before = canvas.moments([fan.origin - 3600 * (len(fan.history) - i) for i in range(len(fan.history))])
    after = canvas.moments([fan.origin + 3600 * i for i in range(len(fan.median))])
    blue = canvas.SERIES[0]
    axes.fill_between(after, fan.low_95, fan.high_95, color=blue, alpha=0.16, linewidth=0, label="95 % interval")
    axes.fill_between(after, fan.low_80, fan.high_80, color=blue, alpha=0.3, linewidth=0, label="80 % interval")
    axes.plot(after, fan.median, color=blue, linewidth=1.8, label="median")
    axes.plot(before, _with_gaps(fan.history), color=canvas.MUTED, linewidth=1.1, label="known then")
    axes.plot(after, _with_gaps(fan.actual), color=canvas.INK, linewidth=1.3, marker="o", markersize=2.6, label="came")
    axes.axvline(after[0], color=canvas.MUTED, linestyle=_DASHED, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.set_ylabel("per hour")
    canvas.time_axis(axes, wide)
    _clock(axes, wide)
    axes.set_title(f"{fan.title}: {fan.error:.1f} % misjudged", loc="left", fontsize="medium", color=canvas.INK)


def _clock(axes: Any, wide: bool) -> None:
    """Three days: midnights with their date, noons as hours."""
    from matplotlib import dates

    made: Any = dates
    axes.xaxis.set_major_locator(made.HourLocator(byhour=(0, 12) if wide else (0,)))
    axes.xaxis.set_major_formatter(lambda day, _: _stamp(made.num2date(day)))


def _stamp(moment: Any) -> str:
    return f"{moment:%a} {moment.day} {moment:%b}" if moment.hour == 0 else f"{moment:%H:%M}"


def _with_gaps(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def coverage(data: BacktestData) -> Plot:
    """Share of hours inside both intervals by hours ahead."""

    def draw(wide: bool) -> Any:
        figure, ((axes,),) = canvas.figure(wide, 3.1)
        lines = ((data.inside_80, 80, canvas.SERIES[0], "-"), (data.inside_95, 95, canvas.SERIES[1], canvas.DASHES[1]))
        for values, nominal, colour, dash in lines:
            leads = range(1, len(values) + 1)
            label = f"inside the {nominal} % interval"
            axes.plot(
                leads,
                _with_gaps(values),
                color=colour,
                linestyle=dash,
                linewidth=1.8,
                marker="o",
                markersize=3,
                label=label,
            )
            axes.axhline(nominal, color=canvas.MUTED, linestyle=_DASHED, linewidth=1)
        low = min((value for value in (*data.inside_80, *data.inside_95) if value is not None), default=0.0)
        axes.set_ylim(max(0.0, min(low - 5, 60)), 101)
        axes.grid(axis="x", visible=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("hours ahead")
        axes.set_ylabel("percent of hours")
        canvas.legend(figure, axes, 2 if wide else 1)
        return figure

    return canvas.both("backtest-coverage", draw)


def reliability(data: BacktestData) -> Plot:
    """Left: observed against nominal quantile levels. Right: the PIT, each bin over what it should hold."""
    edges = [0.0, *data.levels, 1.0]
    expected = [high - low for low, high in pairwise(edges)]

    def draw(wide: bool) -> Any:
        figure, grid = canvas.figure(wide, 3.5 if wide else 6.4, *((1, 2) if wide else (2, 1)))
        left, right = grid.ravel()
        left.plot([0, 100], [0, 100], color=canvas.MUTED, linestyle=_DASHED, linewidth=1)
        nominal, observed = [100 * level for level in data.levels], [100 * share for share in data.below]
        left.plot(nominal, observed, color=canvas.SERIES[0], linewidth=1.5, marker="o", markersize=7)
        left.set_xlim(-3, 103)
        left.set_ylim(-3, 103)
        left.set_xlabel("quantile, percent")
        left.set_ylabel("counts below it, percent")
        ratios = [share / size for share, size in zip(data.bins, expected, strict=True)]
        bars = right.bar(range(len(ratios)), ratios, 0.86, color=canvas.SERIES[0])
        right.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=2, color=canvas.INK, fontsize="small")
        right.axhline(1, color=canvas.INK, linestyle=_DASHED, linewidth=1)
        names = [f"{100 * low:g}–{100 * high:g}" for low, high in pairwise(edges)]
        right.set_xticks(range(len(names)), names, fontsize="small")
        right.grid(axis="x", visible=False)
        right.margins(y=0.15)
        right.set_xlabel("between these quantiles, percent")
        right.set_ylabel("counts, over expected")
        return figure

    return canvas.both("backtest-reliability", draw)
