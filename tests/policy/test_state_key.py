from __future__ import annotations

import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.policy.state_key import ALL_KEYS, NO_METRICS, state_key
from nhm_sched_plugin.types import SchedulingState

number = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.integers(-5, 10**6)
states = st.builds(
    SchedulingState,
    queue_depth=number,
    active_workers=number,
    avg_task_duration_ms=number,
    sla_compliance_rate=number,
    predicted_load_1h=number,
    predicted_load_6h=number,
    resource_cpu_avg=number,
    resource_memory_avg=number,
)


@settings(max_examples=300, deadline=None)
@given(states, number)
def test_total_stable_and_from_the_known_set(state: SchedulingState, volume: float | None) -> None:
    key = state_key(state, volume)
    assert key in ALL_KEYS
    assert state_key(state, volume) == key


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 50),
    st.integers(0, 100),
    st.integers(0, 500),
    st.floats(0.1, 3).filter(lambda x: x != 1),
    st.integers(2, 20),
)
def test_scale_free(workers: int, queue: int, load: int, trend: float, factor: int) -> None:
    # Where the ratio is a bin's edge itself, rounding decides.
    assume(all(abs(load / 60 / workers - edge) > 1e-9 for edge in (0.5, 0.8, 1.0)))

    def at(scale: int) -> str:
        return state_key(
            SchedulingState(
                queue_depth=queue * scale,
                active_workers=workers * scale,
                avg_task_duration_ms=60_000,
                predicted_load_1h=load * scale,
                predicted_load_6h=load * scale * trend,
                sla_compliance_rate=0.97,
            )
        )

    assert at(1) == at(factor)


def test_at_most_about_200_keys() -> None:
    assert len(ALL_KEYS) == 181


def test_bins() -> None:
    def key(**fields: float) -> str:
        return state_key(SchedulingState(active_workers=10, **fields))

    # 10 workers finish 600 one-minute tickets an hour.
    assert key(avg_task_duration_ms=60_000, predicted_load_1h=299) == "u0-b?-s?-t1"
    assert key(avg_task_duration_ms=60_000, predicted_load_1h=300) == "u1-b?-s?-t1"
    assert key(avg_task_duration_ms=60_000, predicted_load_1h=480, queue_depth=0) == "u2-b0-s?-t1"
    assert key(avg_task_duration_ms=60_000, predicted_load_1h=600, queue_depth=10) == "u3-b2-s?-t1"
    assert key(resource_cpu_avg=0.6, sla_compliance_rate=0.94) == "u1-b?-s0-t1", "measured utilisation stands in"
    assert key(predicted_load_1h=100, predicted_load_6h=79, sla_compliance_rate=0.95) == "u?-b?-s1-t0"
    assert key(predicted_load_1h=100, predicted_load_6h=126) == "u?-b?-s?-t2"
    assert state_key(SchedulingState(queue_depth=3)) == NO_METRICS
    assert state_key(SchedulingState(active_workers=math.nan)) == NO_METRICS


def test_the_forecast_stands_in_for_an_absent_load_only() -> None:
    state = SchedulingState(active_workers=10, avg_task_duration_ms=60_000)
    assert state_key(state, 700) == "u3-b?-s?-t1"
    known = SchedulingState(active_workers=10, avg_task_duration_ms=60_000, predicted_load_1h=100)
    assert state_key(known, 700) == "u0-b?-s?-t1"
