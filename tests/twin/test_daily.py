"""What trials saved, day by day."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np
import pytest

from nhm_sched_plugin.policy.qtable import PLANNED, QTable
from nhm_sched_plugin.twin.daily import DailySavings, Day, day_s, odds

DAY = 86_400.0


def alone(days: Sequence[Day]) -> float:
    return odds([{str(day): found for day, found in enumerate(days)}])[0][0]


def among(own: Sequence[Day], *others: Sequence[Day]) -> float:
    return odds([{str(day): found for day, found in enumerate(days)} for days in (own, *others)])[0][0]


def test_the_odds_are_a_bootstrap_of_days() -> None:
    """Of two days, 2 : 1 for the one that saves, and one of both turned over: counted by hand."""
    draw = np.random.default_rng(1)
    weight = draw.exponential(size=(200_000, 3))
    turned = np.where(draw.random(200_000) < 0.5, -0.2, 0.1)
    exact = (weight[:, 0] * 0.2 - weight[:, 1] * 0.1 + weight[:, 2] * turned >= 0).mean()
    assert alone([(10, 2.0), (10, -1.0)]) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("saved", [0.3, -0.3])
def test_few_days_are_not_certain_and_many_are(saved: float) -> None:
    sure = [alone([(10, 10 * saved)] * days) for days in (1, 2, 5, 20)]
    if saved < 0:
        sure = [1.0 - each for each in sure]
    assert sure[0] == pytest.approx(0.5, abs=0.02)
    assert sure == sorted(sure)
    assert 0.7 < sure[1] < 0.8
    assert sure[3] > 0.99


def test_one_day_that_saves_much_is_told_from_one_that_costs_much() -> None:
    """Their means are as far from 0 and their variances the same."""
    little, much = [(10, -1.0)] * 9, (10, 19.0)
    saves = alone([*little, much])
    costs = alone([(count, -total) for count, total in [*little, much]])
    assert 0.5 < saves < 0.8
    assert costs == pytest.approx(1.0 - saves, abs=0.02)
    assert alone([(10, 1.0)] * 10) > 0.95 > saves, "the same mean, day for day"


def test_other_states_count_until_there_are_days_of_its_own() -> None:
    believed = [among([(10, -1.0)] * days, [(10, 1.0)] * 120) for days in (1, 8, 16, 24, 100)]
    assert believed == sorted(believed, reverse=True)
    assert believed[0] > 0.95
    assert 0.2 < believed[2] < 0.8
    assert believed[4] < 0.05


def test_a_crowd_that_came_elsewhere_counts_in_its_own_size() -> None:
    """Twenty days cost a little here; in other states one of them had a crowd that the plan was ready for."""
    quiet = [(10, -0.1)] * 20
    assert among(quiet, quiet) < 0.01
    assert 0.5 < among(quiet, [*quiet[1:], (10, 20.0)]) < 0.99
    assert among(quiet, [*quiet[1:], (10, -20.0)]) < 0.01


def test_days_are_the_same_days_in_all_states() -> None:
    """Ten states that met one crowd are no ten crowds: as sure as one of them alone, whose others are like it."""
    met = [(10, -1.0)] * 5 + [(10, 8.0)]
    assert among(met, *[met] * 9) == pytest.approx(alone(met), abs=0.05)


def test_the_odds_do_not_hang_on_the_order_of_days_and_states() -> None:
    days = {str(day): (1 + day % 3, (0.3, -0.5, 0.1, 0.2)[day % 4]) for day in range(12)}
    other = {str(day): (2, 0.1 * (day - 5)) for day in range(3, 9)}
    turned = [dict(reversed(each.items())) for each in (other, days)]
    (first, second), unseen = odds([days, other])
    assert odds(turned) == ([second, first], unseen)
    assert 0.0 < first < 1.0
    assert 0.0 < second < 1.0


def test_what_is_the_same_on_all_days_costs_no_more() -> None:
    assert alone([(10, 0.0)] * 3) == 1.0
    assert odds([{"1": (1, 0.0), "2": (3, 0.0)}] * 2) == ([1.0, 1.0], 1.0)


def test_a_state_that_was_not_tried_is_no_surer_than_the_days_nor_than_the_states() -> None:
    """Most states save a little; what one costs on every other day makes up for more than that."""
    table, tried = QTable(), DailySavings({}, DAY)
    for day in range(10):
        for _ in range(40):
            for state in range(9):
                tried.add(f"u{state}", f"{PLANNED}NO_ACTION", day * DAY, 0.1)
            tried.add("dear", f"{PLANNED}NO_ACTION", day * DAY, -3.0 * (day % 2))
    tried.tell(table)
    assert table.overall[PLANNED].odds < 0.2 < 10 / 12


def test_a_day_with_most_of_the_trials_is_nearly_the_only_one() -> None:
    table, tried = QTable(), DailySavings({}, DAY)
    for day, (count, saved) in enumerate([(1000, 0.5), (1, -1.0), (1, -1.0)]):
        for _ in range(count):
            tried.add("u1", "NO_ACTION", day * DAY, saved)
    tried.tell(table)
    cell = table.cell("u1", "NO_ACTION")
    assert cell is not None
    assert cell.days == pytest.approx(1.0, abs=0.01)
    assert cell.over == pytest.approx(498 / 1002)


@pytest.mark.parametrize(
    ("length_s", "trial_s", "expected"),
    [(540 * DAY, 1320.0, DAY), (8 * DAY, 1320.0, DAY), (4 * DAY, 1320.0, DAY / 2), (3600.0, 1320.0, 2640.0)],
)
def test_a_short_history_has_shorter_days(length_s: float, trial_s: float, expected: float) -> None:
    assert day_s(length_s, trial_s) == expected


def test_the_table_is_told_of_each_arm_and_of_the_plan_in_all_states() -> None:
    draw, tried, by_day = random.Random(2), DailySavings({}, DAY), dict[int, list[float]]()
    for _ in range(400):
        day, saved = draw.randrange(5), draw.gauss(0.1, 1.0)
        plan = draw.random() < 0.5
        arm = draw.choice(["NO_ACTION", "INCREASE_WORKER_POOL"])
        tried.add(draw.choice(["u1", "u2"]), PLANNED + arm if plan else arm, day * DAY + draw.uniform(0, DAY), saved)
        if plan:
            by_day.setdefault(day, []).append(saved)
    table = QTable()
    tried.tell(table)
    assert set(table.overall) == {PLANNED, "NO_ACTION", "INCREASE_WORKER_POOL"}
    counts = [len(all_) for all_ in by_day.values()]
    trials, mean, days, unseen = table.overall[PLANNED]
    assert (trials, days) == (sum(counts), pytest.approx(trials**2 / sum(count**2 for count in counts)))
    assert mean == pytest.approx(sum(sum(all_) for all_ in by_day.values()) / trials)
    plans = [cell for row in table.rows.values() for arm, cell in row.items() if arm.startswith(PLANNED)]
    assert unseen <= (sum(cell.odds for cell in plans) + 1) / (len(plans) + 2)
    assert sum(saving.trials for saving in table.overall.values()) == 400
    cells = [cell for row in table.rows.values() for cell in row.values()]
    assert sum(cell.trials for cell in cells) == 400
    assert tried.count("u1") + tried.count("u2") == table.overall[PLANNED].trials
    assert tried.count("u3") == 0

    again = DailySavings(json.loads(json.dumps(tried.sums)), DAY)
    assert again.count("u1") == tried.count("u1")
    again.add("u1", "NO_ACTION", 0.0, 1.0)
    other = QTable()
    again.tell(other)
    assert other.overall["NO_ACTION"].trials == table.overall["NO_ACTION"].trials + 1
