"""Files of holidays and regressors: what is read, and what a person is told about a wrong one."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin import load_settings
from nhm_sched_plugin.errors import ConfigError, IngestError
from nhm_sched_plugin.forecasting.covariate_files import known_ahead, read_holidays, read_regressors


def written(folder: Path, text: str, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_holidays_of_csv_and_yaml_are_the_same(tmp_path: Path) -> None:
    wanted = {dt.date(2026, 11, 27): "Black Friday", dt.date(2026, 12, 24): "Closed; Party"}
    csv = "\ufeffname, date\nBlack Friday,2026-11-27\nClosed,2026-12-24\n\nParty,20261224\n"
    assert read_holidays(written(tmp_path, csv)) == wanted
    yaml = "- {date: 2026-11-27, name: Black Friday}\n- {date: '2026-12-24', name: Closed}\n"
    yaml += "- {date: 2026-12-24, name: Party}\n"
    assert read_holidays(written(tmp_path, yaml, "days.yaml")) == wanted
    assert read_holidays(written(tmp_path, "[]", "none.yml")) == {}


def test_regressors_in_order_of_time(tmp_path: Path) -> None:
    text = 'timestamp,"price, high",flag\n2026-01-01T02:00,3.5,1\n2026-01-01 01:00,, 0 \n2026-01-01T02:00,4,1\n'
    table = read_regressors(written(tmp_path, text))
    assert table.index.tolist() == [pd.Timestamp("2026-01-01 01:00"), pd.Timestamp("2026-01-01 02:00")]
    assert table.columns.tolist() == ["price, high", "flag"]
    np.testing.assert_array_equal(table.to_numpy(), [[np.nan, 0.0], [4.0, 1.0]])


def test_offsets_become_utc(tmp_path: Path) -> None:
    text = "timestamp,x\n2026-01-01T00:00:00-03:00,1\n2026-01-01T04:00:00Z,2\n"
    index: Any = read_regressors(written(tmp_path, text)).index
    assert index.tolist() == [pd.Timestamp("2026-01-01 03:00", tz="UTC"), pd.Timestamp("2026-01-01 04:00", tz="UTC")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column 'timestamp'; it has nothing"),
        ("when,x\n", "no column 'timestamp'; it has 'when', 'x'"),
        ("timestamp\n", "no regressor"),
        ("timestamp,x\n", "no rows"),
        ("timestamp,x,x\n", "column 'x' twice"),
        ("timestamp,x,\n", "column 3 has no name"),
        ("timestamp,x\n2026-01-01,1\nsoon,1\n", "line 3: timestamp 'soon'.*write it as 2026"),
        ("timestamp,x\n2026-01-01,many\n", "line 2: x = 'many' is no number"),
        ("timestamp,x\n2026-01-01,inf\n", "line 2: x = 'inf' is no number"),
        ("timestamp,x\n2026-01-01,3,5\n", "line 2 has 3 cells, its first line 2.*point"),
        ("timestamp,x\n2026-01-01T00:00Z,1\n2026-01-01T01:00,1\n", "line 3: some stamps have an offset"),
        ("timestamp,x\n2026-01-01,1\n2026-01-02,1\n2026-01-03,1\n", "24 hours apart"),
    ],
)
def test_wrong_regressors_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(IngestError, match=words) as caught:
        read_regressors(written(tmp_path, text))
    assert str(caught.value).startswith(f"ml.forecasting.regressors = {tmp_path}")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "day,name\n2026-01-01,x\n", "no column 'date'"),
        ("a.csv", "date,name,date\n", "column 'date' twice"),
        ("a.csv", "date,name\n27/11/2026,x\n", "line 2: date '27/11/2026'.*2026-11-27"),
        ("a.csv", "date,name\n2026-11-27,\n", "line 2: 2026-11-27 has no name"),
        ("a.yaml", "- {date: 2026-13-01, name: x}", "not valid YAML: month must be"),
        ("a.yaml", "- 2026-11-27", "entry 1 is .*Black Friday"),
        ("a.yaml", "- {date: [", "not valid YAML"),
        ("a.yaml", "- {date: soon, name: x}", "entry 1: date 'soon'"),
    ],
)
def test_wrong_holidays_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(IngestError, match=words) as caught:
        read_holidays(written(tmp_path, text, name))
    assert str(caught.value).startswith(f"ml.forecasting.holidays = {tmp_path}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"No such file or directory.*name an existing file"):
        read_regressors(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("date,name\n2026-01-01,Confraternização".encode("latin-1"))
    with pytest.raises(IngestError, match="UTF-8"):
        read_holidays(tmp_path / "latin.csv")


def test_settings_name_the_files_and_options_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = written(tmp_path, "date,name\n2026-11-27,Black Friday\n", "days.csv")
    hourly = written(tmp_path, "timestamp,x\n2026-01-01,1\n", "hourly.csv")
    settings = load_settings({"ml": {"forecasting": {"holidays": str(days), "regressors": str(hourly)}}})
    found = known_ahead(settings)
    assert found.holidays == {dt.date(2026, 11, 27): "Black Friday"}
    assert found.regressors is not None
    assert found.regressors["x"].tolist() == [1.0]
    none = known_ahead(settings, holidays="none", regressors="None")
    assert (none.holidays, none.regressors) == ({}, None)
    with pytest.raises(IngestError, match=r"^--regressors = "):
        known_ahead(settings, regressors=tmp_path / "gone.csv")
    monkeypatch.setenv("NHM_SCHED_ML__FORECASTING__HOLIDAYS", str(hourly))
    with pytest.raises(IngestError, match="no column 'date'"):
        known_ahead(load_settings({}))
    with pytest.raises(ConfigError, match=r"ml.forecasting.regressors = \['a.csv'\]"):
        load_settings({"ml": {"forecasting": {"regressors": ["a.csv"]}}})


def test_a_file_has_to_fit_the_history(tmp_path: Path) -> None:
    path = written(tmp_path, "timestamp,x\n2026-01-01T00:00Z,1\n", "hourly.csv")
    ahead = known_ahead(load_settings({}), regressors=path)
    zoned = pd.Series(1.0, index=pd.date_range("2026-01-01", periods=30, freq="h", tz="America/Sao_Paulo"))
    with pytest.raises(IngestError, match="'x' has no value in the hours of the history"):
        ahead.check(zoned)
    ahead.check(zoned.shift(freq="-4h"))
    with pytest.raises(IngestError, match="its stamps have an offset, those of the history do not"):
        ahead.check(zoned.tz_localize(None))
    naive = known_ahead(load_settings({}), regressors=written(tmp_path, "timestamp,x\n2026-01-01,1\n"))
    with pytest.raises(IngestError, match=r"file.csv: its stamps have no offset.*-03:00"):
        naive.check(zoned)
