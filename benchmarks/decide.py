"""What decide() costs the host, beside the bare cost of one pluggy call in the same run.

    python -m benchmarks.decide [--calls 20000] [--rounds 5] [--json]

Everything is on: guards, rules, metrics, recording to the on-disk spool, a learned policy. Both are timed call by call
in alternating blocks, so that a busy machine slows both alike; read the ratios, not the microseconds.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy

from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState, Ticket
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.table import ForecastTable, SliceForecast, write_table

MUST, AIM = {"p50": 40, "p99": 200}, {"p50": 18, "p99": 70}
HOURS = 24 * 16
BUSY = SchedulingState(
    queue_depth=25,
    active_workers=10,
    avg_task_duration_ms=60_000,
    sla_compliance_rate=0.93,
    resource_cpu_avg=0.9,
    resource_memory_avg=0.5,
)
QUIET = SchedulingState(queue_depth=0, active_workers=50, avg_task_duration_ms=60_000, resource_cpu_avg=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000, help="per scenario and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments.calls, arguments.rounds)
    print(json.dumps(results, indent=2) if arguments.json else table(results))


def measure(folder: Path, calls: int, rounds: int) -> dict[str, dict[str, float]]:
    """Per scenario p50, p99 and p99.9 in microseconds over all rounds, and calls per second."""
    write_forecast(folder)
    settings = {
        "data_dir": str(folder),
        "metrics": {"port": 0},
        "rollout": {"percentage": 100},
        "ml": {"scheduling": {"seed": 7}},
        # The benchmark decides faster than any host; a queue that never fills keeps drops out of the figures.
        "recording": {"queue_size": 10_000_000, "spool_max_mb": 8192},
    }
    ticket = Ticket(ticket_id="t1", task_type="processing", risk_band="medium")
    with SchedulerHost.from_config(settings) as host:
        teach(host)
        draw = random.Random(1)
        scenarios: dict[str, tuple[Callable[[SchedulingState], Any], Callable[[], SchedulingState]]] = {
            "bare pluggy call": (bare_call(), lambda: measured_anew(draw)),
            "ticket, pool measured anew": (lambda state: host.decide(ticket, state), lambda: measured_anew(draw)),
            "ticket, same measurement": (lambda state: host.decide(ticket, state), lambda: BUSY),
            "below the volume threshold": (lambda state: host.decide(ticket, state), lambda: QUIET),
            "control tick, measured anew": (lambda state: host.decide(None, state), lambda: measured_anew(draw)),
        }
        times: dict[str, list[float]] = {name: [] for name in scenarios}
        for _ in range(rounds):
            for name, (call, prepare) in scenarios.items():
                times[name] += timed(call, prepare, calls)
                host.flush(60)
    results = {name: summary(sample) for name, sample in times.items()}
    bare = results["bare pluggy call"]["p50"]
    for row in results.values():
        row["p50_ratio"], row["p99_ratio"] = row["p50"] / bare, row["p99"] / bare
    return results


def measured_anew(draw: random.Random) -> SchedulingState:
    """A busy pool with numbers of its own, so that nothing can be answered from the memory of the last one."""
    return SchedulingState(
        queue_depth=draw.randrange(11, 60),
        active_workers=draw.randrange(8, 16),
        avg_task_duration_ms=draw.randrange(50_000, 70_000),
        sla_compliance_rate=draw.uniform(0.9, 1),
        resource_cpu_avg=draw.uniform(0.7, 1),
        resource_memory_avg=draw.uniform(0.4, 0.6),
    )


def write_forecast(folder: Path) -> None:
    now = time.time()
    hour = now // 3600 * 3600
    entry = SliceForecast(
        first_hour=hour,
        mean=[700.0] * HOURS,
        quantiles={str(level): [500 + 400 * level] * HOURS for level in LEVELS},
        samples=5000,
        trained_at=now,
        method="benchmark",
    )
    write_table(
        folder / "snapshots" / "forecast.json",
        ForecastTable(generated_at=now, origin=hour, model_version="1", method="benchmark", slices={"": entry}),
    )


def teach(host: SchedulerHost) -> None:
    """Some experience, so that the policy is confident enough to be followed."""
    for _ in range(200):
        decision = host.decide(None, BUSY)
        host.applied(decision)
        better = SchedulingState(queue_depth=5, active_workers=20, sla_compliance_rate=0.97, resource_cpu_avg=0.8)
        host.finished(Outcome(decision_id=decision.decision_id, status="tick", state_after=better))
    host.flush(30)


def bare_call() -> Callable[[SchedulingState], Any]:
    spec, impl = pluggy.HookspecMarker("bare"), pluggy.HookimplMarker("bare")

    class Specs:
        @spec(firstresult=True)
        def decide(self, ticket: Any, state: Any) -> Any: ...

    class Plugin:
        @impl
        def decide(self, ticket: Any, state: Any) -> Any:
            return state

    manager = pluggy.PluginManager("bare")
    manager.add_hookspecs(Specs)
    manager.register(Plugin())
    call = manager.hook.decide
    return lambda state: call(ticket=None, state=state)


def timed(call: Callable[[SchedulingState], Any], prepare: Callable[[], SchedulingState], calls: int) -> list[float]:
    """Seconds of each call; what `prepare` takes is not counted."""
    clock, sample = time.perf_counter, []
    for _ in range(calls):
        state = prepare()
        started = clock()
        call(state)
        sample.append(clock() - started)
    return sample


def summary(sample: list[float]) -> dict[str, float]:
    sample.sort()
    at = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    row = {name: sample[int(share * (len(sample) - 1))] * 1e6 for name, share in at.items()}
    return {**row, "per_second": len(sample) / sum(sample)}


def table(results: dict[str, dict[str, float]]) -> str:
    head = f"{'':30}{'p50 us':>10}{'p99 us':>10}{'p99.9 us':>10}{'calls/s':>12}{'p50 ratio':>11}{'p99 ratio':>11}"
    lines = [head, "-" * len(head)]
    for name, row in results.items():
        lines.append(
            f"{name:30}{row['p50']:>10.1f}{row['p99']:>10.1f}{row['p99.9']:>10.1f}{row['per_second']:>12,.0f}"
            f"{row['p50_ratio']:>10.0f}x{row['p99_ratio']:>10.0f}x"
        )
    lines.append(
        f"ratios to the p50 of the bare call; must: p50 <= {MUST['p50']}x, p99 <= {MUST['p99']}x; "
        f"aim: p50 <= {AIM['p50']}x, p99 <= {AIM['p99']}x"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
