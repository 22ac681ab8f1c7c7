"""Intervals for what follows each other in time: whole clusters (hours, days) are drawn anew, not single decisions.

The cluster bootstrap (Field and Welsh, 2007): decisions within a cluster may depend on each other in any way, clusters
are taken for independent. The interval is the estimate +- t(C - 1) standard errors of the draws, widened by
sqrt(C / (C - 1)): with few clusters C, percentiles of the draws are too narrow (Cameron, Gelbach and Miller, 2008).
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWS", "Bools", "Floats", "Ints", "Replicates", "clusters", "interval", "multiplicities", "sums"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
DRAWS: Final = 1000
LEVEL: Final = 0.95
MANY_DAYS: Final = 20
"""From so many days on, days are the clusters: no hour is like the next, but days nearly are."""


class Replicates(NamedTuple):
    """An estimate and what it would have been on other draws of the clusters."""

    value: float
    draws: Floats

    def minus(self, other: Replicates) -> Replicates:
        """The difference, paired: both sides see the same draws."""
        return Replicates(self.value - other.value, self.draws - other.draws)


def clusters(at: Floats, block_s: float) -> Ints:
    """The cluster of each moment (Unix seconds), numbered from 0: its day if there are 20 of them, else its block."""
    days = np.unique(at // 86_400)
    width = 86_400.0 if len(days) >= MANY_DAYS and block_s <= 86_400 else block_s
    return np.unique(at // width, return_inverse=True)[1].astype(np.int64)


def multiplicities(count: int, draws: int = DRAWS, seed: int = 0) -> Floats:
    """How often each of `count` clusters is in each draw, (draws, count). Raises `ValueError` without clusters."""
    if count < 1:
        raise ValueError("a bootstrap needs at least one cluster")
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=draws)
    return drawn.astype(np.float64)


def sums(values: Floats, cluster: Ints, count: int) -> Floats:
    """Sum of the values in each cluster."""
    return np.bincount(cluster, weights=values, minlength=count).astype(np.float64)


def interval(found: Replicates, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Ends of the interval; not finite with fewer than two clusters."""
    if count < 2:
        return -math.inf, math.inf
    from scipy import special

    functions: Any = special
    usable = found.draws[np.isfinite(found.draws)]
    error = float(np.std(usable, ddof=1)) if len(usable) > 1 else math.inf
    half = float(functions.stdtrit(count - 1, 0.5 + level / 2)) * error * math.sqrt(count / (count - 1))
    return found.value - half, found.value + half
