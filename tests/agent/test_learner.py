"""What an agent has been told of is learned once, in one order, by all its processes, whatever happens to them."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
import pytest

from nhm_sched_plugin.agent import ledger as ledger_module
from nhm_sched_plugin.agent.learner import Learner
from nhm_sched_plugin.agent.ledger import Ledger
from nhm_sched_plugin.errors import LedgerError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy.qtable import Mark, QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Experience

_found = importlib.util.spec_from_file_location("learning", Path(__file__).with_name("learning.py"))
assert _found is not None
assert _found.loader is not None
learning = importlib.util.module_from_spec(_found)
_found.loader.exec_module(learning)
Agent, everything, outcome, policy_in = learning.Agent, learning.everything, learning.outcome, learning.policy_in
replayed, same, settings_in = learning.replayed, learning.same, learning.settings_in

PATIENCE_S = 120.0
KILLS = 30


def worker(folder: Path, acked: Path, wanted: range, *, interval: int, batch: int) -> subprocess.Popen[str]:
    numbers = (wanted.start, wanted.stop, wanted.step, batch)
    return subprocess.Popen(
        [sys.executable, learning.__file__, str(folder), str(interval), str(acked), *(str(each) for each in numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"ended with {process.wait(PATIENCE_S)} before it said {word!r}")


# -- one process


def test_an_outcome_counts_once_and_says_what_it_did(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    agent = Agent(settings)
    policy = policy_in(settings_in(tmp_path / "other"))
    policy.learn(outcome(1))
    first, again = agent.learner.record([outcome(1)])[0], agent.learner.record([outcome(1)])[0]
    q = policy.steps.q_value(policy.table, outcome(1))
    assert q != 0.0
    assert first == (True, 1, q)
    assert again == (False, 1, q)
    assert same(agent.table, policy.table), "and it learns as a host in whose process it happened"
    assert [told.accepted for told in agent.learner.record([outcome(2), outcome(3), outcome(2), outcome(1)])] == [
        *(True, True, False, False)
    ]
    assert agent.table.updates == 3


def test_each_of_a_batch_is_told_the_value_after_its_own_update(tmp_path: Path) -> None:
    agent = Agent(settings_in(tmp_path))
    twice = [outcome(1), msgspec.structs.replace(outcome(1), decision_id="other")]
    told = agent.learner.record(twice)
    assert [each.updates for each in told] == [1, 2]
    assert told[0].q_value != told[1].q_value


def test_it_is_saved_after_so_many_updates_and_found_again(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=10)
    agent = Agent(settings)
    agent.record(*range(9))
    agent.learner.follow()
    assert not settings.q_table_path.exists()
    agent.record(9)
    agent.learner.follow()
    saved = QTable.load(settings.q_table_path)
    assert saved.updates == 10
    assert saved.mark == Mark(agent.learner.ledger.id, 10)
    agent.record(10, 11)
    # It ends without a word; the table has 10, the ledger the rest.
    again = Agent(settings)
    assert same(again.table, agent.table)
    assert again.table.updates == 12
    again.learner.close()
    assert QTable.load(settings.q_table_path).updates == 12


def test_the_policy_answers_from_what_was_learned(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=1)
    agent = Agent(settings)
    agent.record(1)
    agent.learner.follow()
    agent.policy.refresh()
    agent.policy.save()
    assert agent.table.updates == 1
    assert agent.policy.version == "q4-1"
    assert agent.learner.health().ok


def test_saving_does_not_hold_up_recording(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=2)
    agent = Agent(settings)
    agent.record(1, 2)
    from nhm_sched_plugin.files import file_lock

    with file_lock(settings.q_table_path):
        following = threading.Thread(target=agent.learner.follow)
        following.start()
        agent.record(3)
        assert not settings.q_table_path.exists()
    following.join(PATIENCE_S)
    assert QTable.load(settings.q_table_path).mark == Mark(agent.learner.ledger.id, 2)
    agent.learner.close()
    assert QTable.load(settings.q_table_path).updates == 3


# -- several


def test_processes_that_take_turns_have_the_same_table(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=5)
    one, other = Agent(settings), Agent(settings)
    for number in range(20):
        (one if number % 3 else other).record(number)
        if number % 4 == 0:
            other.learner.follow()
    one.learner.follow()
    other.learner.follow()
    assert same(one.table, other.table)
    assert same(one.table, replayed(settings, [outcome(number) for number in range(20)]))
    assert one.learner.record([outcome(3)])[0].accepted is False


def test_four_processes_at_once_end_with_the_table_of_a_serial_replay(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=40)
    wanted = [range(0, 200, 1), range(0, 200, 1), range(100, 300, 1), range(298, 98, -1)]
    acked = [tmp_path / f"acked-{number}" for number in range(4)]
    processes = [
        worker(tmp_path, path, numbers, interval=40, batch=1 + index)
        for index, (path, numbers) in enumerate(zip(acked, wanted, strict=True))
    ]
    for process in processes:
        until(process, "recorded")
    observer = Agent(settings)  # has seen nothing happen
    observer.learner.follow()
    found = []
    for process in processes:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        found.append(QTable.load(settings.q_table_path).dump())
    assert len({*found}) == 1, "whoever saves last saves the same"
    counted = Counter(
        int(number)
        for path in acked
        for number, accepted in (line.split() for line in path.read_text().splitlines())
        if accepted == "1"
    )
    assert counted == Counter(range(300)), "each is accepted once, by one of them"
    expected = replayed(settings, everything(settings))
    assert expected.updates == 300
    assert same(expected, QTable.load(settings.q_table_path))
    assert same(expected, observer.table)


def test_a_process_that_was_stopped_for_long_takes_the_saved_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "KEPT", 5)
    settings = settings_in(tmp_path, update_interval=10)
    slow, quick = Agent(settings), Agent(settings)
    slow.record(1)
    for number in range(2, 32):
        quick.record(number)
        quick.learner.follow()
    assert quick.learner.ledger.dropped() > 1
    slow.record(40)
    quick.learner.follow()
    assert same(slow.table, quick.table)
    assert same(slow.table, replayed(settings, [outcome(number) for number in (*range(1, 32), 40)]))


def test_a_forked_child_begins_with_the_file_anew(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=2)
    agent = Agent(settings)
    agent.record(1, 2, 3)
    agent.learner.follow()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            agent.record(4)
            agent.learner.follow()
            code = 0 if agent.table.updates == 4 else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    agent.record(5)
    assert same(agent.table, replayed(settings, [outcome(number) for number in (1, 2, 3, 4, 5)]))


# -- ends that nobody chose


def record_until_killed(settings: Settings, acked: Path, first: int) -> NoReturn:
    try:
        agent = Agent(settings)
        told = os.open(acked, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for at in range(first, 1_000_000, 3):
            numbers = range(at, at + 3)
            recorded = agent.learner.record([outcome(number) for number in numbers])
            os.write(told, "".join(f"{n} {r.accepted:d}\n" for n, r in zip(numbers, recorded, strict=True)).encode())
            agent.learner.follow()
    finally:
        os._exit(1)


def test_killed_at_any_moment_nothing_acknowledged_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=4)
    acked = tmp_path / "acked"
    draw = random.Random(5)
    for number in range(KILLS):
        # What was not acknowledged is sent again, and something that was besides.
        child = os.fork()
        if child == 0:
            record_until_killed(settings, acked, max(0, number * 20 - 10))
        time.sleep(draw.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = [line.split() for line in acked.read_text().splitlines() if line.count(" ") == 1]
    told = {int(number) for number, _ in said}
    accepted = Counter(int(number) for number, accepted in said if accepted == "1")
    assert len(told) > KILLS
    assert max(accepted.values()) == 1
    in_ledger = everything(settings)
    ids = [experience.decision_id for experience in in_ledger]
    assert len(ids) == len(set(ids))
    assert {f"d-{number}" for number in told} <= set(ids)
    agent = Agent(settings)
    assert agent.table.updates == len(ids)
    assert same(agent.table, replayed(settings, in_ledger))


def test_a_crash_between_saving_the_table_and_noting_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_in(tmp_path, update_interval=2)
    agent, peer = Agent(settings), Agent(settings)
    agent.record(1, 2)

    def crash(*_: object) -> None:
        raise LedgerError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "note", crash)
        agent.learner.follow()
    assert not agent.learner.health().ok
    assert QTable.load(settings.q_table_path).updates == 2
    assert Ledger(settings.ledger_path).saved() is None
    peer.record(3)
    again = Agent(settings)
    for each in (again, peer, agent):
        each.learner.follow()
        assert same(each.table, replayed(settings, [outcome(number) for number in (1, 2, 3)]))
    assert agent.learner.health().ok


def test_what_cannot_be_learned_at_once_is_recorded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    agent, peer = Agent(settings), Agent(settings)
    peer.record(1)

    def fails(*_: object) -> None:
        raise LedgerError("read error")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "after", fails)
        assert agent.learner.record([outcome(2)]) == [(True, 0, 0.0)]
    assert not agent.learner.health().ok
    agent.learner.follow()
    assert same(agent.table, replayed(settings, [outcome(1), outcome(2)]))
    assert agent.learner.health().ok


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, learning.__file__, "full-disk", str(tmp_path)], check=True, timeout=PATIENCE_S)
    settings = settings_in(tmp_path)
    assert same(QTable.load(settings.q_table_path), replayed(settings, [outcome(number) for number in range(10)]))


# -- somebody else's policy


class Stranger:
    """Somebody's policy: no table, no file of ours."""

    version = "mine"

    def __init__(self) -> None:
        self.learned: list[str] = []
        self.saved = 0

    def learn(self, experience: Experience) -> None:
        if experience.decision_id == "d-2":
            raise RuntimeError("not that one")
        self.learned.append(experience.decision_id)

    def save(self) -> None:
        self.saved += 1

    recommend = explore = refresh = health = None


