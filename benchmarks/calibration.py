"""Whether the confidence comes true: calibration error on days that were not learned from.

    python -m benchmarks.calibration [--load flash,regime | --trace FILE --volume 6] [--startup 120] [--json]

`nhm-sched learn` on the training part of made loads (`twin/loads.py`), or on the first seven tenths of a trace; then
the policy is asked at random ticks of the rest, and what it says is tried against what the rules do (`twin/trials.py`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.twin.learn import pretrain
from nhm_sched_plugin.twin.loads import load
from nhm_sched_plugin.twin.traces import Trace, read_trace
from nhm_sched_plugin.twin.trials import Reliability, reliability

TARGET, MUST = 0.04, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", default="smooth,flash,regime")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--volume", type=float, default=1.0)
    parser.add_argument("--startup", type=float, default=120.0)
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for name in [str(arguments.trace)] if arguments.trace else arguments.load.split(","):
        for seed in range(arguments.seeds):
            train, test = parts(arguments, name, seed)
            found = measure(train, test, arguments.startup, arguments.decisions, seed)
            rows.append({"load": name, "seed": seed, **msgspec.to_builtins(found)})
            if not arguments.json:
                print(line(name, seed, found), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))


def parts(arguments: Any, name: str, seed: int) -> tuple[Trace, Trace]:
    """Training and held-out part."""
    if arguments.trace is None:
        made = load(name)
        trace = made.make(seed)
        cut = made.cut
        if cut is not None:
            return trace.slice(trace.start, cut), trace.slice(cut, trace.end)
    else:
        trace = read_trace(arguments.trace, seed=seed)
        trace = trace if arguments.volume == 1 else trace.scaled(arguments.volume, seed)
    return trace.split(0.7)


def measure(train: Trace, test: Trace, startup_s: float, decisions: int, seed: int) -> Reliability:
    """Learn on one part, check on the other."""
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            {"data_dir": folder, "planner": {"startup_s": startup_s}, "limits": {"max_workers": 100_000}}
        )
        pretrain(settings, train, decisions=decisions, practice=decisions // 2, tick_s=15.0, seed=seed)
        table, model = QTable.load(settings.q_table_path), DemandModel.load(settings.planner_path)
        return reliability(settings, table, test, model, seed=seed)


def line(name: str, seed: int, found: Reliability) -> str:
    verdict = "aim" if found.ece <= TARGET else "must" if found.ece <= MUST else "MISSED"
    return (
        f"{name} seed {seed}: calibration error {found.ece:.3f} ({verdict}), Brier {found.brier:.3f},"
        f" {found.trials} trials; {found.followed:.0%} pass the gate and win {found.followed_won:.0%}."
        " Saved against the rules, in worker-seconds:"
        f" {found.saved_followed:.0f} by each of these, {found.saved_refused:.0f} by each refused"
    )


if __name__ == "__main__":
    main()
