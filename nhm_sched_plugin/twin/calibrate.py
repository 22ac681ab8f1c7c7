"""Calibration of the planner in the twin: the coefficients of `policy.demand` that cost least on a trace.

Cost is worker-seconds plus `late_cost` tickets' worth of work for each late ticket, over the worker-seconds of the
clairvoyant oracle. It is measured by running the pool, with its start-up time, cooldown and limits, and minimised by
CMA-ES (Hansen & Ostermeier 2001; the `cmaes` library), since a simulated cost has no gradient worth following.
Training sees the trace itself, a busier overlay of it, the trace with flash crowds, and with crowds that come back
(`scenarios`). Crowds are few and differ much, so coefficients that suit those of one draw suit no other: every
generation meets crowds drawn anew, and the answer is not the best candidate, who was lucky with his, but the mean of
where the search stood in its last generations (Polyak & Juditsky 1992, "Acceleration of stochastic approximation by
averaging"). Last, a constant on the room is settled on the days as they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from nhm_sched_plugin.policy.demand import COEFFICIENTS, VERSION, DemandModel
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin import layout, pilot
from nhm_sched_plugin.twin.crowds import CrowdsAhead
from nhm_sched_plugin.twin.oracle import oracle
from nhm_sched_plugin.twin.scenarios import overlaid, with_daily_crowds, with_flash_crowds
from nhm_sched_plugin.twin.traces import Trace, TraceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GENERATIONS", "best_room", "calibrate", "dispersion", "recent"]

GENERATIONS: Final = 80
_AVERAGED: Final = 0.25
"""Share of the generations, the last ones, whose centres are averaged."""
_ROOMS: Final = (1.0, 0.9, 1.15, 0.8, 1.3)
"""Of those that cost the same the first is taken."""
_STEPS: Final = 4
_MOST_TICKETS: Final = 300_000
"""The most recent ones; more cost time and say little new of the next minutes."""
_MOST_DAYS: Final = 28
_HOUR: Final = 3600.0
_COPIES: Final = 3
_START: Final = (2.0, 0.02, 1.0, 1.0, 0.3, 0.0, 0.0, 0.0, 1.0, 0.3, 0.2, 0.2, 0.5, 0.5, 0.1, 0.7)
"""Square-root staffing with a little trend: where the search begins."""
_SCALE: Final = (1.2, 0.03, 0.4, 0.4, 0.13, 0.1, 0.1, 0.05, 0.4, 0.23, 0.12, 0.12, 0.35, 0.35, 0.1, 0.4)
"""How far it looks in each direction at first."""


class _Scene(NamedTuple):
    """A trace, ready to be run many times."""

    trace: Trace
    offered: NDArray[np.float64]
    crowds: NDArray[np.float64]
    oracle_s: float
    work_s: float
    """Mean service time."""


class _Outcome(NamedTuple):
    cost: float
    """Worker-seconds over the oracle's."""
    late: float
    """Share of the tickets."""


def dispersion(trace: Trace) -> float:
    """Index of dispersion of the tickets per minute, given the pace of the hour before (at least 1, Poisson)."""
    edges = np.arange(trace.start, trace.end + 60.0, 60.0)
    minutes = np.histogram(trace.arrivals, edges)[0].astype(float)
    if len(minutes) < 2:
        return 1.0
    total = np.concatenate([[0.0], np.cumsum(minutes)])
    begins = np.maximum(np.arange(len(minutes)) - 59, 0)
    pace = (total[1:] - total[begins]) / (np.arange(len(minutes)) - begins + 1)
    pace = np.maximum(pace, 0.05)
    return max(1.0, float(((minutes - pace) ** 2).sum() / pace.sum()))


def calibrate(
    settings: Settings,
    trace: Trace,
    *,
    tick_s: float = 15.0,
    generations: int = GENERATIONS,
    seed: int = 0,
    warm: Sequence[float] | None = None,
    progress: Callable[[float], Any] | None = None,
) -> DemandModel:
    """Fit the planner to `trace` for the start-up time, SLA wait, limits and `planner.late_cost` of the settings.

    `warm` coefficients are where the search begins, of an earlier calibration. `progress` gets the share done, in
    [0, 1]. The same seed gives the same model. Raises `TraceError` for a trace without tickets, `ValueError` for no
    generations.
    """
    from cmaes import CMA

    if generations < 1:
        raise ValueError(f"generations is {generations}; the search needs 1 at least")
    if not len(trace):
        raise TraceError(f"{trace.name}: no tickets to calibrate the planner on")
    crowds = CrowdsAhead(trace, settings.planner.startup_s).seen
    trace = recent(trace)
    planner = settings.planner
    own, busier = _scene(trace, planner.startup_s), _scene(overlaid(trace, _COPIES), planner.startup_s)
    spread = dispersion(trace)

    def run(scene: _Scene, coefficients: NDArray[np.float64]) -> _Outcome:
        return _run(settings, scene, coefficients, spread, tick_s)

    def loss(coefficients: NDArray[np.float64], scenes: Sequence[_Scene]) -> float:
        return sum(_loss(planner.late_cost, scene, run(scene, coefficients)) for scene in scenes) / len(scenes)

    origin = np.array(_START if warm is None else warm, np.float64)
    scale = np.array(_SCALE) + 0.1 * np.abs(origin)
    search = CMA(mean=np.zeros(len(COEFFICIENTS)), sigma=1.0, seed=seed)
    centres = []
    for generation in range(generations):
        drawn = seed * generations + generation
        crowded = [crowds_of(trace, drawn) for crowds_of in (with_flash_crowds, with_daily_crowds)]
        scenes = [own, busier, *(_scene(variation, planner.startup_s) for variation in crowded)]
        asked = [search.ask() for _ in range(search.population_size)]
        search.tell([(each, loss(origin + scale * each, scenes)) for each in asked])
        centres.append(search.mean.copy())  # `tell` moves it in place
        if progress is not None:
            progress((generation + 1) / generations)
    found = origin + scale * np.mean(centres[-math.ceil(_AVERAGED * generations) :], axis=0)
    # The search weighs days with more crowds than came. How much room those that came are worth is settled last.
    for _ in range(_STEPS):
        room = _best_room(settings, own, found, spread, tick_s)
        if room == 1.0:
            break
        found = _with_room(found, room)
    outcome = run(own, found)
    return DemandModel(
        coefficients=tuple(found.tolist()),
        dispersion=spread,
        startup_s=planner.startup_s,
        sla_wait_s=planner.sla_wait_s,
        late_cost=planner.late_cost,
        service_s=own.work_s,
        tickets=len(trace),
        start=trace.start,
        end=trace.end,
        sla=1.0 - outcome.late,
        cost=outcome.cost,
        crowds=crowds,
        version=VERSION,
    )


