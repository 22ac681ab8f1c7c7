from __future__ import annotations

import datetime as dt
import logging
import math
import multiprocessing
import os
import random
import threading
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import pytest
from calibrations import calibration

from nhm_sched_plugin.advice.protocols import Policy
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.policy.confidence import (
    BRAKE,
    CEILING,
    MARGIN,
    MIN_TRIALS,
    MIN_VISITS,
    SEEN,
    confidence,
    live_odds,
    preferred,
)
from nhm_sched_plugin.policy.crowds import AHEAD
from nhm_sched_plugin.policy.demand import ARRIVED, DemandModel
from nhm_sched_plugin.policy.learning import QPolicy, arm_of
from nhm_sched_plugin.policy.qtable import NO_TRIALS, PLANNED, RULES, Cell, QTable, reset
from nhm_sched_plugin.policy.state_key import state_key
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.twin.daily import DailySavings
from nhm_sched_plugin.types import Action, Experience, Forecast, Recommendation, SchedulingState

STATE = SchedulingState(
    queue_depth=0,
    active_workers=10,
    avg_task_duration_ms=60_000,
    sla_compliance_rate=0.99,
    predicted_load_1h=900,
    predicted_load_6h=900,
    resource_cpu_avg=0.9,
)
KEY = state_key(STATE)
FORECAST = Forecast(
    horizon_minutes=60, predicted_volume=900, confidence=0.9, generated_at=dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
)
KEEP = Recommendation(action=Action.NO_ACTION, justification="rules", source="keep")


def settings(tmp_path: Path, **scheduling: Any) -> Settings:
    return load_settings({"data_dir": tmp_path, "ml": {"scheduling": {"seed": 7, **scheduling}}})


def keep(*_: object) -> Recommendation:
    return KEEP


def step(number: int, action: Action, reward: float, **fields: Any) -> Experience:
    values: dict[str, Any] = {"state": STATE, **fields}
    return Experience(decision_id=f"d{number}", action=action, reward=reward, **values)


def teach(policy: QPolicy, action: Action, mean: float, visits: int, **fields: Any) -> None:
    draw = random.Random(str(action))
    for number in range(visits):
        policy.learn(step(f"{action}{fields}{number}", action, draw.gauss(mean, 0.05), **fields))  # type: ignore[arg-type]


def test_implements_the_protocol(tmp_path: Path) -> None:
    assert isinstance(QPolicy(settings(tmp_path), keep), Policy)


def test_unseen_states_get_the_planners_action_at_half_confidence(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path), keep)
    answer = policy.recommend(None, STATE, FORECAST)
    assert answer is not None
    assert answer.action is Action.INCREASE_WORKER_POOL
    assert answer.parameters["target_workers"] > 15  # type: ignore[operator]
    assert answer.confidence == 0.5
    assert answer.state_hash == KEY
    assert "workers" in answer.justification
    same = QPolicy(settings(tmp_path), lambda *_: answer).recommend(None, STATE, FORECAST)
    assert same is not None
    assert same.confidence == 0.5, "even the rules' own action: nothing is known here"


def test_the_same_action_as_the_rules_cannot_be_worse(tmp_path: Path) -> None:
    rules = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 23})
    policy = QPolicy(settings(tmp_path), lambda *_: rules)
    teach(policy, Action.INCREASE_WORKER_POOL, -0.3, MIN_VISITS)
    answer = policy.recommend(None, STATE, FORECAST)
    assert answer is not None
    assert answer.confidence == 1.0
    assert answer.parameters["target_workers"] == 23


def test_without_metrics_it_says_what_the_rules_say(tmp_path: Path) -> None:
    rules = Recommendation(action=Action.ADJUST_PRIORITY_WEIGHTS, parameters={"high": 2.0})
    answer = QPolicy(settings(tmp_path), lambda *_: rules).recommend(None, SchedulingState(), FORECAST)
    assert answer is not None
    assert (answer.action, answer.confidence, dict(answer.parameters)) == (rules.action, 0.5, {"high": 2.0})


