# ruff: noqa: S608 - the database is named by the fixtures
"""Other tables as sources, profiles, the report before anything is written, duplicates, and kill -9."""

from __future__ import annotations

import csv
import functools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nhm_sched_plugin.errors import IngestError, StoreError
from nhm_sched_plugin.store.ingest import file_source, ingest, ingest_frame, ingest_table
from nhm_sched_plugin.store.ingest.chunks import Position
from nhm_sched_plugin.store.ingest.preview import Preview, preview
from nhm_sched_plugin.store.ingest.profiles import Profile, load_profile, profile_path, saved_profiles
from nhm_sched_plugin.store.ingest.tables_in import Table
from nhm_sched_plugin.store.repository import Store

RECENT = pd.Timestamp.now("UTC").floor("D") - pd.Timedelta(days=10)


def at(hours: float) -> str:
    return (RECENT + pd.Timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S")


def count(store: Store) -> tuple[int, int]:
    sql = f"SELECT count(), uniqExact(ticket_id) FROM {store.database}.execution_logs"
    ((rows, tickets),) = store.rows(sql)
    return int(rows), int(tickets)


# Another table


@pytest.fixture
def other(store: Store) -> Any:
    """A table of somebody else's shape: 300 tickets in 30 hours, one without a time, and one before 1970."""
    name = f"{store.database}.incidents"
    store.command(
        f"CREATE TABLE {name} (opened Nullable(DateTime64(3, 'Asia/Tokyo')), id UInt64, kind Enum8('a' = 1, 'b' = 2), "
        "minutes Nullable(Decimal(10, 2)), ok Bool, note String) ENGINE = MergeTree ORDER BY id"
    )
    store.command(
        f"INSERT INTO {name} SELECT toDateTime({int(RECENT.timestamp())} + number * 360), number, "
        f"1 + number % 2, number / 4, number % 3 = 0, 'x' FROM numbers(300)"
    )
    store.command(
        f"INSERT INTO {name} VALUES (NULL, 1000, 'a', 1, true, ''), ('1960-05-05 00:00:00', 1001, 'a', 1, true, '')"
    )
    yield name
    store.command(f"DROP TABLE {name} SYNC")


HOW = Profile(
    mapping={
        "timestamp": "opened",
        "ticket_id": "id",
        "task_type": "kind",
        "actual_duration_min": "minutes",
        "sla_met": "ok",
    }
)


def test_a_table_is_taken_in_by_slices(
    store: Store, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.tables_in._ROWS", 25)
    seen: list[tuple[int, int | None]] = []
    report = ingest_table(
        Table(store, other), store, profile=HOW, rejects=tmp_path / "r.csv", progress=lambda *step: seen.append(step)
    )
    assert (report.rows, report.rejected, report.task_types) == (300, 2, {"a": 150, "b": 150})
    assert count(store) == (300, 300)
    assert len(seen) > 10
    assert seen[-1] == (302, 302)
    row = store.dicts(
        "SELECT toUnixTimestamp(timestamp) AS t, task_type, actual_duration_ms, sla_met "
        f"FROM {store.database}.execution_logs WHERE ticket_id = '7'"
    )
    assert row == [
        {"t": int(RECENT.timestamp()) + 7 * 360, "task_type": "b", "actual_duration_ms": 105_000, "sla_met": 0}
    ]
    with (tmp_path / "r.csv").open() as file:
        reasons = sorted(line["reason"] for line in csv.DictReader(file))
    assert reasons[0].endswith("is not between 1970 and 2106")
    assert reasons[1] == "timestamp is missing"
    assert ingest_table(Table(store, other), store, profile=HOW).already_ingested


def test_a_crowded_hour_is_taken_in_parts(store: Store, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.tables_in._ROWS", 4)
    table = Table(store, other, where="opened IS NOT NULL AND opened > '2000-01-01'")
    assert ingest_table(table, store, profile=HOW).rows == 300
    assert count(store) == (300, 300)


def test_an_interrupted_table_goes_on(
    store: Store, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.tables_in._ROWS", 25)
    insert, calls = store.insert_arrow, 0

    def failing(table: str, rows: Any, token: str | None = None) -> None:
        nonlocal calls
        calls += 1
        insert(table, rows, token)
        if calls == 6:
            raise StoreError("the database went away")

    monkeypatch.setattr(store, "insert_arrow", failing)
    take = functools.partial(ingest_table, store=store, profile=HOW, rejects=tmp_path / "r.csv")
    with pytest.raises(StoreError, match="went away"):
        take(Table(store, other))
    report = take(Table(store, other))
    assert (report.rows, report.rejected) == (300, 2)
    assert 0 < report.resumed_rows < 300
    assert count(store) == (300, 300)


@pytest.mark.parametrize("kind", ["String", "UInt32", "Int64", "DateTime", "Date"])
def test_times_of_any_type(store: Store, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.tables_in._ROWS", 10)
    start = int(RECENT.timestamp())
    made = {
        "String": f"toString(toDateTime({start} + number * 900, 'UTC'))",
        "UInt32": f"{start} + number * 900",
        "Int64": f"({start} + number * 900) * 1000",
        "DateTime": f"toDateTime({start} + number * 900)",
        "Date": f"toDate({start // 86400} + intDiv(number, 24))",
    }[kind]
    store.command(f"CREATE TABLE {store.database}.odd (timestamp {kind}, ticket_id String) ENGINE = Memory")
    try:
        store.command(f"INSERT INTO {store.database}.odd SELECT {made}, toString(number) FROM numbers(100)")
        report = ingest_table(Table(store, "odd"), store)
        assert (report.rows, report.rejected) == (100, 0)
        assert count(store) == (100, 100)
        assert report.first is not None
        assert report.first.timestamp() == start
    finally:
        store.command(f"DROP TABLE {store.database}.odd SYNC")


def test_tables_that_cannot_work_are_explained(store: Store, other: str) -> None:
    with pytest.raises(IngestError, match="there is no such table"):
        Table(store, "absent.table")
    with pytest.raises(IngestError, match=r"write it as DATABASE\.TABLE"):
        Table(store, "a.b; DROP TABLE x")
    with pytest.raises(IngestError, match="that is where the rows would go"):
        Table(store, "execution_logs")
    with pytest.raises(IngestError, match=r"cannot be read \(check --where\)"):
        ingest_table(Table(store, other, where="nonsense = 1"), store, profile=HOW)
    with pytest.raises(IngestError, match=r"no column 'timestamp'; its columns: opened, id.*--map timestamp="):
        ingest_table(Table(store, other), store)


def test_a_table_that_goes_away_is_named(store: Store, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is not taken for the table that the rows go to."""
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.tables_in._ROWS", 25)
    chunks = Table(store, other).chunks(HOW, lambda columns, sample: {}, Position())
    next(chunks)
    store.command(f"RENAME TABLE {other} TO {other}_away")
    try:
        with pytest.raises(IngestError, match=f"^{other} cannot be read: .*UNKNOWN_TABLE"):
            next(chunks)
    finally:
        store.command(f"RENAME TABLE {other}_away TO {other}")


# Profiles


def test_a_profile_is_kept_shared_and_changed(store: Store, tmp_path: Path) -> None:
    assert saved_profiles(tmp_path) == []
    how = Profile(mapping={"timestamp": "When"}, timezone="Asia/Tokyo", sla_wait_s=60)
    how.save(profile_path(tmp_path, "desk"))
    assert saved_profiles(tmp_path) == ["desk"]
    assert load_profile(tmp_path, "desk") == how
    assert load_profile(tmp_path, str(tmp_path / "ingest-profiles" / "desk.yaml")) == how
    changed = how.changed(mapping={"ticket_id": "No"}, timezone=None, sla_wait_s=30.0)
    assert changed.mapping == {"timestamp": "When", "ticket_id": "No"}
    assert (changed.timezone, changed.sla_wait_s) == ("Asia/Tokyo", 30)
    path = tmp_path / "t.csv"
    path.write_text("When,No\n2026-11-01 09:00,1\n")
    report = ingest(path, store, profile=changed)
    assert report.first is not None
    assert report.first.isoformat() == "2026-11-01T00:00:00+00:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mappings: {}", "unknown field `mappings`.*its keys are mapping, constants"),
        ("mapping: [a]", r"\$\.mapping"),
        ("sla_wait_s: soon", r"\$\.sla_wait_s"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_profile_that_is_wrong_is_explained(tmp_path: Path, text: str, message: str) -> None:
    path = profile_path(tmp_path, "bad")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(IngestError, match=f"(?s){message}"):
        load_profile(tmp_path, "bad")
    with pytest.raises(IngestError, match=r"no profile 'none'.*profiles: bad"):
        load_profile(tmp_path, "none")
    path = tmp_path / "p.yaml"
    Profile(timezone="UTC", mapping={"ticket_id": "old"}).save(path)
    with path.open() as reader:
        Profile(mapping={"ticket_id": "new"}).save(path)
        assert "old" in reader.read(), "who reads sees the one or the other, whole"
    assert "new" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644, "to share"
    with pytest.raises(IngestError, match="profile name"):
        profile_path(tmp_path, "a b")


# The report before anything is written


def checked(path: Path, store: Store | None = None, **how: Any) -> Preview:
    profile = Profile(**how)
    return preview(file_source(path, profile), path.name, profile, store=store, retention_days=540)


def test_the_check_tells_what_would_happen_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = ["Opened,ticket_id,task_type,actual_duration_ms,colour"]
    lines += [f"{at(hour)},t{hour},x,5,red" for hour in (0, 1, 2, 10, 11)]
    lines += [f"{at(1)},t1,x,5,red", f"{at(12)},t2,x,5,red", "never,a,x,5,red", "soon,a,x,5,red", f"{at(1)},b,x,-1,red"]
    lines += ["2013-01-01,old,y,1,red", "short"]
    path.write_text("\n".join(lines) + "\n")
    ingest_frame(
        pd.DataFrame({"timestamp": [at(2), at(30)], "ticket_id": ["t2", "t10"], "task_type": "x"}), store, name="f"
    )
    found = checked(path, store, mapping={"timestamp": "Opened"})
    assert (found.problem, found.rows, found.rejected, found.expired) == (None, 8, 4, 1)
    assert found.reasons[0].rows == 2
    assert {reason.reason.split(" ")[0] for reason in found.reasons} == {"timestamp", "actual_duration_ms", "1"}
    assert found.reasons[0].example.startswith("row 8: timestamp = never cannot be read")
    assert found.mapped["timestamp"] == "Opened"
    assert found.unmapped == ("colour",)
    assert "risk_band" in found.absent
    assert found.types["Opened"] == "timestamp[us]"
    assert found.types["actual_duration_ms"] == "number"
    assert found.gaps[1].hours == 7
    assert found.gaps[1].start == (RECENT + pd.Timedelta(hours=3)).to_pydatetime()
    twice = found.duplicates
    assert (twice.rows_within, twice.tickets_within) == (1, 2)
    assert (twice.rows_elsewhere, twice.tickets_elsewhere) == (1, 2), "t10 of whatever time"
    assert found.task_types == {"x": 7, "y": 1}
    assert count(store)[0] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_the_check_agrees_with_the_ingest(store: Store, tmp_path: Path) -> None:
    random.seed(3)
    path = tmp_path / "t.csv"
    rows = [f"{at(random.randrange(50))},é{random.randrange(400)},{random.choice('ab')}" for _ in range(1000)]
    path.write_text("timestamp,ticket_id,task_type\n" + "\n".join(rows) + "\n")
    ingest_frame(
        pd.DataFrame([row.split(",") for row in rows[:300]], columns=["timestamp", "ticket_id", "task_type"]),
        store,
        name="f",
    )
    # Tickets that another source had long before and after, at no time that is in this one.
    apart = pd.DataFrame({"timestamp": [at(-900), at(-900), at(90), at(91)], "ticket_id": ["é1", "é2", "é3", "new"]})
    ingest_frame(apart, store, name="apart")
    before = checked(path, store)
    after = ingest(path, store)
    assert before.duplicates == after.duplicates
    assert min(after.duplicates.rows_within, after.duplicates.rows_elsewhere) > 0
    assert after.duplicates.tickets_elsewhere == len({row.split(",")[1] for row in rows[:300]} | {"é1", "é2", "é3"})
    assert (before.rows, before.first, before.last) == (after.rows, after.first, after.last)
    assert before.task_types == after.task_types
    alone = checked(path)
    assert alone.duplicates.rows_within == before.duplicates.rows_within
    assert alone.duplicates.rows_elsewhere == 0


def test_the_check_names_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("CaseID,CompleteTimestamp\n1,2\n")
    problem = checked(path).problem
    assert problem is not None
    assert "no column 'timestamp'" in problem
    path.write_text("timestamp\nnever\n")
    assert "no usable row" in str(checked(path).problem)
    with pytest.raises(IngestError, match="no such file"):
        checked(tmp_path / "absent.csv")


def test_rows_and_tickets_that_repeat_are_counted(store: Store) -> None:
    frame = pd.DataFrame({"timestamp": [at(0), at(0), at(1), at(2)], "ticket_id": ["a", "a", "a", "b"]})
    report = ingest_frame(frame, store, name="one")
    assert (report.duplicates.rows_within, report.duplicates.tickets_within) == (1, 1)
    assert "1 row (same time, ticket and task type) repeated within the same source" in report.warnings[0]
    again = ingest_frame(pd.DataFrame({"timestamp": [at(5)], "ticket_id": ["b"]}), store, name="two")
    assert (again.duplicates.rows_elsewhere, again.duplicates.tickets_elsewhere) == (0, 1)
    assert "1 ticket id in other sources too" in again.warnings[0]


# kill -9

CHILD = """
import sys
from pathlib import Path
import nhm_sched_plugin.store.ingest.csv_blocks as blocks
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store.client import open_store
from nhm_sched_plugin.store.ingest import ingest
blocks._BLOCK = 6000
with open_store(load_settings({"data_dir": sys.argv[1], "metrics": {"enabled": False}})) as store:
    def rows(good, bad):
        print("rows", good, flush=True)
    print("go", flush=True)
    report = ingest(Path(sys.argv[2]), store, rows=rows)
    ((count, tickets),) = store.rows("SELECT count(), uniqExact(ticket_id) FROM neural_hive.execution_logs")
    print("done", report.rows, report.rejected, count, tickets, report.resumed_rows, flush=True)
"""


def test_killed_at_any_point_it_goes_on_and_doubles_nothing(tmp_path: Path) -> None:
    """Five processes are killed at random points, each on a database of the one before; the sixth finishes."""
    chance = random.Random(os.urandom(4))
    path = tmp_path / "t.csv"
    lines = [f"{at(-24 * (n % 60))},t{n},x" if n % 50 else f"never,t{n},x" for n in range(8000)]
    path.write_text("timestamp,ticket_id,task_type\n" + "\n".join(lines) + "\n")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "data"), str(path)]
    resumed = 0
    for kills in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            left = chance.randrange(1, 8) if kills < 5 else 10**9
            for line in child.stdout:
                if line.startswith("rows"):
                    left -= 1
                if left == 0:
                    child.send_signal(signal.SIGKILL)
                    break
                if line.startswith("done"):
                    numbers = [int(number) for number in line.split()[1:]]
                    resumed = numbers.pop()
                    assert numbers == [7840, 160, 7840, 7840]
    assert resumed > 0
    with (tmp_path / "t.csv.rejects.csv").open() as file:
        found = [int(row["row_number"]) for row in csv.DictReader(file)]
    assert found == [n + 1 for n in range(0, 8000, 50)]
