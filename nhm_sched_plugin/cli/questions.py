"""What people ask the records: `decisions`, `arms`, `bottlenecks`, `misses`."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, between, settings_of
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.show import show, table
from nhm_sched_plugin.types import Action, Arm, Reason, Source

_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")
_MINUTES: Final = {"m": 1, "h": 60, "d": 1440, "w": 10_080}


def moment(text: str) -> dt.datetime:
    """`2026-03-01`, `2026-03-01T10:00+02:00` (UTC without a zone) or, so long ago, `30m`, `24h`, `7d`, `2w`."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return dt.datetime.now(dt.UTC) - dt.timedelta(minutes=float(ago.group(1)) * _MINUTES[ago.group(2)])
    try:
        given = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time: write 2026-03-01, 2026-03-01T10:00+02:00, or 24h, 7d, 2w for so long ago"
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=dt.UTC)


SinceOption = Annotated[
    dt.datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="Not before: 2026-03-01, or 24h, 7d, 2w ago. UTC."),
]
UntilOption = Annotated[dt.datetime | None, typer.Option(parser=moment, metavar="TIME", help="Before.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", callback=between(1, 100_000), help="At most so many.")]


@app.command()
def decisions(
    since: SinceOption = None,
    until: UntilOption = None,
    arm: Annotated[Arm | None, typer.Option(help="Where the rollout put it.")] = None,
    action: Annotated[Action | None, typer.Option(help="What the host was asked to do.", case_sensitive=False)] = None,
    reason: Annotated[Reason | None, typer.Option(help="Why that.")] = None,
    source: Annotated[Source | None, typer.Option(help="Who chose it.")] = None,
    ticket: Annotated[str | None, typer.Option(help="Of this ticket only.")] = None,
    task_type: Annotated[str | None, typer.Option(help="Of tickets of this type only.")] = None,
    missed: Annotated[bool, typer.Option("--missed", help="Only of tickets that missed their SLA.")] = False,
    limit: LimitOption = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was decided and what came of it, newest first; `explain` tells one of them whole."""
    from nhm_sched_plugin.pseudonyms import pseudonyms
    from nhm_sched_plugin.store import answers

    settings = settings_of(config)
    hidden = pseudonyms(settings.recording)
    if ticket is not None and hidden is not None and "ticket_id" in hidden.fields:
        ticket = hidden.of(ticket)
    with opened(settings) as store:
        rows = answers.decisions(
            store,
            since=since,
            until=until,
            ticket=ticket,
            missed=missed,
            limit=limit,
            arm=arm,
            action=action,
            reason=reason,
            source=source,
            task_type=task_type,
        )
    show(rows, as_json, lambda: table([_decision(row) for row in rows], "No such decisions."))


def _decision(row: Mapping[str, Any]) -> dict[str, Any]:
    """What fits on a screen."""
    target = row["parameters"].get("target_workers")
    return {
        "decision": row["decision_id"],
        "at": _at(row["decided_at"]),
        "ticket": row["ticket_id"],
        "action": row["action"] + (f" to {target}" if target else ""),
        "arm": row["arm"],
        "reason": row["reason"],
        "conf": row["confidence"],
        "SLA": {True: "met", False: "missed", None: None}[row["sla_met"]],
        "reward": row["reward"],
    }


@app.command()
def arms(
    since: SinceOption = None, until: UntilOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Compare treatment, control and shadow; `experiment result` says whether the difference is luck."""
    from nhm_sched_plugin.store import answers

    with opened(settings_of(config)) as store:
        rows = answers.arms(store, since=since, until=until)
    shown = [
        {
            "arm": row["arm"],
            "decisions": row["decisions"],
            "explored": row["explored"],
            "rewarded": row["rewarded"],
            "reward": None if row["mean_reward"] is None else f"{row['mean_reward']:.3f}",
            "±": None if row["reward_error"] is None else f"{row['reward_error']:.3f}",
            "SLA": _percent(row["sla_rate"]),
            "mean s": _seconds(row["mean_duration_ms"]),
            "refused": row["not_applied"],
        }
        for row in rows
    ]
    show(rows, as_json, lambda: table(shown, "No decisions."))


@app.command()
def bottlenecks(
    since: SinceOption = None,
    until: UntilOption = None,
    queue_depth: Annotated[
        float, typer.Option(callback=between(0), help="On average over the hour, above this.")
    ] = 100,
    limit: LimitOption = 10,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the hours with a deep queue, those with most missed SLAs first. Default: of the last 7 days."""
    from nhm_sched_plugin.store import answers

    if since is None:
        since = answers.days_ago(7)
    with opened(settings_of(config)) as store:
        rows = answers.bottlenecks(store, since=since, until=until, queue_depth=queue_depth, limit=limit)
    shown = [
        {
            "hour": _at(row["hour"]),
            "tickets": row["ticket_volume"],
            "queue": row["avg_queue_depth"],
            "deepest": row["max_queue_depth"],
            "missed": row["sla_missed"],
            "of known": row["sla_known"],
            "miss rate": _percent(row["sla_miss_rate"]),
        }
        for row in rows
    ]
    show(rows, as_json, lambda: table(shown, f"No hour with more than {queue_depth:g} tickets in the queue."))


@app.command()
def misses(
    since: SinceOption = None,
    until: UntilOption = None,
    tickets: Annotated[bool, typer.Option("--tickets", help="The slowest tickets instead of the causes.")] = False,
    limit: LimitOption = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List why SLAs were missed, what cost most time first. Default: in the last 7 days."""
    from nhm_sched_plugin.store import answers

    if since is None:
        since = answers.days_ago(7)
    with opened(settings_of(config)) as store:
        ask = answers.misses if tickets else answers.miss_causes
        rows = ask(store, since=since, until=until, limit=limit)
    shown = [_ticket(row) if tickets else _cause(row) for row in rows]
    show(rows, as_json, lambda: table(shown, "No missed SLA is recorded there."))


def _cause(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "cause": row["cause"],
        "slice": "/".join(part for part in (row["task_type"], row["risk_band"]) if part) or "-",
        "missed": row["missed"],
        "share": _percent(row["share"]),
        "mean s": _seconds(row["mean_duration_ms"]),
        "usual s": _seconds(row["usual_duration_ms"]),
        "queue": row["mean_queue_depth"],
        "hours": row["hours"],
    }


def _ticket(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ticket": row["ticket_id"],
        "at": _at(row["timestamp"]),
        "slice": "/".join(part for part in (row["task_type"], row["risk_band"]) if part) or "-",
        "cause": row["cause"],
        "status": row["status"],
        "worker": row["worker_id"] or None,
        "s": _seconds(row["actual_duration_ms"]),
        "usual s": _seconds(row["usual_ms"]),
        "queue": row["queue_depth_at_start"],
    }


def _at(stamp: dt.datetime) -> str:
    return f"{stamp:%Y-%m-%d %H:%M}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
