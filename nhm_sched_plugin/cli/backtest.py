"""`backtest`: how good the forecasts would have been, on any counts."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, between, settings_of, writable
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.show import err, out, plain, progress, show
from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.forecasting.covariate_files import KnownAhead
    from nhm_sched_plugin.forecasting.evaluation import Method
    from nhm_sched_plugin.forecasting.scores import Evaluation, Rolled

LONGEST = 7 * 24 * 60
SliceOption = Annotated[str | None, typer.Option(help="Only this slice of the records.")]
_COLUMNS = (("mape", "MAPE"), ("wape", "WAPE"), ("smape", "sMAPE"), ("mase", "MASE"))


@app.command()
def backtest(
    file: Annotated[
        Path | None, typer.Argument(help="CSV of counts per hour or finer. Default: the tickets in the records.")
    ] = None,
    horizon: Annotated[
        list[int] | None,
        typer.Option(callback=between(1, LONGEST), help="Minutes ahead; repeatable. Default: 60, 360 and 1440."),
    ] = None,
    origins: Annotated[int, typer.Option(callback=between(1), help="Moments to forecast from.")] = 100,
    country: Annotated[
        str | None, typer.Option(help="Holidays of this country (ISO 3166), or none. Default: as configured.")
    ] = None,
    holidays: Annotated[
        str | None, typer.Option(metavar="FILE", help="CSV date,name of your own, or none. Default: as configured.")
    ] = None,
    regressors: Annotated[
        str | None, typer.Option(metavar="FILE", help="CSV timestamp,NAME,... or none. Default: as configured.")
    ] = None,
    refits: Annotated[int, typer.Option(callback=between(1), help="How often our own models learn on the way.")] = 4,
    jobs: Annotated[int, typer.Option(callback=between(1), help="Worker processes.")] = 1,
    timestamp: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of times. Default: guessed.")] = None,
    volume: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of counts. Default: guessed.")] = None,
    rivals: Annotated[
        bool, typer.Option("--rivals", help="Also AutoARIMA, MSTL and seasonal naive of statsforecast.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(callback=writable, help="Write an HTML page with fan charts here.")
    ] = None,
    task_type: SliceOption = None,
    risk_band: SliceOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge the forecasts on hours that they have not seen, beside simpler methods."""
    began, settings = time.time(), settings_of(config)
    horizons = sorted(set(horizon or (60, 360, 1440)))
    if file is None and (timestamp or volume):
        raise typer.BadParameter("--timestamp and --volume name columns of a FILE; give one")
    if file is not None and (task_type or risk_band):
        raise typer.BadParameter("--task-type and --risk-band choose from the records; leave FILE out")
    from nhm_sched_plugin.forecasting.covariate_files import known_ahead
    from nhm_sched_plugin.forecasting.scores import table

    ahead = known_ahead(settings, holidays=holidays, regressors=regressors)
    extra: list[Method] = []
    if rivals:
        from nhm_sched_plugin.forecasting.rivals import statsforecast_rivals

        extra = statsforecast_rivals()  # raises before the work, not after it
    name, history = _history(file, timestamp, volume, task_type, risk_band, settings)
    rolled = _rolled(
        name,
        history,
        horizons,
        _country(country, settings),
        settings,
        origins=origins,
        refits=refits,
        jobs=jobs,
        rivals=extra,
        ahead=ahead,
    )
    if report is not None:
        _write(report, rolled, name, horizons, time.time() - began)
    rows = table(rolled, horizons)
    answer = {
        "name": name,
        "hours": len(rolled.known),
        "origins": len(rolled.origins),
        "rows": rows,
        "targets": _targets(rows),
        "failures": rolled.failures,
        "report": report,
    }
    show(answer, as_json, lambda: _tell(name, rolled, rows, report))


