"""How a database gets from what it has to what it should have.

Migrations are numbered and recorded in `schema_migrations`; every statement can be repeated, so an interrupted run is
simply run again. A database that holds only the two tables printed in the specification is upgraded in place. What they
are made of is in `tables` and `views`; how the result is checked in `drift`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.schema import tables as t
from nhm_sched_plugin.store.schema.cluster import on_cluster
from nhm_sched_plugin.store.schema.drift import differences
from nhm_sched_plugin.store.schema.retention import changes, current_days, modify
from nhm_sched_plugin.store.schema.tables import RETENTION_DAYS
from nhm_sched_plugin.store.schema.views import FEATURES, PROJECTION, VIEWS

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["FEATURES", "MIGRATIONS", "RETENTION_DAYS", "Migration", "Report", "Step", "init", "plan", "upgrade"]


class Migration(NamedTuple):
    """One step of the schema. `{db}` in a statement stands for the database."""

    version: int
    name: str
    statements: tuple[str, ...]


class Step(msgspec.Struct, frozen=True):
    """What is to be done: a migration (its `version`), or 0 for what prepares and follows them."""

    version: int
    name: str
    statements: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `upgrade` has done, or would do. `problems` is empty, or the database does not fit this release."""

    applied: tuple[str, ...] = ()
    retention: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


# The new rule keeps more than the old one did, so there is no need to rewrite a large table for it.
_AS_IT_IS: Final = "SETTINGS materialize_ttl_after_modify = 0"
_TOKENS: Final = "ALTER TABLE {db}.%s MODIFY SETTING non_replicated_deduplication_window = 1000"
_PACKED: Final = ("ticket_id", "worker_id", "decision_id")


def _kept_ttl(table: t.Table) -> str:
    age = t.age_clause(table.age, RETENTION_DAYS[table.name])
    return f"ALTER TABLE {{db}}.{table.name} MODIFY TTL {age} {_AS_IT_IS}"


MIGRATIONS: Final = (
    Migration(1, "tables of the specification", (t.EXECUTION_LOGS.create, t.TELEMETRY.create)),
    Migration(
        2,
        "SLA, queue depth, origin and retention by row",
        (
            t.EXECUTION_LOGS.add_later,
            t.TELEMETRY.add_later,
            # An insert that the client repeats because the answer was lost is recognised by its token.
            _TOKENS % "execution_logs",
            _TOKENS % "telemetry_metrics",
            _kept_ttl(t.EXECUTION_LOGS),
            _kept_ttl(t.TELEMETRY),
        ),
    ),
    Migration(
        3, "decisions and outcomes", (t.DECISIONS.create, t.OUTCOMES.create, VIEWS["scheduling_decisions"])
    ),
    Migration(4, "queue snapshots and forecasts", (t.SNAPSHOTS.create, t.FORECASTS.create)),
    Migration(5, "log of ingested files", (t.INGESTED.create,)),
    Migration(
        6, "features by hour", (VIEWS["tickets"], VIEWS["hours_alive"], VIEWS["features_hourly"])
    ),
    Migration(
        7,
        "sums by hour, questions as views",
        (
            # Texts that hardly repeat: from now on; what is there is packed when the engine merges it.
            *(f"ALTER TABLE {{db}}.execution_logs MODIFY COLUMN {name} CODEC(ZSTD(1))" for name in _PACKED),
            PROJECTION,
            # `DELETE FROM`, as for a file that is taken in again, would be refused otherwise.
            "ALTER TABLE {db}.execution_logs MODIFY SETTING lightweight_mutation_projection_mode = 'rebuild'",
            "ALTER TABLE {db}.execution_logs MATERIALIZE PROJECTION by_hour",
            *(VIEWS[name] for name in ("features_hourly", "bottlenecks", "usual_durations", "sla_misses",
                                       "arm_comparison")),
        ),
    ),
    Migration(8, "how far an ingest has come", (t.INGESTED.add_later,)),
)  # fmt: skip
_SLOW: Final = ("MATERIALIZE PROJECTION",)
"""These rewrite large tables; the engine does so in the background, also after a restart."""


def init(store: Store, retention: Mapping[str, int | None] | None = None, cluster: str | None = None) -> list[str]:
    """Bring the database up to date; returns the names of the migrations applied, none when it was.

    Safe to repeat and to interrupt; touches nothing when there is nothing to do, so that a user without the right to
    create tables may open a finished database: `retention` is applied only where a migration was. Raises `StoreError`
    for a migration that fails, a table of another shape, or a database that a newer version has migrated.
    """
    report = _run(store, retention, cluster, enforce=False)
    if report.problems:
        raise StoreError("\n".join(report.problems))
    return list(report.applied)


