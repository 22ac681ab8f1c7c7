"""The `nhm-sched` command. Thin: every command reads its options, calls one function of a room and shows the answer.

Exit codes: 0 good, 1 failed, 2 wrong usage (options or configuration).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.settings import Settings, load_settings

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as missing:  # the host installs without the command line
    sys.exit(f"nhm-sched needs the command-line extra ({missing.name} is missing): pip install 'nhm-sched-plugin[cli]'")

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


def _plain(value: Any) -> Any:
    """Structs, named tuples and paths as what JSON and tables can show."""
    import msgspec

    return msgspec.to_builtins(value, enc_hook=str)
