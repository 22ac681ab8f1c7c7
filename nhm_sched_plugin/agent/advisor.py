"""Who advises: forecaster, policy and rules, made as in a host, answering for callers that send their state along.

Everything is answered from memory. Parts of third parties, and those that ask another agent, may take their time: then
`inline` is False, and the event loop has the answers made in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from nhm_sched_plugin.advice import gauges
from nhm_sched_plugin.advice.bottleneck import Bottlenecks
from nhm_sched_plugin.advice.defaults import DefaultHooks
from nhm_sched_plugin.advice.protocols import PARTS, Forecaster, Policy, health_of
from nhm_sched_plugin.advice.snapshots import Snapshots
from nhm_sched_plugin.agent.baseline import Baseline
from nhm_sched_plugin.background import FileWatch
from nhm_sched_plugin.decision.gate import capacity
from nhm_sched_plugin.errors import RuleBookError
from nhm_sched_plugin.extension import Found, HookManager, deadline, discover
from nhm_sched_plugin.forecasting.table import SnapshotForecaster, slice_key
from nhm_sched_plugin.hookspecs import ExtensionSpecs
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.tally import ALL_TASK_TYPES, Counts
from nhm_sched_plugin.policy.confidence import UNSEEN
from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.state_key import state_key
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Forecast, Health, Recommendation, SchedulingState, Ticket

__all__ = ["Advisor"]

logger = logging.getLogger(__name__)

_SIX_HOURS: Final = 360
_GAUGES_S: Final = 5.0
"""What somebody else's forecaster may take for the gauges."""
_OTHER: Final = "other"
"""Label of horizons and task types that only a caller has heard of."""


