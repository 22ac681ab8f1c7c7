"""Any CSV of counts becomes a series, or an error that names the columns there are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.forecasting.counts import read_counts
from nhm_sched_plugin.forecasting.series import hours


def write(path: Path, text: str) -> Path:
    file = path / "counts.csv"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "text",
    [
        "timestamp,volume\n2025-01-06 00:00,3\n2025-01-06 01:00,5\n",
        "id,Date,requests\n900,2025-01-06T00:00:00,3\n901,2025-01-06T01:00:00,5\n",
        "what,begin\n3,2025-01-06 00:00\n5,2025-01-06 01:00\n",
        "ds,y,region\n2025-01-06 00:00,3,1\n2025-01-06 01:00,5,1\n",
        "time,n\n1736121600,3\n1736125200,5\n",
        "time,n\n1736121600000,3\n1736125200000,5\n",
    ],
)
def test_columns_are_guessed(tmp_path: Path, text: str) -> None:
    counts = read_counts(write(tmp_path, text))
    assert list(counts) == [3, 5]
    assert list(counts.index) == [pd.Timestamp("2025-01-06 00:00"), pd.Timestamp("2025-01-06 01:00")]


def test_columns_are_taken_as_named(tmp_path: Path) -> None:
    file = write(tmp_path, "timestamp,volume,seen,errors\n2025-01-06 00:00,3,2024-01-01 05:00,9\n")
    counts = read_counts(file, timestamp="seen", volume="errors")
    assert list(counts) == [9]
    assert counts.index[0] == pd.Timestamp("2024-01-01 05:00")


def test_offsets_of_both_sides_of_a_clock_change_become_utc(tmp_path: Path) -> None:
    file = write(tmp_path, "time,n\n2025-03-30T01:00:00+01:00,3\n2025-03-30T03:00:00+02:00,5\n")
    assert list(read_counts(file).index.hour) == [0, 1]


def test_finer_than_hourly_is_summed(tmp_path: Path) -> None:
    stamps = pd.date_range("2025-01-06", periods=48, freq="5min")
    file = write(tmp_path, "timestamp,volume\n" + "".join(f"{stamp},2\n" for stamp in stamps))
    assert list(hours(read_counts(file))) == [24, 24, 24, 24]


@pytest.mark.parametrize(
    ("text", "named", "said"),
    [
        ("a,b\nx,1\n", {}, r"looks like times; name it with --timestamp, of 'a', 'b'"),
        ("time,in,out\n2025-01-06,1,2\n", {}, r"--volume, of 'time', 'in', 'out'"),
        ("time,what\n2025-01-06,x\n", {}, "--volume"),
        ("time,n\n2025-01-06,1\n", {"timestamp": "when"}, "no column 'when'; it has 'time', 'n'"),
        ("time,n\n2025-01-06,1\n", {"volume": "many"}, "no column 'many'"),
        ("time,n\nsoon,1\n", {"timestamp": "time"}, "holds no times, as 'soon'"),
        ("", {}, "cannot be read|that can be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, named: dict[str, str], said: str) -> None:
    with pytest.raises(IngestError, match=said):
        read_counts(write(tmp_path, text), **named)
