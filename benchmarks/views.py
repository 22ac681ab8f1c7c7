# ruff: noqa: S608 - statements of our own
"""How long the views take on many tickets, each asked as its users ask it.

    python -m benchmarks.views [--rows 5000000] [--decisions 500000] [--data FOLDER] [--json]

The rows are made inside the engine: 532 days, five task types in three risk bands, as evenly spread as no real load is,
which is the hardest case for sums by hour. With `--data` they stay in FOLDER, and the next run finds them there.
Target on 50 million execution logs: 1 s each, better 300 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store import answers
from nhm_sched_plugin.store.client import open_store
from nhm_sched_plugin.store.repository import Store

MUST_S, AIM_S = 1.0, 0.3
SECONDS: Final = 46_000_000
_AT: Final = f"toUInt32(now()) - {SECONDS} + intDiv(number * {SECONDS}, {{rows}})"
ROWS_SQL: Final = f"""
SELECT toDateTime({_AT}),
    concat('t-', toString(number)),
    ['processing', 'validation', 'enrichment', 'export', 'report'][1 + cityHash64(number, 1) % 5],
    ['low', 'medium', 'high'][1 + cityHash64(number, 2) % 3],
    toUInt32(1000 + exp(11 + 0.8 * (cityHash64(number, 3) % 1000 / 250. - 2))),
    if(cityHash64(number, 4) % 50 = 0, 'failed', 'success'),
    concat('worker-', toString(cityHash64(number, 5) % 200)),
    0.1 + cityHash64(number, 6) % 4000 / 1000.,
    0.2 + cityHash64(number, 7) % 8000 / 1000.,
    cityHash64(number, 8) % 12 != 0,
    cityHash64(number, 9) % 160 + if(intDiv(number * {SECONDS}, {{rows}}) % 86400 < 7200, 120, 0)
FROM numbers({{first}}, {{count}})"""
LOGS: Final = (
    "timestamp, ticket_id, task_type, risk_band, actual_duration_ms, status, worker_id, resource_cpu, resource_memory, "
    "sla_met, queue_depth_at_start"
)
_DECISIONS: Final = f"""
INSERT INTO {{db}}.scheduling_decisions_raw (decision_id, decided_at, ticket_id, task_type, risk_band, action, source,
    reason, arm, confidence, propensity, queue_depth, record, recorded_at, version)
SELECT concat(hex(cityHash64(intDiv(number, 50000))), '-', toString(number)), toDateTime64({_AT}, 6, 'UTC'),
    concat('t-', toString(number)), 'processing', 'medium',
    ['INCREASE_WORKER_POOL', 'DECREASE_WORKER_POOL', 'NO_ACTION'][1 + cityHash64(number, 1) % 3], 'policy', 'applied',
    ['control', 'treatment', 'shadow'][1 + cityHash64(number, 2) % 3], 0.9, 1, cityHash64(number, 3) % 200,
    '{{{{}}}}', now(), 1
FROM numbers({{rows}})"""
_OUTCOMES: Final = f"""
INSERT INTO {{db}}.scheduling_outcomes (decision_id, ticket_id, status, finished_at, actual_duration_ms, sla_met,
    reward, executed_action, recorded_at, version)
SELECT concat(hex(cityHash64(intDiv(number, 50000))), '-', toString(number)), concat('t-', toString(number)), 'success',
    toDateTime64({_AT}, 6, 'UTC'), cityHash64(number, 4) % 90000, cityHash64(number, 5) % 12 != 0,
    cityHash64(number, 6) % 2000 / 1000. - 1, 'NO_ACTION', now(), 1
