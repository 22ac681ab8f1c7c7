from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin.decision.reward import WEIGHTS, calculate_reward, components, gap_closed, reward
from nhm_sched_plugin.types import SchedulingState

NUMBERS = st.none() | st.floats() | st.integers() | st.floats(0, 1)
STATES = st.builds(
    SchedulingState,
    active_workers=NUMBERS,
    avg_task_duration_ms=NUMBERS,
    sla_compliance_rate=NUMBERS,
    resource_cpu_avg=NUMBERS,
    features=st.dictionaries(st.sampled_from(["throughput", "cost", "resource_efficiency"]), st.floats()),
)


def test_the_weights_are_the_specification_s() -> None:
    assert WEIGHTS == {"sla": 0.4, "throughput": 0.3, "efficiency": 0.2, "cost": 0.1}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0.88, 0.94, 0.5),  # half of the gap closed
        (0.88, 1.0, 1.0),
        (0.99, 1.0, 0.2),  # measured against at least 0.05
        (0.9, 0.45, -0.5),  # half of it lost
        (0.02, 0.0, -0.4),
        (1.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
    ],
)
def test_sla_delta(before: float, after: float, expected: float) -> None:
    parts = components({"sla_compliance_rate": before}, {"sla_compliance_rate": after})
    assert parts["sla"] == pytest.approx(expected)
    assert calculate_reward({"sla_compliance": before}, {"sla_compliance": after}) == pytest.approx(0.4 * expected)


def test_a_worked_example() -> None:
    before = {"sla_compliance_rate": 0.8, "throughput": 1000, "resource_efficiency": 0.5, "cost": 10}
    after = {"sla_compliance_rate": 0.9, "throughput": 1100, "resource_efficiency": 0.6, "cost": 12}
    parts = components(before, after)
    assert parts == pytest.approx({"sla": 0.5, "throughput": 0.1, "efficiency": 0.2, "cost": -0.2})
    assert calculate_reward(before, after) == pytest.approx(0.4 * 0.5 + 0.3 * 0.1 + 0.2 * 0.2 - 0.1 * 0.2)


def test_a_state_gives_throughput_by_the_utilisation_law_and_cost_by_its_workers() -> None:
    before = SchedulingState(active_workers=10, resource_cpu_avg=0.5, avg_task_duration_ms=5000)  # 3600 an hour
    after = SchedulingState(active_workers=5, resource_cpu_avg=0.9, avg_task_duration_ms=5000)  # 3240 an hour
    assert components(before, after) == pytest.approx({"sla": 0, "throughput": -0.1, "efficiency": 0.8, "cost": 0.5})
    assert reward(before, after) == pytest.approx(-0.03 + 0.16 + 0.05)


def test_reported_figures_win_over_derived_ones_only_when_both_sides_have_them() -> None:
    before = SchedulingState(active_workers=10, features={"cost": 4.0})
    after = SchedulingState(active_workers=20, features={"cost": 2.0})
    assert components(before, after)["cost"] == 0.5
    assert components(before, SchedulingState(active_workers=20))["cost"] == -1.0


@pytest.mark.parametrize("unknown", [None, math.nan, math.inf, -math.inf, "0.9", True, 10**400, [1]])
def test_what_is_missing_or_no_number_counts_nothing(unknown: Any) -> None:
    known = {"sla_compliance_rate": 0.5, "throughput": 5, "resource_efficiency": 0.5, "cost": 5}
    broken = dict.fromkeys(known, unknown)
    assert set(components(known, broken).values()) == {0.0}
    assert calculate_reward(broken, known) == 0.0
    assert calculate_reward({}, known) == 0.0


@pytest.mark.parametrize("nothing", [None, 5, {}, SchedulingState()])
def test_without_metrics_on_one_side_there_is_no_reward(nothing: Any) -> None:
    assert reward(nothing, SchedulingState(sla_compliance_rate=0.9, active_workers=3)) == 0.0
    assert calculate_reward({"sla_compliance_rate": 0.9}, nothing) == 0.0


