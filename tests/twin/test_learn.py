from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from calibrations import calibration
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nhm_sched_plugin.decision import reward as contract
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.policy import arms, state_key
from nhm_sched_plugin.policy.arms import ACTIONS, ARMS
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.learning import arm_of
from nhm_sched_plugin.policy.planner import Planner
from nhm_sched_plugin.policy.qtable import PLANNED, QTable
from nhm_sched_plugin.policy.state_key import KEYS
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.twin import Pool, Trace, lessons, pilot, pretrain
from nhm_sched_plugin.twin.calibrate import limits_of
from nhm_sched_plugin.twin.compiled import compiled
from nhm_sched_plugin.twin.drill import table_of, values_of
from nhm_sched_plugin.twin.gap import gap_of
from nhm_sched_plugin.twin.learn import calibrated, learn
from nhm_sched_plugin.twin.traces import TraceError
from nhm_sched_plugin.twin.trials import Move, Trials, horizon_s, pool_of, reliability, score, window_s
from nhm_sched_plugin.twin.windows import Window, Windows
from nhm_sched_plugin.types import Action, SchedulingState

DAY = 86_400.0
MODEL = calibration(start=-30_000.0, service_s=301.0)
"""Of tickets as many and as long as those of `tickets`."""


def tickets(days: float = 2.0, seed: int = 0) -> Trace:
    """A day and night curve of tickets that last five minutes on average."""
    draw = np.random.default_rng(seed)
    minutes = np.arange(int(days * 1440))
    counts = draw.poisson(2.0 * (1 + 0.8 * np.sin(2 * np.pi * minutes / 1440)))
    arrivals = np.sort(np.repeat(minutes * 60.0, counts) + draw.uniform(0, 60, counts.sum()))
    return Trace(arrivals, draw.exponential(300.0, len(arrivals)) + 1.0, start=0.0, end=days * DAY)


def ready(folder: Path, **tree: Any) -> Settings:
    """Settings with a calibrated planner on disk."""
    settings = load_settings({"data_dir": folder, **tree})
    msgspec.structs.replace(MODEL, late_cost=settings.planner.late_cost).save(settings.planner_path)
    return settings


# The arithmetic is one, compiled or not.


@compiled
def _state(*numbers: Any) -> int:
    return lessons.state_index(*numbers)


@compiled
def _reward(a: float, b: float, c: float, d: float) -> float:
    return lessons.weighted(lessons.sla_delta(a, b), lessons.growth(c, d), lessons.growth(a, d), lessons.growth(b, c))


@compiled
def _arm(action: int, target: float, planned: float) -> int:
    return lessons.arm_index(action, target, planned)


number = st.floats(0, 500) | st.just(math.nan) | st.sampled_from([0.0, 0.1, 0.5, 0.8, 0.95, 1.0, math.inf, -1.0])


@examples(max_examples=300, deadline=None)
@given(st.tuples(*[number] * 7))
def test_the_state_index_is_the_same_compiled(numbers: tuple[float, ...]) -> None:
    assert _state(*numbers) == state_key.state_index(*numbers)
    workers, queue, duration, sla, load, later, used = (None if math.isnan(value) else value for value in numbers)
    state = SchedulingState(
        active_workers=workers,
        queue_depth=queue,
        avg_task_duration_ms=duration,
        sla_compliance_rate=sla,
        predicted_load_1h=load,
        predicted_load_6h=later,
        resource_cpu_avg=used,
    )
    assert KEYS[_state(*numbers)] == state_key.state_key(state)


@examples(max_examples=200, deadline=None)
@given(number, number, number, number)
def test_the_reward_is_the_same_compiled(a: float, b: float, c: float, d: float) -> None:
    plain = contract.weighted(
        contract.sla_delta(a, b), contract.growth(c, d), contract.growth(a, d), contract.growth(b, c)
    )
    assert _reward(a, b, c, d) == pytest.approx(plain, abs=1e-12)


