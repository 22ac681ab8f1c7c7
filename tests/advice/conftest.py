"""A scripted agent with tables, and hosts that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState
from nhm_sched_plugin.policy.qtable import QTable
from tests.advice.scripted import ScriptedAgent


@pytest.fixture
def folder(tmp_path: Path, kit: Any) -> Path:
    """An agent's `data_dir` with a forecast of 500 tickets an hour and a Q-table."""
    made = tmp_path / "agent"
    kit.write_forecast(made)
    learn(made, 3)
    return made


def learn(folder: Path, updates: int) -> None:
    """A Q-table with that many updates."""
    table = QTable()
    for _ in range(updates):
        table.update("u2-b1-s0-t1", "NO_ACTION", 0.5, 0.1)
    table.save(folder / "snapshots" / "q_table.json")


def remote(host: SchedulerHost) -> Any:
    """What the host has of its agent."""
    return host._plugin._defaults._remote


def finish(host: SchedulerHost, kit: Any, count: int = 1) -> list[str]:
    """Decisions that have ended, by their ids."""
    ids = []
    for _ in range(count):
        decision = host.decide(None, kit.BUSY)
        host.applied(decision)
        host.finished(Outcome(decision_id=decision.decision_id, state_after=SchedulingState(sla_compliance_rate=0.95)))
        ids.append(decision.decision_id)
    return ids


@pytest.fixture
def agent(folder: Path) -> Iterator[ScriptedAgent]:
    made = ScriptedAgent(folder).start()
    yield made
    made.stop()


@pytest.fixture
def ask(kit: Any, tmp_path: Path) -> Callable[..., SchedulerHost]:
    """A host of an agent at these addresses; `optimizer` settings by name."""

    def start(*addresses: str, data: str = "host", **optimizer: Any) -> SchedulerHost:
        given = {"endpoint": list(addresses), "mirror_interval_s": 0.1, "grpc_timeout": 2.0, **optimizer}
        host: SchedulerHost = kit.start({"data_dir": str(tmp_path / data), "optimizer": given}, built_in=True)
        return host

    return start