FROM numbers({{rows}})"""
BLOCK: Final = 1_000_000
MONTH: Final = "now() - INTERVAL 28 DAY"
WEEK: Final = "now() - INTERVAL 7 DAY"
ASKED: Final = {
    "the specification's bottleneck query": (
        "SELECT toStartOfHour(timestamp) AS hour, count() AS ticket_volume, avg(queue_depth_at_start) AS q, "
        f"countIf(sla_met = 0) / count() AS sla_miss_rate FROM {{db}}.execution_logs WHERE timestamp >= {WEEK} "
        "GROUP BY hour HAVING q > 100 ORDER BY sla_miss_rate DESC LIMIT 10"
    ),
    "bottlenecks, all time": "SELECT * FROM {db}.bottlenecks WHERE avg_queue_depth > 100 ORDER BY sla_miss_rate DESC",
    "hours_alive, all time": "SELECT * FROM {db}.hours_alive",
    "usual_durations": "SELECT * FROM {db}.usual_durations",
    "features_hourly, one slice, all time": (
        "SELECT * FROM {db}.features_hourly WHERE task_type = 'export' AND risk_band = 'low'"
    ),
    "features_hourly, all slices, 28 days": f"SELECT * FROM {{db}}.features_hourly WHERE hour >= {MONTH}",
    "features_hourly, all slices, all time, without p95": (
        "SELECT * EXCEPT resource_cpu_p95 FROM {db}.features_hourly"
    ),
    "features_hourly, everything": "SELECT * FROM {db}.features_hourly",
    "tickets, one hour": "SELECT * FROM {db}.tickets WHERE timestamp >= now() - INTERVAL 30 DAY "
    "AND timestamp < now() - INTERVAL 30 DAY + INTERVAL 1 HOUR",
    "sla_misses by cause, 7 days": (
        f"SELECT cause, count(), avg(actual_duration_ms) FROM {{db}}.sla_misses WHERE timestamp >= {WEEK} GROUP BY 1"
    ),
    "sla_misses by cause, all time": "SELECT cause, count(), avg(actual_duration_ms) FROM {db}.sla_misses GROUP BY 1",
    "scheduling_decisions, newest 20": "SELECT * FROM {db}.scheduling_decisions ORDER BY decided_at DESC LIMIT 20",
    "arm_comparison, all time": "SELECT * FROM {db}.arm_comparison",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--decisions", type=int, default=500_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.data or Path(folder), arguments.rows, arguments.decisions)
    print(json.dumps(results, indent=2) if arguments.json else table(results))


def measure(folder: Path, rows: int, decisions: int) -> list[dict[str, Any]]:
    """Seconds by question, the best and the median of five, and of the processor; other work only adds to them."""
    with open_store(load_settings({"data_dir": str(folder), "metrics": {"enabled": False}})) as store:
        fill(store, rows, decisions)
        results = []
        for name, sql in ASKED.items():
            # The answer is worked out whole, and only its digest travels.
            whole = f"SELECT count(), sum(cityHash64(*)) FROM ({sql.format(db=store.database)})"
            results.append(timed(name, lambda sql=whole: store.rows(sql)))
        week = answers.days_ago(7)
        results.append(timed("nhm-sched decisions --since 7d", lambda: answers.decisions(store, since=week)))
        results.append(timed("nhm-sched arms --since 7d", lambda: answers.arms(store, since=week)))
        results.append(timed("nhm-sched bottlenecks --since 7d", lambda: answers.bottlenecks(store, since=week)))
        results.append(timed("nhm-sched misses --since 7d", lambda: answers.miss_causes(store, since=week)))
    return results


def timed(name: str, ask: Any) -> dict[str, Any]:
    """Five times."""
    times, busy = [], []
    for _ in range(5):
        started, worked = time.perf_counter(), time.process_time()
        ask()
        times.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    figures = {"best_s": min(times), "median_s": sorted(times)[2], "processor_s": min(busy)}
    return {"question": name, **{key: round(value, 3) for key, value in figures.items()}}


def fill(store: Store, rows: int, decisions: int) -> None:
    """Tickets up to `rows` and as many decisions with outcomes, unless they are there."""
    there = store.counts()
    if there["execution_logs"] < rows * 0.99:
        started = time.perf_counter()
        for first in range(0, rows, BLOCK):
            values = ROWS_SQL.format(rows=rows, first=first, count=min(BLOCK, rows - first))
            store.command(f"INSERT INTO {store.database}.execution_logs ({LOGS}) {values}")
        seconds = time.perf_counter() - started
        print(f"{rows:,} tickets made and stored in {seconds:.0f} s ({rows / seconds:,.0f} a second)", flush=True)
    if there["scheduling_decisions_raw"] < decisions * 0.99:
        for sql in (_DECISIONS, _OUTCOMES):
            store.command(
                sql.format(db=store.database, rows=decisions) + " SETTINGS max_partitions_per_insert_block = 0"
            )


def table(results: list[dict[str, Any]]) -> str:
    """As in the documentation."""
    lines = ["| question | best, s | median, s | processor, s | |", "| --- | ---: | ---: | ---: | --- |"]
    for row in results:
        verdict = "aim" if row["best_s"] <= AIM_S else "must" if row["best_s"] <= MUST_S else "missed"
        figures = " | ".join(f"{row[name]:.3f}" for name in ("best_s", "median_s", "processor_s"))
        lines.append(f"| {row['question']} | {figures} | {verdict} |")
    return "\n".join([*lines, f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"])


if __name__ == "__main__":
    main()
