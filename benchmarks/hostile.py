"""A host among enemies: does every call still get a valid decision in time, and does every failure show?

    python -m benchmarks.hostile [--seconds 60] [--seed 1] [--json]

Hooks raise, sleep and answer garbage at random; forecaster, policy and another sink come from such a plugin too; the
disk is full, the spool's folder is gone, the database is gone, the configuration file turns invalid, the snapshots are
damaged, the clock jumps, the host's own states are garbage. Afterwards everything is well again, and every decision
must be on disk or counted as dropped. Exits 1 when anything of this does not hold. Uses RLIMIT_FSIZE (POSIX).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks._enemy import BUDGET_MS, Chaos, enemy
from nhm_sched_plugin import (
    Action,
    Arm,
    Decision,
    Outcome,
    Reason,
    SchedulerHost,
    SchedulingState,
    Source,
    Ticket,
)
from nhm_sched_plugin.store.spool import Spool

SLACK_MS = 250.0
"""What a busy machine may add before a call counts as late."""
GARBAGE_NUMBERS: tuple[Any, ...] = (math.nan, -1, "12", math.inf, [], None, True, 10**400, 1e300)


class World:
    """What is around the host: files, disk, clock. `disturb()` breaks or mends one thing; `mend()` everything."""

    def __init__(self, folder: Path, chaos: Chaos) -> None:
        self.folder, self.chaos = folder, chaos
        self.config = folder / "config.yaml"
        self.skew = 0.0
        self.happened: Counter[str] = Counter()
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.write_config("rollout: {percentage: 100}")

    def clock(self) -> float:
        return time.time() + self.skew

    def write_config(self, rollout: str) -> None:
        with contextlib.suppress(OSError):
            self.config.write_text(
                f"data_dir: {self.folder}/data\nmetrics: {{port: 0}}\ndecision_budget_ms: {BUDGET_MS}\n"
                f"hooks: {{max_strikes: 1000000}}\n{rollout}\n"
            )

    def disturb(self) -> None:
        event = self.chaos.random.choice(
            [self._full_disk, self._no_folder, self._bad_config, self._other_config, self._bad_snapshot, self._jump]
        )
        self.happened[event.__name__.strip("_").replace("_", " ")] += 1
        event()
        if self.chaos.random.random() < 0.5:
            self._mend_disk()

    def mend(self) -> None:
        self._mend_disk()
        self.skew = 0.0
        self.write_config("rollout: {percentage: 100}")

    def _full_disk(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, self._limits[1]))

    def _no_folder(self) -> None:
        spool, aside = self.folder / "data" / "spool", self.folder / "aside"
        if not spool.is_dir() or aside.exists():
            return
        spool.rename(aside)
        while True:
            try:
                spool.write_text("in the way")
                return
            except IsADirectoryError:  # the host was quicker and has made a new one: that one counts, too
                spool.rename(self.folder / f"spool-{len(self.spools())}")

    def spools(self) -> list[Path]:
        """The folders that hold records."""
        return [self.folder / "data" / "spool", *sorted(self.folder.glob("spool-*"))]

    def _mend_disk(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        spool, aside = self.folder / "data" / "spool", self.folder / "aside"
        if aside.exists():
            spool.unlink(missing_ok=True)
            aside.rename(spool)

    def _bad_config(self) -> None:
        self.write_config(self.chaos.random.choice(["rollout: {percentage: 900}", "rolout: {}", "rollout: [", "%%"]))

    def _other_config(self) -> None:
        self.write_config(f"rollout: {{percentage: {self.chaos.random.randrange(101)}}}")

    def _bad_snapshot(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / "data" / "snapshots").mkdir(parents=True, exist_ok=True)
            (self.folder / "data" / "snapshots" / "forecast.json").write_bytes(self.chaos.random.randbytes(50))

    def _jump(self) -> None:
        self.skew = self.chaos.random.choice([-1e6, 0.0, 1e5, -3600.0])


class Callers:
    """Threads (and an event loop) that ask the host without pause and check every answer."""

    def __init__(self, host: SchedulerHost, chaos: Chaos) -> None:
        self.host, self.chaos = host, chaos
        self.latencies_ms: list[float] = []
        self.decisions: list[str] = []
        self.worst = 0.0, "", 0.0
        """Milliseconds, which thread, and how much of it was spent inside the decision."""
        self.problems: Counter[str] = Counter()
        self.stop = threading.Event()

    def run(self) -> list[threading.Thread]:
        loop = threading.Thread(target=lambda: asyncio.run(self._loop()), name="async-caller", daemon=True)
        threads = [*(threading.Thread(target=self._calls, args=(i,), daemon=True) for i in range(2)), loop]
        for thread in threads:
            thread.start()
        return threads

    def _calls(self, number: int) -> None:
        dice = random.Random(number)
        while not self.stop.is_set():
            with self._checked(dice) as check:
                check(self.host.decide(*self._question(dice)))

    async def _loop(self) -> None:
        dice = random.Random(99)
        while not self.stop.is_set():
            with self._checked(dice) as check:
                check(await self.host.adecide(*self._question(dice)))
            await asyncio.sleep(0.002)

    def _question(self, dice: random.Random) -> tuple[Any, Any]:
        good = SchedulingState(queue_depth=50, active_workers=10, avg_task_duration_ms=60_000, sla_compliance_rate=0.9)
        fields = {name: dice.choice(GARBAGE_NUMBERS) for name in SchedulingState.__struct_fields__[:8]}
        state = dice.choice([good, good, good, fields, SchedulingState(**fields), None, [1], "state"])
        ticket = Ticket(ticket_id=str(dice.random()), task_type=dice.choice(["a", None, 5]))  # type: ignore[arg-type]
        return dice.choice([ticket, ticket, None]), state

    @contextlib.contextmanager
    def _checked(self, dice: random.Random) -> Iterator[Callable[[Decision], None]]:
        started = time.perf_counter()

        def check(decision: Decision) -> None:
            took = (time.perf_counter() - started) * 1000
            self.latencies_ms.append(took)
            if took > self.worst[0]:
                self.worst = took, threading.current_thread().name, getattr(decision, "latency_us", 0.0) / 1000
            valid = (
                isinstance(decision, Decision)
                and isinstance(decision.action, Action)
                and isinstance(decision.source, Source)
                and isinstance(decision.reason, Reason)
                and isinstance(decision.arm, Arm)
            )
            if not valid:
                self.problems["invalid decision"] += 1
                return
            self.decisions.append(decision.decision_id)
            self.host.applied(decision, dice.random() < 0.8, None if dice.random() < 0.9 else "no room")
            after = SchedulingState(sla_compliance_rate=dice.random())
            self.host.finished(dice.choice([Outcome(decision_id=decision.decision_id, state_after=after), None, 5]))  # type: ignore[arg-type]

        try:
            yield check
        except Exception as error:
            self.problems[f"raised {type(error).__name__}: {error}"] += 1


def run(folder: Path, seconds: float, seed: int = 1) -> dict[str, Any]:
    """The whole scenario; what it found, as plain data (`failed` lists what does not hold)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    logging.getLogger("nhm_sched_plugin").setLevel(logging.CRITICAL)
    chaos = Chaos(seed)
    world = World(folder, chaos)
    host = SchedulerHost.from_config(world.config, clock=world.clock, plugins={"enemy": enemy(chaos)})
    callers = Callers(host, chaos)
    threads = callers.run()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chaos.random.uniform(0.1, 0.6))
        world.disturb()
        host.health()
    callers.stop.set()
    for thread in threads:
        thread.join(10)
    chaos.calm = True
    world.mend()
    recovered = host.flush(60)
    calm = decide_calmly(host)
    metrics = gathered(host)
    host.close(20)
    return report(seconds, callers, world, chaos, metrics, recovered, calm)


