from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nhm_sched_plugin.errors import SpoolError
from nhm_sched_plugin.store.frames import decode, encode, scan
from nhm_sched_plugin.store.spool import Spool, SpoolSink
from nhm_sched_plugin.types import (
    Action,
    Decision,
    Forecast,
    ForecastPoint,
    Outcome,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
    Veto,
)


def decision(name: str, **changes: object) -> Decision:
    fields: dict[str, object] = {"decision_id": name, "action": Action.PREEMPTIVE_SCALING, "decided_at": 1.5}
    return Decision(**{**fields, **changes})  # type: ignore[arg-type]


def outcome(name: str, reward: float | None = 0.25) -> RewardedOutcome:
    return RewardedOutcome(outcome=Outcome(decision_id=name, ticket_id="t"), reward=reward, applied=True)


def ids(spool: Spool) -> list[str]:
    return [
        item.record.decision_id if isinstance(item.record, Decision) else item.record.outcome.decision_id
        for batch in spool.batches(1000)
        for item in batch.records
    ]


def full_decision() -> Decision:
    import datetime as dt

    now = dt.datetime(2013, 12, 20, 7, tzinfo=dt.UTC)
    points = tuple(ForecastPoint(now + dt.timedelta(hours=h), 10.0 + h, {0.025: 1.0, 0.5: 10.0}) for h in range(24))
    return decision(
        "full",
        parameters={"target_workers": 12, "note": "é", "share": 0.5},
        recommendation=Recommendation(action=Action.INCREASE_WORKER_POOL, confidence=0.9),
        forecast=Forecast(horizon_minutes=1440, predicted_volume=3.0, confidence=0.5, points=points, generated_at=now),
        state=SchedulingState(queue_depth=1.0, features={"holiday": 1.0}),
        vetoes=(Veto(guard="quota", reason="spent"),),
    )


def test_what_goes_in_comes_out_in_order_and_only_once_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", clock=lambda: 99.0)
    written = [full_decision(), outcome("full"), decision("b")]
    spool.append(written)
    (batch,) = spool.batches(10)
    assert [item.record for item in batch.records] == written
    assert {item.created for item in batch.records} == {99.0}
    assert [record.decision_id for record, _ in batch.decisions] == ["full", "b"]
    assert [record.outcome.decision_id for record, _ in batch.outcomes] == ["full"]
    assert (spool.pending(), spool.oldest()) == (3, 99.0)
    spool.ack(batch)
    assert (spool.pending(), spool.oldest(), list(spool.batches(10))) == (0, None, [])


def test_reads_in_batches_while_hosts_keep_appending(tmp_path: Path) -> None:
    reader, writer = Spool(tmp_path), Spool(tmp_path)
    writer.append([decision(str(n)) for n in range(5)])
    seen = []
    for batch in reader.batches(2):
        seen += [record.decision_id for record, _ in batch.decisions]
        reader.ack(batch)
        if len(seen) == 2:
            writer.append([decision("late")])
    assert seen == ["0", "1", "2", "3", "4", "late"]
    with pytest.raises(ValueError, match="batch size 0"):
        next(reader.batches(0))


@pytest.mark.parametrize("sync", [False, True])
def test_sync_decides_whether_the_commit_waits_for_the_disk(tmp_path: Path, sync: bool) -> None:
    spool = Spool(tmp_path)
    SpoolSink(spool, sync=sync).write([decision("a")])
    connection = spool._files.active._connection
    assert connection is not None
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == (2 if sync else 1)


def test_the_frame_keeps_not_a_number_and_skips_unknown_fields() -> None:
    class Newer(Decision, frozen=True, kw_only=True):
        invented: str = "later"

    record, created = decode(encode(Newer(decision_id="n", confidence=float("nan"), invented="x"), 5.0))
    assert isinstance(record, Decision)
    assert record.decision_id == "n"
    assert record.confidence is not None
    assert record.confidence != record.confidence
    assert created == 5.0


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_passes_as_a_record(at: int, change: int) -> None:
    frame = bytearray(encode(decision("x" * 40), 7.0))
    frame[at % len(frame)] ^= change
    with pytest.raises(ValueError, match=r".+"):
        decode(bytes(frame))


