"""The plugin itself: implements the orchestrator's hooks and wires the pieces.

Any pluggy host can load it through the entry-point group `nhm_sched`; `SchedulerHost` is the ready-made one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.advice import gauges
from nhm_sched_plugin.advice.defaults import DefaultHooks
from nhm_sched_plugin.advice.protocols import Forecaster, Policy, Sink
from nhm_sched_plugin.background import FileWatch, Worker
from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.extension import Found, HookManager, deadline, discover
from nhm_sched_plugin.feedback import OBSERVER_TIMEOUT_S, Feedback
from nhm_sched_plugin.hookspecs import ExtensionSpecs, hookimpl
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.listener import MetricsListener
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.pipeline import Pipeline
from nhm_sched_plugin.recorder import Recorder
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.types import (
    Action,
    Decision,
    Health,
    Outcome,
    RewardedOutcome,
    SchedulingState,
    Ticket,
)

__all__ = ["SchedulerPlugin", "plugin"]

logger = logging.getLogger(__name__)

REFRESH_S: Final = 1.0
"""How often files (configuration, rule book, snapshots) are looked at."""
HOT_SECTIONS: Final = ("optimizer", "rollout", "experiment", "limits", "fallback")
"""What a reload of the configuration file changes; the rest needs a restart."""


class SchedulerPlugin:
    """Everything behind the scheduler hooks. Idle until `nhm_sched_startup`.

    Attributes `settings`, `forecaster` and `policy` are what the pipeline reads at each decision.
    """

    settings: Settings
    forecaster: Forecaster | None = None
    policy: Policy | None = None

    def __init__(self, plugins: Iterable[Found] = ()) -> None:
        self._given = tuple(plugins)
        self._ready = False

    @hookimpl(trylast=True)
    def nhm_sched_startup(self, config: Any, host: Any) -> None:
        """Build everything. Raises `ConfigError` or `RuleBookError` for what a person has to mend first."""
        if self._ready:
            return
        self.settings = load_settings(config)
        self.clock: Callable[[], float] = getattr(host, "clock", time.time)
        self.metrics: Metrics = getattr(host, "metrics", None) or Metrics()
        self.faults: Faults = getattr(host, "faults", None) or Faults(self.metrics)
        self._config_path: Path | None = getattr(host, "config_path", None)
        self._defaults = DefaultHooks(self.settings, self.clock, self._loaded)
        self._load_hooks()
        self._background = Worker("nhm-sched-background", self._failed)
        self._make_parts()
        self._pipeline = Pipeline(self, self.hooks, self.metrics, self.faults, self.clock)
        self._recorder = Recorder(self._sinks, self.settings.recording, self.metrics, self.faults)
        self._feedback = Feedback(self.hooks, self.policy, self._record, self.metrics, self.faults)
        self._latest_state: SchedulingState | None = None
        self._watches = self._watch_files()
        self._background.every(REFRESH_S, "refresh", self._refresh)
        self._publish_gauges()
        self._background.start()
        self._listener = self._listen()
        self._ready = True

    # Setting up

    def _load_hooks(self) -> None:
        self.hooks = HookManager(ExtensionSpecs, self.settings.hooks, self.faults)
        self.hooks.add_builtin(self._defaults, "built-in")
        for found in self._given:
            self.hooks.add(found)
        for found in discover(self.settings.hooks, self.settings.hooks_dir):
            self.hooks.add(found)
        self.hooks.on_error = self._hook_failed

    def _make_parts(self) -> None:
        hook: Any = self.hooks.hook
        self.forecaster = self._made("forecaster", hook.nhm_sched_make_forecaster)
        self.policy = self._defaults.policy = self._made("policy", hook.nhm_sched_make_policy)
        for part in (self.forecaster, self.policy):
            if part is not None:
                self._refreshed(part)
        self._sinks: list[Sink] = []
        if self.settings.recording.enabled:
            made = hook.nhm_sched_make_sinks(settings=self.settings)
            # The built-in spool was asked last; it comes first here, since it is what makes a record safe.
            self._sinks = [sink for sinks in reversed(made) for sink in sinks]

    def _made(self, part: str, maker: Any) -> Any:
        try:
            return maker(settings=self.settings)
        except Exception as error:  # noqa: BLE001 - a part that cannot be made means rules only
            self.faults.report(part, error)
            logger.error("no %s: decisions follow the rules only. %s", part, error)
            return None

    def _refreshed(self, part: Forecaster | Policy) -> None:
        name = "forecaster" if part is self.forecaster else "policy"
        try:
            part.refresh()
        except Exception as error:  # noqa: BLE001 - the old snapshot stays in use
            self.faults.report(name, error)
            self._loaded("failed")

    def _loaded(self, status: str) -> None:
        self.metrics.child("model_loads", status).inc()

    def _listen(self) -> MetricsListener | None:
        if not self.settings.metrics.enabled:
            return None
        listener = MetricsListener(self.metrics, self.settings.metrics, self.nhm_sched_health)
        try:
            listener.start()
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - a taken port must not stop the host
            self.faults.report("metrics listener", error)
            return None
        return listener

    # The orchestrator's hooks

    @hookimpl(trylast=True)
    def nhm_sched_decide(self, ticket: Ticket | None, state: SchedulingState) -> Decision | None:
        if not self._ready:
            return None
        now = self.clock()
        if ticket is not None:
            self._defaults.arrivals.observe(now)
        decision = self._pipeline.decide(ticket, state)
        self._latest_state = decision.state
        self._feedback.remember(decision)
        self._record(decision, self._left(decision))
        if self._observed():
            self._background.submit("after_decision", self._after_decision, decision)
        return decision

    @hookimpl(trylast=True)
    def nhm_sched_decision_applied(self, decision: Decision, applied: bool, error: str | None) -> None:
        if not self._ready:
            return
        self._feedback.applied(decision.decision_id, applied, error)
        if applied and decision.action in POOL_ACTIONS:
            self._defaults.last_pool_action_at = self.clock()
        if error is not None:
            self.faults.report("host", f"could not apply {decision.action}: {error}")

    @hookimpl(trylast=True)
    def nhm_sched_task_finished(self, outcome: Outcome) -> None:
        if not self._ready:
            return
        if outcome.finished_at is None:
            outcome = msgspec.structs.replace(outcome, finished_at=self.clock())
        if not self._background.submit("outcome", self._feedback.finished, outcome):
            self.metrics.child("records", "dropped").inc()
            self.faults.report("recorder", "outcomes are being dropped: the background queue is full")

    @hookimpl(trylast=True)
    def nhm_sched_health(self) -> list[Health]:
        if not self._ready:
            return [Health(component="plugin", ok=False, detail="not started")]
        parts = [
            part.health() if part is not None else Health(component=name, ok=False, detail="rules only")
            for name, part in (("forecaster", self.forecaster), ("policy", self.policy))
        ]
        broken = "; ".join(f"{name}: {why}" for name, why in self.hooks.problems.items())
        return [
            *parts,
            Health(component="rules", ok=True, detail=str(self._defaults.rule_book_path)),
            Health(component="hooks", ok=not broken, detail=broken or f"{len(self.hooks.get_plugins()) - 1} loaded"),
        ]

    @hookimpl(trylast=True)
    def nhm_sched_shutdown(self, grace_s: float) -> None:
        if not self._ready:
            return
        until = time.monotonic() + grace_s
        self._ready = False
        self._background.close(max(until - time.monotonic(), 0.1))
        self._recorder.close(max(until - time.monotonic(), 0.1))
        if self.policy is not None:
            try:
                self.policy.save()
            except Exception as error:  # noqa: BLE001 - shutting down goes on
                self.faults.report("policy", error)
        if self._listener is not None:
            self._listener.close()
        self.hooks.close()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything so far is learned from and with every sink."""
        until = time.monotonic() + timeout_s
        return self._background.flush(timeout_s) and self._recorder.flush(max(until - time.monotonic(), 0.0))

    # After a decision

    def _record(self, record: Decision | RewardedOutcome, at_most_s: float | None = None) -> None:
        """Queue it; with `recording.durability: sync` wait until it is on disk, at most so long."""
        if self._sinks:
            sync = self.settings.recording.durability == "sync"
            self._recorder.record(record, at_most_s if sync else None)

    def _left(self, decision: Decision) -> float:
        return max(self.settings.optimizer.decision_budget_ms / 1000 - decision.latency_us * 1e-6, 0.0)

    def _observed(self) -> bool:
        hook: Any = self.hooks.hook
        return bool(hook.nhm_sched_after_decision.get_hookimpls() or hook.nhm_sched_actuate.get_hookimpls())

    def _after_decision(self, decision: Decision) -> None:
        hook: Any = self.hooks.hook
        if decision.action is not Action.NO_ACTION and hook.nhm_sched_actuate.get_hookimpls():
            self._actuate(decision)
        with deadline(OBSERVER_TIMEOUT_S):
            hook.nhm_sched_after_decision(record=decision)

    def _actuate(self, decision: Decision) -> None:
        hook: Any = self.hooks.hook
        try:
            with deadline(OBSERVER_TIMEOUT_S):
                carried_out = hook.nhm_sched_actuate(decision=decision)
        except Exception as error:  # noqa: BLE001 - reported, not applied
            self.nhm_sched_decision_applied(decision, False, str(error))
            return
        if carried_out:
            self.nhm_sched_decision_applied(decision, True, None)

    # In the background

    def _failed(self, what: str, error: BaseException) -> None:
        self.faults.report(what, error)

    def _hook_failed(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        self._background.submit("on_error", self._tell_observers, hook_name, plugin_name, error)

    def _tell_observers(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        hook: Any = self.hooks.hook
        with deadline(OBSERVER_TIMEOUT_S):
            hook.nhm_sched_on_error(hook_name=hook_name, plugin_name=plugin_name, error=error)

    def _watch_files(self) -> dict[str, FileWatch]:
        paths = {"rules": self._defaults.rule_book_path}
        if self._config_path is not None:
            paths["config"] = self._config_path
        return {name: FileWatch(path) for name, path in paths.items()}

    def _refresh(self) -> None:
        config = self._watches.get("config")
        try:
            if config is not None and config.changed():
                self._reconfigure(load_settings(config.path))
            elif self._watches["rules"].changed():
                self._defaults.use(self.settings)
                logger.info("rule book %s reloaded", self._defaults.rule_book_path)
        except NhmSchedError as error:
            self.faults.report("reload", error)
        for part in (self.forecaster, self.policy):
            if part is not None:
                self._refreshed(part)
        self._publish_gauges()

    def _reconfigure(self, fresh: Settings) -> None:
        """Take over the hot sections; an error leaves everything as it was."""
        settings = self.settings.model_copy(update={name: getattr(fresh, name) for name in HOT_SECTIONS})
        self._defaults.use(settings)
        self._watches["rules"] = FileWatch(self._defaults.rule_book_path)
        self.settings = settings
        cold = [name for name in type(fresh).model_fields if getattr(fresh, name) != getattr(settings, name)]
        note = f"; restart for changes in: {', '.join(cold)}" if cold else ""
        logger.info("configuration reloaded, rollout at %d %%%s", settings.rollout.percentage, note)

    def _publish_gauges(self) -> None:
        gauges.publish(self.metrics, self.settings, self.forecaster, self.policy, self._latest_state, self.clock())


plugin: Final = SchedulerPlugin()
"""What the entry point names: for orchestrators with a pluggy manager of their own."""