def upgrade(store: Store, retention: Mapping[str, int | None] | None = None, cluster: str | None = None) -> Report:
    """`init`, and the retention of every table as it should be; problems are in the report instead of raised.

    Raises `StoreError` for a statement that fails and for a database that a newer version has migrated.
    """
    return _run(store, retention, cluster, enforce=True)


def _run(store: Store, retention: Mapping[str, int | None] | None, cluster: str | None, *, enforce: bool) -> Report:
    applied: list[str] = []
    executed: list[str] = []

    def execute(statement: str) -> None:
        store.command(statement, name="migrate", wait=not any(slow in statement for slow in _SLOW))
        executed.append(statement)

    for step in _steps(store.database, store, cluster):
        try:
            for statement in step.statements:
                execute(statement)
            if step.version:
                store.insert_rows("schema_migrations", ["version", "name"], [[step.version, step.name]])
        except StoreError as error:
            denied = "ACCESS_DENIED" in str(error) or "Not enough privileges" in str(error)
            problems = differences(store, cluster, missing_tables=False) if step.version > 2 and not denied else []
            if problems:  # a foreign table explains more than the engine does
                raise StoreError("\n".join(problems)) from None
            raise StoreError(f"migration {step.version} ({step.name}): {error}") from None
        if step.version:
            applied.append(step.name)
    problems = differences(store, cluster)
    changed: list[str] = []
    if not problems and retention is not None and (enforce or applied):
        for table, old, new in changes(current_days(store), retention):
            store.command(on_cluster(modify(store.database, table, old, new), cluster), name="migrate", wait=False)
            executed.append(on_cluster(modify(store.database, table, old, new), cluster))
            changed.append(table)
    return Report(
        applied=tuple(applied), retention=tuple(changed), statements=tuple(executed), problems=tuple(problems)
    )


def plan(
    store: Store | None, database: str, retention: Mapping[str, int | None] | None = None, cluster: str | None = None
) -> list[Step]:
    """What `upgrade` would do, in order; changes nothing. `store` None: a database that does not exist yet."""
    steps = _steps(database, store, cluster)
    days = current_days(store) if store is not None else {}
    for table, old, new in changes({**RETENTION_DAYS, **days}, retention or {}):
        statement = on_cluster(modify(database, table, old, new), cluster)
        steps.append(Step(0, f"retention of {table}", (statement,)))
    return steps


def _steps(database: str, store: Store | None, cluster: str | None) -> list[Step]:
    done = _applied(store) if store is not None else set()
    present = _tables(store) if store is not None and done else set()
    newest = MIGRATIONS[-1].version
    if done and max(done) > newest:
        raise StoreError(
            f"database {database!r} has schema version {max(done)}, this release knows up to {newest}: "
            "upgrade nhm-sched-plugin"
        )
    missing = [migration for migration in MIGRATIONS if migration.version not in done]
    if not missing:
        gone = [name for name in VIEWS if name not in present]
        texts = tuple(on_cluster(VIEWS[name].strip().format(db=database), cluster) for name in gone)
        return [Step(0, f"views {', '.join(gone)}", texts)] if gone else []
    prepare = (
        f"CREATE DATABASE IF NOT EXISTS {database}",
        f"CREATE TABLE IF NOT EXISTS {database}.schema_migrations "
        "(version UInt32, name String, applied_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY version",
    )
    steps = [Step(0, "database", tuple(on_cluster(statement, cluster) for statement in prepare))]
    for migration in missing:
        statements = (on_cluster(text.strip().format(db=database), cluster) for text in migration.statements)
        steps.append(Step(migration.version, migration.name, tuple(statements)))
    return steps


def _tables(store: Store) -> set[str]:
    """Names of the tables and views that are there."""
    rows = store.rows("SELECT name FROM system.tables WHERE database = {database:String}", {"database": store.database})
    return {str(name) for (name,) in rows}


def _applied(store: Store) -> set[int]:
    if "schema_migrations" not in _tables(store):
        return set()
    return {int(row[0]) for row in store.rows(f"SELECT version FROM {store.database}.schema_migrations")}  # noqa: S608
