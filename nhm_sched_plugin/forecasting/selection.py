"""Which model serves which hours ahead, and how wide its intervals are: both read off the backtest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, Backtest, mape, wape
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.models.base import WEEK
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["Band", "Plan", "blended", "choose", "errors_by_horizon", "plan", "spread_of_sums", "uninformed"]

_POWERS: Final = (0.0, 0.5, 1.0)
"""How the spread may grow with the level: not at all, like a Poisson count's, or in proportion."""
_PRIOR: Final = {
    "ridge_log": 3.0,
    "ridge_robust": 2.0,
    "holt_winters": 2.0,
    "prophet_log": 1.0,
    "ridge_sqrt": 1.0,
    "ridge": 0.5,
    "arima": 1.0,
    "prophet": 0.5,
    "seasonal_mean": 0.5,
    "seasonal_naive": 0.5,
}
"""How much a model is worth before the backtest: read off many series, none of which is a benchmark's test stretch."""
_SHARPNESS: Final = 8.0
"""An error larger by a tenth costs somewhat more than half of the weight."""
_HALF_LIFE: Final = 0.5
"""What is left of the weight of an error after a week."""
_BLOCKS: Final = 8
_MOST: Final = 4
_LEAST: Final = 0.08
"""Least weight, of the largest one's."""
_NORMAL: Final = (-1.959964, -1.281552, 0.0, 1.281552, 1.959964)


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """The hours ahead up to `upto` (from the end of the band before): the models that serve them and their spread."""

    upto: int
    weights: dict[str, float]
    """Model -> its weight in the mean; they add up to 1."""
    power: float
    ratios: list[float]
    """At LEVELS: quantile = mean + ratio * max(mean, 1) ** power."""
    origins: int = 0
    """Backtest origins behind the ratios."""

    @property
    def method(self) -> str:
        return "+".join(sorted(self.weights))


def choose(backtest: Backtest, ends: Sequence[int]) -> tuple[list[Band], Floats]:
    """For each band of hours ahead the weights of the models and the spread of their mean, read off the backtest.

    A model's weight is its prior worth times `exp(-8 d)`, where `d` is how much larger the logarithm of its error is
    than the leading model's; a model that looks better is believed only beyond one standard error of that difference
    over blocks of origins. The error is the geometric mean of MAPE and WAPE (the mean absolute one where there is no
    MAPE). At most four models stay. `ends` are the last hours of the bands, rising, each at most MAX_LEAD.

    Also returns the mean (origins x hours) as it would have been served: each fold with weights from the others. The
    spread is that of its errors.
    """
    served = np.full_like(backtest.actual, np.nan)
    bands: list[Band] = []
    first = 0
    for end in ends:
        actual = backtest.actual[:, first:end]
        if not np.isfinite(actual).any() and bands:  # nothing to judge by that far ahead: as in the band before
            bands.append(msgspec.structs.replace(bands[-1], upto=end))
            part = {name: rows[:, first:end] for name, rows in backtest.forecasts.items()}
            served[:, first:end] = blended(part, bands[-1].weights)
        else:
            forecasts = {name: rows[:, first:end] for name, rows in backtest.forecasts.items()}
            for fold in np.unique(backtest.fold):
                inside = backtest.fold == fold
                others = ~inside if np.isfinite(actual[~inside]).any() else inside
                weights = _weights(actual[others], {name: rows[others] for name, rows in forecasts.items()})
                part = {name: rows[inside] for name, rows in forecasts.items()}
                served[inside, first:end] = blended(part, weights)
            power, ratios = _spread(actual, served[:, first:end], backtest.age)
            origins = int(np.isfinite(actual).any(axis=1).sum())
            weights = _weights(actual, forecasts)
            bands.append(Band(upto=end, weights=weights, power=power, ratios=ratios, origins=origins))
        first = end
    return bands, served


def spread_of_sums(backtest: Backtest, served: Floats, ends: Sequence[int]) -> list[Band]:
    """The same spread for the tickets of all hours up to each end, from the errors of those sums.

    Neighbouring hours err together, but not wholly: neither the sum of their quantiles nor of their variances fits.
    """
    bands: list[Band] = []
    for end in ends:
        actual, forecast = backtest.actual[:, :end].sum(axis=1), served[:, :end].sum(axis=1)
        if np.isfinite(actual).any():
            power, ratios = _spread(actual[:, None], forecast[:, None], backtest.age)
            bands.append(Band(upto=end, weights={}, power=power, ratios=ratios, origins=int(np.isfinite(actual).sum())))
    return bands


def _weights(actual: Floats, forecasts: Mapping[str, Floats]) -> dict[str, float]:
    """Model -> weight; they add up to 1, the largest first."""
    lead = max(forecasts, key=lambda name: _PRIOR.get(name, 1.0))
    blocks = [block for block in np.array_split(np.arange(len(actual)), _BLOCKS) if np.isfinite(actual[block]).any()]
    errors = {
        name: np.log([max(_error(actual[block], rows[block]), 1e-6) for block in blocks])
        for name, rows in forecasts.items()
    }
    worth = {}
    for name, error in errors.items():
        difference = error - errors[lead]
        doubt = float(np.std(difference)) / math.sqrt(len(blocks))
        mean = float(np.mean(difference))
        worth[name] = _PRIOR.get(name, 1.0) * math.exp(-_SHARPNESS * (mean if mean > 0 else min(mean + doubt, 0.0)))
    kept = sorted(worth, key=lambda name: -worth[name])[:_MOST]
    kept = [name for name in kept if worth[name] >= _LEAST * worth[kept[0]]]
    total = sum(worth[name] for name in kept)
    return {name: worth[name] / total for name in kept}


