"""The page of a backtest: how wrong every method was, some forecasts as fans against what came, and honest intervals.

`render_backtest(data, path)` writes one file without network, scripts or fonts of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.captions import Caption, Card
from nhm_sched_plugin.observe.page import write_page

__all__ = ["BacktestData", "Fan", "MethodError", "render_backtest"]


class MethodError(msgspec.Struct, frozen=True, kw_only=True):
    """One method at one horizon; percent, over all hours up to the horizon."""

    method: str
    horizon_minutes: int
    mape: float | None
    wape: float | None
    smape: float | None
    mase: float | None
    covers_80: float | None = None
    covers_95: float | None = None
    fit_seconds: float = 0.0
    predict_seconds: float = 0.0
    worse: tuple[float, float, float] | None = None
    """MAPE less that of the base method, in points, with its 95 % interval; None for the base itself."""


class Fan(msgspec.Struct, frozen=True, kw_only=True):
    """One forecast against what came. Lists of hours; None where a count is missing."""

    title: str
    origin: float
    """Unix seconds (on the history's own clock): the start of the first forecast hour."""
    error: float
    """Of the whole forecast, percent (WAPE)."""
    history: list[float | None]
    """The hours before the origin."""
    actual: list[float | None]
    median: list[float]
    low_80: list[float]
    high_80: list[float]
    low_95: list[float]
    high_95: list[float]


class BacktestData(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows."""

    name: str
    hours: int
    origins: int
    first: float
    last: float
    """First and last origin, Unix seconds."""
    errors: list[MethodError]
    base: str = "served"
    """The method that the page is about."""
    targets: dict[int, float] = {}
    """MAPE in percent that is asked for, by horizon in minutes."""
    fans: list[Fan] = []
    inside_80: list[float | None] = []
    """Percent of hours inside the 80 % interval of the base, by hours ahead (the first is 1 h)."""
    inside_95: list[float | None] = []
    levels: list[float] = []
    """Quantile levels of the base, in (0, 1)."""
    below: list[float] = []
    """Share of counts below each of them."""
    bins: list[float] = []
    """Share of counts in each bin between them; one more than levels."""
    failures: dict[str, str] = {}
    command: str = ""
    environment: dict[str, str] = {}
    generated_at: float | None = None
    duration_s: float | None = None


class Table(NamedTuple):
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    strong: Sequence[int] = ()
    """Rows of the base method."""


class Section(NamedTuple):
    name: str
    title: str
    caption: Caption | None = None
    plot: Any = None
    table: Table | None = None


def render_backtest(data: BacktestData, path: Path) -> Path:
    """Write the page and return its absolute path. Raises `OSError` when it cannot be written.

    Needs the `report` extra (matplotlib, jinja2).
    """
    return write_page(
        "backtest.html.j2",
        path,
        data=data,
        lead=_lead(data),
        cards=_cards(data),
        sections=[
            section
            for build in (_errors, _fans, _coverage, _reliability, _methods)
            if (section := build(data)) is not None
        ],
        made=words.when(data.generated_at if data.generated_at is not None else time.time(), seconds=False),
        took="" if data.duration_s is None else words.duration(round(data.duration_s)),
    )


def horizons(data: BacktestData) -> list[int]:
    return sorted({error.horizon_minutes for error in data.errors})


def of(data: BacktestData, method: str, horizon: int) -> MethodError | None:
    return next((e for e in data.errors if e.method == method and e.horizon_minutes == horizon), None)


def ahead(minutes: int) -> str:
    return words.duration(minutes * 60)


def _lead(data: BacktestData) -> str:
    first, last = words.when(data.first, seconds=False), words.when(data.last, seconds=False)
    return (
        f"{words.number(data.hours)} hours of load. At {data.origins} moments between {first[:-4]} and {last[:-4]} "
        "every method forecast what would come, knowing only what was known then."
    )


def _cards(data: BacktestData) -> list[Card]:
    cards = []
    for horizon in horizons(data):
        mine = of(data, data.base, horizon)
        if mine is None or mine.mape is None:
            continue
        target = data.targets.get(horizon)
        verdict = (
            "" if target is None else f"asked for: under {target:g} %. {'Met' if mine.mape < target else 'Missed'}"
        )
        cards.append(Card(_pct(mine.mape), f"mean error (MAPE), up to {ahead(horizon)} ahead", verdict))
    last = of(data, data.base, horizons(data)[-1]) if data.errors else None
    if last is not None and last.covers_80 is not None:
        cards.append(
            Card(_pct(last.covers_80), "of hours inside the 80 % interval", f"95 % interval: {_pct(last.covers_95)}")
        )
    return cards


def _errors(data: BacktestData) -> Section | None:
    name, title = "errors", "How wrong, method by method"
    if not data.errors:
        return None
    from nhm_sched_plugin.observe import backtest_plots

    best = []
    for horizon in horizons(data):
        found = [e for e in data.errors if e.horizon_minutes == horizon and e.mape is not None]
        if found:
            first = min(found, key=lambda e: e.mape or 0.0)
            best.append(f"{first.method} up to {ahead(horizon)} ahead ({_pct(first.mape)})")
    caption = Caption(
        f"Mean error of an hour (MAPE) by method; {data.base} is blue, the dashed line is what is asked for.",
        f"Least error: {'; '.join(best)}." if best else "No hour had any traffic.",
    )
    return Section(name, title, caption, backtest_plots.errors(data), _error_table(data))


def _error_table(data: BacktestData) -> Table:
    head = [
        "Ahead",
        "Method",
        "MAPE",
        "WAPE",
        "sMAPE",
        "MASE",
        f"MAPE worse than {data.base} by",
        "80 % holds",
        "95 % holds",
    ]
    rows: list[list[str]] = []
    strong: list[int] = []
    for horizon in horizons(data):
        found = [error for error in data.errors if error.horizon_minutes == horizon]
        least = {key: _least(found, key) for key in ("mape", "wape", "smape", "mase")}
        for error in sorted(found, key=lambda e: (e.mape is None, e.mape)):
            if error.method == data.base:
                strong.append(len(rows))
            figures = [
                ("✓ " if getattr(error, key) is not None and getattr(error, key) == least[key] else "")
                + ("–" if getattr(error, key) is None else f"{getattr(error, key):.{2 if key == 'mase' else 1}f}")
                for key in least
            ]
            spread = [_pct(error.covers_80), _pct(error.covers_95)]
            rows.append([ahead(horizon), error.method, *figures, _worse(error), *spread])
    note = (
        "✓ is the least of its column and horizon. MAPE: mean error of an hour in percent of that hour (hours without "
        "traffic are skipped). WAPE: tickets misjudged, of all that came. MASE: below 1 is better than repeating the "
        "week before used to be. Worse by: in points, with the 95 % interval (paired bootstrap); where that holds "
        "0, it may be chance."
    )
    return Table(head, rows, note, strong)


def _least(found: Sequence[MethodError], key: str) -> float | None:
    values = [getattr(error, key) for error in found if getattr(error, key) is not None]
    return min(values, default=None)


def _worse(error: MethodError) -> str:
    if error.worse is None:
        return "–"
    value, low, high = error.worse
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _fans(data: BacktestData) -> Section | None:
    name, title = "fans", "Some forecasts, and what came"
    if not data.fans:
        return None
    from nhm_sched_plugin.observe import backtest_plots

    told = "; ".join(f"{fan.title.lower()} misjudged {fan.error:.1f} % of the tickets" for fan in data.fans)
    caption = Caption(
        "Before the dashed line: the two days that were known. After it: the median forecast with its 80 % (dark) and "
        "95 % (light) interval, and what came, in dots.",
        f"Chosen by their errors: {told}.",
    )
    return Section(name, title, caption, backtest_plots.fans(data))


def _coverage(data: BacktestData) -> Section | None:
    name, title = "coverage", "Do the intervals hold?"
    if not any(value is not None for value in data.inside_80):
        return None
    from nhm_sched_plugin.observe import backtest_plots

    shares = [value for value in data.inside_80 if value is not None]
    wide = [value for value in data.inside_95 if value is not None]
    caption = Caption(
        "Share of hours that fell inside the intervals, by hours ahead; dashed is where the lines should be.",
        f"80 % interval: {min(shares):.0f} to {max(shares):.0f} % inside; "
        f"95 % interval: {min(wide):.0f} to {max(wide):.0f} %. "
        f"With {data.origins} origins a point may be off by about {_chance(data.origins):.0f} points by chance.",
    )
    return Section(name, title, caption, backtest_plots.coverage(data))


def _chance(origins: int) -> float:
    return float(196 * (0.8 * 0.2 / max(origins, 1)) ** 0.5)


def _reliability(data: BacktestData) -> Section | None:
    name, title = "reliability", "Do the quantiles mean what they say?"
    if not data.below:
        return None
    from nhm_sched_plugin.observe import backtest_plots

    off = max(zip(data.below, data.levels, strict=True), key=lambda pair: abs(pair[0] - pair[1]))
    caption = Caption(
        "First: how often the count stayed below each quantile, against how often it should. Second (PIT): how many "
        "counts fell between two quantiles, over how many should; 1 is as expected.",
        f"Farthest off: {100 * off[0]:.0f} % of the counts were below the {100 * off[1]:g} % quantile. Bars above 1 at "
        "both ends mean intervals that are too narrow, a slope means forecasts that are too high or too low.",
    )
    return Section(name, title, caption, backtest_plots.reliability(data))


def _methods(data: BacktestData) -> Section | None:
    rows = []
    for method in dict.fromkeys(error.method for error in data.errors):
        one = next(error for error in data.errors if error.method == method)
        rows.append(
            [
                method,
                ABOUT.get(method, "a rival that was passed in"),
                _time(one.fit_seconds),
                _time(one.predict_seconds),
            ]
        )
    rows += [[method, f"left out: {why}", "–", "–"] for method, why in data.failures.items()]
    head = ["Method", "What it is", "A fit", "A forecast"]
    return Section("methods", "The methods", table=Table(head, rows, "Times are processor time.")) if rows else None


ABOUT: Mapping[str, str] = {
    "served": "what this package answers: models chosen for this series by a backtest of their own, with intervals",
    "prophet": "Prophet as specified: additive, daily, weekly (yearly) seasonality, holidays",
    "arima": "a small ARIMA on log counts after a daily cycle",
    "ridge": "linear regression for each hour ahead on lags and calendar",
    "ridge_log": "the same on log counts",
    "ridge_robust": "the same, hardly moved by single odd hours",
    "ridge_sqrt": "the same on square roots of counts",
    "prophet_log": "Prophet on log counts, a day profile for each kind of day, corrected by its last errors",
    "holt_winters": "exponential smoothing with a daily and a weekly season",
    "seasonal_mean": "mean of the hour of the week, recent weeks first",
    "seasonal_naive": "the same hour a week ago",
    "seasonal_naive_168": "statsforecast SeasonalNaive(168)",
    "auto_arima": "statsforecast AutoARIMA(24)",
    "mstl": "statsforecast MSTL(24, 168)",
}


def _time(seconds: float) -> str:
    return "–" if seconds <= 0 else words.duration(float(f"{seconds:.2g}"))


def _pct(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"
