"""An agent that can be hurt, hosts that report to it without a pause, and what was counted of what they reported."""

from __future__ import annotations

import collections
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._agent import free_port
from benchmarks.decide import BUSY
from nhm_sched_plugin import Action, Outcome, Recommendation, SchedulerHost, SchedulingState
from nhm_sched_plugin.agent.ledger import Ledger
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings

PATIENCE_S = 180.0
"""Nothing takes so long unless it is broken: the machine may be busy."""
AFTER = SchedulingState(queue_depth=5, active_workers=20, sla_compliance_rate=0.97, resource_cpu_avg=0.8)
_PAUSE_S = 0.01


class Agent:
    """`nhm-sched serve` in a process of its own. `settings`: by the names of their variables, `optimizer__endpoint`."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = folder / "stderr"
        self._variables = {f"NHM_SCHED_{name.upper()}": str(value) for name, value in settings.items()}
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"  # a name stands for two addresses, and gRPC tells of one only

    def start(self) -> Agent:
        command = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()", "serve"]
        with self.errors.open("a") as errors:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--metrics-port", "0"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "NHM_SCHED_DATA_DIR": str(self.folder), **self._variables},
            )
        assert self.process.stdout is not None
        assert "optimizer agent on" in self.process.stdout.readline(), self.errors.read_text()
        return self

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send that signal and wait for the end."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(number)
        process.wait(PATIENCE_S)
        assert process.stdout is not None
        process.stdout.close()

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """No file of the process may grow: to it, a disk without room."""
        assert self.process is not None
        soft, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            if self.process is not None and self.process.poll() is None:
                resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def counted(self) -> list[str]:
        """The decision ids in its ledger."""
        file = self.folder / "ledger" / "ledger.sqlite"
        if not file.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetchone():
                return []  # it is being made
            return [str(row[0]) for row in connection.execute("SELECT decision_id FROM outcomes")]

    def mislearned(self) -> tuple[int, int]:
        """Outcomes of its ledger that its saved Q-table was not taught, and those that it was taught too often.

        It must be, to the last bit, what the ledger teaches in its order; one missing outcome is not made good for by
        another one too many. Of a ledger that has dropped some (after 10,000) only the numbers can be compared.
        """
        settings = load_settings({"data_dir": self.folder})
        found = QTable.load(settings.q_table_path) if settings.q_table_path.exists() else QTable()
        steps = QPolicy(settings, lambda *_: Recommendation(action=Action.NO_ACTION)).steps
        wanted, ledger, seq = QTable(), Ledger(settings.ledger_path), 0
        with contextlib.closing(ledger):
            if ledger.dropped():
                missing = len(self.counted()) - found.updates
                return max(missing, 0), max(-missing, 0)
            while rows := ledger.after(seq):
                for _, experience in rows:
                    steps.apply(wanted, experience)
                seq = rows[-1][0]
        lacking = _visits(wanted) - _visits(found), _visits(found) - _visits(wanted)
        unlearned, twice = (sum(each.values()) for each in lacking)
        if not unlearned and not twice and found.rows != wanted.rows:
            return 1, 1
        return unlearned, twice


class Reporting:
    """A host that decides and reports some hundred times a second in a thread of its own, and keeps the ids."""

    def __init__(
        self, folder: Path, *addresses: str, clock: Callable[[], float] = time.time, **optimizer: object
    ) -> None:
        self.host = SchedulerHost.from_config(
            {
                "data_dir": str(folder),
                "metrics": {"enabled": False},
                "rollout": {"percentage": 100},
                "optimizer": {
                    "endpoint": list(addresses),
                    "mirror_interval_s": 0.1,
                    "grpc_timeout": 5.0,
                    "decision_budget_ms": 400,
                    **optimizer,
                },
            },
            clock=clock,
        )
        self.sent: list[str] = []
        self.reasons: collections.Counter[str] = collections.Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report)
        self._thread.start()

    def _report(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            decision = self.host.decide(None, BUSY)
            self.reasons[str(decision.reason)] += 1
            self.host.applied(decision)
            self.host.finished(Outcome(decision_id=decision.decision_id, status="tick", state_after=AFTER))
            self.sent.append(decision.decision_id)

    def waiting(self) -> int:
        """Outcomes in its outbox."""
        remote: Any = self.host._plugin._defaults._remote  # type: ignore[union-attr]
        return int(remote.delivery.outbox.waiting())

    def more(self, count: int = 20) -> None:
        """Wait until so many more have been reported to the host."""
        wanted = len(self.sent) + count
        until(lambda: len(self.sent) >= wanted)

    def stop(self) -> None:
        """Report no more, and wait until the agent has everything."""
        self._stop.set()
        self._thread.join()
        assert self.host.flush(PATIENCE_S)
        until(lambda: self.waiting() == 0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.host.close()


class Count(NamedTuple):
    """What the hosts reported, and what the agent made of it."""

    reported: int
    lost: int
    """Not in the agent's ledger, or not learned from."""
    doubled: int
    """Learned from more than once, or reported by nobody."""

    @property
    def exact(self) -> bool:
        return self.reported > 0 and self.lost == self.doubled == 0


def _visits(table: QTable) -> collections.Counter[tuple[str, str]]:
    cells = ((state, arm, cell) for state, row in table.rows.items() for arm, cell in row.items())
    return collections.Counter({(state, arm): cell.visits for state, arm, cell in cells})


def settled(agent: Agent, *hosts: Reporting) -> Count:
    """End everything in good order and compare."""
    for host in hosts:
        host.stop()
        host.close()
    agent.end()
    sent, counted = {one for host in hosts for one in host.sent}, set(agent.counted())
    unlearned, twice = agent.mislearned()
    return Count(reported=len(sent), lost=len(sent - counted) + unlearned, doubled=len(counted - sent) + twice)


@contextlib.contextmanager
def two_hosts(folder: Path, *addresses: str, **options: Any) -> Iterator[list[Reporting]]:
    hosts = [Reporting(folder / name, *addresses, **options) for name in ("host-1", "host-2")]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.close()


@contextlib.contextmanager
def reported_to(
    folder: Path, settings: Mapping[str, object] | None = None, **options: Any
) -> Iterator[tuple[Agent, list[Reporting]]]:
    """An agent with these settings, and two hosts with those of `optimizer` that report to it."""
    with serving(folder / "agent", settings) as agent, two_hosts(folder, agent.address, **options) as hosts:
        yield agent, hosts


def rounds_of(agent: Agent, rounds: int) -> Iterator[int]:
    """Each begins once the agent has counted another outcome."""
    for number in range(rounds):
        counts_more(agent)
        yield number


def counts_more(agent: Agent, count: int = 1) -> None:
    """Wait until the agent has counted so many more outcomes."""
    wanted = len(agent.counted()) + count
    until(lambda: len(agent.counted()) >= wanted)


@contextlib.contextmanager
def serving(folder: Path, settings: Mapping[str, object] | None = None) -> Iterator[Agent]:
    agent = Agent(folder, **(settings or {})).start()
    try:
        yield agent
    finally:
        agent.kill()


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not so within {PATIENCE_S:g} s")
        time.sleep(0.01)
