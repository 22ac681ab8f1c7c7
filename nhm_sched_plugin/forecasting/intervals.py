"""What quantiles say: confidence, the risk of a bottleneck, the spread of a part of the whole. Pure, stdlib only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

__all__ = ["LEVELS", "MIN_CONFIDENT_SAMPLES", "bottleneck_probability", "confidence", "thin"]

LEVELS: Final = (0.025, 0.1, 0.5, 0.9, 0.975)
"""The quantile levels of every forecast: median, 80 % and 95 % interval."""

MIN_CONFIDENT_SAMPLES: Final = 1000
"""Hours of history from which the interval alone sets the confidence (the least that Prophet is given)."""

_Z: Final = (-1.959964, -1.281552, 0.0, 1.281552, 1.959964)
"""The standard normal quantiles at LEVELS."""


def confidence(quantiles: Mapping[float, float], samples: int) -> float:
    """How much a forecast says, in [0, 1]: `sqrt(min(samples, 1000) / 1000) / (1 + width / max(median, 1))`.

    `width` is that of the 80 % interval, in tickets. A forecast without spread from 1000 hours scores 1; a spread as
    wide as the median 0.5; with fewer than 100 hours of history nothing scores above 0.32.
    """
    width = max(quantiles[0.9] - quantiles[0.1], 0.0)
    evidence = math.sqrt(min(max(samples, 0), MIN_CONFIDENT_SAMPLES) / MIN_CONFIDENT_SAMPLES)
    return evidence / (1.0 + width / max(quantiles[0.5], 1.0))


def bottleneck_probability(quantiles: Mapping[float, float], capacity: float) -> float:
    """P(demand > capacity), in [0, 1], for a capacity in tickets an hour.

    Between the quantiles the distribution is linear, below the lowest it falls linearly to nothing at zero tickets,
    and above the highest it is the exponential tail through the 0.9 and 0.975 quantiles:
    `0.025 * exp(-ln(4) * (capacity - q975) / (q975 - q90))`.
    Raises ValueError for a capacity that is negative or NaN.
    """
    if not capacity >= 0:
        raise ValueError(f"capacity {capacity!r} is not a number of tickets an hour; give one >= 0")
    ends = [(0.0, 0.0), *((quantiles[level], level) for level in LEVELS)]
    top, lowest = ends[-1][0], ends[1][0]
    if capacity >= top:
        spread = top - quantiles[0.9]
        return (1 - LEVELS[-1]) * math.exp(-math.log(4) * (capacity - top) / spread) if spread > 0 else 0.0
    if capacity <= 0 < lowest:
        return 1.0
    for (low, below), (high, above) in pairwise(ends):
        if low <= capacity < high:
            return 1.0 - (below + (above - below) * (capacity - low) / (high - low))
    return 1.0


def thin(mean: float, quantiles: Sequence[float], share: float) -> tuple[float, list[float]]:
    """Mean and quantiles (at LEVELS) of a part of the tickets that holds `share` of them.

    The mean scales. The spread does not shrink as fast: which tickets fall into the part is chance too, with binomial
    variance `share * (1 - share) * mean`, which is added to the scaled squared distance of each quantile to the mean.
    """
    chance = share * (1.0 - share) * mean
    part = share * mean
    result: list[float] = []
    for value, z in zip(quantiles, _Z, strict=True):
        distance = math.hypot(share * (value - mean), z * math.sqrt(chance))
        moved = share * value if z == 0 else part + math.copysign(distance, z)
        result.append(max(moved, result[-1] if result else 0.0))
    return part, result