@examples(max_examples=200, deadline=None)
@given(st.sampled_from(ACTIONS), st.integers(0, 300) | st.none(), st.integers(0, 300) | st.none())
def test_arms_are_named_alike(action: Action, target: int | None, planned: int | None) -> None:
    numbers = [math.nan if value is None else float(value) for value in (target, planned)]
    assert _arm(ACTIONS.index(action), *numbers) == arms.arm_index(ACTIONS.index(action), *numbers)
    if action in (Action.INCREASE_WORKER_POOL, Action.PREEMPTIVE_SCALING, Action.DECREASE_WORKER_POOL):
        parameters = {} if target is None else {"target_workers": target}
        assert arm_of(action, parameters, planned) == ARMS[_arm(ACTIONS.index(action), *numbers)]


@compiled
def _teach(values: Any, steps: Any, learning_rate: float, discount: float) -> None:
    for at in range(len(steps)):
        state, arm, after = int(steps[at, 0]), int(steps[at, 1]), int(steps[at, 2])
        target = steps[at, 3] + (discount * lessons.best(values, after) if after >= 0 else 0.0)
        lessons.update(values, state, arm, target, learning_rate)


def test_q_learning_converges_on_a_chain_and_as_the_table_does() -> None:
    """Three states in a row, 0 = back, 1 = on; only the last step on pays. Q*(s, on) = 0.9^(2 - s)."""
    draw, steps, state = random.Random(1), [], 0
    for _ in range(30_000):
        arm = draw.randrange(2)
        after = state + 1 if arm else max(state - 1, 0)
        paid = after == 3
        steps.append((state, arm, -1 if paid else after, float(paid)))
        state = 0 if paid else after
    values, table = lessons.new_values(), QTable()
    _teach(values, np.array(steps, np.float64), 0.1, 0.9)
    for state, arm, after, earned in steps[:500]:
        best = table.best(KEYS[after]) if after >= 0 else 0.0
        table.update(KEYS[state], ARMS[arm], earned + 0.9 * best, 0.1)
    few = lessons.new_values()
    _teach(few, np.array(steps[:500], np.float64), 0.1, 0.9)
    assert values.q[:3, 1] == pytest.approx([0.81, 0.9, 1.0], abs=1e-3)
    assert values.q[:3, 0] == pytest.approx([0.729, 0.729, 0.81], abs=1e-3)
    assert table_of(few, QTable()).rows == table.rows
    assert np.array_equal(values_of(table_of(values, QTable())).m2, values.m2)


def test_the_kernels_candidates_are_the_planners(tmp_path: Path) -> None:
    settings = ready(tmp_path, limits={"max_workers": 40, "max_step": 6})
    planner, draw = Planner(settings), random.Random(4)
    assert planner.model is not None
    room, found = np.zeros(8), np.zeros(8, np.int64)
    seen = set()
    for _ in range(40):
        pool = Pool(tickets(0.3, draw.randrange(99)), workers=draw.randrange(1, 30), startup_s=120.0, sla_wait_s=60.0)
        pool.advance(draw.uniform(1000.0, 20_000.0))
        pool.scale_to(pool.ordered + draw.randrange(3))
        state = pool.state()
        plan = planner.plan(state)
        weights = np.array(MODEL.coefficients)
        need = pilot.need_now(pool.sim, math.nan, 0.0, MODEL.dispersion, weights)
        count = lessons.offers(pool.sim, need, True, limits_of(settings), room, found)
        mine = {ARMS[at] for at in found[:count]}
        theirs = {
            arm_of(c.action, c.parameters, planner.planned(plan, c.action)) for c in planner.candidates(plan, state)
        }
        first = planner.candidates(plan, state)[0]
        assert ARMS[found[0]] == arm_of(first.action, first.parameters, planner.planned(plan, first.action))
        assert mine == theirs
        seen |= mine
    assert {"INCREASE_WORKER_POOL", "DECREASE_WORKER_POOL", "NO_ACTION", "ADJUST_PRIORITY_WEIGHTS"} <= seen


