"""How sure is it that one arm is at least as good as another? A normal approximation on what the Q-table knows.

The value of an arm is its Q-value with the start at 0 taken out (as Adam does): Q / (1 - (1 - lr)^n). That is a
weighted mean of the TD targets with weights lr (1 - lr)^(n - i); its effective number of samples is

    n_eff = (1 + d) (1 - d^n) / ((1 - d) (1 + d^n)),   d = 1 - lr

The variance of a target is Welford's, pulled towards a prior (`PRIOR_SD`, weight `PRIOR_VISITS`), so that a few equal
outcomes are not taken for certainty. Then P(A >= B) = Phi((A - B) / sqrt(var_A / n_A + var_B / n_B)).

What it is not: calibrated. Targets that follow each other overlap in time and contain the table's own estimates; so
`DEPENDENCE` of them count as one, which is a rule of thumb. `CEILING` and the minimum of visits keep it modest.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

from nhm_sched_plugin.policy.qtable import Cell

__all__ = ["CEILING", "MIN_VISITS", "UNSEEN", "at_least_as_good", "value"]

MIN_VISITS: Final = 30
"""Visits of both arms below which the answer is never above `UNSEEN`."""
UNSEEN: Final = 0.5
"""Confidence without evidence: as likely worse as better."""
CEILING: Final = 0.99
DEPENDENCE: Final = 10
"""Consecutive targets that count as one independent one: start-up plus a tick overlap, and load lasts for a while."""
PRIOR_SD: Final = 0.1
PRIOR_VISITS: Final = 5


def value(cell: Cell, learning_rate: float) -> float:
    """The arm's value without the pull of the initial 0."""
    return cell.q / -math.expm1(cell.visits * math.log1p(-learning_rate))


def _standard_error_squared(cell: Cell, learning_rate: float) -> float:
    variance = (cell.m2 + PRIOR_VISITS * PRIOR_SD**2) / (cell.visits - 1 + PRIOR_VISITS)
    decay = 1.0 - learning_rate
    faded = decay**cell.visits
    return DEPENDENCE * variance * (1.0 - decay) * (1.0 + faded) / ((1.0 + decay) * (1.0 - faded))


@lru_cache(maxsize=16384)
def at_least_as_good(arm: Cell | None, other: Cell | None, learning_rate: float) -> float:
    """P(value of `arm` >= value of `other`), at most `CEILING`; `UNSEEN` or less without enough visits of both."""
    if arm is None or other is None:
        return UNSEEN
    spread = _standard_error_squared(arm, learning_rate) + _standard_error_squared(other, learning_rate)
    difference = value(arm, learning_rate) - value(other, learning_rate)
    probability = min(CEILING, 0.5 * (1.0 + math.erf(difference / math.sqrt(2.0 * spread))))
    if arm.visits < MIN_VISITS or other.visits < MIN_VISITS:
        return min(UNSEEN, probability)
    return probability
