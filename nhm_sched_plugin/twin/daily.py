"""What trials saved over the rules, day by day, and how sure it is that it is a saving: what confidence is.

Sums are kept per state, arm and day. What the Q-table gets of them is their mean, the number of days, and P(the mean
saving in the state >= 0) of a Bayesian bootstrap over days (D. Rubin 1981, "The Bayesian bootstrap"): the share of
draws in which the days, each weighted by chance, save in sum. It takes days as they are: nine that cost a little and
one whose crowd would have waited are no bell curve, and have the variance of nine that save a little and one that costs
much.

A day has the same weight in all states, since it is the same crowd that comes in them. Which of them it meets is luck,
so a state's own days are joined by `OTHERS` with the mean that all other states have under these weights: a crowd that
came there may come here, in the size that it had. And by one of its own turned into its opposite, or two days that
saved would be certain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from nhm_sched_plugin.policy.confidence import MIN_TRIALS
from nhm_sched_plugin.policy.qtable import PLANNED, QTable, Saving

__all__ = ["DailySavings", "Day", "Sums", "day_s", "odds"]

OTHERS: Final = 16
"""Days of other states that count beside a state's own."""
_DRAWS: Final = 10_000
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

        The plan is one policy, whatever it asks for: its other days are those of all that it asked for anywhere else.
        """
        alike: dict[str, dict[tuple[str, str], dict[str, Day]]] = {}
        for state, arms in self.sums.items():
            for arm, days in arms.items():
                alike.setdefault(PLANNED if arm.startswith(PLANNED) else arm, {})[state, arm] = days
        table.overall = {}
        for name, places in alike.items():
            sure, unseen = odds(list(places.values()))
            for ((state, arm), days), each in zip(places.items(), sure, strict=True):
                table.saved(state, arm, _saving(days.values(), each))
            together: dict[str, Day] = {}
            for days in places.values():
                for day, (count, total) in days.items():
                    before = together.get(day, (0, 0.0))
                    together[day] = before[0] + count, before[1] + total
            tried = [each for days, each in zip(places.values(), sure, strict=True) if _trials(days) >= MIN_TRIALS]
            # It may be like any of those that were tried. Two more, one sure and one not: Laplace's rule of succession.
            alike_any = (math.fsum(tried) + 1.0) / (len(tried) + 2)
            table.overall[name] = _saving(together.values(), min(unseen, alike_any))


def odds(places: Sequence[Mapping[str, Day]]) -> tuple[list[float], float]:
    """P(the mean of what is saved is not below 0), in [0, 1]: for each of the places, which have a day at least, and
    for one that was not tried.

    The same days give the same answers, in whatever order they come.
    """
    calendar = {day: at for at, day in enumerate(sorted({day for days in places for day in days}))}
    trials, saved = np.zeros((2, len(places), len(calendar)))
    for row, days in enumerate(places):
        for day, (count, total) in days.items():
            trials[row, calendar[day]], saved[row, calendar[day]] = count, total
    draw = np.random.default_rng(0)
    weights = draw.exponential(size=(len(calendar), _DRAWS))
    once, place = draw.exponential(size=_DRAWS), draw.random(_DRAWS)
    all_trials, all_saved = trials.sum(axis=0) @ weights, saved.sum(axis=0) @ weights
    sure = []
    for count, total in zip(trials, saved, strict=True):
        own = total @ weights
        others = (all_saved - own) / np.maximum(all_trials - count @ weights, 1e-9) if len(places) > 1 else 0.0
        drawn = np.searchsorted(np.cumsum(count), place * count.sum(), side="right")
        opposite, usual = -once * total[drawn] / count[drawn], count[count > 0].mean()
        sure.append(float((own + usual * (OTHERS * others + opposite) >= 0.0).mean()))
    return sure, float((all_saved >= 0.0).mean())


def _trials(days: Mapping[str, Day]) -> int:
    return sum(number for number, _ in days.values())


def _saving(days: Collection[Day], odds: float) -> Saving:
    count = sum(number for number, _ in days)
    return Saving(count, math.fsum(total for _, total in days) / count, _kish(days), odds)


def _kish(days: Collection[Day]) -> float:
    return sum(number for number, _ in days) ** 2 / sum(number * number for number, _ in days)
