"""Times read and exported are the same wherever the server stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ASK = """
import datetime as dt, json, pathlib, sys
import pandas as pd
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store import answers, open_store
from nhm_sched_plugin.store.export import export
from nhm_sched_plugin.store.schema import init

folder = pathlib.Path(sys.argv[1])
at = dt.datetime(2026, 3, 1, 10, 10, tzinfo=dt.UTC)
row = {"timestamp": at, "ticket_id": "t", "task_type": "x", "risk_band": "low", "status": "success", "kept": 1,
       "actual_duration_ms": 5, "sla_met": 0, "queue_depth_at_start": 150.0}
with open_store(load_settings({"data_dir": str(folder)})) as store:
    init(store)
    store.insert_execution_logs(pd.DataFrame([row]))
    export(store, "execution_logs", folder / "logs.csv")
    export(store, "bottlenecks", folder / "hours.csv")
    found = [answers.misses(store)[0]["timestamp"], answers.bottlenecks(store)[0]["hour"]]
print(json.dumps([str(each) for each in found]
                 + [(folder / name).read_text().splitlines()[1][:22] for name in ("logs.csv", "hours.csv")]))
"""


@pytest.mark.parametrize("zone", ["UTC", "America/Sao_Paulo"])
def test_times_are_utc_and_say_so(tmp_path: Path, zone: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK), str(tmp_path)],
        env={**os.environ, "TZ": zone}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        "2026-03-01 10:10:00+00:00",
        "2026-03-01 10:00:00+00:00",
        '"2026-03-01T10:10:00Z"',
        '"2026-03-01T10:00:00Z"',
    ]
