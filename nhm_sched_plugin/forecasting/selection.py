"""Which model serves which hours ahead, and how wide its intervals are: both read off the backtest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final

import msgspec
import numpy as np

from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, Backtest, mape, wape
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["Band", "blended", "choose", "errors_by_horizon", "quantile_rows", "uninformed"]

_POWERS: Final = (0.0, 0.5, 1.0)
"""How the spread may grow with the level: not at all, like a Poisson count's, or in proportion."""
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


def choose(backtest: Backtest, ends: Sequence[int], preferred: str) -> list[Band]:
    """For each band of hours ahead the model, or the even mean of two, with the least error in the backtest.

    The error is the geometric mean of MAPE and WAPE over the band's hours (WAPE alone where there is no MAPE).
    `preferred` wins ties. `ends` are the last hours of the bands, rising, each at most MAX_LEAD.
    """
    names = sorted(backtest.forecasts, key=lambda name: name != preferred)
    mixes = [{name: 1.0} for name in names] + [{a: 0.5, b: 0.5} for a, b in combinations(names, 2)]
    bands: list[Band] = []
    first = 0
    for end in ends:
        actual = backtest.actual[:, first:end]
        seen = np.isfinite(actual).any()
        if not seen and bands:  # nothing to judge by that far ahead: as in the band before
            bands.append(msgspec.structs.replace(bands[-1], upto=end))
        else:
            forecasts = {name: rows[:, first:end] for name, rows in backtest.forecasts.items()}
            weights = min(mixes, key=lambda mix: _error(actual, blended(forecasts, mix)))
            power, ratios = _spread(actual, blended(forecasts, weights))
            origins = int(np.isfinite(actual).any(axis=1).sum())
            bands.append(Band(upto=end, weights=weights, power=power, ratios=ratios, origins=origins))
        first = end
    return bands


def blended(forecasts: dict[str, Floats], weights: dict[str, float]) -> Floats:
    """The weighted mean of some models' forecasts."""
    return np.asarray(sum(weight * forecasts[name] for name, weight in weights.items()), dtype=np.float64)


def _error(actual: Floats, forecast: Floats) -> float:
    relative, weighted = mape(actual, forecast), wape(actual, forecast)
    if math.isnan(relative) or math.isnan(weighted):
        return float(np.nanmean(np.abs(actual - forecast)))
    return math.sqrt(relative * weighted)


def _spread(actual: Floats, forecast: Floats) -> tuple[float, list[float]]:
    """Split conformal: empirical quantiles of scaled held-out errors, of the scale with the least pinball loss.

    Errors of one origin go together, so the levels are moved outward as for as many samples as there are origins.
    """
    used = np.isfinite(actual)
    origins = max(int(used.any(axis=1).sum()), 1)
    truth, mean = actual[used], forecast[used]
    levels = [_outward(level, origins) for level in LEVELS]
    best: tuple[float, float, list[float]] = (math.inf, 0.0, [])
    for power in _POWERS:
        scale = np.maximum(mean, 1.0) ** power
        ratios = np.quantile((truth - mean) / scale, levels)
        loss = sum(
            float(np.mean(np.maximum(level * error, (level - 1) * error)))
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


def _outward(level: float, samples: int) -> float:
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


def quantile_rows(mean: Floats, bands: Sequence[Band]) -> Floats:
    """Quantiles (columns, at LEVELS) of each hour ahead (rows): not negative, and in order."""
    rows = np.empty((len(mean), len(LEVELS)))
    first = 0
    for i, band in enumerate(bands):
        end = len(mean) if i == len(bands) - 1 else min(band.upto, len(mean))
        part = mean[first:end, None]
        rows[first:end] = part + np.array(band.ratios)[None, :] * np.maximum(part, 1.0) ** band.power
        first = end
    return np.maximum.accumulate(np.maximum(rows, 0.0), axis=1)


def errors_by_horizon(actual: Floats, forecast: Floats, horizons: Sequence[int]) -> dict[str, tuple[float, float]]:
    """MAPE and WAPE over all hours up to each horizon (minutes)."""
    ends = {horizon: min(math.ceil(horizon / 60), MAX_LEAD) for horizon in horizons}
    return {
        str(horizon): (mape(actual[:, :end], forecast[:, :end]), wape(actual[:, :end], forecast[:, :end]))
        for horizon, end in ends.items()
    }
