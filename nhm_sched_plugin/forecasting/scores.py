"""What a rolled-out evaluation says: errors and coverage by method and horizon, and whether a difference is chance.

Every figure is over all hours *up to* the horizon, pooled over the origins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.backtest import mape, wape
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.series import Floats

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "TARGETS",
    "Difference",
    "Evaluation",
    "Forecasts",
    "Rolled",
    "end_of",
    "inside",
    "paired",
    "reliability",
    "resampled",
    "smape",
    "sums",
    "table",
]

TARGETS: Final = {60: 15.0, 360: 20.0, 1440: 25.0}
"""The specification's MAPE in percent, by horizon in minutes."""
_DRAWS: Final = 2000


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One method at one horizon; errors in percent over all hours up to the horizon."""

    method: str
    """`served` is what `LoadForecaster` answers; the others are the single models and rivals."""
    horizon_minutes: int
    origins: int
    mape: float
    wape: float
    smape: float
    mase: float
    """Mean absolute error in units of the seasonal naive's within the history: below 1 is better than that."""
    covers_80: float | None = None
    """Share of hours inside the 80 % interval, percent; None for a method without intervals."""
    covers_95: float | None = None
    width_80: float | None = None
    """Mean width of the 80 % interval, percent of the mean count."""
    pinball: float | None = None
    """Mean pinball loss over LEVELS, percent of the mean count: less is sharper and better calibrated."""
    fit_seconds: float = 0.0
    """Mean processor time of a fit, for `served` with its own backtest and choice."""
    predict_seconds: float = 0.0
    """The same of one forecast; a method that learns when it is asked learns in here."""


@dataclass(slots=True)
class Forecasts:
    """One method at every origin."""

    mean: Floats
    """Origins x hours ahead."""
    quantiles: Floats | None = None
    """Origins x hours ahead x LEVELS."""
    fit_seconds: float = 0.0
    predict_seconds: float = 0.0


