"""Rolling origins: what each model would have forecast, made only from what was known then, and how wrong it was."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK, Fold, Model, Timeline
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["MAX_LEAD", "Backtest", "Fold", "mape", "plan_folds", "roll", "wape"]

MAX_LEAD: Final = WEEK
"""Farthest hour ahead that is backtested."""
_FOLDS: Final = 4
_ORIGINS: Final = 100
"""Origins that a stride must leave."""
_STRIDES: Final = (5, 1)
"""Hours between origins: without a common factor with 24, so that every hour of the day gets its turn."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Backtest:
    """Rows are origins, columns hours ahead (1 first). NaN where the history ends or an hour is missing."""

    actual: Floats
    forecasts: dict[str, Floats] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a model is left out."""
    seconds: dict[str, float] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    """The models as the roll left them."""
    fold: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Number of the fold that each row belongs to."""
    age: Floats = field(default_factory=lambda: np.zeros(0))
    """Hours from each row's origin to the end of the history."""


def mape(actual: Floats, forecast: Floats) -> float:
    """Mean absolute percentage error in percent; hours without traffic are skipped. NaN if none is left."""
    used = np.isfinite(actual) & np.isfinite(forecast) & (actual > 0)
    return float(np.mean(np.abs(actual[used] - forecast[used]) / actual[used]) * 100) if used.any() else math.nan


def wape(actual: Floats, forecast: Floats) -> float:
    """Sum of absolute errors over the sum of actual counts, in percent. NaN without any traffic."""
    used = np.isfinite(actual) & np.isfinite(forecast)
    total = float(actual[used].sum())
    return float(np.abs(actual[used] - forecast[used]).sum() / total * 100) if total > 0 else math.nan


def plan_folds(count: int) -> list[Fold]:
    """Where to cut `count` hours: four folds of a week at the end; of a short history the last third, in up to four."""
    length = max(min(count // 3, _FOLDS * WEEK), 1)
    number = min(_FOLDS, max(length // 24, 1))
    stride = next((stride for stride in _STRIDES if length // stride >= _ORIGINS), 1)
    edges = [count - length + length * i // number for i in range(number)] + [count]
    origins = range(count - length, count, stride)
    planned = [Fold(a, tuple(o for o in origins if a <= o < b)) for a, b in pairwise(edges)]
    return [fold for fold in planned if fold.origins]


def roll(past: Timeline, makers: Mapping[str, Callable[[], Model]], folds: list[Fold]) -> Backtest:
    """Every model at every origin. A model that fails anywhere is left out, with the reason; the others go on."""
    origins = np.array([origin for fold in folds for origin in fold.origins])
    number = np.repeat(np.arange(len(folds)), [len(fold.origins) for fold in folds])
    result = Backtest(actual=_actual(past, origins), fold=number, age=(len(past) - origins).astype(np.float64))
    for name, make in makers.items():
        began = time.perf_counter()
        try:
            model = make()
            rows = np.maximum(model.roll(past, folds, MAX_LEAD), 0.0)
            if not np.isfinite(rows).all():
                raise ValueError("the forecast is not finite")
        except Exception as error:  # noqa: BLE001 - a model may fail in any way of its library; the others stand in
            result.failures[name] = f"{type(error).__name__}: {error}"
            _log.info("model %s is left out: %s", name, result.failures[name])
        else:
            result.forecasts[name], result.models[name] = rows, model
        result.seconds[name] = time.perf_counter() - began
    return result


def _actual(past: Timeline, origins: NDArray[np.int64]) -> Floats:
    position = origins[:, None] + np.arange(MAX_LEAD)[None, :]
    inside = position < len(past)
    return np.where(inside, past.values[np.where(inside, position, 0)], np.nan)
