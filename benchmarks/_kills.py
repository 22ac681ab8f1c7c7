"""`kill -9` at random moments, again and again, and a count of what it did to the records.

Three victims, each a process of its own: a host that records, a drainer that delivers to a server over HTTP, and that
server. What a host recorded and what its spool had taken is noted with one `write` a line, which survives the process.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._records import record
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.recorder import Recorder
from nhm_sched_plugin.settings import RecordingSettings, Settings, load_settings
from nhm_sched_plugin.store.spool import Spool, SpoolSink
from nhm_sched_plugin.types import Decision, RewardedOutcome

FRONT = Path(__file__).parents[1] / "tests" / "store" / "http_front.py"
PATIENCE_S = 300.0


class Survey(NamedTuple):
    """What `kills` kills came to."""

    victim: str
    kills: int
    records: int
    acknowledged_lost: int
    """Records that the spool (or, with `sync`, the caller) had been told to be safe."""
    lost_in_queue: int
    lost_after_window: int
    """Of those, recorded more than `recording.flush_ms` before the kill."""
    oldest_lost_ms: float
    """How long before the kill the oldest of those was recorded."""
    holes: int
    """Lost ones with a later one of the same process kept."""
    doubled: int
    unreadable: int

    def row(self) -> dict[str, Any]:
        ratio = (self.acknowledged_lost + self.doubled + self.unreadable) / max(self.records, 1)
        return {**self._asdict(), "oldest_lost_ms": round(self.oldest_lost_ms, 1), "ratio of all bad": ratio}


def kill_hosts(folder: Path, kills: int, *, sync: bool, seed: int = 1) -> Survey:
    """Kill hosts that record some thousands a second into one spool."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    recorded: dict[str, tuple[int, float]] = {}
    safe: set[str] = set()
    killed_at: list[float] = []
    for turn in range(kills):
        notes = folder / f"notes-{turn}"
        process = _start("_kills", "host", str(folder / "spool"), str(notes), str(turn), "sync" if sync else "batch")
        try:
            _wait(partial(_written, notes), process)
            time.sleep(draw.uniform(0.0, 0.4))
        finally:
            process.kill()
            process.wait()
        killed_at.append(time.monotonic())
        for line in notes.read_text().splitlines(keepends=True):
            what, name, *moment = line.split()
            if not line.endswith("\n"):
                continue
            if what == "recorded":
                recorded[name] = (turn, float(moment[0]))
            else:
                safe.add(name)
    kept, unreadable = _contents(folder / "spool")
    lost = [name for name in recorded if name not in kept]
    newest_kept: dict[int, float] = {}
    for name in kept:
        if name in recorded:
            turn, at = recorded[name]
            newest_kept[turn] = max(newest_kept.get(turn, 0.0), at)
    ages = [killed_at[turn] - at for turn, at in (recorded[name] for name in lost)]
    return Survey(
        victim=f"host, {'sync' if sync else 'batch'}",
        kills=kills,
        records=len(recorded),
        acknowledged_lost=len(safe - set(kept)),
        lost_in_queue=len(lost),
        lost_after_window=sum(age > RecordingSettings().flush_ms / 1000 for age in ages),
        oldest_lost_ms=max(ages, default=0.0) * 1000,
        holes=sum(recorded[name][1] < newest_kept.get(recorded[name][0], 0.0) for name in lost),
        doubled=sum(count - 1 for count in kept.values()),
        unreadable=unreadable,
    )


def _contents(path: Path) -> tuple[dict[str, int], int]:
    spool = Spool(path)
    kept: dict[str, int] = {}
    for batch in spool.batches(5000):
        for item in batch.records:
            name = _name(item.record)
            kept[name] = kept.get(name, 0) + 1
    unreadable = spool.quarantined_count() + len(spool.damaged_files())
    spool.close()
    return kept, unreadable


def _name(one: Decision | RewardedOutcome) -> str:
    return f"d{one.decision_id}" if isinstance(one, Decision) else f"o{one.outcome.decision_id}"


