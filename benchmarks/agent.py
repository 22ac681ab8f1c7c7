"""The optimizer agent beside a bare unary echo on the same kind of server, in the same run.

    python -m benchmarks.agent latency    [--rounds 5] [--seconds 3]    one client, both calls
    python -m benchmarks.agent saturation [--rounds 3] [--seconds 5]    32 clients, one process
    python -m benchmarks.agent soak       [--minutes 10]                half of saturation, with training beside it
    python -m benchmarks.agent memory     [--requests 1000000]          10,000 distinct states, over and over

Each takes `--json`. Echo and agent are loaded in turns, so that a busy machine slows both alike: read the ratios.
"cpu us" is the server's processor time for a call: the figure that other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import _echo
from benchmarks._agent import (
    FORECAST,
    OUTCOME,
    RECOMMEND,
    agent,
    echo,
    forecasts,
    load,
    outcomes,
    processor_s,
    recommendations,
    resident_mb,
    tables,
)

Task = tuple[str, str, list[bytes]]
CLIENTS = 32
WARM = 1500
"""Calls before the measured ones: each of the states that are asked about again has been asked about by then."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=MEASUREMENTS, nargs="?", default="latency")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tables(Path(folder))
        rows, notes = MEASUREMENTS[arguments.what](Path(folder), arguments)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    names = list(rows[0])
    widths = [max(len(name), *(len(_shown(row[name])) for row in rows)) for name in names]
    print("  ".join(name.ljust(width) for name, width in zip(names, widths, strict=True)))
    for row in rows:
        print("  ".join(_shown(row[name]).ljust(width) for name, width in zip(names, widths, strict=True)))
    print(notes)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, tuple[int, Task]]]:
    """Process and task of the echo, and of the agent's questions; the echo sends back what it is sent.

    Some states are asked about again and again, as many tickets come between two measurements of a pool; others once.
    """
    asked = recommendations(1000)
    with echo() as (plain, rival), agent(folder) as (address, ours):
        yield {
            "echo": (rival.pid, (plain, _echo.METHOD, asked)),
            "GetSchedulingRecommendation": (ours.pid, (address, RECOMMEND, asked)),
            "the same, each state new": (ours.pid, (address, RECOMMEND, recommendations(20_000, seed=2))),
            "GetLoadForecast": (ours.pid, (address, FORECAST, forecasts())),
        }


def in_turns(folder: Path, rounds: int, **task: Any) -> dict[str, dict[str, float]]:
    """The median over the rounds of each figure, by server."""
    found: dict[str, list[dict[str, Any]]] = {}
    with servers(folder) as loaded:
        for _ in range(rounds):
            for name, (pid, (target, method, payloads)) in loaded.items():
                before = processor_s(pid)
                result = load(target, method, payloads, warm=WARM, **task)
                assert not result["errors"], (name, result)
                result["cpu"] = 1e6 * (processor_s(pid) - before) / (result["calls"] + WARM)
                found.setdefault(name, []).append(result)
    return {
        name: {
            **{key: statistics.median(one[key] for one in results) for key in ("p50", "p95", "p99", "cpu")},
            "per_second": statistics.median(one["calls"] / one["seconds"] for one in results),
        }
        for name, results in found.items()
    }


