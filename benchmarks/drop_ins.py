"""What the ready-made drop-ins cost per call, beside the bare cost of one pluggy call in the same run.

    python -m benchmarks.drop_ins [--calls 20000]

Each is called directly, with settings that make it look at something; the hook layer's isolation comes on top.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.decide import BUSY, bare_call, summary, timed
from nhm_sched_plugin import Action, Recommendation
from nhm_sched_plugin.settings import bundled

GROW = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 12})
SETTINGS = {
    "maintenance_window": '[[window]]\nname = "w"\ndays = ["sat", "sun"]\nfrom = 22:00:00\nto = 06:00:00\n',
    "quota_guard": "max_workers_added_per_hour = 1000\nworker_hours_per_day = 1000000\n",
    "business_calendar": "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as folder:
        modules = {name: load(Path(folder), name, text) for name, text in SETTINGS.items()}
        rows: dict[str, Callable[[Any], Any]] = {
            "bare pluggy call": bare_call(),
            "maintenance_window guard": lambda state: modules["maintenance_window"].nhm_sched_guard(GROW),
            "quota_guard guard": lambda state: modules["quota_guard"].nhm_sched_guard(state, GROW),
            "business_calendar state": lambda state: modules["business_calendar"].nhm_sched_collect_state(),
        }
        results = {name: summary(timed(call, lambda: BUSY, calls)) for name, call in rows.items()}
    bare = results["bare pluggy call"]["p50"]
    print(f"{'':28}{'p50 us':>10}{'p99 us':>10}{'p50 ratio':>11}")
    for name, row in results.items():
        print(f"{name:28}{row['p50']:>10.1f}{row['p99']:>10.1f}{row['p50'] / bare:>10.1f}x")


def load(folder: Path, name: str, settings: str) -> Any:
    """The drop-in with these settings, from a folder of its own as a user would have it."""
    for kind in (".py", ".toml"):
        shutil.copyfile(bundled("hooks") / f"{name}{kind}", folder / f"{name}{kind}")
    if settings:
        (folder / f"{name}.toml").write_text(settings, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"_benchmarked_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