def test_arms_tell_targets_apart() -> None:
    up = Action.INCREASE_WORKER_POOL
    assert arm_of(up, {}, 20) == up
    assert arm_of(up, {"target_workers": 21}, 20) == f"{up}+", "one worker of twenty is another size"
    assert arm_of(up, {"target_workers": 101}, 100) == up, "one of a hundred is not"
    assert arm_of(up, {"target_workers": 103}, 100) == f"{up}+"
    assert arm_of(up, {"target_workers": 25}, 20) == f"{up}+"
    assert arm_of(up, {"target_workers": 15}, 20) == f"{up}-"
    assert arm_of(up, {"target_workers": 25, "planned_workers": 25}, 20) == up
    assert arm_of(Action.NO_ACTION, {"target_workers": 3}, 20) == Action.NO_ACTION


def test_update_rule_bootstraps_on_the_next_state(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path, learning_rate=0.1, discount_factor=0.9), keep)
    policy.learn(step(1, Action.NO_ACTION, 1.0))
    first = policy.table.cell(KEY, "NO_ACTION")
    assert first is not None
    assert first.q == pytest.approx(0.1), "no next state: the reward alone"
    # The host's state after carries no forecast: the loads of the state before still hold.
    after = SchedulingState(queue_depth=0, active_workers=10, sla_compliance_rate=0.99, resource_cpu_avg=0.9)
    policy.learn(step(2, Action.NO_ACTION, 1.0, next_state=after))
    second = policy.table.cell(KEY, "NO_ACTION")
    assert second is not None
    assert second.q == pytest.approx(0.1 + 0.1 * (1.0 + 0.9 * 0.1 - 0.1))


def test_repeated_ids_and_rewards_that_are_no_numbers_change_nothing(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path), keep)
    for reward in (0.5, 0.5, float("nan")):
        policy.learn(step(1, Action.NO_ACTION, reward))
    policy.learn(step(2, Action.NO_ACTION, float("inf")))
    assert policy.table.updates == 1
    assert "3 ignored" in policy.health().detail


def test_saved_every_interval_and_found_again(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path), keep)
    teach(policy, Action.NO_ACTION, 0.1, 99)
    assert not policy.path.exists()
    policy.learn(step(99, Action.NO_ACTION, 0.1))
    assert QTable.load(policy.path).updates == 100
    policy.learn(step(100, Action.NO_ACTION, 0.1))
    policy.save()
    again = QPolicy(settings(tmp_path), keep)
    assert again.table.rows == policy.table.rows
    assert again.version == policy.version == "q4-101"


def test_exploration_share_propensity_and_admission(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path, epsilon=0.2), keep)
    greedy = policy.recommend(None, STATE, FORECAST)
    assert greedy is not None
    assert greedy.propensity == pytest.approx(0.8)
    draws = [policy.explore(None, STATE, FORECAST, lambda _: True) for _ in range(3000)]
    other = [draw for draw in draws if draw is not None]
    assert 0.17 < len(other) / len(draws) < 0.23
    assert all(draw.is_exploration and draw.action is not greedy.action for draw in other)
    assert sum(draw.propensity for draw in other[:1]) == pytest.approx(0.2 / len({draw.action for draw in other}))
    assert not any(policy.explore(None, STATE, FORECAST, lambda _: False) for _ in range(200))


def test_a_broken_file_is_reported_and_set_aside_not_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = settings(tmp_path).q_table_path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{ broken")
    with caplog.at_level(logging.ERROR):
        policy = QPolicy(settings(tmp_path), keep)
    assert not policy.health().ok
    assert str(path) in policy.health().detail
    assert str(path) in caplog.text
    answer = policy.recommend(None, STATE, FORECAST)
    assert answer is not None
    assert answer.confidence <= 0.5
    policy.learn(step(1, Action.NO_ACTION, 0.1))
    policy.save()
    assert policy.health().ok
    assert path.with_name("q_table.json.corrupt-1").read_bytes() == b"{ broken"
    assert QTable.load(path).updates == 1


def test_a_file_that_breaks_later_keeps_the_table_in_memory(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path), keep)
    teach(policy, Action.NO_ACTION, 0.1, 100)
    policy.path.write_bytes(b"\x00")
    with pytest.raises(ModelError, match="not valid JSON"):
        policy.refresh()
    assert policy.table.updates == 100
    policy.save()
    assert QTable.load(policy.path).updates == 100


