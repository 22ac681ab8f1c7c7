"""An agent, and a bare echo, each in a process of its own, for the agent's benchmarks."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks.decide import BUSY, measured_anew, teach, write_forecast
from nhm_sched_plugin import SchedulerHost
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.wire.convert import state_request

RECOMMEND = "/OptimizerAgent/GetSchedulingRecommendation"
FORECAST = "/OptimizerAgent/GetLoadForecast"
OUTCOME = "/OptimizerAgent/RecordActionOutcome"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tables(folder: Path) -> None:
    """A forecast and a policy that has seen something, as an agent finds them in its `data_dir`."""
    write_forecast(folder)
    settings = {"data_dir": str(folder), "metrics": {"enabled": False}, "rollout": {"percentage": 100}}
    with SchedulerHost.from_config(settings) as host:
        teach(host)


def recommendations(count: int, seed: int = 1) -> list[bytes]:
    """Requests about that many different states."""
    draw = random.Random(seed)
    return [state_request(measured_anew(draw), "processing", "medium").SerializeToString() for _ in range(count)]


def forecasts() -> list[bytes]:
    return [pb.ForecastRequest(horizon_minutes=60).SerializeToString()]


def outcomes(count: int, prefix: str) -> list[bytes]:
    state = state_request(BUSY)
    return [
        pb.OutcomeRequest(
            state=state, action="NO_ACTION", reward=0.1, next_state=state, decision_id=f"{prefix}-{number}"
        ).SerializeToString()
        for number in range(count)
    ]


@contextlib.contextmanager
def echo() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The bare echo; yields its address and process."""
    port = free_port()
    with _process([sys.executable, "-m", "benchmarks._echo", str(port)], port) as process:
        yield f"127.0.0.1:{port}", process


@contextlib.contextmanager
def agent(folder: Path, *arguments: str, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`nhm-sched serve` on that `data_dir`; yields its address and process."""
    port = port or free_port()
    command = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()", "serve"]
    command += ["--port", str(port), "--metrics-port", "0"]
    environment = {**os.environ, "NHM_SCHED_DATA_DIR": str(folder)}
    with _process([*command, *arguments], port, environment) as process:
        yield f"127.0.0.1:{port}", process


@contextlib.contextmanager
def _process(
    command: list[str], port: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(60)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def load(target: str, method: str, payloads: Sequence[bytes], **task: Any) -> dict[str, Any]:
    """Load from a second process; see `_grpc_load`."""
    task |= {"target": target, "method": method, "payloads": [base64.b64encode(one).decode() for one in payloads]}
    command = [sys.executable, "-m", "benchmarks._grpc_load", "-"]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def resident_mb(pid: int) -> float:
    """Of the process, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_s(pid: int) -> float:
    """Processor time that the process has used so far, in seconds."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def wait_until(holds: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return False
