"""How long a whole training takes, and its memory: `python -m benchmarks.training [--slices 1000] [--days 540]`.

The load is made here, the same at every run. A slice (task type, risk band) has a level - log-uniform over three
decades, 0.3 to 300 tickets an hour; one in five is sparse, 0.01 to 0.3 - times a day and week shape that all share and
each bends a little, times a trend of up to a third over the whole time; its counts are negative-binomial (overdispersed
like real tickets: variance = mean + 0.05 mean^2). One in twenty is only three to forty days old. Task types are the
sums of their slices, and the total is the sum of all. Everything goes into a temporary folder, removed at the end.

`--peak-memory` fits one busy slice in one worker instead and prints what that took, and which libraries it holds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nhm_sched_plugin.settings import Settings, load_settings

HEAVY = ("alembic", "matplotlib", "mlflow", "plotly", "prophet", "pyarrow", "scipy", "sqlalchemy", "statsmodels")
BANDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=1000, help="in all: total, task types, (task type, risk band)")
    parser.add_argument("--days", type=int, default=540, help="of hourly history")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--peak-memory", action="store_true", help="of one worker, and nothing else")
    options = parser.parse_args()
    if options.peak_memory:
        peak_memory(options.days)
    else:
        whole(options.slices, options.days, options.jobs)


def synthetic(slices: int, days: int, seed: int = 7) -> dict[str, pd.Series]:
    """Hourly counts by slice key; see the module's docstring."""
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=days * 24, freq="h", tz="UTC")
    kinds = max(round((slices - 1) / (BANDS + 1)), 1)
    left = max(slices - 1 - kinds, 0)
    per_kind = [left // kinds + (i < left % kinds) for i in range(kinds)]
    found: dict[str, Any] = {"": np.zeros(len(index))}
    for i, bands in enumerate(per_kind):
        kind = f"type{i:03}"
        found[kind] = np.zeros(len(index))
        for band in range(max(bands, 1)):
            counts = _counts(rng, index)
            if bands:
                found[f"{kind}|band{band}"] = counts
            found[kind] += np.nan_to_num(counts)
        found[""] += found[kind]
    return {key: pd.Series(values, index=index).dropna() for key, values in found.items()}


def _counts(rng: np.random.Generator, index: pd.DatetimeIndex) -> Any:
    sparse = rng.random() < 0.2
    level = 10 ** (rng.uniform(-2, -0.5) if sparse else rng.uniform(-0.5, 2.5))
    hour, day = np.asarray(index.hour) + rng.normal(0, 1), np.asarray(index.day_of_week)
    shape = 1 + rng.uniform(0.4, 0.8) * np.sin((hour - 9) / 24 * 2 * np.pi) + 0.2 * np.sin((hour - 4) / 12 * 2 * np.pi)
    shape = np.maximum(shape, 0.05) * np.where(day < 5, 1.0, rng.uniform(0.3, 0.8))
    trend = 1 + rng.uniform(-0.33, 0.33) * np.linspace(0, 1, len(index))
    mean = level * shape * trend
    counts = rng.poisson(mean * rng.gamma(20, 1 / 20, len(index))).astype(float)
    if rng.random() < 0.05:
        counts[: -24 * int(rng.integers(3, 40))] = np.nan
    return counts


def whole(slices: int, days: int, jobs: int) -> None:
    from nhm_sched_plugin.training import Registry, train
    from nhm_sched_plugin.training.fitting import peak_mib
    from nhm_sched_plugin.training.progress import told

    began = time.perf_counter()
    series = synthetic(slices, days)
    print(f"made {len(series)} slices x {days} days in {time.perf_counter() - began:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(Path(folder))
        with told() as progress:
            report = train(settings, series=series, jobs=jobs, progress=progress)
        models = len(Registry.of(settings).heads())
        table = settings.forecast_table_path.stat().st_size
    fits = len(series)
    rows: list[tuple[str, str]] = [
        ("wall time", f"{report.seconds:.0f} s"),
        *((f"  {stage}", f"{seconds:.1f} s") for stage, seconds in report.stages.items()),
        ("CPU time of a slice's fit, mean", f"{report.cpu_seconds / fits:.2f} s"),
        ("slices per minute and core", f"{60 * fits / report.cpu_seconds:.0f} (3 horizons, backtest, refit, table)"),
        ("peak memory of a worker", f"{report.peak_worker_mib:.0f} MiB"),
        (
            "peak memory of the parent",
            f"{peak_mib():.0f} MiB (it holds all series: {len(series) * days * 24 * 16 >> 20} MiB)",
        ),
        ("registered models", str(models)),
        ("forecast table", f"{table / 2**20:.1f} MiB"),
        ("status", _counted(row.status for row in report.rows)),
        ("methods", _counted(row.method for row in report.rows)),
    ]
    for name, value in rows:
        print(f"{name:32} {value}")
    if report.failed:
        print("failed:", report.failed[0].name, report.failed[0].error)
        sys.exit(1)


def _counted(values: Any) -> str:
    return ", ".join(f"{name or '-'} {count}" for name, count in Counter(values).most_common(12))


def _settings(folder: Path) -> Settings:
    return load_settings({"data_dir": str(folder), "metrics": {"enabled": False}})


def _one(task: Any) -> Any:
    """In the worker: the fit, and what was imported for it."""
    from nhm_sched_plugin.training.fitting import fit_slice

    fitted = fit_slice(task)
    fitted.failures = dict.fromkeys(name for name in HEAVY if sys.modules.get(name) is not None)
    return fitted


def peak_memory(days: int) -> None:
    from nhm_sched_plugin.training.engine import engine
    from nhm_sched_plugin.training.fitting import SliceTask, lost_slice

    series = synthetic(30, days)[""]
    ml = load_settings({}).ml
    print(f"one worker, one slice of {len(series)} hours, every model tried")
    for lends in (False, True):
        task = SliceTask(
            key="",
            series=series,
            horizons=ml.forecasting.horizons,
            country=ml.forecasting.country,
            config=ml.prophet,
            max_mape=ml.training.max_mape,
            now=0.0,
            lends=lends,
        )
        with engine(jobs=2) as pool:
            (found,) = pool.run(_one, [task], lost_slice)
        what = "a slice with parts" if lends else "a slice"
        print(f"  {what:20} {found.peak_mib:5.0f} MiB, {found.seconds:5.1f} s; imported: {', '.join(found.failures)}")
        if found.error:
            sys.exit(f"failed: {found.error}")


if __name__ == "__main__":
    main()
