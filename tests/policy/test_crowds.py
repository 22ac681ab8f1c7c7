from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin.policy.crowds import DAYS, SLOT_S, Crowds

PER_DAY = 288
NINE = 700 * PER_DAY + 108


def days(crowds: Crowds, heights: list[int], usual: int = 4) -> None:
    """A day each, with a crowd of that height at nine."""
    for day, height in enumerate(heights):
        for slot in range(PER_DAY):
            at = 700 * PER_DAY + day * PER_DAY + slot
            crowds.close(at, height if slot == 108 else usual)


def test_a_crowd_is_what_the_slots_before_do_not_explain() -> None:
    crowds = Crowds(600.0)
    for slot, tickets in enumerate((10, 20, 30, 200, 60)):
        crowds.close(slot, tickets)
    assert crowds.seen == ((3, pytest.approx(200 - 20 - 6 * math.sqrt(21))),)


def test_the_mean_of_the_two_highest_days_is_ahead() -> None:
    crowds, usual = Crowds(120.0), 4 + 6 * math.sqrt(5)
    days(crowds, [100])
    nine = (NINE + PER_DAY) * SLOT_S
    assert crowds.ahead(nine) == pytest.approx((100 - usual) / 2), "once is no habit"
    days(crowds, [100, 60, 300, 80])
    assert crowds.ahead(nine + 3 * PER_DAY * SLOT_S) == pytest.approx((300 + 100) / 2 - usual)
    assert crowds.ahead(nine + (1 + DAYS) * PER_DAY * SLOT_S) == pytest.approx((300 + 80) / 2 - usual)
    assert crowds.ahead(nine + (2 + DAYS) * PER_DAY * SLOT_S) == pytest.approx((80 - usual) / 2)
    assert crowds.ahead(nine + (3 + DAYS) * PER_DAY * SLOT_S) == 0.0


@pytest.mark.parametrize(("startup_s", "before"), [(0.0, 1), (120.0, 2), (600.0, 3)])
def test_it_is_ahead_for_as_long_as_a_worker_takes(startup_s: float, before: int) -> None:
    crowds = Crowds(startup_s)
    days(crowds, [100])
    told = [crowds.ahead((NINE + PER_DAY + slot) * SLOT_S) > 0 for slot in range(-5, 4)]
    assert told == [-before <= slot <= 1 for slot in range(-5, 4)]


def test_old_crowds_are_forgotten_and_known_ones_kept() -> None:
    crowds = Crowds(120.0)
    days(crowds, [100] * 30)
    assert len(crowds.seen) <= DAYS + 1
    later = Crowds(120.0, crowds.seen)
    assert later.ahead((NINE + 30 * PER_DAY) * SLOT_S) == crowds.ahead((NINE + 30 * PER_DAY) * SLOT_S) > 0


def test_after_a_gap_nothing_is_said_of_what_is_usual() -> None:
    crowds = Crowds(120.0)
    for slot in (1, 2, 3, 50):
        crowds.close(slot, 500 if slot == 50 else 1)
    assert crowds.seen == ()


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=700), st.floats(0, 3600))
def test_never_more_than_came_and_never_less_than_nothing(tickets: list[int], startup_s: float) -> None:
    crowds = Crowds(startup_s)
    for slot, came in enumerate(tickets):
        crowds.close(slot, came)
        assert 0.0 <= crowds.ahead((slot + 1) * SLOT_S) <= max(tickets)
