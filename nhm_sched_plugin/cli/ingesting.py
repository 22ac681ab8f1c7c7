"""A history of tickets into the database: `ingest`, and the profiles that say how a source is to be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from pydantic import SecretStr

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, MapOption, app, between, pairs, settings_of
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.show import counting, err, out, plain, record, show, table
from nhm_sched_plugin.errors import IngestError, StoreError
from nhm_sched_plugin.observe.words import count
from nhm_sched_plugin.settings import Settings

if TYPE_CHECKING:
    from nhm_sched_plugin.store.ingest import IngestReport
    from nhm_sched_plugin.store.ingest.preview import Preview
    from nhm_sched_plugin.store.ingest.profiles import Profile
    from nhm_sched_plugin.store.ingest.run import Source
    from nhm_sched_plugin.store.ingest.tables_in import Table
    from nhm_sched_plugin.store.repository import Store


@app.command()
def ingest(
    file: Annotated[Path | None, typer.Argument(help="CSV (also gzip, bzip2, zip), Parquet or SWF.")] = None,
    from_table: Annotated[
        str | None, typer.Option(metavar="DB.TABLE", help="A table instead of a file; of the same server or of --dsn.")
    ] = None,
    dsn: Annotated[
        str | None,
        typer.Option(envvar="NHM_SCHED_INGEST_DSN", help="Of the server that has the table, as in ml.clickhouse.dsn."),
    ] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="Which rows of the table.")] = None,
    mapping: MapOption = None,
    constant: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TARGET=VALUE", help="What the source does not say; repeatable."),
    ] = None,
    timezone: Annotated[str | None, typer.Option(help="Of stamps that carry none. Default: UTC.")] = None,
    timestamp_format: Annotated[
        str | None, typer.Option(help="Of stamps that are neither ISO 8601 nor Unix time, as for strptime.")
    ] = None,
    sla_wait_s: Annotated[
        float | None, typer.Option(callback=between(0), help="A ticket that waited at most this long met its SLA.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="A saved profile or a YAML file; other options win over it.")
    ] = None,
    save_profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keep how the source was read, for --profile.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only report what would be written. Exit code 1: nothing could be.")
    ] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="Where rows go that cannot be used. Default: beside the file.")
    ] = None,
    keep_expired: Annotated[
        bool | None, typer.Option("--keep-expired/--expire", help="Rows older than the retention: keep or expire.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the same source again.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a history of tickets into the database. An interrupted run is gone on with by the same command."""
    from nhm_sched_plugin.store.ingest.profiles import Profile, load_profile, profile_path

    if (file is None) == (from_table is None):
        raise typer.BadParameter("name a file or --from-table, one of them")
    if from_table is None and (where is not None or dsn is not None):
        raise typer.BadParameter("--where and --dsn go with --from-table")
    settings = settings_of(config)
    target = None if save_profile is None else profile_path(settings.data_dir, save_profile)
    how = (Profile() if profile is None else load_profile(settings.data_dir, profile)).changed(
        mapping=pairs(mapping, "--map"),
        constants=pairs(constant, "--set"),
        timezone=timezone,
        timestamp_format=timestamp_format,
        sla_wait_s=sla_wait_s,
    )
    with _database(settings, check) as store, _table(settings, store, from_table, dsn, where) as source:
        if check:
            found = _checked(store, file, source, how)
        else:
            assert store is not None  # noqa: S101 - only a check may find none
            report = _taken(
                store, file, source, how, {"rejects": rejects, "keep_expired": keep_expired, "replace": replace}
            )
    if target is not None and not (check and found.problem):
        how.save(target)
        err.print(f"saved: {target}", markup=False, highlight=False, soft_wrap=True)
    if check:
        show(found, as_json, lambda: _tell_check(found))
        if found.problem:
            raise typer.Exit(1)
    else:
        show(report, as_json, lambda: _tell(report))


