from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from nhm_sched_plugin.advice.arrivals import ArrivalCounter
from nhm_sched_plugin.policy.crowds import AHEAD
from nhm_sched_plugin.policy.demand import ARRIVED, COEFFICIENTS, needed
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.twin import layout, pilot
from nhm_sched_plugin.twin.calibrate import best_room, calibrate, dispersion, limits_of
from nhm_sched_plugin.twin.controllers import PlannerController
from nhm_sched_plugin.twin.crowds import CrowdsAhead
from nhm_sched_plugin.twin.scenarios import overlaid, with_daily_crowds, with_flash_crowds
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace, TraceError

DAY = 86_400.0


def bursty(days: int, seed: int = 0) -> Trace:
    """Six tickets at a time, more by day than by night."""
    draw = np.random.default_rng(seed)
    hours = np.arange(24 * days)
    batches = draw.poisson(20 * (1 + 0.8 * np.sin(2 * np.pi * (hours / 24 - 0.3))))
    at = np.repeat(np.repeat(hours * 3600.0, batches) + draw.uniform(0, 3600, batches.sum()), 6)
    at += draw.uniform(0, 60, len(at))
    return Trace(at, draw.lognormal(math.log(200), 0.8, len(at)), start=0.0, end=days * DAY + 120)


def settings(tmp_path: Path) -> Settings:
    return load_settings({"data_dir": tmp_path})


def test_overlays_keep_the_tickets_and_the_hours_of_the_day() -> None:
    trace = bursty(4)
    three = overlaid(trace, 3)
    assert len(three) == 3 * len(trace)
    assert (three.start, three.end) == (trace.start, trace.end)
    assert three.durations.sum() == pytest.approx(3 * trace.durations.sum())

    def by_day(found: Trace) -> float:
        return float(np.mean((found.arrivals % DAY > 6 * 3600) & (found.arrivals % DAY < 18 * 3600)))

    assert by_day(three) == pytest.approx(by_day(trace), abs=0.02)


