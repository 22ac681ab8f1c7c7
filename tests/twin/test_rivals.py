"""Each rival against its documented formula, worked out by hand."""

from __future__ import annotations

import math

import pytest

from nhm_sched_plugin.twin.rivals import RIVALS, Scene
from nhm_sched_plugin.twin.rivals.base import Highest, ceiling, in_system
from nhm_sched_plugin.twin.rivals.kubernetes import Hpa, Keda, hpa_desired
from nhm_sched_plugin.twin.rivals.staffing import Headroom, Seasonal, SquareRoot
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import SchedulingState

DAY = 86_400.0


def scene(**changes: float) -> Scene:
    return Scene(Trace([10.0], [300.0], start=0.0, end=DAY))._replace(**changes)


def state(
    queue: float = 0,
    active: float = 10,
    busy: float = 0,
    starting: float = 0,
    service_s: float = 100,
    **features: float,
) -> SchedulingState:
    return SchedulingState(
        queue_depth=queue,
        active_workers=active,
        resource_cpu_avg=busy / active if active else None,
        avg_task_duration_ms=1000 * service_s,
        features={"starting_workers": starting, **features},
    )


@pytest.mark.parametrize(
    ("busy", "ready", "starting", "missing", "expected"),
    [
        (10, 10, 0, 0, 15),  # 100 % of a target of 70 %: ceil(10 x 1.43)
        (7.6, 10, 0, 0, 10),  # 1.086: within the tolerance of 10 %
        (6.4, 10, 0, 0, 10),  # 0.914: too
        (14, 20, 0, 0, 20),
        (3, 10, 0, 0, 5),  # ceil(10 x 0.43)
        (0, 10, 0, 0, 0),  # the caller's lower limit holds
        (10, 10, 2, 0, 15),  # the two that start count as idle: 10 / 12 / 0.7 = 1.19, ceil(14.3)
        (10, 10, 4, 0, 14),  # 10 / 14 / 0.7 = 1.02: enough is on its way
        (10, 10, 20, 0, 30),  # 0.48 would be fewer: the direction turned, so nothing changes
        (3, 10, 5, 0, 5),  # scaling down, starting ones do not count
        (10, 10, 0, 2, 15),  # a missing metric counts 0 % when growing ...
        (3, 10, 0, 2, 8),  # ... and 100 % when shrinking: 5 / 12 / 0.7 = 0.6, ceil(7.1)
        (6, 10, 0, 10, 20),  # 16 / 20 / 0.7 = 1.14 would grow: nothing
        (10, 10, 0, 10, 20),  # 0.71 would shrink: nothing
        (5, 10, 3, 2, 10),  # 7 / 12 / 0.7 = 0.83, ceil(10): the starting ones are not counted
        (0, 0, 5, 0, None),  # no metric at all
    ],
)
def test_the_formula_of_the_hpa(busy: float, ready: int, starting: int, missing: int, expected: int | None) -> None:
    assert hpa_desired(busy, ready, starting, 0.7, missing=missing) == expected


def test_the_hpa_grows_by_its_policies_and_shrinks_after_five_minutes() -> None:
    hpa = Hpa(scene(), 0.5)
    assert hpa.on_tick(state(active=10, busy=10), 0) == 20
    assert hpa.on_tick(state(active=2, busy=2), 15) == 4
    eager = Hpa(scene(), 0.1)
    assert eager.on_tick(state(active=3, busy=3), 0) == 7, "four more"
    assert eager.on_tick(state(active=10, busy=10), 15) == 20, "twice as many"
    assert eager.on_tick(state(active=10, busy=10), 22) is None, "it looks every 15 s"
    assert hpa.on_tick(state(active=20, busy=2), 100) == 20, "20 were wanted at 0 s"
    assert hpa.on_tick(state(active=20, busy=2), 300) == 20
    assert hpa.on_tick(state(active=20, busy=2), 315) == 4, "at 15 s it was 4, and is now"
    assert hpa.on_tick(state(active=20, busy=2, queue=99), 330) == 4, "it does not see the queue"
    assert hpa.on_tick(state(active=0, starting=5), 345) == 5, "nobody is ready, nothing is known"


def test_what_was_wanted_counts_for_the_window_and_not_what_the_steps_allowed() -> None:
    hpa = Hpa(scene(), 0.1)
    assert hpa.on_tick(state(active=3, busy=3), 0) == 7, "30 are wanted"
    assert hpa.on_tick(state(active=7, busy=0), 60) == 7
    assert hpa.on_tick(state(active=7, busy=0), 301) == 1, "the scene's least"


def test_keda_divides_the_tickets_in_the_system() -> None:
    keda = Keda(scene(), 0.8)
    assert keda.on_tick(state(queue=3, active=10, busy=9), 0) == 15, "12 / 0.8"
    assert keda.on_tick(state(queue=0, active=10, busy=2, starting=5), 15) == 15, "for five minutes"
    assert keda.on_tick(state(queue=0, active=15, busy=2), 301) == 3
    assert Keda(scene(), 1.0).on_tick(state(queue=90, active=10, busy=10), 0) == 20, "twice as many at most"
    assert Keda(scene()).on_tick(state(queue=1, active=10, busy=10), 0) == 11
    assert Keda(scene(), tolerance=0.1).on_tick(state(queue=1, active=20, busy=20), 0) == 20, "10 % is tolerated"
    assert Keda(scene()).on_tick(state(queue=3, active=0), 0) == 3


