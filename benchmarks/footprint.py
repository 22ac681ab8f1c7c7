"""What the plugin costs the orchestrator's process: import time, modules, memory.

    python -m benchmarks.footprint [--decisions 20000] [--json]

Each figure comes from a fresh interpreter; memory is its resident set beside that of an interpreter that does nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HEAVY = ("pandas", "numpy", "prophet", "statsmodels", "mlflow", "chdb", "clickhouse_connect", "matplotlib", "scipy")
RESIDENT = """
import json, os, sys, time
began = time.perf_counter()
{code}
took = time.perf_counter() - began
with open("/proc/self/statm") as statm:
    resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
heavy = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps({{"ms": took * 1000, "mb": resident, "modules": len(sys.modules), "heavy": heavy}}))
"""
IMPORT = "import nhm_sched_plugin\nfrom nhm_sched_plugin import SchedulerHost"
RUN = """
from pathlib import Path
from benchmarks.decide import QUIET, BUSY, write_forecast
from nhm_sched_plugin import Outcome, SchedulerHost, Ticket
write_forecast(Path({folder!r}))
host = SchedulerHost.from_config({{"data_dir": {folder!r}, "metrics": {{"port": 0}}, "rollout": {{"percentage": 100}}}})
for number in range({decisions}):
    decision = host.decide(Ticket(ticket_id=f"t{{number}}", task_type="processing"), BUSY if number % 2 else QUIET)
    host.applied(decision)
    host.finished(Outcome(decision_id=decision.decision_id, sla_met=True, state_after=QUIET))
    if number % 1000 == 0:
        host.flush(30)
host.flush(30)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            "bare interpreter": "pass",
            "import SchedulerHost": IMPORT,
            "running host": RUN.format(folder=str(Path(folder) / "a"), decisions=0),
            f"after {arguments.decisions:,} decisions": RUN.format(
                folder=str(Path(folder) / "b"), decisions=arguments.decisions
            ),
        }
        results = {name: measured(code, arguments.rounds) for name, code in steps.items()}
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    bare = results["bare interpreter"]["mb"]
    print(f"{'':28}{'ms':>10}{'MB':>8}{'added MB':>10}{'modules':>9}  heavy modules")
    for name, row in results.items():
        added = row["mb"] - bare
        heavy = ", ".join(row["heavy"]) or "none"
        print(f"{name:28}{row['ms']:>10.0f}{row['mb']:>8.1f}{added:>10.1f}{row['modules']:>9}  {heavy}")
    print("must: no heavy module, a running host adds < 60 MB")


def measured(code: str, rounds: int) -> dict[str, object]:
    """The median of several fresh interpreters, after one that leaves compiled files behind."""
    script = RESIDENT.format(code=code, heavy=HEAVY)
    rows = []
    for _ in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    rows = rows[1:]
    return {
        "ms": statistics.median(row["ms"] for row in rows),
        "mb": statistics.median(row["mb"] for row in rows),
        "modules": rows[-1]["modules"],
        "heavy": rows[-1]["heavy"],
    }


if __name__ == "__main__":
    main()