class Advisor:
    """Answers at once, with the rules and the last hour's arrivals; with models as soon as `open` has found them.

    `open`, `refresh` and `close` are for the background thread; the rest is for any thread. Raises `RuleBookError` or
    `ConfigError` for settings that a person has to mend first.

    Args:
        plugins: third parties that were found already; None to look for them.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        faults: Faults,
        clock: Callable[[], float] = time.time,
        plugins: Iterable[Found] | None = None,
    ) -> None:
        self._settings, self._metrics, self._faults, self._clock = settings, metrics, faults, clock
        self.counts = Counts(metrics)
        self._plugins = None if plugins is None else tuple(plugins)
        self.forecaster: Forecaster | None = None
        self.policy: Policy | None = None
        self.inline = True
        self._defaults = DefaultHooks(
            settings,
            clock,
            lambda status: metrics.child("model_loads", status).inc(),
            metrics=metrics,
            faults=faults,
        )
        self._rules_file = FileWatch(self._defaults.rule_book_path, seen=False)
        self._snapshots = Snapshots(settings, metrics, faults)
        self._hooks = HookManager(ExtensionSpecs, settings.hooks, faults, PARTS)
        self._baseline = Baseline(self._defaults.arrivals, clock)
        self._with_bottleneck = Bottlenecks().filled
        self._ahead = settings.optimizer.forecast_horizon_minutes
        self._horizons = {minutes: str(minutes) for minutes in settings.ml.forecasting.horizons}
        self._latest: SchedulingState | None = None
        self.pool: float | None = None
        """Tickets an hour that the pool shown last can work off."""
        self._opened = threading.Event()

    # In the background

    def open(self) -> None:
        """Find plugins and make the parts. Reports what fails, raises nothing: the rules answer in its place."""
        settings = self._settings
        found = self._plugins
        for one in discover(settings.hooks, settings.hooks_dir) if found is None else found:
            self._hooks.add(one)
        self._hooks.add_builtin(self._defaults, "built-in")
        self._snapshots.start()  # before the parts, which read what is taken over from the cache
        hook: Any = self._hooks.hook
        forecaster = self._made("forecaster", hook.nhm_sched_make_forecaster)
        policy = self._made("policy", hook.nhm_sched_make_policy)
        self.inline = type(forecaster) in (SnapshotForecaster, type(None)) and type(policy) in (QPolicy, type(None))
        if type(policy) is QPolicy:
            policy.explores = False
        self.forecaster, self.policy = forecaster, policy
        self._opened.set()

    def _made(self, part: str, maker: Any) -> Any:
        try:
            return maker(settings=self._settings)
        except Exception as error:  # noqa: BLE001 - a part that cannot be made means rules only
            self._faults.report(part, error)
            logger.error("no %s: answers follow the rules only. %s", part, error)
            return None

    def refresh(self) -> None:
        """Take over what changed on disk, and bring the metrics up to date; each part that fails keeps what it had."""
        self.counts.settle()
        try:
            if self._rules_file.changed():
                self._defaults.use(self._settings)
        except RuleBookError as error:
            self._faults.report("reload", error)
        for name, part in (("forecaster", self.forecaster), ("policy", self.policy)):
            if part is not None:
                try:
                    part.refresh()
                except Exception as error:  # noqa: BLE001 - the old snapshot stays in use
                    self._faults.report(name, error)
                    self._metrics.child("model_loads", "failed").inc()
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - also somebody else's forecaster
            self._faults.report("gauges", error)
        for rule in self._defaults.rule_failures():
            self._faults.report("rules", f"rule {rule!r} could not be evaluated")

    def _follow(self) -> None:
        live = self._defaults.live
        if live is not None:
            live.follow()
            gauges.publish_live(self._metrics, live.slices)
        with deadline(_GAUGES_S):
            now = self._clock()
            gauges.publish(self._metrics, self._settings, self.forecaster, self.policy, self._latest, now)

    def close(self, timeout_s: float) -> None:
        """End the threads. What was learned is the learner's to save, before this."""
        self._defaults.close(timeout_s)
        self._snapshots.close(timeout_s)
        self._hooks.close()

    def health(self) -> list[Health]:
        """Part by part, for `/healthz`."""
        if not self._opened.is_set():
            return [Health(component="models", ok=False, detail="being loaded")]
        parts = [health_of(name, part) for name, part in (("forecaster", self.forecaster), ("policy", self.policy))]
        return [*parts, Health(component="rules", ok=True, detail=str(self._defaults.rule_book_path))]

    # For callers

    def forecast(self, horizon_minutes: int, task_type: str | None, risk_band: str | None) -> Forecast:
        """The load at the horizon, from the model or else from what came in the last hour."""
        now = self._clock()
        found = self._foreseen(horizon_minutes, now, task_type, risk_band)
        status = "unavailable" if found is None else "served"
        horizon = self._horizons.get(horizon_minutes, _OTHER)
        self.counts.count(("predictions", horizon, self._label(task_type, risk_band), status))
        if found is None:
            found = self._baseline.forecast(horizon_minutes, now, task_type, risk_band)
        return found

    def with_bottleneck(self, forecast: Forecast) -> Forecast:
        """The forecast with its `bottleneck_probability`, for the pool that was shown last."""
        return forecast if self._latest is None else self._with_bottleneck(forecast, self._latest)

    def recommend(self, ticket: Ticket | None, given: SchedulingState) -> Recommendation:
        """The policy's action in this state, or the rules' at no more than even confidence.

        The agent never explores, so what it says is said with propensity 1. What a caller counts itself (a host with
        this package sends its arrivals along) is not counted here again.
        """
        now = self._clock()
        counts_itself = bool(given.features) and not ARRIVED.keys().isdisjoint(given.features)
        if ticket is not None and ticket.task_type and not counts_itself:
            self._baseline.observe(now, ticket.task_type)
        forecast = self._foreseen(self._ahead, now)
        state = self._completed(ticket, given, forecast, now, counts_itself=counts_itself)
        pool = capacity(state)
        if pool is not None:
            self._latest, self.pool = state, pool
        said, why = self._said(ticket, state, forecast, now)
        if said is None:
            said = self._rules(ticket, state, forecast, why)
            source = "rules"
        else:
            source = "policy"
            if said.propensity != 1.0 and not said.is_exploration:
                said = msgspec.structs.replace(said, propensity=1.0)
        self.counts.count(("advised", said.action, source))
        return said

    def _foreseen(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None:
        forecaster = self.forecaster
        if forecaster is None:
            return None
        try:
            return forecaster.forecast(horizon_minutes, now, task_type, risk_band)
        except Exception as error:  # noqa: BLE001 - somebody else's forecaster
            self._faults.report("forecaster", error)
            return None

    def _completed(
        self,
        ticket: Ticket | None,
        given: SchedulingState,
        forecast: Forecast | None,
        now: float,
        *,
        counts_itself: bool,
    ) -> SchedulingState:
        """The caller's state with the predicted loads and the arrivals, where it sent none."""
        next_hour, sixth_hour, features = given.predicted_load_1h, given.predicted_load_6h, given.features
        if not counts_itself and self._reads_features():
            features = {**self._defaults.nhm_sched_collect_state(ticket), **features}
        if next_hour is not None:
            self._baseline.heard(next_hour)
        next_hour, sixth_hour = self._loads(next_hour, sixth_hour, forecast, now)
        return msgspec.structs.replace(
            given, predicted_load_1h=next_hour, predicted_load_6h=sixth_hour, features=features
        )

    def _loads(
        self, next_hour: float | None, sixth_hour: float | None, forecast: Forecast | None, now: float
    ) -> tuple[float | None, float | None]:
        if next_hour is None:
            next_hour = self._baseline.rate(now) if forecast is None else forecast.next_hour
        if sixth_hour is None and forecast is not None:
            later = self._foreseen(_SIX_HOURS, now)
            sixth_hour = None if later is None else later.predicted_volume
        return next_hour, sixth_hour

    def with_loads(self, given: SchedulingState) -> SchedulingState:
        """A state that an outcome tells of, with the predicted loads where the caller sent none: what came of an advice
        is learned in the state that it was given in."""
        if given.predicted_load_1h is not None and given.predicted_load_6h is not None:
            return given
        now = self._clock()
        loads = self._loads(given.predicted_load_1h, given.predicted_load_6h, self._foreseen(self._ahead, now), now)
        return msgspec.structs.replace(given, predicted_load_1h=loads[0], predicted_load_6h=loads[1])

    def _reads_features(self) -> bool:
        """Whether the answer depends on them; counting what came lately takes as long as much of the rest."""
        policy = self.policy
        return not (
            type(policy) is QPolicy and policy.planner.model is None and not self._defaults.rule_book.uses_features
        )

    def _said(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None, now: float
    ) -> tuple[Recommendation | None, str]:
        """What the policy says, if it may be said; else why not."""
        policy = self.policy
        if forecast is None or policy is None:
            return None, "no models yet"
        try:
            # The built-in policy does not look at the bottleneck, and remembers by the forecast's identity.
            seen = forecast if self.inline else self._with_bottleneck(forecast, state)
            said = policy.recommend(ticket, state, seen)
        except Exception as error:  # noqa: BLE001 - somebody else's policy
            self._faults.report("policy", error)
            return None, "the policy failed"
        if said is None:
            return None, "the policy has no answer"
        veto = self._defaults.limits.check(ticket, state, said, now, None)
        if veto is not None:
            return None, f"the policy's {said.action} is outside the limits: {veto.reason}"
        return said, ""

    def _rules(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None, why: str
    ) -> Recommendation:
        answer = self._defaults.rules(ticket, state, forecast)
        return msgspec.structs.replace(
            answer,
            confidence=min(answer.confidence, UNSEEN),
            justification=f"{answer.justification} (The rules; {why}.)".lstrip(),
            state_hash=state_key(state),
        )

    def _label(self, task_type: str | None, risk_band: str | None) -> str:
        if not task_type and not risk_band:
            return ALL_TASK_TYPES
        table = getattr(self.forecaster, "table", None)
        known = table is not None and slice_key(task_type, risk_band) in table.slices
        return task_type if task_type and known else _OTHER
