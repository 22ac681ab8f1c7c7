"""`LoadForecaster`: fit on a history of counts, move the origin with newer ones, forecast any horizon up to a week."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, Backtest, plan_folds, roll
from nhm_sched_plugin.forecasting.intervals import LEVELS, bottleneck_probability, confidence
from nhm_sched_plugin.forecasting.models.arima import Arima
from nhm_sched_plugin.forecasting.models.base import WEEK, Model, Timeline, pack
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.models.ridge import LogRidge, Ridge
from nhm_sched_plugin.forecasting.models.seasonal import SeasonalMean, SeasonalNaive
from nhm_sched_plugin.forecasting.selection import (
    Band,
    blended,
    choose,
    errors_by_horizon,
    quantile_rows,
    uninformed,
)
from nhm_sched_plugin.forecasting.series import (
    Floats,
    HistoryError,
    epoch,
    following,
    holiday_dates,
    hours,
    join,
    stamps,
)
from nhm_sched_plugin.forecasting.table import MAX_HORIZON_MINUTES, SliceForecast
from nhm_sched_plugin.types import Forecast, ForecastPoint

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import ProphetSettings

__all__ = ["ARIMA_FROM_HOURS", "PROPHET_FROM_HOURS", "LoadForecaster", "candidates"]

ARIMA_FROM_HOURS: Final = 100
PROPHET_FROM_HOURS: Final = 1000
_STATE_VERSION: Final = 1
_MEMORY: Final = 8 * WEEK
"""Known hours that a fitted forecaster keeps: what its models look back on."""
_MAX_AHEAD: Final = 504
_MAX_OVER_PEAK: Final = 3.0
"""No forecast exceeds this many times the busiest hour ever seen."""
_MODELS: Final[dict[str, Any]] = {
    model.name: model for model in (SeasonalMean, SeasonalNaive, Ridge, LogRidge, Arima, FrozenProphet)
}


class LoadForecaster:
    """Tickets per hour, forecast. Make one with `fit` or `from_state`.

    Stamps are starts of hours in the time zone of the history (a naive history stays naive); the first forecast hour
    is the one after the last stamp. What is inside is numbers: predicting needs neither Prophet nor statsmodels.
    """

    def __init__(
        self,
        *,
        known: pd.Series[float],
        horizons: tuple[int, ...],
        country: str | None,
        models: dict[str, Model],
        bands: list[Band],
        samples: int,
        peak: float,
        trained_at: float,
        errors: dict[str, dict[str, tuple[float, float]]],
        holidays: frozenset[int],
        failures: dict[str, str] | None = None,
    ) -> None:
        self._known = known
        self._models = models
        self._holidays = holidays
        self.bands = bands
        """Which models serve which hours ahead, with what spread."""
        self.horizons = horizons
        self.country = country
        self.samples = samples
        """Known hours at the fit."""
        self.peak = peak
        """The busiest hour so far."""
        self.trained_at = trained_at
        """Unix seconds."""
        self.errors = errors
        """Method (`"served"` for the choice) -> horizon in minutes -> backtest MAPE and WAPE in percent."""
        self.failures = failures or {}
        """Models that could not be fitted, and why."""

    @classmethod
    def fit(
        cls,
        history: pd.Series[Any],
        horizons: Sequence[int] = (60, 360, 1440),
        country: str | None = "BR",
        config: ProphetSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Fit on counts per hour or finer, in any order, with gaps.

        From 1000 hours on: Prophet as specified, and what beats it in a rolling-origin backtest on this history; from
        100: ARIMA likewise; below: the seasonal mean, at low confidence. `country` (ISO 3166) gives the holidays.
        Raises `HistoryError` (a ValueError) for a history, horizon or country that cannot be used.
        """
        minutes = _checked_horizons(horizons)
        known = hours(history)
        days = holiday_dates(country, range(known.index[0].year, known.index[-1].year + 3))
        holidays = frozenset((day - dt.date(1970, 1, 1)).days for day in days)
        past = _timeline(known, holidays)
        samples = int(known.notna().sum())
        makers = candidates(samples, config, days)
        bands, errors, failures = _judge(past, makers, minutes, samples)
        chosen = sorted({name for band in bands for name in band.weights})
        return cls(
            known=known.iloc[-_MEMORY:],
            horizons=minutes,
            country=country,
            models={name: makers[name]().fit(past) for name in chosen},
            bands=bands,
            samples=samples,
            peak=float(known.max()),
            trained_at=clock(),
            errors=errors,
            holidays=holidays,
            failures=failures,
        )

    @property
    def origin(self) -> pd.Timestamp:
        """End of the last known hour: where forecasts start."""
        return following(stamps(self._known), 1)[0]

    def method(self, horizon_minutes: int) -> str:
        """Which model serves that horizon; two names joined by `+` are their mean."""
        return self._band(math.ceil(horizon_minutes / 60)).method

    def update(self, recent: pd.Series[Any]) -> Self:
        """Move the origin to the last stamp of `recent` without a refit; where it overlaps, the newer count stands.

        Raises `HistoryError` for counts that cannot be used, or with a time zone where the history has none.
        """
        merged = join(self._known, hours(recent))
        self.peak = max(self.peak, float(merged.max()))
        self._known = merged.iloc[-_MEMORY:]
        return self

    def starting(self, known: pd.Series[float]) -> Self:
        """Forget the counts it has and start at the end of these (as `hours` makes them), for a backtest."""
        self._known = known.iloc[-_MEMORY:]
        return self

    def predict(self, horizon_minutes: int, capacity: float | None = None) -> Forecast:
        """One point per hour up to the horizon, rounded up; any horizon from 1 to 10080 minutes.

        `bottleneck_probability` is P(tickets in the last hour > `capacity`), `capacity` in tickets an hour; left out,
        it is the busiest hour of the history: the most this system is known to have coped with.
        """
        (horizon,) = _checked_horizons((horizon_minutes,))
        mean, quantiles = self.evaluate(math.ceil(horizon / 60))
        ahead = following(stamps(self._known), len(mean))
        points = tuple(
            ForecastPoint(stamp.to_pydatetime(), float(value), _by_level(row))
            for stamp, value, row in zip(ahead, mean, quantiles, strict=True)
        )
        last = points[-1].quantiles
        return Forecast(
            horizon_minutes=horizon,
            predicted_volume=points[-1].mean,
            confidence=confidence(last, self.samples),
            bottleneck_probability=bottleneck_probability(last, self.peak if capacity is None else capacity),
            points=points,
            generated_at=dt.datetime.now(dt.UTC),
            method=self.method(horizon),
        )

    def table(self, hours: int = 384, **about: Any) -> SliceForecast:
        """The next `hours` (at most 504) as a row of the forecast table; `about` sets its other fields, e.g. `share`.

        A naive history is taken for UTC here: the table counts in Unix seconds.
        """
        if not 1 <= hours <= _MAX_AHEAD:
            raise HistoryError(f"hours = {hours} is outside 1 to {_MAX_AHEAD}")
        mean, quantiles = self.evaluate(hours)
        served = self.errors.get("served", {})
        return SliceForecast(
            first_hour=float(epoch(following(stamps(self._known), 1))[0]),
            mean=pack(mean),
            quantiles={str(level): pack(quantiles[:, i]) for i, level in enumerate(LEVELS)},
            samples=self.samples,
            trained_at=self.trained_at,
            method=self.bands[0].method,
            methods={str(horizon): self.method(horizon) for horizon in self.horizons},
            mape={horizon: error[0] for horizon, error in served.items() if math.isfinite(error[0])},
            **about,
        )

    def _band(self, lead: int) -> Band:
        return next((band for band in self.bands if lead <= band.upto), self.bands[-1])

    def evaluate(self, steps: int) -> tuple[Floats, Floats]:
        """Mean (steps) and quantiles (steps x levels) of the hours after the origin."""
        past = self.timeline(self._known)
        rows = {name: self._safe(model.predict(past, steps)) for name, model in self._models.items()}
        mean, first = np.empty(steps), 0
        for i, band in enumerate(self.bands):
            end = steps if i == len(self.bands) - 1 else min(band.upto, steps)
            mean[first:end] = blended({name: row[first:end] for name, row in rows.items()}, band.weights)
            first = end
        return mean, quantile_rows(mean, self.bands)

    def timeline(self, known: pd.Series[float]) -> Timeline:
        """Hourly counts as the models take them, with this forecaster's holidays."""
        return _timeline(known, self._holidays)

    def _safe(self, row: Floats) -> Floats:
        return np.clip(np.nan_to_num(row, nan=0.0), 0.0, _MAX_OVER_PEAK * self.peak)

    def to_state(self) -> dict[str, Any]:
        """Everything as JSON values (some ten kilobytes); `from_state` makes the same forecaster of it."""
        zone = stamps(self._known).tz
        return {
            "version": _STATE_VERSION,
            "horizons": list(self.horizons),
            "country": self.country,
            "zone": None if zone is None else str(zone),
            "first_hour": int(epoch(stamps(self._known))[0]),
            "known": pack(np.asarray(self._known, dtype=np.float64)),
            "models": {name: model.to_state() for name, model in self._models.items()},
            "bands": msgspec.to_builtins(self.bands),
            "samples": self.samples,
            "peak": self.peak,
            "trained_at": self.trained_at,
            "errors": {
                method: {
                    horizon: [None if math.isnan(value) else value for value in pair] for horizon, pair in row.items()
                }
                for method, row in self.errors.items()
            },
            "holidays": sorted(self._holidays),
            "failures": self.failures,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The forecaster that `to_state` described. Raises `ModelError` for a damaged one or another version's."""
        if state.get("version") != _STATE_VERSION:
            raise ModelError(
                f"forecaster state has version {state.get('version')!r}, expected {_STATE_VERSION}; train anew"
            )
        try:
            index = pd.date_range(
                pd.Timestamp(state["first_hour"], unit="s"), periods=len(state["known"]), freq="h", unit="s"
            )
            if state["zone"] is not None:
                index = index.tz_localize("UTC").tz_convert(state["zone"])
            return cls(
                known=pd.Series(np.array(state["known"], dtype=np.float64), index=index, name="volume"),
                horizons=tuple(state["horizons"]),
                country=state["country"],
                models={name: _MODELS[name].from_state(inner) for name, inner in state["models"].items()},
                bands=msgspec.convert(state["bands"], list[Band]),
                samples=state["samples"],
                peak=state["peak"],
                trained_at=state["trained_at"],
                errors={
                    method: {
                        horizon: (math.nan if a is None else a, math.nan if b is None else b)
                        for horizon, (a, b) in row.items()
                    }
                    for method, row in state["errors"].items()
                },
                holidays=frozenset(state["holidays"]),
                failures=dict(state["failures"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, msgspec.MsgspecError) as error:
            raise ModelError(f"forecaster state is damaged ({type(error).__name__}: {error}); train anew") from None


def _checked_horizons(horizons: Sequence[int]) -> tuple[int, ...]:
    bad = [h for h in horizons if not 1 <= h <= MAX_HORIZON_MINUTES or int(h) != h]
    if bad or not horizons:
        raise HistoryError(f"horizon {bad or 'list'} is empty or outside 1 to {MAX_HORIZON_MINUTES} minutes")
    return tuple(sorted({int(h) for h in horizons}))


def candidates(
    samples: int, config: ProphetSettings | None, days: Mapping[dt.date, str]
) -> dict[str, Callable[[], Model]]:
    """The models that a history of that many hours is worth; the specified one first."""
    if samples < ARIMA_FROM_HOURS:
        return {SeasonalMean.name: SeasonalMean}
    first: dict[str, Callable[[], Model]] = {}
    if samples >= PROPHET_FROM_HOURS:
        asked = {} if config is None else config.model_dump()
        mode = {"mode": asked.pop("seasonality_mode")} if asked else {}
        first[FrozenProphet.name] = lambda: FrozenProphet(**mode, **asked, holidays=days)
    else:
        first[Arima.name] = Arima
    rest = [model for model in (Ridge, LogRidge, SeasonalMean, SeasonalNaive) if samples >= model.min_hours]
    return first | {model.name: model for model in rest}


def _judge(
    past: Timeline, makers: dict[str, Callable[[], Model]], minutes: tuple[int, ...], samples: int
) -> tuple[list[Band], dict[str, dict[str, tuple[float, float]]], dict[str, str]]:
    """Backtest the candidates and choose; adds ARIMA to them when Prophet fails, as the specification has it."""
    if samples < ARIMA_FROM_HOURS:
        model = SeasonalMean().fit(past)
        return [uninformed(past.values, _fitted(model, past), {model.name: 1.0})], {}, {}
    backtest = roll(past, makers, plan_folds(len(past)))
    preferred = next(iter(makers))
    if preferred == FrozenProphet.name and preferred in backtest.failures:
        makers[Arima.name] = Arima
        substitute = roll(past, {Arima.name: Arima}, plan_folds(len(past)))
        backtest.forecasts |= substitute.forecasts
        backtest.failures |= substitute.failures
    ends = sorted({min(math.ceil(h / 60), MAX_LEAD) for h in minutes} | {MAX_LEAD})
    if not np.isfinite(backtest.actual[:, : ends[0]]).any():
        model = SeasonalMean().fit(past)
        return [uninformed(past.values, _fitted(model, past), {model.name: 1.0})], {}, backtest.failures
    bands = choose(backtest, ends, preferred)
    return bands, _errors(backtest, bands, minutes), backtest.failures


def _errors(
    backtest: Backtest, bands: list[Band], minutes: tuple[int, ...]
) -> dict[str, dict[str, tuple[float, float]]]:
    served = np.empty_like(backtest.actual)
    first = 0
    for band in bands:
        rows = {name: row[:, first : band.upto] for name, row in backtest.forecasts.items()}
        served[:, first : band.upto] = blended(rows, band.weights)
        first = band.upto
    every = {"served": served, **backtest.forecasts}
    return {name: errors_by_horizon(backtest.actual, rows, minutes) for name, rows in every.items()}


def _fitted(model: SeasonalMean, past: Timeline) -> Floats:
    """The model's own view of the known hours: its forecast of the week that repeats them."""
    ahead = Timeline(
        past.values, np.concatenate((past.local[: len(past)],) * 2), np.concatenate((past.holiday[: len(past)],) * 2)
    )
    return model.predict(ahead, len(past))


def _timeline(known: pd.Series[float], holidays: frozenset[int]) -> Timeline:
    """The hours as arrays, with the calendar of the hours to come."""
    index = stamps(known)
    local = np.concatenate([_local(index), _local(following(index, _MAX_AHEAD))])
    return Timeline(np.asarray(known, dtype=np.float64), local, np.isin(local // 86_400, list(holidays)))


def _local(index: pd.DatetimeIndex) -> NDArray[np.int64]:
    """Seconds on the local clock."""
    return epoch(index if index.tz is None else index.tz_localize(None))


def _by_level(row: Floats) -> dict[float, float]:
    return {level: float(value) for level, value in zip(LEVELS, row, strict=True)}
