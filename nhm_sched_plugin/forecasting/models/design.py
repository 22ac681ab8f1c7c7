"""What the direct regression looks at: columns of every origin for the next 24 hours and for the days after.

All columns hold what was known at the origin, so the rows of a whole history can be made at once and cut anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK
from nhm_sched_plugin.forecasting.models.profiles import Profiles, Slots
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["DAYS", "SHORT", "Design", "short_columns"]

SHORT: Final = 24
"""Hours ahead with weights of their own."""
DAYS: Final = range(2, 8)
"""Days ahead whose hours share one set of weights: 2 is the 25th to the 48th hour."""
_RECENT: Final = 12
_BACK: Final = 48
_PAD: Final = 2 * WEEK + _BACK + 16
_LONG: Final = 13
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Design:
    """Columns are made of the shocks (counts less their profile), the profiles, the calendar and extra regressors."""

    profiles: Profiles
    slots: Slots
    holiday: NDArray[np.bool_]
    extra: Floats

    def short(self, last: Ints) -> Singles:
        """Rows for the origins after the hours `last`; `short_columns` says which columns serve which hour ahead."""
        padded = np.concatenate((np.zeros(_PAD), self.profiles.shock))
        at = last + _PAD
        ahead = last[:, None] + np.arange(1, SHORT + 1)[None, :]
        parts = [
            _windows(padded, _BACK)[at - _BACK + 1],
            _windows(padded, SHORT)[at + 1 - WEEK],
            _windows(padded, SHORT)[at + 1 - 2 * WEEK],
            _trailing_means(padded, at),
            *(self._ahead(other - self.profiles.base, last) for other in self.profiles.others),
            self._ahead(self.holiday.astype(np.float64), last),
            self._ahead((self.slots.week >= 5 * SHORT).astype(np.float64), last),
            padded[ahead + _PAD - _same_kind_back(self.slots.week[ahead])],
            *(self._ahead(column, last) for column in self.extra.T),
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _ahead(self, column: Floats, last: Ints) -> Floats:
        return np.asarray(_windows(column, SHORT)[last + 1])

    def long(self, last: Ints, lead: Ints, day: int) -> tuple[Singles, Floats]:
        """Rows for one hour ahead each, inside day `day`, and the profile that they deviate from."""
        target = last + lead
        padded = np.concatenate((np.zeros(_PAD), self.profiles.shock))
        known = target - SHORT * (day - 1)  # the same hour of the day, at most a day after the origin
        kind = self._same_kind(last, target, day)
        base, month, week = self.profiles.as_known(target, kind, known)
        day_profile, fresh = self.profiles.others[:2]
        shape = (len(target), _LONG + self.extra.shape[1])
        rows = np.empty(shape, dtype=np.float32)
        rows[:, 0] = padded[known - SHORT + _PAD]
        rows[:, 1] = padded[known - 2 * SHORT + _PAD]
        rows[:, 2:4] = _trailing_means(padded, last + _PAD)
        rows[:, 4] = padded[target - WEEK + _PAD]
        rows[:, 5] = padded[target - 2 * WEEK + _PAD]
        rows[:, 6] = day_profile[known] - base
        rows[:, 7] = fresh[known] - base
        rows[:, 8] = month - base
        rows[:, 9] = week - base
        rows[:, 10] = self.holiday[target]
        rows[:, 11] = self.slots.week[target] >= 5 * SHORT
        rows[:, 12] = self._kind_shock(last, kind)
        rows[:, _LONG:] = self.extra[target]
        return rows, base

    def _same_kind(self, last: Ints, target: Ints, day: int) -> Ints:
        """The first hour after the origin that is the target's hour on the target's kind of day."""
        back = np.zeros(len(target), dtype=np.int64)
        for earlier in range(day - 1, 0, -1):
            candidate = target - SHORT * earlier
            same = (back == 0) & (candidate > last) & (self.slots.kind[candidate] == self.slots.kind[target])
            back[same] = SHORT * earlier
        return target - back

    def _kind_shock(self, last: Ints, first: Ints) -> Floats:
        """The shock of the same hour on the last known day of that kind."""
        lagged = first - _same_kind_back(self.slots.week[first])
        known = np.minimum(lagged, last)
        return np.where((lagged == known) & (known >= 0), self.profiles.shock[np.maximum(known, 0)], 0.0)


def short_columns(lead: int, extra: int) -> Ints:
    """Which columns of `Design.short` serve that hour ahead (1 to 24), with that many extra regressors."""
    recent = range(_BACK - _RECENT, _BACK)
    days = [k for k in (_BACK - 1 + lead - SHORT, _BACK - 1 + lead - 2 * SHORT) if k not in recent and k >= 0]
    first = _BACK + 2 * SHORT + 2
    weeks = [_BACK + lead - 1, _BACK + SHORT + lead - 1, first - 2, first - 1]
    rest = [first + SHORT * family + lead - 1 for family in range(7 + extra)]
    return np.array([*recent, *days, *weeks, *rest], dtype=np.int64)


def _windows(column: Floats, width: int) -> Floats:
    return np.lib.stride_tricks.sliding_window_view(column, width)


def _trailing_means(padded: Floats, at: Ints) -> Floats:
    total = np.concatenate(([0.0], np.cumsum(padded)))
    return np.stack([(total[at + 1] - total[at + 1 - span]) / span for span in (SHORT, WEEK)], axis=1)


def _same_kind_back(week: Ints) -> Ints:
    """Hours back to the same hour of the last day of its kind: Friday for a Monday, a week for Saturday, Sunday."""
    day = week // SHORT
    return np.where(day == 0, 3 * SHORT, np.where(day >= 5, WEEK, SHORT))
