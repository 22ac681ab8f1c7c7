"""The tables: columns, keys, partitions and how long a row lives.

Statements are made from these, and what a database has is checked against them. Every table with an age has a column
`kept`: 1 exempts the row, which is how old history survives being ingested.

By month, since the engine rewrites whole parts when rows expire; texts that hardly repeat are packed with ZSTD. Both
were measured (`benchmarks/layout.py`, docs/questions.md). A partition may only depend on what a second delivery of the
same record cannot change: replacing works within a partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

__all__ = ["RETENTION_DAYS", "TABLES", "Column", "Table", "age_clause"]


class Column(NamedTuple):
    """`extra` is what follows the type: a default, a codec."""

    name: str
    type: str
    extra: str = ""

    @property
    def sql(self) -> str:
        return f"{self.name} {self.type} {self.extra}".rstrip()


class Table(NamedTuple):
    """One table. `age`: the column its rows' age counts from. `later`: columns that the printed table lacks."""

    name: str
    columns: tuple[Column, ...]
    engine: str
    order_by: str
    partition_by: str = ""
    age: str = ""
    settings: str = ""
    later: tuple[Column, ...] = ()

    @property
    def all_columns(self) -> tuple[Column, ...]:
        return (*self.columns, *self.later)

    @property
    def create(self) -> str:
        """With `{db}` for the database; for a table that was printed in the specification, as it was printed there."""
        parts = [
            f"CREATE TABLE IF NOT EXISTS {{db}}.{self.name} (",
            ",\n".join(f"    {column.sql}" for column in self.columns),
            f") ENGINE = {self.engine}",
        ]
        if self.partition_by:
            parts.append(f"PARTITION BY {self.partition_by}")
        parts.append(f"ORDER BY {self.order_by}")
        if self.age and not self.later:
            parts.append(f"TTL {age_clause(self.age, RETENTION_DAYS[self.name])}")
        elif self.age:
            parts.append(f"TTL {self.age} + INTERVAL {RETENTION_DAYS[self.name]} DAY")
        if self.settings:
            parts.append(f"SETTINGS {self.settings}")
        return "\n".join(parts)

    @property
    def add_later(self) -> str:
        """The columns that a printed table lacks."""
        return f"ALTER TABLE {{db}}.{self.name} " + ", ".join(
            f"ADD COLUMN IF NOT EXISTS {column.sql}" for column in self.later
        )


def age_clause(column: str, days: int) -> str:
    """The expression of a TTL: rows are deleted `days` after the time in `column`, unless they are kept."""
    return f"{column} + toIntervalDay({days}) DELETE WHERE kept = 0"


RETENTION_DAYS: Final[Mapping[str, int]] = {
    "execution_logs": 540,
    "telemetry_metrics": 365,
    "queue_snapshots": 180,
    "scheduling_decisions_raw": 365,
    "scheduling_outcomes": 365,
    "forecasts": 365,
}
"""Days after which the engine deletes a row (unless `kept`), by table; `ml.clickhouse.retention_days` changes them."""

_DEDUPLICATE: Final = "non_replicated_deduplication_window = 1000"
"""An insert that the client repeats because the answer was lost is recognised by its token."""
_KEPT: Final = Column("kept", "UInt8", "DEFAULT 0")
_STORED: Final = Column("stored_at", "DateTime", "DEFAULT now()")
_JSON: Final = "CODEC(ZSTD(3))"
_NUMBERS: Final = "Nullable(Float64)"


def _columns(text: str) -> tuple[Column, ...]:
    """`name Type` by line."""
    return tuple(Column(*line.strip().split(" ", 1)) for line in text.strip().splitlines())


EXECUTION_LOGS: Final = Table(
    "execution_logs",
    _columns("""
        timestamp DateTime
        ticket_id String
        task_type String
        risk_band String
        actual_duration_ms UInt32
        status String
        worker_id String
        resource_cpu Float32
        resource_memory Float32
    """),
    engine="MergeTree()",
    partition_by="toYYYYMM(timestamp)",
    order_by="(timestamp, task_type, risk_band)",
    age="timestamp",
    later=(
        Column("sla_met", "Nullable(UInt8)"),
        Column("queue_depth_at_start", "Nullable(Float32)"),
        Column("decision_id", "String", "DEFAULT ''"),
        Column("ingest_id", "LowCardinality(String)", "DEFAULT ''"),
        _KEPT,
    ),
)

TELEMETRY: Final = Table(
    "telemetry_metrics",
    _columns("""
        timestamp DateTime
        service String
        metric_name String
        metric_value Float64
        labels Map(String, String)
    """),
    engine="MergeTree()",
    partition_by="toYYYYMM(timestamp)",
    order_by="(timestamp, service, metric_name)",
    age="timestamp",
    later=(_KEPT,),
)

