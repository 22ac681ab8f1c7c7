"""How good are the forecasts? The whole `LoadForecaster`, model choice and all, judged on hours it has never seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from nhm_sched_plugin.forecasting.backtest import mape, wape
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster, candidates
from nhm_sched_plugin.forecasting.models.base import Timeline
from nhm_sched_plugin.forecasting.series import Floats, HistoryError, holiday_dates, hours, stamps

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import ProphetSettings

__all__ = ["Evaluation", "evaluate"]

_log = logging.getLogger(__name__)


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One method at one horizon; errors in percent over all hours up to the horizon."""

    method: str
    """`served` is what `LoadForecaster` answers; the others are the single models."""
    horizon_minutes: int
    origins: int
    mape: float
    wape: float
    covers_80: float | None = None
    """Share of hours inside the 80 % interval, percent; only for `served`."""
    covers_95: float | None = None
    fit_seconds: float = 0.0
    """Mean time of a fit, for `served` with its own backtest and choice."""


def evaluate(
    history: pd.Series[Any],
    horizons: Sequence[int] = (60, 360, 1440),
    country: str | None = "BR",
    config: ProphetSettings | None = None,
    *,
    origins: int = 20,
    refits: int = 2,
    progress: Callable[[float], None] | None = None,
) -> list[Evaluation]:
    """Rolling origins over the last quarter of the history (four weeks at most).

    Everything is fitted `refits` times and rolled through the origins that follow without a refit; nothing sees an
    hour at or after its origin. `progress` hears the share done. Raises `HistoryError` for less than 48 hours.
    """
    known = hours(history)
    steps = max(-(-horizon // 60) for horizon in horizons)
    span = min(len(known) // 4, 28 * 24)
    if len(known) < 48 or span < steps:
        raise HistoryError(f"{len(known)} hours are too few to judge a horizon of {steps} h; give at least {4 * steps}")
    start, stop = len(known) - span, len(known) - steps
    at = np.unique(np.linspace(start, stop, origins).astype(int))
    days = holiday_dates(country, range(stamps(known)[0].year, stamps(known)[-1].year + 2))
    rows: dict[str, list[Floats]] = {}
    spread: list[Floats] = []
    seconds: dict[str, list[float]] = {}
    for group in np.array_split(at, min(refits, len(at))):
        began = time.perf_counter()
        served = LoadForecaster.fit(known.iloc[: group[0]], horizons, country, config)
        seconds.setdefault("served", []).append(time.perf_counter() - began)
        for origin in group:
            mean, quantiles = served.update(known.iloc[max(origin - 1000, 0) : origin]).evaluate(steps)
            rows.setdefault("served", []).append(mean)
            spread.append(quantiles)
        past = served.timeline(known.iloc[: group[0]])
        for name, make in candidates(int(known.iloc[: group[0]].notna().sum()), config, days).items():
            began = time.perf_counter()
            try:
                model = make().fit(past)
            except Exception as error:  # noqa: BLE001 - a rival that cannot be fitted drops out of the comparison
                _log.info("model %s is left out: %s", name, error)
                continue
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            whole: Timeline = served.timeline(known)
            rows.setdefault(name, []).extend(np.maximum(model.predict(whole.until(o), steps), 0) for o in group)
        if progress:
            progress(float(len(rows["served"]) / len(at)))
    actual = np.array([known.to_numpy()[origin : origin + steps] for origin in at])
    return _table(actual, rows, np.array(spread), seconds, horizons)


def _table(
    actual: Floats,
    rows: dict[str, list[Floats]],
    spread: Floats,
    seconds: dict[str, list[float]],
    horizons: Sequence[int],
) -> list[Evaluation]:
    result = []
    for name, forecasts in rows.items():
        if len(forecasts) != len(actual):
            continue
        for horizon in horizons:
            end = -(-horizon // 60)
            truth, mean = actual[:, :end], np.array(forecasts)[:, :end]
            covers: list[float | None] = [None, None]
            if name == "served":
                known = np.isfinite(truth)
                for i, (low, high) in enumerate(((1, 3), (0, 4))):
                    inside = (truth >= spread[:, :end, low] - 1e-9) & (truth <= spread[:, :end, high] + 1e-9)
                    covers[i] = float(inside[known].mean() * 100) if known.any() else None
            result.append(
                Evaluation(
                    method=name,
                    horizon_minutes=horizon,
                    origins=len(actual),
                    mape=mape(truth, mean),
                    wape=wape(truth, mean),
                    covers_80=covers[0],
                    covers_95=covers[1],
                    fit_seconds=float(np.mean(seconds[name])),
                )
            )
    return result
