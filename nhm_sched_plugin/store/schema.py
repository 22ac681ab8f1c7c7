"""The tables, and how a database gets from what it has to what it should have.

Migrations are numbered and recorded in `schema_migrations`; every statement can be repeated, so an interrupted run is
simply run again. A database that holds only the two tables printed in the specification is upgraded in place.
Every table with a TTL has a column `kept`: 1 exempts the row, which is how old history survives being ingested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from nhm_sched_plugin.errors import StoreError

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["FEATURES", "MIGRATIONS", "RETENTION_DAYS", "Migration", "init"]

RETENTION_DAYS: Final = {
    "execution_logs": 540,
    "telemetry_metrics": 365,
    "queue_snapshots": 180,
    "scheduling_decisions_raw": 365,
    "scheduling_outcomes": 365,
    "forecasts": 365,
}
"""Days after which the engine deletes a row (unless `kept`), by table."""


class Migration(NamedTuple):
    """One step of the schema. `{db}` in a statement stands for the database."""

    version: int
    name: str
    statements: tuple[str, ...]


def _ttl(table: str, column: str) -> str:
    return f"TTL {column} + toIntervalDay({RETENTION_DAYS[table]}) DELETE WHERE kept = 0"


# The new rule keeps more than the old one did, so there is no need to rewrite a large table for it.
_AS_IT_IS: Final = "SETTINGS materialize_ttl_after_modify = 0"

_EXECUTION_LOGS: Final = """
CREATE TABLE IF NOT EXISTS {db}.execution_logs (
    timestamp DateTime,
    ticket_id String,
    task_type String,
    risk_band String,
    actual_duration_ms UInt32,
    status String,
    worker_id String,
    resource_cpu Float32,
    resource_memory Float32
) ENGINE = MergeTree()
ORDER BY (timestamp, task_type, risk_band)
TTL timestamp + INTERVAL 540 DAY"""

_TELEMETRY: Final = """
CREATE TABLE IF NOT EXISTS {db}.telemetry_metrics (
    timestamp DateTime,
    service String,
    metric_name String,
    metric_value Float64,
    labels Map(String, String)
) ENGINE = MergeTree()
ORDER BY (timestamp, service, metric_name)
TTL timestamp + INTERVAL 365 DAY"""

_SNAPSHOTS: Final = f"""
CREATE TABLE IF NOT EXISTS {{db}}.queue_snapshots (
    timestamp DateTime,
    queue String DEFAULT '',
    queue_depth Float64,
    active_workers Nullable(Float64),
    avg_task_duration_ms Nullable(Float64),
    sla_compliance_rate Nullable(Float64),
    resource_cpu_avg Nullable(Float64),
    resource_memory_avg Nullable(Float64),
    kept UInt8 DEFAULT 0
) ENGINE = MergeTree()
ORDER BY (timestamp, queue)
{_ttl("queue_snapshots", "timestamp")}
SETTINGS non_replicated_deduplication_window = 1000"""

# Keyed by decision_id and replaced by version, so that delivering a record again changes nothing. Retention counts from
# `stored_at`, the database's own clock: a simulation may decide in 2013.
_DECISIONS: Final = f"""
CREATE TABLE IF NOT EXISTS {{db}}.scheduling_decisions_raw (
    decision_id String,
    decided_at DateTime64(6, 'UTC'),
    ticket_id Nullable(String),
    task_type Nullable(String),
    risk_band Nullable(String),
    action LowCardinality(String),
    parameters Map(String, String),
    source LowCardinality(String),
    reason LowCardinality(String),
    arm LowCardinality(String),
    confidence Nullable(Float64),
    recommended_action LowCardinality(Nullable(String)),
    recommendation String CODEC(ZSTD(3)),
    propensity Float64,
    policy_version String,
    is_exploration UInt8,
    rollout_percentage UInt8,
    justification String,
    vetoes Array(String),
    forecast_volume Nullable(Float64),
    forecast_confidence Nullable(Float64),
    forecast String CODEC(ZSTD(3)),
    queue_depth Nullable(Float64),
    active_workers Nullable(Float64),
    avg_task_duration_ms Nullable(Float64),
    sla_compliance_rate Nullable(Float64),
    predicted_load_1h Nullable(Float64),
    predicted_load_6h Nullable(Float64),
    resource_cpu_avg Nullable(Float64),
    resource_memory_avg Nullable(Float64),
    state String CODEC(ZSTD(3)),
    record String CODEC(ZSTD(3)),
    latency_us Float64,
    recorded_at DateTime64(3, 'UTC'),
    stored_at DateTime DEFAULT now(),
    kept UInt8 DEFAULT 0,
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY decision_id
{_ttl("scheduling_decisions_raw", "stored_at")}"""

_OUTCOMES: Final = f"""
CREATE TABLE IF NOT EXISTS {{db}}.scheduling_outcomes (
    decision_id String,
    ticket_id Nullable(String),
    status LowCardinality(String),
    finished_at Nullable(DateTime64(6, 'UTC')),
    actual_duration_ms Nullable(Float64),
    sla_met Nullable(UInt8),
    reward Nullable(Float64),
    executed_action LowCardinality(Nullable(String)),
    applied Nullable(UInt8),
    error Nullable(String),
    worker_id Nullable(String),
    resource_cpu Nullable(Float64),
    resource_memory Nullable(Float64),
    state_before String CODEC(ZSTD(3)),
    state_after String CODEC(ZSTD(3)),
    recorded_at DateTime64(3, 'UTC'),
    stored_at DateTime DEFAULT now(),
    kept UInt8 DEFAULT 0,
    version UInt64
) ENGINE = ReplacingMergeTree(version)
ORDER BY decision_id
{_ttl("scheduling_outcomes", "stored_at")}"""

# What people query: one row for each decision, whatever was delivered how often and in which order.
_VIEW: Final = """
CREATE OR REPLACE VIEW {db}.scheduling_decisions AS
SELECT
    d.* EXCEPT (record, version, kept, stored_at),
    o.status AS status,
    o.finished_at AS finished_at,
    o.actual_duration_ms AS actual_duration_ms,
    o.sla_met AS sla_met,
    o.reward AS reward,
    o.executed_action AS executed_action,
    o.applied AS applied,
    o.error AS error,
    o.worker_id AS worker_id,
    o.resource_cpu AS resource_cpu,
    o.resource_memory AS resource_memory,
    o.state_before AS state_before,
    o.state_after AS state_after
FROM (SELECT * FROM {db}.scheduling_decisions_raw FINAL) AS d
LEFT JOIN (
    SELECT decision_id, toNullable(status) AS status, finished_at, actual_duration_ms, sla_met, reward, executed_action,
           applied, error, worker_id, resource_cpu, resource_memory, state_before, state_after
    FROM {db}.scheduling_outcomes FINAL
) AS o ON o.decision_id = d.decision_id"""

_FORECASTS: Final = f"""
CREATE TABLE IF NOT EXISTS {{db}}.forecasts (
    generated_at DateTime64(3, 'UTC'),
    target DateTime,
    horizon_minutes UInt32,
    task_type String,
    risk_band String,
    mean Float64,
    quantiles Map(String, Float64),
    confidence Float64,
    method LowCardinality(String),
    model_version String,
    stored_at DateTime DEFAULT now(),
    kept UInt8 DEFAULT 0
) ENGINE = ReplacingMergeTree(stored_at)
ORDER BY (target, task_type, risk_band, horizon_minutes, generated_at)
{_ttl("forecasts", "stored_at")}"""

_INGESTED: Final = """
CREATE TABLE IF NOT EXISTS {db}.ingested_files (
    ingest_id String,
    file String,
    mapping Map(String, String),
    rows UInt64,
    rejected UInt64,
    complete UInt8,
    at DateTime64(3, 'UTC')
) ENGINE = ReplacingMergeTree(at)
ORDER BY ingest_id"""

# What other queries build on, and where "not known" is defined once: of a duration, CPU or memory, 0 (the printed
# columns have no NULL) and what is no number. Hours are of UTC, whatever zone the server is in.
_TICKETS: Final = """
CREATE OR REPLACE VIEW {db}.tickets AS
SELECT
    timestamp,
    toDateTime(intDiv(toUnixTimestamp(timestamp), 3600) * 3600, 'UTC') AS hour,
    ticket_id,
    task_type,
    risk_band,
    status,
    worker_id,
    nullIf(toFloat64(actual_duration_ms), 0) AS actual_duration_ms,
    if(isFinite(resource_cpu) AND resource_cpu > 0, toNullable(toFloat64(resource_cpu)), NULL) AS resource_cpu,
    if(isFinite(resource_memory) AND resource_memory > 0, toNullable(toFloat64(resource_memory)), NULL)
        AS resource_memory,
    sla_met,
    queue_depth_at_start
FROM {db}.execution_logs"""

_LIFE: Final = """
CREATE OR REPLACE VIEW {db}.hours_alive AS
SELECT hour, sum(t) AS tickets, sum(m) AS telemetry, sum(q) AS snapshots,
       if(snapshots > 0, toNullable(sum(d) / snapshots), NULL) AS queue_depth_avg
FROM (
    SELECT hour, count() AS t, 0 AS m, 0 AS q, 0. AS d FROM {db}.tickets GROUP BY hour
    UNION ALL
    SELECT toDateTime(intDiv(toUnixTimestamp(timestamp), 3600) * 3600, 'UTC') AS hour, 0, count(), 0, 0.
    FROM {db}.telemetry_metrics GROUP BY hour
    UNION ALL
    SELECT toDateTime(intDiv(toUnixTimestamp(timestamp), 3600) * 3600, 'UTC') AS hour, 0, 0, count(), sum(queue_depth)
    FROM {db}.queue_snapshots GROUP BY hour
)
GROUP BY hour"""

FEATURES: Final = {
    "ticket_volume_hourly": "count()",
    "avg_duration_by_type": "avg(actual_duration_ms)",
    "sla_compliance_rate": "avg(sla_met)",
    "resource_cpu_p95": "quantile(0.95)(resource_cpu)",
}
"""The features of the specification that come from tickets, each as SQL over the view `tickets`. What is not known is
left out of an average, and an hour in which nothing is known gives NULL: `sum(sla_met) / count()` would count a ticket
of unknown SLA as missed. The view `features_hourly` is made of these: a change here takes a new migration."""

_BY_LEVEL: Final = ", ".join(f"{sql} AS {name}" for name, sql in FEATURES.items())
_FEATURES: Final = f"""
CREATE OR REPLACE VIEW {{db}}.features_hourly AS
SELECT f.hour AS hour, f.task_type AS task_type, f.risk_band AS risk_band,
       {", ".join(f"f.{name} AS {name}" for name in FEATURES)},
       q.queue_depth_avg AS queue_depth_avg
FROM (
    SELECT hour, task_type, risk_band, {_BY_LEVEL}
    FROM (SELECT * EXCEPT (task_type, risk_band), toNullable(task_type) AS task_type,
                 toNullable(risk_band) AS risk_band FROM {{db}}.tickets)
    GROUP BY GROUPING SETS ((hour), (hour, task_type), (hour, risk_band), (hour, task_type, risk_band))
) AS f
LEFT JOIN (SELECT hour, queue_depth_avg FROM {{db}}.hours_alive WHERE snapshots > 0) AS q ON q.hour = f.hour
"""  # noqa: S608 - made of constants

MIGRATIONS: Final = (
    Migration(1, "tables of the specification", (_EXECUTION_LOGS, _TELEMETRY)),
    Migration(
        2,
        "SLA, queue depth, origin and retention by row",
        (
            "ALTER TABLE {db}.execution_logs ADD COLUMN IF NOT EXISTS sla_met Nullable(UInt8), "
            "ADD COLUMN IF NOT EXISTS queue_depth_at_start Nullable(Float32), "
            "ADD COLUMN IF NOT EXISTS decision_id String DEFAULT '', "
            "ADD COLUMN IF NOT EXISTS ingest_id LowCardinality(String) DEFAULT '', "
            "ADD COLUMN IF NOT EXISTS kept UInt8 DEFAULT 0",
            "ALTER TABLE {db}.telemetry_metrics ADD COLUMN IF NOT EXISTS kept UInt8 DEFAULT 0",
            # An insert that the client repeats because the answer was lost is recognised by its token.
            "ALTER TABLE {db}.execution_logs MODIFY SETTING non_replicated_deduplication_window = 1000",
            "ALTER TABLE {db}.telemetry_metrics MODIFY SETTING non_replicated_deduplication_window = 1000",
            f"ALTER TABLE {{db}}.execution_logs MODIFY {_ttl('execution_logs', 'timestamp')} {_AS_IT_IS}",
            f"ALTER TABLE {{db}}.telemetry_metrics MODIFY {_ttl('telemetry_metrics', 'timestamp')} {_AS_IT_IS}",
        ),
    ),
    Migration(3, "decisions and outcomes", (_DECISIONS, _OUTCOMES, _VIEW)),
    Migration(4, "queue snapshots and forecasts", (_SNAPSHOTS, _FORECASTS)),
    Migration(5, "log of ingested files", (_INGESTED,)),
    Migration(6, "features by hour", (_TICKETS, _LIFE, _FEATURES)),
)

_NEEDED: Final = {
    "execution_logs": "timestamp, ticket_id, task_type, risk_band, actual_duration_ms, status, worker_id, "
    "resource_cpu, resource_memory, sla_met, queue_depth_at_start, decision_id, ingest_id, kept",
    "telemetry_metrics": "timestamp, service, metric_name, metric_value, labels, kept",
}
"""Columns of the tables that may have been made by others."""


def init(store: Store) -> list[str]:
    """Bring the database up to date; returns the names of the migrations applied, none when it was.

    Safe to repeat and to interrupt; touches nothing when there is nothing to do, so that a user without the right to
    create tables may open a finished database. Raises `StoreError` for a migration that fails, a table of another
    shape, or a database that a newer version has migrated.
    """
    done = _applied(store)
    newest = MIGRATIONS[-1].version
    if done and max(done) > newest:
        raise StoreError(
            f"database {store.database!r} has schema version {max(done)}, this release knows up to {newest}: "
            "upgrade nhm-sched-plugin"
        )
    applied: list[str] = []
    for migration in MIGRATIONS:
        if migration.version in done:
            continue
        if not applied:
            _prepare(store)
        try:
            for statement in migration.statements:
                store.command(statement.format(db=store.database), name="migrate")
            store.insert_rows("schema_migrations", ["version", "name"], [[migration.version, migration.name]])
        except StoreError as error:
            if 2 in done or migration.version > 2:
                _verify(store)  # a foreign table explains more than the engine does
            raise StoreError(f"migration {migration.version} ({migration.name}): {error}") from None
        applied.append(migration.name)
    _verify(store)
    return applied


def _prepare(store: Store) -> None:
    store.command(f"CREATE DATABASE IF NOT EXISTS {store.database}", name="migrate")
    store.command(
        f"CREATE TABLE IF NOT EXISTS {store.database}.schema_migrations "
        "(version UInt32, name String, applied_at DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY version",
        name="migrate",
    )


def _applied(store: Store) -> set[int]:
    found = store.rows(
        "SELECT 1 FROM system.tables WHERE database = {database:String} AND name = 'schema_migrations'",
        {"database": store.database},
    )
    if not found:
        return set()
    return {int(row[0]) for row in store.rows(f"SELECT version FROM {store.database}.schema_migrations")}  # noqa: S608


def _verify(store: Store) -> None:
    present: dict[str, set[str]] = {}
    for table, column in store.rows(
        "SELECT table, name FROM system.columns WHERE database = {database:String}", {"database": store.database}
    ):
        present.setdefault(table, set()).add(column)
    for table, columns in _NEEDED.items():
        missing = [column for column in columns.split(", ") if column not in present.get(table, set())]
        if missing:
            raise StoreError(
                f"table {store.database}.{table} lacks {', '.join(missing)}: it was made by something else; "
                "rename it, or set ml.clickhouse.database to another name, and run `nhm-sched init`"
            )
