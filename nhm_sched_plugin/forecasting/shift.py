"""Is the forecast off right now, and by how much? Level shifts, outages and drift from the counts of the last hours.

Pure, standard library only, plain floats: hosts run it beside the forecast table, training beside numpy arrays.
docs/live-forecast.md gives the formulas; the sources are named at each constant.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from nhm_sched_plugin.forecasting.correction import LEADS, MAX_FACTOR, UNCORRECTED, Correction, corrected
from nhm_sched_plugin.forecasting.intervals import LEVELS

__all__ = [
    "DRIFT_LIMIT",
    "LEADS",
    "MAX_FACTOR",
    "UNCORRECTED",
    "Correction",
    "Hour",
    "LevelWatch",
    "Running",
    "corrected",
    "correction",
    "pit",
]

_OFFSET: Final = 0.5
"""Added to counts before the logarithm, so that an empty hour has one."""
_MOST_LOG: Final = math.log(MAX_FACTOR)
_LEAST_SPREAD: Final = 0.03
"""Of the log of a count: nobody forecasts better than to 3 %, so no smaller error is evidence."""
_Z90: Final = 1.281552
"""Distance of the 0.9 quantile from the mean in standard deviations."""

# Continuous correction: an exponentially weighted mean of the log errors (Kalman filter of a local level in its steady
# state, Harvey 1989, 4.1), each clipped as Huber (1964) has it; persistence by shrunken regression.
_GAIN: Final = 0.6
_CLIP: Final = 2.5
"""Spreads beyond which an error counts no more: a single wild hour moves the level by half of that at most."""
_PRIOR_PERSISTENCE: Final = (0.35, 0.25, 0.18, 0.1, 0.05, 0.02)
"""Share of the level's error left after each of `LEADS`, until the series itself has shown it."""
_PRIOR_WEIGHT: Final = 12.0
"""Of that, in squared spreads: about two days of the series' own evidence."""
_WITHIN_HOUR: Final = 0.3
"""Spread of the rate within an hour, in log units."""
_LEAST_PART: Final = 0.25
"""Of the running hour; less says nothing."""
_MEMORY: Final = 0.5 ** (1 / 336)
"""What an hour leaves of the evidence before it: half is forgotten in two weeks."""

# Level shift: window-limited generalised likelihood ratio (Willsky & Jones 1976, Lai 1995) on standardised errors.
_WINDOWS: Final = (2, 3, 4)
"""Hours over which the mean error is tested; two at least, so that one wild hour is no shift."""
_SHIFT_LIMIT: Final = 3.4
"""Standard deviations of that mean. Simulated: 0.3 to 1 false alarms in 4 weeks of normal errors, whatever their
correlation; asking for `_LEAST_SHIFT` too leaves fewer."""
_SHIFT_CLIP: Final = 4.5
"""Of a single hour's error."""
_SAME_SIDE: Final = 0.7
"""Deviations that every hour of the window must be off to that side: one wild hour is no shift."""
_HINT_FROM: Final = 1.8
"""Deviations from which on the correction goes part of the way to the least that all of the window's hours show."""
_LEAST_WEIGHT: Final = 1.5
"""Hours of evidence that the window must hold; the running hour counts as far as it is over."""
_LEAST_SHIFT: Final = math.log(1.3)
"""Smaller shifts are not called one; the continuous correction follows them."""
_SHIFT_PRIOR: Final = 0.7
"""Standard deviation of the log size of shifts: about that of a doubling."""
_SHIFT_GAINS: Final = (0.6, 0.6, 0.6, 0.45, 0.3)
"""How far an hour moves the size of a shift, by the shift's age in hours."""
_SHIFT_HALF_LIFE: Final = 6.0
"""Hours; a shift is taken to last as long again as it has lasted (Gott 1993), and at least this."""
_END_CLIP: Final = 3.0
_END_LIMIT: Final = 2.0
"""Log likelihood ratio of "over" against "goes on" at which a shift is over."""

# Outage: silence where the forecast's lower bound promised tickets; how long it lasts is Pareto, the exponent 2.
_OUTAGE_EVIDENCE: Final = 10.0
"""Tickets missed at the lower end of the 95 % interval: a Poisson silence of that size has probability e^-10."""
_OUTAGE_SHARE: Final = 0.02
"""An hour with less than this share of what was expected counts as silent."""
_OUTAGE_LEAST_H: Final = 1.25
"""Silence up to now that is no outage yet: jobs that start on the hour are silent until the next one."""

