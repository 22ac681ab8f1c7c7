# ruff: noqa: S608, E501 - the database is named by the fixtures; messages are matched in one piece
"""`init`: plan, upgrade, drift, retention and clusters, on the real engine."""

from __future__ import annotations

import datetime as dt

import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.settings_ml import RetentionSettings
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.schema import MIGRATIONS, RETENTION_DAYS, init, plan, upgrade
from nhm_sched_plugin.store.schema.retention import current_days
from nhm_sched_plugin.store.schema.views import VIEWS

PRINTED = (
    """CREATE TABLE {db}.execution_logs (timestamp DateTime, ticket_id String, task_type String, risk_band String,
    actual_duration_ms UInt32, status String, worker_id String, resource_cpu Float32, resource_memory Float32)
    ENGINE = MergeTree() ORDER BY (timestamp, task_type, risk_band) TTL timestamp + INTERVAL 540 DAY""",
    """CREATE TABLE {db}.telemetry_metrics (timestamp DateTime, service String, metric_name String,
    metric_value Float64, labels Map(String, String)) ENGINE = MergeTree()
    ORDER BY (timestamp, service, metric_name) TTL timestamp + INTERVAL 365 DAY""",
)
"""As in the specification."""


def test_a_dry_run_is_what_is_done_and_changes_nothing(bare: Store) -> None:
    planned = [text for step in plan(bare, bare.database) for text in step.statements]
    assert bare.rows("SELECT 1 FROM system.databases WHERE name = {name:String}", {"name": bare.database}) == []
    assert planned == [text for step in plan(None, bare.database) for text in step.statements]
    report = upgrade(bare, RETENTION_DAYS)
    assert list(report.statements) == planned
    assert (report.applied, report.problems) == (tuple(m.name for m in MIGRATIONS), ())
    assert plan(bare, bare.database, RETENTION_DAYS) == []
    assert upgrade(bare, RETENTION_DAYS).statements == ()


def test_the_printed_dry_run_makes_the_database_by_hand(bare: Store) -> None:
    for step in plan(None, bare.database):
        for text in step.statements:
            bare.command(text)
    assert upgrade(bare).problems == ()


def test_an_installation_of_the_specification_is_upgraded_with_its_rows(bare: Store) -> None:
    bare.command(f"CREATE DATABASE {bare.database}")
    for text in PRINTED:
        bare.command(text.format(db=bare.database))
    bare.command(
        f"INSERT INTO {bare.database}.execution_logs VALUES "
        "(now(), 'old', 'processing', 'medium', 5000, 'success', 'w1', 0.5, 1.5)"
    )
    bare.command(f"INSERT INTO {bare.database}.telemetry_metrics VALUES (now(), 's', 'm', 1, {{'a': 'b'}})")
    assert upgrade(bare, RETENTION_DAYS).problems == ()
    assert bare.rows(f"SELECT labels FROM {bare.database}.telemetry_metrics") == [({"a": "b"},)]
    assert bare.rows(f"SELECT ticket_id, sla_met FROM {bare.database}.execution_logs") == [("old", None)]
    (row,) = bare.dicts(f"SELECT * FROM {bare.database}.bottlenecks")
    assert (row["ticket_volume"], row["sla_known"]) == (1, 0)
    fresh = [text for step in plan(None, bare.database) for text in step.statements]
    assert any("PARTITION BY toYYYYMM(timestamp)" in text for text in fresh)


def test_counts_by_hour_come_from_the_projection(store: Store) -> None:
    store.command(
        f"INSERT INTO {store.database}.execution_logs (timestamp, ticket_id, task_type) "
        "SELECT now() - number * 60, toString(number), 'a' FROM numbers(20000)"
    )
    for view in ("bottlenecks", "features_hourly", "hours_alive", "usual_durations"):
        shown = store.rows(f"EXPLAIN indexes = 1, projections = 1 SELECT * FROM {store.database}.{view}")
        levels = 4 if view == "features_hourly" else 1
        text = "\n".join(row[0] for row in shown)
        assert text.count("by_hour") >= levels, f"{view} reads every ticket:\n{text}"