# Trials.


class Flat:
    """A forecast of nothing."""

    service_s = 100.0

    def rate(self, now: float, hours: int = 0) -> float:
        return 0.0

    def highest(self, now: float, ahead_s: float) -> float:
        return max(self.rate(now, hours) for hours in range(1 + math.ceil(ahead_s / 3600.0)))


def quiet_pool(settings: Settings, arrivals: list[float], workers: int) -> tuple[Pool, Window]:
    trace = Trace(np.array(arrivals), np.full(len(arrivals), 100.0), start=0.0, end=4 * 3600.0)
    pool = Pool(trace, workers=workers, startup_s=120.0, sla_wait_s=60.0, service_s=100.0)
    return pool, Window(trace, Flat(), workers)  # type: ignore[arg-type]


def test_a_trial_costs_what_can_be_counted_by_hand(tmp_path: Path) -> None:
    """Two tickets of 100 s come at 2145 to one worker: the second starts 100 s late, unless another worker is there."""
    bare = msgspec.structs.replace(MODEL, coefficients=(0.0,) * 16)
    settings = load_settings(
        {"data_dir": tmp_path, "limits": {"min_workers": 1, "cooldown_s": 300}, "planner": {"startup_s": 120}}
    )
    pool, window = quiet_pool(settings, [2000.0, 2145.0, 2145.0], 1)
    pool.advance(2010.0)
    pool.state()
    assert (pool.busy, pool.idle) == (1, 0)
    trials = Trials(settings, bare, 15.0)
    assert trials.horizon_s == 1320.0
    trials.begin(pool, window)
    before = [array.copy() for array in pool.sim]
    kept = trials.loss(math.nan, None)
    grown = trials.loss(2.0, None)
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(before, pool.sim, strict=True))
    # One worker for 1320 s; at the tick of 2160 the planner orders another, and keeps it for the cooldown.
    assert kept == pytest.approx(1320.0 + 300.0 + settings.planner.late_cost * 100.0)  # one late ticket
    # Ordered now, it is there from 2130 on, and stays for the cooldown as well.
    assert grown == pytest.approx(1320.0 + 300.0)
    assert trials.losses([Move(Action.NO_ACTION, {}), Move(Action.ADJUST_PRIORITY_WEIGHTS, {})], None) == [kept, kept]


def test_what_a_trial_saves_is_told_in_one_measure_for_all_moments(tmp_path: Path) -> None:
    """In shares of what is there at the moment, a crowd in time would count for no more than a worker idle at night."""
    settings, history = ready(tmp_path), tickets(2.0)
    trials, windows = Trials(settings, MODEL, 15.0), Windows(settings, history, 0, 0.0)
    told = set()
    for draw in map(random.Random, range(8)):
        window = windows.draw(draw, 4 * 3600.0)
        pool = pool_of(window, settings)
        trials.begin(pool, window)
        told.add(trials.worth_s)
        pool.advance(window.trace.start + 7200.0)
        told.add(trials.worth_s)
    assert told == {history.load * trials.horizon_s}


@pytest.mark.parametrize(
    ("startup_s", "trial_s", "episode_s"),
    [(10.0, 1215.0, 14_400.0), (120.0, 1320.0, 14_400.0), (600.0, 6600.0, 15_000.0), (3600.0, 18_000.0, 37_800.0)],
)
def test_trials_last_for_many_start_ups(startup_s: float, trial_s: float, episode_s: float) -> None:
    assert horizon_s(startup_s, 15.0) == trial_s
    assert window_s(startup_s, 15.0) == episode_s