@app.command(name="ingest-profiles")
def ingest_profiles(
    name: Annotated[str | None, typer.Argument(help="Show this one. Default: list them.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the profiles that `ingest --save-profile` has kept: YAML files to edit and share."""
    from nhm_sched_plugin.store.ingest.profiles import load_profile, profile_path, saved_profiles

    folder = settings_of(config).data_dir
    if name is None:
        listed = [{"profile": known, "file": str(profile_path(folder, known))} for known in saved_profiles(folder)]
        show(listed, as_json, lambda: table(listed, "No profiles yet: `nhm-sched ingest --save-profile NAME`."))
        return
    kept = load_profile(folder, name)
    values = msgspec.to_builtins(kept)
    show(values, as_json, lambda: record(values))


@contextlib.contextmanager
def _database(settings: Settings, check: bool) -> Iterator[Store | None]:
    """Where the rows go. For a check as it is, and None where there is none yet: it writes nothing."""
    from nhm_sched_plugin.store.client import target

    path = target(settings).path
    if check and path is not None and not path.exists():
        yield None
    else:
        with opened(settings, migrate=not check) as store:
            yield store


@contextlib.contextmanager
def _table(
    settings: Settings, store: Store | None, name: str | None, dsn: str | None, where: str | None
) -> Iterator[Table | None]:
    from nhm_sched_plugin.store.ingest.tables_in import Table

    if name is None:
        yield None
    elif dsn is None:
        if store is None:
            raise IngestError(f"--from-table {name}: there is no database yet; --dsn names the one that has the table")
        yield Table(store, name, where=where)
    else:
        from nhm_sched_plugin.store.client import open_store

        # Nothing of the own database's access goes to another server.
        other = type(settings.ml.clickhouse)(dsn=SecretStr(dsn))
        ml = settings.ml.model_copy(update={"clickhouse": other})
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(open_store(settings.model_copy(update={"ml": ml}), migrate=False))
                found = Table(source, name, where=where)
            except StoreError as error:
                raise IngestError(str(error).replace("ml.clickhouse.dsn", "--dsn")) from None
            yield found  # from here on the own database's errors come through here, too


def _taken(store: Store, file: Path | None, source: Table | None, how: Profile, options: Any) -> IngestReport:
    from nhm_sched_plugin.store.ingest import ingest as take_file
    from nhm_sched_plugin.store.ingest import ingest_table

    if source is not None:
        with counting(f"Ingesting {source.name}") as (update, rows):
            return ingest_table(source, store, profile=how, progress=update, rows=rows, **options)
    assert file is not None  # noqa: S101 - for the type checker: one of the two is given
    with counting(f"Ingesting {file.name}") as (update, rows):
        return take_file(file, store, profile=how, progress=update, rows=rows, **options)


def _checked(store: Store | None, file: Path | None, source: Table | None, how: Profile) -> Preview:
    import functools

    from nhm_sched_plugin.store.ingest import file_source
    from nhm_sched_plugin.store.ingest.preview import preview
    from nhm_sched_plugin.store.schema.retention import current_days
    from nhm_sched_plugin.store.schema.tables import RETENTION_DAYS

    reader: Source
    if source is not None:
        name, reader = source.name, functools.partial(source.chunks, how)
    else:
        assert file is not None  # noqa: S101 - for the type checker
        name, reader = file.name, file_source(file, how)
    ages = {} if store is None else current_days(store)
    ready = store if "execution_logs" in ages else None
    days = ages.get("execution_logs", RETENTION_DAYS["execution_logs"])
    with counting(f"Checking {name}") as (update, rows):
        return preview(reader, name, how, store=ready, retention_days=days, progress=update, rows=rows)


def _tell(report: IngestReport) -> None:
    if not report.already_ingested:
        span = f"{report.first:%Y-%m-%d %H:%M} to {report.last:%Y-%m-%d %H:%M} UTC"
        out.print(f"{count(report.rows, 'ticket')}, {span}; {count(report.rejected, 'row')} rejected.")
    if report.resumed_rows:
        out.print(f"  {report.resumed_rows:,} of them by a run that was interrupted")
    _tell_types(report.task_types)
    for warning in report.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _tell_types(task_types: Any) -> None:
    for kind, tickets in list(task_types.items())[:10]:
        out.print(f"  {kind or '(no task type)'}: {tickets:,}", markup=False)
    if len(task_types) > 10:
        out.print(f"  and {count(len(task_types) - 10, 'more task type')}")


def _tell_check(found: Preview) -> None:
    if found.problem:
        err.print(f"error: {found.problem}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    if not (found.rows or found.rejected):
        return
    twice = found.duplicates
    facts: dict[str, Any] = {
        "would be written": count(found.rows, "row"),
        "would be rejected": count(found.rejected, "row"),
    }
    if found.first and found.last:
        facts["from"], facts["to"] = f"{found.first:%Y-%m-%d %H:%M:%S} UTC", f"{found.last:%Y-%m-%d %H:%M:%S} UTC"
        facts["hours without a ticket"] = found.gap_hours
    facts |= {
        "rows that repeat one of the source": twice.rows_within,
        "rows that are in the table already": twice.rows_elsewhere,
        "ticket ids in several rows": twice.tickets_within,
        "ticket ids in the table already": twice.tickets_elsewhere,
        "older than the retention": found.expired,
        "columns not used": ", ".join(found.unmapped) or "none",
        "targets left at their default": ", ".join(found.absent) or "none",
    }
    record(facts)
    table([
        {"target": target, "column": column, "type": found.types.get(column, "text")}
        for target, column in found.mapped.items()
    ])  # fmt: skip
    if found.reasons:
        table([plain(reason) for reason in found.reasons[:10]], title="Rejected")
    if found.gaps:
        table([{"gap from": f"{gap.start:%Y-%m-%d %H:%M}", "hours": gap.hours} for gap in found.gaps], title="Gaps")
    _tell_types(found.task_types)
