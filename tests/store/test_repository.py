# ruff: noqa: S608 - the database is named by the fixtures
from __future__ import annotations

import datetime as dt
from typing import Any

import pandas as pd
import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.answers import arms
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.schema import MIGRATIONS, RETENTION_DAYS, init
from nhm_sched_plugin.store.statements import RejectedRowsError
from nhm_sched_plugin.types import (
    Action,
    Arm,
    Decision,
    Forecast,
    ForecastPoint,
    Outcome,
    Reason,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
    Source,
    Veto,
)

NOW = dt.datetime(2026, 3, 2, 10, tzinfo=dt.UTC)


def decision(name: str, **changes: Any) -> Decision:
    fields: dict[str, Any] = {
        "decision_id": name,
        "ticket_id": "t1",
        "action": Action.INCREASE_WORKER_POOL,
        "parameters": {"target_workers": 12, "why": "peak", "share": 0.5},
        "source": Source.POLICY,
        "reason": Reason.APPLIED,
        "arm": Arm.TREATMENT,
        "confidence": 0.9,
        "decided_at": 1366000000.25,
    }
    return Decision(**{**fields, **changes})


def outcome(name: str, reward: float | None = 0.25, **changes: Any) -> RewardedOutcome:
    fields: dict[str, Any] = {"status": "success", "actual_duration_ms": 5000.0, "sla_met": True, "finished_at": 1.4e9}
    return RewardedOutcome(
        outcome=Outcome(decision_id=name, ticket_id="t1", **{**fields, **changes}),
        reward=reward,
        executed_action=Action.INCREASE_WORKER_POOL,
        applied=True,
    )


def logs(stamps: list[str], task_type: str = "a", **columns: Any) -> pd.DataFrame:
    index = pd.to_datetime(stamps, utc=True)
    frame = pd.DataFrame(
        {"timestamp": index, "ticket_id": [f"t{n}" for n in range(len(index))], "task_type": task_type}
    )
    return frame.assign(**{"kept": 1, "risk_band": "", **columns})


def ask(store: Store, final: str) -> list[tuple[Any, ...]]:
    """The query a user writes."""
    return store.rows(
        f"SELECT decision_id, action, reward FROM {store.database}.scheduling_decisions {final} ORDER BY decision_id"
    )


# Schema


def test_init_makes_every_table_of_the_contract_and_then_nothing(bare: Store) -> None:
    assert init(bare) == [migration.name for migration in MIGRATIONS]
    assert init(bare) == []
    tables = {name for (name,) in bare.rows(f"SHOW TABLES FROM {bare.database}")}
    assert {
        "execution_logs",
        "telemetry_metrics",
        "queue_snapshots",
        "scheduling_decisions",
        "forecasts",
        "features_hourly",
        "schema_migrations",
    } <= tables
    assert bare.counts()["schema_migrations"] == len(MIGRATIONS)


def test_retention_is_in_the_tables(store: Store) -> None:
    for table, days in RETENTION_DAYS.items():
        assert f"toIntervalDay({days}) WHERE kept = 0" in store.command(f"SHOW CREATE TABLE {store.database}.{table}")
    assert {RETENTION_DAYS[name] for name in ("execution_logs", "telemetry_metrics", "queue_snapshots")} == {
        540,
        365,
        180,
    }


