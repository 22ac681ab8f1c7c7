"""Forecasts of parts and of the whole, made to agree: at every hour the slices add up to the total.

Trace-minimising reconciliation with diagonal weights (MinT shrunk to its diagonal, WLS_v): of all sets of forecasts
that add up, the one with the least `sum (new - old)^2 / variance`. Wickramasuriya, Athanasopoulos and Hyndman, "Optimal
forecast reconciliation for hierarchical and grouped time series through trace minimization", JASA 114 (2019).
On a tree with diagonal weights their matrix formula comes down to two passes: up, each node's own forecast and the sum
of its parts are averaged by precision; down, what is left of the difference goes to the parts by their variances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.series import Floats
from nhm_sched_plugin.forecasting.table import SliceForecast

__all__ = ["add_up", "parent_key", "reconcile"]

_WIDTH: Final = 2.563103
"""Distance of the 0.1 and 0.9 quantiles of a normal distribution, in standard deviations."""
_LEAST_SPREAD: Final = 0.01
"""No forecast is taken for surer than one percent of its mean."""
_DECIMALS: Final = 6
_NOTHING: Final = 1e-6
"""Rest of a whole that is not worth a part of its own."""


def reconcile(rows: Mapping[str, SliceForecast]) -> dict[str, SliceForecast]:
    """The rows with means that add up: total -> task types -> (task type, risk band); none is negative.

    What of a whole's `share` its parts do not cover is one more part, forecast as that share of the whole. A row's
    variance in an hour is read off its 80 % interval; its quantiles move with its mean. Rows over other hours than
    the total's (slices that were not trained this time) and risk bands without a task type stay as they are.
    """
    keys = _together(rows)
    if len(keys) < 2:
        return dict(rows)
    position = {key: i for i, key in enumerate(keys)}
    above = [parent_key(key, position) for key in keys]
    parents = [-1 if key is None else position[key] for key in above]
    mean = np.array([rows[key].mean for key in keys], dtype=np.float64)
    variance = np.array([_variance(rows[key]) for key in keys])
    rests = [(i, rest) for i, rest in _rests(parents, [rows[key].share for key in keys]).items() if rest > _NOTHING]
    for i, rest in rests:
        parents.append(i)
        chance = rest * (1 - rest) * mean[i]
        mean = np.vstack((mean, rest * mean[i]))
        variance = np.vstack((variance, rest**2 * variance[i] + chance + _NOTHING))
    fitted = _rounded(parents, add_up(parents, mean, variance))
    return {**rows, **{key: _moved(rows[key], fitted[i]) for i, key in enumerate(keys)}}


def parent_key(key: str, known: Mapping[str, object] | set[str] | frozenset[str]) -> str | None:
    """The slice that this one is a part of, among the known ones: its task type, else the total, else None."""
    kind, separator, _ = key.partition("|")
    above = ([kind] if separator and kind else []) + ([""] if key else [])
    return next((other for other in above if other in known), None)


def _together(rows: Mapping[str, SliceForecast]) -> list[str]:
    """Keys of the tree over the total's hours, wholes before their parts."""
    lead = rows.get("") or next(iter(rows.values()), None)
    if lead is None:
        return []
    same = [key for key, row in rows.items() if (row.first_hour, len(row.mean)) == (lead.first_hour, len(lead.mean))]
    return sorted((key for key in same if not key.startswith("|")), key=lambda key: (key != "", "|" in key, key))


def _variance(row: SliceForecast) -> Floats:
    spread = (np.array(row.quantiles["0.9"]) - np.array(row.quantiles["0.1"])) / _WIDTH
    least = np.maximum(_LEAST_SPREAD * np.array(row.mean), 1e-3)
    return np.asarray(np.maximum(spread, least) ** 2, dtype=np.float64)


def _rests(parents: Sequence[int], shares: Sequence[float | None]) -> dict[int, float]:
    """Share of each whole that its parts do not cover; wholes of which shares are not known are left out."""
    found = {}
    for whole, parts in _children(parents).items():
        covered = [shares[i] for i in parts]
        share = 1.0 if shares[whole] is None else shares[whole]
        if share and None not in covered:
            found[whole] = max(1.0 - sum(part for part in covered if part is not None) / share, 0.0)
    return found


def add_up(parents: Sequence[int], mean: Floats, variance: Floats) -> Floats:
    """The nearest non-negative forecasts whose parts add up, nearness measured in variances.

    `mean` and `variance` (> 0) have a row per node and a column per hour; `parents[i]` is the row of node i's whole,
    -1 for a root, in any order. Where no part would fall below zero this is the trace-minimising solution; where one
    would, it is 0 and the others of its whole bear the rest.
    """
    children = _children(parents)
    order = _downward(children, [i for i, parent in enumerate(parents) if parent < 0])
    best, spread = np.maximum(mean, 0.0), variance.copy()
    for whole in reversed(order):
        if (parts := children.get(whole)) is None:
            continue
        total, doubt = best[parts].sum(axis=0), spread[parts].sum(axis=0)
        weight = doubt / (doubt + spread[whole])  # of the whole's own forecast
        best[whole] = weight * best[whole] + (1 - weight) * total
        spread[whole] = weight * spread[whole]
    for whole in order:
        if (parts := children.get(whole)) is not None:
            best[parts] = _spread_over(best[parts], spread[parts], best[whole])
    return best


def _children(parents: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    found: dict[int, list[int]] = {}
    for i, parent in enumerate(parents):
        if parent >= 0:
            found.setdefault(parent, []).append(i)
    return {whole: np.array(parts) for whole, parts in found.items()}


def _downward(children: Mapping[int, NDArray[np.int64]], roots: list[int]) -> list[int]:
    """Every node after its whole."""
    order = list(roots)
    for node in order:
        order.extend(int(part) for part in children.get(node, ()))
    return order


def _spread_over(parts: Floats, variance: Floats, total: Floats) -> Floats:
    """The parts nearest to these (rows) that add up to `total` (one per column) and are not negative.

    Projection on a weighted simplex: those that fall below zero are left out, until none does (Michelot 1986).
    """
    active = np.ones(parts.shape, dtype=bool)
    while True:
        weight = np.where(active, variance, 0.0)
        missing = total - np.where(active, parts, 0.0).sum(axis=0)
        step = missing / np.maximum(weight.sum(axis=0), 1e-300)
        moved = np.where(active, parts + step * weight, 0.0)
        below = moved < 0
        if not below.any():
            return moved
        active &= ~below


def _rounded(parents: Sequence[int], values: Floats) -> Floats:
    """Parts without a part of their own as short decimals, and wholes as exactly their sum."""
    children = _children(parents)
    rounded = np.round(values, _DECIMALS)
    for whole in reversed(_downward(children, [i for i, parent in enumerate(parents) if parent < 0])):
        if whole in children:
            rounded[whole] = np.round(rounded[children[whole]].sum(axis=0), _DECIMALS)
    return rounded


def _moved(row: SliceForecast, mean: Floats) -> SliceForecast:
    """The row with another mean; the distance of each quantile to it stays."""
    shift = mean - np.array(row.mean)
    quantiles = {
        level: np.round(np.maximum(np.array(values) + shift, 0.0), 4).tolist()
        for level, values in row.quantiles.items()
    }
    return msgspec.structs.replace(row, mean=mean.tolist(), quantiles=quantiles)
