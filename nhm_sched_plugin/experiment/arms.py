"""Treatment against control: is the difference more than chance?

Actions change a whole pool, so decisions of one block of time get in each other's way: the block is the unit of
everything here, never the single decision. Where blocks belong to one arm (`switchback`, and all control ticks), the
p-value comes from drawing the blocks' arms anew (a permutation test; exact for "no effect on any block"); where both
arms share each block (`ticket`), from flipping the sign of each block's difference. Blocks are compared
only with blocks of the same rollout percentage. The interval is a cluster bootstrap over blocks.

A task type (`rollout.unit: task_type`) is in its arm once and for all, so whatever tells it from the others looks like
an effect, and no time makes the few of them many: there is no comparison (`fixed`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np

from nhm_sched_plugin.experiment.bootstrap import Bools, Floats, Ints, Replicates, interval, multiplicities, sums
from nhm_sched_plugin.experiment.sequential import START, Sequence, effects, first_look, sequence

__all__ = ["Comparison", "Observed", "compare", "fixed"]

PERMUTATIONS: Final = 4000
MIN_BLOCKS: Final = 4
"""In each arm; with fewer no p-value can be small."""


class Observed(NamedTuple):
    """Decisions with a known value (reward, or SLA), as arrays of one length in the order of time."""

    value: Floats
    treated: Bools
    block: Ints
    """Number of the block of time; non-decreasing."""
    chance: Floats
    """Probability of treatment, strictly inside (0, 1)."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Mean of the treatment arm less that of the control arm."""

    metric: str
    treatment: int
    control: int
    """Outcomes in each arm."""
    blocks: int
    shared: bool = False
    """Both arms share each block; else a block belongs to one of them."""
    treatment_mean: float | None = None
    control_mean: float | None = None
    difference: float | None = None
    """Within equal rollout percentages, so not always the difference of the two means above."""
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    """Two-sided; valid for one look, at a moment planned ahead."""
    sequential: Sequence | None = None
    enough: bool = False
    """`experiment.min_samples` outcomes in each arm."""
    significant: bool = False
    """Enough, and the always-valid p-value is under 1 - `experiment.confidence_threshold`."""
    reason: str = ""


class _Blocks(NamedTuple):
    total: Floats
    """(2, B): sums of control and treatment."""
    size: Floats
    stratum: Ints
    chance: Floats


def compare(metric: str, seen: Observed, *, min_samples: int = 1000, level: float = 0.95, seed: int = 0) -> Comparison:
    """Compare both arms; says why where it cannot."""
    treated, control = int(seen.treated.sum()), int((~seen.treated).sum())
    blocks = _blocks(seen)
    if not len(blocks.chance):
        why = "nothing to compare: no decision could have been in either arm"
        return Comparison(metric=metric, treatment=0, control=0, blocks=0, reason=why)
    both: Bools = np.all(blocks.size > 0, axis=0)
    shared = bool(both.mean() > 0.5)
    in_arm = int(both.sum()) if shared else _comparable(blocks)
    found = Comparison(metric=metric, treatment=treated, control=control, blocks=len(blocks.chance), shared=shared)
    if in_arm < MIN_BLOCKS:
        seen_of = f"{treated:,} outcomes in treatment and {control:,} in control"
        why = (
            f"not enough data: {seen_of}, with {in_arm} blocks of the rarer arm at a percentage that has "
            f"both; {MIN_BLOCKS} are needed"
        )
        return msgspec.structs.replace(found, reason=why)
    if shared:
        blocks = _Blocks(blocks.total[:, both], blocks.size[:, both], blocks.stratum[both], blocks.chance[both])
    value, p_value = _flipped(blocks, seed) if shared else _permuted(blocks, seed)
    times = multiplicities(len(blocks.chance), seed=seed)
    draws = _differences(blocks, times, shared)
    low, high = interval(Replicates(value, draws), len(blocks.chance), level)
    start = START if shared else first_look(blocks.size[1] > blocks.size[0])
    following = sequence(_looks(blocks, shared), level, start)
    enough = min(treated, control) >= min_samples
    sure = following.p_value is not None and following.p_value < 1 - level
    short = f"{min(treated, control):,} outcomes in the smaller arm, experiment.min_samples is {min_samples:,}"
    return msgspec.structs.replace(
        found,
        treatment_mean=float(seen.value[seen.treated].mean()),
        control_mean=float(seen.value[~seen.treated].mean()),
        difference=value,
        low=low,
        high=high,
        p_value=p_value,
        sequential=following,
        enough=enough,
        significant=enough and sure,
        reason="" if enough else f"not enough data: {short}",
    )