def test_somebody_elses_policy_learns_once_for_each(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=3)
    policy: Any = Stranger()
    metrics = Metrics()
    learner = Learner(settings, policy, Faults(metrics))
    assert [told.accepted for told in learner.record([outcome(1), outcome(2), outcome(1)])] == [True, True, False]
    learner.follow()
    assert policy.saved == 0
    learner.record([outcome(3), outcome(2)])
    learner.follow()
    assert policy.learned == ["d-1", "d-3"]
    assert policy.saved == 1
    assert metrics.registry.get_sample_value("nhm_sched_component_errors_total", {"component": "policy"}) == 1
    learner.close()
    again = Learner(settings, policy, Faults(metrics))
    assert not again.record([outcome(1)])[0].accepted
    assert policy.learned == ["d-1", "d-3"]


def test_what_somebody_elses_policy_had_not_saved_it_learns_again_after_a_crash(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=3)
    built_in = Agent(settings)
    built_in.record(100, 101, 102)
    built_in.learner.close()
    policy: Any = Stranger()
    learner = Learner(settings, policy, Faults(Metrics()))
    learner.record([outcome(number) for number in (1, 3, 4)])
    learner.follow()
    assert policy.saved == 1
    learner.record([outcome(5), outcome(6)])
    # Killed here.
    policy = Stranger()
    again = Learner(settings, policy, Faults(Metrics()))
    assert policy.learned == ["d-5", "d-6"]
    assert not again.record([outcome(5)])[0].accepted
    child = os.fork()
    if child == 0:
        again.follow()
        os._exit(0 if policy.learned == ["d-5", "d-6"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    again.close()
    policy = Stranger()
    Learner(settings, policy, Faults(Metrics()))
    assert policy.learned == []
    assert Agent(settings).learner.record([outcome(4)])[0].accepted is False


def test_what_somebody_elses_policy_could_not_read_at_once_it_learns_later_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path, update_interval=10_000)
    Learner(settings, cast("Any", Stranger()), Faults(Metrics())).record(
        [outcome(number) for number in range(10, 2500)]
    )
    policy: Any = Stranger()
    read, reads = Ledger.after, itertools.count()

    def fails_now_and_then(ledger: Ledger, seq: int, limit: int = 1000) -> Any:
        if next(reads) in (1, 2):
            raise LedgerError("the disk does not answer")
        return read(ledger, seq, limit)

    monkeypatch.setattr(Ledger, "after", fails_now_and_then)
    learner = Learner(settings, policy, Faults(Metrics()))
    assert len(policy.learned) == 1000
    assert not learner.health().ok
    assert learner.record([outcome(3000)])[0].accepted
    assert "d-3000" not in policy.learned, "not before those that came earlier"
    learner.follow()
    assert policy.learned == [f"d-{number}" for number in (*range(10, 2500), 3000)]
    assert learner.health().ok


def test_the_workers_outcomes_make_many_states() -> None:
    """Else an order that is not kept would not show."""
    table = replayed(settings_in(Path("unused")), [outcome(number) for number in range(300)])
    other = replayed(settings_in(Path("unused")), [outcome(number) for number in reversed(range(300))])
    assert len(table) > 10
    assert not same(table, other)
