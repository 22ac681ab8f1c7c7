from __future__ import annotations

import datetime as dt
import gzip
from pathlib import Path

import numpy as np
import pytest

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.twin.traces import Trace, read_csv, read_trace

SWF = """; Version: 2.2
; UnixStartTime: 1000000
    1        0     -1   1451  128     -1    -1   -1     -1    -1 -1   1   1  -1 -1 -1 -1 -1
    2     1460     -1      0  128     -1    -1   -1     -1    -1 -1   1   1  -1  1 -1 -1 -1
    3     1500     -1     -1  128     -1    -1   -1     -1    -1 -1   1   1  -1  1 -1 -1 -1
"""


def test_swf(tmp_path: Path) -> None:
    path = tmp_path / "log.swf"
    path.write_text(SWF)
    trace = read_trace(path)
    assert trace.arrivals.tolist() == [1_000_000.0, 1_001_460.0]
    assert trace.durations.tolist() == [1451.0, 1.0], "no run time: left out; 0 s: less than one"
    assert trace.task_types == ["job", "queue-1"]
    assert trace.ticket(1).ticket_id == "job-2"
    with gzip.open(tmp_path / "log.swf.gz", "wt") as file:
        file.write(SWF)
    assert read_trace(tmp_path / "log.swf.gz").arrivals.tolist() == trace.arrivals.tolist()


def test_csv_with_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "incidents.csv"
    path.write_text("CaseID,When,ms\nb,2012-04-16 10:00:30,2000\na,2012-04-16T10:00:00+00:00,1500\n")
    trace = read_csv(path, mapping={"timestamp": "When", "ticket_id": "CaseID", "actual_duration_ms": "ms"})
    start = dt.datetime(2012, 4, 16, 10, tzinfo=dt.UTC).timestamp()
    assert trace.arrivals.tolist() == [start, start + 30]
    assert (trace.ids.tolist(), trace.durations.tolist()) == (["a", "b"], [1.5, 2.0])


def test_durations_in_other_units_and_targets_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("timestamp,took,minutes\n10,90,2\n20,30,4\n")
    assert read_csv(path, mapping={"actual_duration_s": "took"}).durations.tolist() == [90.0, 30.0]
    assert read_csv(path, mapping={"actual_duration_min": "minutes"}).durations.tolist() == [120.0, 240.0]
    assert not read_csv(path, mapping={"actual_duration_s": "took"}).capped(40.0).drawn
    assert read_csv(path).slice(0.0, 15.0).drawn, "nothing tells how long they took"
    for wrong in ("duration_ms", "actual_duration", "foo"):
        with pytest.raises(IngestError, match=f"--map {wrong}=...: no such target; a trace takes: timestamp, "):
            read_csv(path, mapping={wrong: "took"})