def test_growth_from_nothing_is_full_growth_and_nothing_to_nothing_is_none() -> None:
    assert components({"throughput": 0, "cost": 0}, {"throughput": 1, "cost": 1}) == {
        "sla": 0.0, "throughput": 1.0, "efficiency": 0.0, "cost": -1.0,
    }  # fmt: skip
    assert calculate_reward({"throughput": 0, "cost": 0}, {"throughput": 0, "cost": 0}) == 0.0


def test_numbers_of_other_kinds_count() -> None:
    assert components({"cost": Fraction(4)}, {"cost": Fraction(2)})["cost"] == 0.5


@given(STATES, STATES)
def test_every_part_and_the_whole_stay_in_bounds(before: SchedulingState, after: SchedulingState) -> None:
    assert all(-1 <= part <= 1 for part in components(before, after).values())
    assert -1 - 1e-12 <= reward(before, after) <= 1 + 1e-12


@given(STATES)
def test_no_change_is_no_reward(state: SchedulingState) -> None:
    assert reward(state, state) == 0.0


@given(
    st.sampled_from(["sla_compliance_rate", "throughput", "resource_efficiency", "cost"]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_better_is_positive_and_worse_is_negative(name: str, before: float, after: float) -> None:
    value = calculate_reward({name: before}, {name: after})
    gain = before - after if name == "cost" else after - before
    assert value * gain >= 0
    if abs(gain) > 1e-6:
        assert value != 0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_more_sla_is_never_worth_less(before: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    start = {"sla_compliance_rate": before}
    assert calculate_reward(start, {"sla_compliance_rate": low}) <= calculate_reward(
        start, {"sla_compliance_rate": high}
    )


RULES = {"sla": 0.90, "throughput": 100.0, "efficiency": 0.5, "cost": 200.0}
ORACLE = {"sla": 1.00, "throughput": 110.0, "efficiency": 0.9, "cost": 100.0}


def test_the_gap_is_closed_from_the_rules_to_the_oracle() -> None:
    assert gap_closed(RULES, RULES, ORACLE) == 0.0
    assert gap_closed(ORACLE, RULES, ORACLE) == pytest.approx(1.0)
    half = {name: (RULES[name] + ORACLE[name]) / 2 for name in WEIGHTS}
    assert gap_closed(half, RULES, ORACLE) == pytest.approx(0.5)
    assert gap_closed(RULES | {"sla": 1.0}, RULES, ORACLE) == pytest.approx(0.4)
    assert gap_closed(RULES | {"cost": 150.0}, RULES, ORACLE) == pytest.approx(0.1 * 0.5)


def test_each_share_of_the_gap_is_clipped() -> None:
    assert gap_closed(RULES | {"cost": 10.0}, RULES, ORACLE) == pytest.approx(0.1), (
        "cheaper than the oracle: 1, not 1.9"
    )
    assert gap_closed(RULES | {"sla": 0.1}, RULES, ORACLE) == pytest.approx(-0.4), "-1, not -8"


def test_components_without_a_gap_are_left_out() -> None:
    only_sla = ORACLE | {"throughput": 100.05, "efficiency": 0.5, "cost": 200.0}
    assert gap_closed(RULES | {"sla": 0.95, "cost": 900.0}, RULES, only_sla) == pytest.approx(0.5)
    cheap_rules = ORACLE | {"cost": 250.0}  # the rules save money by letting tickets wait: nothing to close there
    assert gap_closed(RULES | {"sla": 1.0, "cost": 240.0}, RULES, cheap_rules) == pytest.approx(0.4 / 0.9)
    assert gap_closed(RULES, RULES, RULES) is None
    with pytest.raises(KeyError, match="efficiency"):
        gap_closed({"sla": 1.0, "throughput": 1.0}, RULES, ORACLE)
