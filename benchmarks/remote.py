"""The host's decide() with a remote agent that is well, dead, hanging, mad or flapping, beside a host without one.

    python -m benchmarks.remote [--seconds 10] [--json]

One host, deciding all the time with a pause of a millisecond, as an orchestrator does; half of the states have a fresh
mirror, the other half none, which is when the agent is asked on the hot path. `late` counts decisions beyond the
budget. `recovery` is how long after the agent's return the mirror is confirmed and the hot path may ask again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from benchmarks._agent import free_port, tables, wait_until
from benchmarks.decide import measured_anew
from nhm_sched_plugin import SchedulerHost, Ticket
from nhm_sched_plugin.advice.defaults import DefaultHooks
from nhm_sched_plugin.forecasting.table import SnapshotForecaster
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.wire.convert import forecast_response, recommendation_response, state_of, ticket_of
from nhm_sched_plugin.wire.snapshots import etag, pack_policy

BUDGET_MS, AIM_US = 50.0, 300
TICKET = Ticket(ticket_id="t1", task_type="processing", risk_band="medium")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="per state")
    parser.add_argument("--recoveries", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("FOLDER", "PORT", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        folder, port, mode = arguments.serve
        serve(Path(folder), int(port), mode)
        return
    with tempfile.TemporaryDirectory() as folder:
        tables(Path(folder, "agent"))
        rows = [
            measure(Path(folder), state, fresh, arguments.seconds)
            for state, fresh in [("local", True), *((state, fresh) for fresh in (True, False) for state in STATES)]
        ]
        back = recoveries(Path(folder), arguments.recoveries)
    if arguments.json:
        print(json.dumps({"states": rows, "recovery_s": back}, indent=2))
        return
    for row in rows:
        print(
            "  ".join(
                f"{name} {value:,.0f}" if isinstance(value, float) else f"{value:<8}" for name, value in row.items()
            )
        )
    print(
        f"recovery: median {statistics.median(back):.2f} s, most {max(back):.2f} s of {len(back)} (must 5 s, aim 1 s)"
    )
    print(f"must: no decision late (budget {BUDGET_MS:g} ms); aim: p99 <= {AIM_US} us in every state")


STATES = ("healthy", "dead", "hanging", "garbage", "flapping")


class Agent:
    """A server process that can be killed, stopped and started again on its port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, mode: str = "healthy") -> None:
        command = [sys.executable, "-m", "benchmarks.remote", "--serve", str(self.folder), str(self.port), mode]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def host_of(folder: Path, agent: Agent | None, fresh: bool) -> SchedulerHost:
    optimizer: dict[str, Any] = {"decision_budget_ms": BUDGET_MS}
    if agent is not None:
        optimizer |= {"endpoint": f"127.0.0.1:{agent.port}", "mirror_max_age_s": 300 if fresh else 1}
    return SchedulerHost.from_config(
        {
            "data_dir": str(folder / "agent" if agent is None else folder / f"host-{agent.port}"),
            "metrics": {"enabled": False},
            "rollout": {"percentage": 100},
            "optimizer": optimizer,
        }
    )


def measure(folder: Path, state: str, fresh: bool, seconds: float) -> dict[str, Any]:
    agent = None if state == "local" else Agent(folder / "agent")
    if agent is not None:
        agent.start()
    host = host_of(folder, agent, fresh)
    over = threading.Event()
    try:
        if agent is not None:
            host.decide(None, {})
            remote = host._plugin._defaults._remote
            assert wait_until(lambda: remote.mirror.fresh, 30)
            disturb(agent, state, over)
            if not fresh and state != "healthy":
                assert wait_until(lambda: not remote.mirror.fresh, 30) or state == "flapping"
        return {"state": state, "mirror": "fresh" if fresh else "1 s", **figures(host, seconds)}
    finally:
        over.set()
        host.close()
        if agent is not None:
            if agent.process is not None:
                agent.process.send_signal(signal.SIGCONT)
            agent.kill()


