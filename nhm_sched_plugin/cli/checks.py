"""Looking before starting: `doctor`, `hooks list`, `hooks check`, `hooks trace`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, settings_of
from nhm_sched_plugin.cli.asking import StateOption, measured
from nhm_sched_plugin.cli.show import as_json as as_json_text
from nhm_sched_plugin.cli.show import moment, out, plain, show, table
from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.words import count
from nhm_sched_plugin.settings import Settings

hooks_app = typer.Typer(help="Third-party hooks: what is loaded, and whether it is usable.", no_args_is_help=True)


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check configuration, folder, rule book, hooks, agent, snapshots, cache, spool, database. Changes nothing."""
    settings = settings_of(config)
    rows = [
        {"component": "configuration", "ok": True, "detail": str(config or "built-in values and NHM_SCHED_*")},
        *(_checked(name, check, settings) for name, check in CHECKS.items()),
        *(
            {"component": f"hook {row['name']}", "ok": not row["problem"], "detail": row["problem"] or row["origin"]}
            for row in _hook_rows(settings)
        ),
    ]
    show(rows, as_json, lambda: table([{**row, "ok": "yes" if row["ok"] else "NO"} for row in rows]))
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def _checked(name: str, check: Callable[[Settings], str], settings: Settings) -> dict[str, Any]:
    try:
        return {"component": name, "ok": True, "detail": check(settings)}
    except (NhmSchedError, OSError) as error:
        return {"component": name, "ok": False, "detail": str(error)}


def _folder(settings: Settings) -> str:
    folder = settings.data_dir
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise NhmSchedError(f"data_dir = {folder}: {nearest} cannot be written; choose another folder, or its owner")
    return f"{folder}{'' if nearest == folder else ' (made on first use)'}"


def _rules(settings: Settings) -> str:
    from nhm_sched_plugin.decision.rulebook import RuleBook, resolve_rule_book

    path = resolve_rule_book(settings.fallback.rule_book)
    return f"{path}, {len(RuleBook.load(path).rule_names)} rules"


def _agent(settings: Settings) -> str:
    if settings.optimizer.endpoint is None:
        return "none: optimizer.endpoint is unset, each host advises itself"
    from nhm_sched_plugin.advice.remote.survey import survey

    return survey(settings)


def _forecast(settings: Settings) -> str:
    from nhm_sched_plugin.forecasting.table import read_table

    if settings.optimizer.endpoint is not None and not settings.served_forecast_path.exists():
        return "none from the agent yet"
    found = read_table(settings.served_forecast_path)
    return f"{len(found.slices)} slices, model {found.model_version}, made {moment(found.generated_at)}"


def _policy(settings: Settings) -> str:
    from nhm_sched_plugin.policy.demand import DemandModel
    from nhm_sched_plugin.policy.qtable import NO_TRIALS, QTable

    planner = "planner not calibrated"
    if settings.served_planner_path.exists():
        model = DemandModel.load(settings.served_planner_path)
        planner = f"planner calibrated on {count(model.tickets, 'ticket')} until {moment(model.end)}"
    if not settings.served_q_table_path.exists():
        return f"nothing learned yet, {planner}"
    found = QTable.load(settings.served_q_table_path)
    detail = f"{len(found)} states, {found.updates:,} updates, {planner}"
    return detail if found.overall else f"{detail}; {NO_TRIALS}"


def _cache(settings: Settings) -> str:
    caching = settings.ml.caching
    if not caching.in_redis:
        return "in process: ml.caching.redis_url is unset" if caching.enabled else "off: ml.caching.enabled is false"
    from nhm_sched_plugin.store.cache import ttls
    from nhm_sched_plugin.store.redis_cache import RedisCache

    metrics = Metrics()
    cache = RedisCache(caching, ttls(settings), metrics, Faults(metrics))
    try:
        return f"{cache.check()} answers"
    finally:
        cache.close()


