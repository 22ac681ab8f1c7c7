"""What a replay finds, as figures fit for JSON."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import msgspec

from nhm_sched_plugin.decision.reward import reward
from nhm_sched_plugin.twin.controllers import Kind
from nhm_sched_plugin.twin.runs import Run, Waits
from nhm_sched_plugin.twin.simulator import Controller, Order
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.twin.tuning import Point, Tuned
from nhm_sched_plugin.types import SchedulingState

__all__ = [
    "Count",
    "Frontier",
    "HourLine",
    "Interval",
    "PolicyResult",
    "ReplayReport",
    "Scored",
    "SeedResult",
    "measured",
]


class Count(msgspec.Struct, frozen=True):
    """How often a kind of decision was made."""

    source: str
    action: str
    arm: str
    reason: str
    count: int


class HourLine(msgspec.Struct, frozen=True):
    """One hour, for plots: `start` in Unix seconds; means over the hour."""

    start: float
    arrivals: int
    workers: float
    queue: float


class Interval(msgspec.Struct, frozen=True):
    """A mean over seeds and its 95 % confidence interval; without bounds when there is one seed."""

    mean: float
    low: float | None = None
    high: float | None = None


def levels(sla: float, finished: int, busy_hours: float, worker_hours: float, hours: float) -> dict[str, float]:
    """The reward's four components as figures of a whole run, as `decision.reward.gap_closed` takes them."""
    return {
        "sla": sla,
        "throughput": finished / hours,
        "efficiency": busy_hours / worker_hours if worker_hours else 0.0,
        "cost": worker_hours,
    }


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one policy did. Of several seeds: the means; decisions and hours are the first seed's."""

    name: str
    tickets: int
    sla: float
    """Share of tickets that started in time, in [0, 1]."""
    missed: int
    worker_hours: float
    wait_mean_s: float
    wait_p50_s: float
    wait_p95_s: float
    wait_p99_s: float
    scale_events: int
    reward_mean: float
    """Mean raw reward of a control tick, from its state to the one a start-up later."""
    decisions: list[Count]
    reasons: dict[str, int]
    hours: list[HourLine]
    elapsed_s: float
    finished: int = 0
    busy_hours: float = 0.0
    """Hours in which workers had a ticket."""
    sla_by_class: dict[str, float] = {}
    """Share in time by class of tickets, where there are several."""
    cost: float | None = None
    """Worker-hours over the oracle's."""
    gap_closed: Interval | None = None
    """Share of the reward gap between rules and oracle that it closes (see `decision.reward.gap_closed`)."""
    equal_sla: Interval | None = None
    """Worker-hours over those of the rivals' frontier at the same SLA: below 1 is cheaper than any of them."""
    equal_sla_how: str = ""
    """How that was read off (see `tuning.EqualSla`); several when seeds differ."""
    differences: dict[str, Interval] = {}
    """This policy minus the reference, paired by seed: `sla` (share), `worker_hours`, `cost`, `wait_p95_s`,
    `wait_p99_s`."""

    def levels(self, hours: float) -> dict[str, float]:
        """The reward's four components as figures of a whole run of so many hours."""
        return levels(self.sla, self.finished, self.busy_hours, self.worker_hours, hours)


class Frontier(msgspec.Struct, frozen=True):
    """What one rival can do on the replayed tickets, over its knob."""

    policy: str
    knob: str
    points: list[Point]


class SeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One seed: every policy on the same tickets."""

    seed: int
    tickets: int
    oracle_hours: float
    policies: list[PolicyResult]
    frontiers: list[Frontier] = []


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a replay; `to_dict` is fit for JSON."""

    trace: str
    tickets: int
    train_tickets: int
    start: float
    end: float
    erlangs: float
    """Workers that the replayed tickets keep busy on average: nobody can pay for fewer."""
    service_mean_s: float
    tick_s: float
    startup_s: float
    sla_wait_s: float
    seed: int
    """The first one."""
    first_workers: int
    forecast_mape: dict[str, float]
    """Backtest on the training part, percent, by horizon in minutes."""
    policies: list[PolicyResult]
    notes: list[str]
    oracle_hours: float
    """Worker-hours of the clairvoyant oracle, which lets nobody wait (mean over seeds)."""
    reference: str
    """The policy that `differences` are taken to."""
    sla_target: float
    tuned: list[Tuned] = []
    seeds: list[SeedResult] = []
    """The single seeds, without decisions and hours."""
    frontiers: list[Frontier] = []
    """The rivals', on the first seed."""

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def result(self, name: str) -> PolicyResult:
        """One policy's result. Raises `KeyError`."""
        for result in self.policies:
            if result.name == name:
                return result
        raise KeyError(name)


class Scored:
    """Passes everything on, and keeps the mean reward of the control ticks."""

    def __init__(self, inner: Controller, lead_s: float) -> None:
        self.name, self.watches_tickets = inner.name, inner.watches_tickets
        self.on_arrival, self.on_finished = inner.on_arrival, inner.on_finished
        self._inner_tick, self._lead_s = inner.on_tick, lead_s
        self._open: deque[tuple[float, SchedulingState]] = deque()
        self._sum, self._count = 0.0, 0

    def on_tick(self, state: SchedulingState, now: float) -> int | Order | None:
        while self._open and self._open[0][0] <= now:
            self._sum += reward(self._open.popleft()[1], state)
            self._count += 1
        self._open.append((now + self._lead_s, state))
        return self._inner_tick(state, now)

    @property
    def mean(self) -> float:
        return self._sum / self._count if self._count else 0.0


def measured(
    name: str,
    run: Run,
    reward_mean: float,
    decisions: Counter[Kind],
    elapsed_s: float,
    *,
    trace: Trace | None = None,
) -> PolicyResult:
    """A run in figures; `trace` gives the hours worked."""
    waits = Waits.of(run.waits)
    reasons: Counter[str] = Counter()
    for (*_, reason), count in decisions.items():
        reasons[reason] += count
    return PolicyResult(
        name=name,
        tickets=len(run.waits),
        sla=run.sla,
        missed=run.missed,
        worker_hours=run.worker_seconds / 3600,
        wait_mean_s=waits.mean,
        wait_p50_s=waits.p50,
        wait_p95_s=waits.p95,
        wait_p99_s=waits.p99,
        scale_events=run.changes,
        reward_mean=reward_mean,
        decisions=[Count(*kind, count) for kind, count in decisions.most_common()],
        reasons=dict(reasons.most_common()),
        hours=[HourLine(*hour) for hour in run.hours],
        elapsed_s=elapsed_s,
        finished=run.finished,
        busy_hours=0.0 if trace is None else busy_s(trace, run) / 3600,
        sla_by_class={kind.name: kind.sla for kind in run.classes} if len(run.classes) > 1 else {},
    )


def busy_s(trace: Trace, run: Run) -> float:
    """Seconds in which workers had a ticket, until the trace's end."""
    import numpy as np

    starts = np.asarray(trace.arrivals, dtype=float) + np.asarray(run.waits, dtype=float)
    return float(np.clip(trace.end - starts, 0.0, np.asarray(trace.durations, dtype=float)).sum())