def best_room(settings: Settings, trace: Trace, model: DemandModel, *, tick_s: float = 15.0) -> float:
    """The constant factor on the room of `model`, but for crowds that come back, that costs least on `trace`.

    The planner is given the forecast that calibration gives it, which leaves the day itself out.
    """
    scene = _scene(recent(trace), settings.planner.startup_s)
    return _best_room(settings, scene, np.array(model.coefficients), model.dispersion, tick_s)


def _best_room(
    settings: Settings, scene: _Scene, coefficients: NDArray[np.float64], spread: float, tick_s: float
) -> float:
    def loss(factor: float) -> float:
        outcome = _run(settings, scene, _with_room(coefficients, factor), spread, tick_s)
        return _loss(settings.planner.late_cost, scene, outcome)

    return min(_ROOMS, key=loss)


def _with_room(coefficients: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Times the factor, but for crowds that come back: those are known."""
    scaled = factor * coefficients
    scaled[-1] = coefficients[-1]
    return scaled


def _loss(late_cost: float, scene: _Scene, outcome: _Outcome) -> float:
    return outcome.cost + late_cost * outcome.late * len(scene.trace) * scene.work_s / scene.oracle_s


def recent(trace: Trace) -> Trace:
    """The part that a calibration looks at."""
    start = max(trace.start, trace.end - _MOST_DAYS * 86_400.0)
    if len(trace) > _MOST_TICKETS:
        start = max(start, float(trace.arrivals[-_MOST_TICKETS]))
    part = trace if start == trace.start else trace.slice(start, trace.end)
    return part if len(part) else trace


def _scene(trace: Trace, startup_s: float) -> _Scene:
    work_s = trace.service_mean_s
    offered = _expected_rates(trace, startup_s) * work_s / 3600.0
    crowds = CrowdsAhead(trace, startup_s).between(trace.start, trace.end)
    return _Scene(trace, offered, crowds, max(oracle(trace, startup_s).worker_seconds, 1.0), work_s)


def _expected_rates(trace: Trace, ahead_s: float) -> NDArray[np.float64]:
    """Tickets/h expected in each hour or soon after: the mean of that hour on the *other* days (weeks, from four on).

    Leaving the day itself out keeps the calibration from trusting a forecast that has seen the answer.
    """
    hours = max(1, math.ceil((trace.end - trace.start) / _HOUR))
    counts = np.bincount(((trace.arrivals - trace.start) // _HOUR).astype(np.int64), minlength=hours)[:hours]
    period = 168 if hours >= 4 * 168 else 24
    slot = np.arange(hours) % period
    total, days = np.bincount(slot, counts, period)[slot], np.bincount(slot, minlength=period)[slot]
    others = np.where(days > 1, (total - counts) / np.maximum(days - 1, 1), math.nan)
    highest = others.copy()  # of the hours that begin within the lead time, as the live planner takes it
    for ahead in range(1, 1 + math.ceil(ahead_s / _HOUR)):
        highest = np.fmax(highest, np.append(others[ahead:], np.full(min(ahead, hours), others[-1])))
    return highest


def limits_of(settings: Settings) -> NDArray[np.float64]:
    """The settings' limits as `pilot.order` takes them."""
    limits = settings.limits
    step = limits.max_step if limits.max_step is not None else limits.max_workers
    return np.array([limits.min_workers, limits.max_workers, step, limits.cooldown_s], np.float64)


def _run(
    settings: Settings, scene: _Scene, coefficients: NDArray[np.float64], spread: float, tick_s: float
) -> _Outcome:
    planner, trace = settings.planner, scene.trace
    sim = layout.new_sim(
        trace.arrivals,
        trace.durations,
        start=trace.start,
        end=trace.end,
        workers=min(max(math.ceil(1.2 * trace.load), settings.limits.min_workers, 1), settings.limits.max_workers),
        startup_s=planner.startup_s,
        sla_wait_s=(planner.sla_wait_s,),
        service_s=scene.work_s,
        room=math.ceil(planner.startup_s / tick_s) + 8,
    )
    pilot.fly(sim, tick_s, scene.offered, scene.crowds, spread, coefficients, limits_of(settings))
    waits = np.where(np.isnan(sim.started), trace.end, sim.started) - trace.arrivals
    late = float((waits > planner.sla_wait_s).mean())
    return _Outcome(sim.t.item(layout.WORKER_S) / scene.oracle_s, late)
