"""A test that may be looked at every day: its error holds over all looks together, not for one look planned ahead.

Each block gives an unbiased look at the effect, whatever happened before it, because its arm was drawn with a known
probability p (augmented inverse weighting with means m1, m0 of the blocks before):

    x = m1 - m0 + A / p (y - m1) - (1 - A) / (1 - p) (y - m0)

Their mean gets a normal-mixture confidence sequence (Robbins, 1970; for randomised experiments Howard, Ramdas,
McAuliffe and Sekhon, 2021; with an estimated variance Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, 2024), and the
p-value that belongs to it, as in the mSPRT (Johari, Koomen, Pekelis and Walsh, 2017): the smallest level at which 0 was
ever outside. The variance is estimated, so it holds asymptotically; nothing is concluded before `START` blocks, of
which `EACH` in either arm.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np

from nhm_sched_plugin.experiment.bootstrap import Bools, Floats

__all__ = ["EACH", "START", "Sequence", "effects", "first_look", "sequence"]

START: Final = 20
EACH: Final = 10
TUNED_FOR: Final = 100
"""Blocks at which the sequence is about as narrow as it can be; at others it is a little wider."""


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """The effect as it was known after each block."""

    blocks: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """After the last block; holds at all times together."""
    p_value: float | None = None
    """Always valid: stop whenever you like. None: too few blocks."""
    reason: str = ""
    means: list[float] = []
    lows: list[float] = []
    highs: list[float] = []
    """From the first look on."""


def effects(value: Floats, treated: Bools, chance: Floats) -> Floats:
    """One look at the effect per block. `value`: mean of the block; `chance`: of treatment, strictly inside (0, 1)."""
    found = np.empty(len(value))
    total, count = np.zeros(2), np.zeros(2)
    for i, (y, arm, p) in enumerate(zip(value, treated.astype(int), chance, strict=True)):
        overall = total.sum() / max(count.sum(), 1.0)
        m0, m1 = np.where(count > 0, total / np.maximum(count, 1.0), overall) if i else (y, y)
        found[i] = m1 - m0 + (arm / p) * (y - m1) - ((1 - arm) / (1 - p)) * (y - m0)
        total[arm] += y
        count[arm] += 1
    return found


def first_look(treated: Bools) -> int:
    """After how many blocks there are `START`, with `EACH` in either arm; more than there are, if never."""
    fewest = np.minimum(np.cumsum(treated), np.cumsum(~treated))
    return max(START, int(np.searchsorted(fewest, EACH)) + 1)


def sequence(looks: Floats, level: float = 0.95, start: int = START) -> Sequence:
    """The confidence sequence of the mean of `looks`, in the order of time; the first `start` of them are one look."""
    n = len(looks)
    if n < start:
        return Sequence(blocks=n, reason=f"not enough data: {n} blocks; {START} are needed, with {EACH} in either arm")
    alpha = 1 - level
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / TUNED_FOR
    count = np.arange(1, n + 1, dtype=float)
    mean = np.cumsum(looks) / count
    spread = np.sqrt(np.maximum(np.cumsum(looks**2) / count - mean**2, 1e-18) * count / np.maximum(count - 1, 1))
    grown = count * rho2 + 1
    half = spread * np.sqrt(2 * grown / (count**2 * rho2) * np.log(np.sqrt(grown) / alpha))
    sure = np.sqrt(grown) * np.exp(-((count * mean / spread) ** 2) * rho2 / (2 * grown))
    shown = slice(start - 1, None)
    return Sequence(
        blocks=n,
        value=float(mean[-1]),
        low=float(mean[-1] - half[-1]),
        high=float(mean[-1] + half[-1]),
        p_value=float(min(1.0, sure[shown].min())),
        means=mean[shown].tolist(),
        lows=(mean - half)[shown].tolist(),
        highs=(mean + half)[shown].tolist(),
    )
