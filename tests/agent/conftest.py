"""Agents that run: in a thread of the test's process, or as `nhm-sched serve` in one of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nhm_sched_plugin.agent.server import AgentServer
from nhm_sched_plugin.extension import Found
from nhm_sched_plugin.pb import optimizer_agent_pb2_grpc as services
from nhm_sched_plugin.settings import load_settings
from tests.agent.guarded import Authority, Serve, agents

PATIENCE_S = 120.0
"""Nothing waits for so long unless it is broken: the machine may be busy."""


class Running:
    """An agent with its event loop in a thread, and a channel to it."""

    def __init__(self, config: Mapping[str, Any], plugins: Mapping[str, Any], clock: Any) -> None:
        found = [Found(name, "the test", plugin) for name, plugin in plugins.items()]
        arguments = {} if clock is None else {"clock": clock}
        self.server = AgentServer(load_settings(config), plugins=found, **arguments)
        self.loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._up.wait(PATIENCE_S)
        if self._error is not None:
            raise self._error
        self.address = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.insecure_channel(self.address, [("grpc.max_send_message_length", -1)])
        self.stub = services.OptimizerAgentStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def _run(self) -> None:
        async def serve() -> None:
            try:
                async with self.server:
                    self._up.set()
                    await self._stop.wait()
            except BaseException as error:
                self._error = error
                raise
            finally:
                self._up.set()

        asyncio.set_event_loop(self.loop)
        with contextlib.suppress(OSError):  # the constructor raises it
            self.loop.run_until_complete(serve())
        self.loop.close()

    def ready(self) -> Running:
        """Wait for the models, or for the knowledge that there are none."""
        for response in self.health.Watch(health_pb2.HealthCheckRequest(service="OptimizerAgent"), timeout=PATIENCE_S):
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                return self
        raise AssertionError("the stream ended")

    def counted(self, name: str, **labels: str) -> float:
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def handled(self, method: str, code: str = "OK") -> float:
        """Calls of a unary method of ours that ended so."""
        labels = {"grpc_type": "unary", "grpc_service": "OptimizerAgent", "grpc_method": method}
        return self.counted("grpc_server_handled_total", grpc_code=code, **labels)

    def begin_to_stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.begin_to_stop()
        self._thread.join(PATIENCE_S)
        self.channel.close()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """`serving({...}, plugins={...})`: an agent with these settings; stopped after the test."""
    running: list[Running] = []

    def start(
        config: Mapping[str, Any] | None = None, plugins: Mapping[str, Any] | None = None, clock: Any = None
    ) -> Running:
        given = dict(config or {})
        agent = {"port": 0, "grace_s": 30, **given.pop("agent", {})}
        base = {"data_dir": str(tmp_path / "agent"), "metrics": {"enabled": False}, "agent": agent}
        one = Running({**base, **given}, plugins or {}, clock)
        running.append(one)
        return one

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One agent for all that is refused."""
    agent = {"port": 0, "max_message_bytes": 65_536}
    folder = str(tmp_path_factory.mktemp("refusing"))
    running = Running({"data_dir": folder, "metrics": {"enabled": False}, "agent": agent}, {}, None)
    yield running
    running.stop()


class Command:
    """`nhm-sched serve` in a process of its own, from the moment it says where it listens."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()", "serve", *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "200", **environment},
        )
        self._errors: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        assert self.process.stdout is not None
        self.said = [self.process.stdout.readline(), self.process.stdout.readline()]
        port = self.said[0].split(" (")[0].rpartition(":")[2]
        self.port = int(port) if port.isdecimal() else 0  # it has none on a Unix socket, or when it could not start
        self.address = f"127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)

    @property
    def errors(self) -> str:
        """What it has said on stderr so far."""
        return "".join(self._errors)

    def ended(self, number: int | None = None) -> int:
        """Send that signal, if any, and wait for the end: its exit status."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        self._reading.join(PATIENCE_S)
        return status


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """`command("--workers", "2")`: the command with `data_dir` in the test's folder and any free port."""
    started: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        settings = {"NHM_SCHED_DATA_DIR": str(tmp_path / "agent"), **environment}
        given = [*arguments]
        for option in ("--port", "--metrics-port"):
            if option not in given:
                given += [option, "0"]
        one = Command(*given, **settings)
        started.append(one)
        return one

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(PATIENCE_S)
            one.process.kill()
        one.ended()
        for stream in (one.process.stdout, one.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(token_file=...)`: the address of an echo behind the agent's door, with these `agent` settings."""
    with agents() as start:
        yield start


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")
