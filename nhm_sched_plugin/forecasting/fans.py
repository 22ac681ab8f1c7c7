"""From a rolled-out evaluation to what its page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nhm_sched_plugin.forecasting.evaluation import SERVED
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.scores import (
    TARGETS,
    Evaluation,
    Rolled,
    inside,
    paired,
    reliability,
    sums,
    table,
)
from nhm_sched_plugin.forecasting.series import Floats, epoch, stamps
from nhm_sched_plugin.observe.backtest_page import BacktestData, Fan, MethodError

__all__ = ["page_of"]

_BEFORE = 48
"""Hours shown before an origin."""


def page_of(rolled: Rolled, name: str, horizons: Sequence[int], base: str = SERVED, **about: Any) -> BacktestData:
    """All that a page about `base` shows; `about` sets fields such as `command` and `environment`."""
    index = stamps(rolled.known)
    clock = epoch(index if index.tz is None else index.tz_localize(None))
    spread: Mapping[str, Any] = {}
    found = rolled.methods.get(base)
    if found is not None and found.quantiles is not None:
        below, bins = reliability(rolled.actual, found.quantiles)
        spread = {
            "fans": _fans(rolled, found.mean, found.quantiles, clock),
            "inside_80": _by_lead(rolled.actual, found.quantiles, 80),
            "inside_95": _by_lead(rolled.actual, found.quantiles, 95),
            "levels": list(LEVELS),
            "below": below.tolist(),
            "bins": bins.tolist(),
        }
    return BacktestData(
        name=name,
        hours=len(rolled.known),
        origins=len(rolled.origins),
        first=_moment(clock, int(rolled.origins[0])),
        last=_moment(clock, int(rolled.origins[-1])),
        errors=[_error(rolled, row, base) for row in table(rolled, horizons)],
        base=base,
        targets={horizon: TARGETS[horizon] for horizon in horizons if horizon in TARGETS},
        failures=rolled.failures,
        **spread,
        **about,
    )


def _moment(clock: Any, origin: int) -> float:
    """The start of the first hour that is forecast from there."""
    return float(clock[origin - 1] + 3600)


def _error(rolled: Rolled, row: Evaluation, base: str) -> MethodError:
    compared = row.method != base and base in rolled.methods
    difference = paired(rolled, row.method, row.horizon_minutes, base) if compared else None
    return MethodError(
        method=row.method,
        horizon_minutes=row.horizon_minutes,
        mape=_finite(row.mape),
        wape=_finite(row.wape),
        smape=_finite(row.smape),
        mase=_finite(row.mase),
        covers_80=row.covers_80,
        covers_95=row.covers_95,
        fit_seconds=row.fit_seconds,
        predict_seconds=row.predict_seconds,
        worse=difference if difference is not None and all(map(math.isfinite, difference)) else None,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _by_lead(actual: Floats, quantiles: Floats, percent: int) -> list[float | None]:
    hits = inside(actual, quantiles, percent)
    return [float(np.nanmean(column) * 100) if np.isfinite(column).any() else None for column in hits.T]


def _fans(rolled: Rolled, mean: Floats, quantiles: Floats, clock: Any) -> list[Fan]:
    """A good, a typical and a bad forecast: a tenth, half and all of the way up the errors of the whole forecasts."""
    over, under = sums(rolled.actual, mean, "wape")
    judged = np.flatnonzero(under > 0)
    if not len(judged):
        return []
    wrong = 100 * over[judged] / under[judged]
    order = judged[np.argsort(wrong, kind="stable")]
    places = {"a good one": 0.1, "a typical one": 0.5, "the worst one": 1.0}
    picked = {title: int(order[round(share * (len(order) - 1))]) for title, share in places.items()}
    return [_fan(title, rolled, i, quantiles[i], float(100 * over[i] / under[i]), clock) for title, i in picked.items()]


def _fan(title: str, rolled: Rolled, i: int, quantiles: Floats, error: float, clock: Any) -> Fan:
    origin = int(rolled.origins[i])
    before = np.asarray(rolled.known, dtype=np.float64)[max(origin - _BEFORE, 0) : origin]
    return Fan(
        title=title[:1].upper() + title[1:],
        origin=_moment(clock, origin),
        error=error,
        history=[_finite(float(value)) for value in before],
        actual=[_finite(float(value)) for value in rolled.actual[i]],
        low_95=quantiles[:, 0].tolist(),
        low_80=quantiles[:, 1].tolist(),
        median=quantiles[:, 2].tolist(),
        high_80=quantiles[:, 3].tolist(),
        high_95=quantiles[:, 4].tolist(),
    )