def test_an_unwritable_place_is_an_error_once_saved_and_loses_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "snapshots"
    blocked.write_text("a file where the folder should be")
    policy = QPolicy(settings(tmp_path), keep)
    teach(policy, Action.NO_ACTION, 0.1, 100)  # saves by itself, fails, goes on
    assert not policy.health().ok
    with pytest.raises(ModelError, match="cannot be written"):
        policy.save()
    blocked.unlink()
    policy.save()
    assert QTable.load(policy.path).updates == 100


def test_two_policies_learn_into_one_file(tmp_path: Path) -> None:
    one, two = QPolicy(settings(tmp_path), keep), QPolicy(settings(tmp_path), keep)
    teach(one, Action.NO_ACTION, 0.1, 100)
    teach(two, Action.INCREASE_WORKER_POOL, 0.1, 100)
    one.refresh()
    assert one.table.updates == 200
    assert one.table.rows == two.table.rows
    reset(one.path)
    one.refresh()
    assert one.table.updates == 0


def _learn_elsewhere(folder: str, first: int) -> None:
    policy = QPolicy(settings(Path(folder), update_interval=5), keep)
    for number in range(first, first + 50):
        policy.learn(step(number, Action.NO_ACTION, 0.1))


def test_no_update_is_lost_between_processes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_learn_elsewhere, args=(os.fspath(tmp_path), 50 * n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert QTable.load(settings(tmp_path).q_table_path).updates == 100


def test_reading_while_learning(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path, update_interval=10**6), keep)
    done, failures = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            try:
                assert policy.recommend(None, STATE, FORECAST) is not None
            except Exception as error:
                failures.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(4000):
        target = {"target_workers": 5 + number % 60}
        policy.learn(step(number, list(Action)[number % 6], 0.01, parameters=target))
    done.set()
    for reader in readers:
        reader.join()
    assert not failures


_TRIED: WeakKeyDictionary[QTable, DailySavings] = WeakKeyDictionary()


def try_out(
    table: QTable,
    arm: str,
    saved: float,
    trials: int,
    spread: float = 0.1,
    state: str = KEY,
    days: int = 20,
    daily: float = 0.0,
) -> None:
    """Trials that saved so much over the rules' action on average, on days that differ by `daily`."""
    tried = _TRIED.setdefault(table, DailySavings({}, 86_400.0))
    add_trials(tried, arm, saved, trials, spread, state, days, daily)
    tried.tell(table)


def add_trials(
    tried: DailySavings, arm: str, saved: float, trials: int, spread: float, state: str, days: int, daily: float
) -> None:
    draw = random.Random(f"{arm}{saved}{state}")
    means = [draw.gauss(saved, daily) for _ in range(days)]
    for trial in range(trials):
        day = trial % days
        tried.add(state, arm, day * 86_400.0, draw.gauss(means[day], spread))


def test_confidence_follows_the_trials(tmp_path: Path) -> None:
    def said(saved: float, trials: int) -> float:
        policy = QPolicy(settings(tmp_path), keep)
        try_out(policy.table, f"{PLANNED}INCREASE_WORKER_POOL", saved, trials)
        answer = policy.recommend(None, STATE, FORECAST)
        assert answer is not None
        assert answer.action is Action.INCREASE_WORKER_POOL
        return answer.confidence

    assert said(0.5, MIN_TRIALS - 1) == 0.5, "saved every time, but too few"
    assert said(0.5, 500) == CEILING
    assert said(-0.5, 500) < 0.01
    assert 0.1 < said(0.0, 500) < 0.9
    assert 0.5 < said(0.01, 100) < said(0.01, 4000)