def _spool(settings: Settings) -> str:
    from nhm_sched_plugin.store.spool import spool_of

    files = sorted(settings.spool_path.glob("*.sqlite"))
    if not files:
        return "empty"
    for file in files:
        if (verdict := _verdict(file)) != "ok":
            raise NhmSchedError(
                f"{file} is damaged ({verdict}); `nhm-sched drain` sets it aside and saves what can be read"
            )
    spool = spool_of(settings)
    waiting, refused = spool.tally()
    spool.close()
    return f"{count(waiting, 'record')} waiting for `nhm-sched drain`" + (
        f", {refused:,} in quarantine" if refused else ""
    )


def _verdict(file: Path) -> str:
    """What SQLite says of a spool file. Opening it as a spool would repair it, and this command changes nothing."""
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)


def _database(settings: Settings) -> str:
    from nhm_sched_plugin.store.client import connect, target

    place = target(settings)
    if place.path is not None:  # it belongs to one process at a time, which may well be another one now
        return f"{place}{'' if place.path.exists() else ' (made by `nhm-sched init`)'}"
    connect(settings).close()
    return f"{place} answers"


CHECKS: dict[str, Callable[[Settings], str]] = {
    "data folder": _folder,
    "rule book": _rules,
    "agent": _agent,
    "forecast": _forecast,
    "policy": _policy,
    "cache": _cache,
    "spool": _spool,
    "database": _database,
}


@hooks_app.command("list")
def hooks_list(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Every plugin and drop-in found, with the hooks it implements."""
    rows = _hook_rows(settings_of(config))
    show(rows, as_json, lambda: _list(rows))


@hooks_app.command("check")
def hooks_check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """As `list`, but fails when a plugin or drop-in is not usable."""
    rows = _hook_rows(settings_of(config))
    show(rows, as_json, lambda: _list(rows))
    if any(row["problem"] for row in rows):
        raise typer.Exit(1)


def _list(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("No third-party plugins and no drop-ins found.")
    for row in rows:
        out.print(f"{row['name']}  ({row['origin']})", style="bold", markup=False, highlight=False, soft_wrap=True)
        if row["hooks"]:
            out.print(f"  hooks: {row['hooks']}", markup=False, highlight=False)
        if row["problem"]:
            out.print(f"  PROBLEM: {row['problem']}", style="red", markup=False, highlight=False)


def _hook_rows(settings: Settings) -> list[dict[str, Any]]:
    from nhm_sched_plugin.extension import inspect_hooks

    return [{**found._asdict(), "hooks": ", ".join(found.hooks)} for found in inspect_hooks(settings)]


@hooks_app.command("trace")
def hooks_trace(
    state: StateOption = None,
    task_type: Annotated[str | None, typer.Option(help="Of the ticket.")] = None,
    risk_band: Annotated[str | None, typer.Option(help="Of the ticket.")] = None,
    tick: Annotated[bool, typer.Option("--tick", help="Decide for the pool, without a ticket.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make one decision and show every hook call in order, with its time.

    Nothing is recorded, but the plugins' own hooks really run, `nhm_sched_actuate` included.
    """
    from nhm_sched_plugin.cli.tracing import trace_decision
    from nhm_sched_plugin.types import Ticket

    numbers = measured(state)
    ticket = None if tick else Ticket(ticket_id="trace", task_type=task_type, risk_band=risk_band)
    decision, calls = trace_decision(settings_of(config), ticket, numbers)

    def tell() -> None:
        for number, call in enumerate(calls, 1):
            head = f"{number}. {call['hook']} by {call['plugins']}, {call['microseconds']:,.0f} us"
            out.print(head, style="bold", markup=False, highlight=False, soft_wrap=True)
            answer = as_json_text(call["answer"], indent=0)
            out.print(f"   {answer[:300]}{' ...' if len(answer) > 300 else ''}", markup=False, soft_wrap=True)
        said = f"{decision.action.value}, because {decision.reason.value}; {decision.source.value} decided"
        out.print(f"\n{said}.", markup=False, highlight=False)

    show({"calls": calls, "decision": plain(decision)}, as_json, tell)


app.add_typer(hooks_app, name="hooks")
