"""ARIMA for short histories: a daily cycle of four harmonics, and an ARIMA(2, 0, 1) on what is left, on log(1 + count).

statsmodels estimates; the fitted numbers are then run forward here, from whatever origin is asked for.
"""

from __future__ import annotations

import warnings
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.models.base import State, Timeline, pack
from nhm_sched_plugin.forecasting.series import Floats

__all__ = ["Arima"]

_HARMONICS: Final = 4
_ORDERS: Final = ((2, 0, 1), (1, 0, 0))
"""The second stands in when the first cannot be estimated."""
_MAX_HOURS: Final = 1000


class Arima:
    name = "arima"
    min_hours = 72

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
        past = past.interpolated().until(len(past), _MAX_HOURS)
        basis = _harmonics(past.local[: len(past) + steps])
        rest = np.log1p(past.values) - basis[: len(past)] @ self._cycle
        p, q = len(self._ar), len(self._ma)
        values, shocks = [0.0] * p, [0.0] * q
        for known in (*rest, *[np.nan] * steps):
            expected = sum(c * v for c, v in zip(self._ar, reversed(values[-p:] if p else []), strict=False))
            expected += sum(c * v for c, v in zip(self._ma, reversed(shocks[-q:] if q else []), strict=False))
            missing = bool(np.isnan(known))
            values.append(float(expected if missing else known))
            shocks.append(0.0 if missing else float(known - expected))
        ahead = np.array(values[len(values) - steps :])
        level = np.clip(basis[len(past) :] @ self._cycle + ahead, 0.0, 40.0)
        return np.asarray(np.expm1(level), dtype=np.float64)

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
