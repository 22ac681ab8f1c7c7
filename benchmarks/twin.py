"""How fast the twin simulates, in tickets a second on one core.

    python -m benchmarks.twin [--tickets 1000000] [--runs 5] [--json]

The load is M/M/c: 45 Erlangs on 50 workers, 100 s a ticket. Measured are the compiled event loop alone with a fixed
pool, with a compiled controller asked every 15 s, with a controller in Python asked as often, and with callbacks for
each ticket; beside them simpy, the usual simulation library, where it is installed (`pip install simpy`): the same
tickets through the same pool. Seconds are those of the processor, so that others on the machine matter little, and the
methods take turns; the table shows medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nhm_sched_plugin.twin import engine, layout
from nhm_sched_plugin.twin.compiled import compiled
from nhm_sched_plugin.twin.controllers import StaticController
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import SchedulingState

TARGET = 200_000
LOAD, WORKERS, SERVICE_S, TICK_S = 45.0, 50, 100.0, 15.0
SLOW = 10
"""Methods that call Python for each ticket get so many times fewer tickets."""
WARM = """
import time; began = time.perf_counter()
from nhm_sched_plugin.twin.simulator import Pool
from nhm_sched_plugin.twin.traces import Trace
pool = Pool(Trace([1.0], [1.0], start=0.0, end=10.0), workers=1, startup_s=1.0, sla_wait_s=1.0)
pool.scale_to(2); pool.advance(10.0); pool.state()
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tickets", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments.tickets, arguments.runs)
    print(json.dumps(results, indent=2) if arguments.json else table(results))


def measure(tickets: int, runs: int) -> dict[str, dict[str, float]]:
    """Per method tickets and control ticks a second (medians, fastest and slowest), and the seconds of a first run."""
    trace = load(tickets)
    few = trace.slice(0.0, trace.arrivals[tickets // SLOW])
    methods: dict[str, tuple[Trace, float, Callable[[Trace], Pool]]] = {
        "compiled, fixed pool": (trace, 0.0, fixed),
        "compiled, controller each 15 s": (trace, TICK_S, compiled_controller),
        "Python controller each 15 s": (trace, TICK_S, python_controller),
        "Python callbacks for each ticket": (few, TICK_S, callbacks),
    }
    for _, _, run in methods.values():
        run(load(1000))  # compiles
    times: dict[str, list[float]] = {name: [] for name in [*methods, "simpy"]}
    for _ in range(runs):
        for name, (given, _, run) in methods.items():
            times[name].append(timed(run, given))
        if importlib.util.find_spec("simpy"):
            times["simpy"].append(timed(with_simpy, few))
    methods["simpy"] = (few, 0.0, with_simpy)
    results = {}
    for name, (given, tick_s, _) in methods.items():
        if times[name]:
            rates = sorted(len(given) / seconds for seconds in times[name])
            ticks = (given.end - given.start) / tick_s / statistics.median(times[name]) if tick_s else 0.0
            median = statistics.median(rates)
            results[name] = {"median": median, "slowest": rates[0], "fastest": rates[-1], "ticks": ticks}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first run ever", "first run of a process"):
            results[name] = {"seconds": first_run(folder)}
    return results


def load(tickets: int) -> Trace:
    draw = np.random.default_rng(1)
    arrivals = np.cumsum(draw.exponential(SERVICE_S / LOAD, tickets))
    return Trace(arrivals, draw.exponential(SERVICE_S, tickets), start=0.0)


def pool_of(trace: Trace) -> Pool:
    return Pool(trace, workers=WORKERS, startup_s=120.0, sla_wait_s=60.0)


def timed(run: Callable[[Trace], Pool], trace: Trace) -> float:
    began = time.process_time()
    run(trace)
    return time.process_time() - began


def fixed(trace: Trace) -> Pool:
    pool = pool_of(trace)
    pool.advance(trace.end)
    return pool


@compiled
def controlled(sim: layout.Sim, tick_s: float, spare: int) -> None:
    """Workers for all tickets in the system and some spare ones, at every tick."""
    while sim.t[layout.NOW] < sim.t[layout.END]:
        engine.observe(sim)
        engine.scale_to(sim, sim.n[layout.BUSY] + int(sim.seen[layout.QUEUE]) + spare)
        engine.advance(sim, sim.t[layout.NOW] + tick_s, False)


def compiled_controller(trace: Trace) -> Pool:
    pool = pool_of(trace)
    controlled(pool.sim, TICK_S, 5)
    return pool


class Controller:
    """The same in Python."""

    name = "spare"

    def __init__(self, watches_tickets: bool) -> None:
        self.watches_tickets = watches_tickets

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...
    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int:
        busy = (state.resource_cpu_avg or 0.0) * (state.active_workers or 0.0)
        return round(busy + (state.queue_depth or 0.0)) + 5


def python_controller(trace: Trace) -> Pool:
    pool = pool_of(trace)
    simulate(pool, Controller(watches_tickets=False), tick_s=TICK_S)
    return pool


def callbacks(trace: Trace) -> Pool:
    pool = pool_of(trace)
    simulate(pool, Controller(watches_tickets=True), tick_s=TICK_S)
    return pool


def with_simpy(trace: Trace) -> Pool:
    """M/M/c as simpy's documentation writes it; the waits must be the twin's."""
    import simpy

    environment = simpy.Environment()
    workers = simpy.Resource(environment, capacity=WORKERS)
    waits = []

    def ticket(duration: float):
        came = environment.now
        with workers.request() as request:
            yield request
            waits.append(environment.now - came)
            yield environment.timeout(duration)

    def source():
        for arrival, duration in zip(trace.arrivals.tolist(), trace.durations.tolist(), strict=True):
            yield environment.timeout(arrival - environment.now)
            environment.process(ticket(duration))

    environment.process(source())
    environment.run(until=trace.end)
    pool = pool_of(trace)
    run = simulate(pool, StaticController(WORKERS), tick_s=1e9)
    assert np.allclose(run.waits[: len(waits)], waits, atol=1e-3)
    return pool


def first_run(folder: str) -> float:
    """Seconds to import and run once, with the compiled code kept in that folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout)


def table(results: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':34} {'tickets/s':>12} {'slowest':>12} {'fastest':>12} {'ticks/s':>12}"]
    for name, figures in results.items():
        if "seconds" in figures:
            lines.append(f"{name:34} {figures['seconds']:>11.2f}s")
            continue
        shown = [figures["median"], figures["slowest"], figures["fastest"], figures["ticks"]]
        lines.append(f"{name:34}" + "".join(f" {figure:>12,.0f}" if figure else f" {'-':>12}" for figure in shown))
    if "simpy" not in results:
        lines.append("simpy is not installed: pip install simpy")
    fast = results["compiled, controller each 15 s"]["median"]
    lines.append(f"target: {TARGET:,} tickets/s with a controller; {fast / TARGET:.1f} times that")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
