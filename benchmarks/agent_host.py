"""What a remote agent in every state of health costs the host, beside forecaster and policy in its own process.

    python -m benchmarks.agent_host [--seconds 10] [--recoveries 10] [--states dead hanging ...] [--json]

A real agent stands behind a network that breaks on command. In each state the host decides as fast as it can, once with
its mirror of the agent's tables and once having never had one (where each decision needs a call). Shown: latency of
decide(), calls over the budget, and the reasons of the decisions; and latency and calls over the budget once more
without the time for which the kernel let other processes run, which on a busy machine is most of the tail
(/proc/thread-self/schedstat). Then how long after the agent's return the first decision follows the policy again, for a
host without a mirror.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks._agent import agent, free_port, tables, wait_until
from benchmarks.decide import measured_anew
from nhm_sched_plugin import Reason, SchedulerHost, Ticket

STATES = ("well", "dead", "hanging", "garbage", "flapping")
BUDGET_MS = 50.0
TICKET = Ticket(ticket_id="t1", task_type="processing", risk_band="medium")
AWAY = {Reason.OPTIMIZER_UNAVAILABLE, Reason.FORECAST_UNAVAILABLE, Reason.BUDGET_EXCEEDED}


class Network:
    """The way to the agent. `be(mode)` returns when it is so."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._tcp_proxy", str(self.port), str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def be(self, mode: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{mode}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip() == mode

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="in each state")
    parser.add_argument("--recoveries", type=int, default=10)
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("nhm_sched_plugin").setLevel(logging.CRITICAL)  # of the hosts: what is done to the agent is known
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments.seconds, arguments.recoveries, arguments.states)
    print(json.dumps(results, indent=2) if arguments.json else table(results))


def measure(folder: Path, seconds: float, recoveries: int, states: Sequence[str] = STATES) -> dict[str, Any]:
    tables(folder / "agent")
    shutil.copytree(folder / "agent", folder / "local")
    rows: list[dict[str, Any]] = []
    with agent(folder / "agent") as (address, _):
        network = Network(int(address.rpartition(":")[2]))
        with contextlib.closing(network):
            with host(folder / "local", None) as local:
                rows.append({"agent": "none: all in this process", "mirror": "-"} | decided(local, seconds))
            rows += [
                {"agent": state, "mirror": mirror} | _in_state(folder, network, state, mirror, seconds)
                for mirror in ("with", "without")
                for state in states
            ]
            back = recovered(folder, network, recoveries)
    return {"states": rows, "recovery s": back}


def _in_state(folder: Path, network: Network, state: str, mirror: str, seconds: float) -> dict[str, Any]:
    home = Path(tempfile.mkdtemp(dir=folder))
    network.be("well" if mirror == "with" else state)
    with host(home, network.port) as asked:
        if mirror == "with":
            assert wait_until(lambda: asked.decide(TICKET, state_now()).reason not in AWAY, 60)
            network.be(state)
        return decided(asked, seconds)


@contextlib.contextmanager
def host(home: Path, port: int | None) -> Iterator[SchedulerHost]:
    settings: dict[str, Any] = {
        "data_dir": str(home),
        "metrics": {"enabled": False},
        "rollout": {"percentage": 100},
        "optimizer": {"decision_budget_ms": BUDGET_MS},
        "recording": {"queue_size": 10_000_000},
    }
    if port is not None:
        settings["optimizer"]["endpoint"] = f"127.0.0.1:{port}"
    with SchedulerHost.from_config(settings) as made:
        yield made


_draw = random.Random(1)


def state_now() -> Any:
    return measured_anew(_draw)


def decided(asked: SchedulerHost, seconds: float) -> dict[str, Any]:
    clock, by_clock, own, reasons = time.perf_counter, [], [], Counter[str]()
    # What is there by now stays: looking through all of it, whenever Python thinks that it is time, takes some 20 ms.
    gc.collect()
    gc.freeze()
    with _Waited() as waited:
        end = clock() + seconds
        while clock() < end:
            state = state_now()
            before, started = waited(), clock()
            decision = asked.decide(TICKET, state)
            took = clock() - started
            by_clock.append(took)
            own.append(max(took - (waited() - before), 0.0))
            reasons[str(decision.reason)] += 1
            if len(own) % 1000 == 0:
                asked.flush(60)
    gc.unfreeze()
    row: dict[str, Any] = {"calls": len(own)}
    for kind, sample in (("", by_clock), ("own ", own)):
        sample.sort()
        for name, share in {"p50": 0.5, "p99": 0.99, "max": 1.0}.items():
            row[f"{kind}{name} us"] = sample[int(share * (len(sample) - 1))] * 1e6
        row[f"{kind}over"] = sum(each * 1000 > BUDGET_MS for each in sample)
    row["reasons"] = dict(reasons.most_common(3))
    return row


class _Waited:
    """Seconds that this thread has waited for a processor, ready to run."""

    def __enter__(self) -> Callable[[], float]:
        self._file = file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        return lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9

    def __exit__(self, *raised: object) -> None:
        os.close(self._file)


def recovered(folder: Path, network: Network, times: int) -> list[float]:
    """Seconds from the agent's return to the first decision that follows it; hosts that never had a mirror."""
    found = []
    for _ in range(times):
        network.be("dead")
        with host(Path(tempfile.mkdtemp(dir=folder)), network.port) as asked:
            end = time.monotonic() + 3 + _draw.random() * 2
            while time.monotonic() < end:  # long enough for every pause to have grown to its longest
                assert asked.decide(TICKET, state_now()).reason in AWAY
                time.sleep(0.005)
            network.be("well")
            started = time.monotonic()
            assert wait_until(lambda: asked.decide(TICKET, state_now()).reason not in AWAY, 60)
            found.append(time.monotonic() - started)
    return sorted(found)


def table(results: dict[str, Any]) -> str:
    head = (
        f"{'agent':27}{'mirror':9}{'calls':>8} | {'p50 us':>7}{'p99 us':>8}{'max us':>9}{'over':>6}"
        f" | own {'p50':>5}{'p99':>8}{'max':>9}{'over':>6}"
    )
    lines = [head, "-" * len(head)]
    lines += [
        f"{row['agent']:27}{row['mirror']:9}{row['calls']:>8,} | {row['p50 us']:>7,.0f}{row['p99 us']:>8,.0f}"
        f"{row['max us']:>9,.0f}{row['over']:>6} |{row['own p50 us']:>10,.0f}{row['own p99 us']:>8,.0f}"
        f"{row['own max us']:>9,.0f}{row['own over']:>6}  {row['reasons']}"
        for row in results["states"]
    ]
    back = results["recovery s"]
    if back:
        lines.append(f"recovery: median {back[len(back) // 2]:.2f} s, slowest of {len(back)} {back[-1]:.2f} s")
    lines.append(
        f"must: no call over {BUDGET_MS:.0f} ms, recovery <= 5 s; aim: p99 <= 300 us in every state, recovery <= 1 s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
