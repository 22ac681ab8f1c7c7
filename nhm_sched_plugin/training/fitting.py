"""The work of one slice, as a worker process does it: fit, and tune Prophet when the error is above the limit."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, mape, plan_folds, roll
from nhm_sched_plugin.forecasting.forecaster import PROPHET_FROM_HOURS, LoadForecaster
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.series import holiday_dates, hours, stamps
from nhm_sched_plugin.settings import ProphetSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GRID", "Fitted", "fit_slice", "incumbent_errors"]

GRID: Final = (
    ProphetSettings(changepoint_prior_scale=0.5),
    ProphetSettings(changepoint_prior_scale=0.05, seasonality_mode="multiplicative"),
    ProphetSettings(changepoint_prior_scale=0.01, seasonality_prior_scale=1.0, seasonality_mode="multiplicative"),
)
"""What Prophet is retrained with above the error limit: three points inside the tuning ranges."""


class Fitted(msgspec.Struct):
    """What a worker answers."""

    key: str
    state: dict[str, Any] | None = None
    seconds: float = 0.0
    error: str = ""
    incumbents: dict[int, float] = {}
    """Horizon -> MAPE of the production model on the same backtest."""


def fit_slice(
    key: str,
    series: pd.Series[Any],
    horizons: tuple[int, ...],
    country: str | None,
    config: ProphetSettings,
    max_mape: float,
    now: float,
    production: dict[int, dict[str, Any]],
) -> Fitted:
    """Never raises: a slice that fails says so and stops nothing else."""
    began = time.perf_counter()
    result = Fitted(key=key)
    try:
        forecaster = LoadForecaster.fit(series, horizons, country, config, clock=lambda: now)
        worst = max((pair[0] for pair in forecaster.errors.get("served", {}).values()), default=math.nan)
        if worst >= max_mape and forecaster.samples >= PROPHET_FROM_HOURS:
            forecaster = _tuned(forecaster, series, now)
        result.state = forecaster.to_state()
        result.incumbents = incumbent_errors(series, production)
    except Exception as error:  # noqa: BLE001 - whatever a model library raises belongs to this slice alone
        result.error = f"{type(error).__name__}: {error}"
    result.seconds = time.perf_counter() - began
    return result


def _tuned(plain: LoadForecaster, series: pd.Series[Any], now: float) -> LoadForecaster:
    """Try the grid on the last fold; fit anew with its best point if that beats what is served."""
    known = hours(series)
    index = stamps(known)
    days = holiday_dates(plain.country, range(index[0].year, index[-1].year + 3))
    past = plain.timeline(known)

    def maker(config: ProphetSettings) -> Any:
        return lambda: FrozenProphet(
            config.seasonality_mode, config.changepoint_prior_scale, config.seasonality_prior_scale, days
        )

    makers = {str(i): maker(config) for i, config in enumerate(GRID)}
    backtest = roll(past, makers, plan_folds(len(past))[-1:])
    horizon = str(max(plain.horizons))
    end = min(math.ceil(int(horizon) / 60), MAX_LEAD)
    errors = {name: mape(backtest.actual[:, :end], rows[:, :end]) for name, rows in backtest.forecasts.items()}
    best = min(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf, default=None)
    served = plain.errors["served"].get(horizon, (math.nan, math.nan))[0]
    if best is None or not errors[best] < served:
        return plain
    tuned = LoadForecaster.fit(series, plain.horizons, plain.country, GRID[int(best)], clock=lambda: now)
    return tuned if tuned.errors["served"][horizon][0] < served else plain


def incumbent_errors(series: pd.Series[Any], production: dict[int, dict[str, Any]]) -> dict[int, float]:
    """MAPE of each horizon's production model over the origins that the new one was judged at.

    The incumbent is not refitted; it may have seen some of these hours in its own fit, which is in its favour.
    """
    known = hours(series)
    result = {}
    for horizon, state in production.items():
        end = min(math.ceil(horizon / 60), MAX_LEAD)
        origins = [origin for fold in plan_folds(len(known)) for origin in fold.origins if origin + end <= len(known)]
        forecasts, actual = [], []
        for origin in origins:
            model = LoadForecaster.from_state(state).starting(known.iloc[:origin])
            forecasts.append(model.evaluate(end)[0])
            actual.append(known.to_numpy()[origin : origin + end])
        if origins:
            result[horizon] = mape(np.array(actual), np.array(forecasts))
    return result