def test_the_scan_finds_every_whole_frame_in_rubble() -> None:
    frames = [encode(decision(str(n)), 1.0) for n in range(3)]
    rubble = b"NHM\x01NHM" + frames[0] + os.urandom(50) + frames[1][:-1] + frames[2] + b"NHM\x01"
    assert list(scan(rubble)) == [frames[0], frames[2]]


def test_a_full_spool_says_so_and_accepts_again_after_a_drain(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=400_000)
    accepted = 0

    def fill() -> None:
        nonlocal accepted
        for number in range(10_000):
            spool.append([decision(str(number), justification="j" * 2000)])
            accepted += 1

    with pytest.raises(
        SpoolError, match=r"spool is full: 0\.4 MB of recording.spool_max_mb 0\.4 .*run `nhm-sched drain`"
    ):
        fill()
    assert accepted > 50
    assert len(ids(spool)) == accepted, "a refused append must leave nothing behind"
    assert sum(path.stat().st_size for path in tmp_path.glob("spool.sqlite")) <= 400_000
    for batch in spool.batches(100):
        spool.ack(batch)
    assert spool.size_bytes() < 100_000
    spool.append([decision("again")])
    assert ids(spool) == ["again"]


def test_a_record_that_cannot_be_written_down_holds_up_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([decision("good"), decision("bad", parameters={"x": object()}), decision("bad\ud800"), "rubbish"])  # type: ignore[list-item]
    assert ids(spool) == ["good"]
    assert spool.refused == 3
    reasons = [item.reason for item in spool.quarantined()]
    assert "type object is unsupported" in reasons[0]
    assert "is no record" in reasons[2]


