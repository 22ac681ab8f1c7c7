"""Which models a history is worth, how they fare on it, and which of them serve."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, plan_folds, roll
from nhm_sched_plugin.forecasting.models.arima import Arima
from nhm_sched_plugin.forecasting.models.base import Model, Timeline
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.models.log_prophet import LogProphet
from nhm_sched_plugin.forecasting.models.ridge import LogRidge, Ridge, RobustRidge, SqrtRidge
from nhm_sched_plugin.forecasting.models.seasonal import SeasonalMean, SeasonalNaive
from nhm_sched_plugin.forecasting.models.smoothing import DoubleSeasonal
from nhm_sched_plugin.forecasting.selection import Band, choose, errors_by_horizon, spread_of_sums, uninformed
from nhm_sched_plugin.forecasting.series import Floats

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import ProphetSettings

__all__ = ["ARIMA_FROM_HOURS", "MODELS", "PROPHET_FROM_HOURS", "Judgement", "Makers", "candidates", "judge"]

ARIMA_FROM_HOURS: Final = 100
PROPHET_FROM_HOURS: Final = 1000
MODELS: Final[dict[str, type[Model]]] = {
    model.name: model
    for model in (
        LogRidge,
        RobustRidge,
        SqrtRidge,
        Ridge,
        DoubleSeasonal,
        SeasonalMean,
        SeasonalNaive,
        Arima,
        LogProphet,
        FrozenProphet,
    )
}
Makers = dict[str, Callable[[], Model]]
_BAND_ENDS: Final = (1, 3, 6, 12, 24, 48, 96, MAX_LEAD)
"""Hours ahead where weights and spread may change; the horizons asked for come on top."""
_UNDER_PROPHET: Final = (LogRidge, RobustRidge, SqrtRidge, Ridge, DoubleSeasonal, SeasonalMean, SeasonalNaive)


def candidates(
    samples: int,
    config: ProphetSettings | None,
    days: Mapping[dt.date, str],
    shortlist: Sequence[str] | None = None,
) -> Makers:
    """The models that a history of that many known hours is worth; the specified one first.

    `shortlist` keeps only the models of these names, unless none of them is worth it.
    """
    if samples < ARIMA_FROM_HOURS:
        return {SeasonalMean.name: SeasonalMean}
    makers: Makers = {}
    if samples >= PROPHET_FROM_HOURS:
        asked = {} if config is None else config.model_dump()
        mode = {"mode": asked.pop("seasonality_mode")} if asked else {}
        makers[FrozenProphet.name] = lambda: FrozenProphet(**mode, **asked, holidays=days)
        makers[LogProphet.name] = lambda: LogProphet(holidays=days)
    else:
        makers[Arima.name] = Arima
    makers |= {model.name: model for model in _UNDER_PROPHET if samples >= model.min_hours}
    kept = {name: make for name, make in makers.items() if shortlist is None or name in shortlist}
    return kept or makers


class Judgement(msgspec.Struct, frozen=True):
    """What the backtest of a history came to."""

    bands: list[Band]
    errors: dict[str, dict[str, tuple[float, float]]]
    """Method (`"served"` for the choice) -> horizon in minutes -> MAPE and WAPE in percent."""
    failures: dict[str, str]
    models: dict[str, Model]
    """The models that serve, fitted on the whole history."""
    sums: list[Band] = []
    """The spread of the tickets of all hours up to each band's end; none where nothing could be held out."""
    served: Floats | None = None
    """What they, as weighted, forecast at the origins of `plan_folds` (rows), hour by hour (columns)."""


def judge(past: Timeline, makers: Makers, minutes: Sequence[int], samples: int) -> Judgement:
    """Backtest the candidates, choose, and fit what was chosen on everything.

    Adds ARIMA to the candidates when the specified Prophet fails.
    """
    if samples < ARIMA_FROM_HOURS:
        return _untried(past, {})
    folds = plan_folds(len(past))
    backtest = roll(past, makers, folds)
    if FrozenProphet.name in backtest.failures:
        substitute = roll(past, {Arima.name: Arima}, folds)
        makers = makers | {Arima.name: Arima}
        backtest.forecasts |= substitute.forecasts
        backtest.failures |= substitute.failures
    if not backtest.forecasts or not np.isfinite(backtest.actual[:, 0]).any():
        return _untried(past, backtest.failures)
    ends = sorted({min(math.ceil(h / 60), MAX_LEAD) for h in minutes} | set(_BAND_ENDS))
    bands, served = choose(backtest, ends)
    every = {"served": served, **backtest.forecasts}
    errors = {name: errors_by_horizon(backtest.actual, rows, minutes) for name, rows in every.items()}
    models = {}
    for name in sorted({name for band in bands for name in band.weights}):
        rolled = backtest.models.get(name)
        models[name] = rolled if rolled is not None and rolled.rolls_on else makers[name]().fit(past)
    sums = spread_of_sums(backtest, served, ends)
    return Judgement(bands, errors, backtest.failures, models, sums, served)


def _untried(past: Timeline, failures: dict[str, str]) -> Judgement:
    """The seasonal mean, for a history too short to hold anything out."""
    model = SeasonalMean().fit(past)
    twice = Timeline(
        past.values, np.concatenate((past.local[: len(past)],) * 2), np.concatenate((past.holiday[: len(past)],) * 2)
    )
    fitted: Floats = model.predict(twice, len(past))  # its own view of the known hours
    return Judgement([uninformed(past.values, fitted, {model.name: 1.0})], {}, failures, {model.name: model})
