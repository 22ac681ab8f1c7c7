"""CSV cut into blocks, and the short way of shaping: both must give what the plain way gives."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.ingest.chunks import FrameChunk, Position, TableChunk
from nhm_sched_plugin.store.ingest.quick import column_types, quick
from nhm_sched_plugin.store.ingest.readers import read
from nhm_sched_plugin.store.ingest.settle import settle
from nhm_sched_plugin.store.ingest.shaping import plan

FIELDS = st.text(st.sampled_from('ab1,;"\n\r\t é '), max_size=6)


def kinds(columns: Any, sample: Any) -> Any:
    return dict.fromkeys(columns, pa.string())


def rows_of(path: Path, start: Position | None = None) -> tuple[dict[int, list[str]], dict[int, str], list[Position]]:
    rows: dict[int, list[str]] = {}
    broken: dict[int, str] = {}
    ends = []
    for chunk in read(path, "csv", kinds, start or Position()):
        full = chunk.full()
        frame = full.to_pandas() if isinstance(full, pa.Table) else full
        for number, values in zip(chunk.numbers, frame.itertuples(index=False), strict=True):
            assert number not in rows
            rows[number] = ["" if value != value or value is None else value for value in values]
        broken.update({bad.number: bad.reason for bad in chunk.broken})
        ends.append(chunk.position)
    return rows, broken, ends


def plainly(text: str) -> tuple[dict[int, list[str]], set[int]]:
    rows, broken, number = {}, set(), 0
    for fields in list(csv.reader(io.StringIO(text, newline="")))[1:]:
        if fields:
            number += 1
            if len(fields) == 3:
                rows[number] = fields
            else:
                broken.add(number)
    return rows, broken


@given(
    st.lists(st.lists(FIELDS, min_size=3, max_size=4), min_size=1, max_size=30),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(8, 60),
)
@example([["a", '5" b', "c"]] * 20, csv.QUOTE_NONE, "\n", 40)
@example([["a\nb", 'x"y', "c"]] * 20, csv.QUOTE_ALL, "\n", 16)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_hold_the_rows_that_a_plain_reader_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[str]], quoting: Any, end: str, size: int
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.csv_blocks._BLOCK", size)
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.csv_blocks._CAREFUL_ROWS", 4)
    text = io.StringIO(newline="")
    if quoting == csv.QUOTE_NONE:
        kept = str.maketrans("", "", ",\n\r")
        text.write(end.join(",".join(field.translate(kept) for field in row) for row in [["a", "b", "c"], *rows]) + end)
    else:
        csv.writer(text, quoting=quoting, lineterminator=end).writerows([["a", "b", "c"], *rows])
    path = tmp_path / "x.csv"
    path.write_bytes(text.getvalue().encode())
    expected, wrong = plainly(text.getvalue())
    found, broken, ends = rows_of(path)
    assert found == expected
    assert set(broken) == wrong
    for position in ends[:-1]:
        assert position.row <= ends[-1].row
        later, broken_later, _ = rows_of(path, position)
        assert later == {number: row for number, row in expected.items() if number > position.row}
        assert set(broken_later) == {number for number in wrong if number > position.row}


def test_a_packed_file_goes_on_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.csv_blocks._BLOCK", 64)
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(("a,b,c\n" + "".join(f"{n},x,y\n" for n in range(50))).encode()))
    everything, _, ends = rows_of(path)
    assert len(everything) == 50
    later, _, _ = rows_of(path, ends[2])
    assert later == {number: row for number, row in everything.items() if number > ends[2].row}


def test_bytes_that_are_no_text_and_lines_of_old(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b,c\n1,\xff,3\n")
    assert rows_of(path)[0] == {1: ["1", "\\xff", "3"]}
    path.write_bytes(b"a,b,c\r1,2,3\r4,5,6\r")
    assert rows_of(path)[0] == {1: ["1", "2", "3"], 2: ["4", "5", "6"]}


def test_a_quote_that_never_closes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.csv_blocks._BLOCK", 1000)
    monkeypatch.setattr("nhm_sched_plugin.store.ingest.csv_blocks._ROW_MAX", 3000)
    path = tmp_path / "x.csv"
    path.write_text('a,b,c\n1,2,3\n1,"' + "x\n" * 3000)
    with pytest.raises(IngestError, match=r"row 2 is longer than .* is a quote open"):
        rows_of(path)


STAMPS = st.one_of(
    st.datetimes(min_value=pd.Timestamp("1960-01-01"), max_value=pd.Timestamp("2110-01-01")).map(str),
    st.datetimes(min_value=pd.Timestamp("2013-01-01"), max_value=pd.Timestamp("2026-01-01")).map(
        lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    ),
    st.sampled_from([
        "2013-03-10 02:30:00", "2013-11-03 01:30:00", "2012-02-29 10:00:00", "2013-02-29 10:00:00", "2013-04-31",
        "2013-03-10", "2013-03-10 12", "20130310", "2013", "1362916800", "1362916800000", "1362916800000000",
        "99999999", "1362916800.75", "-5", " 2013-03-10 12:00 ", "2013-03-10T12:00:00+0130",
        "2013-03-10T12:00:00-03:00", "never", "", "2013-03-10 24:00:00", "2013-03-10 12:00:60", "1e10",
    ]),
)  # fmt: skip
NUMBERS = st.one_of(
    st.floats(-10, 1e12).map(str),
    st.integers(-5, 10**20).map(str),
    st.sampled_from(["", " 5 ", "+5", "nan", "inf", "0x1f", "1_000", "soon", "-0", ".5", "5.", "1e3", "NULL"]),
    st.sampled_from(["3.4e38", "1e39", "-1e39", "1e308", "1e400"]),
)
WORDS = st.sampled_from(["", " ", "yes", "No ", "1", "0", "1.0", "TRUE", "perhaps", "2", "y"])
TEXTS = st.sampled_from(["", " ", "a", " a ", "é", "17", "nan", "None"])
ROWS = st.lists(st.tuples(STAMPS, TEXTS, TEXTS, NUMBERS, NUMBERS, WORDS, NUMBERS), min_size=1, max_size=12)
NAMES = ["timestamp", "ticket_id", "task_type", "actual_duration_s", "resource_cpu", "sla_met", "queue_depth_at_start"]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@given(ROWS, st.sampled_from(["UTC", "America/New_York"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_short_way_gives_what_the_long_one_gives(tmp_path: Path, rows: list[tuple[str, ...]], zone: str) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([NAMES, *rows])
    how = plan(
        NAMES,
        name="x",
        mapping=None,
        constants={"risk_band": "medium"},
        timezone=zone,
        timestamp_format=None,
        sla_wait_s=None,
        ticket_prefix="p",
    )
    (chunk,) = read(path, "csv", lambda columns, sample: column_types(columns, how, sample), Position())
    short = settle(chunk, how)
    frame = pd.DataFrame(rows, columns=pd.Index(NAMES), dtype="str")
    long = settle(FrameChunk(frame.mask(frame == ""), list(range(1, len(rows) + 1)), [], Position(), 0, None), how)
    assert [(bad.number, bad.reason) for bad in short.rejected] == [(bad.number, bad.reason) for bad in long.rejected]
    assert values(short.good.cast(long.good.schema)) == values(long.good)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("target", ["resource_cpu", "resource_memory", "queue_depth_at_start", "actual_duration_min"])
@pytest.mark.parametrize("kind", [pa.float64(), pa.string()], ids=str)
def test_a_number_that_no_column_holds_is_rejected_with_its_reason(target: str, kind: pa.DataType) -> None:
    numbers = pa.array(["3e38", "1e39", None, "1e308"]).cast(pa.float64()).cast(kind)
    table = pa.table({"timestamp": pa.array(["2013-03-10 12:00:00"] * 4), target: numbers})
    how = plan(
        table.column_names,
        name="x",
        mapping=None,
        constants=None,
        timezone="UTC",
        timestamp_format=None,
        sla_wait_s=None,
        ticket_prefix="p",
    )
    for chunk in (
        TableChunk(table, 1, Position(), 0, None),
        FrameChunk(table.to_pandas(), [1, 2, 3, 4], [], Position(), 0, None),
    ):
        short = settle(chunk, how)
        assert [(bad.number, bad.reason.split(" = ")[0], bad.reason[-15:]) for bad in short.rejected] == [
            (number, target, "is out of range") for number in (2, 4)
        ]
        kept = short.good.column(target if target in short.good.column_names else "actual_duration_ms").to_pylist()
        assert all(value is None or value < float("inf") for value in kept)
        assert len(kept) == 2


def values(table: pa.Table) -> list[str]:
    """In any order; what is below zero by nothing is zero."""
    rows = [{key: 0.0 if value == 0.0 else value for key, value in row.items()} for row in table.to_pylist()]
    return sorted(map(str, rows))


def test_the_short_way_is_taken(tmp_path: Path) -> None:
    """Otherwise the test above would compare the long way with itself."""
    table = pa.table({
        "timestamp": pa.array(["2013-03-10 12:00:00", "2013-03-10T12:00:00Z", "1362916800", "never"]),
        "wait_s": pa.array([1.0, 99.0, None, 1.0]),
    })  # fmt: skip
    how = plan(
        table.column_names,
        name="x",
        mapping=None,
        constants=None,
        timezone="America/New_York",
        timestamp_format=None,
        sla_wait_s=60.0,
        ticket_prefix="p",
    )
    rows, good = quick(table, range(1, 5), how)
    assert good.tolist() == [True, True, True, False]
    assert rows.column("timestamp").to_pylist()[:3] == [1362931200, 1362916800, 1362916800]
    assert rows.column("sla_met").to_pylist()[:3] == [1, 0, None]
    assert rows.column("ticket_id").to_pylist()[:2] == ["p-1", "p-2"]
    settled = settle(TableChunk(table, 1, Position(), 0, None), how)
    assert [bad.number for bad in settled.rejected] == [4]
    assert np.asarray(settled.good.column("timestamp")).tolist() == [1362931200, 1362916800, 1362916800]
