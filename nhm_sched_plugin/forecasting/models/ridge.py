"""Direct ridge regression: for each hour ahead a linear model on recent shocks, lags, profiles and calendar.

Everything is a deviation from a causal profile (`profiles`), so the penalty falls back to what the hour usually brings.
The penalty grows with the hours ahead: neighbouring errors overlap there, and a row says less. Normal equations are
summed up once; weights for any earlier end of the history come from the sums up to there, which makes a rolling
backtest cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK, Fold, Plain, State, Timeline, pack
from nhm_sched_plugin.forecasting.models.design import DAYS, SHORT, Design, short_columns
from nhm_sched_plugin.forecasting.models.profiles import Anchors, Profiles, pack_anchors, slots_of, unpack_anchors
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["LogRidge", "Ridge", "RobustRidge", "SqrtRidge"]

_PENALTY: Final = 0.03
"""Ridge penalty per row, on standardised columns."""
_PRIOR_ROWS: Final = 60.0
"""Rows that the penalty is worth besides, for each hour ahead."""
_MIN_ROWS: Final = 100
_EVERY_ROW: Final = 26 * WEEK
_HISTORY: Final = 65 * WEEK
"""Hours learned from: a year and a quarter. What was before misleads more than it teaches."""
_STRIDE: Final = 5
"""Of rows older than `_EVERY_ROW` only every fifth is used."""
_LONG_STRIDE: Final = 13
_MEMORY: Final = 8 * WEEK
"""Hours before the origin that a prediction looks at; what was before is in the anchors of the profiles."""
_FADE: Final = 0.8
"""What is left of the deviation a week later, beyond the seventh day ahead."""
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]


class Ridge(Plain):
    """On counts. `LogRidge`, `SqrtRidge` and `RobustRidge` are the same on other scales."""

    name: ClassVar[str] = "ridge"
    min_hours: ClassVar[int] = 2 * WEEK
    rolls_on: ClassVar[bool] = True
    _clip: ClassVar[float | None] = None
    """Shocks beyond that many robust deviations are cut before they are learned from; None: never."""

    def __init__(self) -> None:
        self._scale = 1.0
        self._mean = 0.0
        self._limit = np.inf
        self._anchor = 0
        self._anchors: Anchors = {}
        self._short: list[Floats] = []
        """For each hour ahead the weights of its columns, the constant last."""
        self._long: dict[int, Floats] = {}

    def fit(self, past: Timeline) -> Self:
        past = past.interpolated()
        past = past.until(len(past), _HISTORY)
        self._calibrate(past.values)
        self._learn(past, len(past), [])
        return self

    def roll(self, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        """Forecasts (origins x steps) with weights from before each fold; afterwards it is fitted on all of `past`."""
        start = folds[0].start
        past = past.interpolated(start)
        cut = max(start - _HISTORY, 0)
        past = past.until(len(past), len(past) - cut)
        folds = [Fold(fold.start - cut, tuple(origin - cut for origin in fold.origins)) for fold in folds]
        self._calibrate(past.values[: start - cut])
        rows: Floats = np.concatenate(self._learn(past, start - cut, folds, steps))
        return rows

    def predict(self, past: Timeline, steps: int) -> Floats:
        past, anchors = self._recent(past.interpolated())
        design = self._design(past, anchors)
        row: Floats = self._ahead(design, np.array([len(past) - 1]), self._short, self._long, steps)[0]
        return row

    def next_hours(self, past: Timeline, origins: Sequence[int]) -> Floats:
        recent, anchors = self._recent(past)
        last = np.array(origins) - 1 - (len(past) - len(recent))
        row: Floats = self._ahead(self._design(recent, anchors), last, self._short, {}, 1)[:, 0]
        return row

    # -- scale and profiles

    def _forward(self, values: Floats) -> Floats:
        return values / self._scale

    def _backward(self, level: Floats) -> Floats:
        return np.maximum(level, 0.0) * self._scale

    def _calibrate(self, values: Floats) -> None:
        """The few numbers about the whole history; only from hours that are known at the first origin."""
        if not np.isfinite(values).any():
            raise ValueError("no hour is known")
        self._scale = max(float(np.nanmean(values)), 1e-9)
        level = self._forward(values)
        head = level[:WEEK]
        self._mean = float(np.nanmean(head if np.isfinite(head).any() else level))

    def _design(self, past: Timeline, anchors: Anchors, known: int | None = None) -> Design:
        """The columns of `past`; with `known`, the limit of the shocks is set by that many first hours."""
        slots = slots_of(past)

        def cut(shock: Floats) -> Floats:
            if known is not None:
                spread = float(np.nanmedian(np.abs(shock[:known]))) if np.isfinite(shock[:known]).any() else 0.0
                self._limit = (self._clip or 0.0) * 1.4826 * max(spread, 1e-9)
            return np.clip(shock, -self._limit, self._limit)

        level = self._forward(past.values)
        profiles = Profiles.of(level, slots, self._mean, anchors, None if self._clip is None else cut)
        return Design(profiles, slots, past.holiday, past.extra)

    # -- learning

    def _learn(self, past: Timeline, known: int, folds: Sequence[Fold], steps: int = 0) -> list[Floats]:
        """Sum up the normal equations, stopping at each fold to forecast its origins; keep the weights of the end."""
        design = self._design(past, {}, known)
        level = self._forward(past.values)
        rows = _Rows(design, level)
        forecasts = []
        for fold in folds:
            short, long = rows.weights(fold.start)
            forecasts.append(self._ahead(design, np.array(fold.origins) - 1, short, long, steps))
        self._short, self._long = rows.weights(len(past))
        if not self._short:
            raise ValueError(f"{int(np.isfinite(level).sum())} known hours are too few for a ridge regression")
        self._keep(past, design)
        return forecasts

    def _keep(self, past: Timeline, design: Design) -> None:
        """Anchors from before the hours that a prediction will look at."""
        start = max(len(past) - _MEMORY, 0)
        self._anchor = int(past.local[start])
        self._anchors = design.profiles.anchors(start) if start else {}

    def _recent(self, past: Timeline) -> tuple[Timeline, Anchors]:
        """What a prediction looks at, and the profiles' sums from before it."""
        start = int(np.searchsorted(past.local[: len(past)], self._anchor))
        if start > len(past) - WEEK:  # an origin from before the fit
            return past, {}
        return past.until(len(past), len(past) - start), self._anchors

    # -- forecasting

    def _ahead(self, design: Design, last: Ints, short: list[Floats], long: dict[int, Floats], steps: int) -> Floats:
        """Forecasts (origins x steps) after the hours `last`."""
        count = len(last)
        lead = np.arange(1, steps + 1)
        level = design.profiles.base[np.minimum(last[:, None] + lead[None, :], len(design.profiles.base) - 1)]
        if short:
            columns = design.short(last)
            for hour, weights in enumerate(short[:steps], start=1):
                chosen = columns[:, short_columns(hour, design.extra.shape[1])]
                level[:, hour - 1] += chosen @ weights[:-1] + weights[-1]
        deviation = np.zeros((count, SHORT))
        for day in DAYS:
            hours = np.arange(SHORT * (day - 1) + 1, SHORT * day + 1)
            hours = hours[hours <= max(steps, 1)]
            if day not in long or not len(hours):
                break
            leads = np.tile(hours, count)
            rows, base = design.long(np.repeat(last, len(hours)), leads, day)
            deviation = (rows @ long[day][:-1] + long[day][-1]).reshape(count, -1)
            level[:, hours - 1] = base.reshape(count, -1) + deviation
        beyond = lead[WEEK:]
        if len(beyond):
            weeks = (beyond - 1) // WEEK
            level[:, WEEK:] += deviation.mean(axis=1)[:, None] * _FADE ** weeks[None, :]
        return self._backward(level)

    # -- state

    def to_state(self) -> State:
        return {
            "scale": self._scale,
            "mean": self._mean,
            "limit": None if np.isinf(self._limit) else self._limit,
            "anchor": self._anchor,
            "anchors": pack_anchors(self._anchors),
            "short": [pack(weights) for weights in self._short],
            "long": {str(day): pack(weights) for day, weights in self._long.items()},
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        model = cls()
        model._scale, model._mean = float(state["scale"]), float(state["mean"])
        model._limit = np.inf if state["limit"] is None else float(state["limit"])
        model._anchor, model._anchors = int(state["anchor"]), unpack_anchors(state["anchors"])
        short: list[list[Any]] = state["short"]
        model._short = [np.array(weights, dtype=np.float64) for weights in short]
        long: dict[str, list[Any]] = state["long"]
        model._long = {int(day): np.array(weights, dtype=np.float64) for day, weights in long.items()}
        return model


class LogRidge(Ridge):
    """On log(1 + count), which suits traffic that swings by factors."""

    name = "ridge_log"

    def _forward(self, values: Floats) -> Floats:
        return np.log1p(values)

    def _backward(self, level: Floats) -> Floats:
        return np.expm1(np.clip(level, 0.0, 40.0))


class RobustRidge(LogRidge):
    """The same, with shocks cut at four robust deviations: spikes that mean nothing for the hours after them."""

    name = "ridge_robust"
    _clip = 4.0


class SqrtRidge(Ridge):
    """On square roots, which steady counts whose variance grows with their mean."""

    name = "ridge_sqrt"

    def _forward(self, values: Floats) -> Floats:
        return np.sqrt(values / self._scale)

    def _backward(self, level: Floats) -> Floats:
        return np.asarray(self._scale * np.maximum(level, 0.0) ** 2, dtype=np.float64)


@dataclass(slots=True)
class _Moments:
    """Sums over rows: columns by columns, columns by targets, columns, targets, and the number of rows."""

    gram: Floats
    cross: Floats
    columns: Floats
    targets: Floats
    count: float

    @classmethod
    def of(cls, rows: Singles, target: Floats) -> _Moments:
        used = np.isfinite(target).all(axis=1)
        if not used.all():
            rows, target = rows[used], target[used]
        single = target.astype(np.float32)
        return cls(
            (rows.T @ rows).astype(np.float64),
            (rows.T @ single).astype(np.float64),
            rows.sum(axis=0, dtype=np.float64),
            target.sum(axis=0),
            float(len(rows)),
        )

    def plus(self, other: _Moments) -> _Moments:
        return _Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.columns + other.columns,
            self.targets + other.targets,
            self.count + other.count,
        )