def test_a_long_trial_goes_by_the_forecast_of_each_hour(tmp_path: Path) -> None:
    """Twenty Erlangs are expected from the second hour on: the planner has workers for them by then."""

    class Rising(Flat):
        def rate(self, now: float, hours_ahead: int = 0) -> float:
            return 720.0 if now + 3600.0 * hours_ahead >= 3600.0 else 0.0

    settings = ready(tmp_path, planner={"startup_s": 600.0})
    trace = Trace([10.0, 10_700.0], [5.0, 5.0], start=0.0, end=4 * 3600.0)
    window = Window(trace, Rising(), 1)  # type: ignore[arg-type]
    pool = Pool(trace, workers=1, startup_s=600.0, sla_wait_s=60.0, service_s=100.0)
    pool.advance(1800.0)
    steady, rising = (Trials(settings, MODEL, 15.0) for _ in range(2))
    steady.begin(pool, Window(trace, Flat(), 1))  # type: ignore[arg-type]
    rising.begin(pool, window)
    assert rising.loss(math.nan, None) > steady.loss(math.nan, None) + 10 * 3600.0


def test_a_trial_is_what_the_pool_itself_would_have_cost(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    trace = tickets(0.25, 3)
    pool = Pool(trace, workers=4, startup_s=120.0, sla_wait_s=60.0, service_s=300.0)
    window = Window(trace, Flat(), 4)  # type: ignore[arg-type]
    pool.advance(6000.0)
    trials = Trials(settings, MODEL, 15.0)
    trials.begin(pool, window)
    foreseen = [trials.loss(target, None) for target in (math.nan, 30.0, math.nan)]
    assert foreseen[0] == foreseen[2], "one trial leaves nothing behind for the next"
    paid, missed = pool.worker_seconds, pool.missed
    planner, until, changed = Planner(settings), pool.now + trials.horizon_s, -math.inf
    pool.scale_to(30)
    changed = pool.now
    pool.advance(pool.now + 15.0)
    while pool.now < until:
        need = planner.model.needed(  # type: ignore[union-attr]
            pool.busy + pool.waiting, pool.state().features, pool.service_s or 0.0, 0.0
        )
        target, up = max(math.ceil(need), 1), pool.ordered
        if target > up or (
            target < pool.active and not pool.waiting and pool.now - changed >= settings.limits.cooldown_s
        ):
            pool.scale_to(target)
            changed = pool.now
        pool.advance(pool.now + 15.0)
    cost = pool.worker_seconds - paid + settings.planner.late_cost * Flat.service_s * (pool.missed - missed)
    assert foreseen[1] == pytest.approx(cost, rel=1e-9)


def test_calibrated_and_miscalibrated_confidences_are_told_apart() -> None:
    draw = random.Random(5)
    said = [draw.random() for _ in range(20_000)]
    true = score(said, [draw.random() < p for p in said])
    bold = score(said, [draw.random() < p / 2 for p in said])
    assert true.ece < 0.02
    assert bold.ece == pytest.approx(0.25, abs=0.02)
    assert true.brier == pytest.approx(1 / 6, abs=0.01)
    assert bold.brier > true.brier
    assert sum(each.count for each in true.bins) == true.trials == 20_000
    edge = score([1.0, 0.0], [True, False])
    assert (edge.ece, edge.brier, edge.bins[9].count, edge.bins[0].count) == (0.0, 0.0, 1, 1)
    assert score([], []).ece == 0.0


# Whole runs.


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any]:
    settings = ready(tmp_path_factory.mktemp("learned"))
    return settings, learn(settings, tickets(6.0), decisions=16_000, moments=600, progress=lambda what, share: None)


