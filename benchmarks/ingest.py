"""Ingest of a large CSV beside the bare engine's `INSERT ... FROM INFILE` of the same file into the same table.

    python -m benchmarks.ingest [--rows 10000000] [--days 500] [--dirty 0.01] [--file FILE] [--json]

Each way runs in a process of its own on a fresh embedded database, and so does an engine that only opens it: its memory
is the floor. Memory is the peak as the system counts it: `private` (what the process has allocated) and `resident`,
which also counts the engine's program file as far as it is mapped (some 350 MB). Processor seconds say more than rows a
second where other programs run beside it. The figures of the ingest include its digest, its ledger and its search for
duplicates, which the bare engine does not have.

What a container counts is neither: mapped program files are given back when room is short. With a kept `--file`, one
way runs alone under a limit as

    systemd-run --scope -p MemoryMax=500M python -m benchmarks.ingest --file FILE --way ingest
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store.client import open_store
from nhm_sched_plugin.store.ingest import ingest

MUST_MB: Final = 500
AIM: Final = 0.7
COLUMNS: Final = (
    "timestamp,ticket_id,task_type,risk_band,actual_duration_ms,status,worker_id,resource_cpu,resource_memory,"
    "sla_met,queue_depth_at_start"
)
_BLOCK: Final = 500_000


def write(path: Path, rows: int, days: int, dirty: float) -> None:
    """So many tickets over so many days until today; the share `dirty` of the rows cannot be used."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    draw = np.random.default_rng(1)
    start = int(time.time()) - days * 86_400
    words = {
        "task_type": ["processing", "validation", "enrichment", "export", "report"],
        "risk_band": ["low", "medium", "high"],
        "status": ["success"] * 49 + ["failed"],
    }
    with path.open("wb") as file:
        file.write(COLUMNS.encode() + b"\n")
        for first in range(0, rows, _BLOCK):
            number = np.arange(first, min(first + _BLOCK, rows))
            size = len(number)
            stamps = pa.array((start + number * (days * 86_400) // rows).astype("datetime64[s]")).cast(pa.string())
            if dirty:
                bad = pa.array(draw.random(size) < dirty)
                stamps = pa.compute.if_else(bad, pa.scalar("yesterday"), stamps)
            picked = {name: np.array(some)[draw.integers(0, len(some), size)] for name, some in words.items()}
            table = pa.table({
                "timestamp": stamps,
                "ticket_id": np.char.add("T-", number.astype(str)),
                "task_type": picked["task_type"],
                "risk_band": picked["risk_band"],
                "actual_duration_ms": draw.integers(1000, 600_000, size),
                "status": picked["status"],
                "worker_id": np.char.add("worker-", draw.integers(0, 200, size).astype(str)),
                "resource_cpu": np.round(draw.random(size) * 4, 3),
                "resource_memory": np.round(draw.random(size) * 8, 3),
                "sla_met": draw.integers(0, 2, size),
                "queue_depth_at_start": draw.integers(0, 200, size),
            })  # fmt: skip
            csv.write_csv(table, file, csv.WriteOptions(include_header=False, quoting_style="none"))


class _Memory(threading.Thread):
    """Peaks in MB, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.private = self.resident = 0
        self.start()

    def run(self) -> None:
        while True:
            found = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            self.private = max(self.private, int(found["RssAnon"].split()[0]) // 1024)
            self.resident = max(self.resident, int(found["VmRSS"].split()[0]) // 1024)
            time.sleep(0.02)


def work(way: str, path: Path) -> dict[str, Any]:
    """One way, in this process."""
    with tempfile.TemporaryDirectory(prefix="nhm-bench-") as folder:
        settings = load_settings({"data_dir": folder, "metrics": {"enabled": False}})
        with open_store(settings) as store:
            memory = _Memory()
            wall, busy = time.perf_counter(), time.process_time()
            if way == "ingest":
                ingest(path, store, rejects=Path(folder) / "rejects.csv")
            elif way == "bare":
                store.command("SET max_partitions_per_insert_block = 0")
                store.command(
                    f"INSERT INTO {store.database}.execution_logs ({COLUMNS}) FROM INFILE '{path}' FORMAT CSVWithNames",
                    wait=False,
                )
            wall, busy = time.perf_counter() - wall, time.process_time() - busy
            time.sleep(0.1)
            rows = store.counts()["execution_logs"]
            return {
                "way": way,
                "rows": rows,
                "seconds": wall,
                "cpu_seconds": busy,
                "rows_per_s": rows / wall,
                "rows_per_cpu_s": rows / busy,
                "private_mb": memory.private,
                "resident_mb": memory.resident,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--days", type=int, default=500)
    parser.add_argument("--dirty", type=float, default=0.0, help="share of rows that cannot be used (no bare figure)")
    parser.add_argument("--file", type=Path, help="keep the CSV here, or take the one that is there")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--way", choices=("open", "bare", "ingest"), help="only this one, of a --file that is there; JSON"
    )
    given = parser.parse_args()
    if given.way:
        if given.file is None:
            parser.error("--way needs --file, the CSV of an earlier run")
        print(json.dumps(work(given.way, given.file)))
        return
    with tempfile.TemporaryDirectory(prefix="nhm-bench-") as folder:
        path = given.file or Path(folder) / "tickets.csv"
        if not path.exists():
            write(path, given.rows, given.days, given.dirty)
        results = []
        for way in ("open", "ingest") if given.dirty else ("open", "bare", "ingest"):
            command = [sys.executable, "-m", "benchmarks.ingest", "--way", way, "--file", str(path)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout))
    if given.json:
        print(json.dumps(results))
        return
    heads = (("", 8), ("rows", 12), ("seconds", 9), ("cpu s", 8), ("rows/s", 11), ("rows/cpu s", 12))
    print("".join(f"{head:>{wide}}" for head, wide in (*heads, ("private MB", 12), ("resident MB", 13))))
    for one in results:
        print(
            f"{one['way']:8}{one['rows']:12,}{one['seconds']:9.1f}{one['cpu_seconds']:8.1f}{one['rows_per_s']:11,.0f}"
            f"{one['rows_per_cpu_s']:12,.0f}{one['private_mb']:12,}{one['resident_mb']:13,}"
        )
    if not given.dirty:
        bare, ours = results[1], results[2]
        print(
            f"ingest / bare: {ours['rows_per_s'] / bare['rows_per_s']:.0%} by the clock, "
            f"{ours['rows_per_cpu_s'] / bare['rows_per_cpu_s']:.0%} by processor time (aim {AIM:.0%}); "
            f"private memory {ours['private_mb']} MB (must <= {MUST_MB})"
        )


if __name__ == "__main__":
    main()
