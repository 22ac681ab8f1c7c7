"""Who decides on the number of workers in the twin: a fixed pool, the rule book, the planner, or the whole plugin."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from nhm_sched_plugin.decision.guards import POOL_ACTIONS, Limits
from nhm_sched_plugin.decision.rulebook import RuleBook, resolve_rule_book
from nhm_sched_plugin.policy.crowds import AHEAD
from nhm_sched_plugin.policy.planner import Planner
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.crowds import CrowdsAhead
from nhm_sched_plugin.twin.simulator import STARTING, Order, Pool, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import Action, Decision, Forecast, Outcome, Reason, Recommendation, SchedulingState, Ticket

__all__ = [
    "Advised",
    "Clock",
    "Kind",
    "PlannerController",
    "PluginController",
    "RulesController",
    "StaticController",
    "instructed",
    "obeyed",
    "static_workers",
]

Kind = tuple[str, str, str, str]
"""Decisions are counted by source, action, arm and reason."""


class Forecasts(Protocol):
    """The forecaster's side that controllers need (see `advice.protocols.Forecaster`)."""

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None: ...


def static_workers(trace: Trace, *, sla_wait_s: float, classes: Sequence[TicketClass] = (), share: float = 0.95) -> int:
    """The smallest fixed pool that starts `share` of the tickets in time on `trace` (the training part only).

    That is the best a careful operator can do without scaling. Found by bisection, since more workers never hurt.
    """

    def enough(workers: int) -> bool:
        pool = Pool(trace, workers=workers, startup_s=0.0, sla_wait_s=sla_wait_s, classes=classes)
        run = simulate(pool, StaticController(workers), tick_s=3600.0)
        return run.met >= share * (run.met + run.missed)

    low, high = 0, max(1, math.ceil(trace.load))
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def obeyed(action: Action, parameters: Mapping[str, Any], state: SchedulingState) -> int | None:
    """The number of workers to have after a pool action; None when it asks for nothing.

    Decisions are made on *active* workers. One that adds never cancels what is already starting up, one that removes
    takes as many as it named.
    """
    target = parameters.get("target_workers")
    if action not in POOL_ACTIONS or type(target) is not int:
        return None
    active = state.active_workers or 0.0
    return max(target, int(active + state.features.get(STARTING, 0.0))) if target >= active else target


def instructed(action: Action, parameters: Mapping[str, Any], state: SchedulingState) -> int | Order | None:
    """What the twin does about an action: `obeyed`, or the new priority weights."""
    if action is Action.ADJUST_PRIORITY_WEIGHTS:
        return Order(weights=parameters)
    return obeyed(action, parameters, state)


class StaticController:
    """A fixed number of workers."""

    watches_tickets = False

    def __init__(self, workers: int) -> None:
        self.name = "static"
        self.workers = workers

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        return self.workers


class Advised:
    """The state as the pipeline completes it: with the predicted loads where there is a forecast."""

    def __init__(self, forecaster: Forecasts | None, horizon_minutes: int = 60) -> None:
        self._forecaster, self._horizon = forecaster, horizon_minutes

    def complete(self, state: SchedulingState, now: float) -> tuple[SchedulingState, Forecast | None]:
        if self._forecaster is None:
            return state, None
        forecast = self._forecaster.forecast(self._horizon, now)
        later = self._forecaster.forecast(360, now)
        return SchedulingState(
            queue_depth=state.queue_depth,
            active_workers=state.active_workers,
            avg_task_duration_ms=state.avg_task_duration_ms,
            sla_compliance_rate=state.sla_compliance_rate,
            predicted_load_1h=None if forecast is None else forecast.next_hour,
            predicted_load_6h=None if later is None else later.predicted_volume,
            resource_cpu_avg=state.resource_cpu_avg,
            resource_memory_avg=state.resource_memory_avg,
            features=state.features,
        ), forecast


class RulesController:
    """The rule book of the settings with the built-in limits: exactly what the plugin falls back to."""

    watches_tickets = False

    def __init__(
        self,
        settings: Settings,
        forecaster: Forecasts | None = None,
        before_tick: Callable[[float], Any] | None = None,
    ) -> None:
        self.name = "rules"
        self._before_tick = before_tick
        self._book = RuleBook.load(resolve_rule_book(settings.fallback.rule_book))
        self._limits = Limits(settings.limits)
        self._advised = Advised(forecaster)
        self.now = 0.0
        self.last_pool_action_at: float | None = None
        self.decisions: Counter[Kind] = Counter()

    def rules(self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None) -> Recommendation:
        """What the rules do in this state at `now`, within the limits."""
        answer = self._book.evaluate(ticket, state, forecast, "", self.now)
        return self._limits.restrain(ticket, state, answer, self.now, self.last_pool_action_at)

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int | Order | None:
        self.now = now
        if self._before_tick is not None:
            self._before_tick(now)
        full, forecast = self._advised.complete(state, now)
        answer = self.rules(None, full, forecast)
        self.decisions["fallback", answer.action.value, "control", Reason.DISABLED.value] += 1
        target = obeyed(answer.action, answer.parameters, state)
        if target is not None:
            self.last_pool_action_at = now
        return instructed(answer.action, answer.parameters, state)


