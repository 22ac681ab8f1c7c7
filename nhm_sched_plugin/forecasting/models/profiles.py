"""Causal profiles: what an hour of the week or of the day usually brings, as it was known before that hour.

A mean over the whole history knows the very hour that it is compared with, so deviations from it look too small, most
of all in short histories. Here every value is compared with what was known before it, in the fit as in a forecast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK, State, Timeline, pack
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["Anchors", "Profiles", "Slots", "causal", "pack_anchors", "slots_of", "unpack_anchors"]

_DAY: Final = 24
_KIND_MASS: Final = 2.0
"""Samples of its hour of the week that the profile by kind of day is worth."""
_HALF_SAMPLE: Final = 0.5
_TWO_WEEKS: Final = 0.5 ** (1 / 14)
"""Decay of a daily sample with a half-life of two weeks."""
Ints = NDArray[np.int64]
Anchors = dict[str, tuple[Floats, Floats]]
"""Name of a profile -> sums and numbers by slot."""


@dataclass(frozen=True, slots=True)
class Slots:
    """For each hour the slot it falls into: hour of the week, of the day, and of the kind of day (weekday, Saturday,
    Sunday)."""

    week: Ints
    day: Ints
    kind: Ints


def slots_of(past: Timeline) -> Slots:
    week = past.week
    return Slots(week, week % _DAY, np.maximum(week // _DAY - 4, 0) * _DAY + week % _DAY)


def causal(
    values: Floats, slot: Ints, count: int, decay: float, start: tuple[Floats, Floats] | None = None
) -> tuple[Floats, Floats]:
    """For each hour the sum and the number of the earlier values of its slot, older ones fading by `decay` each time.

    `values` may be shorter than `slot`: hours to come add nothing. `start` are sums and numbers by slot from before.
    """
    order = np.argsort(slot, kind="stable")
    sizes = np.bincount(slot, minlength=count)
    rank = np.empty(len(slot), dtype=np.int64)
    rank[order] = np.arange(len(slot)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # how manieth of its slot
    known = np.zeros(len(slot), dtype=np.bool_)
    known[: len(values)] = np.isfinite(values)
    # One row a round of the slots; sums in the first half of the columns, numbers in the second.
    grid = np.zeros((int(rank.max(initial=-1)) + 2, 2 * count))
    hours = np.flatnonzero(known)
    grid[rank[hours] + 1, slot[hours]] = values[hours]
    grid[rank[hours] + 1, count + slot[hours]] = 1.0
    if start is not None:
        grid[0, :count], grid[0, count:] = start
    if decay == 1.0:
        np.cumsum(grid, axis=0, out=grid)
    else:
        fade = np.where(grid[:, count:] > 0, decay, 1.0)
        even = (fade == decay).all(axis=1)
        for row in range(1, len(grid)):
            grid[row] += grid[row - 1] * (decay if even[row] else np.tile(fade[row], 2))
    return grid[rank, slot], grid[rank, count + slot]


@dataclass(slots=True)
class Profiles:
    """The profiles of every hour, known or to come, as they were known before it."""

    base: Floats
    """The hour of the week, all weeks alike, leaning on the kind of day."""
    day: Floats
    """The hour of the day over two weeks: what the kind of day leans on."""
    others: list[Floats]
    """Hour of the day over two weeks, over two days; hour of the week over four weeks, over one."""
    sums: dict[str, tuple[Ints, Floats, Floats]]
    """Of each profile the slot, the sum and the number of every hour."""

    shock: Floats
    """Deviation of each known hour from the base profile; cut off where asked, 0 where missing."""

    @classmethod
    def of(
        cls,
        level: Floats,
        slots: Slots,
        mean: float,
        anchors: Anchors,
        cut: Callable[[Floats], Floats] | None = None,
    ) -> Profiles:
        """Profiles of `level`, the known (transformed) counts.

        `mean` is what they lean on where nothing is known; `anchors` are the sums from before the first hour; `cut`
        limits the shocks before the profiles other than the base learn from them.
        """
        sums: dict[str, tuple[Ints, Floats, Floats]] = {}

        def run(name: str, slot: Ints, count: int, decay: float, lean: Floats | float, worth: float) -> Floats:
            total, number = causal(level, slot, count, decay, anchors.get(name))
            sums[name] = slot, total, number
            return np.asarray((total + worth * lean) / (number + worth), dtype=np.float64)

        day = run("day", slots.day, _DAY, _TWO_WEEKS, mean, _HALF_SAMPLE)
        kind = run("kind", slots.kind, 3 * _DAY, 1.0, day, _HALF_SAMPLE)
        base = run("week", slots.week, WEEK, 1.0, kind, _KIND_MASS)
        plain = day
        shock = level - base[: len(level)]
        if cut is not None:
            shock = cut(shock)
            level = base[: len(level)] + shock
            day = run("cut_day", slots.day, _DAY, _TWO_WEEKS, mean, _HALF_SAMPLE)
        fresh = run("fresh_day", slots.day, _DAY, 0.5 ** (1 / 2), day, _HALF_SAMPLE)
        month = run("month", slots.week, WEEK, 0.5 ** (1 / 4), base, 1.0)
        last = run("last_week", slots.week, WEEK, 0.5, base, _HALF_SAMPLE)
        return cls(base, plain, [day, fresh, month, last], sums, np.nan_to_num(shock))

    def as_known(self, target: Ints, kind: Ints, day: Ints) -> tuple[Floats, Floats, Floats]:
        """Base, four-week and last-week profile of hours some days ahead, from what was known at their origin.

        The profiles of day and kind go on learning until the day before the target. What the origin knew of them is
        their state at the first hour after it in the same slot: `day` for the hour of the day, `kind` for its kind.
        """

        def lean(name: str, hour: Ints, on: Floats, worth: float) -> Floats:
            _, total, number = self.sums[name]
            return np.asarray((total[hour] + worth * on) / (number[hour] + worth), dtype=np.float64)

        base = lean("week", target, lean("kind", kind, self.day[day], _HALF_SAMPLE), _KIND_MASS)
        return base, lean("month", target, base, 1.0), lean("last_week", target, base, _HALF_SAMPLE)

    def anchors(self, start: int) -> Anchors:
        """Sums and numbers by slot as they were before the hour `start`: from there the profiles can go on."""
        result: Anchors = {}
        for name, (slot, total, number) in self.sums.items():
            seen, first = np.unique(slot[start:], return_index=True)
            before = np.zeros((2, int(slot.max()) + 1))
            before[0, seen], before[1, seen] = total[start + first], number[start + first]
            result[name] = before[0], before[1]
        return result


def pack_anchors(anchors: Anchors) -> dict[str, list[list[Any]]]:
    return {name: [pack(total), pack(number)] for name, (total, number) in anchors.items()}


def unpack_anchors(state: State) -> Anchors:
    return {
        name: (np.array(total, dtype=np.float64), np.array(number, dtype=np.float64))
        for name, (total, number) in state.items()
    }
