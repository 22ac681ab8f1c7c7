"""The ledger: once, in order, on the disk, and what is left of it when it is damaged."""

from __future__ import annotations

import importlib.util
import itertools
import math
import multiprocessing
import os
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nhm_sched_plugin.agent import ledger as module
from nhm_sched_plugin.agent.ledger import Ledger, Saved, mark_of
from nhm_sched_plugin.agent.ledger_file import Entry, frame_of, read_frame
from nhm_sched_plugin.errors import LedgerError
from nhm_sched_plugin.policy.qtable import Mark, QTable
from nhm_sched_plugin.types import SchedulingState

_found = importlib.util.spec_from_file_location("learning", Path(__file__).with_name("learning.py"))
assert _found is not None
assert _found.loader is not None
learning = importlib.util.module_from_spec(_found)
_found.loader.exec_module(learning)
outcome, replayed, same, settings_in = learning.outcome, learning.replayed, learning.same, learning.settings_in

DAY = 86_400.0


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def some(*numbers: int) -> list[Any]:
    return [outcome(number) for number in numbers]


def ids(ledger: Ledger) -> list[str]:
    found: list[str] = []
    seq = 0
    while rows := ledger.after(seq, 7):
        found += [experience.decision_id for _, experience in rows]
        seq = rows[-1][0]
    return found


def test_each_counts_once_in_the_order_of_arrival(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.append([]) == []
    assert (ledger.last(), ledger.saved(), ledger.dropped()) == (0, None, 0)
    assert ledger.append(some(5, 3, 5)) == [(1, True), (2, True), (1, False)]
    assert ledger.append(some(3, 9)) == [(2, False), (3, True)]
    assert [seq for seq, _ in ledger.after(0)] == [1, 2, 3]
    assert [experience for _, experience in ledger.after(1)] == some(3, 9)
    assert ledger.after(3) == []
    assert len(ledger.after(0, 2)) == 2
    again = Ledger(tmp_path)
    assert again.append(some(9, 5, 10)) == [(3, False), (1, False), (4, True)]
    assert again.id == ledger.id
    assert again.mark() == mark_of(tmp_path) == Mark(ledger.id, 4)


def test_a_batch_longer_than_a_statement_keeps_its_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.append(some(*range(700))) == [(number + 1, True) for number in range(700)]
    assert ids(ledger) == [f"d-{number}" for number in range(700)]
    told = ledger.append(some(*range(650, 1000)))
    assert told == [(number + 1, number >= 700) for number in range(650, 1000)]


def test_nothing_of_an_outcome_is_changed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    odd = msgspec.structs.replace(
        outcome(1),
        decision_id="ä\x00'\";--\N{SNOWMAN}",
        reward=0.1 + 0.2,
        state=SchedulingState(features={"x": 1e-300, "none": math.inf}),
        parameters={"target_workers": 3, "share": 1.0, "name": "x"},
        next_state=None,
    )
    ledger.append([odd])
    ((_, found),) = ledger.after(0)
    assert found == odd
    assert type(found.parameters["target_workers"]) is int
    assert type(found.parameters["share"]) is float


def test_no_ledger_has_no_mark(tmp_path: Path) -> None:
    assert mark_of(tmp_path / "ledger") is None
    assert not (tmp_path / "ledger").exists()


# -- what need not be kept


def test_what_the_table_contains_goes_but_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 10)
    ledger = Ledger(tmp_path)
    ledger.append(some(*range(100)))
    saved = Saved(1, 60, (1, 2, 3))
    ledger.note(saved)
    assert ledger.saved() == Ledger(tmp_path).saved() == saved
    assert ledger.dropped() == 50
    assert ids(ledger) == [f"d-{number}" for number in range(50, 100)]
    assert ledger.append(some(0, 99, 100)) == [(1, False), (100, False), (101, True)], "their ids are known"
    ledger.note(Saved(1, 101, (1, 2, 4)))
    assert ledger.dropped() == 91


def test_ids_are_known_for_some_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    clock = Clock()
    ledger = Ledger(tmp_path, 30, clock)
    ledger.append(some(*range(5)))
    clock.now += 10 * DAY
    ledger.append(some(*range(5, 10)))
    ledger.note(Saved(1, 10, (0, 0, 0)))
    assert ledger.append(some(0)) == [(1, False)]
    clock.now += 21 * DAY
    ledger.note(Saved(1, 10, (0, 0, 0)))
    assert ledger.append(some(7, 3)) == [(8, False), (11, True)]


