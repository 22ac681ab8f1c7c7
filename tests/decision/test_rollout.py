from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin.decision.rollout import BUCKETS, arm, assign, bucket, unit_id
from nhm_sched_plugin.settings import ExperimentSettings, RolloutSettings
from nhm_sched_plugin.types import Arm, Reason, Ticket

OFF = ExperimentSettings()
AB = ExperimentSettings(enabled=True)


def ticket(number: int, task_type: str | None = "processing") -> Ticket:
    return Ticket(ticket_id=f"t{number}", task_type=task_type)


def test_known_buckets_never_change() -> None:
    """A new version that moved units between arms would spoil every running experiment."""
    assert [bucket("nhm_sched", f"t{n}") for n in range(4)] == [
        6644,
        1122,
        3631,
        5632,
    ]  # as coreutils: printf nhm_sched:t0 | b2sum -l 128


def test_buckets_are_the_same_in_another_process() -> None:
    code = "from nhm_sched_plugin.decision.rollout import bucket; print(bucket('salt', 'tíquete'))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == bucket("salt", "tíquete")


@given(st.text(), st.text())
def test_any_text_has_a_bucket(salt: str, unit: str) -> None:
    assert 0 <= bucket(salt, unit) < BUCKETS


def test_a_unit_with_half_a_character_has_a_bucket() -> None:
    assert 0 <= bucket("nhm_sched", "\ud800") < BUCKETS


@pytest.mark.parametrize("percentage", [1, 20, 50, 80])
def test_the_share_of_units_is_within_one_percent(percentage: int) -> None:
    units = 40_000
    inside = sum(assign(percentage, bucket("nhm_sched", f"t{n}")) for n in range(units))
    assert inside / units * 100 == pytest.approx(percentage, abs=1)


@given(st.text(min_size=1), st.integers(0, 100), st.integers(0, 100))
def test_raising_the_percentage_only_adds_units(unit: str, lower: int, higher: int) -> None:
    lower, higher = sorted((lower, higher))
    if assign(lower, bucket("salt", unit)):
        assert assign(higher, bucket("salt", unit))


def test_the_ends_of_the_scale() -> None:
    for n in range(200):
        assert arm(RolloutSettings(percentage=0), AB, ticket(n), 0.0) == (Arm.SHADOW, Reason.SHADOW)
        assert arm(RolloutSettings(percentage=100), OFF, ticket(n), 0.0) == (Arm.TREATMENT, None)


def test_outside_the_rollout_is_control() -> None:
    arms = [arm(RolloutSettings(percentage=20), OFF, ticket(n), 0.0) for n in range(2000)]
    assert set(arms) == {(Arm.CONTROL, Reason.NOT_IN_ROLLOUT), (Arm.TREATMENT, None)}
    assert arms == [arm(RolloutSettings(percentage=20), OFF, ticket(n), 1e9) for n in range(2000)]  # sticky over time


def test_another_salt_draws_another_sample() -> None:
    def inside(salt: str) -> set[int]:
        return {
            n for n in range(5000) if arm(RolloutSettings(percentage=20, salt=salt), OFF, ticket(n), 0.0)[1] is None
        }

    one, other = inside("one"), inside("other")
    assert len(one & other) / len(one) == pytest.approx(0.2, abs=0.04)


def test_the_experiment_takes_its_control_group_from_inside_the_rollout_and_independently() -> None:
    """Were the two hashes the same, a 20 % rollout would be all control group."""
    arms = [arm(RolloutSettings(percentage=20), AB, ticket(n), 0.0) for n in range(50_000)]
    inside = [answer for answer in arms if answer[1] is not Reason.NOT_IN_ROLLOUT]
    control = sum(answer == (Arm.CONTROL, Reason.CONTROL_GROUP) for answer in inside)
    assert len(inside) / len(arms) == pytest.approx(0.2, abs=0.01)
    assert control / len(inside) == pytest.approx(0.2, abs=0.015)


def test_units() -> None:
    assert unit_id("ticket", ticket(7), 0.0, 60) == "t7"
    assert unit_id("task_type", ticket(7), 0.0, 60) == "processing"
    assert unit_id("task_type", ticket(7, None), 0.0, 60) == unit_id("task_type", ticket(8, None), 99.0, 60)
    assert unit_id("switchback", ticket(7), 3599.9, 60) == "block:0"
    assert unit_id("switchback", ticket(7), 3600.0, 60) == "block:1"


@pytest.mark.parametrize("unit", ["ticket", "task_type", "switchback"])
def test_a_control_tick_goes_by_its_time_block(unit: str) -> None:
    rollout = RolloutSettings(percentage=50, unit=unit, block_minutes=30)
    assert unit_id(unit, None, 1800.0, 30) == "block:1"
    assert arm(rollout, OFF, None, 1800.0) == arm(rollout, OFF, None, 3599.0)
    assert {arm(rollout, OFF, None, block * 1800.0)[0] for block in range(40)} == {Arm.CONTROL, Arm.TREATMENT}
