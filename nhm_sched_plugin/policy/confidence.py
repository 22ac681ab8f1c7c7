"""How sure is it that an arm is at least as good as what the rules would do? A posterior of what it saves.

In the twin, at random control ticks, the same moment is continued by the rules, and with each other action, the planner
following it (`twin/trials.py`). What an arm saves over the rules is mostly a little idle time one way or the other, and
rarely a crowd that waits or does not: single trials say little, their mean is what counts. So
confidence is P(mean saving in this state >= 0), from a normal random-effects model: states differ around the arm's own
mean over all states, by as much as the trials show (R. DerSimonian, N. Laird 1986, "Meta-analysis in clinical trials"),
and a state with few trials of its own is believed to be like the others. Trials overlap, so `TRIAL_DEPENDENCE` of them
count as one. Below `MIN_TRIALS` the answer is at most `UNSEEN`.

The real pool has the last word: once both arms were really tried `MIN_VISITS` times and their rewards say at
P < `BRAKE` that the arm is at least as good, confidence is that P, whatever the twin found. Rewards that follow each
other overlap in time, so `DEPENDENCE` of them count as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final

from nhm_sched_plugin.policy.qtable import PLANNED, RULES, Cell, QTable

__all__ = [
    "BRAKE",
    "CEILING",
    "LEAVE_AT",
    "MIN_TRIALS",
    "MIN_VISITS",
    "TRIAL_DEPENDENCE",
    "UNSEEN",
    "confidence",
    "inferior",
    "live_odds",
    "preferred",
    "value",
]

MIN_VISITS: Final = 30
"""Real rewards of both arms below which they cannot brake."""
MIN_TRIALS: Final = 30
"""Trials below which the answer is never above `UNSEEN`, and nothing is said about what an arm saves."""
UNSEEN: Final = 0.5
"""Confidence without evidence: as likely worse as better."""
CEILING: Final = 0.99
BRAKE: Final = 0.05
LEAVE_AT: Final = 0.95
"""How sure it must be that another arm costs less than the planner's before the planner is left."""
DEPENDENCE: Final = 10
"""Consecutive rewards that count as one independent one: start-up plus a tick overlap, and load lasts for a while."""
TRIAL_DEPENDENCE: Final = 25
"""The same for trials: a minute apart, twenty minutes and a start-up long, so about that many overlap."""
PRIOR_SD: Final = 0.1
PRIOR_VISITS: Final = 5
_NORMAL: Final = NormalDist()
_NO_CELLS: Final[Mapping[str, Cell]] = {}


def value(cell: Cell, learning_rate: float) -> float:
    """The arm's Q-value without the pull of the initial 0 (as Adam does it): Q / (1 - (1 - lr)^n)."""
    return cell.q / -math.expm1(cell.visits * math.log1p(-learning_rate)) if cell.visits else 0.0


def confidence(table: QTable, state: str, arm: str, rules_arm: str, *, planned: bool = False) -> float:
    """P(`arm` is at least as good here as the rules' `rules_arm`), in [0, `CEILING`]; `planned`: it is the plan's."""
    row = table.rows.get(state, _NO_CELLS)
    name = PLANNED + arm if planned else arm
    cell = row.get(name)
    if cell is None or not cell.trials:
        return UNSEEN
    mean, between, error, variance = table.pooled(name, _random_effects)
    own = TRIAL_DEPENDENCE * variance / cell.trials
    precision = 1.0 / own + 1.0 / (between + error)
    saving = (cell.over / own + mean / (between + error)) / precision
    found = min(_NORMAL.cdf(saving * math.sqrt(precision)), CEILING if cell.trials >= MIN_TRIALS else UNSEEN)
    odds = live_odds(row.get(arm), row.get(rules_arm))
    return min(found, odds) if odds is not None and odds < BRAKE else found


def _random_effects(cells: list[Cell]) -> tuple[float, float, float, float]:
    """Of an arm's savings: mean over all states, variance between them, squared error of the mean, variance of one.

    All states share the variance of a trial. Its own would betray the states in which no crowd happened to come: there
    an arm looks both dear and certain.
    """
    tried = [cell for cell in cells if cell.trials]
    count = sum(cell.trials for cell in tried)
    inside = math.fsum(cell.over_m2 for cell in tried) + PRIOR_VISITS * PRIOR_SD**2
    variance = inside / max(count - len(tried) + PRIOR_VISITS, 1)
    if len(tried) < 2:
        return 0.0, PRIOR_SD**2, variance, variance
    weights = [cell.trials / (TRIAL_DEPENDENCE * variance) for cell in tried]
    total, mean = _weighted(weights, tried)
    spread = math.fsum(weight * (cell.over - mean) ** 2 for weight, cell in zip(weights, tried, strict=True))
    room = total - math.fsum(weight * weight for weight in weights) / total
    between = max(0.0, (spread - (len(tried) - 1)) / room)
    total, mean = _weighted([1.0 / (between + 1.0 / weight) for weight in weights], tried)
    return mean, between, 1.0 / total, variance


def _weighted(weights: list[float], cells: list[Cell]) -> tuple[float, float]:
    """Sum of the weights, and the weighted mean saving."""
    total = math.fsum(weights)
    return total, math.fsum(weight * cell.over for weight, cell in zip(weights, cells, strict=True)) / total


def live_odds(arm: Cell | None, rules: Cell | None) -> float | None:
    """P(the arm's mean real reward is at least the rules'), by a normal approximation; None without enough of both."""
    if arm is None or rules is None or rules is arm or arm.live < MIN_VISITS or rules.live < MIN_VISITS:
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
        sure = _NORMAL.cdf(cell.gain / math.sqrt(_error(cell.pairs, cell.gain_m2, TRIAL_DEPENDENCE)))
        if sure >= 1.0 - (1.0 - LEAVE_AT) / others:
            best, saved = at, cell.gain
    rules = row.get(RULES + rules_arm)
    if rules is not None and rules.pairs >= MIN_TRIALS and rules.gain > saved:
        return None
    return best


def inferior(cell: Cell | None) -> bool:
    """Whether the trials are as good as sure (`LEAVE_AT`) that the arm costs more than the planner's own."""
    if cell is None or cell.pairs < MIN_TRIALS:
        return False
    error = _error(cell.pairs, cell.gain_m2, TRIAL_DEPENDENCE)
    return _NORMAL.cdf(cell.gain / math.sqrt(error)) <= 1.0 - LEAVE_AT


def _error(count: int, m2: float, dependence: int) -> float:
    """Squared standard error of a mean, its variance pulled to a prior: a few equal outcomes are no certainty."""
    return dependence * (m2 + PRIOR_VISITS * PRIOR_SD**2) / (count - 1 + PRIOR_VISITS) / count