def test_a_clock_that_jumps_forgets_nothing_that_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 20)
    clock = Clock()
    ledger = Ledger(tmp_path, 30, clock)
    for number, jump in enumerate((0.0, 3600.0, -7200.0, 3650 * DAY, -7300 * DAY)):
        clock.now += jump
        ledger.append(some(*range(number * 10, number * 10 + 10)))
        ledger.note(Saved(1, ledger.last(), (0, 0, 0)))
        assert [fresh for _, fresh in ledger.append(some(*range(max(0, number * 10 - 10), number * 10 + 10)))] == [
            False
        ] * min(20, number * 10 + 10)
    assert ids(ledger) == [f"d-{number}" for number in range(30, 50)]


def test_there_is_a_most_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    monkeypatch.setattr(module, "MOST_IDS", 6)
    ledger = Ledger(tmp_path)
    ledger.append(some(*range(10)))
    ledger.note(Saved(1, 10, (0, 0, 0)))
    assert [fresh for _, fresh in ledger.append(some(*range(10)))] == [True] * 4 + [False] * 6


def test_forgetting_takes_the_same_work_however_much_there_is_to_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    monkeypatch.setattr(module, "_FORGOTTEN_AT_ONCE", 100)
    work = {}
    for count in (1_000, 20_000):
        clock = Clock()
        ledger = Ledger(tmp_path / str(count), 30, clock)
        ledger.append(some(*range(count)))
        clock.now += 31 * DAY
        steps = itertools.count()
        ledger._file.run(lambda connection, steps=steps: connection.set_progress_handler(lambda: next(steps) < 0, 10))
        ledger.learned([])
        work[count] = next(steps)
        assert ledger.append(some(0, 100, 101))[1:] == [(count + 2, True), (102, False)]
    assert work[20_000] <= 1.5 * work[1_000], work


def test_a_contained_outcome_takes_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 100)
    ledger = Ledger(tmp_path)
    for first in range(0, 20_000, 500):
        ledger.append(some(*range(first, first + 500)))
        ledger.note(Saved(1, first + 500, (0, 0, 0)))
    assert ledger.path.stat().st_size / 20_000 < 100


# -- several processes, forks


def _append(folder: Path, numbers: range, told: Any) -> None:
    ledger = Ledger(folder)
    told.put([(number, *ledger.append(some(number))[0]) for number in numbers])


