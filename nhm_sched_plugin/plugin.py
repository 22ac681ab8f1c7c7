"""The plugin itself: implements the orchestrator's hooks and wires the pieces.

Any pluggy host can load it through the entry-point group `nhm_sched`; `SchedulerHost` is the ready-made one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.advice import gauges
from nhm_sched_plugin.advice.defaults import DefaultHooks
from nhm_sched_plugin.advice.protocols import PARTS, Forecaster, Policy, Sink, health_of
from nhm_sched_plugin.advice.snapshots import Snapshots
from nhm_sched_plugin.background import FileWatch, Worker
from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.extension import Found, HookManager, deadline, discover
from nhm_sched_plugin.feedback import Feedback
from nhm_sched_plugin.hookspecs import ExtensionSpecs, hookimpl
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.listener import MetricsListener
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.tally import Tally
from nhm_sched_plugin.observers import OBSERVER_TIMEOUT_S, Observers
from nhm_sched_plugin.pipeline import Pipeline
from nhm_sched_plugin.pseudonyms import pseudonyms
from nhm_sched_plugin.recorder import Recorder
from nhm_sched_plugin.settings import Settings, load_settings, reloaded
from nhm_sched_plugin.types import (
    Decision,
    Health,
    Outcome,
    RewardedOutcome,
    SchedulingState,
    Ticket,
)

if TYPE_CHECKING:
    from nhm_sched_plugin.store.delivery import Delivery

__all__ = ["SchedulerPlugin", "plugin"]

logger = logging.getLogger(__name__)

BUILT_IN: Final = "built-in"
REFRESH_S: Final = 0.5
"""How often files (configuration, rule book, snapshots) are looked at."""
_UNDOING_S: Final = 1.0
"""What a start that fails may take to end what it has begun."""


class SchedulerPlugin:
    """Everything behind the scheduler hooks. Idle until `nhm_sched_startup`.

    Attributes `settings`, `forecaster` and `policy` are what the pipeline reads at each decision.
    """

    settings: Settings
    forecaster: Forecaster | None = None
    policy: Policy | None = None

    def __init__(self, plugins: Iterable[Found] | None = None) -> None:
        """`plugins`: the third parties, where the host has found them already; None to look for them here."""
        self._given = None if plugins is None else tuple(plugins)
        self._ready = False

    @hookimpl(trylast=True)
    def nhm_sched_startup(self, config: Any, host: Any) -> None:
        """Build everything. Raises `ConfigError` or `RuleBookError` for what a person has to mend first."""
        if self._ready:
            return
        try:
            self._build(config, host)
            self._background.start()
            if self._recorder is not None:
                self._background.submit("recorder", self._recorder.open)
            if self._delivery is not None:
                self._delivery.start()
        except BaseException:
            self._close(time.monotonic() + _UNDOING_S)
            raise
        self._ready = True

    # Setting up

    def _build(self, config: Any, host: Any) -> None:
        self.settings = load_settings(config)
        self.clock: Callable[[], float] = getattr(host, "clock", time.time)
        self.metrics: Metrics = getattr(host, "metrics", None) or Metrics()
        self.faults: Faults = getattr(host, "faults", None) or Faults(self.metrics)
        self._config_path: Path | None = getattr(host, "config_path", None)
        self._defaults = DefaultHooks(self.settings, self.clock, self._loaded, metrics=self.metrics, faults=self.faults)
        self._load_hooks()
        self._background = Worker("nhm-sched-background", self.faults.report)
        self._snapshots = Snapshots(self.settings, self.metrics, self.faults)
        self._snapshots.start()  # before the parts, which read what is taken over from the cache
        self._make_parts()
        self._tally = Tally(self.metrics)
        self._pipeline = Pipeline(self, self.hooks, self._tally, self.faults, self.clock)
        self._recorder = self._made_recorder()
        self._delivery = self._drain_here()
        self._feedback = Feedback(
            self.hooks, self.policy, self._record, self.observers.finished, self.metrics, self.faults
        )
        self._latest_state: SchedulingState | None = None
        self._watches = self._watch_files()
        self._background.every(REFRESH_S, "refresh", self.refresh)
        self._publish_gauges()
        self._listener = self._listen()

    def _load_hooks(self) -> None:
        self.hooks = HookManager(ExtensionSpecs, self.settings.hooks, self.faults, PARTS)
        found = discover(self.settings.hooks, self.settings.hooks_dir) if self._given is None else self._given
        for one in found:
            self.hooks.add(one)
        # Last, so that pluggy asks it after everybody else, a third party's own `trylast` included.
        self.hooks.add_builtin(self._defaults, BUILT_IN)
        self.observers = Observers(self.hooks, self.faults, self.nhm_sched_decision_applied)
        self.hooks.on_error = self.observers.hook_failed

    def _make_parts(self) -> None:
        hook: Any = self.hooks.hook
        self.forecaster = self._made("forecaster", hook.nhm_sched_make_forecaster)
        self.policy = self._defaults.policy = self._made("policy", hook.nhm_sched_make_policy)
        for part in (self.forecaster, self.policy):
            if part is not None:
                self._refreshed(part)

    def _made_recorder(self) -> Recorder | None:
        if not self.settings.recording.enabled:
            return None
        hashed = pseudonyms(self.settings.recording)  # before there are sinks: it may raise
        hook: Any = self.hooks.hook
        made = [sink for sinks in hook.nhm_sched_make_sinks(settings=self.settings) for sink in sinks]
        for sink in made:
            if not isinstance(sink, Sink):
                self.faults.report("recorder", f"{sink!r} is no sink (name, write, close) and gets no records")
        # The built-in spool was asked last; it comes first here, since it is what makes a record safe.
        sinks = [sink for sink in reversed(made) if isinstance(sink, Sink)]
        return Recorder(sinks, self.settings.recording, self.metrics, self.faults, hashed)

    def _drain_here(self) -> Delivery | None:
        if not self.settings.recording.enabled or self.settings.recording.drain == "off":
            return None
        from nhm_sched_plugin.store.delivery import delivery  # the client of the database comes with it

        return delivery(self.settings, self.metrics, self.faults, migrate=False)

    def _made(self, part: str, maker: Any) -> Any:
        try:
            return maker(settings=self.settings)
        except ConfigError:  # our own part's, which a person has to mend; a third party's comes as HookFailedError
            raise
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
            self._defaults.arrivals.observe(now, ticket.task_type)
        decision = self._pipeline.decide(ticket, state)
        self._latest_state = decision.state
        self._feedback.remember(decision)
        if self._recorder is not None:
            self._write_down(decision)
        self.observers.decided(decision)
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
        durable = threading.Event() if self._waits() else None
        if not self._background.submit("outcome", self._feedback.finished, outcome, durable):
            self.metrics.child("records", "dropped").inc()
            self.metrics.child("drops", "background").inc()
            self.faults.report("recorder", "outcomes are being dropped: the background queue is full")
        elif durable is not None:
            durable.wait(self.settings.optimizer.decision_budget_ms / 1000)

    @hookimpl(trylast=True)
    def nhm_sched_health(self) -> list[Health]:
        if not self._ready:
            return [Health(component="plugin", ok=False, detail="not started")]
        parts = [health_of(name, part) for name, part in (("forecaster", self.forecaster), ("policy", self.policy))]
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
        if self.policy is not None:
            try:
                self.policy.save()
            except Exception as error:  # noqa: BLE001 - shutting down goes on
                self.faults.report("policy", error)
        self._close(until)

    def _close(self, until: float) -> None:
        """End what has been made, each part as far as the time allows; a start that failed has not made them all."""
        made = vars(self)
        for name in (
            "_background",
            "_recorder",
            "_delivery",
            "_snapshots",
            "_defaults",
            "_listener",
            "observers",
            "hooks",
        ):
            if (part := made.get(name)) is None:
                continue
            try:
                part.close() if name in ("_listener", "hooks") else part.close(max(until - time.monotonic(), 0.1))
            except Exception as error:  # noqa: BLE001 - the others are closed all the same
                self.faults.report(name.removeprefix("_"), error)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything so far is learned from, with every sink and with the observers."""
        until = time.monotonic() + timeout_s
        done = self._background.flush(timeout_s)
        if self._recorder is not None:
            done &= self._recorder.flush(max(until - time.monotonic(), 0.0))
        return done and self.observers.flush(max(until - time.monotonic(), 0.0))

    # After a decision

    def note(self, decision: Decision) -> None:
        """Count and record a decision that the host made without us: the last resort."""
        if self._ready:
            self.metrics.child("decisions", decision.action, decision.source, decision.arm).inc()
            self.metrics.child("unavailable", decision.reason).inc()
            self._feedback.remember(decision)
            self._record(decision)

    def _waits(self) -> bool:
        return self._recorder is not None and self.settings.recording.durability == "sync"

    def _write_down(self, decision: Decision) -> None:
        """Queue it; with `recording.durability: sync` wait until it is on disk, as long as the budget allows."""
        durable = threading.Event() if self._waits() else None
        self._record(decision, durable)
        if durable is not None:
            left = self.settings.optimizer.decision_budget_ms / 1000 - decision.latency_us * 1e-6
            if not durable.wait(max(left, 0.0)):
                self.faults.report("recorder", "the disk was too slow: a decision left before it was durable")

    def _record(self, record: Decision | RewardedOutcome, durable: threading.Event | None = None) -> None:
        if self._recorder is not None:
            self._recorder.record(record, durable)

    # In the background

    def _watch_files(self) -> dict[str, FileWatch]:
        paths = {"rules": self._defaults.rule_book_path}
        if self._config_path is not None:
            paths["config"] = self._config_path
        # What was read at the start may have changed since.
        return {name: FileWatch(path, seen=False) for name, path in paths.items()}

    def refresh(self, *, complete: bool = False) -> None:
        """Take over what changed on disk; each part that fails keeps what it had.

        `complete`: no file is being written to just now.
        """
        config = self._watches.get("config")
        try:
            if config is not None and config.changed(complete=complete):
                self._reconfigure(load_settings(config.path))
            elif self._watches["rules"].changed(complete=complete):
                self._defaults.use(self.settings)
                logger.info("rule book %s reloaded", self._defaults.rule_book_path)
        except NhmSchedError as error:
            self.faults.report("reload", error)
        for part in (self.forecaster, self.policy):
            if part is not None:
                self._refreshed(part)
        self._snapshots.go_on()
        self._follow_arrivals()
        for rule in self._defaults.rule_failures():
            self.faults.report("rules", f"rule {rule!r} could not be evaluated")
        self._tally.settle()
        self._publish_gauges()

    def _follow_arrivals(self) -> None:
        try:
            if self._defaults.live is not None:
                self._defaults.live.follow()
        except Exception as error:  # noqa: BLE001 - the table is served as it is
            self.faults.report("live forecast", error)

    def _reconfigure(self, fresh: Settings) -> None:
        """Take over what a running host can; an error leaves everything as it was."""
        settings, cold = reloaded(self.settings, fresh)
        if settings == self.settings == fresh:
            return
        self._defaults.use(settings)
        self._watches["rules"] = FileWatch(self._defaults.rule_book_path)
        self.settings = settings
        note = f"; restart for changes in: {', '.join(cold)}" if cold else ""
        logger.info("configuration reloaded, rollout at %d %%%s", settings.rollout.percentage, note)

    def _publish_gauges(self) -> None:
        try:
            with deadline(OBSERVER_TIMEOUT_S):
                now = self.clock()
                gauges.publish(self.metrics, self.settings, self.forecaster, self.policy, self._latest_state, now)
                if self._defaults.live is not None:
                    gauges.publish_live(self.metrics, self._defaults.live.slices)
        except Exception as error:  # noqa: BLE001 - also somebody else's forecaster, or a broken clock
            self.faults.report("gauges", error)


plugin: Final = SchedulerPlugin()
"""What the entry point names: for orchestrators with a pluggy manager of their own."""