# Drift: CUSUM (Page 1954) of the distance of the PIT from the middle; Dawid 1984: PITs of a good forecast are uniform.
# The distance |2 PIT - 1| is 0.5 on average.
_DRIFT_SLACK: Final = 0.2
DRIFT_LIMIT: Final = 12.0
"""Each hour outside its interval adds 0.3 at most: reached after 40 of them in a row, later by milder ones."""
_SIDE_GAIN: Final = 0.05
_ONE_SIDED: Final = 0.5
"""Mean of 2 PIT - 1 from which on the errors lie on one side."""


class Hour(NamedTuple):
    """One completed hour."""

    actual: float | None
    """Tickets that came; None when nobody knows."""
    mean: float
    """Tickets that were forecast."""
    quantiles: Sequence[float]
    """The same at `intervals.LEVELS`."""


class Running(NamedTuple):
    """The hour that is not over yet."""

    actual: float
    """Tickets so far."""
    elapsed: float
    """Part of the hour that is over, in [0, 1]."""
    mean: float
    """Tickets forecast for the whole hour."""
    quantiles: Sequence[float]
    silent: float = 0.0
    """Hours since the last ticket, up to now."""


def pit(actual: float, quantiles: Sequence[float]) -> float:
    """P(forecast <= actual), linear between the quantiles, in [0, 1]; in the middle of a jump (Czado et al. 2009)."""
    top = quantiles[-1]
    if actual > top:
        spread = top - quantiles[-2]
        return 1.0 - (1.0 - LEVELS[-1]) * math.exp(-math.log(4) * (actual - top) / spread) if spread > 0 else 1.0
    ends = [(0.0, 0.0), *zip(LEVELS, quantiles, strict=True)]
    same = [level for level, value in ends if value == actual]
    if same:
        return (same[0] + (1.0 if actual == top and len(same) > 1 else same[-1])) / 2
    for (low, a), (high, b) in pairwise(ends):
        if a < actual < b:
            return low + (high - low) * (actual - a) / (b - a)
    return 0.5