def test_an_interrupted_init_is_finished_by_the_next(bare: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    command = bare.command
    calls = 0

    def failing(sql: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise StoreError("power cut")
        return command(sql, *args, **kwargs)

    monkeypatch.setattr(bare, "command", failing)
    with pytest.raises(StoreError, match=r"migration \d \(.+\): power cut"):
        init(bare)
    monkeypatch.setattr(bare, "command", command)
    assert 0 < len(init(bare)) < len(MIGRATIONS) + 1
    assert init(bare) == []


def test_a_newer_database_and_a_foreign_table_are_refused(bare: Store) -> None:
    store = bare
    init(store)
    store.insert_rows("schema_migrations", ["version", "name"], [[99, "of the future"]])
    with pytest.raises(StoreError, match=rf"schema version 99, this release knows up to {MIGRATIONS[-1].version}"):
        init(store)
    store.command(f"DROP DATABASE {store.database} SYNC")
    store.command(f"CREATE DATABASE {store.database}")
    store.command(
        f"CREATE TABLE {store.database}.telemetry_metrics (timestamp DateTime, x Int8) ENGINE = MergeTree ORDER BY x"
    )
    with pytest.raises(StoreError, match=r"telemetry_metrics lacks service, metric_name"):
        init(store)


def test_the_bottleneck_query_of_the_specification(store: Store) -> None:
    stamp = pd.Timestamp.now("UTC").floor("h") - pd.Timedelta("1h")
    frame = logs([str(stamp)] * 4).assign(sla_met=[0, 0, 1, 1], queue_depth_at_start=[100.0, 200.0, 300.0, 200.0])
    store.insert_execution_logs(frame)
    rows = store.rows(
        f"""
        SELECT toStartOfHour(timestamp) AS hour, count() AS ticket_volume, avg(queue_depth_at_start) AS avg_queue_depth,
               countIf(sla_met = 0) / count() AS sla_miss_rate
        FROM {store.database}.execution_logs WHERE timestamp >= now() - INTERVAL 7 DAY
        GROUP BY hour HAVING avg_queue_depth > 100 ORDER BY sla_miss_rate DESC LIMIT 10
        """
    )
    assert [row[1:] for row in rows] == [(4, 200.0, 0.5)]


# Decisions


@pytest.mark.parametrize("final", ["", "FINAL"])
@pytest.mark.parametrize("order", ["decision first", "outcome first"])
def test_one_row_whatever_arrives_when_and_how_often(store: Store, final: str, order: str) -> None:
    def deliver_decisions() -> None:
        store.insert_decisions([(decision("a"), 10.0), (decision("b"), 10.0)])

    def deliver_outcomes() -> None:
        store.insert_outcomes([(outcome("a"), 11.0), (outcome("orphan"), 11.0)])

    steps = [deliver_decisions, deliver_outcomes]
    for step in steps if order == "decision first" else reversed(steps):
        step()
        step()
    expected = [("a", "INCREASE_WORKER_POOL", 0.25), ("b", "INCREASE_WORKER_POOL", None)]
    assert ask(store, final) == expected
    assert store.counts()["scheduling_decisions_raw"] in (2, 4)  # merged or not: the answer is the same
    for step in steps:
        step()
    assert ask(store, final) == expected
    for table in ("scheduling_decisions_raw", "scheduling_outcomes"):
        store.command(f"OPTIMIZE TABLE {store.database}.{table} FINAL")
    assert ask(store, final) == expected
    assert store.rows(f"SELECT count() FROM {store.database}.scheduling_decisions {final}") == [(2,)]


def test_a_later_report_wins_but_never_takes_a_reward_away(store: Store) -> None:
    store.insert_decisions([(decision("a"), 10.0)])
    store.insert_outcomes([(outcome("a", 0.5), 11.0)])
    store.insert_outcomes([(outcome("a", 0.75, status="failed"), 12.0)])
    store.insert_outcomes([(outcome("a", None), 13.0)])
    assert store.rows(f"SELECT reward, status FROM {store.database}.scheduling_decisions") == [(0.75, "failed")]


def test_old_decisions_survive_because_retention_counts_from_storage(store: Store) -> None:
    store.insert_decisions([(decision("of 2013"), 1366000000.0)])
    store.command(f"OPTIMIZE TABLE {store.database}.scheduling_decisions_raw FINAL")
    assert [row[0] for row in ask(store, "")] == ["of 2013"]


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("telemetry_metrics", {"timestamp": 366, "service": "s", "metric_name": "m", "metric_value": 1.0}),
        ("queue_snapshots", {"timestamp": 181, "queue_depth": 1.0}),
        ("scheduling_decisions_raw", {"stored_at": 366}),
        ("scheduling_outcomes", {"stored_at": 366}),
    ],
)
def test_rows_past_their_age_are_deleted_unless_kept(store: Store, table: str, row: dict[str, Any]) -> None:
    key = "service" if table == "telemetry_metrics" else "queue" if table == "queue_snapshots" else "decision_id"
    age = "timestamp" if "timestamp" in row else "stored_at"
    now = dt.datetime.now(dt.UTC)
    rows = []
    for name, days, kept in (("old", row[age], 0), ("kept", row[age], 1), ("young", row[age] - 2, 0)):
        rows.append({**row, key: name, age: now - dt.timedelta(days=days), "kept": kept})
    store.insert_rows(table, list(rows[0]), [list(item.values()) for item in rows])
    store.command(f"OPTIMIZE TABLE {store.database}.{table} FINAL")
    found = store.rows(f"SELECT {key} FROM {store.database}.{table} ORDER BY {key}")
    assert found == [("kept",), ("young",)]