class _Rows:
    """The training rows of a history, summed up as far as they are known."""

    def __init__(self, design: Design, level: Floats) -> None:
        self._design = design
        self._extra = design.extra.shape[1]
        count = len(level)
        first = max(min(WEEK, count // 4), 1)
        recent = np.arange(max(first, count - _EVERY_ROW), count)
        older = np.arange(first, max(first, count - _EVERY_ROW), _STRIDE)
        self._last = np.concatenate((older, recent))
        """Last known hour of each row's origin."""
        self._level = np.concatenate((level, np.full(WEEK, np.nan)))
        self._at = dict.fromkeys((1, *DAYS), 0)
        self._moments: dict[int, _Moments] = {}

    def weights(self, end: int) -> tuple[list[Floats], dict[int, Floats]]:
        """What the rows teach whose targets are known when `end` hours are; ends must not fall."""
        long = {}
        for day in DAYS:
            moments = self._sum(day, end)
            if moments is not None and moments.count >= _MIN_ROWS:
                long[day] = _solve(moments, np.arange(len(moments.columns)), 0, SHORT * day)
        moments = self._sum(1, end)
        if moments is None or moments.count < _MIN_ROWS:
            return [], {}
        return [_solve(moments, short_columns(lead, self._extra), lead - 1, lead) for lead in range(1, SHORT + 1)], long

    def _sum(self, day: int, end: int) -> _Moments | None:
        stop = int(np.searchsorted(self._last, end - SHORT * day))
        new = self._last[self._at[day] : stop]
        if len(new):
            moments = self._short(new) if day == 1 else self._long(new[::_LONG_STRIDE], day)
            self._moments[day] = self._moments[day].plus(moments) if day in self._moments else moments
            self._at[day] = stop
        return self._moments.get(day)

    def _short(self, last: Ints) -> _Moments:
        ahead = last[:, None] + np.arange(1, SHORT + 1)[None, :]
        return _Moments.of(self._design.short(last), self._level[ahead] - self._design.profiles.base[ahead])

    def _long(self, last: Ints, day: int) -> _Moments:
        leads = np.arange(SHORT * (day - 1) + 1, SHORT * day + 1)
        origin, lead = np.repeat(last, SHORT), np.tile(leads, len(last))
        rows, base = self._design.long(origin, lead, day)
        return _Moments.of(rows, (self._level[origin + lead] - base)[:, None])


def _solve(moments: _Moments, columns: Ints, target: int, reach: int) -> Floats:
    """Ridge weights of some columns, penalised as if those were standardised; the last, constant one shrinks too."""
    count = moments.count
    middle, centre = moments.columns[columns] / count, float(moments.targets[target]) / count
    covariance = moments.gram[np.ix_(columns, columns)] / count - np.outer(middle, middle)
    toward = moments.cross[columns, target] / count - middle * centre
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    spread[spread < 1e-4] = np.inf  # a column that never moves gets no weight
    prior = _PRIOR_ROWS * reach
    covariance /= np.outer(spread, spread)
    covariance[np.diag_indices_from(covariance)] = 1.0 + _PENALTY + prior / count
    weights = np.linalg.solve(covariance, toward / spread) / spread
    return np.append(weights, (centre - middle @ weights) * count / (count + prior))
