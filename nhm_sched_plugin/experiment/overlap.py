"""Importance ratios of a log in which the arm is drawn once per unit, and what they can carry.

The executed actions of a unit (a switchback block, a ticket) were chosen by the policy with the unit's probability p of
treatment, else by the rules. So after t decisions the ratio of the unit's history is

    prod pi(a_k | s_k)  /  ( p prod pi(a_k | s_k) + (1 - p) prod rules(a_k | s_k) )

with pi the policy's probability of the executed action (1 - epsilon, epsilon / k, or 0) and rules(...) 1 or 0, since
the rules are deterministic. Units are drawn independently: their ratios multiply. The product of single ratios
pi / (p pi + (1 - p) rules) would be wrong here: it draws the arm anew at every decision.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np

from nhm_sched_plugin.experiment.bootstrap import Bools, Floats, Ints

__all__ = ["MIN_EPISODES", "MIN_ESS", "Overlap", "kish", "overlap", "ratios"]

MIN_EPISODES: Final = 20
MIN_CLUSTERS: Final = 10
MIN_ESS: Final = 10.0
"""Fewer effective episodes than this carry no interval worth reading."""
MAX_UNSUPPORTED: Final = 0.01
"""Share of decisions where the evaluated side would do what the log never could; beyond it, no weighting helps."""


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """What a log can say about a policy that did not make it."""

    episodes: int
    clusters: int
    effective: float
    """Episodes of equal weight that would say as much (Kish, 1965): (sum w)^2 / sum w^2."""
    largest: float
    """The largest weight's share of all weight."""
    mean_weight: float
    """1 in expectation; far from it, the recorded probabilities are wrong or the log is too small."""
    unsupported: float
    """Share of decisions at which what the policy would do had no chance of being executed."""

    def problem(self, of: str = "policy") -> str:
        """Why nothing can be said by weighting, with the number; empty where something can."""
        if self.unsupported > MAX_UNSUPPORTED:
            return (
                f"not enough overlap: at {100 * self.unsupported:.1f} % of the decisions what the {of} would do was "
                f"never possible in this log (limit {100 * MAX_UNSUPPORTED:g} %)"
            )
        if self.episodes < MIN_EPISODES:
            return f"not enough data: {self.episodes} episodes with rewards, {MIN_EPISODES} are needed"
        if self.clusters < MIN_CLUSTERS:
            return (
                f"not enough data: the episodes lie in {self.clusters} blocks or days, {MIN_CLUSTERS} are needed to "
                "tell chance from effect"
            )
        if self.effective < MIN_ESS:
            return (
                f"not enough overlap: {self.episodes} episodes are worth {self.effective:.1f} "
                f"({MIN_ESS:g} are needed); the rest did what the {of} would not have done"
            )
        return ""


def ratios(own: Floats, target: Floats, rules: Floats, chance: Floats, unit: Ints, episode: Ints) -> Floats:
    """The importance ratio of each episode's history up to and with each decision, (N,).

    Args:
        own: probability of the executed action under what is evaluated: `target` itself, or `rules`.
        target: the policy's probability of the executed action.
        rules: 1 where the rules would have executed it, else 0.
        chance: the unit's probability of treatment.
        unit: what the arm was drawn for; equal neighbours within an episode belong together.
        episode: non-decreasing.
    """
    found = np.zeros(len(own))
    before = after = 1.0
    mine = theirs = ours = 1.0
    for i in range(len(own)):
        if i == 0 or episode[i] != episode[i - 1]:
            before, mine, theirs, ours = 1.0, 1.0, 1.0, 1.0
        elif unit[i] != unit[i - 1]:
            before, mine, theirs, ours = after, 1.0, 1.0, 1.0
        mine, theirs, ours = mine * target[i], theirs * rules[i], ours * own[i]
        largest = max(mine, theirs)
        if largest > 0:  # only their proportions matter, and long products of 0.9 come to nothing
            mine, theirs, ours = mine / largest, theirs / largest, ours / largest
        logged = chance[i] * mine + (1.0 - chance[i]) * theirs
        after = before * ours / logged if logged > 0 else 0.0
        found[i] = after
    return found


def kish(weights: Floats) -> float:
    """Effective sample size (sum w)^2 / sum w^2 (Kish, 1965); 0 without weight."""
    squares = float(np.sum(weights**2))
    return float(np.sum(weights)) ** 2 / squares if squares > 0 else 0.0


def overlap(ratio: Floats, episode: Ints, cluster: Ints, possible: Bools) -> Overlap:
    """Diagnostics of ratios made by `ratios`; `possible`: what is evaluated could have been executed there."""
    last = np.flatnonzero(np.append(np.diff(episode) != 0, True)) if len(episode) else np.zeros(0, dtype=np.int64)
    weights = ratio[last]
    total = float(weights.sum())
    return Overlap(
        episodes=len(last),
        clusters=len(np.unique(cluster)),
        effective=kish(weights),
        largest=float(weights.max() / total) if total > 0 else 0.0,
        mean_weight=float(weights.mean()) if len(weights) else 0.0,
        unsupported=float(np.mean(~possible)) if len(possible) else 0.0,
    )
