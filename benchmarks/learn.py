"""How many decisions a second the twin learns from, on one core.

    python -m benchmarks.learn [--decisions 1000000] [--runs 3] [--load flash] [--json]

Compiled episodes of Q-learning on a made load (`twin/loads.py`), windows of twelve hours with a decision every 15 s:
seconds of the processor, compilation left out. Then the part with the rule book and the trials that confidence is
counted from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from nhm_sched_plugin.policy.demand import COEFFICIENTS, DemandModel
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.twin.checkpoint import Checkpoint, Progress
from nhm_sched_plugin.twin.controllers import RulesController
from nhm_sched_plugin.twin.drill import Drill
from nhm_sched_plugin.twin.loads import load
from nhm_sched_plugin.twin.practice import practise

TARGET = 200_000
TICK_S = 15.0
PRACTICE = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--load", default="flash")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.load, arguments.decisions, arguments.runs)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:<32}{value:>14,.0f}")
    print(f"{'target':<32}{TARGET:>14,.0f}")


def measure(name: str, decisions: int, runs: int) -> dict[str, float]:
    """Decisions a second, compiled and in practice, and trials a second there; medians."""
    trace = load(name).make(0)
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({"data_dir": folder})
        model = square_root(settings, trace.service_mean_s)
        checkpoint = Checkpoint(Path(folder) / "q_table.json")
        Drill(settings, trace, model, TICK_S, 0).run(QTable(), Progress(run=""), 3000, checkpoint, bool)
        compiled, practised, tried = [], [], []
        for seed in range(runs):
            drill, done = Drill(settings, trace, model, TICK_S, seed), Progress(run="")
            began = time.process_time()
            drill.run(QTable(), done, decisions, checkpoint, bool)
            compiled.append(done.drilled / (time.process_time() - began))
            rules = RulesController(settings)
            policy = QPolicy(settings, rules.rules, autosave=False)
            policy.planner.model = model
            began = time.process_time()
            practise(settings, trace, model, policy, rules, done, PRACTICE, TICK_S, seed, checkpoint, bool)
            spent = time.process_time() - began
            practised.append(done.made / spent)
            tried.append(done.trials / spent)
    return {
        "decisions_per_s": statistics.median(compiled),
        "decisions_with_rules_per_s": statistics.median(practised),
        "moments_tried_per_s": statistics.median(tried),
    }


def square_root(settings: Any, service_s: float) -> DemandModel:
    """Square-root staffing: the calibration takes its time and is not what is measured."""
    planner = settings.planner
    weights = dict.fromkeys(COEFFICIENTS, 0.0) | {"root_in_system": 1.5, "constant": 1.0}
    return DemandModel(
        coefficients=tuple(weights.values()),
        dispersion=1.0,
        startup_s=planner.startup_s,
        sla_wait_s=planner.sla_wait_s,
        late_cost=planner.late_cost,
        service_s=service_s,
        tickets=0,
        start=0.0,
        end=0.0,
        sla=1.0,
        cost=1.0,
    )


if __name__ == "__main__":
    main()