def test_flash_crowds_are_far_above_the_usual_peak_and_seeded() -> None:
    trace = bursty(8)
    crowded = with_flash_crowds(trace, 1)
    assert len(crowded) > len(trace)
    minutes = [np.bincount((found.arrivals // 60).astype(int)).max() for found in (trace, crowded)]
    assert minutes[1] > 1.2 * minutes[0]
    assert crowded.arrivals.min() >= trace.start
    assert crowded.arrivals.max() < trace.end
    assert np.array_equal(with_flash_crowds(trace, 1).arrivals, crowded.arrivals)
    assert len(with_flash_crowds(trace, 2)) != len(crowded)


def test_dispersion_of_single_tickets_and_of_batches() -> None:
    draw = np.random.default_rng(0)
    single = np.sort(draw.uniform(0, 5 * DAY, 50_000))
    assert dispersion(Trace(single, np.ones(50_000), start=0.0, end=5 * DAY)) == pytest.approx(1.0, abs=0.1)
    batches = np.repeat(draw.uniform(0, 5 * DAY, 8_000), 6)
    assert dispersion(Trace(batches, np.ones(len(batches)), start=0.0, end=5 * DAY)) == pytest.approx(6.0, abs=0.5)
    assert dispersion(Trace([1.0], [1.0], start=0.0, end=2.0)) == 1.0


def test_the_compiled_planner_is_the_live_one(tmp_path: Path) -> None:
    trace, chosen = bursty(2), settings(tmp_path)
    model = calibrate(chosen, trace, generations=2)
    assert len(model.crowds) > 10
    model = msgspec.structs.replace(model, coefficients=(*model.coefficients[:-1], 1.5))
    model.save(chosen.planner_path)
    crowds = CrowdsAhead(trace, 120.0, [(slot - 288, crowd) for slot, crowd in model.crowds])
    pool = Pool(trace, workers=30, startup_s=120.0, sla_wait_s=60.0, service_s=200.0)
    live = simulate(pool, PlannerController(chosen, crowds=crowds), tick_s=15.0)
    without = Pool(trace, workers=30, startup_s=120.0, sla_wait_s=60.0, service_s=200.0)
    assert simulate(without, PlannerController(chosen), tick_s=15.0).worker_seconds < live.worker_seconds
    sim = layout.new_sim(
        trace.arrivals, trace.durations, start=trace.start, end=trace.end, workers=30, startup_s=120.0, service_s=200.0
    )
    none = np.array([math.nan])
    pilot.fly(
        sim,
        15.0,
        none,
        crowds.between(trace.start, trace.end),
        model.dispersion,
        np.array(model.coefficients),
        limits_of(chosen),
    )
    assert sim.t[layout.WORKER_S] == pytest.approx(live.worker_seconds, rel=1e-9)
    assert np.array_equal(sim.started, pool.sim.started, equal_nan=True)
    assert live.changes > 100


def test_the_twin_and_the_host_count_the_same_crowds() -> None:
    """A host that is shown every ticket is told what the twin computes from the trace."""
    trace, counter = with_daily_crowds(bursty(5), 2), ArrivalCounter(120.0)
    ahead, arrivals = CrowdsAhead(trace, 120.0), trace.arrivals.tolist()
    told, at = [], 0
    for slot in range(int(trace.end // 300)):
        counter.lately(300.0 * slot)
        while at < len(arrivals) and arrivals[at] < 300.0 * (slot + 1):
            counter.observe(arrivals[at])
            at += 1
            if arrivals[at - 1] % 7 < 1:
                told.append((counter.lately(arrivals[at - 1])[AHEAD], ahead.at(arrivals[at - 1])))  # type: ignore[index]
    assert sum(mine > 0 for mine, _ in told) > 100
    assert all(mine == theirs for mine, theirs in told)


def test_daily_crowds_come_back_at_about_the_same_time() -> None:
    trace = bursty(12)
    crowded = with_daily_crowds(trace, 3)
    assert np.array_equal(with_daily_crowds(trace, 3).arrivals, crowded.arrivals)
    extra = (
        np.histogram(crowded.arrivals, np.arange(0, 12 * DAY, 900))[0]
        - np.histogram(trace.arrivals, np.arange(0, 12 * DAY, 900))[0]
    )
    where = np.nonzero(extra > extra.max() / 10)[0] * 900.0
    assert 3 <= len(set((where // DAY).tolist())) <= 9
    spread = np.abs((where % DAY - np.median(where % DAY) + DAY / 2) % DAY - DAY / 2)
    assert spread.max() <= 2700


def test_compiled_and_plain_arithmetic_agree() -> None:
    draw = np.random.default_rng(3)
    from numba import njit

    compiled = njit(lambda *a: pilot.needed(*a))
    for _ in range(200):
        weights = draw.normal(0, 2, len(COEFFICIENTS))
        arguments = [*draw.uniform(0, 500, 1 + len(ARRIVED)), draw.uniform(1, 900), *draw.uniform(0, 500, 2), 2.0]
        assert compiled(*arguments, weights) == pytest.approx(needed(*arguments, weights), rel=1e-12)


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    chosen, train = settings(tmp_path), bursty(2)
    assert calibrate(chosen, train, generations=3) == calibrate(chosen, train, generations=3)


def test_calibration_beats_constant_headroom_on_days_it_has_not_seen(tmp_path: Path) -> None:
    from nhm_sched_plugin.twin.rivals import Scene
    from nhm_sched_plugin.twin.tuning import cost_at, frontier

    trace, chosen, told = bursty(6), settings(tmp_path), []
    train, test = trace.slice(0.0, 4 * DAY), trace.slice(4 * DAY, 6 * DAY)
    model = calibrate(chosen, train, generations=20, progress=told.append)
    assert told[-1] == 1.0
    model.save(chosen.planner_path)
    pool = Pool(test, workers=40, startup_s=120.0, sla_wait_s=60.0, service_s=200.0)
    run = simulate(pool, PlannerController(chosen), tick_s=15.0)
    assert run.sla > 0.97
    scene = Scene(train, 15.0, 120.0, 60.0)
    equal = cost_at(frontier("headroom", test, scene, knobs=[0.2, 0.4, 0.6, 0.8, 1.0, 1.3]), run.sla)
    assert run.worker_seconds / 3600 < 0.95 * equal.worker_hours


def test_how_far_crowds_are_trusted_does_not_hang_on_the_draw(tmp_path: Path) -> None:
    chosen = load_settings({"data_dir": tmp_path, "planner": {"startup_s": 600.0}})
    trust = [abs(calibrate(chosen, bursty(8), generations=16, seed=seed).coefficients[-1]) for seed in (2, 3)]
    assert min(trust) > 1.0
    assert max(trust) < 2 * min(trust)


def test_the_best_constant_on_the_room_makes_up_for_too_little_and_too_much(tmp_path: Path) -> None:
    trace, chosen = bursty(8), settings(tmp_path)
    model = calibrate(chosen, trace, generations=16)
    halved, doubled = (
        msgspec.structs.replace(model, coefficients=tuple(factor * each for each in model.coefficients))
        for factor in (0.5, 2.0)
    )
    assert best_room(chosen, trace, halved) > 1.0 > best_room(chosen, trace, doubled)
    assert best_room(chosen, trace, model) == 1.0, "the calibration has it in it"


def test_no_tickets_nothing_to_calibrate_on(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no tickets to calibrate the planner on"):
        calibrate(settings(tmp_path), Trace([], [], start=0.0, end=DAY))
    with pytest.raises(ValueError, match="generations is 0; the search needs 1 at least"):
        calibrate(settings(tmp_path), Trace([], [], start=0.0, end=DAY), generations=0)
