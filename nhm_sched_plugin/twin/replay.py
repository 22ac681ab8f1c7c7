"""Replay a trace under several policies, side by side: SLA, worker-hours, waits, and what was decided.

The time is cut in two. The first part fits the forecaster, pre-trains the policy and sizes the fixed pool; the second
is replayed, with the same tickets for everyone and, but for the fixed pool, the same first number of workers.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.decision.reward import reward
from nhm_sched_plugin.host import SchedulerHost
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.twin.controllers import (
    Clock,
    Kind,
    PluginController,
    RulesController,
    StaticController,
    static_workers,
)
from nhm_sched_plugin.twin.forecasts import RollingForecasts
from nhm_sched_plugin.twin.learn import lead_s, pretrain
from nhm_sched_plugin.twin.runs import Run, Waits
from nhm_sched_plugin.twin.simulator import Controller, Order, Pool, simulate
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.types import SchedulingState

__all__ = ["POLICIES", "Count", "HourLine", "PolicyResult", "ReplayReport", "Scored", "measured", "replay"]

POLICIES: Final = ("plugin", "rules", "static")
Progress = Callable[[str, float], Any]
"""Gets what is being done and the share of it that is done, in [0, 1]."""


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


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one policy did."""

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
    first_workers: int
    forecast_mape: dict[str, float]
    """Backtest on the training part, percent, by horizon in minutes."""
    policies: list[PolicyResult]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def result(self, name: str) -> PolicyResult:
        """One policy's result. Raises `KeyError`."""
        for result in self.policies:
            if result.name == name:
                return result
        raise KeyError(name)


def replay(
    trace: Trace,
    policies: Sequence[str] = POLICIES,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    train_fraction: float = 0.7,
    tick_s: float = 60.0,
    startup_s: float | None = None,
    sla_wait_s: float | None = None,
    seed: int = 0,
    learn_decisions: int = 30_000,
    progress: Progress | None = None,
) -> ReplayReport:
    """Replay the last part of `trace` under each of `policies` (see `POLICIES`).

    `startup_s` and `sla_wait_s` default to `settings.planner`. The plugin runs as a real `SchedulerHost` at 100 %
    rollout, recording off, in a temporary folder: neither the user's Q-table nor the records are touched. It starts
    from the user's Q-table when there is one, else it is pre-trained for `learn_decisions` on the training part.

    Raises `TraceError` (a ValueError) for an unknown policy or a trace that leaves no tickets in either part.
    """
    unknown = [name for name in policies if name not in POLICIES]
    if unknown:
        raise TraceError(f"unknown policy {unknown[0]!r}; known: {', '.join(POLICIES)}")
    train, test = trace.split(train_fraction)
    if not len(train) or not len(test):
        raise TraceError(f"{trace.name}: {len(train)} tickets before and {len(test)} after the split; both need some")
    with tempfile.TemporaryDirectory(prefix="nhm-sched-replay-") as folder:
        bench = _Bench(
            load_settings(settings), train, test, Path(folder), tick_s, startup_s, sla_wait_s, seed, progress
        )
        results = [bench.run(name, learn_decisions) for name in policies]
    planner = bench.settings.planner
    return ReplayReport(
        trace=trace.name,
        tickets=len(test),
        train_tickets=len(train),
        start=test.start,
        end=test.end,
        erlangs=test.load,
        service_mean_s=test.service_mean_s,
        tick_s=tick_s,
        startup_s=planner.startup_s,
        sla_wait_s=planner.sla_wait_s,
        seed=seed,
        first_workers=bench.first_workers,
        forecast_mape=bench.mape,
        policies=results,
        notes=bench.notes,
    )


