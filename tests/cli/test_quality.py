"""`nhm-sched quality`: the report of a file or of the records, for a person and for a script, and its exit code."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store.client import open_store

START = dt.datetime(2025, 1, 6)


def counts(path: Path, hours: int = 500, *, without: range = range(0), **changes: object) -> Path:
    """Hourly counts; `h7="x"` puts another volume into hour 7."""
    lines = ["timestamp,volume"]
    for hour in range(hours):
        if hour not in without:
            stamp = START + dt.timedelta(hours=hour)
            lines.append(f"{stamp:%Y-%m-%d %H:%M:%S},{changes.get(f'h{hour}', 30 + stamp.hour)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def failed(report: Any) -> list[str]:
    return [finding["rule"] for finding in report["findings"] if finding["failed"]]


def test_a_sound_file(nhm: Any, folder: Path) -> None:
    file = counts(folder / "a.csv", without=range(100, 102))
    result = nhm("quality", file, "--json")
    assert result.code == 0
    assert result.json["report"]["ok"] is True
    assert result.json["treatment"]["interpolated"] == 2
    told = nhm("quality", file)
    assert told.code == 0
    assert "FAILED" not in told.out
    assert "2 hours in gaps under 3 h interpolated" in told.out


def test_what_fails_is_told_with_its_row(nhm: Any, folder: Path) -> None:
    file = counts(folder / "b.csv", without=range(200, 230), h7=-1, h400=99999)
    result = nhm("quality", file, "--json")
    assert result.code == 1
    assert failed(result.json["report"]) == ["values", "gaps", "outliers"]
    told = nhm("quality", file)
    assert told.code == 1
    text = " ".join(told.out.split())
    assert "row 8, 2025-01-06T07:00:00" in text
    assert "gaps │ FAILED │ 1 gap of 24 h or more, the longest 30 h from" in text
    assert "Training refuses it: history holds -1" in text


def test_glitches_and_the_setting_that_keeps_them(nhm: Any, folder: Path) -> None:
    file = counts(folder / "c.csv", h250=0)
    result = nhm("quality", file, "--json")
    assert result.code == 0
    (glitch,) = result.json["treatment"]["glitches"]["found"]
    assert (glitch["at"], glitch["value"]) == ("2025-01-16T10:00:00", 0)
    assert "1 isolated glitch made missing" in nhm("quality", file).out
    config = folder / "keep.yaml"
    config.write_text("ml: {training: {outliers: keep}}", encoding="utf-8")
    assert "1 isolated glitch left in" in nhm("quality", file, "--config", config).out


def test_other_columns_other_formats(nhm: Any, folder: Path) -> None:
    frame = pd.read_csv(counts(folder / "d.csv"), parse_dates=["timestamp"])
    frame = frame.rename(columns={"timestamp": "When", "volume": "Requests"})
    frame.to_parquet(folder / "d.parquet")
    frame.to_csv(folder / "d.csv.gz", index=False, sep=";")
    for name in ("d.parquet", "d.csv.gz"):
        result = nhm("quality", name, "-m", "timestamp=When", "-m", "volume=Requests", "--json")
        assert (result.code, result.json["report"]["rows"]) == (0, 500), name


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["none.csv"], 1, "none.csv: no such file; give a CSV"),
        (
            ["other.csv"],
            1,
            "has no column 'timestamp'; its columns: a, b. Say which one holds it: --map timestamp=COLUMN",
        ),
        (["other.csv", "-m", "timestamp=a"], 1, "has no column 'volume'"),
        (["other.csv", "-m", "volumes=a"], 1, "--map volumes=...: no such target; known: timestamp, volume"),
        (["empty.csv"], 1, "empty.csv is empty"),
        (["jobs.swf"], 1, "holds jobs, not counts"),
        ([], 1, "the records hold no tickets to check"),
        (["other.csv", "--task-type", "x"], 2, "leave out FILE"),
        (["-m", "timestamp=a"], 2, "give FILE"),
    ],
)
def test_wrong_input(nhm: Any, folder: Path, arguments: list[str], code: int, told: str) -> None:
    (folder / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (folder / "empty.csv").write_text("", encoding="utf-8")
    (folder / "jobs.swf").write_text("; UnixStartTime: 1\n", encoding="utf-8")
    result = nhm("quality", *arguments)
    assert result.code == code
    assert told in result.said
    assert result.out == ""


@pytest.mark.parametrize(
    "text", ["timestamp,volume\n", "timestamp,volume\nsoon,1\n", "timestamp,volume\n2025-01-01,\n"]
)
def test_a_file_without_a_single_count_fails_a_rule(nhm: Any, folder: Path, text: str) -> None:
    (folder / "bare.csv").write_text(text, encoding="utf-8")
    result = nhm("quality", "bare.csv", "--json")
    assert result.code == 1
    assert failed(result.json["report"])
    assert result.json["refused"]
    assert nhm("quality", "bare.csv").code == 1


def tickets(hours: list[int], **columns: Any) -> pd.DataFrame:
    stamps = [dt.datetime(2025, 3, 2, tzinfo=dt.UTC) + dt.timedelta(hours=hour, minutes=5) for hour in hours]
    frame = pd.DataFrame({"timestamp": stamps, "ticket_id": [f"t{hour}" for hour in hours], "kept": 1})
    return frame.assign(**{"task_type": "processing", "risk_band": "low", **columns})


def test_the_records(nhm: Any) -> None:
    with open_store(load_settings(None)) as store:
        store.insert_execution_logs(tickets(list(range(300))))
    assert nhm("quality").code == 0
    with open_store(load_settings(None)) as store:
        store.insert_execution_logs(tickets(list(range(330, 600))))
        store.insert_execution_logs(tickets([1, 2, 3], task_type="other", resource_cpu=[-1.0, float("nan"), 2.0]))
        store.insert_execution_logs(tickets([5], task_type="other", ticket_id=""))
        store.insert_execution_logs(tickets([9, 9], task_type="other"))
    result = nhm("quality", "--json")
    assert result.code == 1
    report = result.json["report"]
    assert failed(report) == ["fields", "values", "gaps"]
    fields, _, values, doubled = report["findings"][:4]
    assert (fields["count"], fields["examples"][0]["field"]) == (1, "ticket_id")
    assert fields["examples"][0]["at"] == "2025-03-02T05:05:00+00:00"
    assert values["count"] == 2
    assert [example["value"] for example in values["examples"]] == ["-1 (ticket t1)", "nan (ticket t2)"]
    assert (doubled["failed"], doubled["count"]) == (False, 1)
    assert report["rows"] == 576

    sliced = nhm("quality", "--task-type", "processing", "--risk-band", "low", "--json")
    assert failed(sliced.json["report"]) == ["gaps"]
    assert sliced.json["source"] == "processing/low"
    text = " ".join(nhm("quality", "--task-type", "other").out.split())
    assert "ticket_id" in text
    unknown = nhm("quality", "--task-type", "nobody")
    assert unknown.code == 1
    assert "there are no tickets of nobody; known type/band: processing/low, other/low" in unknown.said