class PlannerController:
    """The planner's own target at every tick, within the same guards as the plugin: what learning has to beat.

    `headroom` scales the planned room above what is in the system; `crowds` tells of the crowd ahead, as the host's
    counter would.
    """

    watches_tickets = False

    def __init__(
        self,
        settings: Settings,
        forecaster: Forecasts | None = None,
        before_tick: Callable[[float], Any] | None = None,
        headroom: float = 1.0,
        crowds: CrowdsAhead | None = None,
    ) -> None:
        self.name = "planner"
        self._crowds = crowds
        self._before_tick = before_tick
        self._planner = Planner(settings)
        self._limits = Limits(settings.limits)
        self._advised = Advised(forecaster)
        self._headroom = headroom
        self._last_pool_action_at: float | None = None

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        if self._before_tick is not None:
            self._before_tick(now)
        if self._crowds is not None:
            state = msgspec.structs.replace(state, features={**state.features, AHEAD: self._crowds.at(now)})
        full, forecast = self._advised.complete(state, now)
        plan = self._planner.plan(full, forecast)
        chosen = self._planner.candidates(plan, full, self._headroom)[0]
        answer = Recommendation(action=chosen.action, parameters=chosen.parameters)
        if self._limits.check(None, full, answer, now, self._last_pool_action_at) is not None:
            return None
        target = obeyed(chosen.action, chosen.parameters, state)
        if target is not None:
            self._last_pool_action_at = now
        return target


class Host(Protocol):
    """What the twin needs of a `SchedulerHost`."""

    def decide(self, ticket: Ticket | None, state: SchedulingState) -> Decision: ...
    def applied(self, decision: Decision, applied: bool = True, error: str | BaseException | None = None) -> None: ...
    def finished(self, outcome: Outcome) -> None: ...


class Clock:
    """Simulated time: the controller moves it, the host reads it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class PluginController:
    """Drives a real host: a decision per ticket and per control tick, and the outcomes of both.

    Pool actions are obeyed at control ticks, because a pool has one size whoever asks; the same action on a ticket is
    reported as not applied. A tick's outcome is reported `lead_s` later, when its workers could have made a difference.
    `clock` is the host's: the controller moves it.
    """

    watches_tickets = True

    def __init__(
        self,
        host: Host,
        trace: Trace,
        *,
        clock: Clock,
        lead_s: float,
        sla_wait_s: float,
        before_tick: Callable[[float], Any] | None = None,
    ) -> None:
        self.name = "plugin"
        self._before_tick = before_tick
        self._clock = clock
        self._host, self._trace = host, trace
        self._lead_s, self._wait_s = lead_s, sla_wait_s
        self._tickets: dict[int, str] = {}
        self._open: deque[tuple[float, Decision, SchedulingState]] = deque()
        self.decisions: Counter[Kind] = Counter()

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None:
        self._clock.now = now
        decision = self._host.decide(self._trace.ticket(index), state)
        self._host.applied(decision, applied=decision.action not in POOL_ACTIONS)
        self._tickets[index] = decision.decision_id
        self._count(decision)

    def on_finished(self, index: int, wait_s: float, now: float) -> None:
        self._clock.now = now
        decision_id = self._tickets.pop(index, None)
        if decision_id is None:
            return
        self._host.finished(
            Outcome(
                decision_id=decision_id,
                ticket_id=self._trace.ticket(index).ticket_id,
                status="success",
                actual_duration_ms=float(self._trace.durations[index]) * 1000,
                sla_met=wait_s <= self._wait_s,
                finished_at=now,
            )
        )

    def on_tick(self, state: SchedulingState, now: float) -> int | Order | None:
        self._clock.now = now
        if self._before_tick is not None:
            self._before_tick(now)
        while self._open and self._open[0][0] <= now:
            _, decision, before = self._open.popleft()
            self._host.finished(
                Outcome(
                    decision_id=decision.decision_id,
                    status="tick",
                    state_before=before,
                    state_after=state,
                    finished_at=now,
                )
            )
        decision = self._host.decide(None, state)
        self._host.applied(decision, applied=True)
        self._count(decision)
        self._open.append((now + self._lead_s, decision, state))
        return instructed(decision.action, decision.parameters, state)

    def _count(self, decision: Decision) -> None:
        kind = decision.source.value, decision.action.value, decision.arm.value, decision.reason.value
        self.decisions[kind] += 1
