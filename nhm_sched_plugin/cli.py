"""The `nhm-sched` command. Thin: every command reads its options, calls one function of a room and shows the answer.

Exit codes: 0 good, 1 failed, 2 wrong usage (options or configuration).
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.settings import Settings, load_settings

try:
    import typer
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
except ImportError as missing:  # the host installs without the command line
    sys.exit(f"nhm-sched needs the command-line extra ({missing.name} is missing): pip install 'nhm-sched-plugin[cli]'")

if TYPE_CHECKING:
    from nhm_sched_plugin.twin.traces import Trace

__all__ = ["app", "main"]

app = typer.Typer(
    name="nhm-sched",
    help="Predictive scheduling for workflow orchestrators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
hooks_app = typer.Typer(help="Third-party hooks: what is loaded, and whether it is usable.", no_args_is_help=True)
q_table_app = typer.Typer(help="What the policy has learned.", no_args_is_help=True)
app.add_typer(hooks_app, name="hooks")
app.add_typer(q_table_app, name="q-table")

out = Console()
err = Console(stderr=True)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="NHM_SCHED_CONFIG", help="YAML file; NHM_SCHED_* variables win over it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main() -> NoReturn:
    """Entry point: errors of ours become one line and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except ConfigError as error:
        _fail(error, code=2)
    except NhmSchedError as error:
        _fail(error, code=1)
    sys.exit(0)