def test_the_same_action_with_another_target_is_another_action(tmp_path: Path) -> None:
    rules = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 12})
    policy = QPolicy(settings(tmp_path), lambda *_: rules)
    teach(policy, Action.INCREASE_WORKER_POOL, 0.2, 200)
    unknown = policy.recommend(None, STATE, FORECAST)
    assert unknown is not None
    assert (unknown.parameters["target_workers"], unknown.confidence) == (23, 0.5), "visits are no trials"
    try_out(policy.table, f"{PLANNED}INCREASE_WORKER_POOL", 0.3, 200)
    known = policy.recommend(None, STATE, FORECAST)
    assert known is not None
    assert known.parameters["target_workers"] == 23
    assert known.confidence == CEILING


def test_the_real_pool_brakes_what_the_twin_believed(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path, update_interval=10**6), keep)
    try_out(policy.table, f"{PLANNED}INCREASE_WORKER_POOL", 0.2, 300)

    def sure() -> float:
        answer = policy.recommend(None, STATE, FORECAST)
        assert answer is not None
        assert answer.action is Action.INCREASE_WORKER_POOL
        return answer.confidence

    believed = sure()
    assert believed > 0.9
    teach(policy, Action.INCREASE_WORKER_POOL, -0.4, MIN_VISITS - 1)
    teach(policy, Action.NO_ACTION, 0.4, 200)
    assert sure() == believed, "one real reward too few"
    teach(policy, Action.INCREASE_WORKER_POOL, -0.4, 200)
    assert sure() < BRAKE


def test_simulated_rewards_do_not_brake(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path), keep, autosave=False)
    teach(policy, Action.INCREASE_WORKER_POOL, -0.4, 100)
    cell = policy.table.cell(KEY, "INCREASE_WORKER_POOL")
    assert cell is not None
    assert (cell.visits, cell.live) == (100, 0)


def test_live_odds_are_monotone_and_even_at_the_margin() -> None:
    def cell(mean: float, rewards: int) -> Cell:
        return Cell(0.0, 0, 0.0, 0.0, live=rewards, live_mean=mean, live_m2=0.01 * rewards)

    base = cell(0.0, 400)
    odds = [live_odds(cell(mean - MARGIN, 400), base) for mean in (-0.1, -0.01, 0.0, 0.01, 0.1)]
    assert odds == sorted(odds, key=lambda value: value or 0.0)
    assert odds[2] == pytest.approx(0.5), "workers that were added may cost so much before they help"
    worse = -0.02 - MARGIN
    assert live_odds(cell(worse, 60), base) > (live_odds(cell(worse, 4000), base) or 0.0)  # type: ignore[operator]
    assert live_odds(cell(9.0, MIN_VISITS - 1), base) is None
    assert live_odds(base, None) is None


def paired(gain: float, pairs: int, spread: float = 0.1) -> Cell:
    return Cell(0.0, 0, 0.0, 0.0, pairs=pairs, gain=gain, gain_m2=spread**2 * pairs)


def test_the_planner_is_left_only_on_strong_evidence() -> None:
    arms = ["INCREASE_WORKER_POOL", "INCREASE_WORKER_POOL+", "NO_ACTION"]

    def choice(gain: float, pairs: int, **more: Cell) -> int | None:
        return preferred({"INCREASE_WORKER_POOL+": paired(gain, pairs), **more}, arms, "NO_ACTION")

    assert choice(0.1, 200) == 1
    assert choice(0.1, MIN_TRIALS - 1) == 0
    assert choice(0.002, 200) == 0
    assert choice(-0.1, 200) == 0
    # 95 % for one arm is not enough for two: the more are looked at, the likelier one of them is lucky.
    alone = [preferred({arms[1]: paired(gain / 1000, 200)}, arms[:2], "NO_ACTION") for gain in range(100)]
    of_two = [choice(gain / 1000, 200) for gain in range(100)]
    assert 0 < alone.index(1) < of_two.index(1)
    assert preferred({}, arms, "NO_ACTION") == 0


