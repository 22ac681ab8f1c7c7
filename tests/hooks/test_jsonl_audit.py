"""The audit file: what a line says, turning over, several writers, wrong settings."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nhm_sched_plugin.types import (
    Action,
    Decision,
    Forecast,
    Outcome,
    Reason,
    Recommendation,
    SchedulingState,
    Source,
    Veto,
)

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)


@pytest.fixture
def audit(load, tmp_path):
    def start(**settings):
        lines = [f'path = "{tmp_path}/logs/audit.jsonl"', *(f"{key} = {value}" for key, value in settings.items())]
        return load("jsonl_audit", "\n".join(lines))

    return start


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def decision(decision_id="d1", **fields):
    return Decision(decision_id=decision_id, decided_at=NOON.timestamp(), **fields)


def test_a_decision_and_its_outcome_are_joined_by_the_id(audit, tmp_path):
    dropin = audit()
    forecast = Forecast(horizon_minutes=60, predicted_volume=125.5, confidence=0.9, generated_at=NOON)
    record = decision(
        ticket_id="t1",
        action=Action.NO_ACTION,
        source=Source.FALLBACK,
        reason=Reason.VETOED,
        recommendation=Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 14}),
        vetoes=(Veto(guard="quota_guard", reason="the quota is 3"),),
        state=SchedulingState(queue_depth=150, features={"is_holiday": 0.0}),
        forecast=forecast,
    )
    dropin.hook.nhm_sched_after_decision(record=record)
    outcome = Outcome(decision_id="d1", ticket_id="t1", sla_met=True, finished_at=NOON.timestamp() + 5)
    dropin.hook.nhm_sched_after_outcome(record=outcome, reward=0.25)
    first, second = lines(tmp_path / "logs/audit.jsonl")
    assert (first["kind"], second["kind"]) == ("decision", "outcome")
    assert first["decision_id"] == second["decision_id"] == "d1"
    assert (first["at"], second["at"]) == ("2026-11-23T12:00:00.000+00:00", "2026-11-23T12:00:05.000+00:00")
    assert (first["action"], first["source"], first["reason"]) == ("NO_ACTION", "fallback", "vetoed")
    assert first["recommended"]["parameters"] == {"target_workers": 14}
    assert first["vetoes"] == [{"guard": "quota_guard", "reason": "the quota is 3"}]
    assert first["state"] == {"queue_depth": 150, "is_holiday": 0.0}
    assert first["predicted_volume"] == 125.5
    assert (second["reward"], second["sla_met"], second["status"]) == (0.25, True, "success")


def test_a_bare_decision_and_a_refused_state_are_json_too(audit, tmp_path):
    dropin = audit()
    dropin.hook.nhm_sched_after_decision(record=decision())
    dropin.hook.nhm_sched_after_decision(record=decision(state=SchedulingState(queue_depth=float("nan"))))
    dropin.hook.nhm_sched_after_outcome(record=Outcome(decision_id="d1"), reward=None)
    bare, refused, outcome = lines(tmp_path / "logs/audit.jsonl")
    assert (bare["state"], bare["recommended"], bare["predicted_volume"]) == (None, None, None)
    assert refused["state"] == {"queue_depth": "nan"}
    assert (outcome["at"], outcome["reward"]) == (None, None)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_full_file_is_turned_over_and_the_oldest_goes(audit, tmp_path, keep):
    dropin = audit(max_mb=0.002, keep=keep)
    for number in range(40):
        dropin.hook.nhm_sched_after_decision(record=decision(f"d{number}"))
    path = tmp_path / "logs/audit.jsonl"
    files = [path, *(path.with_name(f"audit.jsonl.{number}") for number in range(1, keep + 1))]
    assert {file.name for file in path.parent.iterdir()} == {file.name for file in files} | {".audit.jsonl.lock"}
    assert all(file.stat().st_size <= 2000 for file in files)
    # Oldest file first, the ids run on without a gap up to the last.
    ids = [line["decision_id"] for file in reversed(files) for line in lines(file)]
    assert ids == [f"d{number}" for number in range(40 - len(ids), 40)]


WRITER = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from jsonl_audit import audit

def write(writer):
    for number in range(200):
        audit.append({"writer": writer, "number": number, "padding": "x" * 100})

threads = [threading.Thread(target=write, args=(writer,)) for writer in sys.argv[2:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_processes_and_threads_share_the_file_without_losing_a_line(audit, tmp_path):
    folder = Path(audit(max_mb=0.02, keep=50).module.__file__).parent
    commands = [[sys.executable, "-c", WRITER, str(folder), f"{process}a", f"{process}b"] for process in range(3)]
    for process in [subprocess.Popen(command) for command in commands]:
        assert process.wait(timeout=60) == 0
    written = [line for file in (tmp_path / "logs").glob("audit.jsonl*") for line in lines(file)]
    assert len(list((tmp_path / "logs").glob("audit.jsonl.*"))) > 3
    expected = [(f"{process}{thread}", number) for process in range(3) for thread in "ab" for number in range(200)]
    assert sorted((line["writer"], line["number"]) for line in written) == expected


def test_a_full_disk_is_reported_not_hidden(audit, tmp_path):
    dropin = audit()
    (tmp_path / "logs/audit.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        dropin.hook.nhm_sched_after_decision(record=decision())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path = 3", "path = 3: expected the name of a file"),
        ("max_mb = 0", "max_mb = 0: expected a number above 0"),
        ('max_mb = "100"', "max_mb = '100'"),
        ("keep = -1", "keep = -1: expected a whole number"),
        ("keep = 1.5", "keep = 1.5"),
        ("file = 'x'", "unknown key 'file'; known here: path, max_mb, keep"),
    ],
)
def test_wrong_settings_are_told(load, text, told):
    with pytest.raises(ValueError, match=r"jsonl_audit\.toml") as caught:
        load("jsonl_audit", text)
    assert told in str(caught.value)
