"""`nhm-sched serve` as people and supervisors meet it: what it says, its exit codes, signals, several processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.pb import optimizer_agent_pb2_grpc as services

PATIENCE_S = 120.0
BUSY = {"queue_depth": 150, "active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.95}

WAITING = """
import datetime as dt, pathlib, time
from nhm_sched_plugin import Action, Forecast, Health, Recommendation, hookimpl

FOLDER = pathlib.Path({folder!r})

class Forecaster:
    def forecast(self, horizon_minutes, now, task_type=None, risk_band=None):
        return Forecast(horizon_minutes=horizon_minutes, predicted_volume=500.0, confidence=0.8,
                        generated_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    def refresh(self): pass
    def health(self): return Health(component="forecaster", ok=True)

class Policy:
    version = "waiting"
    def recommend(self, ticket, state, forecast):
        (FOLDER / "begun").touch()
        while not (FOLDER / "go").exists():
            time.sleep(0.01)
        return Recommendation(action=Action.NO_ACTION, confidence=0.9)
    def explore(self, ticket, state, forecast, admissible): return None
    def learn(self, experience): pass
    def refresh(self): pass
    def save(self): pass
    def health(self): return Health(component="policy", ok=True)

@hookimpl
def nhm_sched_make_forecaster(): return Forecaster()

@hookimpl
def nhm_sched_make_policy(): return Policy()
"""


def asked(address: str, task_type: str = "") -> str:
    """The action for a busy pool, over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        stub = services.OptimizerAgentStub(channel)
        request = pb.StateRequest(**BUSY, task_type=task_type)
        return str(stub.GetSchedulingRecommendation(request, timeout=PATIENCE_S, wait_for_ready=True).action)


def children(pid: int) -> list[int]:
    """The agent's own processes; the one that tracks resources for multiprocessing is none."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(entry.name))
    return found


def test_it_says_where_it_listens_and_ends_at_a_signal(command: Callable[..., Any]) -> None:
    agent = command()
    assert re.fullmatch(r"optimizer agent on 127\.0\.0\.1:\d+ \(plain text, no tokens\)\n", agent.said[0])
    assert re.fullmatch(r"metrics on 127\.0\.0\.1:\d+\n", agent.said[1])
    assert asked(agent.address) == "INCREASE_WORKER_POOL"
    assert agent.ended(signal.SIGTERM) == 0
    assert "Traceback" not in agent.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_call_under_way_is_answered_before_the_end(
    command: Callable[..., Any], tmp_path: Path, kit: Any, number: int
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "waiting.py").write_text(WAITING.format(folder=str(tmp_path)))
    agent = command(NHM_SCHED_HOOKS_DIR=str(hooks), NHM_SCHED_AGENT__GRACE_S="60")
    with grpc.insecure_channel(agent.address) as channel:
        stub = services.OptimizerAgentStub(channel)
        forecast = pb.ForecastRequest(horizon_minutes=60)
        kit.wait_for(lambda: stub.GetLoadForecast(forecast, timeout=PATIENCE_S).mean_volume == 500, PATIENCE_S)
        # Longer than a part of somebody else's gets: the answer must come while it is still wanted.
        call = stub.GetSchedulingRecommendation.future(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
        kit.wait_for((tmp_path / "begun").exists, PATIENCE_S)
        agent.process.send_signal(number)
        kit.wait_for(lambda: "shutting down" in agent.errors, PATIENCE_S)
        assert agent.process.poll() is None
        (tmp_path / "go").touch()
        assert call.result().action in ("NO_ACTION", "INCREASE_WORKER_POOL"), (
            "the policy's, or on a slow day those of the rules"
        )
    assert agent.ended() == 0


def test_a_taken_port_is_one_message_and_status_1(command: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for workers in ("1", "2"):
            agent = command("--port", port, "--workers", workers)
            assert agent.ended() == 1
            assert f"cannot listen on 127.0.0.1:{port}" in agent.errors
            assert "--port" in agent.errors
            assert "Traceback" not in agent.errors


def test_the_socket_of_another_agent_is_taken_too_and_that_of_a_killed_one_is_not(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    host = f"unix:{tmp_path / 'agent.sock'}"
    first = command("--host", host)
    assert first.said[0] == f"optimizer agent on {host} (plain text, no tokens)\n"
    assert asked(host) == "INCREASE_WORKER_POOL"
    second = command("--host", host)
    assert second.ended() == 1
    assert f"cannot listen on {host}: another process does" in second.errors
    first.ended(signal.SIGKILL)
    command("--host", host)
    assert asked(host) == "INCREASE_WORKER_POOL"
    nowhere = command("--host", "unix:/no/such/folder/agent.sock")
    assert nowhere.ended() == 1
    assert "/no/such/folder is no folder that can be written" in nowhere.errors


def test_a_taken_metrics_port_is_one_line_and_stops_nobody(command: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        agent = command("--metrics-port", port)
        assert agent.said[1] == "no metrics\n"
        assert asked(agent.address) == "INCREASE_WORKER_POOL"
        assert agent.ended(signal.SIGTERM) == 0
        lines = agent.errors.splitlines()
        assert [port in line for line in lines] == [True, False], "that, and the end"


def test_the_port_of_another_agents_processes_is_taken_too(command: Callable[..., Any]) -> None:
    """The kernel would share it with anybody who asks."""
    first = command("--workers", "2")
    second = command("--port", str(first.port), "--workers", "2")
    assert second.ended() == 1
    assert f"cannot listen on 127.0.0.1:{first.port}" in second.errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_wrong_settings_are_one_message_and_status_2(command: Callable[..., Any], workers: str) -> None:
    agent = command("--host", "0.0.0.0", "--workers", workers)  # noqa: S104
    assert agent.ended() == 2
    assert "agent.host" in agent.errors
    assert "tls_cert_file" in agent.errors
    assert "Traceback" not in agent.errors


def test_options_out_of_range_are_status_2() -> None:
    command = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()", "serve"]
    for option in (("--port", "70000"), ("--workers", "0"), ("--metrics-port", "-1")):
        done = subprocess.run([*command, *option], capture_output=True, text=True)
        assert done.returncode == 2
        assert option[1] in done.stderr


# -- several processes


def test_several_processes_share_a_port_and_what_they_learn(command: Callable[..., Any], kit: Any) -> None:
    agent = command("--workers", "2", NHM_SCHED_ML__SCHEDULING__UPDATE_INTERVAL="10")
    assert "2 processes" in agent.said[0]
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", agent.said[1])]
    assert len(set(ports)) == 2, "each process shows its own metrics"
    by_port = dict.fromkeys(ports, 0.0)

    def both_have_answered() -> bool:
        asked(agent.address)
        for port in ports:
            by_port[port] = sum(recommendations(port).values())
        return all(by_port.values())

    kit.wait_for(both_have_answered, PATIENCE_S)
    for number in range(40):
        with grpc.insecure_channel(agent.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            answer = services.OptimizerAgentStub(channel).RecordActionOutcome(
                pb.OutcomeRequest(
                    state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.1, decision_id=f"d{number}"
                ),
                timeout=PATIENCE_S,
            )
            assert (answer.accepted, answer.updates) == (True, number + 1), "whichever process it was"
    assert agent.ended(signal.SIGTERM) == 0


def recommendations(port: int) -> dict[str, float]:
    """`nhm_sched_agent_recommendations_total` by labels, as that process shows it."""
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    rows = re.findall(r"^nhm_sched_agent_recommendations_total(\{.*\}) (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in rows}


def test_a_process_that_dies_is_started_again(command: Callable[..., Any], kit: Any) -> None:
    agent = command("--workers", "2")
    before = children(agent.process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    kit.wait_for(lambda: len(set(children(agent.process.pid)) - {before[0]}) == 2, PATIENCE_S)
    kit.wait_for(lambda: "SIGKILL" in agent.errors, PATIENCE_S)
    assert asked(agent.address) == "INCREASE_WORKER_POOL"
    assert agent.ended(signal.SIGTERM) == 0


def test_processes_do_not_outlive_a_parent_that_was_killed(command: Callable[..., Any], kit: Any) -> None:
    agent = command("--workers", "2")
    before = children(agent.process.pid)
    assert len(before) == 2
    agent.process.kill()
    kit.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), PATIENCE_S)
