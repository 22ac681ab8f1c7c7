"""Where plots are drawn: figures of two widths, and their SVG made fit to stand in a themed page.

Matplotlib is imported inside the functions; nothing here touches its global state or needs a display.
"""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.observe.report_data import Phase

__all__ = [
    "DASHES",
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "SERIES",
    "Plot",
    "both",
    "figure",
    "legend",
    "moments",
    "shade",
    "short",
    "time_axis",
]

# Placeholders that become CSS variables in the SVG. Matplotlib needs real colours, and these appear nowhere else.
INK: Final = "#010203"
MUTED: Final = "#010204"
GRID: Final = "#010205"
PAPER: Final = "#010206"
SERIES: Final = tuple(f"#0102{number:02x}" for number in range(0x10, 0x18))
_VARIABLES: Final[Mapping[str, str]] = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--card)",
    **{colour: f"var(--s{index})" for index, colour in enumerate(SERIES)},
}
DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
_WIDE: Final = 9.6
_NARROW: Final = 4.1
"""Width in inches; at 72 points an inch the SVG is drawn about as wide as it is shown."""

Draw = Callable[[bool], Any]


class Plot(NamedTuple):
    """One drawing for a wide page and one for a phone, as safe SVG text."""

    wide: str
    narrow: str


def both(name: str, draw: Draw) -> Plot:
    return Plot(*(_svg(draw, wide, f"{name}-{'w' if wide else 'n'}") for wide in (True, False)))


def _svg(draw: Draw, wide: bool, name: str) -> str:
    from matplotlib import rc_context

    style: Any = {
        "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
        "svg.hashsalt": name,
        "text.parse_math": False,  # a name with a dollar sign is a name
        "font.size": 11 if wide else 10,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.major.pad": 7,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
        "path.simplify_threshold": 0.3,
    }
    with rc_context(style):
        target = io.StringIO()
        draw(wide).savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(target.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """A standalone SVG document made fit to stand in a page: no prologue, ids of its own, themed colours, small."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)

    def own(tag: re.Match[str]) -> str:  # inside tags only: what stands between them is somebody's text
        text = re.sub(r'\bid="', f'id="{name}-', tag[0])
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
        text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
        text = re.sub(r"(\d\.\d)\d{2,}", r"\1", text)  # coordinates, to a tenth of a point; opacities have two digits
        return re.sub(r"#0102[01][0-9a-f]", lambda found: _VARIABLES.get(found[0], found[0]), text)

    svg = re.sub(r"<[^>]*>", own, svg)
    return re.sub(r"\s+", " ", svg)


def short(name: str, most: int = 28) -> str:
    """A name that fits beside a plot; the tables have it in full."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def figure(wide: bool, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(_WIDE if wide else _NARROW, height), layout="constrained")
    return drawing, drawing.subplots(rows, columns, squeeze=False, **options)


def moments(epochs: Sequence[float]) -> list[dt.datetime]:
    return [dt.datetime.fromtimestamp(epoch, dt.UTC) for epoch in epochs]


def time_axis(axes: Any, wide: bool) -> None:
    """Days with their month, or hours where the axis is short."""
    from matplotlib import dates

    made: Any = dates  # its constructors carry no types
    axes.margins(x=0.005)
    first, last = axes.get_xlim()  # in days
    axes.xaxis.set_major_locator(made.AutoDateLocator(minticks=2, maxticks=8 if wide else 5))
    form = "%-d %b" if 2 < last - first < 400 else "%b %Y" if last > first + 2 else "%H:%M"
    axes.xaxis.set_major_formatter(made.DateFormatter(form))
    axes.grid(axis="x", visible=False)


def shade(axes: Any, phases: Sequence[Phase], wide: bool, label: bool = True) -> None:
    """Phases as stripes behind the lines, their names above."""
    for index, phase in enumerate(phases):
        start, end = moments([phase.start, phase.end])
        if index % 2 == 0:
            axes.axvspan(start, end, color=MUTED, alpha=0.09, linewidth=0, zorder=0)
        if label:
            middle = start + (end - start) / 2
            name = short(phase.name) if wide or phase.percentage is None else f"{phase.percentage} %"
            above = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
            axes.text(middle, 1.02, name, color=MUTED, **above)


def legend(drawing: Any, axes: Any, columns: int) -> None:
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
