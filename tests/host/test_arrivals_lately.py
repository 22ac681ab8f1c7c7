from __future__ import annotations

import bisect
import os
from pathlib import Path

from calibrations import calibration
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin import SchedulerHost, SchedulingState, Ticket
from nhm_sched_plugin.advice.arrivals import ArrivalCounter
from nhm_sched_plugin.policy.crowds import AHEAD, SLOT_S
from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.settings import load_settings

DAY = 86_400.0


def test_before_the_first_ticket_nobody_knows() -> None:
    assert ArrivalCounter().lately(1000.0) is None


@given(
    st.lists(st.floats(0, 2000), min_size=1, max_size=60).map(sorted),
    st.floats(0, 4000),
    st.floats(1_700_000_000, 1_700_010_000),
)
def test_counts_what_came_within_each_window_to_five_seconds(gaps: list[float], later: float, began: float) -> None:
    counter = ArrivalCounter()
    at = [began + gap for gap in gaps]
    for now in at:
        counter.observe(now)
    now = at[-1] + later
    found = counter.lately(now)
    assert found is not None
    assert list(found) == [*ARRIVED, AHEAD]
    for name, window in ARRIVED.items():
        inside = len(at) - bisect.bisect_right(at, now - window)
        with_bin = len(at) - bisect.bisect_left(at, now - window - 5.0)
        assert inside <= found[name] <= with_bin, name


def test_on_the_bin_a_window_is_exact() -> None:
    counter = ArrivalCounter()
    for second in range(0, 120):
        counter.observe(10_000.0 + second)
    found = counter.lately(10_120.0)
    assert found is not None
    assert [found[name] for name in ("arrivals_15s", "arrivals_60s", "arrivals_120s", "arrivals_last_hour")] == [
        15, 60, 120, 120,
    ]  # fmt: skip


def test_a_clock_that_goes_far_back_begins_anew_and_a_little_back_counts_on() -> None:
    counter = ArrivalCounter()
    counter.observe(100_000.0)
    counter.observe(99_990.0)
    assert counter.lately(100_000.0)["arrivals_60s"] == 2  # type: ignore[index]
    counter.observe(1_000.0)
    assert counter.lately(1_001.0)["arrivals_last_hour"] == 1  # type: ignore[index]


def test_a_forked_child_counts_its_own() -> None:
    counter = ArrivalCounter()
    counter.observe(100.0)
    child = os.fork()
    if child == 0:
        os._exit(0 if counter.lately(101.0) is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert counter.lately(101.0)["arrivals_15s"] == 1  # type: ignore[index]


def test_yesterdays_crowd_is_ahead_today() -> None:
    counter, nine = ArrivalCounter(600.0), 200_000 * SLOT_S
    for slot in range(-6, 3):
        counter.lately(nine + slot * SLOT_S)
        for ticket in range(400 if slot == 0 else 4):
            counter.observe(nine + slot * SLOT_S + ticket * 0.7)
    told = [counter.lately(nine + DAY + slot * SLOT_S)[AHEAD] for slot in range(-6, 4)]  # type: ignore[index]
    usual = 396 - 6 * 5**0.5
    assert told == [0.0, 0.0, 0.0, *[usual / 2] * 5, 0.0, 0.0], "from a start-up and a slot before, to a slot after"


def test_a_slot_that_was_not_seen_whole_is_no_crowd_and_known_ones_are_kept() -> None:
    counter, began = ArrivalCounter(120.0), 200_000 * SLOT_S
    for ticket in range(400):
        counter.observe(began + 100.0 + ticket * 0.4)
    for slot in range(1, 4):
        counter.observe(began + slot * SLOT_S)
    assert counter.lately(began + DAY)[AHEAD] == 0.0  # type: ignore[index]
    counter.remember([(200_000, 80.0), (200_000 - 288, 40.0)])
    assert counter.lately(began + DAY)[AHEAD] == 60.0  # type: ignore[index]
    child = os.fork()
    if child == 0:
        counter.observe(began + DAY)
        os._exit(int(counter.lately(began + DAY)[AHEAD] != 0.0))  # type: ignore[index]
    assert os.waitpid(child, 0)[1] == 0, "the days before are of all the tickets, and a child sees its own"


def test_a_new_process_knows_the_crowds_of_the_calibration(tmp_path: Path) -> None:
    settings = load_settings({"data_dir": tmp_path, "recording": {"enabled": False}, "metrics": {"enabled": False}})
    calibration(crowds=((200_000, 80.0), (200_000 - 288, 40.0))).save(settings.planner_path)
    now = 200_000 * SLOT_S + DAY
    with SchedulerHost.from_config(settings, clock=lambda: now) as host:
        first = host.decide(Ticket(ticket_id="t1"), SchedulingState())
        assert first.state is not None
        assert first.state.features[AHEAD] == 60.0
        calibration(crowds=((200_001, 100.0),)).save(settings.planner_path)
        host.refresh()
        second = host.decide(Ticket(ticket_id="t2"), SchedulingState())
        assert second.state is not None
        assert second.state.features[AHEAD] == 70.0, "of the day before now 100, of that before 40"