@pytest.mark.parametrize(
    "how", ["ALTER TABLE {t} DELETE WHERE task_type = 'b'", "DELETE FROM {t} WHERE task_type = 'b'"]
)
def test_sums_by_hour_follow_what_is_deleted(store: Store, how: str) -> None:
    table = f"{store.database}.execution_logs"
    for kind in "ab":
        store.command(f"INSERT INTO {table} (timestamp, task_type) SELECT now(), '{kind}' FROM numbers(7)")
    store.command(how.format(t=table))
    assert store.rows(f"SELECT sum(ticket_volume) FROM {store.database}.bottlenecks") == [(7,)]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("ALTER TABLE {db}.forecasts DROP COLUMN method", r"lacks method: ALTER TABLE \w+\.forecasts ADD COLUMN method Low"),
        (
            "ALTER TABLE {db}.queue_snapshots MODIFY COLUMN queue_depth Float32",
            r"column queue_depth is Float32, not Float64: ALTER TABLE \w+\.queue_snapshots MODIFY COLUMN queue_depth Float64",
        ),
        ("DROP TABLE {db}.ingested_files", r"ingested_files is missing: .* run `nhm-sched init`"),
    ],
)  # fmt: skip
def test_drift_is_named_with_its_fix(bare: Store, damage: str, complaint: str) -> None:
    init(bare)
    bare.command(damage.format(db=bare.database))
    (problem,) = upgrade(bare).problems
    with pytest.raises(StoreError, match=complaint):
        init(bare)
    fix = problem.split(": ", 2 if "column" in problem else 1)[-1].split("; or")[0]
    if fix.startswith("ALTER"):
        bare.command(fix)
    else:
        bare.command(f"TRUNCATE TABLE {bare.database}.schema_migrations")
    assert upgrade(bare).problems == ()


def test_types_that_take_the_same_values_are_no_drift(bare: Store) -> None:
    init(bare)
    bare.command(f"ALTER TABLE {bare.database}.execution_logs MODIFY COLUMN status LowCardinality(String)")
    assert init(bare) == []


def test_a_view_that_is_gone_comes_back(bare: Store) -> None:
    init(bare)
    bare.command(f"DROP VIEW {bare.database}.sla_misses")
    assert [step.name for step in plan(bare, bare.database)] == ["views sla_misses"]
    assert upgrade(bare).problems == ()
    assert bare.rows(f"SELECT count() FROM {bare.database}.sla_misses") == [(0,)]


# Retention


def test_retention_follows_the_settings_and_deletes(bare: Store) -> None:
    init(bare)
    wanted = RetentionSettings(execution_logs=30, telemetry_metrics=None, scheduling_decisions=100).by_table()
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=31)
    rows = [[old, "old", 0], [old, "kept", 1], [old + dt.timedelta(days=2), "young", 0]]
    bare.insert_rows("execution_logs", ["timestamp", "ticket_id", "kept"], rows)
    assert init(bare, wanted) == [], "opening a database changes no retention"
    assert current_days(bare) == RETENTION_DAYS
    assert {step.name for step in plan(bare, bare.database, wanted)} == {
        f"retention of {name}"
        for name in ("execution_logs", "telemetry_metrics", "scheduling_decisions_raw", "scheduling_outcomes")
    }
    assert len(upgrade(bare, wanted).retention) == 4
    days = current_days(bare)
    assert (days["execution_logs"], days["telemetry_metrics"], days["scheduling_outcomes"]) == (30, None, 100)
    bare.command(f"OPTIMIZE TABLE {bare.database}.execution_logs FINAL")
    assert bare.rows(f"SELECT ticket_id FROM {bare.database}.execution_logs ORDER BY ticket_id") == [
        ("kept",),
        ("young",),
    ]
    assert len(upgrade(bare, RetentionSettings().by_table()).retention) == 4
    assert current_days(bare) == RETENTION_DAYS
    assert upgrade(bare, RetentionSettings().by_table()).retention == ()


def test_a_new_database_has_the_retention_of_the_settings(bare: Store) -> None:
    init(bare, RetentionSettings(forecasts=7).by_table())
    assert current_days(bare)["forecasts"] == 7


# Clusters


def test_every_statement_for_a_cluster_is_one_to_the_engine(bare: Store) -> None:
    """No cluster runs here: the engine's own parser reads them."""
    steps = plan(None, "logs", {**RETENTION_DAYS, "forecasts": 7}, cluster="main")
    statements = [text for step in steps for text in step.statements]
    for text in statements:
        shown = bare.rows("SELECT formatQuery({sql:String})", {"sql": text})[0][0]
        assert "ON CLUSTER main" in shown, shown
        assert bare.rows(f"EXPLAIN AST {text}")
    made = [text for text in statements if text.startswith("CREATE TABLE")]
    place = "'/clickhouse/tables/{uuid}/{shard}', '{replica}'"
    assert len(made) == 8
    assert all(f"MergeTree({place}" in text and "ENGINE = Replicated" in text for text in made)
    assert any(f"ReplicatedReplacingMergeTree({place}, version)" in text for text in made)
    assert len([text for text in statements if "CREATE OR REPLACE VIEW" in text]) == len(VIEWS) + 1


def test_a_table_on_one_server_is_named_where_a_cluster_is_configured(bare: Store) -> None:
    init(bare)
    problems = upgrade(bare, cluster="main").problems
    assert len(problems) == 7
    assert "is on one server only (MergeTree), though ml.clickhouse.cluster = 'main': rename it" in problems[0]
