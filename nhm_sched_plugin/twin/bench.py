"""One seed of a replay: every policy on the same tickets."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.decision.gate import volume_threshold
from nhm_sched_plugin.host import SchedulerHost
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.settings_ml import CachingSettings
from nhm_sched_plugin.twin.calibrate import best_room
from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.controllers import (
    Clock,
    Kind,
    PlannerController,
    PluginController,
    RulesController,
    StaticController,
    static_workers,
)
from nhm_sched_plugin.twin.crowds import CrowdsAhead
from nhm_sched_plugin.twin.forecasts import RollingForecasts
from nhm_sched_plugin.twin.learn import calibrated, lead_s, pretrain
from nhm_sched_plugin.twin.oracle import oracle
from nhm_sched_plugin.twin.own import Own, factory
from nhm_sched_plugin.twin.results import Frontier, HourLine, PolicyResult, Scored, measured
from nhm_sched_plugin.twin.rivals import RIVALS, Scene
from nhm_sched_plugin.twin.simulator import Controller, Pool, simulate
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.twin.tuning import Tuned, first_workers, frontier, tuned
from nhm_sched_plugin.types import SchedulingState

__all__ = ["POLICIES", "Bench", "Progress", "Rules", "checked"]

POLICIES: Final = ("plugin", "planner", "rules", *RIVALS, "static", "oracle")
_ENOUGH_MS: Final = 10_000.0
Progress = Callable[[str, float], Any]
"""Gets what is being done and the share of it that is done, in [0, 1]."""


class Rules(NamedTuple):
    """How everybody plays: the same for all policies and seeds."""

    tick_s: float
    startup_s: float
    sla_wait_s: float
    sla_target: float
    learn_decisions: int
    classes: tuple[TicketClass, ...] = ()


def checked(policies: Sequence[str]) -> list[str]:
    """The policies without repetitions: names of `POLICIES`, a rival with its knob as in `hpa=0.7`, or MODULE:FACTORY
    where the factory takes a `Scene` and makes a `Controller`. Raises `TraceError` (a ValueError) for anything else."""
    names = list(dict.fromkeys(policies))
    for name in names:
        rival, given, knob = name.partition("=")
        if ":" in name:
            factory(name)
        elif given:
            _with_knob(rival, knob)
        elif name not in POLICIES:
            raise TraceError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}, or MODULE:FACTORY of your own")
    if not names:
        raise TraceError(f"no policy is named; known: {', '.join(POLICIES)}, or MODULE:FACTORY of your own")
    return names


def _with_knob(rival: str, knob: str) -> float:
    if rival not in RIVALS:
        raise TraceError(f"policy {rival}={knob}: {rival!r} has no knob; rivals with one: {', '.join(RIVALS)}")
    try:
        value = float(knob)
        RIVALS[rival].make(Scene(Trace([], [], start=0.0, end=3600.0)), value)
    except ValueError as error:
        raise TraceError(f"policy {rival}={knob}: {error}") from None
    return value


class Bench:
    """One seed's common ground. Everything that policies write goes to `folder`."""

    def __init__(
        self,
        settings: Settings,
        train: Trace,
        test: Trace,
        folder: Path,
        rules: Rules,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self._users = settings
        self.settings = _isolated(settings, folder, rules, seed)
        self.train, self.test, self.rules, self.seed = train, test, rules, seed
        self.notes: list[str] = []
        self.mape: dict[str, float] = {}
        self._progress = progress
        self.scene = Scene(
            train,
            rules.tick_s,
            rules.startup_s,
            rules.sla_wait_s,
            settings.limits.min_workers,
            settings.limits.max_workers,
            seed,
            self.settings,
            rules.classes,
            lambda: self.forecasts("own"),
        )
        self.first_workers = first_workers(self.scene)

    def tune(self, names: Sequence[str]) -> list[Tuned]:
        """The knobs of those that have one, found on the training part."""
        return [
            tuned(
                name,
                self.scene,
                sla_target=self.rules.sla_target,
                progress=self._telling(f"tune {name}"),
            )
            for name in names
            if name in RIVALS
        ]

    def frontiers(self, names: Sequence[str]) -> list[Frontier]:
        """Every point that the rivals among `names` reach on the replayed tickets, whatever their knob was."""
        return [
            Frontier(
                name,
                RIVALS[name].knob,
                frontier(name, self.test, self.scene, progress=self._telling(f"sweep {name}")),
            )
            for name in dict.fromkeys(name.partition("=")[0] for name in names)
            if name in RIVALS
        ]

    def run(self, name: str, knobs: Mapping[str, float]) -> PolicyResult:
        """One policy; `knobs` by rival."""
        if name == "oracle":
            return self._oracle()
        if name == "static":
            workers = static_workers(self.train, sla_wait_s=self.rules.sla_wait_s, classes=self.rules.classes)
            self.notes.append(f"static: {workers} workers, the fewest that start 95 % in time on the training part")
            return self._simulated(name, StaticController(workers), workers=workers)
        if name in RIVALS:
            return self._simulated(name, RIVALS[name].make(self.scene, knobs[name]))
        if "=" in name:
            rival, _, knob = name.partition("=")
            return self._simulated(name, RIVALS[rival].make(self.scene, float(knob)))
        if ":" in name:
            return self._simulated(name, Own(name, self.scene))
        forecasts = self.forecasts(name)
        served, advance = (None, None) if forecasts is None else (forecasts.served, forecasts.advance)
        if name == "planner":
            model = self._prepare_planner()
            crowds = CrowdsAhead(self.test, self.rules.startup_s, model.crowds)
            headroom = best_room(self.settings, self.train, model, tick_s=self.rules.tick_s)
            self.notes.append(f"planner: {headroom:g} of its room, the best constant on the training part")
            return self._simulated(name, PlannerController(self.settings, served, advance, headroom, crowds))
        if name == "rules":
            rules = RulesController(self.settings, served, advance)
            return self._simulated(name, rules, rules.decisions)
        self._prepare_planner()
        self._prepare_table()
        self._tell_the_gate()
        return self._plugin(forecasts)

    def _oracle(self) -> PolicyResult:
        began = time.perf_counter()
        found = oracle(self.test, self.rules.startup_s)
        days = (self.test.end - self.test.start) / 86_400
        self.notes.append(
            f"oracle: knows every arrival and lets no ticket wait; {found.boots / days:,.0f} boots and "
            f"{found.worker_seconds / 3600 / days:,.0f} worker-hours a day, the least for that"
        )
        hours = [3600.0 * hour for hour in range(len(found.workers))]
        arrivals = Counter(int((arrival - self.test.start) // 3600) for arrival in self.test.arrivals)
        return PolicyResult(
            name="oracle",
            tickets=len(self.test),
            sla=1.0,
            missed=0,
            worker_hours=found.worker_seconds / 3600,
            wait_mean_s=0.0,
            wait_p50_s=0.0,
            wait_p95_s=0.0,
            wait_p99_s=0.0,
            scale_events=found.boots,
            reward_mean=0.0,
            decisions=[],
            reasons={},
            hours=[
                HourLine(self.test.start + at, arrivals[hour], found.workers[hour], 0.0)
                for hour, at in enumerate(hours)
            ],
            elapsed_s=time.perf_counter() - began,
            finished=found.finished,
            busy_hours=found.busy_seconds / 3600,
        )

    def _plugin(self, forecasts: RollingForecasts | None) -> PolicyResult:
        clock = Clock(self.test.start)
        with SchedulerHost.from_config(self.settings, clock=clock) as host:

            def advance(now: float) -> None:
                if forecasts is not None and forecasts.advance(now):
                    host.refresh()  # the background would do it within a second: hours of simulated time

            controller = PluginController(
                host,
                self.test,
                clock=clock,
                lead_s=lead_s(self.rules.startup_s, self.rules.tick_s),
                sla_wait_s=self.rules.sla_wait_s,
                before_tick=advance,
            )
            return self._simulated("plugin", controller, controller.decisions)

    def _prepare_planner(self) -> DemandModel:
        """The user's calibration where it fits this pool and saw nothing of the replayed part, else one of the rest."""
        path, users = self.settings.planner_path, self._users.planner_path
        if users.exists() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(users, path)
        told = self._telling("calibrate the planner")
        model = calibrated(self.settings, self.train, seed=self.seed, progress=told)
        self.notes.append(
            f"planner: calibrated on {model.tickets:,} tickets before; {100 * model.sla:.1f} % in time there at"
            f" {model.cost:.2f} times the oracle's cost"
        )
        return model

    def _tell_the_gate(self) -> None:
        if self._users.optimizer.forecast_volume_threshold is not None:
            return
        workers, service_ms = float(self.first_workers), 1000 * self.train.service_mean_s
        default = volume_threshold(SchedulingState(active_workers=workers, avg_task_duration_ms=service_ms))
        figure = "" if default is None else f"; for the {workers:g} workers at the beginning it is {default:,.0f}"
        self.notes.append(
            "plugin: asked at any load, since optimizer.forecast_volume_threshold is not set. By default that is "
            "80 % of the pool's capacity; below it the rules decide, which is most of the time, and the replay would "
            f"mostly measure them. To see the gate, set the key, in tickets an hour{figure}"
        )

    def _prepare_table(self) -> None:
        path, users, decisions = self.settings.q_table_path, self._users.q_table_path, self.rules.learn_decisions
        if users.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(users, path)
            self.notes.append(f"plugin: starts from a copy of {users}")
        elif decisions:
            learned = pretrain(
                self.settings,
                self.train,
                decisions=decisions,
                tick_s=self.rules.tick_s,
                seed=self.seed,
                progress=self._telling("pre-train the plugin"),
            )
            self.notes.append(f"plugin: pre-trained for {learned.decisions} decisions on the training part")
        else:
            self.notes.append("plugin: no Q-table and no pre-training, so its confidence is low and the rules decide")

    def forecasts(self, name: str) -> RollingForecasts | None:
        """The live path's forecasts for one policy, fitted on the training part; None, and a note, when it is short."""
        forecasting = self.settings.ml.forecasting
        path = self.settings.forecast_table_path if name == "plugin" else self.settings.data_dir / f"{name}.json"
        told = self._telling(f"fit the forecast of {name}")
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

    def _simulated(
        self, name: str, controller: Controller, decisions: Counter[Kind] | None = None, workers: int | None = None
    ) -> PolicyResult:
        rules = self.rules
        pool = Pool(
            self.test,
            workers=self.first_workers if workers is None else workers,
            startup_s=rules.startup_s,
            sla_wait_s=rules.sla_wait_s,
            service_s=self.train.service_mean_s,
            classes=rules.classes,
        )
        scored = Scored(controller, lead_s(rules.startup_s, rules.tick_s))
        began = time.perf_counter()
        run = simulate(pool, scored, tick_s=rules.tick_s, progress=self._telling(name))
        return measured(
            name,
            run,
            scored.mean,
            Counter() if decisions is None else decisions,
            time.perf_counter() - began,
            trace=self.test,
        )

    def _telling(self, what: str) -> Callable[[float], Any] | None:
        progress = self._progress
        return None if progress is None else lambda share: progress(what, share)


def _isolated(settings: Settings, folder: Path, rules: Rules, seed: int) -> Settings:
    """The user's settings, at full rollout, seeded, and with nothing of theirs in reach of a write."""
    tuning = settings.ml.scheduling
    tuning = tuning.model_copy(update={"seed": (tuning.seed or 0) + seed})
    optimizer = settings.optimizer
    if optimizer.forecast_volume_threshold is None:  # the policy is asked at any load, see `Bench._tell_the_gate`
        optimizer = optimizer.model_copy(update={"forecast_volume_threshold": 0.0})
    # A busy machine would run out of the budget now and then, and the rules decide: a replay is of the policy.
    optimizer = optimizer.model_copy(update={"decision_budget_ms": _ENOUGH_MS})
    planner = {"startup_s": rules.startup_s, "sla_wait_s": rules.sla_wait_s}
    return settings.model_copy(
        update={
            "data_dir": folder,
            "optimizer": optimizer,
            "planner": settings.planner.model_copy(update=planner),
            "ml": settings.ml.model_copy(update={"scheduling": tuning, "caching": CachingSettings(enabled=False)}),
            "rollout": settings.rollout.model_copy(update={"percentage": 100}),
            "experiment": settings.experiment.model_copy(update={"enabled": False}),
            "recording": settings.recording.model_copy(update={"enabled": False}),
            "metrics": settings.metrics.model_copy(update={"enabled": False}),
        }
    )