def test_follows_the_rules_where_they_did_better(tmp_path: Path) -> None:
    arms = ["INCREASE_WORKER_POOL", "NO_ACTION"]
    assert preferred({f"{RULES}NO_ACTION": paired(0.05, 100)}, arms, "NO_ACTION") is None
    assert preferred({f"{RULES}NO_ACTION": paired(0.05, 100)}, arms, "DECREASE_WORKER_POOL") == 0
    assert preferred({f"{RULES}NO_ACTION": paired(-0.05, 100)}, arms, "NO_ACTION") == 0
    policy = QPolicy(settings(tmp_path, deviate=True), keep)
    teach(policy, Action.INCREASE_WORKER_POOL, -0.2, 100)
    for _ in range(100):
        policy.table.tried(KEY, f"{RULES}NO_ACTION", 0.05)
    answer = policy.recommend(None, STATE, FORECAST)
    assert answer is not None
    assert (answer.action, answer.confidence) == (Action.NO_ACTION, 1.0)
    policy.save()
    plain = QPolicy(settings(tmp_path), keep).recommend(None, STATE, FORECAST)
    assert plain is not None
    assert plain.action is Action.INCREASE_WORKER_POOL, "unless asked to deviate it stays with the plan"


def test_a_state_with_little_evidence_borrows_from_the_others() -> None:
    def here(elsewhere: float) -> float:
        table = QTable()
        for state in ("one", "two", "three"):
            try_out(table, "NO_ACTION", elsewhere, 400, state=state)
        try_out(table, "NO_ACTION", 0.0, MIN_TRIALS, state="here")
        assert confidence(table, "nowhere", "NO_ACTION", "x") == 0.5
        return confidence(table, "here", "NO_ACTION", "x")

    assert here(-0.1) < here(0.0) < here(0.1)


def test_twin_and_live_evidence_survive_another_process(tmp_path: Path) -> None:
    one = QPolicy(settings(tmp_path), keep)
    try_out(one.table, "NO_ACTION", 0.1, 50)
    one.save()
    two = QPolicy(settings(tmp_path), keep)
    teach(two, Action.NO_ACTION, 0.1, 100)
    teach(one, Action.NO_ACTION, 0.1, 100, parameters={"other": 1})
    one.save()
    cell = QTable.load(one.path).cell(KEY, "NO_ACTION")
    assert cell is not None
    assert (cell.trials, cell.live, cell.visits) == (50, 200, 200)
    assert cell.over == pytest.approx(0.1, abs=0.05)


