"""A rival's knob: tuned on the training part, and swept for its frontier of service against cost."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from nhm_sched_plugin.twin.rivals import RIVALS, Scene
from nhm_sched_plugin.twin.simulator import Controller, Pool, Run, simulate
from nhm_sched_plugin.twin.traces import Trace, TraceError

__all__ = ["EqualSla", "Point", "Tuned", "cost_at", "first_workers", "frontier", "play", "tuned"]

_REFINED: Final = 3
"""Bisections between the last knob that is too cheap and the first that will do."""
Progress = Callable[[float], Any]


class Point(msgspec.Struct, frozen=True):
    """One setting of a knob, and what it led to."""

    knob: float
    sla: float
    """Share of tickets that started in time, in [0, 1]."""
    worker_hours: float


class Tuned(msgspec.Struct, frozen=True):
    """The knob that was chosen on the training part."""

    policy: str
    knob: float
    what: str
    """What the knob is."""
    sla: float
    """On the training part."""
    reached: bool
    """Whether the target was; else this is the knob with most room to spare."""


class EqualSla(msgspec.Struct, frozen=True):
    """What the rivals pay for a given service."""

    worker_hours: float
    how: str
    """`between` two points of the frontier; `cheapest`: its cheapest point already serves as well or better; `beyond`:
    no rival serves as well, and this is the cost of the best-serving one."""


def first_workers(scene: Scene) -> int:
    """Workers that every scaling policy begins with: a fifth more than the training part kept busy."""
    return min(max(math.ceil(1.2 * scene.train.load), scene.min_workers, 1), scene.max_workers)


def play(trace: Trace, controller: Controller, scene: Scene) -> Run:
    """The trace under one controller, in this scene."""
    pool = Pool(
        trace,
        workers=first_workers(scene),
        startup_s=scene.startup_s,
        sla_wait_s=scene.sla_wait_s,
        service_s=scene.train.service_mean_s,
        classes=scene.classes,
    )
    return simulate(pool, controller, tick_s=scene.tick_s)


def frontier(
    name: str,
    trace: Trace,
    scene: Scene,
    *,
    knobs: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> list[Point]:
    """A rival's points on `trace`, one for each knob (default: its own values).

    Raises `TraceError` (a ValueError) for a name that is no rival, `ValueError` for a knob that makes no sense.
    """
    if name not in RIVALS:
        raise TraceError(f"{name!r} has no knob; rivals with one: {', '.join(RIVALS)}")
    values = RIVALS[name].values if knobs is None else knobs
    points = []
    for done, knob in enumerate(values, 1):
        run = play(trace, RIVALS[name].make(scene, knob), scene)
        points.append(Point(knob, run.sla, run.worker_seconds / 3600))
        if progress is not None:
            progress(done / len(values))
    return points


def tuned(
    name: str,
    scene: Scene,
    *,
    sla_target: float = 0.95,
    progress: Progress | None = None,
) -> Tuned:
    """The cheapest knob that reaches `sla_target` on the scene's training part; where none does, that with most room.

    By bisection, first among the rival's values and then between two of them: more room serves better, but for chance.
    Raises `TraceError` for a name that is no rival.
    """
    if name not in RIVALS:
        raise TraceError(f"{name!r} has no knob; rivals with one: {', '.join(RIVALS)}")
    values, tried = RIVALS[name].values, dict[float, Point]()
    most = math.ceil(math.log2(len(values))) + _REFINED + 1

    def good(knob: float) -> bool:
        (tried[knob],) = frontier(name, scene.train, scene, knobs=[knob])
        if progress is not None:
            progress(min(len(tried) / most, 1.0))
        return tried[knob].sla >= sla_target

    if not good(values[-1]):
        return Tuned(name, values[-1], RIVALS[name].knob, tried[values[-1]].sla, False)
    place = bisect_left(values[:-1], True, key=good)
    low = values[max(place - 1, 0)]
    high = values[place]
    for _ in range(_REFINED if low != high else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if good(middle) else (middle, high)
    if progress is not None:
        progress(1.0)
    return Tuned(name, high, RIVALS[name].knob, tried[high].sla, True)


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other is as good as in both: by cost, each serving better than all cheaper ones."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.worker_hours, -point.sla)):
        if not kept or point.sla > kept[-1].sla:
            kept.append(point)
    return kept


def cost_at(points: Iterable[Point], sla: float) -> EqualSla | None:
    """Worker-hours for which the points' Pareto frontier serves a share of `sla`; None without points.

    Linear between neighbours: somebody who uses one knob for part of the time and the other for the rest gets just
    that. A tie in cost goes to the better service. Outside the frontier see `EqualSla.how`.
    """
    best = pareto(points)
    if not best:
        return None
    if sla <= best[0].sla:
        return EqualSla(best[0].worker_hours, "cheapest")
    if sla > best[-1].sla:
        return EqualSla(best[-1].worker_hours, "beyond")
    at = next(n for n, point in enumerate(best) if point.sla >= sla)
    below, above = best[at - 1], best[at]
    share = (sla - below.sla) / (above.sla - below.sla)
    return EqualSla(below.worker_hours + share * (above.worker_hours - below.worker_hours), "between")
