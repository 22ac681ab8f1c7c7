from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin.decision.gate import capacity, confident, opens, volume_threshold
from nhm_sched_plugin.types import SchedulingState

POOL = SchedulingState(active_workers=10, avg_task_duration_ms=5000, queue_depth=0)  # 7200 tickets an hour


def test_threshold_is_80_percent_of_what_the_pool_can_do() -> None:
    assert capacity(POOL) == 7200
    assert volume_threshold(POOL) == pytest.approx(5760)
    assert volume_threshold(POOL, 100.0) == 100.0


@pytest.mark.parametrize(
    ("workers", "duration_ms"),
    [
        (None, 5000),
        (10, None),
        (10, 0),
        (10, -1),
        (-1, 5000),
        (float("nan"), 5000),
        (10, float("inf")),
        (1e300, 1e-300),
    ],
)
def test_without_a_usable_pool_there_is_no_threshold_and_the_gate_opens(workers: float, duration_ms: float) -> None:
    state = SchedulingState(active_workers=workers, avg_task_duration_ms=duration_ms)
    assert volume_threshold(state) is None
    assert opens(0.0, state)
    assert not opens(0.0, state, configured=10.0)


def test_the_gate_opens_above_the_threshold_not_at_it() -> None:
    assert not opens(5760.0, POOL)
    assert opens(5760.1, POOL)
    assert opens(101.0, POOL, configured=100.0)
    assert not opens(100.0, POOL, configured=100.0)


def test_a_backlog_above_one_worker_round_opens_the_gate() -> None:
    assert not opens(0.0, SchedulingState(active_workers=10, avg_task_duration_ms=5000, queue_depth=10))
    assert opens(0.0, SchedulingState(active_workers=10, avg_task_duration_ms=5000, queue_depth=11))
    assert opens(float("nan"), SchedulingState(active_workers=10, avg_task_duration_ms=5000, queue_depth=11))


def test_an_unknown_volume_does_not_open_the_gate() -> None:
    assert not opens(None, POOL)
    assert not opens(float("nan"), POOL)


def test_confidence_that_travelled_as_float32_still_counts() -> None:
    (on_the_wire,) = struct.unpack("f", struct.pack("f", 0.7))
    assert on_the_wire < 0.7
    assert confident(on_the_wire, 0.7)
    assert not confident(0.699998, 0.7)


@pytest.mark.parametrize("confidence", [None, float("nan"), float("inf"), -0.1, 1.1, True, "0.9"])
def test_what_is_no_probability_is_no_confidence(confidence: float) -> None:
    assert not confident(confidence, 0.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_confidence_never_closes_the_gate(confidence: float, threshold: float) -> None:
    if confident(confidence, threshold):
        assert confident(min(1.0, confidence + 0.1), threshold)
