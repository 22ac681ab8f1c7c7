from __future__ import annotations

import random

import pytest

from nhm_sched_plugin.twin.rivals import RIVALS, Scene
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.twin.tuning import Point, cost_at, first_workers, frontier, pareto, tuned

HOUR = 3600.0


def bursts(hours: int = 6, seed: int = 2) -> Trace:
    """A quiet stream with thirty tickets at once every half an hour."""
    draw = random.Random(seed)
    arrivals = [draw.uniform(0, hours * HOUR) for _ in range(60 * hours)]
    arrivals += [900.0 + 1800 * n + draw.uniform(0, 60) for n in range(2 * hours) for _ in range(30)]
    return Trace(arrivals, [draw.expovariate(1 / 200) for _ in arrivals], name="bursts", start=0.0, end=hours * HOUR)


def test_the_cheapest_knob_that_reaches_the_target() -> None:
    scene = Scene(bursts())
    points = frontier("headroom", scene.train, scene)
    assert [point.knob for point in points] == list(RIVALS["headroom"].values)
    assert points[0].worker_hours < points[-1].worker_hours
    target = (points[0].sla + points[-1].sla) / 2
    found = tuned("headroom", scene, sla_target=target)
    assert found.reached
    assert found.sla >= target
    (cost,) = frontier("headroom", scene.train, scene, knobs=[found.knob])
    assert cost.worker_hours <= min(point.worker_hours for point in points if point.sla >= target)
    (cheaper,) = frontier("headroom", scene.train, scene, knobs=[found.knob - 0.1])
    assert cheaper.sla < target
    assert found.what == "headroom"
    shares: list[float] = []
    out_of_reach = tuned("headroom", scene, sla_target=1.01, progress=shares.append)
    assert not out_of_reach.reached
    assert (out_of_reach.knob, out_of_reach.sla) == (points[-1].knob, points[-1].sla)
    assert 0 < shares[-1] <= 1.0
    assert tuned("hpa", scene, sla_target=0.0).knob == RIVALS["hpa"].values[0], "nothing is asked, nothing is paid"


def test_wrong_requests() -> None:
    scene = Scene(bursts(1))
    with pytest.raises(ValueError, match="'static' has no knob; rivals with one: hpa, keda, sqrt"):
        frontier("static", scene.train, scene)
    with pytest.raises(ValueError, match="beta is -1"):
        frontier("sqrt", scene.train, scene, knobs=[-1.0])


def test_the_first_workers_keep_to_the_limits() -> None:
    scene = Scene(Trace([0.0], [5000.0], start=0.0, end=1000.0))
    assert first_workers(scene) == 6
    assert first_workers(scene._replace(max_workers=4)) == 4
    assert first_workers(scene._replace(min_workers=9)) == 9


POINTS = [Point(1, 0.90, 100), Point(2, 0.95, 120), Point(3, 0.94, 130), Point(4, 0.99, 200), Point(5, 0.99, 190)]


def test_the_frontier_keeps_what_nothing_else_beats() -> None:
    assert [point.knob for point in pareto(POINTS)] == [1, 2, 5]
    assert [point.knob for point in pareto([Point(1, 0.5, 10), Point(2, 0.6, 10)])] == [2], "of a tie the better"
    assert pareto([]) == []


@pytest.mark.parametrize(
    ("sla", "hours", "how"),
    [
        (0.95, 120, "between"),
        (0.925, 110, "between"),
        (0.97, 155, "between"),
        (0.99, 190, "between"),
        (0.90, 100, "cheapest"),
        (0.10, 100, "cheapest"),
        (0.999, 190, "beyond"),
    ],
)
def test_cost_at_equal_service(sla: float, hours: float, how: str) -> None:
    found = cost_at(POINTS, sla)
    assert found is not None
    assert (found.worker_hours, found.how) == (pytest.approx(hours), how)


def test_no_points_no_cost() -> None:
    assert cost_at([], 0.9) is None