def test_everything_about_one_decision(store: Store) -> None:
    forecast = Forecast(
        horizon_minutes=60,
        predicted_volume=12.5,
        confidence=0.8,
        generated_at=NOW,
        points=(ForecastPoint(NOW, 12.5, {0.5: 12.0, 0.975: 20.0}),),
    )
    state = SchedulingState(queue_depth=7.0, active_workers=3.0, features={"holiday": 1.0})
    made = decision(
        "full",
        forecast=forecast,
        state=state,
        recommendation=Recommendation(action=Action.PREEMPTIVE_SCALING, confidence=0.9, justification="rising"),
        vetoes=(Veto(guard="quota", reason="spent"),),
    )
    assert store.decision("full") is None
    store.insert_decisions([(made, 20.0)])
    story = store.decision("full")
    assert story is not None
    assert story["parameters"] == {"target_workers": 12, "why": "peak", "share": 0.5}
    assert story["vetoes"] == [{"guard": "quota", "reason": "spent"}]
    assert story["state"]["features"] == {"holiday": 1.0}
    assert story["forecast"]["points"][0]["quantiles"] == {"0.5": 12.0, "0.975": 20.0}
    assert story["recommendation"]["justification"] == "rising"
    assert (story["outcome"], story["reward"], story["applied"]) == (None, None, None)
    store.insert_outcomes([(outcome("full", state_after=state), 21.0)])
    story = store.decision("full")
    assert story is not None
    assert (story["reward"], story["applied"], story["executed_action"]) == (0.25, True, "INCREASE_WORKER_POOL")
    assert story["outcome"]["status"] == "success"
    assert story["outcome"]["sla_met"] is True
    assert story["outcome"]["state_after"]["queue_depth"] == 7.0
    (row,) = store.dicts(f"SELECT * FROM {store.database}.scheduling_decisions")
    assert row["parameters"]["target_workers"] == "12"
    assert (row["queue_depth"], row["forecast_volume"], row["recommended_action"]) == (7.0, 12.5, "PREEMPTIVE_SCALING")
    assert row["decided_at"].timestamp() == 1366000000.25


def test_names_that_try_to_be_sql_are_only_names(store: Store) -> None:
    name = "x' OR 1=1 --\n\\"
    store.insert_decisions([(decision(name), 1.0), (decision("other"), 1.0)])
    story = store.decision(name)
    assert story is not None
    assert story["decision_id"] == name
    assert store.decision("' OR 1=1 --") is None
    assert len(store.hourly_volume("' OR 1=1 --")) == 0


def test_summaries(store: Store) -> None:
    control = {
        "arm": Arm.CONTROL,
        "action": Action.NO_ACTION,
        "source": Source.FALLBACK,
        "reason": Reason.NOT_IN_ROLLOUT,
    }
    store.insert_decisions([(decision("a"), 1.0), (decision("b"), 1.0), (decision("c", **control), 1.0)])
    store.insert_outcomes([(outcome("a", 0.5), 1.0), (outcome("b", -0.5, sla_met=False), 1.0)])
    assert store.decision_summary() == [
        {"action": "INCREASE_WORKER_POOL", "source": "policy", "arm": "treatment", "reason": "applied", "decisions": 2},
        {"action": "NO_ACTION", "source": "fallback", "arm": "control", "reason": "not_in_rollout", "decisions": 1},
    ]
    silent, treated = arms(store)
    assert (silent["arm"], silent["decisions"], silent["outcomes"], silent["mean_reward"]) == ("control", 1, 0, None)
    assert (treated["rewarded"], treated["mean_reward"], treated["sla_rate"]) == (2, 0.0, 0.5)
    assert store.decision_summary(until=dt.datetime(2010, 1, 1)) == []
    assert sorted(store.decision_ids()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decided_at": float("nan")}, "decided_at = nan: no time between"),
        ({"rollout_percentage": -5}, r"rollout_percentage = -5: not in \[0, 100\]"),
        ({"decision_id": ""}, "decision_id is empty"),
    ],
)
def test_a_value_that_does_not_fit_is_named(store: Store, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RejectedRowsError, match=message):
        store.insert_decisions([(decision("a", **changes), 1.0)])


# History


def test_hours_without_tickets_are_zero_when_short_and_missing_when_long(store: Store) -> None:
    store.insert_execution_logs(logs(["2026-03-01 00:10", "2026-03-01 00:20", "2026-03-01 04:00", "2026-03-03 04:59"]))
    series = store.hourly_volume()
    assert series.iloc[:5].tolist() == [2, 0, 0, 0, 1]
    assert series.iloc[5:-1].isna().all()
    assert (len(series), series.iloc[-1]) == (53, 1)
    assert str(series.index[0]) == "2026-03-01 00:00:00+00:00"
    assert series.index.freqstr == "h"