def decide_calmly(host: SchedulerHost) -> Decision:
    """What the host decides once all is well: within 5 seconds, the time of a reload, the policy is followed again."""
    until = time.monotonic() + 5
    while True:
        decision = host.decide(Ticket(ticket_id="calm"), SchedulingState(queue_depth=50, active_workers=10))
        if decision.reason is Reason.APPLIED or time.monotonic() > until:
            return decision
        time.sleep(0.1)


def gathered(host: SchedulerHost) -> dict[str, dict[str, float]]:
    """The counters that failures show up in: metric -> label -> count."""
    label = {
        "nhm_sched_hook_errors": "hook",
        "nhm_sched_component_errors": "component",
        "optimizer_unavailable": "reason",
        "nhm_sched_records": "state",
    }
    found: dict[str, dict[str, float]] = {f"{name}_total": {} for name in label}
    for metric in host.metrics.registry.collect():
        for sample in metric.samples:
            if sample.name in found:
                by = found[sample.name]
                key = sample.labels[label[metric.name]].removeprefix("nhm_sched_")
                by[key] = by.get(key, 0.0) + sample.value
    return found


def report(
    seconds: float,
    callers: Callers,
    world: World,
    chaos: Chaos,
    metrics: dict[str, dict[str, float]],
    recovered: bool,
    calm: Decision,
) -> dict[str, Any]:
    latencies = sorted(callers.latencies_ms)
    stored = {decision_id for path in world.spools() for decision_id in decided(path)}
    lost = len(set(callers.decisions) - stored)
    dropped = metrics["nhm_sched_records_total"].get("dropped", 0.0)
    shown = {**metrics["nhm_sched_hook_errors_total"], **metrics["nhm_sched_component_errors_total"]}
    hidden = {
        what: f"{count} injected, {shown.get(what, 0):.0f} shown"
        for what, count in chaos.injected.items()
        if shown.get(what, 0) < count
    }
    failed = [f"{count} times: {what}" for what, count in callers.problems.items()]
    if latencies[-1] > BUDGET_MS + SLACK_MS:
        took, thread, inside = callers.worst
        failed.append(f"the worst call took {took:.0f} ms in {thread}, {inside:.0f} ms of it inside")
    if hidden:
        failed.append(f"failures that do not show in the metrics: {hidden}")
    if lost > dropped:
        failed.append(f"{lost} decisions are not on disk, {dropped:.0f} are counted as dropped")
    if not recovered or calm.reason is not Reason.APPLIED:
        failed.append(f"no recovery: flushed {recovered}, then {calm.reason}")
    return {
        "seconds": seconds,
        "calls": len(latencies),
        "p50_ms": latencies[len(latencies) // 2],
        "p99_ms": latencies[int(len(latencies) * 0.99)],
        "p99.9_ms": latencies[int(len(latencies) * 0.999)],
        "worst_ms": latencies[-1],
        "over_budget": sum(latency > BUDGET_MS for latency in latencies),
        "hooks_slept": chaos.slept,
        "happened": dict(world.happened),
        "decisions_on_disk": len(stored),
        "decisions_lost": lost,
        "metrics": metrics,
        "failed": failed,
    }


def decided(path: Path) -> set[str]:
    """The ids of the decisions in a spool."""
    spool = Spool(path)
    try:
        records = [item.record for batch in spool.batches(5000) for item in batch.records]
    finally:
        spool.close()
    return {record.decision_id for record in records if isinstance(record, Decision)}


def table(found: dict[str, Any]) -> str:
    lines = []
    for name, value in found.items():
        if isinstance(value, int | float):
            lines.append(f"{name.replace('_', ' '):<34}{value:>12,.{1 if isinstance(value, float) else 0}f}")
    lines.append(f"budget {BUDGET_MS:.0f} ms, slack for a busy machine {SLACK_MS:.0f} ms")
    lines.append("what happened: " + ", ".join(f"{what} {count}x" for what, count in found["happened"].items()))
    for metric, by in found["metrics"].items():
        lines.append(f"\n{metric}")
        lines += [f"  {label:<32}{count:>12,.0f}" for label, count in sorted(by.items())]
    failed = "; ".join(found["failed"])
    lines.append(f"\nFAILED: {failed}" if failed else "\nEvery call got a valid decision, every failure shows.")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), arguments.seconds, arguments.seed)
    print(json.dumps(found, indent=2) if arguments.json else table(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
