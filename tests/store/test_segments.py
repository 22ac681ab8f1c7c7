"""The files of a spool: sealed when full, deleted when drained, each damaged on its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nhm_sched_plugin.errors import SpoolError, SpoolFullError
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import Decision, Outcome, RewardedOutcome

SMALL = 200_000
"""Bytes: about ten of the decisions below to a page, a dozen pages to a file."""


def decision(name: str) -> Decision:
    return Decision(decision_id=name, decided_at=1.5, justification="j" * 1000)


def outcome(name: str) -> RewardedOutcome:
    return RewardedOutcome(outcome=Outcome(decision_id=name), reward=0.25)


def small(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.file_bytes = SMALL
    return spool


def fill(spool: Spool, names: list[str], at_once: int = 20) -> None:
    for first in range(0, len(names), at_once):
        spool.append([decision(name) for name in names[first : first + at_once]])


def names(spool: Spool, *, ack: bool = False) -> list[str]:
    found = []
    for batch in spool.batches(37):
        found += [record.decision_id for record, _ in batch.decisions]
        if ack:
            spool.ack(batch)
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*.sqlite"))


def test_a_full_file_is_sealed_and_a_drained_one_deleted(tmp_path: Path) -> None:
    spool = small(tmp_path)
    wanted = [str(number) for number in range(1000)]
    fill(spool, wanted)
    assert len(segments(tmp_path)) >= 4
    assert all(path.stat().st_size < 3 * SMALL for path in segments(tmp_path))
    assert spool.pending() == 1000
    assert names(spool) == wanted
    assert names(spool) == wanted, "reading changes nothing"
    full = spool.size_bytes()
    seen = []
    for batch in spool.batches(37):
        seen += [record.decision_id for record, _ in batch.decisions]
        spool.ack(batch)
        if len(seen) > 500:
            break
    assert spool.size_bytes() < 0.7 * full, "the disk gets its space back on the way"
    assert seen + names(spool, ack=True) == wanted
    assert (segments(tmp_path), spool.pending(), list(tmp_path.glob("segment-*"))) == ([], 0, [])
    fill(spool, ["again"])
    assert names(spool) == ["again"]


def test_the_limit_counts_every_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1_000_000)
    spool.file_bytes = SMALL
    with pytest.raises(SpoolFullError, match=r"spool is full: .*recording.spool_max_mb"):
        fill(spool, [str(number) for number in range(5000)], at_once=1)
    accepted = spool.pending()
    assert 250 < accepted < 1000
    assert sum(path.stat().st_size for path in tmp_path.glob("*.sqlite")) <= 1_000_000
    assert len(names(spool, ack=True)) == accepted
    spool.append([decision("again")])


def test_the_last_room_is_for_outcomes(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1_000_000)
    with pytest.raises(SpoolFullError):
        fill(spool, [str(number) for number in range(5000)], at_once=1)
    spool.append([outcome(str(number)) for number in range(50)])
    with pytest.raises(SpoolFullError):
        spool.append([decision("x"), outcome("x")])
    with pytest.raises(SpoolFullError):
        spool.append([outcome(str(number)) for number in range(5000)])


def test_another_process_goes_on_in_the_new_file(tmp_path: Path) -> None:
    mine, other = small(tmp_path), small(tmp_path)
    other.append([decision("before")])
    fill(mine, [str(number) for number in range(500)])
    assert segments(tmp_path)
    other.append([decision("after")])
    mine.append([decision("last")])
    found = names(small(tmp_path))
    assert sorted(found) == sorted(["before", "after", "last", *(str(number) for number in range(500))])
    assert found[-2:] == ["after", "last"]
    other.close()
    mine.append([decision("later")])
    assert names(mine, ack=True)[-1] == "later"


def test_a_file_sealed_under_a_reader_shows_nothing_twice(tmp_path: Path) -> None:
    reader, writer = small(tmp_path), small(tmp_path)
    wanted = [str(number) for number in range(400)]
    fill(writer, wanted[:100])
    seen: list[str] = []
    for batch in reader.batches(10):
        seen += [record.decision_id for record, _ in batch.decisions]
        if len(seen) == 50:
            fill(writer, wanted[100:])
            assert segments(tmp_path)
    assert seen == wanted


def test_what_is_acknowledged_after_its_file_was_sealed_is_just_that(tmp_path: Path) -> None:
    spool = small(tmp_path)
    fill(spool, [f"old {number}" for number in range(40)])
    batch = next(iter(spool.batches(40)))
    fill(spool, [f"more {number}" for number in range(300)])
    assert len(segments(tmp_path)) > 1
    spool.ack(batch)
    assert names(spool) == [f"more {number}" for number in range(300)]
    assert names(spool, ack=True) == [f"more {number}" for number in range(300)]


def test_damage_stays_in_its_file_and_what_is_readable_of_it_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = small(tmp_path)
    wanted = [str(number) for number in range(1000)]
    fill(spool, wanted)
    spool.close()
    victim = segments(tmp_path)[1]
    blob = bytearray(victim.read_bytes())
    middle = len(blob) // 2
    blob[middle : middle + 40_000] = os.urandom(40_000)
    victim.write_bytes(blob)
    found = set(names(small(tmp_path)))
    assert len(found) > 900
    assert found <= set(wanted)
    assert not victim.exists()
    assert len(list(tmp_path.glob("spool-*.corrupt"))) == 1
    assert f"{victim} is damaged" in caplog.text
    assert "records were saved from" in caplog.text
    assert len(set(names(small(tmp_path), ack=True))) == len(found)
    assert not segments(tmp_path)


def test_a_file_with_something_in_quarantine_stays_until_that_is_tried_again(tmp_path: Path) -> None:
    spool = small(tmp_path)
    fill(spool, [str(number) for number in range(300)])
    first = next(iter(spool.batches(10)))
    spool.quarantine({first.first_seq: "not today", first.first_seq + 1: "nor this"}, first.place)
    spool.append(["rubbish"])  # type: ignore[list-item]
    assert len(names(spool, ack=True)) == 298
    assert [item.record_id for item in spool.quarantined()] == ["0", "1", ""]
    assert len(segments(tmp_path)) == 1
    assert spool.retry_quarantined({"1"}) == 1
    assert names(spool, ack=True) == ["1"]
    assert spool.retry_quarantined() == 1, "what is no record stays"
    assert names(spool, ack=True) == ["0"]
    assert (spool.quarantined_count(), segments(tmp_path)) == (1, [])


def test_a_file_that_cannot_be_sealed_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = small(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("nhm_sched_plugin.store.spool_file.move", broken)
    fill(spool, [str(number) for number in range(300)])
    monkeypatch.undo()
    fill(spool, ["more"])
    assert len(segments(tmp_path)) == 1
    assert names(spool)[-1] == "more"
    assert len(names(spool)) == 301


def test_stamps_never_go_back_with_the_clock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    spool = Spool(tmp_path, clock=lambda: now[0])
    for moment in (1000.0, 1010.0, 400.0, 405.0, 1020.0):
        now[0] = moment
        spool.append([decision(str(moment))])
    (batch,) = spool.batches(10)
    assert [created for _, created in batch.decisions] == [1000.0, 1010.0, 1010.0, 1010.0, 1020.0]
    assert [line.getMessage() for line in caplog.records if "went back" in line.getMessage()] == [
        "the clock went back by 610 s: records are stamped as before until it has caught up"
    ]


def test_one_drain_at_a_time(tmp_path: Path) -> None:
    mine, other = Spool(tmp_path), Spool(tmp_path)
    with mine.only_drain(), pytest.raises(SpoolError, match="another process delivers"), other.only_drain():
        pass
    with other.only_drain():
        pass


def test_a_child_forked_in_the_middle_does_not_hold_the_drain(tmp_path: Path) -> None:
    parent_says, child_says = os.pipe(), os.pipe()
    spool = Spool(tmp_path)
    with spool.only_drain():
        child = os.fork()
        if child == 0:
            os.write(child_says[1], b"1" if spool._files._drain_lock is None else b"0")
            os.read(parent_says[0], 1)  # stays alive for as long as the parent looks
            os._exit(0)
        assert os.read(child_says[0], 1) == b"1"
    with Spool(tmp_path).only_drain():
        pass
    os.write(parent_says[1], b"x")
    os.waitpid(child, 0)


WRITER = """
    import os, sys
    from pathlib import Path
    from nhm_sched_plugin.store.spool import Spool
    from nhm_sched_plugin.types import Decision

    spool = Spool(Path(sys.argv[1]))
    spool.file_bytes = 100_000
    for number in range(100_000):
        names = [f"{sys.argv[2]}-{number}-{n}" for n in range(10)]
        spool.append([Decision(decision_id=name, justification="j" * 1000) for name in names])
        os.write(1, ("".join(name + chr(10) for name in names)).encode())
