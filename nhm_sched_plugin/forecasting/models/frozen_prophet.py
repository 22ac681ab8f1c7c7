"""Prophet as the specification configures it, frozen after the fit into a few hundred numbers.

Prophet (and Stan) fit; forecasting from the frozen numbers needs numpy only and gives what `Prophet.predict` gives.
Formulas: trend and Fourier terms of the Prophet paper (Taylor and Letham 2018, sections 3.1 and 3.2).
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import Fold, Plain, State, Timeline, pack
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["FrozenProphet", "kind_of_day"]

_YEARLY_FROM_HOURS: Final = 365 * 24
_SEED: Final = 20130101
_EPOCH: Final = dt.date(1970, 1, 1)
_EVERY_ROW: Final = 13 * 168
_KIND_ORDER: Final = 8
"""Fourier order of the daily cycle of a kind of day."""


class FrozenProphet(Plain):
    """Additive (or multiplicative) trend, daily, weekly and, from 365 days on, yearly seasonality, and holidays."""

    name: ClassVar[str] = "prophet"
    min_hours: ClassVar[int] = 1000
    rolls_on: ClassVar[bool] = False
    _kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of day with a daily cycle of their own; none: all days have the same."""

    def __init__(
        self,
        mode: str = "additive",
        changepoint_prior_scale: float = 0.05,
        seasonality_prior_scale: float = 10.0,
        holidays: Mapping[dt.date, str] | None = None,
    ) -> None:
        self._mode = mode
        self._changepoint_prior_scale = changepoint_prior_scale
        self._seasonality_prior_scale = seasonality_prior_scale
        self._holidays = dict(holidays or {})
        self._trend: State = {}
        self._seasons: list[tuple[float, Floats, int | None]] = []
        """Period in days, sine and cosine weights by rising order, and the kind of day it is for (None: all)."""
        self._effects: dict[int, float] = {}
        """Day since 1970 -> weight of its holidays."""

    def fresh(self) -> Self:
        return type(self)(self._mode, self._changepoint_prior_scale, self._seasonality_prior_scale, self._holidays)

    def fit(self, past: Timeline) -> Self:
        import pandas as pd

        past = past.interpolated()
        stamps = pd.to_datetime(past.local[: len(past)], unit="s")
        frame = pd.DataFrame({"ds": stamps, "y": self._forward(past.values)})
        for kind, name in enumerate(self._kinds):
            frame[name] = kind_of_day(past.local[: len(past)]) == kind
        model = _prophet()(
            seasonality_mode=self._mode,
            changepoint_prior_scale=self._changepoint_prior_scale,
            seasonality_prior_scale=self._seasonality_prior_scale,
            daily_seasonality=not self._kinds,
            weekly_seasonality=True,
            yearly_seasonality=len(past) >= _YEARLY_FROM_HOURS,
            holidays=_holiday_frame(self._holidays),
            uncertainty_samples=0,
        )
        for name in self._kinds:
            model.add_seasonality(name, period=1, fourier_order=_KIND_ORDER, condition_name=name)
        model.fit(_thinned(frame).dropna(), seed=_SEED)
        self._freeze(model)
        return self

    def _forward(self, values: Floats) -> Floats:
        return values

    def _backward(self, level: Floats) -> Floats:
        return level

    def _freeze(self, model: Any) -> None:
        beta = np.atleast_2d(model.params["beta"])[0]
        names = list(model.make_all_seasonality_features(model.history.head(2))[0].columns)
        weights = dict(zip(names, beta, strict=False))
        self._seasons = [
            (
                float(season["period"]),
                np.array([weights[f"{name}_delim_{i + 1}"] for i in range(2 * season["fourier_order"])]),
                self._kinds.index(name) if name in self._kinds else None,
            )
            for name, season in model.seasonalities.items()
        ]
        self._effects = {}
        for day, text in self._holidays.items():
            effect = sum(float(weights.get(f"{name}_delim_+0", 0.0)) for name in _names(text))
            self._effects[(day - _EPOCH).days] = effect
        self._trend = {
            "start": int(model.start.timestamp()),
            "span": float(model.t_scale.total_seconds()),
            "scale": float(model.y_scale),
            "k": float(np.ravel(model.params["k"])[0]),
            "m": float(np.ravel(model.params["m"])[0]),
            "delta": np.ravel(model.params["delta"]).tolist(),
            "changepoints": np.ravel(model.changepoints_t).tolist(),
        }

    def roll(self, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        """Fitted once, before the first fold: a fit is costly, and its trend and seasons hardly move in weeks."""
        self.fit(past.until(folds[0].start))
        whole = self.at(past.local)
        return np.array([whole[origin : origin + steps] for fold in folds for origin in fold.origins])

    def predict(self, past: Timeline, steps: int) -> Floats:
        return self.at(past.local[len(past) : len(past) + steps])

    def at(self, local: NDArray[np.int64]) -> Floats:
        """Tickets expected in the hours that start then (seconds on the local clock)."""
        return self._backward(self._level(local))

    def _level(self, local: NDArray[np.int64]) -> Floats:
        trend = self._trend
        t = (local - trend["start"]) / trend["span"]
        delta, changepoints = np.array(trend["delta"]), np.array(trend["changepoints"])
        passed = (t[:, None] >= changepoints[None, :]) * delta[None, :]
        line = (trend["k"] + passed.sum(axis=1)) * t + trend["m"] - passed @ changepoints
        days = local / 86_400
        term = np.array([self._effects.get(int(day), 0.0) for day in local // 86_400])
        for period, weights, kind in self._seasons:
            angle = 2 * np.pi * days[:, None] * np.arange(1, len(weights) // 2 + 1)[None, :] / period
            wave = np.sin(angle) @ weights[0::2] + np.cos(angle) @ weights[1::2]
            term += wave if kind is None else np.where(kind_of_day(local) == kind, wave, 0.0)
        scaled = line * (1 + term) if self._mode == "multiplicative" else line + term
        return np.asarray(scaled * trend["scale"], dtype=np.float64)

    def to_state(self) -> State:
        return {
            "mode": self._mode,
            "changepoint_prior_scale": self._changepoint_prior_scale,
            "seasonality_prior_scale": self._seasonality_prior_scale,
            "holidays": {day.isoformat(): text for day, text in self._holidays.items()},
            "trend": self._trend,
            "seasons": [[period, pack(weights), kind] for period, weights, kind in self._seasons],
            "effects": {str(day): float(f"{effect:.7g}") for day, effect in self._effects.items()},
        }

    @classmethod
    def from_state(cls, state: State) -> Self:
        days = {dt.date.fromisoformat(day): text for day, text in state["holidays"].items()}
        model = cls(state["mode"], state["changepoint_prior_scale"], state["seasonality_prior_scale"], days)
        model._trend = dict(state["trend"])
        model._seasons = [
            (float(period), np.array(weights, dtype=np.float64), kind) for period, weights, kind in state["seasons"]
        ]
        model._effects = {int(day): float(effect) for day, effect in state["effects"].items()}
        return model


def _thinned(frame: Any) -> Any:
    """At most some four thousand rows: all of the last weeks, and of the time before every 5th, 7th, 11th, ... hour.

    A trend with 25 changepoints and a few dozen waves does not need every hour of two years, and Stan's time grows with
    them. No stride shares a factor with 24, so every hour of the day stays in.
    """
    older = len(frame) - _EVERY_ROW
    if older <= _EVERY_ROW:
        return frame
    stride = next((stride for stride in (5, 7, 11, 13, 17, 19, 23) if older <= stride * _EVERY_ROW), 25)
    import pandas as pd

    return pd.concat([frame.iloc[:older:stride], frame.iloc[older:]])


def kind_of_day(local: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 on a weekday, 1 on Saturday, 2 on Sunday, of hours in seconds on the local clock."""
    return np.maximum((local // 86_400 + 3) % 7 - 4, 0)


def _names(text: str) -> Iterable[str]:
    return text.split("; ")


def _holiday_frame(holidays: Mapping[dt.date, str]) -> Any:
    """The holidays as Prophet takes them: one row per day and name."""
    import pandas as pd

    rows = [(pd.Timestamp(day), name) for day, text in holidays.items() for name in _names(text)]
    return pd.DataFrame(rows, columns=["ds", "holiday"]) if rows else None


def _prophet() -> Any:
    """The class, with its loggers quiet: Stan and Prophet report every fit, and a backtest makes many."""
    logging.getLogger("prophet.plot").setLevel(logging.CRITICAL)  # says at its import what it cannot draw with
    from cmdstanpy.utils import get_logger
    from prophet import Prophet

    logging.getLogger("prophet").setLevel(logging.CRITICAL)  # after the import and the first use: those set the levels
    get_logger().setLevel(logging.CRITICAL)
    return Prophet