def test_processes_at_once_number_each_outcome_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    wanted = [range(60), range(60), range(59, -1, -1), range(30, 90)]
    processes = [context.Process(target=_append, args=(tmp_path, numbers, told)) for numbers in wanted]
    for process in processes:
        process.start()
    answers = [answer for _ in processes for answer in told.get(timeout=120)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert Counter(number for number, _, fresh in answers if fresh) == Counter(range(90))
    assert len({(number, seq) for number, seq, _ in answers}) == 90, "and everybody is told the same number"
    assert [seq for seq, _ in Ledger(tmp_path).after(0)] == list(range(1, 91)), "without gaps"


def test_a_fork_in_the_middle(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(some(1))
    child = os.fork()
    if child == 0:
        os._exit(0 if ledger.append(some(1, 2)) == [(1, False), (2, True)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.append(some(2, 3)) == [(2, False), (3, True)]


def test_a_lock_that_is_not_given_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.spool_file._BUSY_S", 0.05)
    ledger = Ledger(tmp_path)
    ledger.append(some(1))
    other = sqlite3.connect(ledger.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.close()
    with pytest.raises(LedgerError, match=r"ledger\.sqlite cannot be used: database is locked"):
        ledger.append(some(2))
    other.execute("ROLLBACK")
    other.close()
    assert ledger.append(some(2)) == [(2, True)]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(tmp_path / "file" / "ledger").append(some(1))


# -- damage


def overwritten(path: Path, *, begin: int, end: int | None = None) -> None:
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xa5" * ((end or path.stat().st_size) - begin))


@pytest.mark.parametrize("where", ["head", "middle", "tail", "all but the log"])
def test_a_damaged_ledger_is_set_aside_and_what_can_be_read_is_saved(tmp_path: Path, where: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(some(*range(400)))
    name = ledger.id
    ledger.close()  # everything is in the file now
    if where == "all but the log":
        reader = sqlite3.connect(ledger.path)  # keeps the log from being folded in
        reader.execute("SELECT 1 FROM ledger").fetchone()
        ledger.append(some(*range(400, 450)))
        overwritten(ledger.path, begin=0)
    else:
        size = ledger.path.stat().st_size
        begin, end = {"head": (0, 4096), "middle": (size // 2, size // 2 + 4096), "tail": (size - 4096, size)}[where]
        overwritten(ledger.path, begin=begin, end=end)
    again = Ledger(tmp_path)
    found = set(ids(again))
    expected = {f"d-{number}" for number in (range(400, 450) if where == "all but the log" else range(400))}
    lost = expected - found
    assert len(lost) < 60, "only what stood in the damaged page"
    assert again.damaged == 1
    assert len(list(tmp_path.glob("ledger-*.corrupt"))) == 1
    assert again.id == name, "so that the table's mark means what it meant"
    numbers = [seq for seq, _ in again.after(0)]
    assert numbers == sorted(numbers)
    (((seq, fresh),)) = again.append(some(1000))
    assert fresh
    assert seq > 450 + 1000, "above every number that the table may contain"
    known = [number for number in range(400) if f"d-{number}" in found]
    assert not any(fresh for _, fresh in again.append(some(*known)))
    assert {f"d-{number}" for number in known} <= set(ids(again))


def test_a_table_goes_on_with_a_ledger_that_was_damaged(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=50)
    agent, peer = learning.Agent(settings), learning.Agent(settings)
    agent.record(*range(150))
    agent.learner.follow()
    agent.record(*range(150, 170))
    path = agent.learner.ledger.path
    for each in (agent, peer):
        each.learner.ledger.close()
    overwritten(path, begin=0, end=4096)
    for each in (agent, peer):
        each.learner.follow()
    agent.record(500)
    peer.record(501)
    agent.learner.follow()
    expected = replayed(settings, some(*range(170), 500, 501))
    assert same(agent.table, expected)
    assert same(peer.table, expected)
    saved = QTable.load(settings.q_table_path).mark
    assert saved is not None
    assert saved.ledger == agent.learner.ledger.id
    told = [each.learner.health() for each in (agent, peer)]
    assert all(each.ok for each in told)
    assert sum("1 damaged ledger set aside beside it" in each.detail for each in told) == 1, "by one of them"


@pytest.mark.parametrize("saved_before", [False, True])
@pytest.mark.parametrize("first", ["follows", "records"])
def test_what_is_lost_of_a_ledger_is_taken_from_a_process_that_knows_it(
    tmp_path: Path, saved_before: bool, first: str
) -> None:
    settings = settings_in(tmp_path, update_interval=1 if saved_before else 100)
    agent, peer = learning.Agent(settings), learning.Agent(settings)
    agent.record(1, 2)
    agent.learner.follow()
    agent.record(3)
    path = agent.learner.ledger.path
    for each in (agent, peer):
        each.learner.ledger.close()
    overwritten(path, begin=0)
    if first == "follows":
        for each in (agent, peer, agent):
            each.learner.follow()
    agent.record(4)
    peer.record(5)
    expected = replayed(settings, some(1, 2, 3, 4, 5))
    for each in (agent, peer, learning.Agent(settings)):
        each.learner.follow()
        assert same(each.table, expected)


def test_a_ledger_whose_front_is_lost(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    agent = learning.Agent(settings)
    agent.record(*range(20))
    connection = sqlite3.connect(agent.learner.ledger.path)
    connection.execute("DELETE FROM experiences WHERE seq <= 10")
    connection.commit()
    connection.close()
    again = learning.Agent(settings)
    assert same(again.table, replayed(settings, some(*range(10, 20))))
    again.record(20)
    assert again.table.updates == 11


def test_a_damaged_entry_is_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(some(*range(5)))
    ledger.close()
    connection = sqlite3.connect(ledger.path)
    connection.execute("UPDATE experiences SET frame = substr(frame, 2) WHERE seq IN (1, 3)")
    connection.commit()
    connection.close()
    assert [seq for seq, _ in ledger.after(0, 1)] == [2]
    assert ids(ledger) == ["d-1", "d-3", "d-4"]


def test_frames(tmp_path: Path) -> None:
    entry = Entry("ab", 3, 4.0, outcome(1))
    frame = frame_of(entry)
    assert read_frame(frame) == entry
    for bad in (b"", frame[:8], frame[:-1], frame + b"x", b"X" + frame[1:], frame[:20] + b"\xff" + frame[21:]):
        with pytest.raises(ValueError, match="damaged"):
            read_frame(bad)
