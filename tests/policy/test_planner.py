from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.decision.guards import Limits
from nhm_sched_plugin.policy.planner import Planner, explain
from nhm_sched_plugin.policy.queueing import LARGE, erlang_c, halfin_whitt, wait_exceeds, workers_for
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.types import Action, Forecast, ForecastPoint, Recommendation, SchedulingState


def planner(**tree: Any) -> Planner:
    return Planner(load_settings({"limits": {"max_workers": 500}, **tree}))


def forecast(mean: float, upper: float) -> Forecast:
    stamp = dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC)
    quantiles = {0.025: 0.0, 0.1: 0.0, 0.5: mean, 0.9: upper, 0.975: upper}
    return Forecast(
        horizon_minutes=60,
        predicted_volume=mean,
        confidence=0.8,
        points=(ForecastPoint(stamp, mean, quantiles),),
        generated_at=stamp,
    )


def state(**fields: float) -> SchedulingState:
    values: dict[str, Any] = {
        "active_workers": 10,
        "queue_depth": 0,
        "avg_task_duration_ms": 60_000,
        "resource_cpu_avg": 0.5,
    }
    return SchedulingState(**{**values, "resource_cpu_avg": 0.5, **fields})


# Erlang-C against values printed in textbooks: a = 2, c = 3 gives 4/9; a = 1, c = 2 gives 1/3.
@pytest.mark.parametrize(("workers", "load", "waits"), [(3, 2.0, 4 / 9), (2, 1.0, 1 / 3), (1, 0.7, 0.7)])
def test_erlang_c_closed_form(workers: int, load: float, waits: float) -> None:
    assert erlang_c(workers, load) == pytest.approx(waits)


def test_erlang_c_direct_sum_and_stability() -> None:
    a, c = 20.0, 24
    top = a**c / math.factorial(c) * c / (c - a)
    assert erlang_c(c, a) == pytest.approx(top / (sum(a**k / math.factorial(k) for k in range(c)) + top))
    assert 0 < erlang_c(5200, 5000.0) < 1, "no overflow on large pools"
    assert erlang_c(5, 5.0) == 1.0
    assert erlang_c(5, 0.0) == 0.0


def test_halfin_whitt_is_the_limit_of_erlang_c() -> None:
    for beta in (0.5, 1.0, 2.0):
        workers = math.ceil(10_000 + beta * 100)
        assert erlang_c(workers, 10_000.0) == pytest.approx(halfin_whitt(beta), abs=0.01)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.01, 400), st.floats(0.01, 20))
def test_workers_for_is_enough_and_hardly_more(load: float, wait: float) -> None:
    workers = workers_for(load, wait)
    enough = workers if load < LARGE / 1.02 else workers + 1
    assert wait_exceeds(enough, load, wait) <= 0.05 + 1e-9
    # One worker fewer fails for a load at most 2 % (the grid) and one worker (square-root staffing) above.
    assert wait_exceeds(workers - 3, load * 1.02, wait * 0.98) > 0.05 or workers <= 3


def test_plans_on_the_upper_quantile_not_the_mean() -> None:
    room = planner()
    low, high = room.plan(state(), forecast(600, 620)), room.plan(state(), forecast(600, 900))
    assert low.need is not None
    assert high.need is not None
    assert high.need > low.need >= 11
    assert high.basis == "forecast"


def test_backlog_adds_workers_and_blocks_scale_in() -> None:
    room = planner()
    calm, busy = room.plan(state(), forecast(60, 80)), room.plan(state(queue_depth=40), forecast(60, 80))
    assert busy.extra > 0 == calm.extra
    assert room.candidates(calm, state())[0].action is Action.DECREASE_WORKER_POOL
    assert Action.DECREASE_WORKER_POOL not in [c.action for c in room.candidates(busy, state(queue_depth=40))]


