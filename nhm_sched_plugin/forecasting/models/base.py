"""What a model gets to see and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.series import INTERPOLATED_HOURS, Floats

__all__ = ["WEEK", "Fold", "Model", "Plain", "Refitted", "State", "Timeline", "pack", "profile"]

State = dict[str, Any]
WEEK: Final = 168
_MONDAY: Final = 72
"""Hours by which the epoch (a Thursday) is past a Monday midnight."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The known hours, and the calendar of those and of the hours to come.

    `local` and `holiday` are longer than `values`: they go on beyond the origin, which is the end of the last value.
    """

    values: Floats
    """Tickets in each known hour, NaN where missing."""
    local: NDArray[np.int64]
    """Starts of hours on the clock of the history's time zone, in seconds from 1970-01-01 on that clock."""
    holiday: NDArray[np.bool_]
    """Whether the day of that hour is a public holiday."""
    extra: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """External regressors, hours x columns, as long as `local`; no columns: none."""

    def __post_init__(self) -> None:
        if not len(self.extra):
            object.__setattr__(self, "extra", np.zeros((len(self.local), 0)))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def week(self) -> NDArray[np.int64]:
        """Hour of the week, 0 = Monday midnight, of each hour, known or to come."""
        return np.asarray((self.local // 3600 + _MONDAY) % WEEK, dtype=np.int64)

    def until(self, end: int, tail: int | None = None) -> Timeline:
        """What was known when `end` hours were: the future values are not in it. `tail` keeps only the last hours."""
        start = 0 if tail is None else max(end - tail, 0)
        return Timeline(self.values[start:end], self.local[start:], self.holiday[start:], self.extra[start:])

    def interpolated(self, end: int | None = None) -> Timeline:
        """The same with inner gaps under 3 h filled linearly; longer gaps stay NaN.

        With `end`, only from the first `end` hours: whoever forecasts from inside a gap does not know its other side.
        """
        if end is not None:
            filled = self.until(end).interpolated().values
            return replace(self, values=np.concatenate((filled, self.values[end:])))
        missing = np.isnan(self.values)
        if not missing.any():
            return self
        known = np.flatnonzero(~missing)
        if not len(known):
            return self
        after = np.searchsorted(known, np.arange(len(self.values)))
        inner = missing & (after > 0) & (after < len(known))
        span = np.zeros(len(self.values), dtype=np.int64)
        span[inner] = known[after[inner]] - known[after[inner] - 1] - 1
        short = inner & (span <= INTERPOLATED_HOURS)
        values = self.values.copy()
        values[short] = np.interp(np.flatnonzero(short), known, self.values[known])
        return replace(self, values=values)


@dataclass(frozen=True, slots=True)
class Fold:
    """Models are fitted on the hours before `start`, then asked at each of `origins` (known hours) without a refit."""

    start: int
    origins: tuple[int, ...]


class Model(Protocol):
    """One way to forecast. `fit` learns numbers; `predict` starts from whatever origin its timeline has.

    Because the origin comes with the call, newer counts move it without a refit.
    """

    name: ClassVar[str]
    min_hours: ClassVar[int]
    """Fewest known hours it is worth fitting on."""
    rolls_on: ClassVar[bool]
    """Whether `roll` leaves it fitted on everything, as `fit` would."""

    def fresh(self) -> Self:
        """One of the same configuration that has learned nothing."""

    def fit(self, past: Timeline) -> Self:
        """Learn from the known hours and return itself. May raise: the model is then left out."""

    def predict(self, past: Timeline, steps: int) -> Floats:
        """Tickets expected in each of the `steps` hours after the origin."""

    def next_hours(self, past: Timeline, origins: Sequence[int]) -> Floats:
        """Tickets expected in the first hour after each origin (a number of known hours), from what it has learned."""

    def roll(self, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        """Forecasts (origins x steps) as they would have been made, from nothing that was unknown then."""

    def to_state(self) -> State:
        """What was learned, as JSON values."""

    @classmethod
    def from_state(cls, state: State) -> Self: ...


class Plain:
    """What most models do alike: they have no configuration, and are asked origin by origin."""

    def fresh(self) -> Self:
        return type(self)()

    def next_hours(self: Any, past: Timeline, origins: Sequence[int]) -> Floats:
        return np.array([self.predict(past.until(origin), 1)[0] for origin in origins])


class Refitted(Plain):
    """`roll` for models that are cheap to fit anew for every fold."""

    rolls_on: ClassVar[bool] = False

    def roll(self: Any, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        rows = []
        for fold in folds:
            fitted = self.fit(past.until(fold.start))
            rows += [fitted.predict(past.until(origin), steps) for origin in fold.origins]
        return np.array(rows)


def profile(values: Floats, week: NDArray[np.int64], half_life_weeks: float | None = None) -> Floats:
    """The mean of each hour of the week (168 values); recent weeks weigh more if a half-life is given.

    An hour of the week leans on its hour of the day, and that on the overall mean, as strongly as half a sample does,
    so that a short history still gives a full week. All NaN gives zeros.
    """
    known = ~np.isnan(values)
    if not known.any():
        return np.zeros(WEEK)
    age = np.arange(len(values) - 1, -1, -1)[known]
    weight = np.ones(len(age)) if half_life_weeks is None else 0.5 ** (age / (WEEK * half_life_weeks))
    hour, seen = week[: len(values)][known], values[known]
    overall = float(np.average(seen, weights=weight))

    def lean(bins: NDArray[np.int64], count: int, prior: Floats | float) -> Floats:
        total = np.bincount(bins, weights=weight * seen, minlength=count)
        mass = np.bincount(bins, weights=weight, minlength=count)
        return np.asarray((total + 0.5 * prior) / (mass + 0.5), dtype=np.float64)

    by_day = lean(hour % 24, 24, overall)
    return lean(hour, WEEK, np.tile(by_day, 7))


def pack(values: Floats) -> list[Any]:
    """Numbers as JSON holds them: seven significant digits, NaN as null."""
    shortened: list[Any] = (
        np.vectorize(lambda value: None if np.isnan(value) else float(f"{value:.7g}"), otypes=[object])(values).tolist()
        if values.size
        else []
    )
    return shortened
