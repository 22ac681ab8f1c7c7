"""Rolling origins: what each model would have forecast, made only from what was known then, and how wrong it was."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import WEEK, Model, Timeline
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["MAX_LEAD", "Backtest", "Fold", "mape", "plan_folds", "roll", "wape"]

MAX_LEAD: Final = WEEK
"""Farthest hour ahead that is backtested."""
_ORIGINS_PER_FOLD: Final = 24
_STRIDES: Final = (7, 5, 1)
"""Hours between origins: without a common factor with 24, so that every hour of the day gets its turn."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fold:
    """Models are fitted on the hours before `start`, and then asked at each of `origins` without a refit."""

    start: int
    origins: tuple[int, ...]


@dataclass(slots=True)
class Backtest:
    """Rows are origins, columns hours ahead (1 first). NaN where the history ends or an hour is missing."""

    actual: Floats
    forecasts: dict[str, Floats] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Why a model is left out."""
    seconds: dict[str, float] = field(default_factory=dict)


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
    """Where to cut `count` hours: two folds of a week (or less) at the end; one of a quarter for a short history."""
    length, number = (max(min(count // 4, WEEK), 1), 1) if count < 1000 else (min(count // 8, WEEK), 2)
    stride = next((stride for stride in _STRIDES if length // stride >= _ORIGINS_PER_FOLD), 1)
    starts = [count - length * (number - i) for i in range(number)]
    return [Fold(start, tuple(range(start, start + length, stride))) for start in starts]


def roll(past: Timeline, makers: Mapping[str, Callable[[], Model]], folds: list[Fold]) -> Backtest:
    """Every model at every origin. A model that fails anywhere is left out, with the reason; the others go on."""
    origins = np.array([origin for fold in folds for origin in fold.origins])
    result = Backtest(actual=_actual(past, origins))
    for name, make in makers.items():
        began = time.perf_counter()
        try:
            rows = [row for fold in folds for row in _fold_rows(past, make(), fold)]
        except Exception as error:  # noqa: BLE001 - a model may fail in any way of its library; the others stand in
            result.failures[name] = f"{type(error).__name__}: {error}"
            _log.info("model %s is left out: %s", name, result.failures[name])
        else:
            result.forecasts[name] = np.array(rows)
        result.seconds[name] = time.perf_counter() - began
    return result


def _fold_rows(past: Timeline, model: Model, fold: Fold) -> list[Floats]:
    fitted = model.fit(past.until(fold.start))
    rows = []
    for origin in fold.origins:
        row = np.maximum(fitted.predict(past.until(origin), MAX_LEAD), 0.0)
        if not np.isfinite(row).all():
            raise ValueError("the forecast is not finite")
        rows.append(row)
    return rows


def _actual(past: Timeline, origins: NDArray[np.int64]) -> Floats:
    position = origins[:, None] + np.arange(MAX_LEAD)[None, :]
    inside = position < len(past)
    return np.where(inside, past.values[np.where(inside, position, 0)], np.nan)
