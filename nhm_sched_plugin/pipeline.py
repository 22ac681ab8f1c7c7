"""decide(): the decision flow of the specification, top to bottom.

It reads what is in memory and asks the hooks; it computes no model and opens no file. Nor does it touch the network,
but for one case: a remote agent whose tables this host has no (recent) copy of is asked, within the budget.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from nhm_sched_plugin.advice.bottleneck import Bottlenecks
from nhm_sched_plugin.advice.defaults import FORESEEN
from nhm_sched_plugin.advice.protocols import Forecaster, Policy
from nhm_sched_plugin.decision import gate, rollout
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.decision.rulebook import LAST_RESORT
from nhm_sched_plugin.errors import AgentUnavailableError
from nhm_sched_plugin.extension import CUSTOM, HookFailedError, HookManager, deadline
from nhm_sched_plugin.given import UNKNOWN_STATE
from nhm_sched_plugin.ids import new_id
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.tally import Noted, Tally
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import (
    Action,
    Arm,
    Decision,
    Forecast,
    Reason,
    Recommendation,
    SchedulingState,
    Source,
    Ticket,
    Veto,
)

__all__ = ["Pipeline", "last_resort"]

HOOKS_SHARE = 0.7
"""Of the budget goes to third-party hooks; the rest is kept for the rules, which decide when a hook oversleeps."""
_SIX_HOURS = 360
_EXACT: Final = 1 << 53
"""Whole numbers up to here are the same as floats."""
# Reading a member off an Enum class costs 0.1 us; these names cost nothing.
_APPLIED, _UNSURE, _TREATMENT = Reason.APPLIED, Reason.CONFIDENCE_BELOW_THRESHOLD, Arm.TREATMENT
_POLICY, _FALLBACK, _CUSTOM = Source.POLICY, Source.FALLBACK, Source.CUSTOM


class Advice(msgspec.Struct, frozen=True, gc=False):
    """What came of asking the policy: its recommendation, and why it may not be followed (None: it may)."""

    recommendation: Recommendation | None
    refusal: Reason | None
    vetoes: tuple[Veto, ...] = ()


_NO_ADVICE: Final = Advice(None, Reason.INTERNAL_ERROR)
_BELOW_VOLUME: Final = Advice(None, Reason.BELOW_VOLUME_THRESHOLD)


class Wiring(Protocol):
    """What the pipeline reads anew at each decision, so that a reload takes effect at once."""

    settings: Settings
    forecaster: Forecaster | None
    policy: Policy | None


class Pipeline:
    """One per plugin; thread-safe, since a decision keeps its state on the stack."""

    def __init__(
        self, wiring: Wiring, hooks: HookManager, tally: Tally, faults: Faults, clock: Callable[[], float]
    ) -> None:
        self._wiring, self._hooks = wiring, hooks
        self._note, self._faults, self._clock = tally.note, faults, clock
        self._call: Any = hooks.call
        self._with_bottleneck = Bottlenecks().filled

    def decide(self, ticket: Ticket | None, state: SchedulingState) -> Decision:
        """The five steps: forecast, recommend, gate and guard, fall back, roll out. Never raises.

        Recording, the sixth, is up to the caller. Third-party hooks share `HOOKS_SHARE` of the budget; nothing else
        here can wait.
        """
        started = time.perf_counter()
        now = self._clock()
        settings = self._wiring.settings
        budget_s = settings.optimizer.decision_budget_ms / 1000
        forecast: Forecast | None = None
        advice = _NO_ADVICE
        arm, arm_reason = rollout.arm(settings.rollout, settings.experiment, ticket, now)
        given, state = state, UNKNOWN_STATE
        with deadline(HOOKS_SHARE * budget_s):
            try:
                forecast, later, missing = self._foresee(now, settings)
                if not isinstance(given, SchedulingState):
                    advice = Advice(None, Reason.INVALID_STATE)
                    raise TypeError(f"the host's state is a {type(given).__name__}; expected a SchedulingState")
                state = self._complete(ticket, given, forecast, later)
                if forecast is not None:
                    forecast = self._with_bottleneck(forecast, state)
                advice = self._advise(ticket, state, forecast, missing, settings)
                if advice.refusal is None and time.perf_counter() - started > budget_s:
                    advice = Advice(advice.recommendation, Reason.BUDGET_EXCEEDED, advice.vetoes)
                if advice.refusal is None and arm is _TREATMENT:
                    advice = self._explore(ticket, state, forecast, advice, settings)
            except Exception as error:  # noqa: BLE001 - the host comes first
                self._faults.report("pipeline", error)
            if advice.refusal is None and arm_reason is None and advice.recommendation is not None:
                chosen, source, reason = advice.recommendation, _source(advice.recommendation), _APPLIED
            else:
                reason = advice.refusal or arm_reason or Reason.INTERNAL_ERROR
                chosen, source = self._fall_back(ticket, state, forecast, reason)
        decision = self._written_down(ticket, state, forecast, advice, chosen, source, reason, arm, now, started)
        self._count(decision, advice)
        return decision

    def _foresee(self, now: float, settings: Settings) -> tuple[Forecast | None, Forecast | None, Reason]:
        """Step 1: the forecast for the gate, the one for six hours, and what it means when there is none."""
        forecaster, missing = self._wiring.forecaster, Reason.FORECAST_UNAVAILABLE
        forecast: Forecast | None = None
        later: Forecast | None = None
        if forecaster is None:
            return None, None, missing
        horizon = settings.optimizer.forecast_horizon_minutes
        try:
            # Pool-wide, since the gate compares it with the capacity of the whole pool.
            forecast = forecaster.forecast(horizon, now)
            later = forecaster.forecast(_SIX_HOURS, now)
        except AgentUnavailableError as error:  # counted by who asked it
            self._faults.log("asking the optimizer agent", str(error))
            missing = Reason.OPTIMIZER_UNAVAILABLE
        except Exception as error:  # noqa: BLE001 - also somebody else's forecaster
            self._faults.report("forecaster", error)
            forecast = later = None
        return forecast, later, missing

    def _complete(
        self, ticket: Ticket | None, given: SchedulingState, forecast: Forecast | None, later: Forecast | None
    ) -> SchedulingState:
        """The host's state as plain floats, unusable values dropped, with the predicted loads and hooks' features."""
        collected = self._call.nhm_sched_collect_state(ticket=ticket)
        if len(collected) == 1 and given.features == {}:
            features = collected[0]
        else:
            features = {}
            for answer in reversed(collected):  # plugins loaded later win over earlier ones and over the built-in
                features.update(answer)
            features.update(self._usable_features(given.features))
        usable = self._usable
        next_hour, sixth_hour = given.predicted_load_1h, given.predicted_load_6h
        if next_hour is None and forecast is not None:
            next_hour = forecast.next_hour
        if sixth_hour is None and later is not None:
            sixth_hour = later.predicted_volume
        return SchedulingState(
            queue_depth=usable("queue_depth", given.queue_depth),
            active_workers=usable("active_workers", given.active_workers),
            avg_task_duration_ms=usable("avg_task_duration_ms", given.avg_task_duration_ms),
            sla_compliance_rate=usable("sla_compliance_rate", given.sla_compliance_rate, 1.0),
            predicted_load_1h=usable("predicted_load_1h", next_hour),
            predicted_load_6h=usable("predicted_load_6h", sixth_hour),
            resource_cpu_avg=usable("resource_cpu_avg", given.resource_cpu_avg, 1.0),
            resource_memory_avg=usable("resource_memory_avg", given.resource_memory_avg, 1.0),
            features=features,
        )

    def _usable_features(self, given: Any) -> dict[str, float]:
        if not isinstance(given, Mapping):
            self._faults.report("state", "the host's features are unusable and count as unknown")
            return {}
        numbers = {name: known(value) for name, value in given.items() if isinstance(name, str)}
        usable = {name: number for name, number in numbers.items() if number is not None}
        if len(usable) < len(given):
            self._faults.report("state", "some of the host's features are unusable and count as unknown")
        return usable

    def _usable(self, name: str, value: Any, most: float = sys.float_info.max) -> float | None:
        if value is None or (type(value) is float and 0.0 <= value <= most):  # NaN is in no range
            return value
        if type(value) is int and 0 <= value <= most and value <= _EXACT:
            return float(value)
        number = known(value)
        if number is None or not 0 <= number <= most:
            self._faults.report("state", f"the host's {name} is unusable and counts as unknown")
            return None
        return number

    def _advise(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        forecast: Forecast | None,
        missing: Reason,
        settings: Settings,
    ) -> Advice:
        """Steps 2 and 3: is there load enough to ask, what does the policy say, is it sure, does a guard object?"""
        optimizer = settings.optimizer
        if not optimizer.enabled:
            return Advice(None, Reason.DISABLED)
        if forecast is None:
            return Advice(None, missing)
        if not gate.opens(forecast.predicted_volume, state, optimizer.forecast_volume_threshold):
            return _BELOW_VOLUME
        try:
            recommendation = self._call.nhm_sched_recommend(ticket=ticket, state=state, forecast=forecast)
        except HookFailedError as error:
            late = isinstance(error.error, TimeoutError)
            return Advice(None, Reason.BUDGET_EXCEEDED if late else Reason.OPTIMIZER_UNAVAILABLE)
        except AgentUnavailableError as error:  # counted by who asked it
            self._faults.log("asking the optimizer agent", str(error))
            return Advice(None, Reason.OPTIMIZER_UNAVAILABLE)
        except Exception as error:  # noqa: BLE001 - the built-in policy, or one that a plugin made
            self._faults.report("policy", error)
            return Advice(None, Reason.OPTIMIZER_UNAVAILABLE)
        if recommendation is None:
            return Advice(None, Reason.OPTIMIZER_UNAVAILABLE)
        if not gate.confident(recommendation.confidence, optimizer.recommendation_confidence_threshold):
            return Advice(recommendation, _UNSURE)
        vetoes = self._vetoes(ticket, state, recommendation)
        return Advice(recommendation, Reason.VETOED if vetoes else None, vetoes)

    def _vetoes(
        self, ticket: Ticket | None, state: SchedulingState, recommendation: Recommendation
    ) -> tuple[Veto, ...]:
        return tuple(self._call.nhm_sched_guard(ticket=ticket, state=state, recommendation=recommendation))

    def _explore(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        forecast: Forecast | None,
        advice: Advice,
        settings: Settings,
    ) -> Advice:
        """Now and then another action that passes the same gates; only where the policy is followed at all."""
        policy, recommendation = self._wiring.policy, advice.recommendation
        if policy is None or forecast is None or recommendation is None or recommendation.source.startswith(CUSTOM):
            return advice
        threshold = settings.optimizer.recommendation_confidence_threshold

        def admissible(candidate: Recommendation) -> bool:
            return gate.confident(candidate.confidence, threshold) and not self._vetoes(ticket, state, candidate)

        other = policy.explore(ticket, state, forecast, admissible)
        # Asked again, since a policy may have been told no and answer with it all the same.
        return Advice(other, None) if other is not None and admissible(other) else advice

    def _fall_back(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None, reason: Reason
    ) -> tuple[Recommendation, Source]:
        """Step 4: the rules. At the very last: keep things as they are."""
        FORESEEN.set(forecast)
        try:
            chosen = self._call.nhm_sched_fallback(ticket=ticket, state=state, reason=str(reason))
        except Exception as error:  # noqa: BLE001 - the last resort below needs nobody
            self._faults.report("fallback", error)
            chosen = None
        if chosen is None:
            return LAST_RESORT, Source.DEFAULT
        return chosen, _CUSTOM if chosen.source.startswith(CUSTOM) else _FALLBACK

    def _written_down(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        forecast: Forecast | None,
        advice: Advice,
        chosen: Recommendation,
        source: Source,
        reason: Reason,
        arm: Arm,
        now: float,
        started: float,
    ) -> Decision:
        said = advice.recommendation
        followed = chosen is said
        return Decision(
            decision_id=new_id(),
            ticket_id=ticket.ticket_id if ticket is not None else None,
            task_type=ticket.task_type if ticket is not None else None,
            risk_band=ticket.risk_band if ticket is not None else None,
            action=chosen.action,
            parameters=chosen.parameters,
            source=source,
            reason=reason,
            confidence=said.confidence if said is not None else None,
            arm=arm,
            recommendation=said,
            propensity=chosen.propensity if followed else 1.0,
            policy_version=said.policy_version if said is not None else "",
            forecast=forecast,
            decided_at=now,
            state=state,
            vetoes=advice.vetoes,
            justification=chosen.justification,
            is_exploration=followed and chosen.is_exploration,
            rollout_percentage=self._wiring.settings.rollout.percentage,
            latency_us=(time.perf_counter() - started) * 1e6,
        )

    def _count(self, decision: Decision, advice: Advice) -> None:
        degraded = decision.reason in _DEGRADED
        if degraded:
            self._faults.log("the optimizer", f"degraded to rules ({decision.reason})")
        said, status = advice.recommendation, ""
        if said is not None:
            status = "rejected" if advice.refusal else "accepted" if decision.reason is _APPLIED else "shadow"
        self._note(
            Noted(
                decision.action,
                decision.source,
                decision.arm,
                decision.latency_us * 1e-6,
                self._wiring.settings.optimizer.forecast_horizon_minutes,
                "unavailable" if decision.forecast is None else "served",
                decision.reason if degraded else None,
                None if said is None else said.action,
                status,
            )
        )


_DEGRADED = frozenset(
    {Reason.FORECAST_UNAVAILABLE, Reason.OPTIMIZER_UNAVAILABLE, Reason.BUDGET_EXCEEDED, Reason.INTERNAL_ERROR}
)


def _source(recommendation: Recommendation) -> Source:
    return _CUSTOM if recommendation.source.startswith(CUSTOM) else _POLICY


def last_resort(ticket: Ticket | None, now: float) -> Decision:
    """A valid decision that needs nothing: keep things as they are."""
    return Decision(
        decision_id=new_id(),
        ticket_id=getattr(ticket, "ticket_id", None),
        action=Action.NO_ACTION,
        source=Source.DEFAULT,
        reason=Reason.INTERNAL_ERROR,
        decided_at=now,
        justification=LAST_RESORT.justification,
    )