def test_where_telemetry_watches_it_tells_idle_from_outage(store: Store) -> None:
    store.insert_execution_logs(logs(["2026-03-01 00:10", "2026-03-01 08:00", "2026-03-03 12:00"]))
    watched = [NOW.replace(day=1, hour=hour) for hour in (0, 1, 2, 5, 8)]
    store.insert_telemetry(
        [{"timestamp": at, "service": "s", "metric_name": "up", "metric_value": 1.0, "kept": 1} for at in watched[:3]]
    )
    store.insert_queue_snapshots([{"timestamp": at, "queue_depth": 3, "kept": 1} for at in watched[3:]])
    series = store.hourly_volume()
    assert series.iloc[[1, 2, 5]].tolist() == [0, 0, 0]
    assert series.iloc[[3, 4, 6, 7]].isna().all()
    assert series.iloc[9:-1].isna().all(), "nobody watches any more, and 51 silent hours are an outage"


def test_a_slice_is_idle_while_others_work(store: Store) -> None:
    store.insert_execution_logs(logs(["2026-03-01 00:10", "2026-03-02 12:00"]))
    store.insert_execution_logs(logs([f"2026-03-{day:02} {hour:02}:30" for day in (1, 2) for hour in range(24)], "b"))
    series = store.hourly_volume("a")
    assert not series.isna().any()
    assert (series.sum(), len(series), series.iloc[-1]) == (2, 48, 0)
    assert store.hourly_volume("a", "high").empty
    assert store.slices() == [("b", "", 48), ("a", "", 2)]


def test_a_window_cuts_whole_hours_and_still_knows_the_outage(store: Store) -> None:
    store.insert_execution_logs(logs(["2026-03-01 00:10", "2026-03-03 12:00", "2026-03-03 13:00"]))
    series = store.hourly_volume(
        since=dt.datetime(2026, 3, 3, 10, 30),
        until=dt.datetime(2026, 3, 3, 15, 30, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    )
    assert [str(stamp.hour) for stamp in series.index] == ["10", "11", "12"]
    assert series.isna().tolist() == [True, True, False]
    assert store.hourly_volume(since=dt.datetime(2030, 1, 1)).empty


def test_execution_logs_for_a_replay(store: Store) -> None:
    frame = logs(["2026-03-01 00:10", "2026-03-01 00:05"]).assign(
        actual_duration_ms=[1500, 0], sla_met=pd.array([1, None], dtype="UInt8")
    )
    store.insert_execution_logs(frame)
    found = store.execution_logs()
    assert found["ticket_id"].tolist() == ["t1", "t0"]
    assert str(found["timestamp"].iloc[0]) == "2026-03-01 00:05:00+00:00"
    assert found["actual_duration_ms"].isna().tolist() == [True, False]
    assert found["sla_met"].tolist() == [pd.NA, True]
    assert len(store.execution_logs(since=dt.datetime(2026, 3, 1, 0, 7))) == 1
    assert store.execution_logs(since=dt.datetime(2030, 1, 1)).empty


def test_usage_leaves_out_what_is_not_known(store: Store) -> None:
    assert store.per_ticket_usage() == []
    assert store.per_ticket_usage(by_slice=False) == []
    store.insert_execution_logs(
        logs(["2026-03-01 00:10"] * 3).assign(
            actual_duration_ms=[3_600_000, 0, 1_800_000], resource_cpu=[2.0, 4.0, 0.0], resource_memory=0.0
        )
    )
    (usage,) = store.per_ticket_usage()
    assert (usage.task_type, usage.tickets, usage.duration_ms, usage.cpu_cores) == ("a", 3, 2_700_000, 3.0)
    assert (usage.cpu_core_hours, usage.memory_gib, usage.memory_gib_hours) == (2.0, None, None)
    (total,) = store.per_ticket_usage(by_slice=False)
    assert (total.task_type, total.tickets) == (None, 3)


def test_forecasts_can_be_stored(store: Store) -> None:
    point = {"generated_at": NOW, "target": NOW, "horizon_minutes": 60, "mean": 3.5, "confidence": 0.5}
    store.insert_forecasts([{**point, "quantiles": {"0.5": 3.0}, "method": "prophet"}])
    assert store.rows(f"SELECT mean, quantiles['0.5'], method FROM {store.database}.forecasts") == [
        (3.5, 3.0, "prophet")
    ]


def test_statements_are_counted_and_errors_explained(client: Any, store: Store) -> None:
    seen: list[tuple[str, bool]] = []
    watched = Store(client, store.database, observer=lambda name, ok, seconds: seen.append((name, ok and seconds > 0)))
    watched.slices()
    with pytest.raises(StoreError, match="nowhere"):
        watched.rows("SELECT * FROM nowhere")
    with pytest.raises(RejectedRowsError, match="insert queue_snapshots"):
        watched.insert_rows("queue_snapshots", ["timestamp", "queue_depth"], [["soon", 1.0]])
    assert seen == [("query", True), ("query", False), ("insert queue_snapshots", False)]
