"""A few seconds of `python -m benchmarks.hostile`: the scenario and its checks live there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = os.environ.get("HOSTILE_SECONDS", "4")


def test_every_call_gets_a_valid_decision_in_time_and_every_failure_shows() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hostile", "--seconds", SECONDS, "--json"],
        cwd=root, capture_output=True, text=True, timeout=float(SECONDS) + 120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == []
    assert done.returncode == 0
    assert found["calls"] > 50
    assert found["decisions_lost"] == 0
    assert len(found["happened"]) >= 3
    assert len(found["metrics"]["nhm_sched_hook_errors_total"]) >= 6