SNAPSHOTS: Final = Table(
    "queue_snapshots",
    (
        Column("timestamp", "DateTime"),
        Column("queue", "String", "DEFAULT ''"),
        Column("queue_depth", "Float64"),
        Column("active_workers", _NUMBERS),
        Column("avg_task_duration_ms", _NUMBERS),
        Column("sla_compliance_rate", _NUMBERS),
        Column("resource_cpu_avg", _NUMBERS),
        Column("resource_memory_avg", _NUMBERS),
        _KEPT,
    ),
    engine="MergeTree()",
    partition_by="toYYYYMM(timestamp)",
    order_by="(timestamp, queue)",
    age="timestamp",
    settings=_DEDUPLICATE,
)

# Keyed by decision_id and replaced by version, so that delivering a record again changes nothing. Retention counts from
# `stored_at`, the database's own clock: a simulation may decide in 2013.
DECISIONS: Final = Table(
    "scheduling_decisions_raw",
    (
        Column("decision_id", "String"),
        Column("decided_at", "DateTime64(6, 'UTC')"),
        Column("ticket_id", "Nullable(String)"),
        Column("task_type", "Nullable(String)"),
        Column("risk_band", "Nullable(String)"),
        Column("action", "LowCardinality(String)"),
        Column("parameters", "Map(String, String)"),
        Column("source", "LowCardinality(String)"),
        Column("reason", "LowCardinality(String)"),
        Column("arm", "LowCardinality(String)"),
        Column("confidence", _NUMBERS),
        Column("recommended_action", "LowCardinality(Nullable(String))"),
        Column("recommendation", "String", _JSON),
        Column("propensity", "Float64"),
        Column("policy_version", "String"),
        Column("is_exploration", "UInt8"),
        Column("rollout_percentage", "UInt8"),
        Column("justification", "String"),
        Column("vetoes", "Array(String)"),
        Column("forecast_volume", _NUMBERS),
        Column("forecast_confidence", _NUMBERS),
        Column("forecast", "String", _JSON),
        Column("queue_depth", _NUMBERS),
        Column("active_workers", _NUMBERS),
        Column("avg_task_duration_ms", _NUMBERS),
        Column("sla_compliance_rate", _NUMBERS),
        Column("predicted_load_1h", _NUMBERS),
        Column("predicted_load_6h", _NUMBERS),
        Column("resource_cpu_avg", _NUMBERS),
        Column("resource_memory_avg", _NUMBERS),
        Column("state", "String", _JSON),
        Column("record", "String", _JSON),
        Column("latency_us", "Float64"),
        Column("recorded_at", "DateTime64(3, 'UTC')"),
        _STORED,
        _KEPT,
        Column("version", "UInt64"),
    ),
    engine="ReplacingMergeTree(version)",
    partition_by="toYYYYMM(decided_at)",
    order_by="decision_id",
    age="stored_at",
)

OUTCOMES: Final = Table(
    "scheduling_outcomes",
    (
        Column("decision_id", "String"),
        Column("ticket_id", "Nullable(String)"),
        Column("status", "LowCardinality(String)"),
        Column("finished_at", "Nullable(DateTime64(6, 'UTC'))"),
        Column("actual_duration_ms", _NUMBERS),
        Column("sla_met", "Nullable(UInt8)"),
        Column("reward", _NUMBERS),
        Column("executed_action", "LowCardinality(Nullable(String))"),
        Column("applied", "Nullable(UInt8)"),
        Column("error", "Nullable(String)"),
        Column("worker_id", "Nullable(String)"),
        Column("resource_cpu", _NUMBERS),
        Column("resource_memory", _NUMBERS),
        Column("state_before", "String", _JSON),
        Column("state_after", "String", _JSON),
        Column("recorded_at", "DateTime64(3, 'UTC')"),
        _STORED,
        _KEPT,
        Column("version", "UInt64"),
    ),
    engine="ReplacingMergeTree(version)",
    order_by="decision_id",
    age="stored_at",
)

FORECASTS: Final = Table(
    "forecasts",
    (
        Column("generated_at", "DateTime64(3, 'UTC')"),
        Column("target", "DateTime"),
        Column("horizon_minutes", "UInt32"),
        Column("task_type", "String"),
        Column("risk_band", "String"),
        Column("mean", "Float64"),
        Column("quantiles", "Map(String, Float64)"),
        Column("confidence", "Float64"),
        Column("method", "LowCardinality(String)"),
        Column("model_version", "String"),
        _STORED,
        _KEPT,
    ),
    engine="ReplacingMergeTree(stored_at)",
    order_by="(target, task_type, risk_band, horizon_minutes, generated_at)",
    age="stored_at",
)

INGESTED: Final = Table(
    "ingested_files",
    (
        Column("ingest_id", "String"),
        Column("file", "String"),
        Column("mapping", "Map(String, String)"),
        Column("rows", "UInt64"),
        Column("rejected", "UInt64"),
        Column("complete", "UInt8"),
        Column("at", "DateTime64(3, 'UTC')"),
    ),
    engine="ReplacingMergeTree(at)",
    order_by="ingest_id",
    later=(Column("progress", "String", "DEFAULT ''"),),
)

TABLES: Final = (EXECUTION_LOGS, TELEMETRY, SNAPSHOTS, DECISIONS, OUTCOMES, FORECASTS, INGESTED)
