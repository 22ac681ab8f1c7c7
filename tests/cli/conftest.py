"""Running the command inside this process, on a data folder that is made and trained once."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def said(self) -> str:
        """What was complained about, without the folding of a narrow terminal."""
        return " ".join(self.err.replace("│", " ").split())


Run = Callable[..., Result]


@pytest.fixture
def nhm(capsys: pytest.CaptureFixture[str]) -> Run:
    """`nhm("ingest", file, "--json")` -> exit code and both streams, as a process of its own would have them."""
    from nhm_sched_plugin.cli.commands import app

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = 0
        try:
            app([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        caught = capsys.readouterr()
        assert "Traceback" not in caught.err + caught.out
        return Result(code, caught.out, caught.err)

    return run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own, with nothing of the user's in sight."""
    monkeypatch.chdir(tmp_path)
    for name in ("NHM_SCHED_DATA_DIR", "NHM_SCHED_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NHM_SCHED_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NHM_SCHED_METRICS__ENABLED", "false")
    monkeypatch.setenv("NHM_SCHED_ML__FORECASTING__HORIZONS", "[60]")
    return tmp_path


def write_tickets(path: Path, hours: int = 90) -> Path:
    """A CSV of tickets that end about now: more by day than by night."""
    draw = random.Random(3)
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    rows = ["timestamp,ticket_id,task_type,risk_band,actual_duration_ms,status,sla_met"]
    for hour in range(hours, 0, -1):
        start = now - dt.timedelta(hours=hour)
        for number in range(6 if 8 <= start.hour < 20 else 2):
            stamp = start + dt.timedelta(minutes=draw.uniform(0, 59))
            duration = round(draw.expovariate(1 / 200_000)) + 1000
            rows.append(f"{stamp.isoformat()},t{hour}-{number},processing,medium,{duration},success,1")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    return write_tickets(tmp_path / "day.one.csv")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with tickets and models: `--config` of its file."""
    from nhm_sched_plugin.settings import load_settings
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.store.ingest import ingest
    from nhm_sched_plugin.training.pipeline import train

    home = tmp_path_factory.mktemp("trained")
    config = home / "nhm-sched.yaml"
    tree = {
        "data_dir": str(home / "data"),
        "metrics": {"enabled": False},
        "ml": {"forecasting": {"horizons": [60], "country": None}},
    }
    config.write_text(json.dumps(tree), encoding="utf-8")
    settings = load_settings(config)
    with open_store(settings) as store:
        ingest(write_tickets(home / "tickets.csv"), store)
    train(settings, jobs=1)
    return config
