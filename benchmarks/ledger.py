"""How many outcomes a second an agent's learner takes, beside a bare insert into SQLite in the same run.

    python -m benchmarks.ledger [--seconds 3] [--rounds 3] [--json]

Both wait for the disk at each batch (WAL, `synchronous=FULL`), in alternating blocks in the same folder, so that a busy
disk slows both alike; read the ratios. The learner also looks the ids up, updates the Q-table and, beside that, saves
it as an agent does. `--no-sync` leaves the disk out and shows what the rest costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from nhm_sched_plugin.agent.learner import Learner
from nhm_sched_plugin.agent.ledger_file import LedgerFile
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.types import Action, Experience, Recommendation, SchedulingState

BATCHES = (1, 64)
FOLLOW_S = 0.5
Batch = list[Experience]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-sync", action="store_true", help="do not wait for the disk")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.no_sync:
        LedgerFile.synchronous = lambda self, connection, sync: None  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.seconds, arguments.rounds, sync=not arguments.no_sync)
    print(json.dumps(rows, indent=2) if arguments.json else table(rows))


def measure(folder: Path, seconds: float, rounds: int, *, sync: bool) -> list[dict[str, float]]:
    """Outcomes a second by batch size."""
    settings = load_settings({"data_dir": str(folder)})
    keep = Recommendation(action=Action.NO_ACTION)
    learner = Learner(settings, QPolicy(settings, lambda *_: keep), Faults(Metrics()))
    done = threading.Event()

    def follow() -> None:
        while not done.wait(FOLLOW_S):
            learner.follow()

    following = threading.Thread(target=follow)
    following.start()
    bare, new = Bare(folder / "bare.sqlite", sync=sync), outcomes()
    rows = []
    for size in BATCHES:
        counts, spent = [0, 0], [0.0, 0.0]
        for _ in range(rounds):
            for which, take in enumerate((learner.record, bare.insert)):
                count, time_s = taken(take, new, size, seconds)
                counts[which] += count
                spent[which] += time_s
        ours, theirs = counts[0] / spent[0], counts[1] / spent[1]
        rows.append({"batch": size, "outcomes_per_s": ours, "bare_inserts_per_s": theirs, "ratio": ours / theirs})
    done.set()
    following.join()
    learner.close()
    return rows


def taken(take: Callable[[Batch], object], new: Iterator[Experience], size: int, seconds: float) -> tuple[int, float]:
    """How many were taken in how many seconds; making them does not count."""
    count, spent = 0, 0.0
    while spent < seconds:
        batch = list(itertools.islice(new, size))
        began = time.perf_counter()
        take(batch)
        spent += time.perf_counter() - began
        count += size
    return count, spent


class Bare:
    """One table, one transaction a batch."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
        self._connection.execute("CREATE TABLE outcomes (id TEXT PRIMARY KEY, body BLOB)")

    def insert(self, batch: Batch) -> None:
        rows = [(each.decision_id, msgspec.msgpack.encode(each)) for each in batch]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO outcomes VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")


def outcomes() -> Iterator[Experience]:
    """Of pools of all sizes and in every state; ids like those of a host."""
    draw, actions = random.Random(1), tuple(Action)
    for number in itertools.count():
        workers = draw.randrange(2, 200)

        def state(workers: int = workers) -> SchedulingState:
            return SchedulingState(
                queue_depth=draw.randrange(2 * workers),
                active_workers=workers,
                avg_task_duration_ms=draw.uniform(1e4, 1e6),
                sla_compliance_rate=draw.uniform(0.8, 1.0),
                predicted_load_1h=draw.uniform(1, 2e4),
                predicted_load_6h=draw.uniform(1, 2e4),
                resource_cpu_avg=draw.random(),
            )

        yield Experience(
            decision_id=f"7f3a90c2d1e4b586-{number:x}",
            state=state(),
            action=draw.choice(actions),
            reward=draw.uniform(-1, 1),
            next_state=state(),
            parameters={"target_workers": workers + draw.randrange(-5, 6), "planned_workers": workers},
        )


def table(rows: list[dict[str, float]]) -> str:
    lines = [f"{'batch':>6} {'outcomes/s':>12} {'bare inserts/s':>15} {'ratio':>6}"]
    lines += [
        f"{row['batch']:>6} {row['outcomes_per_s']:>12,.0f} {row['bare_inserts_per_s']:>15,.0f} {row['ratio']:>6.2f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
