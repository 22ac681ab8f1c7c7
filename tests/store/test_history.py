# ruff: noqa: S608 - the database is named by the fixtures
"""Features of the specification by hour, and idle hours told from outages, in a real database."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.schema import FEATURES, init

START = pd.Timestamp("2026-03-02", tz="UTC")


def at(hour: float) -> dt.datetime:
    return START.to_pydatetime() + dt.timedelta(hours=hour)


def tickets(store: Store, hours: list[float], task_type: str = "a", **columns: Any) -> None:
    frame = pd.DataFrame({"timestamp": [at(hour) for hour in hours], "ticket_id": [f"t{hour}" for hour in hours]})
    store.insert_execution_logs(frame.assign(**{"task_type": task_type, "risk_band": "", "kept": 1, **columns}))


def telemetry(store: Store, hours: list[float]) -> None:
    sample = {"service": "s", "metric_name": "up", "metric_value": 1.0, "kept": 1}
    store.insert_telemetry([{"timestamp": at(hour), **sample} for hour in hours])


def silent(series: pd.Series) -> list[int]:
    """Hours since the first one that are missing."""
    return np.flatnonzero(series.isna()).tolist()


# Features


@pytest.fixture
def busy(store: Store) -> Store:
    """Two task types in two bands over three hours, with what is not known among them."""
    rows = [
        (0.1, "a", "low", 1000, 1.0, 1),
        (0.2, "a", "low", 0, 0.0, None),
        (0.3, "a", "high", 4000, 3.0, 0),
        (0.9, "b", "low", 500, 0.5, 1),
        (2.5, "a", "low", 0, float("nan"), None),
    ]
    names = ["hour", "task_type", "risk_band", "actual_duration_ms", "resource_cpu", "sla_met"]
    frame = pd.DataFrame(rows, columns=names)
    frame["sla_met"] = frame["sla_met"].astype("UInt8")
    frame.insert(0, "timestamp", [at(hour) for hour in frame.pop("hour")])
    store.insert_execution_logs(frame.assign(ticket_id=[f"t{n}" for n in range(len(frame))], kept=1))
    store.insert_queue_snapshots(
        [{"timestamp": at(hour), "queue_depth": depth, "kept": 1} for hour, depth in ((0.1, 4.0), (0.6, 8.0), (1.5, 2))]
    )
    return store


def test_the_columns_of_the_specification(busy: Store) -> None:
    names = [name for name, _ in busy.rows(f"SELECT name, type FROM system.columns WHERE database = '{busy.database}' "
                                           "AND table = 'features_hourly' ORDER BY position")]  # fmt: skip
    assert names == ["hour", "task_type", "risk_band", *FEATURES, "queue_depth_avg"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("task_type IS NULL AND risk_band IS NULL", (4, 5500 / 3, 2 / 3, 2.8, 6.0)),
        ("task_type = 'a' AND risk_band IS NULL", (3, 2500.0, 0.5, 2.9, 6.0)),
        ("task_type IS NULL AND risk_band = 'low'", (3, 750.0, 1.0, 0.975, 6.0)),
        ("task_type = 'a' AND risk_band = 'low'", (2, 1000.0, 1.0, 1.0, 6.0)),
    ],
)
def test_every_level_of_the_view(busy: Store, where: str, expected: tuple[float, ...]) -> None:
    """Counted by hand: what is not known is in no average, and the queue is that of the whole system."""
    columns = ", ".join([*FEATURES, "queue_depth_avg"])
    (row,) = busy.rows(
        f"SELECT {columns} FROM {busy.database}.features_hourly WHERE {where} AND hour = '{at(0):%F %T}'"
    )
    assert row == pytest.approx(expected)


def test_an_hour_in_which_nothing_is_known_has_only_its_volume(busy: Store) -> None:
    (row,) = busy.dicts(f"SELECT * FROM {busy.database}.features_hourly WHERE hour = '{at(2):%F %T}' "
                        "AND task_type IS NULL AND risk_band IS NULL")  # fmt: skip
    assert row["ticket_volume_hourly"] == 1
    assert [name for name, value in row.items() if value is None] == ["task_type", "risk_band", *list(FEATURES)[1:],
                                                                      "queue_depth_avg"]  # fmt: skip


@pytest.mark.parametrize("slice_", [(None, None), ("a", None), (None, "low"), ("a", "low"), ("b", "low")])
def test_the_frame_is_the_view_on_gapless_hours(busy: Store, slice_: tuple[str | None, str | None]) -> None:
    frame = busy.features(*slice_)
    assert list(frame.columns) == [*FEATURES, "queue_depth_avg"]
    assert frame["ticket_volume_hourly"].equals(busy.hourly_volume(*slice_).rename("ticket_volume_hourly"))
    conditions = [
        f"{name} IS NULL" if value is None else f"{name} = '{value}'"
        for name, value in zip(("task_type", "risk_band"), slice_, strict=True)
    ]
    view = busy.dicts(f"SELECT * FROM {busy.database}.features_hourly WHERE {' AND '.join(conditions)} ORDER BY hour")
    for row in view:
        mine = frame.loc[pd.Timestamp(row["hour"]).tz_localize("UTC") if row["hour"].tzinfo is None else row["hour"]]
        expected = [float("nan") if row[name] is None else row[name] for name in frame.columns]
        assert mine.tolist() == pytest.approx(expected, nan_ok=True)


def test_an_idle_hour_has_its_queue(busy: Store) -> None:
    idle = busy.features().iloc[1]
    assert (idle["ticket_volume_hourly"], idle["queue_depth_avg"]) == (0, 2)
    assert idle.isna().sum() == 3
    assert busy.features("nobody").empty
    assert len(busy.features(since=at(1), until=at(2))) == 1


def test_the_view_joins_an_older_database_in_place(bare: Store) -> None:
    init(bare)
    tickets(bare, [0.5, 1.5])
    for view in ("features_hourly", "hours_alive", "tickets"):
        bare.command(f"DROP VIEW {bare.database}.{view}")
    bare.command(f"DELETE FROM {bare.database}.schema_migrations WHERE version = 6")
    assert init(bare) == ["features by hour"]
    assert bare.hourly_volume().tolist() == [1, 1]


def test_a_foreign_table_is_told_before_a_view_fails_on_it(bare: Store) -> None:
    bare.command(f"CREATE DATABASE {bare.database}")
    bare.command(
        f"CREATE TABLE {bare.database}.execution_logs (timestamp DateTime, ticket_id String, task_type String) "
        "ENGINE = MergeTree ORDER BY timestamp"
    )
    with pytest.raises(StoreError, match=r"execution_logs lacks risk_band, actual_duration_ms"):
        init(bare)


def test_many_slices_at_once_are_the_same_as_one_by_one(store: Store) -> None:
    draw = np.random.default_rng(5)
    for number in range(60):
        hours = sorted(draw.uniform(0, 72, 20).tolist())
        tickets(store, hours, f"type' {number}", risk_band=str(number % 3))
    telemetry(store, list(range(0, 72, 2)))
    slices: list[tuple[str | None, str | None]] = [(None, None), (None, "1"), ("type' 3", "1"), ("nobody", None)]
    slices += [(f"type' {number}", None) for number in range(60)]
    for (task_type, risk_band), series in zip(slices, store.hourly_volumes(slices), strict=True):
        assert series.equals(store.hourly_volume(task_type, risk_band))
    first, second, third, fourth, *others = store.hourly_volumes(slices)
    assert (first.sum(), second.sum(), len(third), len(fourth)) == (1200, 400, 0, 0)
    assert [series.sum() for series in others] == [20] * 60


# Idle hours and outages


def test_life_makes_a_silent_hour_idle_and_no_life_makes_it_missing(store: Store) -> None:
    tickets(store, [0, 1, 8, 9])
    telemetry(store, [0, 1, 3, 8])
    store.insert_queue_snapshots([{"timestamp": at(5), "queue_depth": 0, "kept": 1}])
    assert silent(store.hourly_volume()) == [2, 4, 6, 7]
    assert store.hourly_volume().sum() == 4


def test_without_telemetry_a_night_is_idle_and_a_day_is_an_outage(store: Store) -> None:
    tickets(store, [0, 24, 49])
    series = store.hourly_volume()
    assert (series.iloc[1:24] == 0).all(), "23 silent hours"
    assert silent(series) == list(range(25, 49)), "24 silent hours"


def test_telemetry_that_was_off_for_a_time_makes_no_outages_of_quiet_nights(store: Store) -> None:
    days = 40
    tickets(store, [day * 24 + hour + 0.5 for day in range(days) for hour in range(8, 20)])
    watched = [*range(10 * 24), *range(30 * 24, days * 24)]
    telemetry(store, [hour for hour in watched if not 5 * 24 + 10 <= hour < 5 * 24 + 14])
    series = store.hourly_volume()
    assert (series[series.index.hour < 8] == 0).all(), "for twenty days nobody looked, and somebody worked every day"


def test_one_sample_a_day_says_nothing_of_the_night(store: Store) -> None:
    tickets(store, [day * 24 + hour for day in range(10) for hour in range(8, 20)])
    telemetry(store, [day * 24 + 12 for day in range(10)])
    assert silent(store.hourly_volume()) == []


def test_an_outage_of_tickets_and_telemetry_is_missing_for_every_slice(store: Store) -> None:
    down = range(60, 66)
    tickets(store, [hour for hour in range(120) if hour not in down])
    tickets(store, [10, 100], "rare")
    telemetry(store, [hour for hour in range(120) if hour not in down])
    assert silent(store.hourly_volume()) == list(down)
    assert silent(store.hourly_volume("rare")) == [hour - 10 for hour in down]
    assert silent(store.hourly_volume("rare", since=at(62))) == [0, 1, 2, 3]
