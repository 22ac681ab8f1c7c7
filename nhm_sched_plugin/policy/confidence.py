"""How sure is it that an arm is at least as good as what the rules would do?

In the twin, at random control ticks, the same moment is continued by the rules, and with each other action, the planner
following it (`twin/trials.py`). What an arm saves over the rules is mostly a little idle time one way or the other, and
rarely a crowd that waits or does not: single trials say little, their mean is what counts. So confidence is P(mean
saving in this state >= 0). How sure a mean is depends on how days differ, not on the number of trials: ten thousand
moments of a day with one crowd tell of one crowd. So it is a bootstrap of days as they came, made where the trials are
(`twin/daily.py`), and the Q-table keeps what it says. Below `MIN_TRIALS` of the arm, or two days, the answer is at most
`UNSEEN`, and so it is below `SEEN` in the state; but the plan is one policy whatever it asks for, and where it was
hardly tried the answer is at most what its days in all states say, and the mean of the answers there.

The real pool has the last word: once both arms were really tried `MIN_VISITS` times and their rewards say at
P < `BRAKE` that the arm is at least as good but for `MARGIN`, confidence is that P, whatever the twin found. Rewards
that follow each other overlap in time, so `DEPENDENCE` of them count as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

from nhm_sched_plugin.policy.qtable import PLANNED, RULES, UNTRIED, Cell, QTable, Saving

__all__ = [
    "BRAKE",
    "CEILING",
    "LEAVE_AT",
    "MIN_TRIALS",
    "MIN_VISITS",
    "SEEN",
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
"""Trials of an arm over all states below which the answer is never above `UNSEEN`, and nothing is said of its gain."""
SEEN: Final = 3
"""Trials of it in the state itself below which it is as good as unseen there."""
UNSEEN: Final = 0.5
"""Confidence without evidence: as likely worse as better."""
CEILING: Final = 0.99
BRAKE: Final = 0.05
MARGIN: Final = 0.05
"""Of reward: workers that were added cost about so much before they help. Only worse than that brakes."""
WORTH: Final = 0.5
"""How sure at least it must be that an action costs no more than the plan, to try it on the real pool: what is more
likely than not to cost more is paid for by the users, and with a long start-up dearly."""
LEAVE_AT: Final = 0.95
"""How sure it must be that another arm costs less than the planner's before the planner is left."""
DEPENDENCE: Final = 10
"""Consecutive rewards that count as one independent one: start-up plus a tick overlap, and load lasts for a while."""
TRIAL_DEPENDENCE: Final = 25
"""The same for trials against the plan: a minute apart, each twenty minutes long or more."""
MIN_DAYS: Final = 2.0
"""From fewer nobody can say how days differ."""
PRIOR_SD: Final = 0.1
"""Of a reward, and of a trial's gain in shares of what usual tickets take meanwhile: what is believed of either,"""
PRIOR_VISITS: Final = 5
"""as if so many had been seen."""
_NORMAL: Final = NormalDist()
_NO_CELLS: Final[Mapping[str, Cell]] = {}


def value(cell: Cell, learning_rate: float) -> float:
    """The arm's Q-value without the pull of the initial 0 (as Adam does it): Q / (1 - (1 - lr)^n)."""
    return cell.q / -math.expm1(cell.visits * math.log1p(-learning_rate)) if cell.visits else 0.0


def confidence(table: QTable, state: str, arm: str, rules_arm: str, *, planned: bool = False) -> float:
    """P(`arm` is at least as good here as the rules' `rules_arm`), in [0, `CEILING`]; `planned`: it is the plan's."""
    row = table.rows.get(state, _NO_CELLS)
    cell = row.get(PLANNED + arm if planned else arm, UNTRIED)
    overall = table.overall.get(PLANNED if planned else arm, Saving())
    found = min(cell.odds, CEILING)
    if overall.trials < MIN_TRIALS or overall.days < MIN_DAYS:
        found = min(found, UNSEEN) if cell.trials else UNSEEN
    elif cell.trials < SEEN:
        unseen = min(overall.odds, CEILING) if planned else UNSEEN
        found = min(found, unseen) if cell.trials else unseen
    odds = live_odds(row.get(arm), row.get(rules_arm))
    return min(found, odds) if odds is not None and odds < BRAKE else found