def test_a_run_learns_tries_and_checks(learned: tuple[Settings, Any]) -> None:
    settings, report = learned
    assert report.decisions >= 16_000
    table = QTable.load(settings.q_table_path)
    assert len(table) == report.states > 10
    cells = [cell for row in table.rows.values() for cell in row.values()]
    assert sum(cell.visits for cell in cells) == table.updates > 14_000
    assert report.trials > 500
    assert max(cell.trials for cell in cells) > 100
    assert all(bool(cell.trials) == (cell.days >= 1) and not cell.live for cell in cells)
    planned = sum(cell.trials for row in table.rows.values() for arm, cell in row.items() if arm.startswith(PLANNED))
    assert table.overall[PLANNED].trials == planned
    assert 2 < table.overall[PLANNED].days <= 5, "days of the part that was learned from"
    assert any(arm.startswith("rules:") and cell.pairs for row in table.rows.values() for arm, cell in row.items())
    found = report.reliability
    assert found.trials + found.sparse > 100
    assert 0 <= found.ece <= 1
    assert json.loads(msgspec.json.encode(report))["reliability"]["bins"]


def test_what_it_closes_of_the_gap_is_in_the_report_and_in_the_table(learned: tuple[Settings, Any]) -> None:
    settings, report = learned
    table, model = QTable.load(settings.q_table_path), DemandModel.load(settings.planner_path)
    assert -1 <= report.gap_closed <= 1
    assert table.gap == report.gap_closed
    past, kept = tickets(6.0).slice(0.0, 5 * DAY), tickets(6.0).slice(5 * DAY, 6 * DAY)
    told: list[float] = []
    assert gap_of(settings, table, model, kept, past=past, progress=told.append) == report.gap_closed
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert gap_of(settings, QTable(), model, kept) == 0.0, "who never passes the gate is as good as the rules"
    assert gap_of(settings, table, model, kept.slice(5 * DAY, 5.9 * DAY)) is None, "less than a day"


class StopError(Exception):
    pass


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.twin.checkpoint.EVERY_S", 0.0)
    monkeypatch.setattr("nhm_sched_plugin.twin.checkpoint.Checkpoint.__init__.__defaults__", (0.0, lambda: 0.0))
    trace = tickets(2.0)

    def run(name: str, stop: float = 2.0, **options: Any) -> Any:
        def told(done: float) -> None:
            if done >= stop:
                raise StopError

        settings = ready(tmp_path / name)
        return pretrain(settings, trace, decisions=4000, practice=2000, tick_s=15.0, progress=told, **options)

    whole = run("whole")
    with pytest.raises(StopError):
        run("halved", share)
    assert (tmp_path / "halved/snapshots/q_table.json.learning").exists()
    rest = run("halved")
    assert (rest.resumed, whole.resumed) == (True, False)
    files = [(tmp_path / name / "snapshots/q_table.json").read_bytes() for name in ("whole", "halved")]
    assert files[0] == files[1]
    assert rest.reward_mean == whole.reward_mean
    assert not (tmp_path / "halved/snapshots/q_table.json.learning").exists()