class _Bench:
    """One replay's common ground."""

    def __init__(
        self,
        settings: Settings,
        train: Trace,
        test: Trace,
        folder: Path,
        tick_s: float,
        startup_s: float | None,
        sla_wait_s: float | None,
        seed: int,
        progress: Progress | None,
    ) -> None:
        planner = {
            "startup_s": settings.planner.startup_s if startup_s is None else startup_s,
            "sla_wait_s": settings.planner.sla_wait_s if sla_wait_s is None else sla_wait_s,
        }
        self.user_table = settings.q_table_path
        self.settings = _isolated(settings, folder, planner, seed)
        self.train, self.test, self.tick_s, self.seed = train, test, tick_s, seed
        self.notes: list[str] = []
        self.mape: dict[str, float] = {}
        self._progress = progress
        limits = settings.limits
        self.first_workers = min(max(math.ceil(1.2 * train.load), limits.min_workers, 1), limits.max_workers)

    def run(self, name: str, learn_decisions: int) -> PolicyResult:
        if name == "static":
            workers = static_workers(self.train, sla_wait_s=self.settings.planner.sla_wait_s)
            self.notes.append(f"static: {workers} workers, the fewest that start 95 % in time on the training part")
            return self._simulated(StaticController(workers), Counter(), workers)
        forecasts = self._forecasts(name)
        if name == "rules":
            served, advance = (None, None) if forecasts is None else (forecasts.served, forecasts.advance)
            rules = RulesController(self.settings, served, advance)
            return self._simulated(rules, rules.decisions)
        self._prepare_table(learn_decisions)
        return self._plugin(forecasts)

    def _plugin(self, forecasts: RollingForecasts | None) -> PolicyResult:
        planner = self.settings.planner
        clock = Clock(self.test.start)
        with SchedulerHost.from_config(self.settings, clock=clock) as host:

            def advance(now: float) -> None:
                if forecasts is not None and forecasts.advance(now):
                    host.refresh()  # the background would do it within a second: hours of simulated time

            controller = PluginController(
                host,
                self.test,
                clock=clock,
                lead_s=lead_s(planner.startup_s, self.tick_s),
                sla_wait_s=planner.sla_wait_s,
                before_tick=advance,
            )
            return self._simulated(controller, controller.decisions)

    def _prepare_table(self, learn_decisions: int) -> None:
        path = self.settings.q_table_path
        if self.user_table.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.user_table, path)
            self.notes.append(f"plugin: starts from a copy of {self.user_table}")
        elif learn_decisions:
            told = self._telling("pre-train")
            learned = pretrain(
                self.settings, self.train, decisions=learn_decisions, tick_s=self.tick_s, seed=self.seed, progress=told
            )
            self.notes.append(f"plugin: pre-trained for {learned.decisions} decisions on the training part")
        else:
            self.notes.append("plugin: no Q-table and no pre-training, so its confidence is low and the rules decide")

    def _forecasts(self, name: str) -> RollingForecasts | None:
        forecasting = self.settings.ml.forecasting
        path = self.settings.forecast_table_path if name == "plugin" else self.settings.data_dir / "rules.json"
        told = self._telling("fit the forecast")
        try:
            forecasts = RollingForecasts(
                self.train, self.test, path, horizons=forecasting.horizons, country=forecasting.country
            )
        except ValueError as error:
            self.notes.append(f"{name}: without a forecast ({error})")
            return None
        finally:
            if told is not None:
                told(1.0)
        self.mape = forecasts.mape
        return forecasts

    def _simulated(self, controller: Controller, decisions: Counter[Kind], workers: int | None = None) -> PolicyResult:
        planner = self.settings.planner
        pool = Pool(
            self.test,
            workers=self.first_workers if workers is None else workers,
            startup_s=planner.startup_s,
            sla_wait_s=planner.sla_wait_s,
            service_s=self.train.service_mean_s,
        )
        scored = Scored(controller, lead_s(planner.startup_s, self.tick_s))
        began = time.perf_counter()
        run = simulate(pool, scored, tick_s=self.tick_s, progress=self._telling(controller.name))
        return measured(controller.name, run, scored.mean, decisions, time.perf_counter() - began)

    def _telling(self, what: str) -> Callable[[float], Any] | None:
        progress = self._progress
        return None if progress is None else lambda share: progress(what, share)


def _isolated(settings: Settings, folder: Path, planner: Mapping[str, float], seed: int) -> Settings:
    """The user's settings, at full rollout, seeded, and with nothing of theirs in reach of a write."""
    tuning = settings.ml.scheduling
    if tuning.seed is None:
        tuning = tuning.model_copy(update={"seed": seed})
    return settings.model_copy(
        update={
            "data_dir": folder,
            "planner": settings.planner.model_copy(update=dict(planner)),
            "ml": settings.ml.model_copy(update={"scheduling": tuning}),
            "rollout": settings.rollout.model_copy(update={"percentage": 100}),
            "experiment": settings.experiment.model_copy(update={"enabled": False}),
            "recording": settings.recording.model_copy(update={"enabled": False}),
            "metrics": settings.metrics.model_copy(update={"enabled": False}),
        }
    )


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


def measured(name: str, run: Run, reward_mean: float, decisions: Counter[Kind], elapsed_s: float) -> PolicyResult:
    """A run in figures."""
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
    )