def test_a_calibrated_plan_follows_what_is_counted(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    calibration().save(chosen.planner_path)
    policy, counted = QPolicy(chosen, keep), {name: 0.15 * window_s for name, window_s in ARRIVED.items()}

    def target(**features: float) -> Any:
        said = policy.recommend(None, msgspec.structs.replace(STATE, features={**counted, **features}), FORECAST)
        assert said is not None
        return said.parameters.get("target_workers")

    steady = target()
    for name in ("arrivals_15s", "arrivals_60s", "arrivals_900s", "arrivals_last_hour"):
        assert target(**{name: 1000.0}) != steady, name
    assert target(starting_workers=50.0) is None, "they are ordered already"
    assert target() == steady


def test_a_plan_that_is_asked_for_again_is_made_once_for_what_it_does_not_depend_on(tmp_path: Path) -> None:
    """The first time it is only noted that it was asked for."""
    chosen = settings(tmp_path)
    policy = QPolicy(chosen, keep)
    shown = [{"arrivals_15s": count, "mine": 1.0} for count in (1.0, 50.0, 9.0)]
    counts = [msgspec.structs.replace(STATE, features=features) for features in shown]
    plans = [policy._situations.of(state, FORECAST).plan for state in counts]
    assert plans[1] is plans[2], "without a calibration"
    calibration().save(chosen.planner_path)
    policy.refresh()
    shown = [{"arrivals_15s": 1.0, "mine": mine} for mine in (1.0, 2.0, 3.0)]
    others = [msgspec.structs.replace(counts[0], features=features) for features in shown]
    plans = [policy._situations.of(state, FORECAST).plan for state in others]
    assert plans[1] is plans[2], "with one"
    assert plans[0].basis == "calibrated"


def test_a_crowd_ahead_makes_another_situation(tmp_path: Path) -> None:
    """What is remembered of a measurement of the pool is not of one with another crowd ahead."""
    chosen = settings(tmp_path)
    calibration(crowds=((1, 5.0),)).save(chosen.planner_path)
    told: list[DemandModel] = []
    policy = QPolicy(chosen, keep, on_calibration=told.append)
    assert [model.crowds for model in told] == [((1, 5.0),)]

    def target(crowd: float) -> object:
        features = {**dict.fromkeys(ARRIVED, 10.0), AHEAD: crowd}
        answer = policy.recommend(None, msgspec.structs.replace(STATE, features=features), FORECAST)
        assert answer is not None
        return answer.parameters["target_workers"]

    assert target(0.0) == target(0.0)
    assert target(500.0) == math.ceil(10 * 60 / 3600 + 0.4 * 500.0)
    assert target(0.0) != target(500.0)


@pytest.mark.parametrize(("gain", "explored"), [(-0.01, False), (0.01, True)])
def test_what_is_more_likely_than_not_to_cost_more_is_not_explored(tmp_path: Path, gain: float, explored: bool) -> None:
    policy = QPolicy(settings(tmp_path, epsilon=0.2), keep)
    for trial in range(200):
        policy.table.tried(KEY, "NO_ACTION", gain + 0.1 * (-1) ** trial)
    others = {
        each.action for each in (policy.explore(None, STATE, FORECAST, lambda _: True) for _ in range(500)) if each
    }
    assert (Action.NO_ACTION in others) is explored


def test_nothing_known_to_be_worse_is_explored(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path, epsilon=0.2), keep)
    others = {
        each.action for each in (policy.explore(None, STATE, FORECAST, lambda _: True) for _ in range(500)) if each
    }
    assert Action.NO_ACTION in others
    for _ in range(200):
        policy.table.tried(KEY, "NO_ACTION", -0.5)
    others = {
        each.action for each in (policy.explore(None, STATE, FORECAST, lambda _: True) for _ in range(500)) if each
    }
    assert Action.NO_ACTION not in others


def test_an_arm_seen_now_and_then_is_believed_to_be_as_elsewhere(tmp_path: Path) -> None:
    table = QTable()
    for state in ("one", "two", "three"):
        try_out(table, "NO_ACTION", 0.2, 400, state=state)
    try_out(table, "NO_ACTION", 0.2, SEEN - 1, state="hardly")
    try_out(table, "NO_ACTION", 0.2, SEEN, state="seldom")
    assert confidence(table, "hardly", "NO_ACTION", "x") == 0.5
    assert confidence(table, "seldom", "NO_ACTION", "x") > 0.9


def test_where_the_plan_was_hardly_tried_it_is_as_good_as_in_most_states() -> None:
    """The plan is one policy: what it saved in nine states of ten is to be expected of one more."""

    def unseen(bad: int, good: int, trials: int = 400) -> float:
        table, tried = QTable(), DailySavings({}, 86_400.0)
        for number in range(bad + good):
            saved = -0.2 if number < bad else 0.3
            add_trials(tried, f"{PLANNED}NO_ACTION", saved, trials, 0.1, f"state {number}", 20, 0.0)
        tried.tell(table)
        return confidence(table, "nowhere", "INCREASE_WORKER_POOL", "x", planned=True)

    assert confidence(QTable(), "nowhere", "NO_ACTION", "x", planned=True) == 0.5
    assert unseen(0, 9, SEEN) == 0.5, "too few trials in all"
    assert 10 / 12 <= unseen(1, 9) < 11 / 12
    assert unseen(5, 5) < 0.7
    assert unseen(9, 1) < 0.2
    assert unseen(0, 120) == CEILING
    table = QTable()
    for number in range(10):
        try_out(table, "NO_ACTION", 0.3, 400, state=f"state {number}")
    assert confidence(table, "nowhere", "NO_ACTION", "x") == 0.5, "of single arms nothing is known where they are new"


