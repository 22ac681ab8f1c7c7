"""The lowest priority under sustained overload: how long it waits under each queue discipline.

    python -m benchmarks.priorities [--hours 12] [--overload 1.3] [--json]

Four risk bands share a pool that gets `--overload` times what it can do for a third of the time, and half of what it
can do in the rest. Beside the plugin's weights (an accumulating priority queue) stand first come first served and
strict priority (weights a million times apart). A ticket of weight w that has waited t goes before every ticket of
weight v that came less than t w / v ago: the lowest band is overtaken by a bounded part of what comes after it, while
strict priority starves it for as long as the overload lasts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import numpy as np

from nhm_sched_plugin.policy.planner import BACKLOG_WEIGHTS
from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.controllers import StaticController
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace

BANDS = ("critical", "high", "medium", "low")
SHARES = (0.1, 0.2, 0.3, 0.4)
WORKERS, SERVICE_S = 40, 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=12.0, help="length of the run")
    parser.add_argument("--overload", type=float, default=1.3, help="load in the middle third, of the capacity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    trace = overloaded(arguments.hours, arguments.overload, arguments.seed)
    found = {name: waits(trace, weights) for name, weights in disciplines().items()}
    print(json.dumps(found, indent=2) if arguments.json else table(found, trace, arguments.overload))


def disciplines() -> dict[str, Mapping[str, float]]:
    strict = dict(zip(BANDS, (1e18, 1e12, 1e6, 1.0), strict=True))
    return {"first come first served": dict.fromkeys(BANDS, 1.0), "plugin's weights": BACKLOG_WEIGHTS, "strict": strict}


def overloaded(hours: float, overload: float, seed: int) -> Trace:
    """Poisson arrivals, exponential service; half the capacity, then too much, then half again."""
    draw, third = np.random.default_rng(seed), hours * 1200.0
    capacity = WORKERS / SERVICE_S
    at = [
        draw.uniform(part * third, (part + 1) * third, draw.poisson(load * capacity * third))
        for part, load in enumerate((0.5, overload, 0.5))
    ]
    arrivals = np.concatenate(at)
    bands = [BANDS[band] for band in draw.choice(len(BANDS), len(arrivals), p=SHARES)]
    return Trace(
        arrivals,
        draw.exponential(SERVICE_S, len(arrivals)),
        risk_bands=bands,
        start=0.0,
        end=3 * third,
        name="overload",
    )


def waits(trace: Trace, weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Seconds by risk band: p50, p95, p99 and the longest."""
    classes = [TicketClass(band, weight=weights[band], risk_band=band) for band in BANDS]
    pool = Pool(trace, workers=WORKERS, startup_s=0.0, sla_wait_s=60.0, classes=classes)
    run = simulate(pool, StaticController(WORKERS), tick_s=60.0)
    found = {}
    for at, band in enumerate(BANDS):
        own = run.waits[pool.sim.classes == at]
        p50, p95, p99, most = np.nanpercentile(own, [50, 95, 99, 100])
        found[band] = {"p50": float(p50), "p95": float(p95), "p99": float(p99), "longest": float(most)}
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]], trace: Trace, overload: float) -> str:
    lines = [
        f"{len(trace):,} tickets, {overload:g} times capacity for {(trace.end - trace.start) / 10800:.0f} h; waits, s",
        f"{'':26}" + "".join(f"{band:>24}" for band in BANDS),
        f"{'':26}" + f"{'p50':>10}{'p99':>14}" * len(BANDS),
    ]
    for name, bands in found.items():
        lines.append(f"{name:26}" + "".join(f"{bands[b]['p50']:10,.0f}{bands[b]['p99']:14,.0f}" for b in BANDS))
    plain, ours, strict = (found[name]["low"]["p99"] for name in disciplines())
    lines.append(
        f"lowest band, p99 over first come first served: {ours / plain:.2f} plugin, {strict / plain:.2f} strict"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
