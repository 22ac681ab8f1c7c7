"""The public API as hosts and hook authors use it. Type-checked by mypy, never run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, assert_type

from nhm_sched_plugin import (
    Action,
    Arm,
    Decision,
    Forecast,
    ForecastPoint,
    Health,
    NhmSchedError,
    OptimizerGRPCClient,
    Outcome,
    Reason,
    Recommendation,
    SchedulerHost,
    SchedulingState,
    Settings,
    Source,
    Ticket,
    Veto,
    __version__,
    calculate_reward,
    hookimpl,
    load_settings,
)


def a_host(path: str) -> None:
    with SchedulerHost.from_config(path, clock=time.time) as host:
        assert_type(host, SchedulerHost)
        decision = host.decide(
            Ticket(ticket_id="t1", task_type="processing", risk_band="medium"),
            SchedulingState(queue_depth=150, active_workers=10, avg_task_duration_ms=5000.0),
        )
        assert_type(decision, Decision)
        assert_type(decision.action, Action)
        assert_type(decision.source, Source)
        assert_type(decision.reason, Reason)
        assert_type(decision.arm, Arm)
        assert_type(decision.recommendation, Recommendation | None)
        assert_type(decision.forecast, Forecast | None)
        assert_type(decision.confidence, float | None)
        assert_type(decision.parameters, Mapping[str, int | float | str])
        host.applied(decision, applied=True)
        host.applied(decision, applied=False, error=RuntimeError("no room"))
        outcome = Outcome(
            decision_id=decision.decision_id,
            ticket_id="t1",
            status="success",
            actual_duration_ms=5000,
            sla_met=True,
            state_before=SchedulingState(),
            state_after=SchedulingState(sla_compliance_rate=0.99),
        )
        host.finished(outcome)
        assert_type(host.health(), list[Health])
        assert_type(host.flush(5.0), bool)
        host.decide(None, {"queue_depth": 3})


async def an_asyncio_host(host: SchedulerHost) -> Decision:
    return await host.adecide(None, SchedulingState())


async def an_orchestrator_that_asks_the_agent_itself() -> None:
    async with OptimizerGRPCClient({"optimizer": {"endpoint": "127.0.0.1:50053"}}) as client:
        assert_type(await client.initialize(timeout_s=1.0), bool)
        forecast = await client.get_load_forecast(horizon_minutes=60, task_type="processing", risk_band="medium")
        assert_type(forecast, dict[str, Any] | None)
        state = {"queue_depth": 200, "active_workers": 10}
        recommendation = await client.get_scheduling_recommendation(state)
        if recommendation is not None:
            await client.record_action_outcome(
                state=state,
                action=recommendation["action"],
                reward=0.2,
                next_state=SchedulingState(queue_depth=3),
                decision_id=recommendation["decision_id"],
                parameters=recommendation["parameters"],
            )


def a_configured_host() -> SchedulerHost | None:
    try:
        settings = load_settings({"rollout": {"percentage": 20}})
    except NhmSchedError as error:
        print(__version__, error)
        return None
    assert_type(settings, Settings)
    return SchedulerHost.from_config(settings, plugins={"mine": MyHooks()})


class MyHooks:
    @hookimpl
    def nhm_sched_collect_state(self, ticket: Ticket | None) -> Mapping[str, float]:
        return {"night": 1.0}

    @hookimpl
    def nhm_sched_guard(self, recommendation: Recommendation) -> Veto | None:
        if recommendation.action is Action.DECREASE_WORKER_POOL:
            return Veto(guard="never_shrink", reason="somebody said so")
        return None

    @hookimpl(tryfirst=True)
    def nhm_sched_recommend(self, state: SchedulingState, forecast: Forecast) -> Recommendation | None:
        points: tuple[ForecastPoint, ...] = forecast.points
        return None if points else Recommendation(action=Action.NO_ACTION, confidence=1.0)


assert_type(calculate_reward({"cost": 1}, SchedulingState()), float)