def blended(forecasts: Mapping[str, Floats], weights: Mapping[str, float]) -> Floats:
    """The weighted mean of some forecasts, on log(1 + count): no model that runs away takes the others along."""
    level = sum(weight * np.log1p(forecasts[name]) for name, weight in weights.items())
    return np.asarray(np.expm1(level), dtype=np.float64)


def _error(actual: Floats, forecast: Floats) -> float:
    relative, weighted = mape(actual, forecast), wape(actual, forecast)
    if math.isnan(relative) or math.isnan(weighted):
        return float(np.nanmean(np.abs(actual - forecast)))
    return math.sqrt(relative * weighted)


def _spread(actual: Floats, forecast: Floats, age: Floats) -> tuple[float, list[float]]:
    """Split conformal: empirical quantiles of scaled held-out errors, of the scale with the least pinball loss.

    Errors of `age` hours ago weigh half as much every week (Barber et al. 2023, "Conformal prediction beyond
    exchangeability"). Errors of one day go together, so the levels are moved outward as for two samples a day.
    """
    used = np.isfinite(actual)
    weight = np.broadcast_to(_HALF_LIFE ** (age / WEEK)[:, None], actual.shape)[used]
    truth, mean = actual[used], forecast[used]
    by_day = np.bincount((age // 24).astype(int), weights=_HALF_LIFE ** (age / WEEK)) / np.maximum(
        np.bincount((age // 24).astype(int)), 1
    )
    samples = 2.0 * float(by_day.sum() ** 2 / (by_day**2).sum())
    levels = [_outward(level, samples) for level in LEVELS]
    best: tuple[float, float, list[float]] = (math.inf, 0.0, [])
    for power in _POWERS:
        scale = np.maximum(mean, 1.0) ** power
        ratios = _weighted_quantiles((truth - mean) / scale, weight, levels)
        loss = sum(
            float(np.sum(weight * np.maximum(level * error, (level - 1) * error)))
            for level, ratio in zip(LEVELS, ratios, strict=True)
            for error in [truth - np.maximum(mean + ratio * scale, 0.0)]
        )
        if loss < best[0]:
            best = (loss, power, [float(ratio) for ratio in ratios])
    # A backtest across a level shift errs to one side only; the mean stays inside its own interval all the same.
    return best[1], [
        min(ratio, 0.0) if level < 0.5 else max(ratio, 0.0) if level > 0.5 else ratio
        for level, ratio in zip(LEVELS, best[2], strict=True)
    ]


def _weighted_quantiles(values: Floats, weight: Floats, levels: Sequence[float]) -> Floats:
    """Linear between the midpoints of the weights; weights alike give Hazen's plotting positions."""
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return np.interp(levels, (total - 0.5 * weight[order]) / total[-1], values[order])


def _outward(level: float, samples: float) -> float:
    """The conformal level `ceil((n + 1) q) / n` of an upper quantile, not rounded; mirrored for a lower one."""
    return min(max(0.5 + (level - 0.5) * (samples + 1) / samples, 0.0), 1.0)


def uninformed(values: Floats, fitted: Floats, weights: dict[str, float]) -> Band:
    """The one band of a history too short to backtest: normal quantiles, wider than the errors of the fit itself.

    The deviation is the greatest of a Poisson count's, 1.5 times that of the fit's errors, and, with less than a day
    of history, half of the mean.
    """
    known = np.isfinite(values)
    scale = np.sqrt(np.maximum(fitted[known], 1.0))
    deviation = 1.5 * float(np.sqrt(np.mean(((values[known] - fitted[known]) / scale) ** 2)))
    guess = 0.5 * math.sqrt(float(values[known].mean())) if known.sum() < 24 else 0.0
    ratios = [z * max(1.0, deviation, guess) for z in _NORMAL]
    return Band(upto=MAX_LEAD, weights=weights, power=0.5, ratios=ratios)


@dataclass(frozen=True, slots=True)
class Plan:
    """The bands, spread out over the hours ahead, so that a forecast is a few operations on arrays."""

    weights: Floats
    """Models x hours."""
    power: Floats
    """Hours x 1."""
    ratios: Floats
    """Hours x LEVELS."""

    def read(self, rows: Floats) -> tuple[Floats, Floats]:
        """Mean (hours) and quantiles (hours x LEVELS: not negative, and in order) of what the models (rows) expect."""
        steps = rows.shape[1]
        mean = np.expm1((self.weights[:, :steps] * np.log1p(rows)).sum(axis=0))
        return mean, self.quantiles(mean)

    def quantiles(self, mean: Floats) -> Floats:
        part, steps = mean[:, None], len(mean)
        spread = self.ratios[:steps] * np.maximum(part, 1.0) ** self.power[:steps]
        return np.maximum.accumulate(np.maximum(part + spread, 0.0), axis=1)


def plan(bands: Sequence[Band], names: Sequence[str], steps: int) -> Plan:
    """The last band goes on to the end."""
    of = np.minimum(np.searchsorted([band.upto for band in bands], np.arange(1, steps + 1)), len(bands) - 1)
    weights = np.array([[band.weights.get(name, 0.0) for name in names] for band in bands])
    power = np.array([[band.power] for band in bands])
    return Plan(weights[of].T, power[of], np.array([band.ratios for band in bands])[of])


def errors_by_horizon(actual: Floats, forecast: Floats, horizons: Sequence[int]) -> dict[str, tuple[float, float]]:
    """MAPE and WAPE over all hours up to each horizon (minutes)."""
    ends = {horizon: min(math.ceil(horizon / 60), MAX_LEAD) for horizon in horizons}
    return {
        str(horizon): (mape(actual[:, :end], forecast[:, :end]), wape(actual[:, :end], forecast[:, :end]))
        for horizon, end in ends.items()
    }