class LevelWatch:
    """Follows one series of counts beside its forecast, an hour at a time; a few dozen numbers, whatever its age."""

    def __init__(self) -> None:
        self.hours = 0
        """Completed hours with a known count so far."""
        self.drift = self._side = 0.0
        """The drift statistic; the forecast has drifted from `DRIFT_LIMIT` on."""
        self._scale, self._scale_n = 0.0, 0.0
        self._together = 0.0
        self._waiting: list[float] = []
        self._moments = [(0.0, 0.0)] * len(LEADS)
        self._levels: list[float | None] = []
        self.restart()

    def restart(self, *, keep_drift: bool = False) -> None:
        """Begin anew with what was learned about the errors kept: a new forecast knows the hours so far.

        `keep_drift`: it comes from the same models, moved to newer counts.
        """
        if not keep_drift:
            self.drift = self._side = 0.0
        self._level = 0.0
        self._tail: list[tuple[float, float, float, float]] = []
        self._shift: float | None = None
        self._hint = (0.0, 0.0)
        self._age = 0
        self._over = 0.0
        self._silent_h, self._missed = 0.0, 0.0
        self._levels = []

    @property
    def drift_reason(self) -> str:
        """Which way it drifted, in plain words."""
        if abs(self._side) < _ONE_SIDED:
            return "errors are larger than promised"
        return f"counts stay {'above' if self._side > 0 else 'below'} the forecast"

    @property
    def settled(self) -> bool:
        """Nothing unusual is going on: neither a shift nor an outage."""
        return self._shift is None and self._missed < _OUTAGE_EVIDENCE

    def observe(self, hour: Hour) -> None:
        """Take a completed hour in, in order. An hour without a count is skipped, and only makes the level fade."""
        if hour.actual is None or not _usable(hour.actual, hour.mean, hour.quantiles):
            self._skip()
            return
        if self._silence(hour):
            self._skip()
            return
        self.hours += 1
        error, spread, side = _error(hour.actual, hour.mean, hour.quantiles)
        self._learn_persistence(error, spread)
        self._watch_drift(hour)
        self._follow(error, spread, side, 1.0, 1.0)
        self._learn_scale(error / side)
        self._levels = [*self._levels[-(LEADS[-1] - 1) :], self._level]

    def correction(self, running: Running | None = None) -> Correction:
        """What the hours so far, and the running one, say about the hours ahead."""
        if running is None or not _usable(running.actual, running.mean, running.quantiles):
            return self._correction()
        part = min(max(running.elapsed, 0.0), 1.0)
        trial = copy.copy(self)
        if running.actual <= _OUTAGE_SHARE * running.mean * part:
            silent = max(running.silent, self._silent_h + part)
            missed = self._missed + part * running.quantiles[0]
        else:
            trial._silent_h = trial._missed = 0.0
            silent, missed = running.silent, min(running.silent, part) * running.quantiles[0]
        if missed >= _OUTAGE_EVIDENCE and silent >= _OUTAGE_LEAST_H:
            return Correction(outage_h=silent, kind="outage", since=silent)
        if part >= _LEAST_PART and running.actual > _OUTAGE_SHARE * running.mean * part:
            trial._take_part(running, part)
        return trial._correction()

    def _take_part(self, running: Running, part: float) -> None:
        """Part of an hour says less: fewer tickets, and where in the hour they come is unknown."""
        error, spread, side = _error(running.actual / part, running.mean, running.quantiles)
        more = (1.0 - part) / part * (_WITHIN_HOUR**2 + 1.0 / (running.mean + _OFFSET))
        weight = part * spread**2 / (spread**2 + more)
        self._follow(error, math.hypot(spread, math.sqrt(more)), math.hypot(side, math.sqrt(more)), weight, part)

    # The parts, in the order in which an hour passes through them

    def _silence(self, hour: Hour) -> bool:
        """Whether the hour belongs to an outage (noticed, or in the making)."""
        actual = hour.actual or 0.0
        if actual <= _OUTAGE_SHARE * hour.mean and hour.quantiles[0] > 0:
            self._silent_h += 1.0
            self._missed += hour.quantiles[0]
            return self._missed >= _OUTAGE_EVIDENCE
        if hour.mean > 2 * _OFFSET or actual > 0:
            self._silent_h = self._missed = 0.0
        return False

    def _skip(self) -> None:
        self._level *= self._persistence()[0]
        self._tail, self._hint = [], (0.0, 0.0)
        self._levels = [*self._levels[-(LEADS[-1] - 1) :], None]
        self._age += self._shift is not None

    def _learn_persistence(self, error: float, spread: float) -> None:
        """Regress the error on the level that was known `lead` hours before."""
        now = _clipped(error, _CLIP * spread * self._width())
        for i, lead in enumerate(LEADS):
            then = self._levels[-lead] if len(self._levels) >= lead else None
            if then is not None:
                both, square = self._moments[i]
                unit = (spread * self._width()) ** 2
                self._moments[i] = (_MEMORY * both + then * now / unit, _MEMORY * square + then * then / unit)

    def _persistence(self) -> tuple[float, ...]:
        result: list[float] = []
        for (both, square), prior in zip(self._moments, _PRIOR_PERSISTENCE, strict=True):
            value = (both + _PRIOR_WEIGHT * prior) / (square + _PRIOR_WEIGHT)
            result.append(min(max(value, 0.0), result[-1] if result else 1.0))
        return tuple(result)

    def _width(self) -> float:
        """How much wider the errors are than the quantiles promised; at least 1."""
        return math.sqrt(max((24.0 + self._scale) / (24.0 + self._scale_n), 1.0))

    def _learn_scale(self, unit_error: float) -> None:
        """Twelve hours late, so that a shift cannot pass for the usual spread while it is being looked for."""
        self._waiting = [*self._waiting, unit_error]
        if len(self._waiting) <= _WINDOWS[-1]:
            return
        x, after = (_clipped(value, 4.0 * self._width()) for value in self._waiting[:2])
        self._scale, self._scale_n = _MEMORY * self._scale + x * x, _MEMORY * self._scale_n + 1.0
        self._together = _MEMORY * self._together + x * after
        self._waiting = self._waiting[1:]

    def _alike(self) -> float:
        """Correlation of the errors of two hours in a row, in [0, 1)."""
        return min(max((self._together + 10.0) / (self._scale + 24.0), 0.0), 0.95)

    def _follow(self, error: float, spread: float, side: float, weight: float, part: float) -> None:
        """Level and shift take the error of an hour in, of which `part` is over; it moves the level by `weight`."""
        wide = side * self._width()
        self._level += weight * _GAIN * (_clipped(error, _CLIP * spread * self._width()) - self._level)
        if self._shift is not None:
            self._go_on(error, wide, part)
            return
        self._tail = [*self._tail[1 - _WINDOWS[-1] :], (_clipped(error / wide, _SHIFT_CLIP), error, part, wide)]
        self._new_shift()

    def _new_shift(self) -> None:
        """Sets `_shift` where the last hours prove one, else `_hint`: how near they are, and its least log size."""
        alike = self._alike()
        self._hint = (0.0, 0.0)
        for count in _WINDOWS[: bisect.bisect(_WINDOWS, len(self._tail))]:
            hours = self._tail[-count:]
            weight = sum(hour[2] for hour in hours)
            mean = sum(hour[0] * hour[2] for hour in hours) / weight
            least = min(math.copysign(hour[0], hour[0] * mean) for hour in hours)
            if weight < _LEAST_WEIGHT or least < _SAME_SIDE:
                continue
            # Errors in a row are alike (AR(1)): their mean varies as that of fewer independent ones.
            rest = sum((count - lag) * alike**lag for lag in range(1, count))
            deviation = math.sqrt((1.0 + 2.0 * rest / count) / count) * math.sqrt(count / weight)
            log = sum(_clipped(hour[1], _MOST_LOG) * hour[2] for hour in hours)
            log = _clipped(log / (weight + (hours[-1][3] / _SHIFT_PRIOR) ** 2), _MOST_LOG)
            if abs(log) < _LEAST_SHIFT:
                continue
            proof = abs(mean) / deviation
            if proof >= _SHIFT_LIMIT:
                self._shift, self._age, self._over = log, count, 0.0
                return
            surely = min((_clipped(hour[1], _MOST_LOG) for hour in hours), key=abs)
            self._hint = max(self._hint, ((proof - _HINT_FROM) / (_SHIFT_LIMIT - _HINT_FROM), surely))

    def _go_on(self, error: float, wide: float, weight: float) -> None:
        shift = self._shift or 0.0
        ratio = ((error - shift) ** 2 - error**2) / (2 * wide**2)
        self._over = max(self._over + weight * _clipped(ratio, _END_CLIP), 0.0)
        if self._over >= _END_LIMIT:
            self._shift, self._age = None, 0
            self._level = _clipped(error, wide)
            self._tail, self._hint = [], (0.0, 0.0)
            return
        gain = weight * _SHIFT_GAINS[min(self._age, len(_SHIFT_GAINS) - 1)]
        self._shift = _clipped(shift + gain * (_clipped(error, _MOST_LOG) - shift), _MOST_LOG)
        self._age += weight == 1.0

    def _watch_drift(self, hour: Hour) -> None:
        side = 2.0 * pit(hour.actual or 0.0, hour.quantiles) - 1.0
        self.drift = max(self.drift + abs(side) - 0.5 - _DRIFT_SLACK, 0.0)
        self._side += _SIDE_GAIN * (side - self._side)

    @staticmethod
    def _lasting(half_life: float) -> tuple[float, ...]:
        return tuple(math.pow(0.5, (lead - 1) / half_life) for lead in LEADS)

    def _correction(self) -> Correction:
        if self._missed >= _OUTAGE_EVIDENCE:
            return Correction(outage_h=self._silent_h, kind="outage", since=self._silent_h)
        learned = self._persistence()
        if self._shift is not None:
            age = float(self._age)
            lasting = tuple(map(max, self._lasting(max(_SHIFT_HALF_LIFE, age)), learned))
            kind = "shift_up" if self._shift > 0 else "shift_down"
            return Correction(self._shift, lasting, 0.0, abs(self._shift) / (1.0 + age), kind, age)
        level, (near, size) = _clipped(self._level, _MOST_LOG), self._hint
        if near > 0 and size * level > 0:  # nearly a shift: part of the way there
            both = zip(learned, self._lasting(_SHIFT_HALF_LIFE), strict=True)
            most = math.copysign(max(abs(level), abs(size)), level)
            moved = ((own * level, (1.0 - near) * own * level + near * other * size) for own, other in both)
            level, learned = most, tuple(max(pair, key=abs) / most for pair in moved)
        return Correction(level, learned) if level else UNCORRECTED


