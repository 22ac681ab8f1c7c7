"""What trials saved over the rules, day by day, and how sure it is that it is a saving: what confidence is.

Sums are kept per state, arm and day. What the Q-table gets of them is their mean, the number of days, and P(the mean
saving in the state >= 0) of a Bayesian bootstrap over days (D. Rubin 1981, "The Bayesian bootstrap"): the share of
draws in which the days, each weighted by chance, save in sum. It takes days as they are: nine that cost a little and
one whose crowd would have waited are no bell curve, and have the variance of nine that save a little and one that costs
much.

Few days say little, so others are drawn beside a state's own: `OTHERS` of other states, which are believed to be like
it until its own say otherwise (the prior of a Dirichlet process: T. Ferguson 1973, "A Bayesian analysis of some
nonparametric problems"; its base is empirical), and one of its own turned into its opposite, or two days that saved
would be certain.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import numpy as np

from nhm_sched_plugin.policy.confidence import MIN_TRIALS
from nhm_sched_plugin.policy.qtable import PLANNED, QTable, Saving

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OTHERS", "DailySavings", "Sums", "day_s", "odds"]

OTHERS: Final = 8
"""Days of other states that are drawn beside a state's own, at most as many as there were days."""
_DRAWS: Final = 4000
_DAY_S: Final = 86_400.0
_FEWEST: Final = 8

Day = tuple[int, float]
"""Number of trials, and the sum of what they saved."""
Sums = dict[str, dict[str, dict[str, Day]]]
"""Per state, arm and day."""


def day_s(length_s: float, trial_s: float) -> float:
    """What counts as a day of a history of that length: 24 h, less of a short one, at least two trials long."""
    return min(_DAY_S, max(length_s / _FEWEST, 2.0 * trial_s))


class DailySavings:
    """Adds up trials; `sums`, which goes through JSON, is all there is to keep of them."""

    def __init__(self, sums: Sums, day_s: float) -> None:
        self.sums, self._day_s = sums, day_s
        self._planned = {
            state: sum(n for arm, days in arms.items() if arm.startswith(PLANNED) for n, _ in days.values())
            for state, arms in sums.items()
        }

    def add(self, state: str, arm: str, now: float, saved: float) -> None:
        """A trial at a moment of the history."""
        days = self.sums.setdefault(state, {}).setdefault(arm, {})
        day = f"{now // self._day_s:.0f}"
        count, total = days.get(day, (0, 0.0))
        days[day] = count + 1, total + saved
        if arm.startswith(PLANNED):
            self._planned[state] = self._planned.get(state, 0) + 1

    def count(self, state: str) -> int:
        """Trials of the plan in a state, whatever it asked for."""
        return self._planned.get(state, 0)

    def tell(self, table: QTable) -> None:
        """Put what they say into the table: of each state and arm, and of each arm and of the plan in all states.

        The plan is one policy, whatever it asks for: its days in other states are those of all that it asked for.
        """
        alike: dict[str, dict[tuple[str, str], dict[str, Day]]] = {}
        for state, arms in self.sums.items():
            for arm, days in arms.items():
                alike.setdefault(PLANNED if arm.startswith(PLANNED) else arm, {})[state, arm] = days
        table.overall = {}
        for name, places in alike.items():
            together: dict[str, Day] = {}
            for days in places.values():
                for day, (count, total) in days.items():
                    before = together.get(day, (0, 0.0))
                    together[day] = before[0] + count, before[1] + total
            most = min(OTHERS, round(_kish(together.values())))
            every = [one for days in places.values() for one in days.values()]
            for (state, arm), days in places.items():
                others = [one for place, theirs in places.items() if place != (state, arm) for one in theirs.values()]
                table.saved(state, arm, _saving(days.values(), odds(list(days.values()), others, most)))
            unseen = min(odds([], every, most), _share_that_saves(places.values()))
            table.overall[name] = _saving(together.values(), unseen)


def odds(own: Collection[Day], others: Collection[Day], most: int) -> float:
    """P(the mean of what days like these save is not below 0), in [0, 1]; `most`: so many of the others count.

    The same days give the same answer, in whatever order they come.
    """
    draw = np.random.default_rng(0)
    counts, means = _days(own)
    usual = float(counts.mean()) if len(counts) else 1.0
    drawn, sizes = [np.broadcast_to(means, (_DRAWS, len(means)))], [counts]
    if len(others):
        weights, values = _days(others)
        drawn.append(draw.choice(values, (_DRAWS, most), p=weights / weights.sum()))
        sizes.append(np.full(most, usual))
    if len(counts):
        drawn.append(-draw.choice(means, (_DRAWS, 1), p=counts / counts.sum()))
        sizes.append(np.array([usual]))
    saved = np.hstack(drawn)
    weight = draw.exponential(size=saved.shape) * np.concatenate(sizes)
    return float(((weight * saved).sum(axis=1) >= 0.0).mean())


def _days(found: Collection[Day]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Trials of each day, and their mean."""
    days = np.array(list(found), np.float64).reshape(-1, 2)
    counts, totals = days[np.lexsort((days[:, 1], days[:, 0]))].T
    return counts, totals / counts


def _share_that_saves(states: Collection[dict[str, Day]]) -> float:
    """What to expect of a state that was not tried: the share of those that were in which there was a saving (Laplace's
    rule of succession)."""
    means = [_saving(days.values(), 0.0) for days in states]
    seen = [saving.mean >= 0.0 for saving in means if saving.trials >= MIN_TRIALS]
    return (sum(seen) + 1) / (len(seen) + 2)


def _saving(days: Collection[Day], odds: float) -> Saving:
    count = sum(number for number, _ in days)
    return Saving(count, math.fsum(total for _, total in days) / count, _kish(days), odds)


def _kish(days: Collection[Day]) -> float:
    return sum(number for number, _ in days) ** 2 / sum(number * number for number, _ in days)