def test_drawn_service_times_are_lognormal_seeded_and_have_the_mean(tmp_path: Path) -> None:
    path = tmp_path / "arrivals.csv"
    path.write_text("timestamp\n" + "\n".join(str(n) for n in range(20_000)))
    trace = read_csv(path, seed=3)
    assert (
        trace.durations.tolist()
        == read_csv(path, seed=3).durations.tolist()
        != read_csv(path, seed=4).durations.tolist()
    )
    assert trace.service_mean_s == pytest.approx(300, rel=0.03)
    assert read_csv(path, service_mean_s=10.0).service_mean_s == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "when\n1\n", "no column 'timestamp'; the file has: when".replace("; ", " for timestamp; ")),
        ("a.csv", "timestamp\nyesterday\n", "a.csv:2: timestamp 'yesterday'"),
        ("a.csv", "timestamp\n", "no rows"),
        ("a.csv", "timestamp,actual_duration_ms\n1,slow\n", "a.csv:2: actual_duration_ms is 'slow'"),
        (
            "a.csv",
            "timestamp,actual_duration_ms\n1,5\n2,-1\n",
            "a.csv:3: actual_duration_ms is -1; a duration is 0 or",
        ),
        ("a.csv", "timestamp\n1709510432465\n", "a.csv:2: timestamp 1709510432465 would be in year 56,"),
        ("a.csv", "timestamp\n1\n\nnan\n", "a.csv:4: timestamp 'nan' is neither ISO 8601 nor Unix seconds"),
        (
            "a.csv",
            "timestamp,actual_duration_ms\n1,1e300\n",
            "a.csv:2: actual_duration_ms is 1e300; a duration is 0 or",
        ),
        ("a.csv", 'timestamp,ticket_id\n1,"' + "x" * 140_000, "is a quotation mark left open?"),
        ("a.swf", "1 2 3\n", "a.swf:1: 3 fields"),
        ("a.swf", "; nothing\n", "no job"),
        ("a.swf", "1 x -1 5 1\n", "submit time is 'x'"),
        ("a.parquet", "PAR1", "a trace is a .swf or a .csv file"),
    ],
)
def test_unusable_files_say_what_and_where(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(IngestError) as caught:
        read_trace(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(IngestError, match="cannot be read"):
        read_trace(tmp_path / "b.csv")


def test_slices_splits_and_hours() -> None:
    trace = Trace([7200.0, 3600.0, 9000.0], [1.0, 2.0, 3.0], ids=["b", "a", "c"], start=1800.0, end=12_600.0)
    assert trace.ids.tolist() == ["a", "b", "c"]
    first, second = trace.split(0.6)
    assert (first.end, second.start) == (7200.0, 7200.0), "cut at a full hour"
    assert (first.ids.tolist(), second.ids.tolist()) == (["a"], ["b", "c"])
    assert trace.hourly() == [(3600.0, 1), (7200.0, 2)], "full hours only"
    assert trace.load == pytest.approx(6 / 10_800)
    assert len(Trace([], [], start=0.0, end=10.0)) == 0


def test_scaling_keeps_the_period_and_multiplies_the_volume() -> None:
    trace = Trace([float(n) for n in range(1000)], [5.0] * 1000, start=0.0, end=1000.0)
    assert len(trace.scaled(1.0, 1)) == 1000
    assert 2400 < len(trace.scaled(2.5, 1)) < 2600
    assert 430 < len(trace.scaled(0.5, 1)) < 570
    scaled = trace.scaled(3.0, 2)
    assert scaled.arrivals.tolist() == sorted(scaled.arrivals) == trace.scaled(3.0, 2).arrivals.tolist()
    assert 0 <= scaled.arrivals[0] <= scaled.arrivals[-1] < 1000


def test_scaling_keeps_first_copies_in_place_and_the_labels() -> None:
    trace = Trace([200.0 * n for n in range(500)], [5.0] * 500, risk_bands=["high", "low"] * 250, start=0.0, end=1e5)
    scaled = trace.scaled(2.0, 7)
    assert set(trace.arrivals) <= set(scaled.arrivals)
    assert len(set(scaled.arrivals)) > 990
    assert sorted(scaled.risk_bands) == ["high"] * 500 + ["low"] * 500
    assert trace.scaled(2.0, 7, jitter_s=0.0).arrivals.tolist() == sorted([*trace.arrivals, *trace.arrivals])
    apart = [min(abs(trace.arrivals - arrival)) for arrival in scaled.arrivals]
    assert 50 < max(apart) <= 60
    with pytest.raises(ValueError, match=r"cannot scale by -1"):
        trace.scaled(-1.0, 7)


def test_a_million_tickets_cost_little() -> None:
    trace = Trace(np.arange(1_000_000.0), np.ones(1_000_000), task_types=["a", "b"] * 500_000)
    columns = (trace.arrivals, trace.durations, trace.kinds.codes, trace.ids)
    assert sum(column.nbytes for column in columns) <= 20_000_000
    part = trace.slice(10.0, 999_990.0)
    assert np.shares_memory(part.arrivals, trace.arrivals)
    assert np.shares_memory(part.kinds.codes, trace.kinds.codes)


def test_durations_are_capped(tmp_path: Path) -> None:
    (tmp_path / "log.swf").write_text(SWF)
    assert read_trace(tmp_path / "log.swf", max_duration_s=60.0).durations.tolist() == [60.0, 1.0]
    (tmp_path / "log.csv").write_text("timestamp,actual_duration_ms\n1,9000\n2,1000\n")
    assert read_trace(tmp_path / "log.csv", max_duration_s=2.5).durations.tolist() == [2.5, 1.0]
    with pytest.raises(ValueError, match="max_duration_s is 0"):
        read_trace(tmp_path / "log.csv", max_duration_s=0.0)


@pytest.mark.parametrize("name", ["log.swf", "log.csv"])
def test_service_times_are_not_drawn_over_those_of_the_log(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.swf").write_text(SWF)
    (tmp_path / "log.csv").write_text("timestamp,actual_duration_ms\n1,9000\n")
    with pytest.raises(IngestError, match=rf"{name} has service times of its own; leave out --service-mean 5"):
        read_trace(tmp_path / name, service_mean_s=5.0)


def test_wrong_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="one duration"):
        Trace([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"starts at 5\.0 and ends before, at 1\.0"):
        Trace([], [], start=5.0, end=1.0)
    with pytest.raises(ValueError, match="finite"):
        Trace([1.0, float("nan")], [1.0, 1.0])
    with pytest.raises(ValueError, match="the mean must be above 0"):
        Trace.from_frame(
            pytest.importorskip("pandas").DataFrame({"timestamp": []}, dtype="datetime64[ns]"), service_mean_s=0
        )
    with pytest.raises(ValueError, match="start and an end"):
        Trace([], [])


def test_from_the_store() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "timestamp": pandas.to_datetime(["2024-01-01 00:00:01", "2024-01-01 00:00:00"]),
            "ticket_id": ["b", "a"],
            "risk_band": ["high", "low"],
            "actual_duration_ms": [500, 250],
        }
    )
    trace = Trace.from_frame(frame)
    assert (trace.ids.tolist(), trace.durations.tolist(), trace.risk_bands) == (
        ["a", "b"],
        [0.25, 0.5],
        ["low", "high"],
    )
    assert trace.start == dt.datetime(2024, 1, 1, tzinfo=dt.UTC).timestamp()
