"""What training reads: treated, without the running hour, and from one query for many slices."""

from __future__ import annotations

import datetime as dt
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.training.data import from_series


def settings(tmp_path: Path, **training: Any) -> Settings:
    return load_settings({"data_dir": str(tmp_path), "ml": {"training": training, "forecasting": {"country": None}}})


def load(hours: int = 1000) -> pd.Series:
    index = pd.date_range("2025-01-06", periods=hours, freq="h", tz="UTC")
    return pd.Series(np.random.default_rng(1).poisson(100 + 50 * np.sin(index.hour * np.pi / 12)), index, dtype=float)


def test_glitches_are_missing_in_the_series_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = load()
    odd.iloc[500] = 3000
    with caplog.at_level(logging.WARNING):
        sound, touched = from_series({"": load(), "a": odd}, settings=settings(tmp_path)).slices
    assert (sound.glitches, sound.series.isna().sum()) == ([], 0)
    assert [glitch.value for glitch in touched.glitches] == [3000]
    assert np.flatnonzero(touched.series.isna()).tolist() == [500]
    (record,) = caplog.records
    assert "1 hours in 1 of 2 slices" in record.getMessage()
    assert odd.iloc[500] == 3000


def test_whoever_keeps_outliers_trains_on_them(tmp_path: Path) -> None:
    odd = load()
    odd.iloc[500] = 3000
    for data in (from_series({"": odd}, settings=settings(tmp_path, outliers="keep")), from_series({"": odd})):
        assert data.slices[0].series is odd
        assert data.slices[0].glitches == []


def test_a_history_that_cannot_be_read_is_left_to_its_fit(tmp_path: Path) -> None:
    bad = load() * -1
    assert from_series({"": bad, "a": load()}, settings=settings(tmp_path)).slices[0].series is bad


RECORDS = """
import datetime as dt, sys
import pandas as pd
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store.client import open_store
from nhm_sched_plugin.training.data import from_store

now = dt.datetime.now(dt.UTC)
stamps = [now - dt.timedelta(hours=h) for h in range(100, 0, -1)] + [now] * 3
rows = {"timestamp": stamps, "ticket_id": [f"t{n}" for n in range(103)], "risk_band": "low"}
settings = load_settings({"data_dir": sys.argv[1]})
with open_store(settings) as store:
    store.insert_execution_logs(pd.DataFrame({**rows, "task_type": ["a", "b"] * 51 + ["a"]}))
    for entry in from_store(store, settings).slices:
        print(entry.key or "all", len(entry.series), int(entry.series.sum()), entry.series.index[-1].timestamp())
print("now", now.timestamp())
"""


def test_the_running_hour_is_left_out(tmp_path: Path) -> None:
    """In a process of its own: the embedded database must not live in the one that runs the tests."""
    done = subprocess.run([sys.executable, "-c", RECORDS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *rows, (_, now) = [line.split() for line in done.stdout.splitlines()]
    hour = dt.datetime.fromtimestamp(float(now), dt.UTC).replace(minute=0, second=0, microsecond=0).timestamp()
    assert sorted(row[0] for row in rows) == ["a", "all", "b"]
    assert {float(row[3]) for row in rows} == {hour - 3600}
    assert {row[0]: int(row[2]) for row in rows} == {"all": 100, "a": 50, "b": 50}
