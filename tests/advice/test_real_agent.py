"""A host and the agent itself, `nhm-sched serve`, in a process of its own: what is learned comes back, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import SchedulerHost
from nhm_sched_plugin.policy.qtable import QTable
from tests.advice.conftest import finish, remote
from tests.advice.scripted import free_port

Ask = Callable[..., SchedulerHost]
ROOT = Path(__file__).parents[2]


class Served:
    """`nhm-sched serve` on a `data_dir`; `settings` as environment variables."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self._settings = {f"NHM_SCHED_{name.upper()}": value for name, value in settings.items()}
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Served:
        command = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()", "serve"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--metrics-port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "NHM_SCHED_DATA_DIR": str(self.folder),
                **self._settings,
            },
        )
        assert self.process.stdout is not None
        assert "optimizer agent on" in self.process.stdout.readline()
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    made = Served(folder).start()
    yield made
    made.stop(signal.SIGKILL)


def waiting(host: SchedulerHost) -> int:
    return int(remote(host).delivery.outbox.waiting())


def test_what_hosts_live_through_comes_back_as_policy(served: Served, ask: Ask, kit: Any) -> None:
    host = ask(served.address)
    kit.wait_for(lambda: host.decide(None, kit.BUSY).policy_version == "q4-3", 60)
    finish(host, kit, 120)
    assert host.flush(20)
    version = kit.wait_for(
        lambda: (found := host.decide(None, kit.BUSY).policy_version) not in ("", "q4-3") and found, 60
    )
    assert int(version.removeprefix("q4-")) >= 100
    assert host.decide(None, kit.BUSY).forecast.predicted_volume == 500
    kit.wait_for(lambda: waiting(host) == 0, 60)


def test_nothing_is_lost_or_counted_twice_while_the_agent_is_killed(
    served: Served, folder: Path, ask: Ask, kit: Any
) -> None:
    host = ask(served.address)
    kit.wait_for(lambda: host.decide(None, kit.BUSY).forecast, 60)
    for _ in range(3):
        finish(host, kit, 40)
        assert host.flush(20)
        kit.wait_for(lambda: waiting(host) < 40, 60)
        served.stop(signal.SIGKILL)
        finish(host, kit, 10)
        assert host.flush(20)
        served.start()
    kit.wait_for(lambda: waiting(host) == 0, 60)
    served.stop()
    assert QTable.load(folder / "snapshots" / "q_table.json").updates == 3 + 3 * 50


def test_an_edge_hands_on_both_ways(served: Served, folder: Path, tmp_path: Path, ask: Ask, kit: Any) -> None:
    """Host -> edge -> agent: one agent writes, others mirror it and forward what their hosts tell them."""
    edge = Served(tmp_path / "edge", optimizer__endpoint=served.address, optimizer__mirror_interval_s="0.1").start()
    try:
        host = ask(edge.address)
        kit.wait_for(lambda: host.decide(None, kit.BUSY).policy_version == "q4-3", 60)
        finish(host, kit, 30)
        assert host.flush(20)
        kit.wait_for(lambda: waiting(host) == 0, 60)
    finally:
        edge.stop()
    served.stop()
    assert QTable.load(folder / "snapshots" / "q_table.json").updates == 33