def test_square_root_staffing() -> None:
    # 300 arrivals in 300 s of 100 s each: 100 Erlangs.
    measured = state(queue=5, active=50, busy=50, arrivals_300s=300.0)
    assert SquareRoot(scene(), 2.0).on_tick(measured, 0) == 120
    assert SquareRoot(scene(), 0.0).on_tick(measured, 0) == 100
    backlog = state(queue=94, active=50, busy=50, arrivals_300s=300.0)
    assert SquareRoot(scene(), 2.0).on_tick(backlog, 0) == 168, "144 are in the system: 144 + 2 x 12"
    assert SquareRoot(scene(), 2.0).on_tick(state(active=4, busy=0), 0) == 1


def test_a_seasonal_forecast_at_the_start_up_lead_time_and_what_is_there() -> None:
    # 36 tickets of 300 s from 9 to 10 each day, 12 in the other hours: 3 Erlangs, and 1.
    train = Trace(
        [
            24 * 3600.0 * day + 3600 * hour + n
            for day in range(3)
            for hour in range(24)
            for n in range(36 if hour == 9 else 12)
        ],
        [300.0] * (3 * (36 + 23 * 12)),
        start=0.0,
        end=3 * DAY,
    )
    seasonal = Seasonal(Scene(train, startup_s=600.0), 2.0)
    assert seasonal.on_tick(state(active=1, busy=0), 3 * DAY + 8 * 3600) == 2
    assert seasonal.on_tick(state(active=2, busy=0), 3 * DAY + 9 * 3600 - 601) == 2
    assert seasonal.on_tick(state(active=2, busy=0), 3 * DAY + 9 * 3600 - 600) == 6, "workers for nine must start now"
    assert seasonal.on_tick(state(queue=9, active=6, busy=6), 3 * DAY + 9 * 3600) == 15
    assert seasonal.on_tick(state(active=15, busy=1), 3 * DAY + 10 * 3600) == 2


def test_a_constant_headroom() -> None:
    assert Headroom(scene(), 0.5).on_tick(state(queue=4, active=10, busy=6), 0) == 15
    assert Headroom(scene(), 0.0).on_tick(state(queue=4, active=10, busy=6), 0) == 10
    assert Headroom(scene(), 0.5).on_tick(state(queue=100, active=10, busy=10), 0) == 165


def test_limits_of_the_scene_hold() -> None:
    tight = scene(min_workers=3, max_workers=8)
    for rival in RIVALS.values():
        assert rival.make(tight, rival.values[0]).on_tick(state(active=3, busy=0), 0) == 3
        grown = rival.make(tight, rival.values[-1]).on_tick(state(queue=99, active=6, busy=6, arrivals_300s=300.0), 0)
        assert grown == 8


def test_more_room_costs_more_and_serves_better() -> None:
    draw = [((n * 7919) % 1000) / 1000 for n in range(4000)]
    trace = Trace([DAY / 2 * share for share in draw], [60 + 400 * share for share in draw], start=0.0, end=DAY / 2)
    for name, rival in RIVALS.items():
        runs = []
        for knob in (rival.values[0], rival.values[-1]):
            pool = Pool(trace, workers=20, startup_s=120.0, sla_wait_s=60.0, service_s=260.0)
            runs.append(simulate(pool, rival.make(Scene(trace), knob), tick_s=15.0))
        assert runs[0].worker_seconds < runs[1].worker_seconds, name
        assert runs[0].met <= runs[1].met, name
        assert rival.knob


@pytest.mark.parametrize(
    ("name", "knob", "told"),
    [
        ("hpa", 0.0, "hpa: the target utilisation is 0.0; it must be a number above 0"),
        ("hpa", 1.5, "hpa: the target utilisation is 1.5; it must be at most 1"),
        ("keda", -1.0, "keda: tickets per worker is -1.0"),
        ("sqrt", -0.1, "sqrt: beta is -0.1; it must be 0 or more"),
        ("seasonal", math.nan, "seasonal: the factor is nan"),
        ("headroom", math.inf, "headroom: the share is inf"),
    ],
)
def test_wrong_knobs(name: str, knob: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RIVALS[name].make(scene(), knob)


def test_the_parts() -> None:
    assert ceiling(14 / 0.7) == 20
    assert ceiling(20.001) == 21
    assert in_system(state(queue=3, active=10, busy=4)) == 7
    assert in_system(SchedulingState()) == 0
    highest = Highest(10.0)
    assert [highest.add(now, value) for now, value in ((0, 5), (4, 3), (10, 1), (11, 1), (14, 0), (15, 2))] == [
        5,
        5,
        5,
        3,
        3,
        2,
    ]
