"""Whether the confidence comes true: calibration error on days that were not learned from.

    python -m benchmarks.calibration [--data FOLDER] [--loads smooth/120,flash] [--seeds 1] [--json]

The loads are those of `benchmarks.replay`, at the same start-up times. `nhm-sched learn` on the training part; then the
policy is asked at random ticks of the rest, and what it says is tried against what the rules do (`twin/trials.py`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import msgspec

from benchmarks._loads import Case, cases, chosen
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.twin.learn import pretrain
from nhm_sched_plugin.twin.trials import Reliability, reliability

TARGET, MUST = 0.04, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the public job traces; default: made loads only")
    parser.add_argument("--loads", help="only these, separated by commas: nasa/120, or nasa for all of its start-ups")
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for case in chosen(cases(options.data), options.loads):
        for seed in range(options.seeds):
            found = measure(case, options.decisions, seed)
            rows.append({"load": case.name, "seed": seed, **msgspec.to_builtins(found)})
            if not options.json:
                print(line(case.name, seed, found), flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))


def measure(case: Case, decisions: int, seed: int) -> Reliability:
    """Learn on one part, check on the other."""
    train, test = case.load.parts(seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            {"data_dir": folder, "planner": {"startup_s": case.startup_s}, "limits": {"max_workers": 100_000}}
        )
        pretrain(settings, train, decisions=decisions, practice=decisions // 2, tick_s=15.0, seed=seed)
        table, model = QTable.load(settings.q_table_path), DemandModel.load(settings.planner_path)
        return reliability(settings, table, test, model, seed=seed)


def line(name: str, seed: int, found: Reliability) -> str:
    verdict = "aim" if found.ece <= TARGET else "must" if found.ece <= MUST else "MISSED"
    return (
        f"{name} seed {seed}: calibration error {found.ece:.3f} ({verdict}), Brier {found.brier:.3f},"
        f" {found.trials} trials; {found.followed:.0%} pass the gate, {found.followed_won:.0%} of them came true"
    )


if __name__ == "__main__":
    main()