def _fail(error: NhmSchedError, code: int) -> NoReturn:
    err.print("error:", style="bold red", end=" ")
    err.print(str(error), markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _show(value: Any, as_json: bool, text: Callable[[], None]) -> None:
    """One result, for a script or for a person."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
    else:
        text()


def _table(rows: Sequence[Mapping[str, Any]], empty: str, title: str | None = None) -> None:
    if not rows:
        out.print(empty)
        return
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    out.print(table)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,.2f}" if isinstance(value, float) else str(value)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float, float | None], None]]:
    """A progress bar on the error stream, so that `--json` stays clean; `update(done, total)` moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def update(done: float, total: float | None = None) -> None:
            bar.update(task, completed=done, total=total)

        yield update


@app.command()
def init(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Create the database and its tables, or bring them up to date."""
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.store.schema import init as init_store

    settings = load_settings(config)
    with open_store(settings) as store:
        applied = init_store(store)
    text = f"{len(applied)} migrations applied: {', '.join(applied)}" if applied else "Everything is up to date."
    _show({"applied": applied}, as_json, lambda: out.print(text))


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(help="CSV (also gzip, bzip2, zip), Parquet or SWF.")],
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", "-m", metavar="TARGET=COLUMN", help="A column by another name; repeatable."),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TARGET=VALUE", help="What the file does not say; repeatable."),
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of stamps that carry none.")] = "UTC",
    sla_wait_s: Annotated[
        float | None, typer.Option(help="A ticket that waited at most this long met its SLA.")
    ] = None,
    keep_expired: Annotated[
        bool | None, typer.Option("--keep-expired/--expire", help="Rows older than the retention: keep or expire.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the same file again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a history of tickets into the database."""
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.store.ingest import ingest as take_in

    settings = load_settings(config)
    named, constants = _pairs(mapping, "--map"), _pairs(constant, "--set")
    with open_store(settings) as store, _progress(f"Ingesting {file.name}") as update:
        report = take_in(
            file,
            store,
            mapping=named,
            constants=constants,
            timezone=timezone,
            sla_wait_s=sla_wait_s,
            keep_expired=keep_expired,
            replace=replace,
            progress=update,
        )

    def tell() -> None:
        if report.already_ingested:
            out.print(f"{file.name} is in the database already; --replace takes it again.")
            return
        out.print(f"{report.rows:,} tickets from {report.first} to {report.last}, {report.rejected:,} rows rejected.")
        for kind, count in list(report.task_types.items())[:10]:
            out.print(f"  {kind or '(no task type)'}: {count:,}", markup=False)
        for warning in report.warnings:
            err.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
        if report.rejects_path is not None:
            out.print(f"Rejected rows with their reasons: {report.rejects_path}", soft_wrap=True)

    _show(_plain(report), as_json, tell)


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise typer.BadParameter(f"{option} {text!r}: write it as NAME=VALUE")
        pairs[name] = value
    return pairs


@app.command()
def train(
    horizon: Annotated[list[int] | None, typer.Option(help="Minutes ahead; repeatable. Default: all.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Only this slice.")] = None,
    risk_band: Annotated[str | None, typer.Option(help="Only this slice.")] = None,
    keep: Annotated[int | None, typer.Option(help="Only the N busiest slices besides the global one.")] = None,
    jobs: Annotated[int, typer.Option(help="Worker processes.")] = 2,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the load forecasters, register them and publish the table that hosts serve from."""
    from nhm_sched_plugin.training.__main__ import show
    from nhm_sched_plugin.training.pipeline import train as fit

    settings = load_settings(config)
    with _progress("Training") as update:
        report = fit(
            settings,
            horizons=horizon,
            task_type=task_type,
            risk_band=risk_band,
            keep=keep,
            jobs=jobs,
            progress=lambda done, total, _: update(done, total),
        )
    _show(_plain(report), as_json, lambda: show(report))
    if report.failed:
        raise typer.Exit(1)


@app.command()
def models(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Every registered model version with its aliases and backtest errors."""
    from nhm_sched_plugin.training.registry import Registry

    registry = Registry.of(load_settings(config))
    rows = [
        {
            "name": found.name,
            "version": found.version,
            "aliases": ", ".join(found.aliases),
            "mape": found.metrics.get("mape"),
            "created": _utc(found.created_at),
        }
        for found in (registry.list() if registry.exists() else [])
    ]
    _show(rows, as_json, lambda: _table(rows, "No models yet; run `nhm-sched train`."))


@app.command()
def approve(
    name: str,
    version: str,
    by: Annotated[str, typer.Option("--by", help="Who approves.")],
    config: ConfigOption = None,
) -> None:
    """Note a person's approval of a model version: one of the four criteria for production."""
    from nhm_sched_plugin.training.promotion import approve as note

    note(load_settings(config), name, version, by)
    out.print(f"{name} version {version} is approved by {by}.", markup=False)


@app.command()
def promote(name: str, version: str, config: ConfigOption = None) -> None:
    """Give a model version the alias `production`, if it meets all criteria; else say which are missing."""
    from nhm_sched_plugin.training.promotion import promote as promote_version

    promoted = promote_version(load_settings(config), name, version)
    out.print(f"{promoted.name} version {promoted.version} is in production.", markup=False)


@app.command()
def forecast(
    horizon: Annotated[list[int] | None, typer.Option(help="Minutes ahead; repeatable. Default: all.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Only this slice.")] = None,
    risk_band: Annotated[str | None, typer.Option(help="Only this slice.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a host would be told now, from the published table."""
    from nhm_sched_plugin.forecasting.table import SnapshotForecaster

    settings = load_settings(config)
    forecaster = SnapshotForecaster(settings.forecast_table_path)
    served = [
        forecaster.forecast(minutes, time.time(), task_type, risk_band)
        for minutes in horizon or settings.ml.forecasting.horizons
    ]
    found = [answer for answer in served if answer is not None]
    if not found:
        raise NhmSchedError(forecaster.health().detail)

    def tell() -> None:
        rows = [
            {
                "horizon": f"{answer.horizon_minutes} min",
                "tickets in that hour": answer.points[-1].mean,
                "10 %": answer.points[-1].quantiles[0.1],
                "90 %": answer.points[-1].quantiles[0.9],
                "confidence": answer.confidence,
                "method": answer.method,
            }
            for answer in found
        ]
        _table(rows, "", f"Forecast made {found[0].generated_at:%Y-%m-%d %H:%M} UTC, starting now")

    _show(_plain(found), as_json, tell)


@app.command()
def learn(
    file: Annotated[Path | None, typer.Argument(help="A trace (CSV or SWF); default: the database's history.")] = None,
    decisions: Annotated[int, typer.Option(min=1, help="Simulated decisions.")] = 100_000,
    seed: int = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pre-train the policy in the twin."""
    from nhm_sched_plugin.twin.learn import pretrain

    settings = load_settings(config)
    trace = _trace(settings, file, None)
    with _progress("Learning") as update:
        report = pretrain(settings, trace, decisions=decisions, seed=seed, progress=lambda share: update(share, 1.0))
    _show(_plain(report), as_json, lambda: _table([_plain(report)], ""))


@app.command()
def replay(
    file: Annotated[Path | None, typer.Argument(help="A trace (CSV or SWF); default: the database's history.")] = None,
    policies: Annotated[str, typer.Option(help="Comma-separated: plugin, rules, static.")] = "plugin,rules,static",
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", "-m", metavar="TARGET=COLUMN", help="A column by another name; repeatable."),
    ] = None,
    train_fraction: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of the time to train on.")] = 0.7,
    seed: int = 0,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Write everything as JSON.")] = None,
    report_path: Annotated[
        Path | None, typer.Option("--report", metavar="OUT.html", help="Write a report with plots.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the same tickets through several policies and compare SLA, cost and waits."""
    from nhm_sched_plugin.twin.replay import replay as run
    from nhm_sched_plugin.twin.summary import report_data

    settings = load_settings(config)
    trace = _trace(settings, file, _pairs(mapping, "--map"))
    names = [name.strip() for name in policies.split(",") if name.strip()]
    with _progress("Replaying") as update:
        report = run(
            trace,
            names,
            settings,
            train_fraction=train_fraction,
            seed=seed,
            progress=lambda _, share: update(share, 1.0),
        )
    data = report_data(report)
    if json_path is not None:
        json_path.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if report_path is not None:
        from nhm_sched_plugin.observe.report import render_report

        data.report_path = str(render_report(data, report_path))
    from nhm_sched_plugin.observe.summary import print_summary

    print_summary(data, out)


def _trace(settings: Settings, file: Path | None, mapping: dict[str, str] | None) -> Trace:
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.twin.traces import Trace, read_trace

    if file is not None:
        return read_trace(file, mapping=mapping)
    with open_store(settings) as store:
        frame = store.execution_logs()
    if frame.empty:
        raise NhmSchedError("the database holds no tickets; run `nhm-sched ingest FILE` first, or name a trace file")
    return Trace.from_frame(frame.dropna(subset=["actual_duration_ms"]))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for state and report.")] = Path("demo-output"),
    days: Annotated[int, typer.Option(min=4, max=60, help="Length of the replayed end of the year.")] = 14,
    as_json: JsonOption = False,
) -> None:
    """The whole loop on a year of real flights: ingest, train, learn, decide, record, report."""
    from nhm_sched_plugin.demo.loop import run
    from nhm_sched_plugin.observe.summary import print_summary, summary_json

    with _steps() as step:
        data = run(output, step, days=days)
    _show(summary_json(data), as_json, lambda: print_summary(data, out))


@contextmanager
def _steps() -> Iterator[Callable[[str], AbstractContextManager[Callable[[float, float | None], None]]]]:
    """A list of steps that stay on the screen, each with its bar and its time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as bars:

        @contextmanager
        def step(title: str) -> Iterator[Callable[[float, float | None], None]]:
            task = bars.add_task(title, total=None)

            def update(done: float, total: float | None = None) -> None:
                bars.update(task, completed=done, total=total)

            yield update
            bars.update(task, completed=1, total=1)
            bars.stop_task(task)

        yield step


@app.command()
def drain(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Deliver what waits in the host's spool to the database, exactly once in effect."""
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.store.drain import drain as drain_spool
    from nhm_sched_plugin.store.spool import Spool

    settings = load_settings(config)
    spool = Spool(settings.spool_path, settings.recording.spool_max_mb * 1024 * 1024)
    with open_store(settings) as store, _progress("Draining") as update:
        result = drain_spool(spool, store, progress=update)
    _show(_plain(result), as_json, lambda: _table([_plain(result)], ""))


@app.command()
def explain(decision_id: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell one decision's story: what was seen, expected, advised and done, and what came of it."""
    from nhm_sched_plugin.observe.story import chapters, facts
    from nhm_sched_plugin.store.client import open_store

    settings = load_settings(config)
    with open_store(settings) as store:
        decision = store.decision(decision_id)
    if decision is None:
        raise NhmSchedError(
            f"no decision {decision_id!r} in the database; run `nhm-sched drain` if it was made just now"
        )
    optimizer = settings.optimizer
    known = facts(
        decision,
        confidence_threshold=optimizer.recommendation_confidence_threshold,
        volume_threshold=optimizer.forecast_volume_threshold,
    )

    def tell() -> None:
        for chapter in chapters(known):
            out.print(f"[bold]{chapter.title}[/bold]")
            out.print(chapter.text, markup=False, highlight=False)

    _show(known, as_json, tell)


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the configuration, the rule book, the hooks, the snapshots and the spool, without starting anything."""
    from nhm_sched_plugin.host import SchedulerHost

    settings = load_settings(config)
    quiet = settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"enabled": False})})
    with SchedulerHost.from_config(quiet) as host:
        rows = [{"component": part.component, "ok": part.ok, "detail": part.detail} for part in host.health()]
    _show(rows, as_json, lambda: _table([{**row, "ok": "yes" if row["ok"] else "NO"} for row in rows], ""))
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@hooks_app.command("list")
def hooks_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Every plugin and drop-in found, with the hooks it implements."""
    rows = _hook_rows(load_settings(config))
    _show(rows, as_json, lambda: _table(rows, "No third-party plugins and no drop-ins found."))


@hooks_app.command("check")
def hooks_check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """As `list`, but fails when a plugin or drop-in is not usable."""
    rows = _hook_rows(load_settings(config))
    _show(rows, as_json, lambda: _table(rows, "No third-party plugins and no drop-ins found."))
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def _hook_rows(settings: Settings) -> list[dict[str, Any]]:
    from nhm_sched_plugin.extension import inspect_hooks

    return [{**found._asdict(), "hooks": ", ".join(found.hooks)} for found in inspect_hooks(settings)]


@q_table_app.command("show")
def q_table_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The learned values: a row per state, a column per action, with the number of visits."""
    from nhm_sched_plugin.policy.qtable import QTable

    path = load_settings(config).q_table_path
    table = QTable.load(path) if path.exists() else QTable()
    rows = [
        {"state": state, "action": arm, "q": cell.q, "visits": cell.visits, "mean": cell.mean}
        for state, row in sorted(table.rows.items())
        for arm, cell in sorted(row.items())
    ]
    _show(rows, as_json, lambda: _table(rows, f"Nothing learned yet ({path})."))


@q_table_app.command("reset")
def q_table_reset(
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget everything learned; the old table is kept beside the new one."""
    from nhm_sched_plugin.policy.qtable import reset

    path = load_settings(config).q_table_path
    if not yes:
        typer.confirm(f"Forget everything learned in {path}?", abort=True)
    kept = reset(path)
    out.print(f"Reset. The old table is kept as {kept}." if kept else "There was nothing to forget.")


def _utc(epoch: float) -> str:
    return f"{dt.datetime.fromtimestamp(epoch, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _plain(value: Any) -> Any:
    """Structs, named tuples and paths as what JSON and tables can show."""
    import msgspec

    return msgspec.to_builtins(value, enc_hook=str)
