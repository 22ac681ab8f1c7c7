"""Every command does its work, tells a person and a script, and leaves the right exit code."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState, Ticket

COMMANDS = {
    "demo",
    "init",
    "ingest",
    "ingest-profiles",
    "quality",
    "train",
    "models",
    "promote",
    "approve",
    "forecast",
    "recommend",
    "serve",
    "backtest",
    "learn",
    "q-table",
    "replay",
    "drain",
    "quarantine",
    "shadow",
    "experiment",
    "explain",
    "decisions",
    "arms",
    "bottlenecks",
    "misses",
    "export",
    "erase",
    "hooks",
    "doctor",
}


@pytest.fixture
def on_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained folder's configuration, with no variable in its way."""
    monkeypatch.delenv("NHM_SCHED_DATA_DIR")
    return trained


def test_help_and_version(nhm: Any) -> None:
    shown = nhm("--help")
    assert shown.code == 0
    assert all(f" {name} " in shown.out for name in COMMANDS)
    assert nhm("--version").out == f"nhm-sched {version('nhm-sched-plugin')}\n"
    assert nhm().code == 2
    for name in sorted(COMMANDS):
        assert nhm(name, "--help").code == 0, name


def test_the_installed_command_is_quiet_when_nobody_watches(tickets: Path) -> None:
    command = Path(sys.executable).with_name("nhm-sched")
    done = subprocess.run([command, "ingest", tickets, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar, no blank lines"
    assert json.loads(done.stdout)["rows"] > 300


def test_records(nhm: Any, tickets: Path, folder: Path) -> None:
    first = nhm("init", "--json")
    assert first.code == 0
    assert len(first.json["applied"]) > 1
    assert nhm("init").out == "Everything is up to date.\n"

    taken = nhm("ingest", tickets)
    assert (taken.code, taken.err) == (0, "")
    assert "0 rows rejected" in taken.out
    assert "processing: " in taken.out
    again = nhm("ingest", tickets)
    assert again.code == 0
    assert "--replace takes it again" in again.said
    odd = folder / "odd.csv"
    odd.write_text("when,id\n31/12/2025 08:00,a\nnever,b\n", encoding="utf-8")
    rejects = folder / "left-over.csv"
    options = ("--map", "timestamp=when", "-m", "ticket_id=id", "--set", "task_type=x", "--timestamp-format")
    mapped = nhm("ingest", odd, *options, "%d/%m/%Y %H:%M", "--rejects", rejects, "--json")
    assert (mapped.json["rows"], mapped.json["rejected"], mapped.json["task_types"]) == (1, 1, {"x": 1})
    assert "never,b" in rejects.read_text(encoding="utf-8")

    with SchedulerHost.from_config() as host:
        decision = host.decide(Ticket(ticket_id="t1", task_type="late"), SchedulingState(queue_depth=3))
        host.finished(Outcome(decision_id=decision.decision_id, ticket_id="t1", status="success", sla_met=True))
    assert "2 records waiting" in nhm("doctor").out.replace("\n", " ")
    drained = nhm("drain", "--log-tickets", "--json")
    assert (drained.json["decisions"], drained.json["outcomes"], drained.json["remaining"]) == (1, 1, 0)
    assert "delivered" in nhm("drain", "--batch", "100").out
    assert nhm("drain", "--batch", "0").code == 2
    story = nhm("explain", decision.decision_id)
    assert story.code == 0
    assert "ticket t1 (type late)" in " ".join(story.out.split())
    assert nhm("explain", decision.decision_id, "--json").json["decision_id"] == decision.decision_id


def test_train_approve_promote_forecast(nhm: Any, tickets: Path) -> None:
    nhm("ingest", tickets)
    made = nhm("train", "--task-type", "processing", "--risk-band", "medium", "--jobs", 1, "--json")
    assert (made.code, made.err) == (0, ""), "nothing of MLflow's own"
    (row,) = made.json["rows"]
    assert (row["name"], row["version"]) == ("load_predictor_60m__processing__medium", "1")
    refused = nhm("promote", row["name"], 1)
    assert refused.code == 1
    assert "4. nobody approved it" in refused.said
    approved = nhm("approve", row["name"], 1, "--by", "Ada")
    assert approved.out == f"{row['name']} version 1 is approved by Ada.\n"
    assert nhm("models", "--json").json[0]["approved_by"] == "Ada"
    still = nhm("promote", row["name"], 1)
    assert still.code == 1
    assert "1. it has no backtest MAPE" in still.said
    assert "nobody" not in still.said
    other = nhm("forecast")
    assert other.code == 1
    assert "no forecast for all tickets; the table has: processing/medium" in other.said


def test_forecast_and_models(nhm: Any, on_trained: Path) -> None:
    answers = nhm(
        "forecast", "--horizon", 60, "--horizon", 180, "--task-type", "processing", "-c", on_trained, "--json"
    )
    assert [answer["horizon_minutes"] for answer in answers.json] == [60, 180]
    assert all(0.5 < answer["points"][-1]["mean"] < 12 for answer in answers.json)
    shown = nhm("forecast", "-c", on_trained)
    assert (shown.code, shown.err) == (0, "")
    assert "seasonal_mean" in shown.out
    assert "load_predictor_60m" in nhm("models", "-c", on_trained).out


def test_learn_and_the_q_table(nhm: Any, tickets: Path, folder: Path) -> None:
    assert "Nothing learned yet" in nhm("q-table", "show").out
    learned = nhm("learn", tickets, "--decisions", 6000, "--json")
    assert (learned.code, learned.err) == (0, "")
    assert learned.json["decisions"] >= 6000
    assert learned.json["planner_sla"] > 0.5
    rows = nhm("q-table", "show", "--json").json
    assert len({row["state"] for row in rows}) == learned.json["states"]
    assert all(0 <= row["confidence"] <= 1 for row in rows if not row["action"].startswith("rules:"))
    assert any(row["trials"] for row in rows)
    some = nhm("q-table", "show", "--state", rows[0]["state"], "--json").json
    assert some == [row for row in rows if row["state"] == rows[0]["state"]]
    assert "visits" in nhm("q-table", "show").out
    other = nhm("q-table", "show", "--state", "zzz").out
    assert f"No state begins with 'zzz'; {learned.json['path']} has {rows[0]['state']}, " in other
    picture, page = folder / "q.png", folder / "learn.html"
    assert nhm("q-table", "show", "--plot", picture).code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "updates" in nhm("learn", tickets, "--decisions", 10, "--report", page).out
    assert "What the policy learned" in page.read_text()
    kept = nhm("learn", tickets, "--decisions", 10, "--register", "--json")
    assert (kept.code, kept.err, kept.json["version"]) == (0, "", "1")
    assert "approved" in nhm("approve", "scheduling_policy", 1, "--by", "Ada").out
    (row,) = nhm("models", "--json").json
    assert (row["name"], row["aliases"], row["calibration_error"]) == ("scheduling_policy", "staging", None)
    refused = nhm("promote", "scheduling_policy", 1)
    assert refused.code == 1
    assert "1. its confidence was not checked" in refused.said
    reset = nhm("q-table", "reset", "--yes", "--planner")
    assert "q_table.json.reset-1" in reset.out
    assert "planner.json.reset-1" in reset.out
    assert nhm("q-table", "show", "--json").json == []


def test_replay_from_a_file_and_from_the_records(nhm: Any, tickets: Path, on_trained: Path, folder: Path) -> None:
    page, figures = folder / "report.html", folder / "figures.json"
    done = nhm(
        "replay", tickets, "--policies", "rules,static,rules", "--json", figures, "--report", page, "-c", on_trained
    )
    assert (done.code, done.err) == (0, "")
    assert "Replay of day.one.csv" in done.out
    assert "* a replay asks" not in done.out
    assert "* static: " in done.out
    assert [row["name"] for row in json.loads(figures.read_text(encoding="utf-8"))["policies"]] == ["rules", "static"]
    assert "Replay of day.one.csv" in page.read_text(encoding="utf-8")
    made = nhm("replay", "--load", "two-types", "--policies", "static,oracle", "--seeds", 2, "--tick", 60,
               "--startup", 600, "--no-frontier", "--json", figures)  # fmt: skip
    assert made.code == 0
    assert "means of 2 seeds" in " ".join(made.out.split())
    assert "Differences to static" in made.out
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert (found["startup_s"], found["tick_s"], len(found["seeds"])) == (600.0, 60.0, 2)
    assert found["policies"][0]["differences"] == {}
    assert found["policies"][1]["cost"] == 1.0
    assert nhm("replay", "--load", "two-types", "--policies", "static", "--seeds", 2, "--tick", 60, "--volume", 0.5,
               "--no-frontier", "--json", figures).code == 0  # fmt: skip
    fewer = [seed["tickets"] for seed in json.loads(figures.read_text(encoding="utf-8"))["seeds"]]
    assert fewer == [pytest.approx(seed["tickets"] / 2, rel=0.05) for seed in found["seeds"]]
    recorded = nhm("replay", "--policies", "static", "-c", on_trained)
    assert recorded.code == 0
    assert "Replay of the records" in recorded.out


def test_a_load_of_ones_own_making(nhm: Any, folder: Path) -> None:
    arrivals = "".join(f"{1_700_000_000 + 600 * n}\n" for n in range(1000))
    (folder / "arrivals.csv").write_text(f"timestamp\n{arrivals}", encoding="utf-8")

    def figures(*options: object) -> dict[str, Any]:
        done = nhm("replay", "arrivals.csv", "--policies", "static", "--json", "out.json", *options)
        assert (done.code, done.err) == (0, "")
        found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
        return found

    plain, drawn = figures(), figures("--service-mean", 50, "--service-sigma", 0.1)
    assert plain["service_mean_s"] == pytest.approx(300, rel=0.2)
    assert drawn["service_mean_s"] == pytest.approx(50, rel=0.02)
    assert figures("--max-duration", 20)["service_mean_s"] <= 20
    busier = figures("--volume", 3.5, "--seeds", 2)["seeds"]
    assert busier[0]["tickets"] == pytest.approx(3.5 * plain["tickets"], rel=0.02)
    assert busier[0]["tickets"] != busier[1]["tickets"], "each seed draws its own copies"


def _written_late(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """As on a busy machine, where a thread that has made a decision may have to wait before it can log it."""
    record = logging.LogRecord(*args, **kwargs)
    if "nhm_sched_decide" in record.getMessage():
        record.created += 1.0
    return record


def test_hooks(nhm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", _written_late)
    assert nhm("hooks", "list", "--json").json == []
    drop_ins = folder / "hooks"
    drop_ins.mkdir()
    samples = Path(__file__).parents[1] / "plugins"
    shutil.copy(samples / "good.py", drop_ins)
    monkeypatch.setenv("NHM_SCHED_HOOKS_DIR", str(drop_ins))
    assert nhm("hooks", "check").code == 0
    assert [row["name"] for row in nhm("hooks", "list", "--json").json] == ["good"]
    traced = nhm("hooks", "trace", "--state", "queue_depth=150", "--state", "active_workers=10", "--json").json
    calls = [call["hook"] for call in traced["calls"]]
    assert calls[:3] == ["nhm_sched_decide", "nhm_sched_collect_state", "nhm_sched_fallback"]
    assert all(call["microseconds"] > 0 for call in traced["calls"])
    assert "good" in traced["calls"][1]["plugins"]
    assert traced["decision"]["state"]["queue_depth"] == 150
    assert "1. nhm_sched_decide by nhm-sched-plugin" in nhm("hooks", "trace", "--tick").out
    assert not (folder / "data").exists(), "nothing of the user's is touched"

    shutil.copy(samples / "invalid_unknown_hook.py", drop_ins)
    broken = nhm("hooks", "check")
    assert broken.code == 1
    assert "PROBLEM" in broken.out
    assert nhm("hooks", "list").code == 0


def test_doctor_tells_of_a_table_without_trials(nhm: Any, folder: Path) -> None:
    from nhm_sched_plugin.policy.qtable import NO_TRIALS, PLANNED, QTable, Saving
    from nhm_sched_plugin.settings import load_settings

    def policy() -> str:
        return str({row["component"]: row["detail"] for row in nhm("doctor", "--json").json}["policy"])

    nhm("init")
    path = load_settings({}).q_table_path
    table = QTable()
    table.update("u1-b0-s1-t1", "NO_ACTION", 1.0, 0.1)
    table.save(path)
    assert policy() == f"1 states, 1 updates, planner not calibrated; {NO_TRIALS}"
    table.overall[PLANNED] = Saving(30, 0.1, 2.0, 0.1)
    table.save(path)
    assert policy() == "1 states, 1 updates, planner not calibrated"


def test_doctor_on_a_sound_installation(nhm: Any, on_trained: Path) -> None:
    healthy = nhm("doctor", "-c", on_trained, "--json")
    assert healthy.code == 0
    assert {row["component"] for row in healthy.json} == {
        "configuration",
        "data folder",
        "rule book",
        "agent",
        "forecast",
        "policy",
        "cache",
        "spool",
        "database",
    }
    assert all(row["ok"] for row in healthy.json)


def test_the_cache_is_checked_and_a_reset_says_what_it_could_not_forget(
    nhm: Any, redis_server: Any, monkeypatch: Any
) -> None:
    def cache() -> tuple[bool, str]:
        rows = {row["component"]: row for row in nhm("doctor", "--json").json}
        return rows["cache"]["ok"], rows["cache"]["detail"]

    assert cache() == (True, "in process: ml.caching.redis_url is unset")
    monkeypatch.setenv("NHM_SCHED_ML__CACHING__REDIS_URL", f"unix://{redis_server.unix_socket_path}")
    assert cache() == (True, f"unix://{redis_server.unix_socket_path} answers")
    assert "cached" not in nhm("q-table", "reset", "--yes").out
    monkeypatch.setenv("NHM_SCHED_ML__CACHING__REDIS_URL", "unix://hunter2@/nobody/listens?password=hunter2")
    ok, detail = cache()
    assert not ok
    assert detail.startswith("Redis at unix:///nobody/listens: connection: ")
    reset = nhm("q-table", "reset", "--yes")
    assert "The cached copy stays: Redis did not answer. It ends within 7200 s." in reset.out
    assert "hunter2" not in detail + reset.out + reset.err


def test_init_tells_before_and_after(nhm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = nhm("init", "--dry-run")
    assert planned.code == 0
    assert "CREATE TABLE IF NOT EXISTS neural_hive.execution_logs (" in planned.out
    assert not (folder / "data" / "clickhouse").exists(), "a dry run makes nothing"
    steps = nhm("init", "--dry-run", "--json").json["steps"]
    done = nhm("init", "--json")
    assert done.json["statements"] == [text for step in steps for text in step["statements"]]
    assert nhm("init", "--dry-run").out == "-- Everything is up to date.\n"

    monkeypatch.setenv("NHM_SCHED_ML__CLICKHOUSE__RETENTION_DAYS__FORECASTS", "30")
    assert "neural_hive.forecasts MODIFY TTL stored_at + toIntervalDay(30)" in nhm("init", "--dry-run").out
    assert nhm("init").out == "retention changed: forecasts\n"
    monkeypatch.setenv("NHM_SCHED_ML__CLICKHOUSE__CLUSTER", "main")
    split = nhm("init")
    assert split.code == 1
    assert "is on one server only" in split.said
    wrong = nhm("init", "--dry-run")
    assert (wrong.code, "is on one server only" in wrong.said) == (1, True)


def test_questions_about_records(nhm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = folder / "key"
    key.write_bytes(b"0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("NHM_SCHED_RECORDING__HASH_FIELDS", "ticket_id")
    monkeypatch.setenv("NHM_SCHED_RECORDING__HASH_KEY_FILE", str(key))
    assert nhm("decisions").out == "No such decisions.\n"
    with SchedulerHost.from_config() as host:
        for name in ("ada", "bob"):
            decision = host.decide(Ticket(ticket_id=name, task_type="late"), SchedulingState(queue_depth=300))
            host.finished(Outcome(decision_id=decision.decision_id, ticket_id=name, status="success", sla_met=False))
    for file in (folder / "data" / "spool").iterdir():
        assert b"ada" not in file.read_bytes(), "the name itself is nowhere on the disk"
    nhm("drain", "--log-tickets")

    (row,) = nhm("decisions", "--ticket", "ada", "--since", "1h", "--missed", "--json").json
    assert row["ticket_id"] not in ("ada", "bob")
    assert row["decision_id"] in nhm("decisions", "--arm", "shadow", "--reason", row["reason"]).out
    assert nhm("decisions", "--until", "1h").out == "No such decisions.\n"
    (arm,) = nhm("arms", "--json").json
    assert (arm["arm"], arm["decisions"], arm["sla_rate"]) == ("shadow", 2, 0.0)
    assert "shadow" in nhm("arms").out
    (hour,) = nhm("bottlenecks", "--json").json
    assert (hour["ticket_volume"], hour["avg_queue_depth"], hour["sla_miss_rate"]) == (2, 300.0, 1.0)
    assert "100.0%" in nhm("bottlenecks").out
    (cause,) = nhm("misses", "--json").json
    assert (cause["cause"], cause["missed"]) == ("deep queue", 2)
    assert "deep queue" in nhm("misses").out
    assert len(nhm("misses", "--tickets", "--json").json) == 2

    told = nhm("export", "scheduling_decisions", "decisions.csv", "--json")
    assert told.json["rows"] == 2
    assert "2 rows of tickets written to t.parquet." in nhm("export", "tickets", "t.parquet").out

    assert nhm("erase", "ada", "--dry-run", "--json").json["left"] == 3
    erased = nhm("erase", "ada")
    assert erased.code == 0
    assert "Looked again: nothing is left." in erased.out
    assert "Nothing about these tickets is there." in nhm("erase", "ada").out
    assert len(nhm("decisions", "--json").json) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("decisions", "--since", "soon"), "'soon' is no time: write 2026-03-01"),
        (("decisions", "--limit", "0"), "0 is outside what is possible"),
        (("export", "execution_logs", "nowhere/a.csv"), "nowhere/a.csv cannot be written"),
    ],
)
def test_questions_asked_wrongly(nhm: Any, arguments: tuple[str, ...], complaint: str) -> None:
    result = nhm(*arguments)
    assert result.code == 2
    assert complaint in result.said