def test_a_state_without_a_crowd_is_not_certain() -> None:
    """Where nothing happened an arm looks dear, and the same each time; the crowds of the other states count there."""
    table, tried = QTable(), DailySavings({}, 86_400.0)
    for state in ("one", "two", "quiet"):
        for trial in range(2000 if state != "quiet" else 30):
            crowd = state != "quiet" and trial % 50 == 0
            tried.add(state, "NO_ACTION", trial % 10 * 86_400.0, 10.0 if crowd else -0.01)
    tried.tell(table)
    assert confidence(table, "quiet", "NO_ACTION", "x") > 0.5


def test_days_are_what_counts_not_their_trials() -> None:
    """A crowd that comes on one day of five is one crowd, however often its moments are tried."""

    def sure(trials: int, days: int, crowds: int) -> float:
        table, tried = QTable(), DailySavings({}, 86_400.0)
        for day in range(days):
            for _ in range(trials):
                tried.add(KEY, "plan:NO_ACTION", day * 86_400.0, 1.0 if day < crowds else -0.1)
        tried.tell(table)
        return confidence(table, KEY, "NO_ACTION", "x", planned=True)

    assert sure(10_000, 1, 1) == pytest.approx(0.5, abs=0.02), "nobody knows how days differ"
    one_day, tried = QTable(), DailySavings({}, 86_400.0)
    for state in range(5):
        for _ in range(40):
            tried.add(f"s{state}", "plan:NO_ACTION", 0.0, 1.0)
    tried.tell(one_day)
    assert one_day.rows["s0"]["plan:NO_ACTION"].odds > 0.9
    assert confidence(one_day, "s0", "NO_ACTION", "x", planned=True) == 0.5, "five states have seen one day"
    assert sure(1000, 5, 1) < 0.8, "its mean is 0.12"
    assert sure(1000, 5, 1) == pytest.approx(sure(20, 5, 1), abs=0.02)
    assert sure(20, 5, 1) < sure(20, 50, 10) < sure(20, 50, 50) == CEILING
    assert sure(20, 5, 0) < 0.05


@pytest.mark.parametrize(
    ("saved", "least", "most"), [(40.0, CEILING, CEILING), (-20.0, 0.3, 0.95), (-2.0, 0.95, CEILING)]
)
def test_what_an_outage_does_elsewhere_counts_for_what_it_costs(saved: float, least: float, most: float) -> None:
    """Calm states save a tenth on each of twelve days; on one of them another state had an outage."""
    table, tried = QTable(), DailySavings({}, 86_400.0)
    for day in range(12):
        for _ in range(40):
            for state in range(8):
                tried.add(f"calm{state}", "plan:NO_ACTION", day * 86_400.0, 0.1 + 0.02 * (-1) ** (day + state))
            tried.add("outage", "plan:NO_ACTION", day * 86_400.0, saved if day == 3 else 0.1)
    tried.tell(table)
    assert least <= confidence(table, "calm0", "NO_ACTION", "x", planned=True) <= most


def test_a_state_that_was_spared_crowds_is_not_certain_to_be() -> None:
    """Three of eight states saw a crowd on one of six days; what saves there cannot be known to cost in the others."""
    table, tried = QTable(), DailySavings({}, 86_400.0)
    for day in range(6):
        for _ in range(40):
            for state in range(8):
                crowd = day == state < 3
                tried.add(f"s{state}", "plan:NO_ACTION", day * 86_400.0, 2.0 if crowd else -0.1)
    tried.tell(table)
    assert 0.2 < confidence(table, "s7", "NO_ACTION", "x", planned=True) < 0.7


def test_health_tells_of_the_calibration(tmp_path: Path) -> None:
    policy = QPolicy(settings(tmp_path), keep)
    assert policy.health().ok
    assert policy.health().detail.endswith("planner not calibrated")
    assert NO_TRIALS in policy.health().detail
    try_out(policy.table, "plan:NO_ACTION", 0.1, 30)
    assert NO_TRIALS not in policy.health().detail
    policy.planner.path.parent.mkdir(parents=True, exist_ok=True)
    policy.planner.path.write_text("broken")
    policy.refresh()
    health = policy.health()
    assert not health.ok
    assert "planner.json: is not a calibrated planner" in health.detail
