"""The rivals of `benchmarks.forecasts`: what people use today to forecast hourly counts, each done plainly.

Every rival learns anew at every origin from a trailing window of what was known there (its docstring says which),
forecasts no negative counts, and answers at LEVELS where it has intervals. None uses any code of our own models.
Raise a rival's number in `VERSIONS` when what it does changes: cached forecasts of the old one are then made again.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting.evaluation import Answer, Method
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.rivals import auto_arima, known_values, mstl

__all__ = ["RIVALS", "VERSIONS", "available", "rivals"]

DAY, WEEK = 24, 168
Z = (-1.959964, -1.281552, 0.0, 1.281552, 1.959964)
"""The standard normal quantiles at LEVELS."""


# -- statistics


def seasonal_naive(known: pd.Series, steps: int) -> Answer:
    """The same hour a week ago (a day ago where there is no week)."""
    period = WEEK if len(known) >= WEEK else DAY
    last = known_values(known, period)
    return Answer(np.resize(last, steps), None)


def arima(known: pd.Series, steps: int) -> Answer:
    """ARIMA(2, 1, 2) of statsmodels on the counts of the last four weeks, with its own normal intervals."""
    from statsmodels.tsa.arima.model import ARIMA

    ahead = ARIMA(known_values(known, 4 * WEEK), order=(2, 1, 2)).fit().get_forecast(steps)
    return normal(ahead.predicted_mean, ahead.se_mean)


def normal(mean: np.ndarray, deviation: np.ndarray) -> Answer:
    return Answer(mean, mean[:, None] + np.asarray(deviation)[:, None] * np.array(Z)[None, :])


# -- Prophet


def prophet_as_specified(known: pd.Series, steps: int) -> Answer:
    """Prophet as the specification configures it, through its own API, on the specification's 540 days.

    Additive, changepoint prior 0.05, seasonality prior 10, daily and weekly seasonality, yearly from 365 days on,
    Brazilian holidays; intervals from its own 1000 predictive samples.
    """
    window = known.iloc[-540 * DAY :]
    model = prophet(
        seasonality_mode="additive",
        changepoint_prior_scale=0.05,
        seasonality_prior_scale=10.0,
        daily_seasonality=True,
        weekly_seasonality=True,
        yearly_seasonality=len(window) >= 365 * DAY,
    )
    model.add_country_holidays(country_name="BR")
    model.fit(frame(window), seed=1)
    ahead = pd.DataFrame({"ds": following(window, steps)})
    mean = model.predict(ahead, vectorized=True)["yhat"].to_numpy()
    np.random.seed(1)  # Prophet draws from the global generator
    samples = model.predictive_samples(ahead)["yhat"]
    return Answer(mean, np.quantile(samples, LEVELS, axis=1).T)


def prophet_well(known: pd.Series, steps: int) -> Answer:
    """Prophet set up with care: log counts, a day profile for each kind of day, an AR on what it leaves unexplained.

    The last 26 weeks of log(1 + count); weekly seasonality and a daily one of order 8 for weekdays, Saturdays and
    Sundays each (conditional seasonalities); least-squares AR on the residuals at lags 1, 2, 3, 24, 168. Intervals are
    normal on the log scale, with the deviation of the AR's forecast of that many hours.
    """
    window = known.iloc[-26 * WEEK :]
    model = prophet(daily_seasonality=False, weekly_seasonality=True, yearly_seasonality=False, uncertainty_samples=0)
    for kind in DAY_KINDS:
        model.add_seasonality(kind, period=1, fourier_order=8, condition_name=kind)
    past, future = day_kinds(frame(np.log1p(window))), day_kinds(pd.DataFrame({"ds": following(window, steps)}))
    model.fit(past, seed=1)
    fitted = model.predict(pd.concat([past.drop(columns="y"), future]))["yhat"].to_numpy()
    explained = pd.Series(fitted[: len(past)], index=past["ds"]).reindex(pd.DatetimeIndex(naive(window.index)))
    left = np.nan_to_num(np.log1p(window.to_numpy(dtype=float)) - explained.to_numpy())
    correction, deviation = ar_forecast(left, steps)
    level = fitted[len(past) :] + correction
    return exponential(level, deviation)


DAY_KINDS: dict[str, Callable[[Any], Any]] = {
    "weekday": lambda day: day < 5,
    "saturday": lambda day: day == 5,
    "sunday": lambda day: day == 6,
}


def day_kinds(rows: pd.DataFrame) -> pd.DataFrame:
    day = rows["ds"].dt.dayofweek
    return rows.assign(**{kind: test(day) for kind, test in DAY_KINDS.items()})


def ar_forecast(left: np.ndarray, steps: int, lags: tuple[int, ...] = (1, 2, 3, 24, 168)) -> tuple[Any, Any]:
    """Forecast of an AR by least squares, and its deviation (the root of the summed squared psi weights)."""
    lags = tuple(lag for lag in lags if lag * 2 < len(left))
    first = max(lags)
    design = np.column_stack([left[first - lag : len(left) - lag] for lag in lags])
    gram = design.T @ design + 1e-3 * len(design) * np.var(left) * np.eye(len(lags))
    weights = np.linalg.solve(gram, design.T @ left[first:]) if np.var(left) > 0 else np.zeros(len(lags))
    sigma = float(np.std(left[first:] - design @ weights))
    path, psi = np.concatenate([left, np.zeros(steps)]), np.zeros(steps)
    for step in range(steps):
        at = len(left) + step
        path[at] = sum(weight * path[at - lag] for weight, lag in zip(weights, lags, strict=True))
        psi[step] = (
            1.0 if step == 0 else sum(w * psi[step - lag] for w, lag in zip(weights, lags, strict=True) if lag <= step)
        )
    return path[len(left) :], sigma * np.sqrt(np.cumsum(psi**2))


def exponential(level: np.ndarray, deviation: np.ndarray) -> Answer:
    """From log(1 + count) back to counts; the mean answered is the median."""
    rows = np.expm1(np.clip(level[:, None] + deviation[:, None] * np.array(Z)[None, :], 0, 40))
    return Answer(rows[:, 2].copy(), rows)


def prophet(**options: Any) -> Any:
    from cmdstanpy.utils import get_logger
    from prophet import Prophet

    logging.getLogger("prophet").setLevel(logging.CRITICAL)
    get_logger().setLevel(logging.CRITICAL)
    return Prophet(**options)


def naive(index: Any) -> Any:
    """Prophet takes no time zones: the clock on the wall."""
    return index.tz_localize(None)


def frame(window: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"ds": naive(window.index), "y": window.to_numpy(dtype=float)}).dropna().reset_index(drop=True)


def following(window: pd.Series, steps: int) -> pd.DatetimeIndex:
    return naive(pd.date_range(window.index[-1], periods=steps + 1, freq="h")[1:])


# -- direct regressions: one model for each hour ahead, on lags and calendar


def rows_ahead(values: np.ndarray, stamps: Any, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of every origin for the hour `step` ahead, their targets, and the features of the present.

    The last 24 counts, the target's hour on the last two known days and one and two weeks before; as dummies the
    target's hour of the day (on weekends another 24) and day of the week.
    """
    count = len(values)
    back = [WEEK, 2 * WEEK] if count >= 4 * WEEK else [WEEK] if count >= 2 * WEEK else []
    first = max(2 * DAY, *back, 0)
    origins = np.arange(first, count)  # each the last hour known
    recent = np.lib.stride_tricks.sliding_window_view(values, DAY)[origins - DAY + 1]
    day_before = -(-step // DAY) * DAY
    lags = [values[origins + step - lag] for lag in (day_before, day_before + DAY, *back)]
    target = stamps[0] + pd.to_timedelta(origins + step, unit="h")
    hour = np.eye(DAY)[target.hour]
    weekend = hour * (np.asarray(target.dayofweek) >= 5)[:, None]
    calendar = np.column_stack([hour, weekend, np.eye(7)[target.dayofweek]])
    table = np.column_stack([recent, *lags, calendar])
    ready = origins + step < count
    return table[ready], values[(origins + step)[ready]], table[-1]


def ridge(known: pd.Series, steps: int, log: bool = True, weeks: int = 16, penalty: float = 0.03) -> Answer:
    """Ridge regression for each hour ahead, on log(1 + count) of the last `weeks` weeks.

    Columns are standardised, the penalty is per row. Intervals: quantiles of the errors of the fit itself.
    """
    values = known_values(known, weeks * WEEK)
    values = np.log1p(values) if log else values
    stamps = naive(known.index[-len(values) :])
    rows = []
    for step in range(1, steps + 1):
        table, target, now = rows_ahead(values, stamps, step)
        middle, spread = table.mean(axis=0), table.std(axis=0)
        spread[spread < 1e-9] = np.inf
        scaled, centre = (table - middle) / spread, target.mean()
        gram = scaled.T @ scaled + penalty * len(scaled) * np.eye(scaled.shape[1])
        weights = np.linalg.solve(gram, scaled.T @ (target - centre))
        ahead = centre + ((now - middle) / spread) @ weights
        errors = np.quantile(target - centre - scaled @ weights, LEVELS)
        rows.append(np.append(ahead, ahead + errors))
    return counts(np.array(rows), log)


def counts(rows: np.ndarray, log: bool) -> Answer:
    rows = np.expm1(np.clip(rows, 0, 40)) if log else rows
    return Answer(rows[:, 0], rows[:, 1:])


def lightgbm(known: pd.Series, steps: int) -> Answer:
    """LightGBM for each hour ahead on the same columns, on log(1 + count) of the last 16 weeks.

    60 trees of 15 leaves. Intervals: quantiles of the errors on the last fifth of the window, which a first fit did not
    see (the errors of a boosted fit itself are far too small).
    """
    import lightgbm as library

    values = np.log1p(known_values(known, 16 * WEEK))
    stamps = naive(known.index[-len(values) :])
    options = {"num_leaves": 15, "learning_rate": 0.08, "min_data_in_leaf": 10, "verbose": -1, "num_threads": 1}
    rows = []
    for step in range(1, steps + 1):
        table, target, now = rows_ahead(values, stamps, step)
        cut = len(table) * 4 // 5
        trial = library.train(options, library.Dataset(table[:cut], target[:cut]), 60)
        errors = np.quantile(target[cut:] - trial.predict(table[cut:]), LEVELS)
        whole = library.train(options, library.Dataset(table, target), 60)
        ahead = float(whole.predict(now[None, :])[0])
        rows.append(np.append(ahead, ahead + errors))
    return counts(np.array(rows), log=True)


# -- the table

RIVALS: dict[str, Callable[[pd.Series, int], Answer]] = {
    "seasonal_naive_168": seasonal_naive,
    "ridge_lags": ridge,
    "prophet_well": prophet_well,
    "prophet_spec": prophet_as_specified,
    "mstl": mstl,
    "arima_212": arima,
    "lightgbm": lightgbm,
    "auto_arima": auto_arima,
}
"""The quick ones first."""
VERSIONS = dict.fromkeys(RIVALS, 1)
NEEDS = {"mstl": "statsforecast", "auto_arima": "statsforecast", "lightgbm": "lightgbm"}
"""Libraries that come with the dependency group `bench` only."""


def available(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(NEEDS.get(name, "numpy")) is not None


def rivals(names: list[str] | None = None) -> list[Method]:
    """As the evaluation takes them: learning anew at every origin."""
    return [Method(name, Refitted(name), None) for name in names or RIVALS]


class Refitted:
    """A rival that learns when it is asked. Where it fails, the seasonal naive stands in, and that is counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0

    def __call__(self, known: pd.Series) -> Callable[[pd.Series, int], Answer]:
        def ask(now: pd.Series, steps: int) -> Answer:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    answer = RIVALS[self.name](now, steps)
                    if not np.isfinite(answer.mean).all():
                        raise ValueError("the forecast is not finite")
                except Exception as error:
                    self.failures += 1
                    told = f"{self.name} fails at {now.index[-1]} ({type(error).__name__}: {error})"
                    print(f"{told}; the seasonal naive stands in", file=sys.stderr)
                    answer = seasonal_naive(now, steps)
            floor = None if answer.quantiles is None else np.maximum(answer.quantiles, 0)
            return Answer(np.maximum(answer.mean, 0), floor)

        return ask
