"""How many full refits a minute does one core manage: `python -m benchmarks.refits [--data FOLDER] [--rounds 5]`.

A refit learns the chosen models anew from the whole history, for 24 hourly horizons and a week beyond, with the weights
and intervals of the last choice. Beside it: a fit with its rolling backtest and choice, and one fit of Prophet as the
specification has it, on the same history. CPU time, not wall time; the median of the rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting import LoadForecaster
from nhm_sched_plugin.forecasting.covariates import Covariates
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.series import hours

CHEAP = ("ridge_log", "ridge_robust", "ridge_sqrt", "ridge", "holt_winters", "seasonal_mean", "seasonal_naive", "arima")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of NAME.csv files (timestamp,volume); default: made up")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.getLogger("prophet").setLevel(logging.CRITICAL)
    print(
        f"{'series':18}{'hours':>8}{'refit ms':>10}{'a minute':>10}{'fit, no Prophet ms':>20}{'Prophet ms':>12}  models"
    )
    rates = []
    for name, known in load(options.data):
        forecaster = LoadForecaster.fit(known, shortlist=CHEAP)
        refit = cpu(lambda f=forecaster, k=known: f.refit(k), options.rounds)
        fit = cpu(lambda k=known: LoadForecaster.fit(k, shortlist=CHEAP), 1)
        past = Covariates.of(known, "BR").timeline(known)
        prophet = cpu(lambda p=past: FrozenProphet().fit(p), 1) if len(known) >= FrozenProphet.min_hours else None
        rates.append(60 / refit)
        models = sorted({model for band in forecaster.bands for model in band.weights})
        print(
            f"{name:18}{len(known):8}{refit * 1e3:10.0f}{60 / refit:10.0f}{fit * 1e3:20.0f}"
            f"{'-' if prophet is None else f'{prophet * 1e3:.0f}':>12}  {', '.join(models)}"
        )
    print(f"median: {statistics.median(rates):.0f} refits a minute and core")


def cpu(work: Callable[[], Any], rounds: int) -> float:
    """Median CPU seconds, child processes (Stan) included."""
    taken = []
    for _ in range(rounds):
        before = spent()
        work()
        taken.append(spent() - before)
    return statistics.median(taken)


def spent() -> float:
    import resource

    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))


def load(folder: Path | None) -> Iterator[tuple[str, pd.Series[float]]]:
    if folder is None:
        for count in (500, 1344, 8760, 17_520):
            index = pd.date_range("2023-01-02", periods=count, freq="h")
            shape = (1.2 + np.sin(index.hour / 24 * 2 * np.pi)) * np.where(index.day_of_week < 5, 1.0, 0.5)
            yield "made up", pd.Series(np.random.default_rng(count).poisson(80 * shape) * 1.0, index=index)
        return
    for path in sorted(folder.glob("*.csv")):
        if not path.stem.endswith("_5min"):
            yield path.stem, hours(pd.read_csv(path, index_col=0, parse_dates=True).iloc[:, 0])


if __name__ == "__main__":
    main()