def test_who_is_interrupted_while_confidence_is_checked_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table that was learned is not learned on top of: both ways end in the same one."""
    trace = tickets(6.0)

    def run(folder: str) -> Any:
        settings = ready(tmp_path / folder)
        return settings, learn(settings, trace, decisions=2000, moments=50)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    settings, whole = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr("nhm_sched_plugin.twin.learn.gap_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run("halved")
    again, rest = run("halved")
    assert (whole.resumed, rest.resumed) == (False, True)
    assert again.q_table_path.read_bytes() == settings.q_table_path.read_bytes()
    assert (rest.updates, rest.gap_closed) == (whole.updates, whole.gap_closed)
    assert not list(again.q_table_path.parent.glob("*.learning"))


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    settings, trace = ready(tmp_path), tickets(1.0)
    second: list[str] = []

    def beside(share: float) -> None:
        if not second:
            with pytest.raises(ModelError) as told:
                learn(settings, trace, decisions=100)
            second.append(str(told.value))

    pretrain(settings, trace, decisions=500, progress=beside)
    assert "another pre-training is at work in this folder" in second[0]
    assert "data_dir" in second[0]


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.twin.learn.calibrate", lambda *_, **__: pytest.fail("worked in vain"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .*; data_dir must be a folder to write in"):
        learn(load_settings({"data_dir": tmp_path / "file"}), tickets(1.0))


@pytest.mark.parametrize("trace", [tickets(1.0).slice(0.0, 3000.0), Trace([1.0] * 19, [1.0] * 19, start=0.0, end=DAY)])
def test_what_is_too_little_to_learn_from_is_refused(tmp_path: Path, trace: Trace) -> None:
    settings = load_settings({"data_dir": tmp_path})
    with pytest.raises(TraceError, match=r"say too little to learn from; an hour and 20 tickets are needed"):
        learn(settings, trace)
    assert not settings.planner_path.exists()


def test_what_to_know_about_the_figures_is_noted(tmp_path: Path) -> None:
    trace = tickets(1.0)
    trace.drawn = True
    first, second = learn(ready(tmp_path), trace, decisions=200).notes
    assert "calibration of an earlier run" in first
    assert "--recalibrate" in first
    assert "no service times: they are drawn, " in second


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_none(tmp_path: Path) -> None:
    trace = tickets(1.0)

    def interrupted(seed: int, **options: Any) -> Any:
        return pretrain(ready(tmp_path), trace, decisions=1500, practice=1000, tick_s=15.0, seed=seed, **options)

    left = tmp_path / "snapshots/q_table.json.learning"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"0" * 64 + b"\n{}")
    assert not interrupted(1).resumed
    assert not left.exists()


def test_a_calibration_is_used_again_while_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def counted(settings: Settings, trace: Trace, **_: Any) -> DemandModel:
        made.append(trace.end)
        return msgspec.structs.replace(
            MODEL, start=trace.start, end=trace.end, tickets=len(trace), late_cost=settings.planner.late_cost
        )

    monkeypatch.setattr("nhm_sched_plugin.twin.learn.calibrate", counted)
    settings = load_settings({"data_dir": tmp_path})
    trace = tickets(2.0)
    for _ in range(2):
        calibrated(settings, trace)
    assert len(made) == 1
    calibrated(settings, trace, again=True)
    calibrated(settings, trace.slice(0.0, DAY))  # made from tickets that are this one's future
    dearer = settings.model_copy(update={"planner": settings.planner.model_copy(update={"late_cost": 20.0})})
    calibrated(dearer, trace.slice(0.0, DAY))
    assert len(made) == 4
    calibrated(dearer, trace.slice(0.0, DAY).capped(60.0))
    calibrated(dearer, trace.slice(0.0, DAY).scaled(2.0, seed=1))
    assert len(made) == 6, "a calibration for tickets as long and as many"


def test_a_damaged_calibration_is_kept_beside_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.twin.learn.calibrate", lambda settings, trace, **_: MODEL)
    settings = load_settings({"data_dir": tmp_path})
    settings.planner_path.parent.mkdir(parents=True)
    settings.planner_path.write_text("garbage")
    assert calibrated(settings, tickets(1.0)) == MODEL == DemandModel.load(settings.planner_path)
    assert settings.planner_path.with_name("planner.json.corrupt-1").read_text() == "garbage"
    assert "kept as" in caplog.text


def test_windows_vary_and_stay_inside(tmp_path: Path) -> None:
    settings, trace = ready(tmp_path), tickets(3.0)
    windows, draw = Windows(settings, trace, 0, 0.5), random.Random(0)
    drawn = [windows.draw(draw, 7200.0) for _ in range(60)]
    assert all(trace.start <= window.trace.start and window.trace.end <= trace.end for window in drawn)
    assert len({window.workers for window in drawn}) > 5
    assert len({window.guess.service_s for window in drawn}) > 5, "variations too, and several draws of crowds"


def test_reliability_refuses_what_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too short"):
        reliability(ready(tmp_path), QTable(), tickets(2.0).slice(0.0, 2000.0), MODEL)
