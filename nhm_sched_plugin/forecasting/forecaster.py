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

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.correction import Correction
from nhm_sched_plugin.forecasting.covariates import MAX_AHEAD, Covariates
from nhm_sched_plugin.forecasting.intervals import LEVELS, bottleneck_probability, confidence
from nhm_sched_plugin.forecasting.judge import MODELS, candidates, judge
from nhm_sched_plugin.forecasting.models.base import WEEK, Model, Timeline, pack
from nhm_sched_plugin.forecasting.selection import Band, plan
from nhm_sched_plugin.forecasting.series import (
    Floats,
    HistoryError,
    epoch,
    following,
    hours,
    join,
    stamps,
)
from nhm_sched_plugin.forecasting.table import MAX_HORIZON_MINUTES, SliceForecast
from nhm_sched_plugin.forecasting.tracking import COMPARED_HOURS, Tracker
from nhm_sched_plugin.types import Forecast, ForecastPoint

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import ProphetSettings

__all__ = ["LoadForecaster"]

_STATE_VERSION: Final = 2
_MEMORY: Final = 8 * WEEK
"""Known hours that a fitted forecaster keeps: what its models look back on."""
_MAX_OVER_PEAK: Final = 3.0
"""No forecast exceeds this many times the busiest hour ever seen."""


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
        covariates: Covariates,
        failures: dict[str, str] | None = None,
        sums: list[Band] | None = None,
    ) -> None:
        self._known = known
        self._models = models
        self._covariates = covariates
        self._ahead: Floats | None = None
        """What each model expects of the hours after the origin (models x hours); None: not asked yet."""
        self._plan = plan(bands, list(models), MAX_AHEAD)
        self._tracker = Tracker()
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
        self.sums = sums or []
        """Spread of the tickets of all hours up to each band's end."""
        self.failures = failures or {}
        """Models that could not be fitted, and why."""
        self.backtest: Floats | None = None
        """After `fit`: its forecasts at the origins of its backtest (`plan_folds`), a row each. Not in the state."""

    @classmethod
    def fit(
        cls,
        history: pd.Series[Any],
        horizons: Sequence[int] = (60, 360, 1440),
        country: str | None = "BR",
        config: ProphetSettings | None = None,
        clock: Callable[[], float] = time.time,
        *,
        shortlist: Sequence[str] | None = None,
        holidays: Mapping[dt.date, str] | None = None,
        regressors: pd.DataFrame | None = None,
    ) -> Self:
        """Fit on counts per hour or finer, in any order, with gaps.

        From 1000 hours on Prophet as specified and the other models, from 100 on ARIMA and those that so little is
        enough for, weighted by a rolling-origin backtest; below: the seasonal mean. `country` (ISO 3166) gives the
        public holidays, `holidays` adds your own. `regressors` are numbers by hour, past and as far ahead as they are
        known (prices, campaigns); an hour without one counts as average. `shortlist` tries only these models. Raises
        `HistoryError` (a ValueError) for a history, horizon, country or regressor that cannot be used.
        """
        minutes = _checked_horizons(horizons)
        known = hours(history)
        covariates = Covariates.of(known, country, holidays, regressors)
        samples = int(known.notna().sum())
        makers = candidates(samples, config, covariates.dates, shortlist)
        judged = judge(covariates.timeline(known), makers, minutes, samples)
        made = cls(
            known=known.iloc[-_MEMORY:],
            horizons=minutes,
            country=country,
            models=judged.models,
            bands=judged.bands,
            samples=samples,
            peak=float(known.max()),
            trained_at=clock(),
            errors=judged.errors,
            covariates=covariates,
            failures=judged.failures,
            sums=judged.sums,
        )
        made.backtest = judged.served
        return made

    def refit(
        self,
        history: pd.Series[Any],
        clock: Callable[[], float] = time.time,
        *,
        regressors: pd.DataFrame | None = None,
    ) -> Self:
        """The same models, weights and spreads, learned anew from another (longer) history, without a backtest.

        A model without enough history there keeps what it knows. `regressors` as in `update`; a forecaster from a state
        knows those of the last weeks only, so give them for the whole history. Raises `HistoryError` for an unusable
        history or regressors.
        """
        known = hours(history)
        covariates = self._covariates if regressors is None else self._covariates.renewed(regressors, known)
        past = covariates.timeline(known)
        samples = int(known.notna().sum())
        return type(self)(
            known=known.iloc[-_MEMORY:],
            horizons=self.horizons,
            country=self.country,
            models={
                name: model.fresh().fit(past) if samples >= model.min_hours else model
                for name, model in self._models.items()
            },
            bands=self.bands,
            samples=samples,
            peak=float(known.max()),
            trained_at=clock(),
            errors=self.errors,
            covariates=covariates,
            failures=self.failures,
            sums=self.sums,
        )

    @property
    def origin(self) -> pd.Timestamp:
        """End of the last known hour: where forecasts start."""
        return following(stamps(self._known), 1)[0]

    def method(self, horizon_minutes: int) -> str:
        """Which model serves that horizon; names joined by `+` are their weighted mean, largest weight first."""
        return self._band(math.ceil(horizon_minutes / 60)).method

    @property
    def regressors(self) -> tuple[str, ...]:
        """Names of the regressors that it was fitted with."""
        return self._covariates.names

    @property
    def holidays(self) -> dict[dt.date, str]:
        """Days and names, the country's and the user's."""
        return self._covariates.dates

    def inform(self, regressors: pd.DataFrame) -> Self:
        """Newer regressors: from their first hour on they stand alone, before it those of the fit stay.

        Columns that the fit did not have are ignored. Raises `HistoryError` when one that it had is missing, when it
        had none, or for another kind of time zone than the history's.
        """
        self._covariates, self._ahead = self._covariates.renewed(regressors, self._known), None
        return self

    def update(self, recent: pd.Series[Any], *, regressors: pd.DataFrame | None = None) -> Self:
        """Move the origin to the last stamp of `recent` without a refit; where it overlaps, the newer count stands.

        `regressors` are what is known by now, past and ahead (see `inform`), scaled as those of the fit were.

        The new hours are compared with what was forecast for them: a level shift or an outage that the models do not
        follow by themselves corrects what comes (see `correction`). Raises `HistoryError` for counts that cannot be
        used, or with a time zone where the history has none.
        """
        merged = join(self._known, hours(recent))
        if regressors is not None:
            self.inform(regressors)
        self._compare(merged)
        self.peak = max(self.peak, float(merged.max()))
        self._known, self._ahead = merged.iloc[-_MEMORY:], None
        return self

    @property
    def correction(self) -> Correction:
        """What the hours since the fit say about the hours ahead; its `kind` names a level shift or an outage."""
        return self._tracker.correction

    def _compare(self, merged: pd.Series[float]) -> None:
        """Hold the new hours of `merged` against what the models would have said an hour before each."""
        fresh = int((merged.index > self._known.index[-1]).sum())
        recent = merged.iloc[-_MEMORY - fresh :]
        origins = range(len(recent) - min(fresh, COMPARED_HOURS), len(recent))
        if fresh > len(self._known) or not origins or origins[0] < 1:
            self._tracker = Tracker() if fresh else self._tracker
            return
        past = self.timeline(recent)
        rows = np.array([model.next_hours(past, origins) for model in self._models.values()])
        rows = np.clip(np.nan_to_num(rows), 0.0, _MAX_OVER_PEAK * self.peak)
        said = [self._plan.read(expected[:, None]) for expected in rows.T]
        means, quantiles = np.array([mean[0] for mean, _ in said]), np.array([spread[0] for _, spread in said])
        self._tracker.note(past.values[origins[0] :], means, quantiles)

    def starting(self, known: pd.Series[float]) -> Self:
        """Forget the counts it has and start at the end of these (as `hours` makes them), for a backtest."""
        self._known, self._ahead, self._tracker = known.iloc[-_MEMORY:], None, Tracker()
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

    def total(self, horizon_minutes: int) -> tuple[float, dict[float, float]]:
        """Tickets of *all* hours up to the horizon: mean and quantiles, calibrated as those of an hour are.

        For a horizon that was not judged the spread is that of the next longer one. Where nothing could be held out,
        the hours are taken to err together: the quantiles are the sums of theirs.
        """
        (horizon,) = _checked_horizons((horizon_minutes,))
        mean, quantiles = self.evaluate(math.ceil(horizon / 60))
        if not self.sums:
            return float(mean.sum()), _by_level(quantiles.sum(axis=0))
        band = next((band for band in self.sums if len(mean) <= band.upto), self.sums[-1])
        return float(mean.sum()), _by_level(plan([band], [], 1).quantiles(mean.sum(keepdims=True))[0])

    def table(self, hours: int = 384, **about: Any) -> SliceForecast:
        """The next `hours` (at most 504) as a row of the forecast table; `about` sets its other fields, e.g. `share`.

        A naive history is taken for UTC here: the table counts in Unix seconds.
        """
        if not 1 <= hours <= MAX_AHEAD:
            raise HistoryError(f"hours = {hours} is outside 1 to {MAX_AHEAD}")
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
        """Mean (steps) and quantiles (steps x levels) of the hours after the origin; at most 504."""
        mean, quantiles = self._expected(steps)
        self._tracker.correct(mean, quantiles)
        return mean, quantiles

    def _expected(self, steps: int) -> tuple[Floats, Floats]:
        """What the models expect, uncorrected."""
        if self._ahead is None:
            past = self.timeline(self._known)
            rows = [np.nan_to_num(model.predict(past, MAX_AHEAD)) for model in self._models.values()]
            self._ahead = np.clip(np.array(rows), 0.0, _MAX_OVER_PEAK * self.peak)
        return self._plan.read(self._ahead[:, :steps])

    def timeline(self, known: pd.Series[float]) -> Timeline:
        """Hourly counts as the models take them, with this forecaster's holidays and regressors."""
        return self._covariates.timeline(known)

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
            "ahead": None if self._ahead is None else [pack(row) for row in self._ahead],
            "bands": msgspec.to_builtins(self.bands),
            "tracked": self._tracker.to_state(),
            "samples": self.samples,
            "peak": self.peak,
            "trained_at": self.trained_at,
            "errors": {
                method: {
                    horizon: [None if math.isnan(value) else value for value in pair] for horizon, pair in row.items()
                }
                for method, row in self.errors.items()
            },
            "covariates": self._covariates.to_state(*map(int, epoch(stamps(self._known))[[0, -1]])),
            "failures": self.failures,
            "sums": msgspec.to_builtins(self.sums),
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
            made = cls(
                known=pd.Series(np.array(state["known"], dtype=np.float64), index=index, name="volume"),
                horizons=tuple(state["horizons"]),
                country=state["country"],
                models={name: MODELS[name].from_state(inner) for name, inner in state["models"].items()},
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
                covariates=Covariates.from_state(state["covariates"]),
                failures=dict(state["failures"]),
                sums=msgspec.convert(state["sums"], list[Band]),
            )
            made._ahead = None if state["ahead"] is None else np.array(state["ahead"], dtype=np.float64)
            made._tracker = Tracker.from_state(state["tracked"])
            return made
        except (KeyError, TypeError, ValueError, AttributeError, msgspec.MsgspecError) as error:
            raise ModelError(f"forecaster state is damaged ({type(error).__name__}: {error}); train anew") from None


def _checked_horizons(horizons: Sequence[int]) -> tuple[int, ...]:
    bad = [h for h in horizons if not 1 <= h <= MAX_HORIZON_MINUTES or int(h) != h]
    if bad or not horizons:
        raise HistoryError(f"horizon {bad or 'list'} is empty or outside 1 to {MAX_HORIZON_MINUTES} minutes")
    return tuple(sorted({int(h) for h in horizons}))


def _by_level(row: Floats) -> dict[float, float]:
    return {level: float(value) for level, value in zip(LEVELS, row, strict=True)}
