"""What trials saved, day by day."""

from __future__ import annotations

import json
import random
import statistics

import pytest

from nhm_sched_plugin.policy.qtable import PLANNED, QTable
from nhm_sched_plugin.twin.daily import DailySavings, day_s, saving

DAY = 86_400.0


def test_equal_days_give_the_error_of_their_means() -> None:
    means = [0.3, -0.1, 0.2, 0.4]
    found = saving([(10, 10 * mean) for mean in means])
    assert (found.trials, found.days) == (40, pytest.approx(4))
    assert found.mean == pytest.approx(statistics.fmean(means))
    assert found.error == pytest.approx(statistics.variance(means) / 4)


def test_a_day_with_most_of_the_trials_is_nearly_the_only_one() -> None:
    found = saving([(1000, 500.0), (1, -1.0), (1, -1.0)])
    assert found.days == pytest.approx(1.0, abs=0.01)
    assert found.mean == pytest.approx(498 / 1002)
    alone = saving([(5, 1.0)])
    assert (alone.days, alone.error) == (1.0, 0.0)


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
    assert table.overall[PLANNED] == pytest.approx(saving([(len(all_), sum(all_)) for all_ in by_day.values()]))
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