def latency(folder: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    found = in_turns(folder, arguments.rounds, seconds=arguments.seconds)
    rows = [
        {"": name}
        | {f"{key} us": row[key] for key in ("p50", "p95", "p99", "cpu")}
        | {f"{key} / echo": row[key] / found["echo"][key] for key in ("p50", "p95", "p99", "cpu")}
        for name, row in found.items()
    ]
    return rows, "one client; must: <= 1.5 x echo, aim <= 1.2 x"


def saturation(folder: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    found = in_turns(folder, arguments.rounds, seconds=arguments.seconds, clients=CLIENTS)
    rows = [
        {"": name, "requests/s": row["per_second"], "of echo": row["per_second"] / found["echo"]["per_second"]}
        | {"p99 us": row["p99"], "cpu us": row["cpu"], "cpu / echo": row["cpu"] / found["echo"]["cpu"]}
        for name, row in found.items()
    ]
    return rows, f"{CLIENTS} clients, one server process; must: >= 0.60 of echo, aim >= 0.80"


def soak(folder: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """In alternating minutes with and without, so that both see the same machine; the agent has a core of its own.

    Together agent, client and training want more than the two cores that a small machine has, and a client that comes
    late measures itself.
    """
    asked, minute = recommendations(1000), 60.0
    own, *others = sorted(os.sched_getaffinity(0))
    samples: dict[str, list[dict[str, Any]]] = {"alone": [], "with training beside it": []}
    with agent(folder) as (address, process):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {own})
        os.sched_setaffinity(0, others or {own})
        most = load(address, RECOMMEND, asked, seconds=10, clients=CLIENTS)
        rate = most["calls"] / most["seconds"] / 2
        for number in range(max(2, round(2 * arguments.minutes))):
            beside = number % 2 == 1
            with training() if beside else contextlib.nullcontext():
                result = load(address, RECOMMEND, asked, seconds=minute, rate=rate)
            assert not result["errors"], result
            samples["with training beside it" if beside else "alone"].append(result)
    alone = statistics.median(one["p99"] for one in samples["alone"])
    rows = [
        {"": name, "minutes": len(results), "requests/s": rate}
        | {f"{key} us": statistics.median(one[key] for one in results) for key in ("p50", "p99")}
        | {"p99 / alone": statistics.median(one["p99"] for one in results) / alone}
        for name, results in samples.items()
    ]
    return rows, "at half of saturation; must: <= 2 x alone, aim <= 1.3 x"


@contextlib.contextmanager
def training() -> Iterator[None]:
    """A process beside the agent that fits forecasters over and over, scheduled as `deploy/examples` has it: idle."""
    code = (
        "import os\nos.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "from benchmarks.agent import train_for_ever\ntrain_for_ever()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def train_for_ever() -> None:
    """Fits a forecaster on made-up history again and again: what a training process does with its processor."""
    import numpy as np
    import pandas as pd

    from nhm_sched_plugin.forecasting import LoadForecaster

    draw = np.random.default_rng(1)
    index = pd.date_range("2026-01-01", periods=24 * 120, freq="h")
    day = 100 + 80 * np.sin(2 * np.pi * index.hour / 24)
    while True:
        LoadForecaster.fit(pd.Series(draw.poisson(day), index=index), horizons=(60,))


def memory(folder: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    states, rows, done = recommendations(10_000), [], 0
    steps = [10_000] + [arguments.requests // 10] * 10
    with echo() as (plain, rival), agent(folder) as (address, ours):
        for step in steps:
            load(plain, _echo.METHOD, states, calls=step, clients=CLIENTS)
            result = load(address, RECOMMEND, states, calls=step, clients=CLIENTS)
            load(address, OUTCOME, outcomes(1000, f"memory-{done}"), calls=1000, clients=8, warm=0)
            done += step
            sizes = {"MiB": resident_mb(ours.pid), "echo MiB": resident_mb(rival.pid)}
            rows.append({"requests": done, **sizes, "requests/s": step / result["seconds"]})
    for row in rows:
        row["grown by"], row["echo by"] = row["MiB"] - rows[0]["MiB"], row["echo MiB"] - rows[0]["echo MiB"]
    return rows, "10,000 distinct states, 1,000 outcomes with each step; must: no growth after the first 10,000"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


Measure = Callable[[Path, argparse.Namespace], tuple[list[dict[str, Any]], str]]
MEASUREMENTS: dict[str, Measure] = {"latency": latency, "saturation": saturation, "soak": soak, "memory": memory}

if __name__ == "__main__":
    main()
