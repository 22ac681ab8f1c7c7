"""Whether the confidence comes true: calibration error on days that were not learned from.

    python -m benchmarks.calibration [--data FOLDER] [--series FOLDER] [--loads smooth/120,flash] [--seeds 1] [--json]

The loads are those of `benchmarks.replay`, at the same start-up times. `nhm-sched learn` on the training part; then the
policy is asked at random ticks of the rest, and what it says is tried against what the rules do (`twin/trials.py`).

A run of one load and seed has few states, so that its error is noisy and above 0 for a perfect confidence, too. The
last lines put the bins of several runs together, each run with the same weight: by load, and of all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks._loads import Case, cases, chosen
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.twin.learn import pretrain
from nhm_sched_plugin.twin.trials import BINS, Reliability, reliability

TARGET, MUST = 0.04, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the public job traces; default: made loads only")
    parser.add_argument(
        "--series", type=Path, help="folder with counts in five minutes (NAME_5min.csv): loads of their own"
    )
    parser.add_argument("--loads", help="only these, separated by commas: nasa/120, or nasa for all of its start-ups")
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, found_in = [], dict[str, list[Reliability]]()
    for case in chosen(cases(options.data, options.series), options.loads):
        for seed in range(options.seeds):
            found = measure(case, options.decisions, seed)
            found_in.setdefault(case.name, []).append(found)
            rows.append({"load": case.name, "seed": seed, **msgspec.to_builtins(found)})
            if not options.json:
                print(line(case.name, seed, found), flush=True)
    together = {name: pooled(runs) for name, runs in found_in.items() if options.seeds > 1}
    together["all"] = pooled([run for runs in found_in.values() for run in runs])
    if options.json:
        print(json.dumps({"runs": rows, "together": together}, indent=2))
    else:
        print("\n".join(f"{name} together: calibration error {error:.3f}" for name, error in together.items()))


def measure(case: Case, decisions: int, seed: int) -> Reliability:
    """Learn on one part, check on the other."""
    train, test = case.load.parts(seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            {"data_dir": folder, "planner": {"startup_s": case.startup_s}, "limits": {"max_workers": 100_000}}
        )
        pretrain(settings, train, decisions=decisions, practice=decisions // 2, tick_s=15.0, seed=seed)
        table, model = QTable.load(settings.q_table_path), DemandModel.load(settings.planner_path)
        return reliability(settings, table, test, model, past=train, seed=seed)


def pooled(runs: Sequence[Reliability]) -> float:
    """Calibration error of several runs with the same weight, whose bins are put together."""
    bins = [[0.0, 0.0] for _ in range(BINS)]
    for run in runs:
        for place, each in enumerate(run.bins):
            share = each.count / max(run.trials, 1)
            bins[place][0] += share * each.confidence
            bins[place][1] += share * each.frequency
    return sum(abs(said - found) for said, found in bins) / max(sum(1 for run in runs if run.trials), 1)


def line(name: str, seed: int, found: Reliability) -> str:
    verdict = "aim" if found.ece <= TARGET else "must" if found.ece <= MUST else "MISSED"
    return (
        f"{name} seed {seed}: calibration error {found.ece:.3f} ({verdict}), Brier {found.brier:.3f},"
        f" {found.trials} trials; {found.followed:.0%} pass the gate, {found.followed_won:.0%} of them came true"
    )


if __name__ == "__main__":
    main()
