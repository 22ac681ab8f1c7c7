"""A correction of the hours ahead: what `shift` finds out, and what forecasts are served with. Pure, stdlib only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from nhm_sched_plugin.forecasting.intervals import LEVELS

__all__ = ["LEADS", "MAX_FACTOR", "UNCORRECTED", "Correction", "corrected"]

MAX_FACTOR: Final = 8.0
"""No correction multiplies or divides a forecast by more."""
LEADS: Final = (1, 2, 3, 6, 12, 24)
"""Hours ahead for which the persistence of an error is learned; geometric in between and beyond."""

_NORMAL: Final = (-1.959964, -1.281552, 0.0, 1.281552, 1.959964)
"""The standard normal quantiles at LEVELS."""


class Correction(NamedTuple):
    """What the last hours say about the hours ahead. `UNCORRECTED` says nothing."""

    level: float = 0.0
    """Log of what the load is now, as a multiple of what was forecast."""
    persistence: tuple[float, ...] = (0.0,) * len(LEADS)
    """Share of `level` left after each of `LEADS`, in [0, 1], falling."""
    outage_h: float = 0.0
    """Hours without tickets so far, when that is an outage; 0: tickets arrive."""
    doubt: float = 0.0
    """Spread of `level` that the forecast's own quantiles do not hold, in log units."""
    kind: str = "none"
    """`none` (within what was to be expected), `shift_up`, `shift_down` or `outage`."""
    since: float = 0.0
    """Hours since the shift or the outage began."""

    def factor(self, ahead: float) -> float:
        """On the tickets expected in the hour that ends `ahead` hours from now; in [1/8, 8], in an outage from 0 on."""
        return math.exp(self.level * self.left(ahead)) * (1.0 - self.silence(ahead))

    def left(self, ahead: float) -> float:
        """Share of the level's error left in the hour that ends `ahead` hours from now."""
        if ahead <= LEADS[0]:
            return self.persistence[0]
        for (near, a), (far, b) in pairwise(zip(LEADS, self.persistence, strict=True)):
            if ahead <= far:
                part = (ahead - near) / (far - near)
                return math.pow(a, 1 - part) * math.pow(b, part) if b > 0 else a * (1 - part)
        return self.persistence[-1] * math.pow(0.5, (ahead - LEADS[-1]) / LEADS[-1])

    def silence(self, ahead: float) -> float:
        """P(the outage is still on then): `(age / (age + ahead))²`, so that it is expected to last as long again."""
        share = self.outage_h / (self.outage_h + ahead) if self.outage_h > 0 else 0.0
        return share * share

    def sure(self, ahead: float) -> float:
        """Factor on the confidence of that hour, in (0, 1]: lower the further the correction reaches."""
        moved = abs(self.level) * self.left(ahead)
        return (1.0 - 0.5 * self.silence(ahead)) / (1.0 + 0.5 * moved + self.doubt * self.left(ahead))


UNCORRECTED: Final = Correction()


def corrected(mean: float, quantiles: Sequence[float], ahead: float, by: Correction) -> tuple[float, list[float]]:
    """Mean and quantiles (at LEVELS) of the hour that ends `ahead` hours from now, corrected.

    All of them scale with the level, and their distance to the mean grows by the doubt about it:
    `q' = m' ± hypot(f (q - m), z doubt m')`. In an outage they are those of a mixture: nothing with probability
    `silence`, else the load as it was.
    """
    left = by.left(ahead)
    level, doubt = math.exp(by.level * left), by.doubt * left
    centre = level * mean
    moved: list[float] = []
    for value, z in zip(quantiles, _NORMAL, strict=True):
        side = value - mean or z
        new = centre + math.copysign(math.hypot(level * (value - mean), z * doubt * centre), side)
        moved.append(max(new, moved[-1] if moved else 0.0))
    silence = by.silence(ahead)
    if silence <= 0:
        return centre, moved
    return (1.0 - silence) * centre, [_at((level_ - silence) / (1.0 - silence), moved) for level_ in LEVELS]


def _at(probability: float, quantiles: Sequence[float]) -> float:
    """The quantile at that level, linear between the known ones and down to nothing."""
    if probability <= 0:
        return 0.0
    for (low, a), (high, b) in pairwise([(0.0, 0.0), *zip(LEVELS, quantiles, strict=True)]):
        if probability <= high:
            return min(a + (b - a) * (probability - low) / (high - low), b)  # rounding may go beyond it
    return quantiles[-1]
