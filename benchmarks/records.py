"""What records cost and what they survive.

    python -m benchmarks.records [--parts call,through,memory,kills] [--calls 200000] [--through 200000]
                                 [--records 1000000] [--kills 5] [--folder DIR] [--json]

call     record() on the caller's thread beside a bare `queue.Queue.put` in the same loop, paced and flat out
through  records a second through queue, spool and the embedded engine, everything on one core
memory   a host that goes on recording while the store is away: the queue, the spool on disk, no drain
kills    `kill -9` of host, drainer and store at random moments, and what is lost, doubled or unreadable then

DIR needs about 1.2 KB for each of --records. The whole measurement, `--records 10000000 --kills 50`, takes the better
part of an hour on two busy cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import _kills
from benchmarks._records import memory_mb, record
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.recorder import Recorder
from nhm_sched_plugin.settings import RecordingSettings, load_settings
from nhm_sched_plugin.store.spool import Spool, SpoolSink

MB = 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="call,through,memory,kills")
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--through", type=int, default=200_000)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # one part, in a process of its own
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    results = {name: _apart(name) for name in options.parts.split(",")}
    print(json.dumps(results, indent=1) if options.json else "\n\n".join(map(_table, results.items())))


def _apart(part: str) -> Any:
    command = [sys.executable, "-m", "benchmarks.records", "--part", part, *sys.argv[1:]]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def call(options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        row
        for pace, name in ((5_000, "5,000 a second"), (None, "flat out"))
        for row in _calls(options.calls if pace is None else options.calls // 4, pace, name, options.folder)
    ]


def _calls(count: int, pace: int | None, name: str, parent: Path) -> list[dict[str, Any]]:
    records = [record(number) for number in range(10_000)]
    ours, bare = [0] * count, [0] * count
    plain: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_swallow, args=(plain,), daemon=True).start()
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        recorder = _recorder(Path(folder), RecordingSettings(queue_size=max(count * 2, 100_000)))
        clock, started = time.perf_counter_ns, time.perf_counter()
        for number in range(count):
            if pace is not None and number % 10 == 0:
                time.sleep(max(started + number / pace - time.perf_counter(), 0.0))
            one = records[number % len(records)]
            before = clock()
            recorder.record(one)
            between = clock()
            plain.put(one)
            ours[number], bare[number] = between - before, clock() - between
        assert recorder.flush(300)
        recorder.close(10)
    plain.put(None)
    rows = [
        {"load": name, "call": label, **_quantiles(values)}
        for label, values in (("record()", ours), ("queue.Queue.put()", bare))
    ]
    rows[0]["ratio of p99"] = round(rows[0]["p99 us"] / rows[1]["p99 us"], 2)
    rows[1]["ratio of p99"] = 1.0
    return rows


def _swallow(from_queue: queue.Queue[Any]) -> None:
    while from_queue.get() is not None:
        pass


def _quantiles(nanoseconds: list[int]) -> dict[str, Any]:
    values = sorted(nanoseconds)
    return {
        f"p{share * 100:g} us": round(values[min(int(len(values) * share), len(values) - 1)] / 1000, 2)
        for share in (0.5, 0.99, 0.999)
    }


def _recorder(folder: Path, settings: RecordingSettings) -> Recorder:
    metrics = Metrics()
    spool = Spool(folder / "spool", settings.spool_max_mb * MB)
    return Recorder([SpoolSink(spool)], settings, metrics, Faults(metrics))


def through(options: argparse.Namespace) -> list[dict[str, Any]]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before the engine starts its threads
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.store.drain import drain

    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        settings = load_settings({"data_dir": folder, "recording": {"queue_size": options.through + 100}})
        with open_store(settings) as store:
            _warmed(store)
            recorder = _recorder(Path(folder), settings.recording)
            records = [record(number) for number in range(options.through)]
            gc.collect()
            begun = _now()
            for one in records:
                recorder.record(one)
            assert recorder.flush(600)
            recorder.close(10)
            spooled = _now()
            result = drain(Spool(settings.spool_path), store)
            stored = _now()
            assert result.delivered == options.through, result
            for name, since, until in (
                ("queue and spool", begun, spooled),
                ("drain and store", spooled, stored),
                ("all of it", begun, stored),
            ):
                wall, cpu = (after - before for before, after in zip(since, until, strict=True))
                rows.append(
                    {
                        "step": name,
                        "records": options.through,
                        "a second of CPU": round(options.through / cpu),
                        "a second by the clock": round(options.through / wall),
                        "ratio to 20,000 (CPU)": round(options.through / cpu / 20_000, 2),
                    }
                )
    return rows


def _warmed(store: Any) -> None:
    store.insert_decisions([(record(10**9), 1.0)])
    store.insert_outcomes([(record(10**9 + 1), 1.0)])


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        recorder = _recorder(folder, RecordingSettings(spool_max_mb=1 + options.records * 1500 // MB))
        idle, _ = memory_mb()
        started, refused = time.monotonic(), 0
        for number in range(options.records):
            while not recorder.record(record(number)):  # faster than any host: wait for the writer, lose nothing
                refused += 1
                time.sleep(0.05)
            if number % 1000 == 0:
                time.sleep(0)
                while len(recorder._queue) > 20_000:
                    time.sleep(0.01)
        assert recorder.flush(600)
        seconds = time.monotonic() - started
        now, peak = memory_mb()
        recorder.close(10)
        spool = Spool(folder / "spool")
        row = {
            "records": options.records,
            "waiting in the spool": spool.pending(),
            "on disk MB": round(spool.size_bytes() / MB),
            "files": len(list((folder / "spool").glob("*.sqlite"))),
            "seconds": round(seconds),
            "idle MB": round(idle),
            "end MB": round(now),
            "peak MB": round(peak),
            "ratio of peak to 200 MB": round(peak / 200, 2),
            "offered again": refused,
        }
        spool.close()
        return [row]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kills(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        return [
            _kills.kill_hosts(Path(folder) / "batch", options.kills, sync=False).row(),
            _kills.kill_hosts(Path(folder) / "sync", options.kills, sync=True).row(),
            _kills.kill_drainers(Path(folder) / "drainer", options.kills).row(),
            _kills.kill_stores(Path(folder) / "store", options.kills).row(),
        ]


PARTS = {"call": call, "through": through, "memory": memory, "kills": kills}


def _table(named: tuple[str, list[dict[str, Any]]]) -> str:
    name, rows = named
    lines = [
        list(rows[0]),
        *([f"{v:,}" if isinstance(v, int | float) else str(v) for v in row.values()] for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return f"{name}\n{text}"


if __name__ == "__main__":
    main()