class _Pool(NamedTuple):
    """Of what an arm gains on the plan in a trial, over all states."""

    mean: float
    between: float
    """Variance of the states' means,"""
    error: float
    """squared error of the mean of all,"""
    variance: float
    """and variance of a trial in a usual state."""
    trials: int


def _odds(pool: _Pool, gained: float, error: float) -> float:
    """P(mean gain in a state >= 0), given its mean with a squared error, and what the arm gains in all states.

    The empirical Bayes posterior (C. Morris 1983, "Parametric empirical Bayes inference"): the less sure a state's own
    mean is beside how much states differ, the more it is pulled to that of all.
    """
    pull = 1.0 if math.isinf(error) else error / (error + pool.between)
    gain = gained + pull * (pool.mean - gained)
    return _NORMAL.cdf(gain / math.sqrt(pull * pool.between + pull * pull * pool.error))


def _over_plan(cells: list[Cell]) -> _Pool:
    tried = [cell for cell in cells if cell.pairs]
    count = sum(cell.pairs for cell in tried)
    inside = math.fsum(cell.gain_m2 for cell in tried) + PRIOR_VISITS * PRIOR_SD**2
    variance = inside / max(count - len(tried) + PRIOR_VISITS, 1)
    errors = [TRIAL_DEPENDENCE * variance / cell.pairs for cell in tried]
    between, mean, error = _random_effects([cell.gain for cell in tried], errors)
    return _Pool(mean, between, error, variance, count)


def _random_effects(means: list[float], errors: list[float]) -> tuple[float, float, float]:
    """Variance between the states, their mean and its squared error, from each one's (DerSimonian and Laird 1986)."""
    if len(means) < 2:
        return PRIOR_SD**2, 0.0, PRIOR_SD**2
    weights = [1.0 / error for error in errors]
    total, mean = _weighted(weights, means)
    spread = math.fsum(weight * (each - mean) ** 2 for weight, each in zip(weights, means, strict=True))
    room = total - math.fsum(weight * weight for weight in weights) / total
    between = max(0.0, (spread - (len(means) - 1)) / room)
    total, mean = _weighted([1.0 / (between + error) for error in errors], means)
    return between, mean, 1.0 / total


def _weighted(weights: list[float], values: list[float]) -> tuple[float, float]:
    """Sum of the weights, and the weighted mean."""
    total = math.fsum(weights)
    return total, math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / total


def live_odds(arm: Cell | None, rules: Cell | None) -> float | None:
    """P(the arm's mean real reward is at least the rules' less `MARGIN`); None without enough of both.

    A normal approximation.
    """
    if arm is None or rules is None or rules is arm or arm.live < MIN_VISITS or rules.live < MIN_VISITS:
        return None
    spread = _error(arm.live, arm.live_m2, DEPENDENCE) + _error(rules.live, rules.live_m2, DEPENDENCE)
    return _NORMAL.cdf((arm.live_mean - rules.live_mean + MARGIN) / math.sqrt(spread))


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


def inferior(table: QTable, state: str, arm: str) -> bool:
    """Whether the trials say that the arm probably costs more here than the planner's own: P(it does not) < `WORTH`."""
    cell = table.cell(state, arm) or UNTRIED
    pool: _Pool = table.pooled(arm, _over_plan)
    error = TRIAL_DEPENDENCE * pool.variance / cell.pairs if cell.pairs else math.inf
    return pool.trials >= MIN_TRIALS and _odds(pool, cell.gain, error) < WORTH


def _error(count: int, m2: float, dependence: int) -> float:
    """Squared standard error of a mean, its variance pulled to a prior: a few equal outcomes are no certainty."""
    return dependence * (m2 + PRIOR_VISITS * PRIOR_SD**2) / (count - 1 + PRIOR_VISITS) / count