def fixed(metric: str) -> Comparison:
    """No comparison: each task type has had one arm from the beginning."""
    why = (
        "nothing to compare: with rollout.unit task_type each task type stays in its arm, so the arms differ as the "
        "task types do; set rollout.unit to switchback or ticket to compare"
    )
    return Comparison(metric=metric, treatment=0, control=0, blocks=0, reason=why)


def _blocks(seen: Observed) -> _Blocks:
    number = np.unique(seen.block, return_inverse=True)[1].astype(np.int64)
    count = int(number.max(initial=-1)) + 1
    arms = (~seen.treated, seen.treated)
    total = np.stack([sums(np.where(arm, seen.value, 0.0), number, count) for arm in arms])
    size = np.stack([sums(arm.astype(float), number, count) for arm in arms])
    chance = sums(seen.chance, number, count) / np.maximum(size.sum(axis=0), 1.0)
    stratum = np.unique(np.round(chance, 6), return_inverse=True)[1].astype(np.int64)
    return _Blocks(total, size, stratum, chance)


def _comparable(blocks: _Blocks) -> int:
    """Blocks of the rarer arm, at percentages that have blocks of both."""
    counts = np.stack(
        [sums((size > 0).astype(float), blocks.stratum, int(blocks.stratum.max()) + 1) for size in blocks.size]
    )
    both = (counts > 0).all(axis=0)
    return int(counts[:, both].sum(axis=1).min(initial=blocks.size.shape[1])) if both.any() else 0


def _differences(blocks: _Blocks, times: Floats, shared: bool) -> Floats:
    """On draws of the blocks, (draws, B); weighted by n_T n_C / (n_T + n_C) over strata, or over shared blocks."""
    group = np.arange(len(blocks.stratum)) if shared else blocks.stratum
    above, below = np.zeros(len(times)), np.zeros(len(times))
    for one in np.unique(group):
        here = group == one
        total, size = (times[:, here] @ part[:, here].T for part in (blocks.total, blocks.size))
        weight = size[:, 0] * size[:, 1] / np.maximum(size.sum(axis=1), 1e-12)
        means = total / np.maximum(size, 1e-12)
        above += weight * (means[:, 1] - means[:, 0])
        below += weight
    quotient: Floats = above / np.where(below > 0, below, np.nan)
    return quotient


def _permuted(blocks: _Blocks, seed: int) -> tuple[float, float]:
    """Difference and two-sided p-value, the blocks' arms drawn anew within each stratum."""
    draw = np.random.default_rng(seed)
    total, size = blocks.total.sum(axis=0), blocks.size.sum(axis=0)
    treated = blocks.size[1] > blocks.size[0]
    above, below = np.zeros(PERMUTATIONS + 1), np.zeros(PERMUTATIONS + 1)
    for stratum in np.unique(blocks.stratum):
        here = np.flatnonzero(blocks.stratum == stratum)
        order = draw.permuted(np.tile(treated[here], (PERMUTATIONS, 1)), axis=1)
        labels = np.vstack([treated[here], order]).astype(float)  # the first row is what was
        n1, n0 = labels @ size[here], (1 - labels) @ size[here]
        t1, t0 = labels @ total[here], (1 - labels) @ total[here]
        weight = n1 * n0 / np.maximum(n1 + n0, 1e-12)
        above += weight * (t1 / np.maximum(n1, 1e-12) - t0 / np.maximum(n0, 1e-12))
        below += weight
    drawn = above / np.maximum(below, 1e-12)
    return float(drawn[0]), _rank(drawn)


def _flipped(blocks: _Blocks, seed: int) -> tuple[float, float]:
    """Difference and two-sided p-value, the sign of each block's difference drawn anew."""
    weight = blocks.size[0] * blocks.size[1] / blocks.size.sum(axis=0)
    apart = weight * (blocks.total[1] / blocks.size[1] - blocks.total[0] / blocks.size[0])
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(PERMUTATIONS, len(apart)))
    drawn = np.append(apart.sum(), signs @ apart) / weight.sum()
    return float(drawn[0]), _rank(drawn)


def _rank(drawn: Floats) -> float:
    """(1 + draws at least as far from 0) / (1 + draws) (Phipson and Smyth, 2010)."""
    return float(np.mean(np.abs(drawn) >= abs(drawn[0]) - 1e-12))


def _looks(blocks: _Blocks, shared: bool) -> Floats:
    means = blocks.total / np.maximum(blocks.size, 1e-12)
    if shared:
        apart: Floats = means[1] - means[0]
        return apart
    value = blocks.total.sum(axis=0) / np.maximum(blocks.size.sum(axis=0), 1e-12)
    return effects(value, blocks.size[1] > blocks.size[0], np.clip(blocks.chance, 0.01, 0.99))
