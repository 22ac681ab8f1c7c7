from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin.decision.guards import POOL_ACTIONS, Limits
from nhm_sched_plugin.settings import LimitSettings
from nhm_sched_plugin.types import Action, Recommendation, SchedulingState, Veto

UP, DOWN, AHEAD = Action.INCREASE_WORKER_POOL, Action.DECREASE_WORKER_POOL, Action.PREEMPTIVE_SCALING
LIMITS = Limits(LimitSettings(min_workers=2, max_workers=30, max_step=10, cooldown_s=60))
IDLE = SchedulingState(active_workers=12, queue_depth=0, resource_cpu_avg=0.2)


def advice(action: Action, target: Any = None) -> Recommendation:
    return Recommendation(action=action, parameters={} if target is None else {"target_workers": target})


def check(
    action: Action, target: Any, state: SchedulingState = IDLE, now: float = 1000.0, last: float | None = None
) -> Veto | None:
    return LIMITS.check(None, state, advice(action, target), now, last)


@pytest.mark.parametrize(("action", "target"), [(UP, 13), (UP, 22), (AHEAD, 12), (AHEAD, 20), (DOWN, 11), (DOWN, 2)])
def test_what_is_inside_the_limits_passes(action: Action, target: int) -> None:
    assert check(action, target) is None


@pytest.mark.parametrize("action", [Action.NO_ACTION, Action.ADJUST_PRIORITY_WEIGHTS, Action.LOAD_BALANCING_RECONFIG])
def test_what_does_not_touch_the_pool_passes_even_blind(action: Action) -> None:
    assert check(action, None, SchedulingState(queue_depth=3)) is None
    assert check(action, None, SchedulingState(resource_memory_avg=0.3)) is None


@pytest.mark.parametrize("action", Action)
def test_where_nothing_is_measured_the_rules_decide(action: Action) -> None:
    forecast_alone = SchedulingState(
        predicted_load_1h=900.0, predicted_load_6h=900.0, features={"arrivals_last_hour": 9}
    )
    for blind in (SchedulingState(), forecast_alone, SchedulingState(queue_depth=math.nan)):
        veto = check(action, 12, blind)
        assert veto is not None
        assert veto.guard in {"measurements", "active_workers"}
        by_rule = LIMITS.restrain(None, blind, advice(action, 12), 0.0, None)
        assert by_rule.action is (Action.NO_ACTION if action in POOL_ACTIONS else action), "but a rule may"


@pytest.mark.parametrize(
    "target",
    [10**400, -(10**400), 10**5000, -(10**5000)],
    ids=["large", "small", "unprintable", "unprintable and small"],
)
@pytest.mark.parametrize("action", [UP, DOWN, AHEAD])
def test_numbers_that_cannot_even_be_printed(action: Action, target: int) -> None:
    veto = check(action, target)
    assert veto == Veto(guard="parameters", reason="target_workers is larger than any number of workers")
    assert restrain(action, target).action is Action.NO_ACTION


@pytest.mark.parametrize(
    ("action", "target", "active", "guard", "words"),
    [
        (UP, 40, 25, "limits", "target_workers 40 is above limits.max_workers 30"),
        (AHEAD, 31, 25, "limits", "target_workers 31 is above limits.max_workers 30"),
        (DOWN, 1, 3, "limits", "target_workers 1 is below limits.min_workers 2"),
        (UP, 23, 12, "max_step", "target_workers 23 is 11 away from 12; limits.max_step is 10"),
        (DOWN, 9, 20, "max_step", "limits.max_step is 10"),
        (UP, 12, 12, "direction", "INCREASE_WORKER_POOL to target_workers 12 with 12 active"),
        (UP, 5, 12, "direction", "INCREASE_WORKER_POOL to target_workers 5 with 12 active"),
        (AHEAD, 11, 12, "direction", "PREEMPTIVE_SCALING"),
        (DOWN, 12, 12, "direction", "DECREASE_WORKER_POOL to target_workers 12 with 12 active"),
        (DOWN, 13, 12, "direction", "DECREASE_WORKER_POOL"),
    ],
)
def test_vetoes_name_the_value_and_the_limit(action: Action, target: int, active: int, guard: str, words: str) -> None:
    veto = check(action, target, SchedulingState(active_workers=active, queue_depth=0, resource_cpu_avg=0.2))
    assert veto is not None
    assert veto.guard == guard
    assert words in veto.reason


@pytest.mark.parametrize("target", [None, 12.0, "13", True, math.nan])
@pytest.mark.parametrize("action", [UP, DOWN, AHEAD])
def test_a_pool_action_needs_a_whole_target(action: Action, target: Any) -> None:
    veto = check(action, target)
    assert veto is not None
    assert veto.guard == "parameters"
    assert repr(target) in veto.reason


@pytest.mark.parametrize("active", [None, math.nan, math.inf])
def test_without_the_size_of_the_pool_it_is_not_touched(active: float | None) -> None:
    for action, target in ((UP, 20), (DOWN, 3), (AHEAD, 20)):
        veto = check(action, target, SchedulingState(active_workers=active, queue_depth=0))
        assert veto is not None
        assert veto.guard == "active_workers"


