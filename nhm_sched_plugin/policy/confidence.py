"""How sure is it that an arm is at least as good as what the rules would do? Counted, not computed.

In the twin, at random control ticks, the same moment is continued with the rules' action and with each other, the
planner following both (`twin/trials.py`). An arm wins where it costs no more. Confidence is the posterior mean of a
Beta: as many wins and trials as were counted in the state, and before them `PRIOR_TRIALS` at the arm's own frequency
over all states (empirical Bayes: C. Morris 1983, "Parametric empirical Bayes inference", JASA 78). Below `MIN_TRIALS`
it is at most `UNSEEN`.

The real pool has the last word: once both arms were really tried `MIN_VISITS` times and their rewards say at P <
`BRAKE` that the arm is at least as good, confidence is that P, whatever the twin found. Rewards that follow each other
overlap in time, so `DEPENDENCE` of them count as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final

from nhm_sched_plugin.policy.qtable import RULES, Cell, QTable

__all__ = [
    "BRAKE",
    "CEILING",
    "LEAVE_AT",
    "MIN_TRIALS",
    "MIN_VISITS",
    "UNSEEN",
    "confidence",
    "live_odds",
    "preferred",
    "value",
]

MIN_VISITS: Final = 30
"""Real rewards of both arms below which they cannot brake."""
MIN_TRIALS: Final = 30
"""Trials below which the answer is never above `UNSEEN`, and nothing is said about what an arm saves."""
PRIOR_TRIALS: Final = 50
"""Trials follow each other closely and overlap: so many of them are worth a few independent ones."""
UNSEEN: Final = 0.5
"""Confidence without evidence: as likely worse as better."""
CEILING: Final = 0.99
BRAKE: Final = 0.05
LEAVE_AT: Final = 0.95
"""How sure it must be that another arm costs less than the planner's before the planner is left."""
DEPENDENCE: Final = 10
"""Consecutive rewards that count as one independent one: start-up plus a tick overlap, and load lasts for a while."""
_TRIAL_DEPENDENCE: Final = 10
"""The same for trials."""
PRIOR_SD: Final = 0.1
PRIOR_VISITS: Final = 5
_NORMAL: Final = NormalDist()
_NO_CELLS: Final[Mapping[str, Cell]] = {}


def value(cell: Cell, learning_rate: float) -> float:
    """The arm's Q-value without the pull of the initial 0 (as Adam does it): Q / (1 - (1 - lr)^n)."""
    return cell.q / -math.expm1(cell.visits * math.log1p(-learning_rate)) if cell.visits else 0.0


def confidence(table: QTable, state: str, arm: str, rules_arm: str) -> float:
    """P(`arm` is at least as good here as the rules' `rules_arm`), in [0, `CEILING`]."""
    row = table.rows.get(state, _NO_CELLS)
    cell = row.get(arm)
    if cell is None or not cell.trials:
        return UNSEEN
    counted = (cell.wins + PRIOR_TRIALS * table.pooled(arm)) / (cell.trials + PRIOR_TRIALS)
    found = min(counted, CEILING if cell.trials >= MIN_TRIALS else UNSEEN)
    odds = live_odds(cell, row.get(rules_arm))
    return min(found, odds) if odds is not None and odds < BRAKE else found


def live_odds(arm: Cell, rules: Cell | None) -> float | None:
    """P(the arm's mean real reward is at least the rules'), by a normal approximation; None without enough of both."""
    if rules is None or rules is arm or arm.live < MIN_VISITS or rules.live < MIN_VISITS:
        return None
    spread = _error(arm.live, arm.live_m2, DEPENDENCE) + _error(rules.live, rules.live_m2, DEPENDENCE)
    return _NORMAL.cdf((arm.live_mean - rules.live_mean) / math.sqrt(spread))


def preferred(row: Mapping[str, Cell], arms: Sequence[str], rules_arm: str) -> int | None:
    """Which of the candidates' arms to take, the planner's own being the first; None: what the rules do.

    Another than the planner's own only where it saves with `LEAVE_AT`, shared between all that are considered
    (Bonferroni); the rules' where that saved more in the trials than the one chosen.
    """
    best, saved = 0, 0.0
    others = len(arms) - 1
    for at in range(1, len(arms)):
        cell = row.get(arms[at])
        if cell is None or cell.pairs < MIN_TRIALS or cell.gain <= saved or arms[at] == arms[0]:
            continue
        sure = _NORMAL.cdf(cell.gain / math.sqrt(_error(cell.pairs, cell.gain_m2, _TRIAL_DEPENDENCE)))
        if sure >= 1.0 - (1.0 - LEAVE_AT) / others:
            best, saved = at, cell.gain
    rules = row.get(RULES + rules_arm)
    if rules is not None and rules.pairs >= MIN_TRIALS and rules.gain > saved:
        return None
    return best


def _error(count: int, m2: float, dependence: int) -> float:
    """Squared standard error of a mean, its variance pulled to a prior: a few equal outcomes are no certainty."""
    return dependence * (m2 + PRIOR_VISITS * PRIOR_SD**2) / (count - 1 + PRIOR_VISITS) / count
