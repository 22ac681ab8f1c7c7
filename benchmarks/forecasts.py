"""Our forecasts beside those of everybody else, on the same hours of real load, in the same run.

    python -m benchmarks.forecasts [--data FOLDER] [--series a,b] [--origins 100] [--methods a,b] [--cache FOLDER]
                                   [--refresh served] [--refits 4] [--jobs 2] [--json OUT] [--markdown]

FOLDER holds `NAME.csv` files with the columns timestamp and volume; without one it is the flights that left airports of
New York in 2013, at fewer origins. docs/backtest.md says what each method is. Some rivals need the dependency group
`bench`: `make bench-forecasts` installs it and runs this. With `--cache`, what was forecast once is not forecast again;
`--refresh` names the methods whose forecasts are made anew all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from benchmarks import _forecast_tables as tables
from benchmarks._forecast_cache import Shelf, key_of
from benchmarks._rivals import NEEDS, RIVALS, VERSIONS, available, rivals
from nhm_sched_plugin.forecasting.evaluation import SERVED, own_methods, plan_origins, roll_out
from nhm_sched_plugin.forecasting.scores import Rolled
from nhm_sched_plugin.forecasting.series import hours

HORIZONS = (60, 360, 1440)
STEPS = 24
BLOCK = 10
"""Origins between two writes to the cache."""
SINGLES = "singles"
"""Stands for all single models of our own."""


class Task(NamedTuple):
    series: str
    known: pd.Series
    method: str
    origins: np.ndarray


def main() -> None:
    options = arguments()
    load = series_of(options.data, options.series) if options.data else flights()
    wanted = methods_of(options.methods)
    tasks = [
        Task(name, known, method, origins_of(len(known), options.origins))
        for method in wanted
        for name, known in load.items()
    ]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as passing:
        options.cache = options.cache or Path(passing)
        rolled = assemble(load, done_by(tasks, options))
    report = tables.judge(rolled, HORIZONS)
    report["about"] = {"origins": options.origins, "refits": options.refits, "seconds": time.perf_counter() - began}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(tables.text(report, markdown=options.markdown))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of NAME.csv files (timestamp,volume); default: flights")
    parser.add_argument("--series", help="only these, separated by commas; default: all but *_5min")
    parser.add_argument("--origins", type=int, help="default: 100, on the flights 24")
    parser.add_argument(
        "--methods", help=f"{SERVED}, {SINGLES} or rivals: {', '.join(RIVALS)}; default: {SERVED} and all rivals"
    )
    parser.add_argument("--cache", type=Path, help="folder of forecasts made before")
    parser.add_argument("--refresh", default="", help="methods to forecast anew, separated by commas")
    parser.add_argument(
        "--refits", type=int, default=4, help=f"how often {SERVED} learns on the way through the origins"
    )
    parser.add_argument("--country", default="BR", help="holidays of our own models; '-' for none")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    options = parser.parse_args()
    options.origins = options.origins or (100 if options.data else 24)
    options.country = None if options.country == "-" else options.country
    options.refresh = set(filter(None, options.refresh.split(",")))
    return options


def series_of(folder: Path, names: str | None) -> dict[str, pd.Series]:
    """Hourly counts by name. Series finer than an hour are skipped unless asked for: they are the same load again."""
    found = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    wanted = names.split(",") if names else [name for name in found if not name.endswith("_5min")]
    if unknown := set(wanted) - set(found):
        sys.exit(f"{folder} has no {', '.join(sorted(unknown))}; it has {', '.join(found) or 'no CSV files'}")
    if not wanted:
        sys.exit(f"{folder} has no CSV files")
    read = {name: pd.read_csv(found[name], parse_dates=["timestamp"], index_col="timestamp") for name in wanted}
    return {name: hours(table["volume"]) for name, table in read.items()}


def flights() -> dict[str, pd.Series]:
    """Departures an hour by airport, from a package: no data of ours, and no download."""
    from nhm_sched_plugin.demo.flights import flights as tickets

    table = tickets()
    hour = table["timestamp"].dt.floor("h").dt.tz_localize(None)
    counted = table.groupby([table["task_type"], hour]).size()
    return {name: hours(counted[name].astype(float).asfreq("h", fill_value=0.0)) for name in ("EWR", "JFK")}


def methods_of(asked: str | None) -> list[str]:
    """Rivals that are not installed are named and left out, unless they were asked for."""
    known = [SERVED, SINGLES, *RIVALS]
    wanted = asked.split(",") if asked else [SERVED, *RIVALS]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"no method {', '.join(unknown)}; there are {', '.join(known)}")
    lacking = [name for name in wanted if not available(name)]
    if lacking:
        needs = ", ".join(sorted({NEEDS[name] for name in lacking}))
        text = f"{', '.join(lacking)} need {needs}: `make bench-forecasts`, or pip install --group bench"
        if asked:
            sys.exit(text)
        print(f"left out: {text}", file=sys.stderr)
    return [name for name in wanted if name not in lacking]


def origins_of(count: int, origins: int) -> np.ndarray:
    """As the evaluation plans them; the test region of a short series grows to hold them all, up to half of it."""
    region = max(min(count // 4, 28 * 24), min(origins + STEPS - 1, count // 2))
    return plan_origins(count, STEPS, origins, region)


def done_by(tasks: list[Task], options: argparse.Namespace) -> Iterator[tuple[Task, Rolled]]:
    from joblib import Parallel, delayed

    began = time.perf_counter()
    work = (delayed(run)(task, options) for task in tasks)
    results = Parallel(n_jobs=options.jobs, return_as="generator_unordered")(work)
    for done, (task, rolled) in enumerate(results, start=1):
        took = time.perf_counter() - began
        left = took / done * (len(tasks) - done)
        print(
            f"[{done}/{len(tasks)}] {task.method} on {task.series}; {took:.0f} s, about {left:.0f} s left",
            file=sys.stderr,
        )
        yield task, rolled


def run(task: Task, options: argparse.Namespace) -> tuple[Task, Rolled]:
    """All origins of one method on one series, from the cache where they are there."""
    warnings.simplefilter("ignore")
    if task.method in (SERVED, SINGLES):
        return task, run_own(task, options)
    rolled = roll_out(task.known, [], STEPS, origins=task.origins)
    key = key_of(task.known, STEPS, task.method, VERSIONS[task.method])
    shelf = Shelf.open(options.cache, task.series, task.method, key, STEPS)
    if task.method in options.refresh:
        shelf.rows = {}
    missing = shelf.missing(task.origins)
    for first in range(0, len(missing), BLOCK):
        block = missing[first : first + BLOCK]
        found = roll_out(task.known, rivals([task.method]), STEPS, origins=block)
        shelf.add(block, found.methods[task.method])
    rolled.methods[task.method] = shelf.forecasts(task.origins)
    return task, rolled


def run_own(task: Task, options: argparse.Namespace) -> Rolled:
    """Our own models learn a few times and are rolled on in between, so they are kept as a whole or not at all."""
    methods = own_methods(
        task.known.iloc[: task.origins[0]],
        HORIZONS,
        options.country,
        refits=options.refits,
        singles=task.method == SINGLES,
    )
    methods = [method for method in methods if (method.name == SERVED) == (task.method == SERVED)]
    rolled = roll_out(task.known, [], STEPS, origins=task.origins)
    about = (STEPS, options.refits, options.country, task.origins.tolist())
    for method in methods:
        key = key_of(task.known, method.name, *about)
        shelf = Shelf.open(options.cache, task.series, method.name, key, STEPS)
        if not shelf.missing(task.origins) and task.method not in options.refresh:
            rolled.methods[method.name] = shelf.forecasts(task.origins)
            continue
        found = roll_out(task.known, [method], STEPS, origins=task.origins)
        rolled.failures |= found.failures
        rolled.methods |= found.methods
        if found.methods:
            shelf.rows = {}
            shelf.add(task.origins.tolist(), found.methods[method.name])
    return rolled


def assemble(load: dict[str, pd.Series], done: Iterator[tuple[Task, Rolled]]) -> dict[str, Rolled]:
    """What came back, by series."""
    result: dict[str, Rolled] = {}
    for task, rolled in done:
        whole = result.setdefault(task.series, rolled)
        whole.methods |= rolled.methods
        whole.failures |= rolled.failures
    return {name: result[name] for name in load if name in result}


if __name__ == "__main__":
    main()
