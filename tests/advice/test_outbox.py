"""The outbox alone: what is in it survives, in order, and nothing in it holds up the rest."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nhm_sched_plugin import Action, SchedulingState
from nhm_sched_plugin.advice.remote.outbox import LARGEST, Outbox, batches, written
from nhm_sched_plugin.errors import SpoolError
from nhm_sched_plugin.types import Experience

ROOT = Path(__file__).parents[2]
MB = 1024 * 1024


def experience(number: int) -> Experience:
    return Experience(
        decision_id=f"d{number}",
        state=SchedulingState(queue_depth=float(number), features={"arrivals_last_hour": 3.0}),
        action=Action.INCREASE_WORKER_POOL,
        reward=0.25,
        next_state=SchedulingState(queue_depth=1.0),
        parameters={"target_workers": 12, "note": "x" * 200},
    )


def put(outbox: Outbox, numbers: Iterable[int]) -> int:
    return outbox.put([written(experience(number), 0.0) for number in numbers])


def ids(outbox: Outbox) -> list[str]:
    return [one.experience.decision_id for batch in batches(outbox, 7) for one in batch]


def test_first_in_first_out_and_whole(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", MB)
    assert put(outbox, range(10)) == 0
    again = Outbox(tmp_path / "outbox", MB)  # as another process, or this one after a restart
    assert ids(again) == [f"d{n}" for n in range(10)]
    assert again.first(1)[0].experience == experience(0)
    again.done([one.seq for one in again.first(3)] + [again.first(6)[5].seq])
    assert ids(outbox) == ["d3", "d4", "d6", "d7", "d8", "d9"]
    assert outbox.waiting() == 6


def test_the_oldest_go_when_it_is_full(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", MB)
    dropped = sum(put(outbox, range(n, n + 100)) for n in range(0, 6000, 100))
    left = ids(outbox)
    assert dropped > 0
    assert left == [f"d{n}" for n in range(dropped, 6000)], "the newest, and every dropped one is counted"
    assert (tmp_path / "outbox" / "spool.sqlite").stat().st_size < 2 * MB


def test_the_number_of_those_that_wait_is_kept_and_right(tmp_path: Path) -> None:
    """Whoever puts in, takes out, sets aside or drops; and without going through all of them each time."""
    outbox, other = Outbox(tmp_path / "outbox", MB), Outbox(tmp_path / "outbox", MB)
    assert outbox.waiting() == 0
    asked: list[str] = []
    outbox._file.run(lambda connection: connection.set_trace_callback(asked.append))

    def right() -> bool:
        return outbox.waiting() == len(ids(other))

    put(outbox, range(20))
    assert right()
    put(other, range(20, 30))
    outbox.done([one.seq for one in outbox.first(7)])
    outbox.done([1, 2, 3])  # gone already
    outbox.set_aside({outbox.first(1)[0].seq: "no", 2: "gone already"})
    assert outbox.waiting() == 22
    assert right()
    put(other, range(30, 35))
    assert right()
    counts = [query for query in asked if "count(*)" in query]
    assert len(counts) >= 6
    assert [query for query in counts if "seq > 0" in query] == counts[:1], "all of them were counted once"
    while not put(outbox, range(100)):
        pass
    assert right()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"decision_id": "\ud800"}, "UnicodeEncodeError"),
        ({"state": SchedulingState(features={"\udfff": 1.0})}, "UnicodeEncodeError"),
        ({"parameters": {"target_workers": 1 << 64}}, "OverflowError"),
        ({"parameters": {"target_workers": object()}}, "TypeError"),
        ({"parameters": {"note": "x" * LARGEST}}, "at most"),
    ],
)
def test_what_cannot_be_written_down_says_why(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        written(msgspec.structs.replace(experience(1), **given), 0.0)


def test_what_is_set_aside_is_out_of_the_way(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", MB)
    put(outbox, range(3))
    outbox.set_aside({outbox.first(1)[0].seq: "the agent said no"})
    assert ids(outbox) == ["d1", "d2"]
    assert outbox.refused() == [("d0", "the agent said no")]


def test_a_damaged_record_holds_up_nobody(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", MB)
    put(outbox, range(3))
    outbox.close()
    with sqlite3.connect(tmp_path / "outbox" / "spool.sqlite") as connection:
        connection.execute("UPDATE records SET frame = x'00ff' WHERE id = 'd1'")
    connection.close()
    assert ids(outbox) == ["d0", "d2"]
    assert [one[0] for one in outbox.refused()] == ["d1"]


def test_a_damaged_file_is_set_aside_and_the_good_records_are_saved(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", MB)
    put(outbox, range(50))
    outbox.close()
    file = tmp_path / "outbox" / "spool.sqlite"
    raw = bytearray(file.read_bytes())
    raw[:1024] = b"\0" * 1024
    file.write_bytes(raw)
    fresh = Outbox(tmp_path / "outbox", MB)
    assert set(ids(fresh)) >= {f"d{n}" for n in range(1, 49)}
    assert list((tmp_path / "outbox").glob("*.corrupt"))


def test_a_disk_that_refuses_says_so_and_may_come_back(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file where the folder belongs")
    outbox = Outbox(tmp_path / "outbox", MB)
    with pytest.raises(SpoolError, match="outbox"):
        put(outbox, [1])
    assert not outbox.take_turn()
    (tmp_path / "outbox").unlink()
    put(outbox, [1])
    assert ids(outbox) == ["d1"]
    assert outbox.take_turn()


def test_one_process_has_the_turn_until_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nhm_sched_plugin.advice.remote.outbox import Outbox\n"
        "print(Outbox(Path(sys.argv[1]), 1 << 20).take_turn(), flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "outbox")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline().strip() == "True"
        mine = Outbox(tmp_path / "outbox", MB)
        assert not mine.take_turn()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        other.stdout.close()
    assert mine.take_turn()
    assert mine.take_turn()
    mine.close()


def test_a_forked_child_does_not_keep_its_parents_turn(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", MB)
    assert outbox.take_turn()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent has given it up
        os._exit(0 if outbox.take_turn() else 1)
    outbox.close()
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
