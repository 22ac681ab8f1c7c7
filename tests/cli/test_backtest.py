"""`nhm-sched backtest`: any counts in; a table, JSON and a page out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cli.conftest import Run

SMALL = ("--origins", 6, "--refits", 1, "--horizon", 60, "--country", "none")


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    index = pd.date_range("2025-01-06", periods=200, freq="h")
    values = np.random.default_rng(1).poisson(50 * (1 + 0.7 * np.sin((index.hour - 8) / 24 * 2 * np.pi)))
    path = tmp_path / "load.csv"
    pd.DataFrame({"hour": index, "tickets": values}).to_csv(path, index=False)
    return path


def test_json_has_every_method_and_the_targets(nhm: Run, counts: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = nhm("backtest", counts, *SMALL, "--horizon", 120, "--report", page, "--json")
    assert result.code == 0
    answer = result.json
    assert (answer["name"], answer["hours"], answer["origins"]) == ("load.csv", 200, 6)
    assert {"served", "prophet", "arima", "seasonal_mean"} <= {row["method"] for row in answer["rows"]}
    assert {row["horizon_minutes"] for row in answer["rows"]} == {60, 120}
    (target,) = answer["targets"]  # nothing is asked for at 120 minutes
    served = next(row for row in answer["rows"] if row["method"] == "served" and row["horizon_minutes"] == 60)
    assert target == {"horizon_minutes": 60, "target": 15, "mape": served["mape"], "met": served["mape"] < 15}
    assert "Backtest of load.csv" in page.read_text(encoding="utf-8")


def test_own_holidays_and_regressors_count(nhm: Run, counts: Path, tmp_path: Path) -> None:
    days, hourly = tmp_path / "days.csv", tmp_path / "known.csv"
    days.write_text("date,name\n2025-01-08,Closed\n")
    index = pd.date_range("2025-01-06", periods=200, freq="h")
    pd.DataFrame({"timestamp": index, "flag": np.arange(200) % 2}).to_csv(hourly, index=False)
    result = nhm("backtest", counts, *SMALL, "--holidays", days, "--regressors", hourly, "--json")
    assert result.code == 0
    assert result.json["failures"] == {}
    late = tmp_path / "late.csv"
    late.write_text("timestamp,flag\n2025-01-14,1\n")  # nothing to learn from before the first origin
    refused = nhm("backtest", counts, *SMALL, "--regressors", late)
    assert refused.code == 1
    assert "regressor 'flag' has no value in the hours of the history" in refused.err


def test_the_table_marks_the_best_and_says_whether_the_target_is_met(nhm: Run, counts: Path) -> None:
    result = nhm("backtest", counts, *SMALL)
    assert result.code == 0
    assert "served" in result.out
    assert "60 minutes: MAPE" in result.out
    assert "asked for under 15 %" in result.out
    rows = [line.split("│") for line in result.out.splitlines() if line.count("│") == 7]
    for column in range(1, 5):
        values = [float(row[column].strip(" *").replace(",", "")) for row in rows]
        best = [float(row[column].strip(" *").replace(",", "")) for row in rows if "*" in row[column]]
        assert best
        assert set(best) == {min(values)}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--volume", "many"], 1, "no column 'many'"),
        (["--regressors", "gone.csv"], 1, "--regressors = gone.csv cannot be read"),
        (["--holidays", "gone.csv"], 1, "--holidays = gone.csv cannot be read"),
        (["--horizon", 60, "--task-type", "x"], 2, "leave FILE out"),
        (["--horizon", 0], 2, "outside what is possible"),
        (["--horizon", 10_080], 1, "too few to judge"),
        (["--country", "XX"], 1, "no holiday calendar"),
        (["--report", "no/such/folder/page.html"], 2, "cannot be written"),
    ],
)
def test_wrong_input_is_named(nhm: Run, counts: Path, arguments: list[object], code: int, said: str) -> None:
    result = nhm("backtest", counts, *arguments)
    assert result.code == code
    assert said in result.said


def test_without_a_file_it_is_the_records(nhm: Run, tickets: Path) -> None:
    empty = nhm("backtest")
    assert empty.code == 1
    assert "hold no tickets; run nhm-sched ingest FILE" in empty.said
    assert nhm("ingest", tickets, "--keep-expired").code == 0
    result = nhm("backtest", *SMALL, "--origins", 4, "--json")
    assert result.code == 0
    assert result.json["name"] == "all tickets"
    assert nhm("backtest", "--task-type", "processing", *SMALL, "--origins", 2, "--json").json["name"] == "processing"
    missing = nhm("backtest", "--task-type", "nothing")
    assert missing.code == 1
    assert "hold no tickets of nothing" in missing.said
    assert nhm("backtest", "--volume", "n").code == 2


@pytest.mark.skipif(importlib.util.find_spec("statsforecast") is not None, reason="statsforecast is installed")
def test_rivals_that_are_not_installed_are_named(nhm: Run, counts: Path) -> None:
    result = nhm("backtest", counts, "--rivals")
    assert result.code == 1
    assert "pip install 'statsforecast" in result.said
