"""What goes into the records database and comes out of it: `init`, `ingest`, `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, MapOption, app, between, pairs, settings_of
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.show import err, out, progress, show
from nhm_sched_plugin.errors import NhmSchedError


@app.command()
def init(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Create the database and its tables, or bring them up to date."""
    from nhm_sched_plugin.store.schema import init as init_store

    settings = settings_of(config)
    with opened(settings, migrate=False) as store:
        applied = init_store(store)
    text = f"{len(applied)} migrations applied: {', '.join(applied)}" if applied else "Everything is up to date."
    show({"applied": applied}, as_json, lambda: out.print(text, markup=False))


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(help="CSV (also gzip, bzip2, zip), Parquet or SWF.")],
    mapping: MapOption = None,
    constant: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TARGET=VALUE", help="What the file does not say; repeatable."),
    ] = None,
    timezone: Annotated[str, typer.Option(help="Of stamps that carry none.")] = "UTC",
    timestamp_format: Annotated[
        str | None, typer.Option(help="Of stamps that are neither ISO 8601 nor Unix time, as for strptime.")
    ] = None,
    sla_wait_s: Annotated[
        float | None, typer.Option(callback=between(0), help="A ticket that waited at most this long met its SLA.")
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rows go that cannot be used. Default: beside the file.")
    ] = None,
    keep_expired: Annotated[
        bool | None, typer.Option("--keep-expired/--expire", help="Rows older than the retention: keep or expire.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the same file again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a history of tickets into the database."""
    from nhm_sched_plugin.store.ingest import ingest as take_in

    settings = settings_of(config)
    named, constants = pairs(mapping, "--map"), pairs(constant, "--set")
    with opened(settings) as store, progress(f"Ingesting {file.name}") as update:
        report = take_in(
            file,
            store,
            mapping=named,
            constants=constants,
            timezone=timezone,
            timestamp_format=timestamp_format,
            sla_wait_s=sla_wait_s,
            rejects=rejects,
            keep_expired=keep_expired,
            replace=replace,
            progress=update,
        )

    def tell() -> None:
        if not report.already_ingested:
            span = f"{report.first:%Y-%m-%d %H:%M} to {report.last:%Y-%m-%d %H:%M} UTC"
            out.print(f"{report.rows:,} tickets, {span}; {report.rejected:,} rows rejected.")
        for kind, count in list(report.task_types.items())[:10]:
            out.print(f"  {kind or '(no task type)'}: {count:,}", markup=False)
        if len(report.task_types) > 10:
            out.print(f"  and {len(report.task_types) - 10} more task types")
        for warning in report.warnings:
            err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    show(report, as_json, tell)


@app.command()
def explain(decision_id: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell one decision's story: what was seen, expected, advised and done, and what came of it."""
    from nhm_sched_plugin.observe.story import chapters, facts

    settings = settings_of(config)
    with opened(settings) as store:
        decision = store.decision(decision_id)
    if decision is None:
        raise NhmSchedError(
            f"no decision {decision_id!r} in the database; run `nhm-sched drain` if it was made just now"
        )
    known = facts(
        decision,
        confidence_threshold=settings.optimizer.recommendation_confidence_threshold,
        volume_threshold=settings.optimizer.forecast_volume_threshold,
    )

    def tell() -> None:
        for chapter in chapters(known):
            out.print(chapter.title, style="bold", markup=False)
            out.print(chapter.text, markup=False, highlight=False)

    show(known, as_json, tell)
