"""ARIMA for short histories: a daily cycle of four harmonics, and an ARIMA(2, 0, 1) on what is left, on log(1 + count).

statsmodels estimates; the fitted numbers are then run forward here, from whatever origin is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import Fold, Plain, State, Timeline, pack
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["Arima"]

_HARMONICS: Final = 4
_ORDERS: Final = ((2, 0, 1), (1, 0, 0))
"""The second stands in when the first cannot be estimated."""
_MAX_HOURS: Final = 1000


class Arima(Plain):
    name: ClassVar[str] = "arima"
    min_hours: ClassVar[int] = 72
    rolls_on: ClassVar[bool] = False

    def __init__(self) -> None:
        self._cycle: Floats = np.zeros(1 + 2 * _HARMONICS)
        self._ar: Floats = np.zeros(0)
        self._ma: Floats = np.zeros(0)

    def fit(self, past: Timeline) -> Self:
        past = past.interpolated().until(len(past), _MAX_HOURS)
        level = np.log1p(past.values)
        known = ~np.isnan(level)
        basis = _harmonics(past.local[: len(past)])
        self._cycle = np.asarray(np.linalg.lstsq(basis[known], level[known], rcond=None)[0], dtype=np.float64)
        rest = np.where(known, level - basis @ self._cycle, 0.0)
        self._ar, self._ma = _estimate(rest)
        return self

    def predict(self, past: Timeline, steps: int) -> Floats:
        row: Floats = self._run(past.until(len(past), _MAX_HOURS), [min(len(past), _MAX_HOURS)], steps)[0]
        return row

    def next_hours(self, past: Timeline, origins: Sequence[int]) -> Floats:
        first = max(origins[0] - _MAX_HOURS, 0)
        window = past.until(origins[-1], origins[-1] - first)
        row: Floats = self._run(window, [origin - first for origin in origins], 1)[:, 0]
        return row

    def roll(self, past: Timeline, folds: Sequence[Fold], steps: int) -> Floats:
        """Fitted once, before the first fold (the library's search is what costs), and run once through all origins."""
        fitted = self.fit(past.until(folds[0].start))
        first = max(folds[0].start - _MAX_HOURS, 0)
        origins = [origin for fold in folds for origin in fold.origins]
        window = past.until(origins[-1], origins[-1] - first)
        return fitted._run(window, [origin - first for origin in origins], steps)

    def _run(self, past: Timeline, origins: Sequence[int], steps: int) -> Floats:
        """Forecasts (origins x steps), each from the hours before its origin (a number of hours of `past`)."""
        cycle = _harmonics(past.local[: len(past) + steps]) @ self._cycle
        level = np.log1p(past.values)
        ar, ma = self._ar.tolist(), self._ma.tolist()
        values, shocks = [0.0] * max(len(ar), 1), [0.0] * max(len(ma), 1)  # the newest first
        wanted, rows = set(origins), []
        for hour in range(len(past) + 1):
            if hour in wanted:
                rows.append(cycle[hour : hour + steps] + _ahead(values, shocks, ar, ma, steps))
            if hour == len(past):
                break
            expected = _dot(ar, values) + _dot(ma, shocks)
            known = float(level[hour] - cycle[hour])
            missing = known != known
            values = [expected if missing else known, *values[:-1]]
            shocks = [0.0 if missing else known - expected, *shocks[:-1]]
        return np.asarray(np.expm1(np.clip(rows, 0.0, 40.0)), dtype=np.float64)

    def to_state(self) -> State:
        return {"cycle": pack(self._cycle), "ar": pack(self._ar), "ma": pack(self._ma)}

    @classmethod
    def from_state(cls, state: State) -> Self:
        model = cls()
        model._cycle = np.array(state["cycle"], dtype=np.float64)
        model._ar = np.array(state["ar"], dtype=np.float64)
        model._ma = np.array(state["ma"], dtype=np.float64)
        return model


def _harmonics(local: NDArray[np.int64]) -> Floats:
    angle = 2 * np.pi * (local % 86_400) / 86_400
    waves = [wave(k * angle) for k in range(1, _HARMONICS + 1) for wave in (np.sin, np.cos)]
    return np.column_stack((np.ones(len(local)), *waves))


def _dot(weights: list[float], newest_first: list[float]) -> float:
    return sum(w * v for w, v in zip(weights, newest_first, strict=False))


def _ahead(values: list[float], shocks: list[float], ar: list[float], ma: list[float], steps: int) -> Floats:
    """What the process is expected to do next, shocks being zero from now on."""
    row = []
    for _ in range(steps):
        expected = _dot(ar, values) + _dot(ma, shocks)
        values, shocks = [expected, *values[:-1]], [0.0, *shocks[:-1]]
        row.append(expected)
    return np.array(row)


def _estimate(rest: Floats) -> tuple[Floats, Floats]:
    """AR and MA coefficients of the residuals; none for a series without any."""
    from statsmodels.tsa.arima.model import ARIMA

    if float(np.std(rest)) < 1e-9:
        return np.zeros(0), np.zeros(0)
    for order in _ORDERS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # starting values and convergence: the backtest judges the result
                fitted = ARIMA(rest, order=order, trend="n").fit(method="innovations_mle")
            ar, ma = np.asarray(fitted.arparams), np.asarray(fitted.maparams)
        except (ValueError, np.linalg.LinAlgError):
            continue
        if np.isfinite(ar).all() and np.isfinite(ma).all():
            return ar.astype(np.float64), ma.astype(np.float64)
    raise ValueError("no ARIMA order could be estimated on this history")
