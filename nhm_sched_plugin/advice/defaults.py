"""The built-in answers to the extension hooks. They are plugins like anybody's, asked last."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.advice.arrivals import ArrivalCounter
from nhm_sched_plugin.advice.protocols import Forecaster, Policy, Sink
from nhm_sched_plugin.decision.guards import Limits
from nhm_sched_plugin.decision.reward import reward
from nhm_sched_plugin.decision.rulebook import RuleBook, resolve_rule_book
from nhm_sched_plugin.hookspecs import hookimpl
from nhm_sched_plugin.types import Forecast, Recommendation, SchedulingState, Ticket, Veto

if TYPE_CHECKING:
    from nhm_sched_plugin.advice.live import LiveFeed
    from nhm_sched_plugin.advice.remote.agent import RemoteAgent
    from nhm_sched_plugin.advice.remote.policy import RemotePolicy
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.policy.demand import DemandModel
    from nhm_sched_plugin.policy.learning import QPolicy
    from nhm_sched_plugin.settings import Settings

__all__ = ["FORESEEN", "DefaultHooks"]

FORESEEN: Final[ContextVar[Forecast | None]] = ContextVar("foreseen", default=None)
"""The forecast of the decision that this thread makes, for the rule book: `nhm_sched_fallback` is not given it."""
_MOST_FAILURES = 1000
"""A look; more say nothing new."""


class DefaultHooks:
    """Forecaster, policy, spool, limits, rule book and reward, as the settings say.

    Args:
        metrics: for what is asked of a remote agent (`optimizer.endpoint`), as `faults` is for its failures.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        on_load: Callable[[str], None] | None = None,
        *,
        metrics: Metrics | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._clock, self._on_load = clock, on_load
        self._metrics, self._faults = metrics, faults
        self._remote: RemoteAgent | None = None
        self._own_policy: QPolicy | RemotePolicy | None = None
        self.policy: Policy | None = None
        self.arrivals = ArrivalCounter(settings.planner.startup_s)
        self.live: LiveFeed | None = None
        self._last: tuple[SchedulingState, Recommendation, Recommendation] | None = None
        self.last_pool_action_at: float | None = None
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Take over limits, rule book and budget from here. Raises `RuleBookError`; the old ones then stay."""
        path = resolve_rule_book(settings.fallback.rule_book)
        self.rule_book: RuleBook = RuleBook.load(path)
        self.rule_book_path: Path = path
        self.limits = Limits(settings.limits)
        self._last = None
        if self._remote is not None:
            self._remote.use(settings)
        if self._own_policy is not None:
            self._own_policy.use(settings.limits)

    def rules(self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None) -> Recommendation:
        """What the rules would do, limits kept: the policy measures its confidence against this."""
        return self._restrained(ticket, state, forecast, "")

    def rule_failures(self) -> list[str]:
        """Rules that failed since the last call, once per failure."""
        failures = self.rule_book.failures
        self.rule_book.failures = Counter()
        return list(failures.elements())[:_MOST_FAILURES]

    def _restrained(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None, reason: str
    ) -> Recommendation:
        now = self._clock()
        answer = self.rule_book.evaluate(ticket, state, forecast, reason, now)
        before = self._last
        if before is not None and before[0] is state and before[1] is answer:
            return before[2]  # the policy asks for its baseline, and then the pipeline for the fallback
        restrained = self.limits.restrain(ticket, state, answer, now, self.last_pool_action_at)
        self._last = (state, answer, restrained)
        return restrained

    @hookimpl(trylast=True)
    def nhm_sched_make_forecaster(self, settings: Settings) -> Forecaster:
        from nhm_sched_plugin.advice.live import LiveFeed
        from nhm_sched_plugin.forecasting.table import SnapshotForecaster

        if settings.optimizer.endpoint is not None:
            from nhm_sched_plugin.advice.remote.forecaster import RemoteForecaster

            mirrored = RemoteForecaster(self._agent(settings), self._clock, self._on_load)
            self.live = LiveFeed(settings, mirrored.local, self.arrivals, self._clock)
            return mirrored
        forecaster = SnapshotForecaster(settings.forecast_table_path, on_load=self._on_load)
        self.live = LiveFeed(settings, forecaster, self.arrivals, self._clock)
        return forecaster

    @hookimpl(trylast=True)
    def nhm_sched_make_policy(self, settings: Settings) -> Policy:
        from nhm_sched_plugin.policy.learning import QPolicy

        if settings.optimizer.endpoint is not None:
            from nhm_sched_plugin.advice.remote.policy import RemotePolicy

            self._own_policy = RemotePolicy(
                self._agent(settings),
                settings,
                self.rules,
                self._clock,
                last_change=lambda: self.last_pool_action_at,
                on_calibration=self._remember,
            )
            return self._own_policy
        self._own_policy = QPolicy(
            settings,
            self.rules,
            now=self._clock,
            last_change=lambda: self.last_pool_action_at,
            on_calibration=self._remember,
        )
        return self._own_policy

    def _remember(self, model: DemandModel) -> None:
        self.arrivals.remember(model.crowds)

    def _agent(self, settings: Settings) -> RemoteAgent:
        """The remote agent, one for both parts; its threads start with their first use."""
        if self._remote is None:
            from nhm_sched_plugin.advice.remote.agent import RemoteAgent
            from nhm_sched_plugin.observe.faults import Faults
            from nhm_sched_plugin.observe.metrics import Metrics

            metrics = self._metrics or Metrics()
            self._remote = RemoteAgent(settings, metrics, self._faults or Faults(metrics))
        return self._remote

    def close(self, timeout_s: float) -> None:
        """Deliver what a remote agent is still to learn, as far as the time allows, and end the threads."""
        if self._remote is not None:
            self._remote.close(timeout_s)

    @hookimpl(trylast=True)
    def nhm_sched_make_sinks(self, settings: Settings) -> list[Sink]:
        from nhm_sched_plugin.store.spool import SpoolSink, spool_of

        return [SpoolSink(spool_of(settings), sync=settings.recording.durability == "sync")]

    @hookimpl(trylast=True)
    def nhm_sched_collect_state(self, ticket: Ticket | None) -> Mapping[str, float]:
        now = self._clock()
        lately = self.arrivals.lately(now)
        # The rule books read the hour's count; before the first ticket nobody knows whether tickets are shown at all.
        return {"arrivals_last_hour": float(self.arrivals.last_hour(now))} if lately is None else lately

    @hookimpl(trylast=True)
    def nhm_sched_recommend(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast
    ) -> Recommendation | None:
        return None if self.policy is None else self.policy.recommend(ticket, state, forecast)

    @hookimpl(trylast=True)
    def nhm_sched_guard(
        self, ticket: Ticket | None, state: SchedulingState, recommendation: Recommendation
    ) -> Veto | None:
        return self.limits.check(ticket, state, recommendation, self._clock(), self.last_pool_action_at)

    @hookimpl(trylast=True)
    def nhm_sched_fallback(self, ticket: Ticket | None, state: SchedulingState, reason: str) -> Recommendation:
        return self._restrained(ticket, state, FORESEEN.get(), reason)

    @hookimpl(trylast=True)
    def nhm_sched_reward(self, before: SchedulingState, after: SchedulingState) -> float:
        return reward(before, after)