def host(path: str, notes_path: str, turn: str, durability: str) -> None:
    """The victim: records again and again, and notes what was recorded and what is safe."""
    notes = os.open(notes_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sync = durability == "sync"

    class Told(SpoolSink):
        def write(self, records: Any) -> None:
            super().write(records)
            os.write(notes, "".join(f"safe {_name(one)}\n" for one in records).encode())

    metrics = Metrics()
    recorder = Recorder([Told(Spool(Path(path)), sync=sync)], RecordingSettings(), metrics, Faults(metrics))
    recorder.open()  # as a host does when it starts
    for number in range(10_000_000):
        one = record(int(turn) * 10_000_000 + number)
        durable = threading.Event() if sync else None
        # Noted first: what is noted and then lost before it was even recorded can only make the count worse.
        os.write(notes, f"recorded {_name(one)} {time.monotonic()}\n".encode())
        recorder.record(one, durable)
        if durable is not None and durable.wait(60):
            os.write(notes, f"told {_name(one)}\n".encode())
        elif number % 5 == 0:
            time.sleep(0.001)


def kill_drainers(folder: Path, kills: int, *, seed: int = 2, each: int = 5_000) -> Survey:
    """Kill the process that delivers, until everything is delivered none the less."""
    return _delivered_through(folder, kills, "drainer", random.Random(seed), each)


def kill_stores(folder: Path, kills: int, *, seed: int = 3, each: int = 5_000) -> Survey:
    """Kill the database server under a drainer that goes on trying."""
    return _delivered_through(folder, kills, "store", random.Random(seed), each)


def _delivered_through(folder: Path, kills: int, victim: str, draw: random.Random, each: int) -> Survey:
    folder.mkdir(parents=True)
    server = Server(folder)
    settings = server.start()
    spool = Spool(settings.spool_path)
    given = 0
    drainer: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(kills):
            spool.append([record(number) for number in range(given, given + each)])
            given += each
            drainer = drainer or _drainer(folder, server.dsn)
            _wait(partial(_fewer, spool, spool.pending()), drainer)
            time.sleep(draw.uniform(0.0, 0.3))
            if victim == "store":
                server.kill()
                server.start()
            else:
                drainer.kill()
                drainer.wait()
                drainer = None
        drainer = drainer or _drainer(folder, server.dsn)
        _wait(lambda: spool.pending() == 0, drainer)
        drainer.terminate()
        assert drainer.wait(PATIENCE_S) == 0
        spool.close()
        return _survey(victim, kills, given, settings, spool)
    finally:
        if drainer is not None:
            drainer.kill()
            drainer.wait()
        server.kill()


def _fewer(spool: Spool, left: int) -> bool:
    return spool.pending() < left


def _written(notes: Path) -> bool:
    return notes.exists() and notes.stat().st_size > 0


def _survey(victim: str, kills: int, given: int, settings: Settings, spool: Spool) -> Survey:
    from nhm_sched_plugin.store.client import open_store

    with open_store(settings) as store:
        rows = store.rows(
            "SELECT count(), uniqExact(decision_id), countIf(reward IS NOT NULL) "  # noqa: S608 - made of constants
            f"FROM {store.database}.scheduling_decisions"
        )[0]
    seen, distinct, rewarded = (int(value) for value in rows)
    unreadable = spool.quarantined_count() + len(spool.damaged_files())
    return Survey(victim, kills, given, given - distinct - rewarded, 0, 0, 0.0, 0, seen - distinct, unreadable)


def _drainer(folder: Path, dsn: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "NHM_SCHED_DATA_DIR": str(folder), "NHM_SCHED_ML__CLICKHOUSE__DSN": dsn}
    # Small batches, so that there is something to be killed in.
    options = ("--follow", "--batch", "1000", "--max-age", "0.2")
    command = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()", "drain", *options]
    log = open(folder / "drainer.log", "ab")  # noqa: SIM115 - the process writes to it
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


class Server:
    """The embedded engine behind ClickHouse's HTTP interface, in a process that can be killed; always on one port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        return f"clickhouse://default@127.0.0.1:{self.port}/records"

    def start(self) -> Settings:
        port_file = self.folder / "port"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, str(FRONT), str(self.folder / "db"), str(port_file), str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # it complains of clients that vanish
        _wait(port_file.exists, self.process)
        self.port = int(port_file.read_text())
        return load_settings({"data_dir": str(self.folder), "ml": {"clickhouse": {"dsn": self.dsn}}})

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def _start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", f"benchmarks.{module}", *arguments])


def _wait(done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not done():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        if time.monotonic() > until:
            raise RuntimeError(f"waited {PATIENCE_S:g} s in vain for {process.args}")
        time.sleep(0.01)


if __name__ == "__main__":
    assert sys.argv[1] == "host"
    host(*sys.argv[2:])
