"""An agent that asks another one: it answers from that one's tables and passes outcomes on."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.agent.ports import refuse_own_endpoint
from nhm_sched_plugin.agent.server import AgentServer
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.settings import load_settings

PATIENCE_S = 120.0
BUSY = {"queue_depth": 150, "active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.95}


def test_an_edge_answers_from_the_first_ones_tables_and_passes_outcomes_on(
    kit: Any, serving: Any, tmp_path: Path
) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    first = serving({"ml": {"scheduling": {"update_interval": 10}}}).ready()
    edge = serving(
        {"data_dir": str(tmp_path / "edge"), "optimizer": {"endpoint": first.address, "mirror_interval_s": 0.1}}
    ).ready()
    ask = pb.ForecastRequest(horizon_minutes=60)
    kit.wait_for(lambda: edge.stub.GetLoadForecast(ask, timeout=PATIENCE_S).mean_volume == 500, PATIENCE_S)
    said = edge.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
    assert said.policy_version == "q4-untrained"
    whole = first.stub.GetForecastSnapshot(pb.SnapshotRequest())

    def handed_on() -> bool:
        return edge.stub.GetForecastSnapshot(pb.SnapshotRequest(), timeout=PATIENCE_S).etag == whole.etag

    kit.wait_for(handed_on, PATIENCE_S)
    for number in range(20):
        outcome = pb.OutcomeRequest(
            state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.5, decision_id=f"d{number}"
        )
        assert edge.stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted
        assert not edge.stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted, "once, at the edge too"
    kit.wait_for(lambda: first.handled("RecordActionOutcome") >= 20, PATIENCE_S)

    def learned() -> bool:
        request = pb.StateRequest(**BUSY)
        version = edge.stub.GetSchedulingRecommendation(request, timeout=PATIENCE_S).policy_version
        return bool(version.startswith("q4-") and version != "q4-untrained")

    kit.wait_for(learned, PATIENCE_S)


def test_an_edge_whose_first_agent_is_away_has_the_rules(serving: Any, tmp_path: Path) -> None:
    edge = serving({"optimizer": {"endpoint": "127.0.0.1:1"}}).ready()
    said = edge.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
    assert (said.action, said.confidence) == ("INCREASE_WORKER_POOL", 0.5)
    outcome = pb.OutcomeRequest(state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.5, decision_id="d1")
    assert edge.stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted, "it waits on disk"


def test_the_command_says_that_it_is_an_edge(command: Any) -> None:
    edge = command(NHM_SCHED_OPTIMIZER__ENDPOINT="127.0.0.1:1, 127.0.0.1:2")
    assert edge.process.stdout.readline().startswith("an edge of 127.0.0.1:1, 127.0.0.1:2: ")


ANYWHERE = "0.0.0.0"  # noqa: S104 - what an agent behind a load balancer listens on


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:50077"),
        ("127.0.0.1", "localhost:50077"),
        ("localhost", "127.0.0.1:50077"),
        ("127.0.0.1", f"{ANYWHERE}:50077"),
        ("127.0.0.1", "[::ffff:127.0.0.1]:50077"),
        ("[::1]", "[::1]:50077"),
        (ANYWHERE, "127.0.0.1:50077"),
        (ANYWHERE, f"{socket.gethostname()}:50077"),
        ("[::]", "127.0.0.1:50077"),
        ("::", "localhost:50077"),
        ("", "127.0.0.3:50077"),
        (ANYWHERE, "192.0.2.1:50077,127.0.0.1:50077"),
        ("unix:/tmp/nhm/agent.sock", "unix:///tmp/nhm/../nhm/agent.sock"),
    ],
)
def test_an_agent_that_would_ask_itself_is_refused(tmp_path: Path, host: str, endpoint: str) -> None:
    agent = {"host": host, "port": 50077, "allow_insecure": True}
    settings = load_settings({"data_dir": str(tmp_path), "agent": agent, "optimizer": {"endpoint": endpoint}})
    with pytest.raises(ConfigError) as raised:
        AgentServer(settings)
    (problem,) = raised.value.problems
    own = endpoint.rpartition(",")[2]
    for part in (f"optimizer.endpoint = {own!r}", f"agent.host = {host!r}", "it would ask itself; unset it"):
        assert part in problem


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:50078"),
        ("127.0.0.1", "127.0.0.2:50077"),
        ("127.0.0.1", "unix:/tmp/nhm/agent.sock"),
        ("unix:/tmp/nhm/agent.sock", "unix:/tmp/nhm/other.sock"),
        ("unix:/tmp/nhm/agent.sock", "127.0.0.1:50077"),
        (ANYWHERE, "192.0.2.1:50077"),
        (ANYWHERE, "[2001:db8::1]:50077"),
        (ANYWHERE, "no.such.host.invalid:50077"),
    ],
)
def test_another_agent_may_be_asked(host: str, endpoint: str) -> None:
    agent = {"host": host, "port": 50077}
    refuse_own_endpoint(load_settings({"agent": agent, "optimizer": {"endpoint": endpoint}}))


def test_a_name_server_that_does_not_answer_holds_up_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, done, real = threading.Event(), threading.Event(), socket.getaddrinfo

    def hangs(name: str, *given: Any, **keys: Any) -> Any:
        if name == "first-agent.example":
            asked.set()
            done.wait(PATIENCE_S)
        return real(name, *given, **keys)

    monkeypatch.setattr("nhm_sched_plugin.agent.ports._ANSWERS_WITHIN_S", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    refuse_own_endpoint(load_settings({"optimizer": {"endpoint": "first-agent.example:50053"}}))
    assert asked.is_set()
    done.set()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_command_that_would_ask_itself_says_so_and_an_empty_variable_mends_it(
    command: Any, tmp_path: Path, workers: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = tmp_path / "shared.yaml"
    config.write_text(f"optimizer: {{endpoint: 'localhost:{port}'}}\n")
    arguments = ("--config", str(config), "--port", port, "--workers", workers)
    refused = command(*arguments)
    assert refused.ended() == 2
    assert f"optimizer.endpoint = 'localhost:{port}'" in " ".join(refused.errors.split())
    mended = command(*arguments, NHM_SCHED_OPTIMIZER__ENDPOINT="")
    assert mended.said[0].startswith(f"optimizer agent on 127.0.0.1:{port} ")


def test_an_ipv6_address_is_shown_in_brackets(command: Any) -> None:
    agent = command("--host", "::1")
    assert agent.said[0].startswith(f"optimizer agent on [::1]:{agent.port} ")
