"""What trials saved over the rules, day by day: the evidence that confidence is counted from.

Sums are kept per state, arm and day; what the Q-table gets of them is mean, number of days and the error by days.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from nhm_sched_plugin.policy.qtable import PLANNED, QTable, Saving

__all__ = ["DailySavings", "Sums", "day_s", "saving"]

_DAY_S: Final = 86_400.0
_FEWEST: Final = 8

Sums = dict[str, dict[str, dict[str, tuple[int, float]]]]
"""Per state, arm and day: number of trials and their sum."""


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
        """Put what they say into the table: of each state and arm, and of each arm and of the plan in all states."""
        overall: dict[str, dict[str, tuple[int, float]]] = {}
        for state, arms in self.sums.items():
            for arm, days in arms.items():
                table.saved(state, arm, saving(days.values()))
                total = overall.setdefault(PLANNED if arm.startswith(PLANNED) else arm, {})
                for day, (count, sum_) in days.items():
                    before = total.get(day, (0, 0.0))
                    total[day] = before[0] + count, before[1] + sum_
        table.overall = {arm: saving(days.values()) for arm, days in overall.items()}


def saving(days: Collection[tuple[int, float]]) -> Saving:
    """Mean and cluster-robust error from number and sum of the trials of each day (Liang and Zeger 1986; CR1)."""
    count = sum(number for number, _ in days)
    mean = math.fsum(total for _, total in days) / count
    squares = math.fsum((total - number * mean) ** 2 for number, total in days)
    error = squares / count**2 * len(days) / max(len(days) - 1, 1)
    return Saving(count, mean, count**2 / sum(number * number for number, _ in days), error)