@dataclass(slots=True)
class Rolled:
    """What every method said at every origin, and what came."""

    known: pd.Series[float]
    """The whole history, per hour."""
    origins: NDArray[np.int64]
    """How many hours were known."""
    actual: Floats
    """Origins x hours ahead; NaN where an hour is missing."""
    scale: float
    """Of MASE: mean absolute error of the seasonal naive before the first origin."""
    methods: dict[str, Forecasts] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Methods that are left out, and why."""


class Difference(NamedTuple):
    """Error of a method less that of the base, in percentage points: above 0 the base is better."""

    value: float
    low: float
    high: float
    """95 % interval. The difference may be chance where it holds 0."""


def end_of(horizon_minutes: int) -> int:
    """Hours up to a horizon."""
    return -(-horizon_minutes // 60)


def smape(actual: Floats, forecast: Floats) -> float:
    """Symmetric MAPE in percent, 0 to 200: `2 |a - f| / (a + f)`, 0 where both are 0."""
    used = np.isfinite(actual) & np.isfinite(forecast)
    size = actual[used] + np.abs(forecast[used])
    off = np.abs(actual[used] - forecast[used])
    return (
        float(np.mean(np.where(size > 0, 2 * off / np.where(size > 0, size, 1), 0)) * 100) if used.any() else math.nan
    )


def table(rolled: Rolled, horizons: Sequence[int]) -> list[Evaluation]:
    """Every method at every horizon (minutes)."""
    return [
        _row(rolled, name, forecasts, horizon) for name, forecasts in rolled.methods.items() for horizon in horizons
    ]


def _row(rolled: Rolled, name: str, forecasts: Forecasts, horizon: int) -> Evaluation:
    end = end_of(horizon)
    truth, mean = rolled.actual[:, :end], forecasts.mean[:, :end]
    spread: dict[str, Any] = {}
    if forecasts.quantiles is not None and np.isfinite(truth).any():
        quantiles = forecasts.quantiles[:, :end]
        level = max(float(np.nanmean(truth)), 1e-9)
        spread = {
            "covers_80": float(np.nanmean(inside(truth, quantiles, 80)) * 100),
            "covers_95": float(np.nanmean(inside(truth, quantiles, 95)) * 100),
            "width_80": float((quantiles[..., 3] - quantiles[..., 1]).mean() / level * 100),
            "pinball": float(np.nanmean(_pinball(truth, quantiles)) / level * 100),
        }
    off = np.abs(truth - mean)
    return Evaluation(
        method=name,
        horizon_minutes=horizon,
        origins=len(truth),
        mape=mape(truth, mean),
        wape=wape(truth, mean),
        smape=smape(truth, mean),
        mase=float(np.nanmean(off)) / rolled.scale if rolled.scale > 0 and np.isfinite(off).any() else math.nan,
        fit_seconds=forecasts.fit_seconds,
        predict_seconds=forecasts.predict_seconds,
        **spread,
    )


def inside(actual: Floats, quantiles: Floats, percent: int) -> Floats:
    """1 where the count is inside the 80 or 95 % interval (its ends count), 0 outside, NaN where it is missing."""
    low, high = {80: (1, 3), 95: (0, 4)}[percent]
    within = (actual >= quantiles[..., low] - 1e-9) & (actual <= quantiles[..., high] + 1e-9)
    return np.where(np.isfinite(actual), within, np.nan)


def _pinball(actual: Floats, quantiles: Floats) -> Floats:
    levels = np.array(LEVELS)
    error = actual[..., None] - quantiles
    return np.asarray(np.maximum(levels * error, (levels - 1) * error).mean(axis=-1), dtype=np.float64)


def reliability(actual: Floats, quantiles: Floats) -> tuple[Floats, Floats]:
    """Share of counts below each quantile (at LEVELS), and in each of the six bins between them.

    Calibrated are LEVELS and their differences. Counts are whole numbers and often meet a quantile (many are 0): half
    of a tie is below, and the bins that meet there share it in proportion to their size.
    """
    used = np.isfinite(actual)
    truth, bounds = actual[used][:, None], quantiles[used]
    below = (np.mean(truth < bounds, axis=0) + np.mean(truth == bounds, axis=0) / 2) if used.any() else np.zeros(5)
    size = np.diff((0.0, *LEVELS, 1.0))
    first, last = (truth > bounds).sum(axis=1), (truth >= bounds).sum(axis=1)
    place = np.arange(len(size))[None, :]
    share = np.where((place >= first[:, None]) & (place <= last[:, None]), size[None, :], 0.0)
    bins = (share / share.sum(axis=1, keepdims=True)).mean(axis=0) if used.any() else np.zeros(len(size))
    return np.asarray(below, dtype=np.float64), np.asarray(bins, dtype=np.float64)


# -- is a difference chance?


def sums(actual: Floats, forecast: Floats, measure: str) -> tuple[Floats, Floats]:
    """Numerator and denominator of `"mape"` or `"wape"` of each origin: pooled, the error is 100 * sum / sum."""
    used = np.isfinite(actual) & ((actual > 0) if measure == "mape" else True)
    off = np.where(used, np.abs(actual - forecast), 0.0)
    size = np.where(used, actual, 0.0)
    if measure == "mape":
        return (off / np.where(used, actual, 1.0)).sum(axis=1), used.sum(axis=1).astype(float)
    return off.sum(axis=1), size.sum(axis=1)


def resampled(origins: NDArray[np.int64], steps: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Rows of origin numbers (draws x origins): a circular block bootstrap.

    Forecasts from neighbouring origins overlap and err together, so blocks are drawn: as many neighbours as a forecast
    of `steps` hours reaches over, at least three.
    """
    count = len(origins)
    apart = max(float(np.median(np.diff(origins))), 1.0) if count > 1 else 1.0
    length = min(max(math.ceil(max(steps, 24) / apart), 3), count)
    draw = np.random.default_rng(seed)
    starts = draw.integers(0, count, size=(draws, math.ceil(count / length)))
    rows = (starts[:, :, None] + np.arange(length)[None, None, :]) % count
    return np.asarray(rows.reshape(draws, -1)[:, :count], dtype=np.int64)


def paired(
    rolled: Rolled, method: str, horizon: int, base: str = "served", measure: str = "mape", seed: int = 0
) -> Difference:
    """How much worse than `base` a method is, with a 95 % interval: both on the same resampled origins."""
    end = end_of(horizon)
    rows = resampled(rolled.origins, end, _DRAWS, seed)

    def error(name: str, picked: NDArray[np.int64]) -> Floats:
        over, under = sums(rolled.actual[:, :end], rolled.methods[name].mean[:, :end], measure)
        total = under[picked].sum(axis=-1)
        return np.asarray(100 * over[picked].sum(axis=-1) / np.where(total > 0, total, np.nan), dtype=np.float64)

    everything = np.arange(len(rolled.origins))[None, :]
    value = float((error(method, everything) - error(base, everything))[0])
    spread = error(method, rows) - error(base, rows)
    spread = spread[np.isfinite(spread)]
    low, high = np.quantile(spread, (0.025, 0.975)) if len(spread) else (math.nan, math.nan)
    return Difference(value, float(low), float(high))