def test_a_row_with_a_wrong_checksum_goes_to_quarantine(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([decision("a"), decision("b"), decision("c")])
    spool.close()
    connection = sqlite3.connect(tmp_path / "spool.sqlite")
    frame = bytearray(connection.execute("SELECT frame FROM records WHERE id = 'b'").fetchone()[0])
    frame[-1] ^= 0xFF
    connection.execute("UPDATE records SET frame = ? WHERE id = 'b'", (bytes(frame),))
    connection.commit()
    connection.close()
    assert ids(spool) == ["a", "c"]
    (bad,) = spool.quarantined()
    assert (bad.kind, bad.record_id, bad.reason) == ("decision", "b", "the checksum does not match")
    assert bad.frame == bytes(frame)


def filled(folder: Path, count: int = 600) -> tuple[Path, set[str]]:
    spool = Spool(folder)
    spool.append([decision(f"d{n}", justification="w" * 300) for n in range(count)])
    spool.close()
    return folder / "spool.sqlite", {f"d{n}" for n in range(count)}


def test_garbage_in_place_of_the_file_is_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "spool.sqlite").write_bytes(b"this is no database at all " * 1000)
    spool = Spool(tmp_path)
    spool.append([decision("new")])
    assert ids(spool) == ["new"]
    assert (spool.set_aside, spool.salvaged) == (1, 0)
    (aside,) = spool.damaged_files()
    assert aside.name.startswith("spool-20")
    assert aside.read_bytes().startswith(b"this is no database")
    assert sum("is damaged" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("damage", ["header", "middle", "truncated", "root page"])
def test_what_is_readable_in_a_damaged_file_is_saved(tmp_path: Path, damage: str) -> None:
    file, written = filled(tmp_path)
    size = file.stat().st_size
    assert size > 8 * 16_384
    with file.open("r+b") as handle:
        if damage == "header":
            handle.write(os.urandom(100))
        elif damage == "middle":
            handle.seek(5 * 16_384)
            handle.write(os.urandom(16_384))
        elif damage == "truncated":
            handle.truncate(size - 3 * 16_384)
        else:
            handle.seek(2 * 16_384)
            handle.write(bytes(3 * 16_384))
    spool = Spool(tmp_path)
    spool.append([decision("new")])
    found = ids(spool)
    assert spool.set_aside == 1
    assert len(found) == len(set(found)), "nothing twice"
    assert "new" in found
    lost = written - set(found)
    allowed = {"header": 0, "middle": 45, "truncated": 135, "root page": 135}[damage]  # ~40 records in a page
    assert len(lost) <= allowed
    assert spool.salvaged == len(found) - 1
    assert [path.suffix for path in spool.damaged_files()] == [".corrupt"]


def test_damage_that_appears_while_the_file_is_open(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([decision("before")])
    assert ids(spool) == ["before"]
    with (tmp_path / "spool.sqlite").open("r+b") as handle:
        handle.write(os.urandom(16_384))
    with (tmp_path / "spool.sqlite-wal").open("r+b") as handle:
        handle.truncate(0)
    spool.append([decision("after")])
    spool.close()
    assert "after" in ids(spool)


def test_two_processes_share_a_file_when_one_sets_it_aside(tmp_path: Path) -> None:
    mine, other = Spool(tmp_path), Spool(tmp_path)
    mine.append([decision("mine")])
    other.append([decision("other")])
    other._files.active._replace_damaged("for the test")
    assert sorted(ids(other)) == ["mine", "other"]
    mine.append([decision("later")])
    assert sorted(ids(mine)) == ["later", "mine", "other"], "must have followed to the new file"


def test_an_interrupted_salvage_is_finished_later(tmp_path: Path) -> None:
    file, written = filled(tmp_path, 10)
    os.replace(file, tmp_path / "spool-20261123T000000Z.unsalvaged")
    spool = Spool(tmp_path)
    assert set(ids(spool)) == written
    assert spool.salvaged == 10
    assert [path.name for path in spool.damaged_files()] == ["spool-20261123T000000Z.corrupt"]


def test_a_removed_file_is_made_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([decision("gone")])
    for path in tmp_path.glob("spool.sqlite*"):
        path.unlink()
    spool.append([decision("new")])
    assert ids(spool) == ["new"]


def test_a_place_that_cannot_be_written_is_an_error_until_it_can(tmp_path: Path) -> None:
    place = tmp_path / "spool"
    place.write_text("a file where the folder should be")
    spool = Spool(place)
    with pytest.raises(SpoolError, match="cannot be used"):
        spool.append([decision("a")])
    place.unlink()
    spool.append([decision("a")])
    assert ids(spool) == ["a"]


def run_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    prelude = "from nhm_sched_plugin.store.spool import Spool\nfrom nhm_sched_plugin.errors import SpoolError\n"
    prelude += "from nhm_sched_plugin.types import Decision\nimport os, sys, resource, pathlib\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_full_disk_is_an_error_and_nothing_is_lost_when_there_is_room_again(tmp_path: Path) -> None:
    # The limit on a file's size makes the operating system refuse the write, as a full disk would.
    done = run_child(
        """
        spool = Spool(pathlib.Path(sys.argv[1]))
        spool.append([Decision(decision_id="first")])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        good = 1
        try:
            for number in range(1000):
                spool.append([Decision(decision_id=str(number), justification="x" * 5000)])
                good += 1
        except SpoolError as error:
            print("refused:", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        spool.append([Decision(decision_id="last")])
        names = [d.decision_id for batch in spool.batches(100) for d, _ in batch.decisions]
        assert len(names) == len(set(names)) == good + 1, (len(names), good)
        assert spool.set_aside == 0
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "refused: spool" in done.stdout


def test_a_read_only_folder_is_an_error_until_it_is_writable_again(tmp_path: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        if folder != Path("/tmp"):
            folder.chmod(0o755)
    done = run_child(
        """
        place = pathlib.Path(sys.argv[1]) / "spool"
        spool = Spool(place)
        import stat, encodings.idna
        place.mkdir()
        place.chmod(0o555)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            spool.append([Decision(decision_id="a")])
        except SpoolError as error:
            print("refused:", error)
        if os.getuid() == 0:
            os.seteuid(0)
        place.chmod(0o755)
        spool.append([Decision(decision_id="b")])
        assert [d.decision_id for batch in spool.batches(9) for d, _ in batch.decisions] == ["b"]
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "refused: spool" in done.stdout


_WRITER = """
import pathlib, sys
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import Decision
spool = Spool(pathlib.Path(sys.argv[1]))
number = 0
while True:
    spool.append([Decision(decision_id=f"{sys.argv[2]}-{number}-{k}") for k in range(3)])
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
    number += 1
"""


def test_killed_writers_lose_nothing_acknowledged_and_double_nothing(tmp_path: Path) -> None:
    acknowledged: set[str] = set()
    for turn in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _WRITER, str(tmp_path), f"w{turn}{n}"], stdout=subprocess.PIPE, text=True
            )
            for n in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(0.15 + 0.07 * turn)
        for n, writer in enumerate(writers):
            writer.send_signal(signal.SIGKILL)
            output, _ = writer.communicate()
            # A last line without its end was cut off by the kill: the append before it had returned all the same.
            lines = [line for line in output.split("\n")[:-1] if line]
            acknowledged |= {f"w{turn}{n}-{line}-{k}" for line in ["0", *lines] for k in range(3)}
    spool = Spool(tmp_path)
    found = ids(spool)
    assert len(acknowledged) > 30
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))
    assert spool.set_aside == 0
    assert not spool.quarantined()