def correction(hours: Iterable[Hour], running: Running | None = None) -> Correction:
    """The same at once: `hours` oldest first, without holes (an unknown hour has `actual=None`)."""
    watch = LevelWatch()
    for hour in hours:
        watch.observe(hour)
    return watch.correction(running)


def _error(actual: float, mean: float, quantiles: Sequence[float]) -> tuple[float, float, float]:
    """Log of actual over forecast, the spread it was expected to have, and that on its own side of the forecast."""
    error = math.log((actual + _OFFSET) / (mean + _OFFSET))
    spread = math.log((quantiles[3] + _OFFSET) / (quantiles[1] + _OFFSET)) / (2 * _Z90)
    end = max(quantiles[3], mean) if error > 0 else min(quantiles[1], mean)
    side = abs(math.log((end + _OFFSET) / (mean + _OFFSET))) / _Z90
    return error, max(spread, _LEAST_SPREAD), max(side, _LEAST_SPREAD)


def _usable(actual: float, mean: float, quantiles: Sequence[float]) -> bool:
    numbers = (actual, mean, *quantiles)
    return len(quantiles) == len(LEVELS) and all(math.isfinite(number) and number >= 0 for number in numbers)


def _clipped(value: float, most: float) -> float:
    return max(-most, min(most, value))
