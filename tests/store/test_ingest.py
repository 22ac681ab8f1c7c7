# ruff: noqa: E501, S608 - messages are matched in one piece; the database is named by the fixtures
from __future__ import annotations

import bz2
import csv
import datetime as dt
import gzip
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nhm_sched_plugin.errors import IngestError, StoreError
from nhm_sched_plugin.store.ingest import ingest, ingest_frame
from nhm_sched_plugin.store.repository import Store

RECENT = pd.Timestamp.now("UTC").floor("h") - pd.Timedelta(days=10)


def stamp(hours: float) -> str:
    return (RECENT + pd.Timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S")


def incidents(path: Path, rows: int = 5) -> Path:
    lines = ["CaseID,ActivityID,CompleteTimestamp"]
    lines += [f'1-{n},"type, {n % 2}",{stamp(n)}' for n in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


MAPPING = {"timestamp": "CompleteTimestamp", "ticket_id": "CaseID", "task_type": "ActivityID"}


def table(store: Store, columns: str = "*") -> list[dict[str, Any]]:
    return store.dicts(f"SELECT {columns} FROM {store.database}.execution_logs ORDER BY timestamp, ticket_id")


def test_a_csv_with_a_mapping(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = incidents(tmp_path / "incidents.csv")
    report = ingest(path, store, mapping=MAPPING, progress=lambda done, total: seen.append((done, total)))
    assert (report.rows, report.rejected, report.rejects_path, report.warnings) == (5, 0, None, ())
    assert report.task_types == {"type, 0": 3, "type, 1": 2}
    assert report.first == RECENT.to_pydatetime()
    assert report.last == (RECENT + pd.Timedelta(hours=4)).to_pydatetime()
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    rows = table(store, "ticket_id, task_type, risk_band, actual_duration_ms, sla_met, toUnixTimestamp(timestamp) AS t")
    assert rows[1] == {
        "ticket_id": "1-1",
        "task_type": "type, 1",
        "risk_band": "",
        "actual_duration_ms": 0,
        "sla_met": None,
        "t": int(RECENT.timestamp()) + 3600,
    }
    assert store.hourly_volume().tolist() == [1.0] * 5


@pytest.mark.parametrize("pack", ["gz", "bz2", "zip"])
def test_packed_files_are_unpacked(store: Store, tmp_path: Path, pack: str) -> None:
    plain = incidents(tmp_path / "i.csv").read_bytes()
    path = tmp_path / f"packed.csv.{pack}"
    if pack == "gz":
        path.write_bytes(gzip.compress(plain))
    elif pack == "bz2":
        path.write_bytes(bz2.compress(plain))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("incidents.csv", plain)
    assert ingest(path, store, mapping=MAPPING).rows == 5


def test_names_that_match_need_no_mapping_and_units_are_converted(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "semicolons.txt"
    path.write_text(
        "\ufeffTimestamp;ticket_id;Task_Type;actual_duration_min;wait_s;resource_cpu;worker_id\n"
        f"{stamp(0)};a;x;1.5;59;2.5;w1\n{stamp(1)};b;x;;61;;\n{stamp(2)};c;;0;;;\n",
        encoding="utf-8",
    )
    report = ingest(path, store, sla_wait_s=60, constants={"risk_band": "medium"})
    assert report.rows == 3
    rows = table(store, "ticket_id, task_type, risk_band, actual_duration_ms, sla_met, resource_cpu, worker_id")
    assert [tuple(row.values()) for row in rows] == [
        ("a", "x", "medium", 90_000, 1, 2.5, "w1"),
        ("b", "x", "medium", 0, 0, 0.0, ""),
        ("c", "default", "medium", 1, None, 0.0, ""),
    ]


def test_bad_rows_go_to_a_file_with_the_reason_and_nothing_is_lost(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text(
        "timestamp,ticket_id,actual_duration_ms,sla_met\n"
        f"{stamp(0)},good,5,yes\n"
        ",none,5,1\n"
        "03/04/2013 10:00,slashes,5,1\n"
        f"{stamp(1)},text,soon,1\n"
        f"{stamp(1)},negative,-5,1\n"
        f"{stamp(1)},perhaps,5,perhaps\n"
        "1890-01-01,old,5,1\n"
        f"{stamp(1)},short\n"
        f"{stamp(2)},fine,,\n"
    )
    rejects = tmp_path / "rejects.csv"
    report = ingest(path, store, rejects=rejects)
    assert (report.rows, report.rejected, report.rejects_path) == (2, 7, rejects)
    assert any("7 rows rejected, see" in warning for warning in report.warnings)
    with rejects.open() as file:
        found = {int(row["row_number"]): row["reason"] for row in csv.DictReader(file)}
    assert found == {
        2: "timestamp is missing",
        3: "timestamp = 03/04/2013 10:00 cannot be read as ISO 8601 or Unix time; give its format with "
        "--timestamp-format",
        4: "actual_duration_ms = soon is no number",
        5: "actual_duration_ms = -5 is out of range",
        6: "sla_met = perhaps is neither true nor false",
        7: "timestamp = 1890-01-01 is not between 1970 and 2106",
        8: "2 fields where the first line names 4",
    }
    assert [row["ticket_id"] for row in table(store)] == ["good", "fine"]


def test_rejects_stand_beside_the_file_by_default(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"timestamp\n{stamp(0)}\nnever\n")
    assert ingest(path, store).rejects_path == tmp_path / "x.csv.rejects.csv"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("CaseID,CompleteTimestamp\n1,2\n", {}, r"no column 'timestamp'; its columns: CaseID, CompleteTimestamp.*--map timestamp=CompleteTimestamp"),
        ("a,b\n1,2\n", {}, r"--map timestamp=COLUMN"),
        ("a,b\n1,2\n", {"mapping": {"timestamp": "aa"}}, r"no column 'aa' \(--map timestamp=aa\); did you mean 'a'\?; its columns: a, b"),
        ("timestamp\n1\n", {"mapping": {"ticketid": "a"}}, r"--map ticketid=\.\.\.: no such target; did you mean 'ticket_id'\?"),
        ("timestamp\n1\n", {"constants": {"nonsense": "a"}}, r"no such target"),
        ("timestamp\n1\n", {"timezone": "Mars/Olympus"}, r"time zone 'Mars/Olympus' is not known"),
        ("timestamp\n1\n", {"format": "xls"}, r"format 'xls': known are csv, parquet, swf"),
        ("timestamp,timestamp\n1,2\n", {}, r"names 'timestamp' more than once"),
        ("", {}, r"is empty: expected a first line"),
        ("timestamp\n", {}, r"holds no usable row \(no rows at all\)"),
        ("timestamp\nnever\n", {}, r"no usable row \(row 1: timestamp = never cannot be read.*; 1 rejected row in"),
        ("timestamp\n1\n", {"format": "parquet"}, r"no readable Parquet file"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_explained(
    store: Store, tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(IngestError, match=f"(?s){message}"):
        ingest(path, store, **options)
    assert table(store) == []


def test_files_that_cannot_be_read_are_explained(store: Store, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="no such file"):
        ingest(tmp_path / "absent.csv", store)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(random.Random(1).randbytes(50_000))[:1000])
    with pytest.raises(IngestError, match=r"cut\.csv\.gz cannot be read"):
        ingest(cut, store)
    double = tmp_path / "double.zip"
    with zipfile.ZipFile(double, "w") as archive:
        archive.writestr("a.csv", "timestamp\n")
        archive.writestr("b.csv", "timestamp\n")
    with pytest.raises(IngestError, match=r"holds 2 files \(a\.csv, b\.csv\); expected one"):
        ingest(double, store)
    with pytest.raises(IngestError, match="rejected rows cannot be written"):
        ingest_frame(pd.DataFrame({"timestamp": ["x"]}), store, name="f", rejects=tmp_path / "no" / "where.csv")


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ("2013-03-10 12:00:00", {}, "2013-03-10 12:00"),
        ("2013-03-10T12:00:00Z", {"timezone": "Asia/Tokyo"}, "2013-03-10 12:00"),
        ("2013-03-10T12:00:00.5-03:00", {}, "2013-03-10 15:00"),
        ("2013-03-10 12:00", {"timezone": "America/Sao_Paulo"}, "2013-03-10 15:00"),
        ("2013-03-10", {}, "2013-03-10 00:00"),
        ("1362916800", {}, "2013-03-10 12:00"),
        ("1362916800000", {}, "2013-03-10 12:00"),
        ("1362916800.75", {}, "2013-03-10 12:00"),
        ("10/03/2013 12:00", {"timestamp_format": "%d/%m/%Y %H:%M"}, "2013-03-10 12:00"),
        ("2013-03-10 02:30", {"timezone": "America/New_York"}, "2013-03-10 07:00"),  # skipped by the clock
        ("2013-11-03 01:30", {"timezone": "America/New_York"}, "2013-11-03 05:30"),  # shown twice: the first
    ],
)
def test_stamps(store: Store, given: str, options: dict[str, Any], expected: str) -> None:
    report = ingest_frame(pd.DataFrame({"timestamp": [given]}), store, name="stamps", **options)
    assert report.first is not None
    assert report.first.strftime("%Y-%m-%d %H:%M") == expected
    assert report.first.tzinfo is not None
    kept = store.rows(f"SELECT toUnixTimestamp(timestamp) FROM {store.database}.execution_logs")
    assert kept == [(int(report.first.timestamp()),)]


def test_mixed_stamps_in_one_column(store: Store) -> None:
    frame = pd.DataFrame({"timestamp": ["2026-11-01 10:00", "2026-11-01T10:00:00+02:00", "1793527200", "20", None]})
    report = ingest_frame(frame, store, name="mixed")
    assert (report.rows, report.rejected) == (3, 2)


def test_parquet_keeps_its_types(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    pd.DataFrame(
        {
            "timestamp": [RECENT, RECENT + pd.Timedelta(hours=1)],
            "ticket_id": [17, 18],
            "actual_duration_ms": [1500.4, None],
            "sla_met": [True, False],
        }
    ).to_parquet(path)
    seen: list[tuple[int, int | None]] = []
    assert ingest(path, store, progress=lambda *step: seen.append(step)).rows == 2
    rows = table(store, "ticket_id, actual_duration_ms, sla_met")
    assert [tuple(row.values()) for row in rows] == [("17", 1500, 1), ("18", 0, 0)]
    assert seen == [(2, 2)]


SWF = """; Version: 2.2
; UnixStartTime: {start}
; Note: a colon: here
    1        0     30   1451  128     -1    -1   -1     -1    -1  1   1   1  -1  2 -1 -1 -1
    2     1460     90   3726    4   1863  1024   -1     -1    -1  0   1   1  -1  2 -1 -1 -1
    3     broken line
    4     5198     -1     -1   -1     -1    -1   -1     -1    -1  5   2   1  -1 -1 -1 -1 -1
"""


def test_standard_workload_format(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "jobs.swf"
    path.write_text(SWF.format(start=int(RECENT.timestamp())))
    report = ingest(path, store, mapping={"task_type": "queue"}, sla_wait_s=60)
    assert (report.rows, report.rejected) == (3, 1)
    rows = table(store, "ticket_id, task_type, actual_duration_ms, status, sla_met, resource_cpu, resource_memory")
    assert [tuple(row.values()) for row in rows] == [
        ("1", "2", 1_451_000, "success", 1, 128.0, 0.0),
        ("2", "2", 3_726_000, "failed", 0, 2.0, 1024 * 4 / 2**20),
        ("4", "default", 0, "cancelled", None, 0.0, 0.0),
    ]
    assert report.last == (RECENT + pd.Timedelta(seconds=5198)).to_pydatetime()


# The same again


def test_the_same_content_again_adds_nothing_and_says_so(store: Store, tmp_path: Path) -> None:
    first = incidents(tmp_path / "a.csv")
    copy = incidents(tmp_path / "copy.csv")
    ingest(first, store, mapping=MAPPING)
    report = ingest(copy, store, mapping=MAPPING)
    assert (report.rows, report.already_ingested, len(table(store))) == (0, True, 5)
    assert "the same content was taken in on" in report.warnings[0]
    again = ingest(copy, store, mapping={"timestamp": "CompleteTimestamp"}, replace=True)
    assert (again.rows, len(table(store))) == (5, 5)
    assert {row["task_type"] for row in table(store)} == {"default"}


def blocks_of(monkeypatch: pytest.MonkeyPatch, size: int = 300) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.csv_blocks._BLOCK", size)


def dies_at(store: Store, monkeypatch: pytest.MonkeyPatch, block: int, *, after: bool = False) -> Callable[[], None]:
    """The insert of this block fails, before or after the database has done it. Returns what mends it."""
    insert, calls = store.insert_arrow, 0

    def failing(table: str, rows: Any, token: str | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls < block or after:
            insert(table, rows, token)
        if calls >= block:
            raise StoreError("the database went away")

    monkeypatch.setattr(store, "insert_arrow", failing)
    return lambda: monkeypatch.setattr(store, "insert_arrow", insert)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_run_goes_on_without_doubling(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    blocks_of(monkeypatch)
    path = incidents(tmp_path / "long.csv", 90)
    with path.open("a") as file:
        file.write("too,short\n" * 3)
    mend = dies_at(store, monkeypatch, 3, after=after)
    with pytest.raises(StoreError, match="went away"):
        ingest(path, store, mapping=MAPPING)
    left = len(table(store))
    assert 0 < left < 90
    mend()
    report = ingest(path, store, mapping=MAPPING)
    assert (report.rows, report.rejected, len(table(store)), report.already_ingested) == (90, 3, 90, False)
    assert 0 < report.resumed_rows < 90
    assert (report.resumed_rows < left) is after
    assert report.task_types == {"type, 0": 45, "type, 1": 45}
    assert report.first == RECENT.to_pydatetime()
    assert len((tmp_path / "long.csv.rejects.csv").read_text().splitlines()) == 4
    assert ingest(path, store, mapping=MAPPING).already_ingested


def test_an_interrupted_run_with_other_options_starts_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks_of(monkeypatch)
    path = incidents(tmp_path / "long.csv", 90)
    mend = dies_at(store, monkeypatch, 3)
    with pytest.raises(StoreError, match="went away"):
        ingest(path, store, mapping=MAPPING)
    mend()
    report = ingest(path, store, mapping=MAPPING, constants={"risk_band": "high"})
    assert (report.rows, report.resumed_rows, len(table(store))) == (90, 0, 90)
    assert {row["risk_band"] for row in table(store)} == {"high"}


def test_an_interrupted_run_whose_rows_were_deleted_starts_over(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks_of(monkeypatch)
    path = incidents(tmp_path / "long.csv", 90)
    mend = dies_at(store, monkeypatch, 3)
    with pytest.raises(StoreError, match="went away"):
        ingest(path, store, mapping=MAPPING)
    mend()
    store.command(f"DELETE FROM {store.database}.execution_logs WHERE ticket_id = '1-0'")
    report = ingest(path, store, mapping=MAPPING)
    assert (report.rows, report.resumed_rows, len(table(store))) == (90, 0, 90)
    assert "it was started over" in report.warnings[0]


def test_rows_that_another_file_brought_are_counted_in_a_warning(store: Store, tmp_path: Path) -> None:
    ingest(incidents(tmp_path / "a.csv", 5), store, mapping=MAPPING)
    report = ingest(incidents(tmp_path / "b.csv", 7), store, mapping=MAPPING)
    assert report.rows == 7
    assert "5 rows (same time, ticket and task type) there already" in report.warnings[0]


def test_rows_without_a_ticket_id_get_one_that_stays_the_same(store: Store) -> None:
    frame = pd.DataFrame({"timestamp": [stamp(0), stamp(1)]})
    report = ingest_frame(frame, store, name="f")
    expected = [f"{report.ingest_id[:8]}-1", f"{report.ingest_id[:8]}-2"]
    assert [row["ticket_id"] for row in table(store)] == expected
    ingest_frame(frame, store, name="f", replace=True)
    assert [row["ticket_id"] for row in table(store)] == expected


# Retention


def of_2013() -> pd.DataFrame:
    return pd.DataFrame({"timestamp": pd.date_range("2013-01-01", periods=6, freq="h"), "task_type": "flight"})


def left_after_merge(store: Store) -> int:
    store.command(f"OPTIMIZE TABLE {store.database}.execution_logs FINAL")
    return len(table(store))


@pytest.mark.parametrize(("keep", "left"), [(True, 6), (False, 0), (None, 6)])
def test_history_older_than_the_retention(store: Store, keep: bool | None, left: int) -> None:
    report = ingest_frame(of_2013(), store, name="2013", keep_expired=keep)
    assert report.rows == 6
    assert report.kept_expired == left
    assert "6 of 6 rows older than the retention of 540 days" in report.warnings[0]
    assert ("exempt from it" in report.warnings[0]) is bool(left)
    assert left_after_merge(store) == left


def test_old_rows_in_a_recent_file_are_left_to_the_retention_with_a_warning(store: Store) -> None:
    frame = pd.concat([of_2013(), pd.DataFrame({"timestamp": [RECENT.tz_localize(None)], "task_type": "new"})])
    report = ingest_frame(frame, store, name="both")
    assert "6 of 7 rows older than the retention of 540 days: the database deletes them" in report.warnings[0]
    assert left_after_merge(store) == 1
    kept = ingest_frame(frame, store, name="both", keep_expired=True, replace=True)
    assert (kept.rows, kept.kept_expired) == (7, 6)
    assert left_after_merge(store) == 7
    assert isinstance(kept.first, dt.datetime)
