"""What a person gets wrong is told in one message with the place, the value and the fix; nothing recorded is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Decision, SchedulerHost, SchedulingState, Ticket
from nhm_sched_plugin.store.spool import Spool

WRONG_CONFIGS = [
    ("rollot: {percentage: 5}", "wrong.yaml: rollot: unknown key; did you mean 'rollout'?"),
    (
        "optimizer: {recommendationConfidenceThreshold: 1.7}",
        "optimizer.recommendationConfidenceThreshold = 1.7",
    ),
    ("agent: {tls_cert_file: a.pem}", "wrong.yaml: agent: tls_cert_file and tls_key_file belong together"),
    ("metrics: {tls_key_file: a.key}", "wrong.yaml: metrics: tls_cert_file and tls_key_file belong together"),
    ("optimizer: {tls_cert_file: a.pem}", "wrong.yaml: optimizer: tls_cert_file and tls_key_file belong together"),
    ("rollout: [1", "wrong.yaml: is not valid YAML"),
    ("- a", "wrong.yaml: holds a list; expected a mapping"),
]

BOOK = """\
version: 1
name: mine
rules:
  - name: first
    when: queue_depth >
    action: NO_ACTION
    because: "x"
otherwise: {action: NO_ACTION, because: "y"}
"""


@pytest.mark.parametrize(("text", "told"), WRONG_CONFIGS)
@pytest.mark.parametrize("command", [["doctor"], ["init"], ["forecast"], ["hooks", "list"], ["q-table", "show"]])
def test_wrong_settings(nhm: Any, folder: Path, command: list[str], text: str, told: str) -> None:
    config = folder / "wrong.yaml"
    config.write_text(text, encoding="utf-8")
    result = nhm(*command, "--config", config)
    assert result.code == 2
    assert told in result.said
    assert result.out == ""


def test_wrong_variable_and_missing_file(nhm: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = nhm("doctor", "--config", folder / "none.yaml")
    assert missing.code == 2
    assert f"{folder / 'none.yaml'}: cannot be read (No such file or directory)" in missing.said
    monkeypatch.setenv("NHM_SCHED_ROLLOUT__PERCENTAGE", "170")
    wrong = nhm("doctor")
    assert wrong.code == 2
    assert "170" in wrong.said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ingest", "x.csv", "--map", "foo"], "--map 'foo': write it as NAME=VALUE"),
        (["ingest", "x.csv", "--sla-wait-s", "-1"], "-1.0 is outside what is possible: 0 or more"),
        (["train", "--horizon", "7"], "7 is outside what is possible: 60 to 10080"),
        (["train", "--jobs", "0"], "0 is outside what is possible: 1 or more"),
        (["forecast", "--horizon", "0"], "0 is outside what is possible: 1 to 10080"),
        (["replay", "x.swf", "--policies", "magic"], "'magic'; known: plugin, planner, rules, hpa, keda"),
        (["replay", "x.swf", "--policies", ","], "no policy is named; known: plugin, planner, rules, hpa"),
        (["replay", "x.swf", "--policies", "nowhere:make"], "cannot import 'nowhere'"),
        (["replay", "--load", "storm"], "no load 'storm'; known: smooth, flash, regime, outage, two-types"),
        (["replay", "x.swf", "--load", "flash"], "--load flash makes its tickets; leave FILE out"),
        (
            ["replay", "--load", "flash", "--service-mean", "50", "--max-duration", "9"],
            "--load flash makes its tickets; leave --max-duration and --service-mean out",
        ),
        (["replay", "x.swf", "--decisions", "-5"], "-5 is outside what is possible: 0 or more"),
        (["replay", "x.swf", "--seeds", "0"], "0 is outside what is possible: 1 or more"),
        (["replay", "x.swf", "--startup", "inf"], "inf is outside what is possible: 0 or more"),
        (["replay", "x.swf", "--tick", "0"], "0.0 is outside what is possible: 1 or more"),
        (["replay", "x.swf", "--json", "no/such/folder.json"], "no/such/folder.json cannot be written"),
        (["replay", "x.swf", "--volume", "0"], "0.0 is outside what is possible: 0.001 to 10000"),
        (["learn", "x.swf", "--max-duration", "-5"], "-5.0 is outside what is possible: 0.001 or more"),
        (["learn", "x.swf", "--service-sigma", "9"], "9.0 is outside what is possible: 0 to 5"),
        (["learn", "x.swf", "--decisions", "0"], "0 is outside what is possible: 1 or more"),
        (["learn", "x.swf", "--report", "no/such/page.html"], "no/such/page.html cannot be written"),
        (["q-table", "show", "--plot", "no/such/q.png"], "no/such/q.png cannot be written"),
        (["q-table", "show", "--plot", "q.txt"], "--plot q.txt: Format 'txt' is not supported"),
        (["replay", "x.swf", "--train-fraction", "1.5"], "1.5 is outside what is possible: 0.05 to 0.95"),
        (["hooks", "trace", "--state", "queue=1"], "--state queue=1: no such field; known: queue_depth"),
        (["hooks", "trace", "--state", "queue_depth=many"], "'many' is not a number"),
        (["approve", "m", "1"], "--by"),
        (["erase", "a", ""], "an empty TICKET_ID names no ticket; nothing was removed"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_options(nhm: Any, arguments: list[str], told: str) -> None:
    result = nhm(*arguments)
    assert result.code == 2
    assert told in result.said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ingest", "none.csv"], "none.csv: no such file"),
        (["ingest", "cases.csv"], "cases.csv has no column 'timestamp'; its columns: CaseID, When. Say which one"),
        (["ingest", "cases.csv", "-m", "timestamp=When", "-m", "task_type=Nope"], "Nope"),
        (["replay", "none.swf"], "none.swf: cannot be read (No such file or directory)"),
        (["replay", "cases.csv"], "no column 'timestamp'"),
        (["replay", "cases.csv", "-m", "timestamp=When"], "both need some"),
        (["replay", "page.html"], "a trace is a .swf or a .csv file"),
        (
            ["replay", "done.csv", "--service-mean", "9"],
            "done.csv has service times of its own; leave out --service-mean 9",
        ),
        (["learn"], "the database holds no tickets; run `nhm-sched ingest FILE` first"),
        (["train"], "ingest"),
        (["forecast"], 'forecast.json cannot be read (No such file or directory); run "nhm-sched train"'),
        (["explain", "nope"], "no decision 'nope' in the database"),
        (["approve", "m", "1", "--by", "me"], "run `nhm-sched train`"),
        (["promote", "m", "1"], "run `nhm-sched train`"),
    ],
)
def test_what_is_not_there(nhm: Any, folder: Path, arguments: list[str], told: str) -> None:
    (folder / "cases.csv").write_text("CaseID,When\na,2026-01-05T10:00:00\n", encoding="utf-8")
    (folder / "done.csv").write_text("timestamp,actual_duration_ms\n2026-01-05,9\n", encoding="utf-8")
    result = nhm(*arguments)
    assert result.code == 1
    assert told in result.said
    assert result.err.count("error:") == 1


def test_a_data_folder_that_cannot_be_made(nhm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NHM_SCHED_DATA_DIR", "/proc/nowhere")
    result = nhm("init")
    assert result.code == 1
    assert "/proc/nowhere" in result.said


@pytest.mark.parametrize("command", [["doctor"], ["hooks", "trace"], ["learn", "day.one.csv", "--decisions", "10"]])
def test_a_broken_rule_book(nhm: Any, tickets: Path, folder: Path, command: list[str]) -> None:
    book, config = folder / "book.yaml", folder / "config.yaml"
    book.write_text(BOOK, encoding="utf-8")
    config.write_text(f"fallback: {{rule_book: {book}}}", encoding="utf-8")
    result = nhm(*command, "--config", config, *(["--json"] if command == ["doctor"] else []))
    assert result.code == 1
    told = result.said
    if command == ["doctor"]:
        (row,) = [row for row in result.json if row["component"] == "rule book"]
        assert row["ok"] is False
        told = row["detail"]
    assert f"{book}:5: rule 'first'" in told


def test_damaged_snapshots_are_told_and_left_alone(nhm: Any, folder: Path) -> None:
    snapshots = folder / "data" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "forecast.json").write_text('{"x":', encoding="utf-8")
    (snapshots / "q_table.json").write_text("garbage", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in snapshots.iterdir()}

    served = nhm("forecast")
    assert served.code == 1
    assert "forecast.json is damaged" in served.said
    assert 'run "nhm-sched train"' in served.said
    shown = nhm("q-table", "show")
    assert shown.code == 1
    assert "q_table.json: is not valid JSON" in shown.said
    checked = nhm("doctor", "--json")
    assert checked.code == 1
    assert [row["component"] for row in checked.json if not row["ok"]] == ["forecast", "policy"]
    nhm("hooks", "trace")
    assert {path.name: path.read_bytes() for path in snapshots.iterdir()} == before

    (snapshots / "q_table.json").unlink()
    (snapshots / "planner.json").write_text("garbage", encoding="utf-8")
    (row,) = [row for row in nhm("doctor", "--json").json if row["component"] == "policy"]
    assert (row["ok"], "planner.json: is not a calibrated planner" in row["detail"]) == (False, True)


def test_a_damaged_spool_gives_what_it_still_has(nhm: Any, folder: Path) -> None:
    with SchedulerHost.from_config() as host:
        made = [host.decide(Ticket(ticket_id=f"t{n}"), SchedulingState(queue_depth=n)) for n in range(300)]
    file = folder / "data" / "spool" / "spool.sqlite"
    raw = bytearray(file.read_bytes())
    for at in range(len(raw) // 2, len(raw) // 2 + 6000):
        raw[at] ^= 0x5A
    file.write_bytes(raw)
    damaged = bytes(raw)
    checked = nhm("doctor", "--json")
    assert checked.code == 1
    (row,) = [row for row in checked.json if row["component"] == "spool"]
    assert "is damaged" in row["detail"]
    assert "`nhm-sched drain` sets it aside" in row["detail"]
    assert file.read_bytes() == damaged, "the doctor only looks"

    drained = nhm("drain", "--json")
    assert drained.code == 0
    assert 100 < drained.json["decisions"] < len(made)
    assert list(file.parent.glob("*.corrupt"))
    assert nhm("doctor", "--json").json[5]["ok"], "a new spool is in its place"


def test_what_is_in_quarantine_is_shown_and_tried_again(nhm: Any, folder: Path) -> None:
    assert "Nothing is in quarantine." in nhm("quarantine", "show").out
    spool = Spool(folder / "data" / "spool")
    spool.append([Decision(decision_id="far", decided_at=2.6e11), Decision(decision_id="good", decided_at=1.5e9)])
    drained = nhm("drain", "--json").json
    assert (drained["delivered"], drained["quarantined"], drained["remaining"]) == (1, 1, 0)
    (row,) = nhm("quarantine", "show", "--json").json
    assert (row["record"], row["kind"]) == ("far", "decision")
    assert "decided_at = 260000000000.0" in row["reason"]
    assert "far" in nhm("quarantine", "show").out
    assert nhm("quarantine", "retry", "other", "--json").json == {"moved": 0, "left": 1}
    assert nhm("quarantine", "retry", "far", "--json").json == {"moved": 1, "left": 0}
    assert "0 records put back for `nhm-sched drain`; 0 left" in nhm("quarantine", "retry").out
    assert nhm("drain", "--json").json["quarantined"] == 1, "it is still no time of ours"


def test_two_processes_on_one_embedded_database(nhm: Any, folder: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from nhm_sched_plugin.store.client import open_store\n"
            "from nhm_sched_plugin.settings import load_settings\n"
            "with open_store(load_settings()):\n    print('open', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    command = Path(sys.executable).with_name("nhm-sched")
    try:
        refused = subprocess.run([command, "drain"], capture_output=True, text=True, check=False)
    finally:
        holder.communicate("\n")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: another process has the embedded database"), refused.stderr
    assert "ml.clickhouse.dsn" in refused.stderr
    assert refused.stderr.count("\n") == 1, "one message, without what the engine prints by itself"
    assert nhm("drain", "--json").code == 0