"""


def test_writers_killed_while_they_seal_lose_nothing(tmp_path: Path) -> None:
    draw, safe = random.Random(3), set()
    for turn in range(4):
        with (tmp_path / f"out-{turn}").open("wb") as out:
            writers = [
                subprocess.Popen(
                    [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "spool"), f"{turn}{one}"], stdout=out
                )
                for one in "ab"
            ]
            try:
                until = time.monotonic() + 60
                while (tmp_path / f"out-{turn}").stat().st_size == 0:
                    assert time.monotonic() < until
                    time.sleep(0.01)
                time.sleep(draw.uniform(0.1, 0.4))
            finally:
                for writer in writers:
                    writer.kill()
                    writer.wait()
        whole = (tmp_path / f"out-{turn}").read_text().rpartition("\n")[0]
        safe |= set(whole.split())
    assert len(list((tmp_path / "spool").glob("segment-*.sqlite"))) > 1
    assert not list((tmp_path / "spool").glob("*.corrupt"))
    found = names(Spool(tmp_path / "spool"), ack=True)
    assert safe <= set(found)
    assert len(found) == len(set(found))
    assert not list((tmp_path / "spool").glob("segment-*"))


def test_what_another_process_puts_back_is_counted_and_delivered(tmp_path: Path) -> None:
    mine, other = small(tmp_path), small(tmp_path)
    fill(mine, [str(number) for number in range(300)])
    first = next(iter(mine.batches(10)))
    mine.quarantine({first.first_seq: "not today"}, first.place)
    assert len(names(mine, ack=True)) == 299
    assert (mine.pending(), mine.quarantined_count()) == (0, 1)
    assert other.retry_quarantined() == 1
    assert (mine.pending(), mine.quarantined_count()) == (1, 0)
    assert names(mine, ack=True) == ["0"]
    assert (mine.pending(), other.pending(), segments(tmp_path)) == (0, 0, [])