def _rolled(
    name: str,
    history: pd.Series[Any],
    horizons: Sequence[int],
    country: str | None,
    settings: Settings,
    *,
    origins: int,
    refits: int,
    jobs: int,
    rivals: Sequence[Method],
    ahead: KnownAhead,
) -> Rolled:
    from nhm_sched_plugin.forecasting.evaluation import own_methods, plan_origins, roll_out
    from nhm_sched_plugin.forecasting.series import hours

    known, steps = hours(history), -(-horizons[-1] // 60)
    at = plan_origins(len(known), steps, origins)
    first = known.iloc[: at[0]]
    ahead.check(first)
    own = own_methods(first, horizons, country, settings.ml.prophet, refits=refits, ahead=ahead)
    methods = [*own, *rivals]
    with progress(f"Backtest of {name}") as update:
        return roll_out(known, methods, steps, origins=at, jobs=jobs, progress=lambda done: update(done, 1))


def _write(report: Path, rolled: Rolled, name: str, horizons: Sequence[int], seconds: float) -> None:
    from nhm_sched_plugin.forecasting.fans import page_of
    from nhm_sched_plugin.observe.backtest_page import render_backtest

    command = shlex.join(["nhm-sched", *sys.argv[1:]])
    page = page_of(rolled, name, horizons, command=command, environment=_environment(), duration_s=seconds)
    render_backtest(page, report)


def _history(
    file: Path | None,
    timestamp: str | None,
    volume: str | None,
    task_type: str | None,
    risk_band: str | None,
    settings: Settings,
) -> tuple[str, pd.Series[Any]]:
    if file is not None:
        from nhm_sched_plugin.forecasting.counts import read_counts

        return file.name, read_counts(file, timestamp, volume)
    name = "/".join(filter(None, (task_type, risk_band))) or "all tickets"
    with opened(settings) as store:
        now = dt.datetime.now(dt.UTC)
        series = store.hourly_volume(task_type=task_type, risk_band=risk_band, until=now)
    if not len(series):
        of = f" of {name}" if task_type or risk_band else ""
        raise IngestError(f"the records hold no tickets{of}; run nhm-sched ingest FILE, or name a CSV of counts")
    return name, series


def _country(asked: str | None, settings: Settings) -> str | None:
    if asked is None:
        return settings.ml.forecasting.country
    return None if asked.lower() in ("none", "-") else asked


def _environment() -> dict[str, str]:
    names = ("nhm-sched-plugin", "numpy", "pandas", "prophet")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return {"Software": f"Python {platform.python_version()}, {', '.join(versions)}"}


def _targets(rows: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """What the specification asks for, and whether the served forecasts have it."""
    from nhm_sched_plugin.forecasting.evaluation import SERVED
    from nhm_sched_plugin.forecasting.scores import TARGETS

    return [
        {
            "horizon_minutes": row.horizon_minutes,
            "target": TARGETS[row.horizon_minutes],
            "mape": row.mape,
            "met": row.mape < TARGETS[row.horizon_minutes],
        }
        for row in rows
        if row.method == SERVED and row.horizon_minutes in TARGETS
    ]


def _tell(name: str, rolled: Rolled, rows: Sequence[Evaluation], report: Path | None) -> None:
    horizons = list(dict.fromkeys(row.horizon_minutes for row in rows))
    out.print(f"{name}: {len(rolled.known):,} hours, {len(rolled.origins)} origins", markup=False, highlight=False)
    for horizon in horizons:
        out.print()
        out.print(_table([row for row in rows if row.horizon_minutes == horizon], horizon))
    out.print("* least of its column; percent, over all hours up to the horizon (MASE: in naive errors)", style="dim")
    for target in _targets(rows):
        ahead = f"{target['horizon_minutes']:,} minutes"
        if math.isnan(target["mape"]):
            text = f"{ahead}: no hour had any traffic, so there is no MAPE to compare with {target['target']:g} %."
        else:
            verdict = "met" if target["met"] else "missed"
            text = f"{ahead}: MAPE {target['mape']:.1f} %, asked for under {target['target']:g} %: {verdict}."
        out.print(text, style="green" if target["met"] else "yellow", markup=False, highlight=False)
    for method, why in plain(rolled.failures).items():
        text = f"warning: {method} is left out: {why}"
        err.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if report is not None:
        out.print(f"Report: {report}", markup=False, highlight=False, soft_wrap=True)


def _table(rows: Sequence[Evaluation], horizon: int) -> Table:
    shown = Table(title=f"Up to {horizon:,} minutes ahead", title_justify="left", title_style="bold", show_edge=False)
    shown.add_column("method", overflow="fold")
    for title in (*(title for _, title in _COLUMNS), "80 %", "95 %", "s/fit"):
        shown.add_column(title, justify="right")
    known = {key: [value for row in rows if not math.isnan(value := getattr(row, key))] for key, _ in _COLUMNS}
    least = {key: min(values, default=None) for key, values in known.items()}
    for row in sorted(rows, key=lambda row: (math.isnan(row.mape), row.mape)):
        cells = [_figure(getattr(row, key), least[key], 2 if key == "mase" else 1) for key, _ in _COLUMNS]
        spread = ["-" if value is None else f"{value:.0f}" for value in (row.covers_80, row.covers_95)]
        # A rival learns when it is asked, so its fit is in its forecast.
        style = "bold" if row.method == "served" else ""
        shown.add_row(row.method, *cells, *spread, f"{max(row.fit_seconds, row.predict_seconds):.2f}", style=style)
    return shown


def _figure(value: float, least: float | None, digits: int) -> str:
    if math.isnan(value):
        return "- "
    return f"{value:,.{digits}f}{'*' if value == least else ' '}"