# In processes of their own: this one may have the embedded database loaded, and must then not fork.


def test_threads_and_forked_children_append_side_by_side(tmp_path: Path) -> None:
    done = run_child(
        """
        import multiprocessing, threading
        spool = Spool(pathlib.Path(sys.argv[1]))
        spool.append([Decision(decision_id="parent-before")])

        def write(name, count):
            for k in range(count):
                spool.append([Decision(decision_id=f"{name}-{k}")])

        workers = [threading.Thread(target=write, args=(f"thread{n}", 40)) for n in range(2)]
        for worker in workers:
            worker.start()
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=write, args=(f"child{n}", 20)) for n in range(3)]
        for process in children:
            process.start()
        for worker in workers:
            worker.join()
        for process in children:
            process.join(30)
        assert [process.exitcode for process in children] == [0, 0, 0]
        spool.append([Decision(decision_id="parent-after")])
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    expected = {f"child{n}-{k}" for n in range(3) for k in range(20)}
    expected |= {f"thread{n}-{k}" for n in range(2) for k in range(40)} | {"parent-before", "parent-after"}
    found = ids(Spool(tmp_path))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_child_starts_with_the_file_closed(tmp_path: Path) -> None:
    done = run_child(
        """
        spool = Spool(pathlib.Path(sys.argv[1]))
        spool.append([Decision(decision_id="a")])
        pid = os.fork()
        if pid == 0:
            os._exit(0 if spool._files.active._connection is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        spool.append([Decision(decision_id="b")])
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert ids(Spool(tmp_path)) == ["a", "b"]


def test_a_writer_that_holds_the_file_too_long_is_an_error_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.spool_file._BUSY_S", 0.2)
    spool = Spool(tmp_path)
    spool.append([decision("a")])
    other = sqlite3.connect(tmp_path / "spool.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpoolError, match="locked"):
        spool.append([decision("b")])
    other.execute("ROLLBACK")
    other.close()
    spool.append([decision("c")])
    assert ids(spool) == ["a", "c"]


def test_the_host_side_stays_light() -> None:
    code = """
    heavy = {"pandas", "numpy", "chdb", "clickhouse_connect", "pyarrow"} & set(sys.modules)
    import nhm_sched_plugin.store
    assert not heavy, heavy
    """
    assert run_child(code).returncode == 0


def test_outcome_round_trip_keeps_types() -> None:
    record, _ = decode(encode(outcome("o", None), 1.0))
    assert record == outcome("o", None)
    assert isinstance(msgspec.structs.asdict(record), dict)