def disturb(agent: Agent, state: str, over: threading.Event) -> None:
    if state == "dead":
        agent.kill()
    elif state == "hanging":
        assert agent.process is not None
        agent.process.send_signal(signal.SIGSTOP)
    elif state == "garbage":
        agent.kill()
        agent.start("garbage")
    elif state == "flapping":
        threading.Thread(target=flap, args=(agent, over), daemon=True).start()


def flap(agent: Agent, over: threading.Event) -> None:
    """Every second: stopped in its tracks, and going on."""
    while not over.wait(1.0) and agent.process is not None:
        agent.process.send_signal(signal.SIGSTOP)
        over.wait(1.0)
        if agent.process is not None:
            agent.process.send_signal(signal.SIGCONT)


def figures(host: SchedulerHost, seconds: float) -> dict[str, Any]:
    draw, took, reasons = random.Random(1), [], set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        state = measured_anew(draw)
        began = time.perf_counter()
        decision = host.decide(TICKET, state)
        took.append((time.perf_counter() - began) * 1e6)
        reasons.add(str(decision.reason))
        time.sleep(0.001)
    took.sort()
    return {
        "p50 us": took[len(took) // 2],
        "p99 us": took[int(len(took) * 0.99)],
        "most us": took[-1],
        "late": sum(one > BUDGET_MS * 1000 for one in took),
        "decisions": len(took),
        "reasons": ",".join(sorted(reasons)),
    }


def recoveries(folder: Path, rounds: int) -> list[float]:
    agent = Agent(folder / "agent")
    agent.start()
    host = host_of(folder, agent, fresh=True)
    found = []
    try:
        host.decide(None, {})
        remote = host._plugin._defaults._remote
        assert wait_until(lambda: remote.mirror.fresh, 30)
        for _ in range(rounds):
            agent.kill()
            assert wait_until(lambda: remote._caller.endpoints.ready() is None, 30)
            time.sleep(2 + random.random())
            agent.start()
            began = time.monotonic()
            assert wait_until(lambda: remote._caller.endpoints.ready() is not None, 30)
            assert wait_until(lambda since=began: remote.mirror.age_s() < time.monotonic() - since, 30)
            found.append(time.monotonic() - began)
    finally:
        host.close()
        agent.kill()
    return found


# The server


def serve(folder: Path, port: int, mode: str) -> None:
    """Answers as the agent does, or with garbage."""
    settings = load_settings({"data_dir": str(folder)})
    rules = DefaultHooks(settings)
    forecaster, policy = SnapshotForecaster(settings.forecast_table_path), QPolicy(settings, rules.rules)
    contents = {
        "GetForecastSnapshot": settings.forecast_table_path.read_bytes(),
        "GetPolicySnapshot": pack_policy(settings.q_table_path.read_bytes(), None),
    }

    def answer(name: str, raw: bytes) -> Any:
        if name == "GetLoadForecast":
            found = forecaster.forecast(pb.ForecastRequest.FromString(raw).horizon_minutes, time.time())
            assert found is not None
            return forecast_response(found)
        if name == "GetSchedulingRecommendation":
            request = pb.StateRequest.FromString(raw)
            found = forecaster.forecast(60, time.time())
            said = policy.recommend(ticket_of(request), state_of(request), found)
            assert said is not None
            return recommendation_response(said, "d", time.time())
        if name == "RecordActionOutcome":
            return pb.OutcomeResponse(accepted=True)
        tag = etag(contents[name])
        if pb.SnapshotRequest.FromString(raw).etag == tag:
            return pb.SnapshotResponse(etag=tag, not_modified=True)
        return pb.SnapshotResponse(etag=tag, content=contents[name])

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            name = details.method.rpartition("/")[2]

            def handle(raw: bytes, context: Any) -> bytes:
                return b"\xff\xfe\x00" if mode == "garbage" else answer(name, raw).SerializeToString()

            return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handlers(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