def test_never_scales_in_on_a_forecast_alone() -> None:
    room = planner()
    assert room.plan(state(resource_cpu_avg=0.8), forecast(1, 2)).keep is None, "eight of ten are busy"
    plan = room.plan(state(active_workers=100, resource_cpu_avg=0.2), forecast(1, 2))
    assert plan.need is not None
    assert 20 < plan.need < 90, "twenty are busy, whatever the forecast says"
    assert plan.keep == 90, "a tenth at a time"
    unmeasured = SchedulingState(active_workers=10, avg_task_duration_ms=60_000)
    assert [c.action for c in room.candidates(room.plan(unmeasured, forecast(1, 2)), unmeasured)] == [Action.NO_ACTION]


def test_no_scale_in_while_tickets_miss_their_sla() -> None:
    room = planner()

    def first(sla: float | None) -> Action:
        at = state(active_workers=100, resource_cpu_avg=0.2, sla_compliance_rate=sla)  # type: ignore[arg-type]
        return room.candidates(room.plan(at, forecast(1, 2)), at)[0].action

    assert first(0.96) is first(None) is Action.DECREASE_WORKER_POOL
    assert first(0.94) is Action.NO_ACTION


def test_preemptive_looks_six_hours_ahead() -> None:
    room = planner()
    ahead = state(predicted_load_1h=300, predicted_load_6h=1200)
    by_action = {c.action: c for c in room.candidates(room.plan(ahead), ahead)}
    target = by_action[Action.PREEMPTIVE_SCALING].parameters["target_workers"]
    assert isinstance(target, int)
    assert target >= 20


def test_without_metrics_there_is_no_plan_and_without_a_forecast_the_measured_load_counts() -> None:
    room = planner()
    nothing = room.plan(SchedulingState(), forecast(600, 700))
    assert (nothing.need, nothing.keep) == (None, None)
    assert "unknown" in explain(nothing, Action.NO_ACTION, {})
    measured = room.plan(state(resource_cpu_avg=1.0), None)
    assert measured.basis == "measured"
    assert measured.need is not None
    assert measured.need > 10


def test_weights_and_balancing_only_when_tickets_pile_up() -> None:
    room = planner()
    piled = state(queue_depth=30, resource_cpu_avg=0.2)
    actions = {c.action for c in room.candidates(room.plan(piled, forecast(60, 80)), piled)}
    assert {Action.ADJUST_PRIORITY_WEIGHTS, Action.LOAD_BALANCING_RECONFIG} <= actions
    assert len(room.candidates(room.plan(state(), forecast(60, 80)), state())) == 2


number = st.none() | st.floats() | st.integers(0, 10**5)


@settings(max_examples=300, deadline=None)
@given(number, number, number, number, number, number, st.none() | st.integers(1, 30))
def test_every_candidate_passes_the_built_in_guard(
    active: Any, queue: Any, duration: Any, cpu: Any, load_1h: Any, load_6h: Any, step: int | None
) -> None:
    tree = {"limits": {"min_workers": 2, "max_workers": 60, "max_step": step}}
    room, guard = planner(**tree), Limits(load_settings(tree).limits)
    at = SchedulingState(
        active_workers=active,
        queue_depth=queue,
        avg_task_duration_ms=duration,
        resource_cpu_avg=cpu,
        predicted_load_1h=load_1h,
        predicted_load_6h=load_6h,
        resource_memory_avg=0.5,  # where nothing is measured nobody but a rule may do anything
    )
    plan = room.plan(at)
    for candidate in room.candidates(plan, at):
        recommendation = Recommendation(action=candidate.action, parameters=candidate.parameters)
        veto = guard.check(None, at, recommendation, 1000.0, None)
        assert veto is None or (veto.guard == "measurements" and active is None), "without metrics the rules decide"
        if candidate.action is Action.DECREASE_WORKER_POOL:
            # Above `max_workers` the limit wins; the busy ones still finish what they do.
            assert candidate.parameters["target_workers"] >= min(min(cpu, 1.0) * int(active) - 1e-6 + queue, 60)
        assert explain(plan, candidate.action, candidate.parameters)