def test_a_pool_outside_its_limits_may_come_back_step_by_step() -> None:
    few = SchedulingState(active_workers=1, queue_depth=0, resource_cpu_avg=0.2)
    many = SchedulingState(active_workers=50, queue_depth=0, resource_cpu_avg=0.2)
    assert Limits(LimitSettings(min_workers=5, max_step=1)).check(None, few, advice(UP, 2), 0.0, None) is None
    assert check(DOWN, 40, many) is None


def test_workers_are_never_removed_on_a_forecast_alone() -> None:
    blind = SchedulingState(active_workers=12, predicted_load_1h=1.0, avg_task_duration_ms=100.0)
    veto = check(DOWN, 10, blind)
    assert veto is not None
    assert veto.guard == "measurements"
    for measured in ({"queue_depth": 0}, {"resource_cpu_avg": 0.1}):
        assert check(DOWN, 10, SchedulingState(active_workers=12, **measured)) is None


def test_workers_are_never_removed_while_tickets_wait() -> None:
    veto = check(DOWN, 10, SchedulingState(active_workers=12, queue_depth=3, resource_cpu_avg=0.1))
    assert veto == Veto(guard="backlog", reason="3 tickets wait; workers are removed only when none does")
    assert check(DOWN, 10, SchedulingState(active_workers=12, queue_depth=0.4)) is None  # an average, nearly always 0


def test_cooldown_holds_removals_only_and_for_its_time_only() -> None:
    veto = check(DOWN, 10, now=1000.0, last=950.0)
    assert veto is not None
    assert veto.guard == "cooldown"
    assert "50 s ago" in veto.reason
    assert check(UP, 15, now=1000.0, last=950.0) is None
    assert check(DOWN, 10, now=1010.0, last=950.0) is None


def test_a_clock_that_was_set_back_does_not_block_for_hours() -> None:
    assert check(DOWN, 10, now=1000.0, last=1001.0) is not None
    assert check(DOWN, 10, now=1000.0, last=90_000.0) is None


@pytest.mark.parametrize(("now", "last"), [(math.nan, 0.0), (0.0, math.nan), (math.inf, math.inf)])
def test_a_broken_clock_removes_nobody(now: float, last: float) -> None:
    veto = check(DOWN, 10, now=now, last=last)
    assert veto is not None
    assert veto.guard == "cooldown"


def restrain(action: Action, target: Any, state: SchedulingState = IDLE, last: float | None = None) -> Recommendation:
    return LIMITS.restrain(None, state, advice(action, target), 1000.0, last)


def test_restrain_leaves_alone_what_is_fine() -> None:
    for action, target in ((UP, 15), (DOWN, 10), (Action.NO_ACTION, None), (Action.ADJUST_PRIORITY_WEIGHTS, None)):
        fine = advice(action, target)
        assert LIMITS.restrain(None, IDLE, fine, 1000.0, None) is fine


@pytest.mark.parametrize(
    ("action", "target", "active", "allowed"),
    [(UP, 5000, 12, 22), (UP, 5000, 25, 30), (AHEAD, 99, 25, 30), (DOWN, 0, 8, 2), (DOWN, 0, 25, 15)],
)
def test_restrain_moves_a_target_inside_the_limits(action: Action, target: int, active: int, allowed: int) -> None:
    state = SchedulingState(active_workers=active, queue_depth=0)
    answer = restrain(action, target, state)
    assert (answer.action, answer.parameters) == (action, {"target_workers": allowed})
    assert f"{allowed} of {target}" in answer.justification


@pytest.mark.parametrize(
    ("action", "target", "state", "words"),
    [
        (UP, 99, SchedulingState(active_workers=30), "the limits leave no room for 99 workers"),
        (DOWN, 0, SchedulingState(active_workers=2, queue_depth=0), "the limits leave no room for 0 workers"),
        (UP, 99, SchedulingState(), "number of active workers is unknown"),
        (DOWN, 10, SchedulingState(active_workers=12, queue_depth=5), "5 tickets wait"),
        (DOWN, 10, SchedulingState(active_workers=12), "not removed on a forecast alone"),
        (UP, "many", IDLE, "needs an integer"),
    ],
)
def test_restrain_keeps_the_pool_where_a_guard_says_no(
    action: Action, target: Any, state: SchedulingState, words: str
) -> None:
    answer = restrain(action, target, state)
    assert (answer.action, answer.parameters) == (Action.NO_ACTION, {})
    assert words in answer.justification


NUMBERS = st.none() | st.floats() | st.floats(0, 60) | st.integers(-5, 60)


@given(
    st.sampled_from(list(Action)),
    st.none() | st.integers(-(10**20), 10**20) | st.integers(-5, 60) | st.floats() | st.text(max_size=3),
    st.builds(
        SchedulingState,
        active_workers=NUMBERS,
        queue_depth=NUMBERS,
        resource_cpu_avg=NUMBERS,
        resource_memory_avg=st.just(0.5),  # or else nobody but a rule may do anything
    ),
    st.none() | st.floats(0, 2000),
)
def test_restrained_advice_is_never_vetoed(
    action: Action, target: Any, state: SchedulingState, last: float | None
) -> None:
    answer = restrain(action, target, state, last)
    assert LIMITS.check(None, state, answer, 1000.0, last) is None
    assert answer.action in (action, Action.NO_ACTION)
    if answer.action in (UP, AHEAD) and answer.parameters["target_workers"] > state.active_workers:
        assert answer.parameters["target_workers"] <= 30
    if answer.action == DOWN:
        assert answer.parameters["target_workers"] >= 2
