# ruff: noqa: S608 - statements of our own
"""Which partitions and codecs `execution_logs` should have: the same rows stored in several ways.

    python -m benchmarks.layout [--rows 5000000] [--json]

For every layout: bytes on disk, rows a second in (540 days in the order of time, as `ingest` writes them), the
specification's bottleneck query over seven days, counts by hour over everything, and what it costs the engine to
delete the oldest day when it is past its age (a merge of every part that holds a row of it).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.views import ROWS_SQL

COLUMNS: Final = """timestamp DateTime{time}, ticket_id String{text}, task_type String{slice}, risk_band String{slice},
actual_duration_ms UInt32{number}, status String{slice}, worker_id String{text}, resource_cpu Float32{number},
resource_memory Float32{number}, sla_met Nullable(UInt8), queue_depth_at_start Nullable(Float32){number},
decision_id String DEFAULT ''{text}, ingest_id LowCardinality(String) DEFAULT '', kept UInt8 DEFAULT 0"""
PLAIN: Final = {"time": "", "text": "", "slice": "", "number": ""}
PACKED: Final = {
    "time": " CODEC(DoubleDelta, ZSTD(1))",
    "text": " CODEC(ZSTD(1))",
    "slice": " CODEC(ZSTD(1))",
    "number": " CODEC(ZSTD(1))",
}
LAYOUTS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "as printed": ("", PLAIN),
    "by quarter": ("PARTITION BY toStartOfQuarter(timestamp)", PLAIN),
    "by month": ("PARTITION BY toYYYYMM(timestamp)", PLAIN),
    "by week": ("PARTITION BY toMonday(timestamp)", PLAIN),
    "by month, ZSTD texts": ("PARTITION BY toYYYYMM(timestamp)", {**PLAIN, "text": PACKED["text"]}),
    "by month, ZSTD all": ("PARTITION BY toYYYYMM(timestamp)", PACKED),
}
BLOCKS: Final = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments.rows)
    print(json.dumps(results, indent=2) if arguments.json else table(results))


def measure(folder: Path, rows: int) -> list[dict[str, Any]]:
    """One row for each layout; times in seconds, the best of three for queries."""
    import chdb

    engine = chdb.connect(str(folder))

    def ask(sql: str) -> str:
        return str(engine.query(sql, "TSV"))

    def timed(sql: str) -> float:
        started = time.perf_counter()
        ask(sql)
        return time.perf_counter() - started

    results = []
    for name, (partition, codecs) in LAYOUTS.items():
        ask(
            f"CREATE TABLE logs ({COLUMNS.format(**codecs)}) ENGINE = MergeTree {partition} "
            "ORDER BY (timestamp, task_type, risk_band) SETTINGS merge_with_ttl_timeout = 1000000"
        )
        inserting = 0.0
        for block in range(BLOCKS):
            inserting += timed(
                "INSERT INTO logs (timestamp, ticket_id, task_type, risk_band, actual_duration_ms, status, worker_id, "
                "resource_cpu, resource_memory, sla_met, queue_depth_at_start) "
                + ROWS_SQL.format(rows=rows, first=block * rows // BLOCKS, count=rows // BLOCKS)
            )
        ask("OPTIMIZE TABLE logs FINAL")
        size = int(ask("SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'logs'"))
        week = min(timed(WEEK) for _ in range(3))
        hours = min(timed(HOURS) for _ in range(3))
        ask(
            "ALTER TABLE logs MODIFY TTL timestamp + toIntervalSecond(dateDiff('second', "
            f"toDateTime('{ask('SELECT min(timestamp) + INTERVAL 1 DAY FROM logs').strip()}'), now())) "
            "DELETE WHERE kept = 0 SETTINGS materialize_ttl_after_modify = 0"
        )
        oldest = ask("SELECT partition_id FROM system.parts WHERE active AND table = 'logs' ORDER BY min_time LIMIT 1")
        expiring = timed(f"OPTIMIZE TABLE logs PARTITION ID '{oldest.strip()}' FINAL")
        left = int(ask("SELECT count() FROM logs"))
        assert left < rows, "nothing was deleted"
        results.append(
            {
                "layout": name,
                "MB": round(size / 1e6, 1),
                "rows/s in": round(rows / inserting),
                "week, s": round(week, 3),
                "by hour, s": round(hours, 3),
                "oldest day goes, s": round(expiring, 2),
            }
        )
        ask("DROP TABLE logs SYNC")
    return results


WEEK: Final = (
    "SELECT toStartOfHour(timestamp) AS hour, count() AS ticket_volume, avg(queue_depth_at_start) AS avg_queue_depth, "
    "countIf(sla_met = 0) / count() AS sla_miss_rate FROM logs WHERE timestamp >= now() - INTERVAL 7 DAY "
    "GROUP BY hour HAVING avg_queue_depth > 100 ORDER BY sla_miss_rate DESC LIMIT 10"
)
HOURS: Final = "SELECT toStartOfHour(timestamp) AS hour, task_type, count(), avg(sla_met) FROM logs GROUP BY ALL"


def table(results: list[dict[str, Any]]) -> str:
    """As in the documentation."""
    names = list(results[0])
    lines = ["| " + " | ".join(names) + " |", "| --- " + "| ---: " * (len(names) - 1) + "|"]
    lines += ["| " + " | ".join(f"{value:,}" if value != row["layout"] else value for value in row.values()) + " |"
              for row in results]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
