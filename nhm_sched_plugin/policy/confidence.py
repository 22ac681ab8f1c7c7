"""How sure is it that an arm is at least as good as what the rules would do? A posterior of what it saves.

In the twin, at random control ticks, the same moment is continued by the rules, and with each other action, the planner
following it (`twin/trials.py`). What an arm saves over the rules is mostly a little idle time one way or the other, and
rarely a crowd that waits or does not: single trials say little, their mean is what counts. So
confidence is P(mean saving in this state >= 0), from a normal random-effects model: states differ around the plan's
(for other arms the arm's) mean over all states, by as much as the trials show (R. DerSimonian, N. Laird 1986,
"Meta-analysis in clinical trials"), and a state with few trials of its own is believed to be like the others. Trials
overlap, so `TRIAL_DEPENDENCE` of them count as one. Below `MIN_TRIALS` of the arm the answer is at most `UNSEEN`, and
so it is below `SEEN` in the state; but the plan is one policy whatever it asks for, and where it was hardly tried the
answer is at most the share of the states, tried enough, in which it saved (Laplace's rule of succession).

The real pool has the last word: once both arms were really tried `MIN_VISITS` times and their rewards say at
P < `BRAKE` that the arm is at least as good but for `MARGIN`, confidence is that P, whatever the twin found. Rewards
that follow each other overlap in time, so `DEPENDENCE` of them count as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

from nhm_sched_plugin.policy.qtable import PLANNED, RULES, Cell, QTable

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
WORTH: Final = 0.3
"""How sure at least it must be that an action costs no more than the plan, to try it on the real pool."""
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
    trials, saved = (0, 0.0) if cell is None else (cell.trials, cell.over)
    if not trials and not planned:
        return UNSEEN
    pool: _Pool = table.pooled(PLANNED, lambda _: _planned(table)) if planned else table.pooled(name, _over_rules)
    if pool.trials < MIN_TRIALS:
        most = UNSEEN
    elif trials >= SEEN:
        most = CEILING
    else:
        most = min(pool.saving, CEILING) if planned else UNSEEN
    found = min(_odds(pool, trials, saved), most)
    odds = live_odds(row.get(arm), row.get(rules_arm))
    return min(found, odds) if odds is not None and odds < BRAKE else found


class _Pool(NamedTuple):
    """Of what an arm saves in a trial, over all states."""

    mean: float
    between: float
    """Variance of the states' means,"""
    error: float
    """squared error of the mean of all,"""
    variance: float
    """and variance of a trial in a state. All states share it: its own would betray the states in which no crowd
    happened to come; there an arm looks both dear and certain."""
    trials: int
    saving: float
    """Share of the states with `MIN_TRIALS` in which it saved: what to expect of one that was not tried."""


def _odds(pool: _Pool, trials: int, saved: float) -> float:
    """P(mean saving in a state >= 0), given its trials and what the arm saves elsewhere."""
    own, elsewhere = trials / (TRIAL_DEPENDENCE * pool.variance), 1.0 / (pool.between + pool.error)
    saving = (saved * own + pool.mean * elsewhere) / (own + elsewhere)
    return _NORMAL.cdf(saving * math.sqrt(own + elsewhere))


def _over_rules(cells: list[Cell]) -> _Pool:
    return _random_effects([(cell.trials, cell.over, cell.over_m2) for cell in cells if cell.trials])


def _planned(table: QTable) -> _Pool:
    """Of the plan, whatever it asks for: one policy, whose parts are believed to be alike until they show otherwise."""
    return _over_rules([cell for row in table.rows.values() for arm, cell in row.items() if arm.startswith(PLANNED)])


def _over_plan(cells: list[Cell]) -> _Pool:
    return _random_effects([(cell.pairs, cell.gain, cell.gain_m2) for cell in cells if cell.pairs])


def _random_effects(tried: list[tuple[int, float, float]]) -> _Pool:
    """From number, mean and sum of squared deviations of the trials in each state (DerSimonian and Laird 1986)."""
    count = sum(trials for trials, _, _ in tried)
    inside = math.fsum(m2 for _, _, m2 in tried) + PRIOR_VISITS * PRIOR_SD**2
    variance = inside / max(count - len(tried) + PRIOR_VISITS, 1)
    seen = [mean for trials, mean, _ in tried if trials >= MIN_TRIALS]
    saving = (sum(mean >= 0 for mean in seen) + 1) / (len(seen) + 2)
    if len(tried) < 2:
        return _Pool(0.0, PRIOR_SD**2, variance, variance, count, saving)
    means = [mean for _, mean, _ in tried]
    weights = [trials / (TRIAL_DEPENDENCE * variance) for trials, _, _ in tried]
    total, mean = _weighted(weights, means)
    spread = math.fsum(weight * (each - mean) ** 2 for weight, each in zip(weights, means, strict=True))
    room = total - math.fsum(weight * weight for weight in weights) / total
    between = max(0.0, (spread - (len(tried) - 1)) / room)
    total, mean = _weighted([1.0 / (between + 1.0 / weight) for weight in weights], means)
    return _Pool(mean, between, 1.0 / total, variance, count, saving)


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
    cell = table.cell(state, arm)
    pool: _Pool = table.pooled(f"{arm} over plan", lambda _: _over_plan(table.cells(arm)))
    return pool.trials >= MIN_TRIALS and _odds(pool, *(cell.pairs, cell.gain) if cell is not None else (0, 0.0)) < WORTH


def _error(count: int, m2: float, dependence: int) -> float:
    """Squared standard error of a mean, its variance pulled to a prior: a few equal outcomes are no certainty."""
    return dependence * (m2 + PRIOR_VISITS * PRIOR_SD**2) / (count - 1 + PRIOR_VISITS) / count
