"""`train --if-needed`: only without a table, when the model is old, or when a host asks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.training import __main__ as command
from nhm_sched_plugin.training import train
from nhm_sched_plugin.training.due import marker, why_now

DAY = 86_400


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = load_settings({"data_dir": str(tmp_path_factory.mktemp("data")), "metrics": {"enabled": False}})
    assert "no forecast table yet" in str(why_now(settings, time.time()))
    train(settings, series=counts("", "a"), horizons=(60,), jobs=1)
    return settings


def counts(*keys: str) -> dict[str, pd.Series]:
    index = pd.date_range("2025-01-06", periods=30, freq="h", tz="UTC")
    return {key: pd.Series(np.full(30, 9.0), index=index) for key in keys}


def ask(settings: Settings, key: str) -> None:
    request = {"requested_at": 1.0, "slice": key, "reason": "drift", "statistic": 3.5}
    marker(settings).write_text(json.dumps(request))


def test_young_models_are_left_alone(trained: Settings) -> None:
    assert why_now(trained, time.time()) is None
    assert "8.0 days old" in str(why_now(trained, time.time() + 8 * DAY))
    assert why_now(trained, time.time() + 8 * DAY, max_age_days=9) is None


def test_a_damaged_table_is_a_reason(trained: Settings) -> None:
    whole = trained.forecast_table_path.read_bytes()
    trained.forecast_table_path.write_bytes(whole[:-40])
    assert "damaged" in str(why_now(trained, time.time()))
    trained.forecast_table_path.write_bytes(whole)


def test_a_host_asks_and_is_answered(trained: Settings) -> None:
    ask(trained, "a|x")
    assert why_now(trained, time.time()) == "a host asked for it: drift (a/x)"
    train(trained, series=counts("", "a"), task_type="a", horizons=(60,), jobs=1)
    assert marker(trained).exists()  # another slice's training does not answer it
    train(trained, series=counts("", "a"), horizons=(60,), jobs=1)
    assert not marker(trained).exists()
    marker(trained).write_text("{ not json")
    assert "cannot be read" in str(why_now(trained, time.time()))
    marker(trained).unlink()


def test_a_request_that_came_meanwhile_stays(trained: Settings) -> None:
    ask(trained, "")
    train(trained, series=counts("", "a"), horizons=(60,), jobs=1, progress=lambda *_: ask(trained, "a"))
    assert json.loads(marker(trained).read_text())["slice"] == "a"
    marker(trained).unlink()


def test_the_command_says_which_it_was(trained: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data_dir: {trained.data_dir}\n")
    assert command.main(["--config", str(file), "--if-needed", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == []
    assert "not needed" in report["reason"]
    assert command.main(["--config", str(file), "--if-needed"]) == 0
    assert "not needed" in capsys.readouterr().out
