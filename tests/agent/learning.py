"""What the tests of the learner share. Run as a program it is a process that learns, as many at once as they like."""

from __future__ import annotations

import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from nhm_sched_plugin.agent.learner import Learner
from nhm_sched_plugin.agent.ledger import Ledger
from nhm_sched_plugin.errors import LedgerError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.types import Action, Experience, Recommendation, SchedulingState

KEEP = Recommendation(action=Action.NO_ACTION)
ACTIONS = tuple(Action)


def settings_in(folder: Path, **scheduling: object) -> Settings:
    return load_settings({"data_dir": folder, "ml": {"scheduling": {"learning_rate": 0.1, **scheduling}}})


def policy_in(settings: Settings) -> QPolicy:
    return QPolicy(settings, lambda *_: KEEP)


class Agent:
    """One process's policy and learner, in this one."""

    def __init__(self, settings: Settings) -> None:
        self.policy = policy_in(settings)
        self.metrics = Metrics()
        self.learner = Learner(settings, self.policy, Faults(self.metrics))

    @property
    def table(self) -> QTable:
        return self.policy.table

    def record(self, *numbers: int) -> None:
        assert all(told.accepted for told in self.learner.record([outcome(number) for number in numbers]))


def outcome(number: int) -> Experience:
    """Of many states and actions, each with another reward: any other order of them makes another table."""
    workers = 10.0
    state = SchedulingState(
        queue_depth=float(number % 30),
        active_workers=workers,
        avg_task_duration_ms=60_000.0,
        predicted_load_1h=float(number * 37 % 900),
        sla_compliance_rate=0.99 if number % 3 else 0.5,
    )
    action = ACTIONS[number % len(ACTIONS)]
    parameters = {"target_workers": 5 + number % 11} if "WORKER" in action else {}
    return Experience(
        decision_id=f"d-{number}",
        state=state,
        action=action,
        reward=(number * 7919 % 2001 - 1000) / 1000,
        next_state=SchedulingState(queue_depth=float(number % 7), active_workers=workers),
        parameters=parameters,
    )


def replayed(settings: Settings, experiences: Sequence[Experience], base: QTable | None = None) -> QTable:
    """What one process learns from them, one after the other."""
    table = base or QTable()
    policy = policy_in(settings)
    for experience in experiences:
        policy.steps.apply(table, experience)
    return table


def same(one: QTable, other: QTable) -> bool:
    return QTable(one.rows, one.updates).dump() == QTable(other.rows, other.updates).dump()


def everything(settings: Settings) -> list[Experience]:
    """What is in the ledger, in its order."""
    ledger = Ledger(settings.ledger_path)
    found: list[Experience] = []
    seq = 0
    while rows := ledger.after(seq):
        found += [experience for _, experience in rows]
        seq = rows[-1][0]
    ledger.close()
    return found


def on_a_full_disk(folder: Path) -> None:
    """Under a limit on the size of files, which a disk without room looks like."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    learner = Agent(settings_in(folder)).learner
    for number in range(5):
        learner.record([outcome(number)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    for number in range(5, 10):
        with pytest.raises(LedgerError, match=r"ledger\.sqlite"):
            learner.record([outcome(number)])
    learner.close()
    assert not learner.health().ok
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told = learner.record([outcome(number) for number in range(10)])
    assert [each.accepted for each in told] == [False] * 5 + [True] * 5, told
    learner.close()
    assert learner.health().ok


def main() -> None:
    """`FOLDER INTERVAL ACKED FIRST LAST STEP BATCH`: record those outcomes in batches and note each that is recorded.

    After the last one it follows until its standard input is closed, and then saves.
    """
    if sys.argv[1] == "full-disk":
        on_a_full_disk(Path(sys.argv[2]))
        return
    folder, interval, acked, *numbers = sys.argv[1:]
    first, last, step, batch = (int(number) for number in numbers)
    learner = Agent(settings_in(Path(folder), update_interval=int(interval))).learner
    done = threading.Event()

    def follow() -> None:
        while not done.wait(0.02):
            learner.follow()

    following = threading.Thread(target=follow)
    following.start()
    with Path(acked).open("a", buffering=1) as told:
        print("ready", flush=True)
        wanted = range(first, last, step)
        for at in range(0, len(wanted), batch):
            recorded = learner.record([outcome(number) for number in wanted[at : at + batch]])
            told.write("".join(f"{n} {int(r.accepted)}\n" for n, r in zip(wanted[at:], recorded, strict=False)))
        print("recorded", flush=True)
        sys.stdin.read()
    done.set()
    following.join()
    learner.close()


if __name__ == "__main__":
    main()
