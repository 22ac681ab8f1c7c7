"""`nhm-sched forecast` and `recommend` against a real agent, and without one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nhm_sched_plugin.cli.commands import app
from tests.advice.scripted import ScriptedAgent
from tests.agent.guarded import Authority, write

STATE = [
    *("--state", "queue_depth=150", "--state", "active_workers=10", "--state", "avg_task_duration_ms=60000"),
    *("--state", "resource_cpu_avg=0.95", "--state", "arrivals_last_hour=700"),
]


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return " ".join(self.err.replace("│", " ").split())


Run = Callable[..., Result]


@pytest.fixture
def nhm(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, in a `data_dir` of its own."""
    config = tmp_path / "own.yaml"  # no variables: they would win over the settings of the agents beside it
    config.write_text(json.dumps({"data_dir": str(tmp_path / "own"), "metrics": {"enabled": False}}))
    monkeypatch.setenv("NHM_SCHED_CONFIG", str(config))

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


def test_forecast_and_recommendation_of_an_agent(nhm: Run, serving: Any, kit: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    agent = serving().ready()
    shown = nhm("forecast", "--endpoint", agent.address, "--horizon", "60", "--horizon", "120")
    assert shown.code == 0
    assert agent.address in shown.out
    assert shown.out.count("500.00") >= 2
    found = json.loads(nhm("forecast", "--endpoint", agent.address, "--horizon", "60", "--json").out)
    assert [(each["horizon_minutes"], each["predicted_volume"]) for each in found] == [(60, 500.0)]
    shown = nhm("recommend", "--endpoint", agent.address, *STATE, "--task-type", "processing")
    assert shown.code == 0
    assert "INCREASE_WORKER_POOL" in shown.out
    assert "target_workers" in shown.out
    said = json.loads(nhm("recommend", "--endpoint", agent.address, *STATE, "--json").out)
    assert said["action"] == "INCREASE_WORKER_POOL"
    assert said["parameters"]["target_workers"] > 10
    assert said["policy_version"] == "q4-untrained"
    assert said["decision_id"]
    assert agent.handled("GetSchedulingRecommendation") == 2


def test_the_agent_of_the_configuration_is_asked(
    nhm: Run, serving: Any, kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    agent = serving().ready()
    monkeypatch.setenv("NHM_SCHED_OPTIMIZER__ENDPOINT", agent.address)
    assert "500.00" in nhm("forecast", "--horizon", "60").out
    assert json.loads(nhm("recommend", *STATE, "--json").out)["decision_id"]


def test_without_an_agent_it_is_this_machines_own_policy(nhm: Run, kit: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "own", volume=500.0)
    before = sorted(tmp_path.rglob("*"))
    said = json.loads(nhm("recommend", *STATE, "--json").out)
    assert (said["action"], said["policy_version"]) == ("INCREASE_WORKER_POOL", "q4-untrained")
    assert said["decision_id"] is None
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    assert "500.00" in nhm("forecast", "--horizon", "60").out


def test_an_agent_without_tables_says_so(nhm: Run, serving: Any) -> None:
    agent = serving().ready()
    shown = nhm("forecast", "--endpoint", agent.address, "--horizon", "60")
    assert shown.code == 0
    assert "no forecast table" in shown.said
    assert "A host would follow its rules" in nhm("recommend", "--endpoint", agent.address, *STATE).out
    assert "nothing is known of the pool" in nhm("recommend", "--endpoint", agent.address).said


def test_tls_and_token_as_options(nhm: Run, serving: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    files = {name: str(path) for name, path in authority.pair("127.0.0.1").items()}
    tokens = write(tmp_path / "tokens", "secret read\nwriter write")
    agent = serving({"agent": {**files, "token_file": str(tokens)}})
    given = ["--endpoint", agent.address, "--tls-ca-file", authority.file]
    said = nhm("recommend", *given, "--token-file", tokens, *STATE)
    assert (said.code, said.err) == (0, "")
    refused = nhm("forecast", *given)
    assert refused.code == 1
    assert "UNAUTHENTICATED" in refused.said
    assert "optimizer.token_file names the file" in refused.said
    lesser = nhm("forecast", *given, "--token-file", write(tmp_path / "lesser", "writer"))
    assert lesser.code == 1
    assert "needs the scope read" in lesser.said
    plain = nhm("forecast", "--endpoint", agent.address)
    assert plain.code == 1
    assert "does it speak TLS" in plain.said
    stranger = nhm("forecast", *given[:2], "--tls-ca-file", Authority(tmp_path / "stranger").file)
    assert stranger.code == 1
    assert "optimizer.tls_ca_file names the authority" in stranger.said
    for name, content in zip(("tls_cert_file", "tls_key_file"), authority.issue("agent.example"), strict=True):
        write(Path(files[name]), content)
    renamed = nhm("forecast", *given, "--token-file", tokens)
    assert renamed.code == 1
    assert "optimizer.tls_server_name" in renamed.said
    assert all("secret" not in result.err for result in (said, refused, lesser, plain))


@pytest.mark.parametrize("asked", [["forecast"], ["recommend", *STATE]])
def test_an_agent_that_is_away_or_hangs_is_one_message_in_time(nhm: Run, asked: list[str]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        away = nhm(*asked, "--endpoint", address)
        assert away.code == 1
        assert f"UNAVAILABLE: {address} says" in away.said
        assert "does `nhm-sched serve` run there?" in away.said
        listening.listen()  # connections are taken, nobody speaks
        began = time.monotonic()
        hangs = nhm(*asked, "--endpoint", address, "--timeout", "0.5")
        assert time.monotonic() - began < 30
        assert hangs.code == 1
        assert "no answer from the optimizer agent" in hangs.said


@pytest.mark.parametrize("mode", ["garbage", "nonsense", "unavailable", "full"])
def test_an_answer_that_is_none_is_one_message(nhm: Run, kit: Any, tmp_path: Path, mode: str) -> None:
    kit.write_forecast(tmp_path / "scripted")
    scripted = ScriptedAgent(tmp_path / "scripted").start()
    try:
        scripted.mode = mode
        for asked in (["forecast"], ["recommend", *STATE]):
            result = nhm(*asked, "--endpoint", scripted.address)
            assert (result.code, result.out) == (1, ""), (asked, result)
            assert scripted.address in result.said
    finally:
        scripted.stop()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recommend", "--state", "queue_dept=1"], "did you mean 'queue_depth'?"),
        (["recommend", "--state", "queue_depth=many"], "'many' is not a number"),
        (["recommend", "--state", "queue_depth=nan"], "queue_depth=nan: is not in [0, 1e+15]"),
        (["recommend", "--state", "sla_compliance_rate=1.4"], "sla_compliance_rate=1.4: is not in [0, 1]"),
        (["recommend", "--state", "queue_depth"], "write it as NAME=VALUE"),
        (["recommend", "--endpoint", "nowhere"], "--endpoint nowhere: expected host:port"),
        (["forecast", "--endpoint", "nowhere:99999"], "--endpoint nowhere:99999: expected host:port"),
        (["forecast", "--endpoint", "::1:50053"], "--endpoint ::1:50053: expected an IPv6 address in brackets"),
        (["forecast", "--token-file", "none", "--endpoint", "localhost:1"], "--token-file none: there is no such file"),
        (["forecast", "--tls-ca-file", "none", "--endpoint", "a:1"], "--tls-ca-file none: there is no such file"),
        (["forecast", "--timeout", "2"], "name it with --endpoint"),
        (["forecast", "--timeout", "99", "--endpoint", "localhost:1"], "99.0 is outside what is possible"),
    ],
)
def test_wrong_options_are_named(nhm: Run, arguments: list[str], told: str) -> None:
    result = nhm(*arguments)
    assert result.code == 2
    assert told in result.said


def test_a_token_is_not_sent_in_plain_text(nhm: Run, tmp_path: Path) -> None:
    token = write(tmp_path / "token", "secret")
    result = nhm("recommend", "--endpoint", "192.0.2.1:50053", "--token-file", token)
    assert result.code == 2
    assert "in plain text" in result.said
    assert "secret" not in result.said
