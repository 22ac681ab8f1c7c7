"""Off-policy evaluation: the mean reward of a decision under a policy that did not make the log.

* `pdis`: per-decision importance sampling, sum of ratio_t r_t over all decisions (Precup, Sutton and Singh, 2000).
  Unbiased where every action of the policy had a chance; noisy.
* `weighted`: the same, at each step divided by the sum of the ratios (self-normalised): slightly biased, less noisy.
* `doubly_robust`: a model, corrected by weighted errors (Jiang and Li, 2016; for one step Dudik, Langford and Li,
  2011): sum of ratio_{t-1} V(s_t) + ratio_t (r_t - Q(s_t, a_t)). Right when either model or probabilities are. What
  the rules would do where the arm decided is known in control alone; there Q is V, in both arms (a baseline), and right
  are the probabilities, which the rollout draws.
* `fitted_q`: the model alone (see `fqe`).

All estimate (sum of rewards) / (number of decisions) over the episodes of the log, started in the states that the log
started in. Ratios come from `overlap.ratios`, intervals from `bootstrap`. Where a log cannot answer, the `Estimate`
has no value but a reason with the number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from nhm_sched_plugin.experiment import fqe
from nhm_sched_plugin.experiment.bootstrap import Bools, Floats, Ints, Replicates, interval, multiplicities, sums
from nhm_sched_plugin.experiment.overlap import MIN_EPISODES, Overlap, overlap, ratios

__all__ = ["METHODS", "Estimate", "Evaluated", "Log", "doubly_robust", "estimates", "fitted_q", "pdis", "weighted"]

METHODS: Final = ("pdis", "weighted", "doubly_robust", "fitted_q")
MIN_COVERAGE: Final = 0.8
"""Share of what the policy would do that must have been tried in its state for the model to be asked."""
REFITS: Final = 200


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """One method's answer, or why it has none."""

    method: str
    of: str
    """`policy`, `rules`, or `difference` (policy less rules, paired)."""
    value: float | None = None
    """Mean reward of a decision, in [-1, 1]; None: see `reason`."""
    low: float | None = None
    high: float | None = None
    """95 % interval."""
    reason: str = ""
    model_based: bool = False
    """The state key is taken for all that matters; the interval does not cover that."""


@dataclass(frozen=True)
class Log:
    """Decisions with rewards as arrays of one length, in the order of their episodes and times."""

    reward: Floats
    episode: Ints
    """Non-decreasing."""
    cluster: Ints
    """What is drawn anew for intervals; constant within an episode, numbered from 0 without gaps."""
    unit: Ints
    """What the arm was drawn for."""
    chance: Floats
    """The unit's probability of treatment, [0, 1]: 0 in shadow."""
    target: Floats
    """The policy's probability of the executed action."""
    rules: Floats
    """1 where the rules would have executed it, else 0."""
    state: Ints
    action: Ints
    policy_actions: Floats
    """The policy's probability of every action, (N, A). A row of zeros: not known there."""
    rules_actions: Floats
    """Likewise the rules', in proportion: a row may stand for several, and for none."""
    differs: Bools
    """Policy and rules would do something else here; where an arm was drawn, by a sign that both arms have."""

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def rows(self) -> fqe.Rows:
        return fqe.Rows(self.reward, self.state, self.action, self.episode, self.cluster)


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """Every method's answer for the policy, the rules and their difference."""

    estimates: list[Estimate]
    policy: Overlap
    rules: Overlap
    coverage: float
    """Share of what the policy would do that was executed in its state at least once."""

    def best(self, of: str = "difference") -> Estimate | None:
        """The answer to go by: doubly robust, else weighted; None where weighting has none."""
        found = {estimate.method: estimate for estimate in self.estimates if estimate.of == of}
        return next(
            (found[m] for m in ("doubly_robust", "weighted") if m in found and found[m].value is not None), None
        )


def pdis(log: Log, ratio: Floats, multiplicity: Floats) -> Replicates:
    """Per-decision importance sampling."""
    count = multiplicity.shape[1]
    return _quotient(sums(ratio * log.reward, log.cluster, count), _sizes(log, count), multiplicity)


def weighted(log: Log, ratio: Floats, multiplicity: Floats) -> Replicates:
    """Its self-normalised form, step by step. Steps at which no episode has weight are left out."""
    count, step = multiplicity.shape[1], _steps(log.episode)
    steps = int(step.max()) + 1

    def table(values: Floats) -> Floats:
        return sums(values, log.cluster * steps + step, count * steps).reshape(count, steps)

    gained, weight, alive = table(ratio * log.reward), table(ratio), table(np.ones(len(log)))

    def value(times: Floats) -> Floats:
        carried, here = times @ weight, times @ alive
        mean = (times @ gained) / np.where(carried > 0, carried, np.inf)
        here = np.where(carried > 0, here, 0.0)
        total = here.sum(axis=1)
        quotient: Floats = (mean * here).sum(axis=1) / np.where(total > 0, total, np.nan)
        return quotient

    return Replicates(float(value(np.ones((1, count)))[0]), value(multiplicity))


def doubly_robust(
    log: Log,
    ratio: Floats,
    policy: Floats,
    multiplicity: Floats,
    model: Floats | None = None,
    unknown: Bools | None = None,
) -> Replicates:
    """The model's value plus the weighted errors of the model.

    `policy`: probabilities of every action (N, A). `model`: Q by decisions to go, (H + 1, S, A); default: fitted here.
    Its noise is small beside that of the weights, so the draws keep it. `unknown`: decisions of which one arm alone
    knows what would have been done; V of the state is then expected of all their actions.
    """
    count = multiplicity.shape[1]
    step = _steps(log.episode)
    last = np.flatnonzero(np.append(np.diff(log.episode) != 0, True))
    left = (step[last] + 1)[np.searchsorted(last, np.arange(len(log)))] - step
    usual = fqe.averaged(policy, log.state, int(log.state.max()) + 1)
    if model is None:
        model = fqe.plan(fqe.fit(log.rows, *usual.shape), usual, int(left.max()))[0]
    blind = np.zeros(len(log), dtype=bool) if unknown is None else unknown
    known = (policy.sum(axis=1) > 0) & ~blind
    expected = (np.where(known[:, None], policy, usual[log.state]) * model[left, log.state]).sum(axis=1)
    predicted = np.where(blind, expected, model[left, log.state, log.action])
    before = np.where(step == 0, 1.0, np.append(1.0, ratio[:-1]))
    gained = before * expected + ratio * (log.reward - predicted)
    return _quotient(sums(gained, log.cluster, count), _sizes(log, count), multiplicity)


def fitted_q(log: Log, policy: Floats, multiplicity: Floats) -> Replicates:
    """The model alone."""
    return fqe.evaluate(log.rows, policy, multiplicity[:REFITS])


def estimates(log: Log, seed: int = 0) -> Evaluated:
    """Every method for the policy at 100 %, the rules at 100 %, and the difference of both."""
    if not len(log):
        nothing = Overlap(episodes=0, clusters=0, effective=0.0, largest=0.0, mean_weight=0.0, unsupported=0.0)
        found = [
            Estimate(method=method, of=of, reason="not enough data: no decision has a reward")
            for method in METHODS
            for of in _SIDES
        ]
        return Evaluated(estimates=found, policy=nothing, rules=nothing, coverage=0.0)
    multiplicity = multiplicities(int(log.cluster.max()) + 1, seed=seed)
    common = (log.target, log.rules, log.chance, log.unit, log.episode)
    own, theirs = ratios(log.target, *common), ratios(log.rules, *common)
    policy = overlap(own, log.episode, log.cluster, ~log.differs | (log.chance > 0))
    rules = overlap(theirs, log.episode, log.cluster, ~log.differs | (log.chance < 1))
    trouble = {"policy": policy.problem(), "rules": rules.problem("rules")}
    coverage = fqe.coverage(log.rows, log.policy_actions)
    found = []
    for method in METHODS:
        sides = {
            "policy": _side(method, log, own, log.policy_actions, multiplicity),
            "rules": _side(method, log, theirs, log.rules_actions, multiplicity, log.differs & (log.chance > 0)),
        }
        lacks = dict(trouble)
        if method == "fitted_q":
            lacks = {"policy": _uncovered(coverage, policy.episodes), "rules": ""}
        found += _answers(method, sides, lacks, int(log.cluster.max()) + 1)
    return Evaluated(estimates=found, policy=policy, rules=rules, coverage=coverage)


_SIDES: Final = ("policy", "rules", "difference")


def _side(
    method: str, log: Log, ratio: Floats, actions: Floats, multiplicity: Floats, unknown: Bools | None = None
) -> Replicates:
    if method == "pdis":
        return pdis(log, ratio, multiplicity)
    if method == "weighted":
        return weighted(log, ratio, multiplicity)
    if method == "doubly_robust":
        return doubly_robust(log, ratio, actions, multiplicity, unknown=unknown)
    return fitted_q(log, actions, multiplicity)


def _uncovered(coverage: float, episodes: int) -> str:
    if coverage < MIN_COVERAGE:
        return (
            f"not enough overlap: only {100 * coverage:.0f} % of what the policy would do was ever done in the same "
            f"state ({100 * MIN_COVERAGE:g} % are needed)"
        )
    if episodes < MIN_EPISODES:
        return f"not enough data: {episodes} episodes with rewards, {MIN_EPISODES} are needed"
    return ""


def _answers(method: str, sides: dict[str, Replicates], lacks: dict[str, str], clusters: int) -> list[Estimate]:
    sides = {**sides, "difference": sides["policy"].minus(sides["rules"])}
    lacks = {**lacks, "difference": lacks["policy"] or lacks["rules"]}
    model = method == "fitted_q"
    found = []
    for of in _SIDES:
        if lacks[of] or not np.isfinite(sides[of].value):
            why = lacks[of] or "not enough overlap: no step of any episode has weight"
            found.append(Estimate(method=method, of=of, reason=why, model_based=model))
            continue
        low, high = interval(sides[of], clusters)
        found.append(Estimate(method=method, of=of, value=sides[of].value, low=low, high=high, model_based=model))
    return found


def _steps(episode: Ints) -> Ints:
    """Position of each row in its episode, from 0."""
    first = np.flatnonzero(np.append(True, np.diff(episode) != 0))
    length = np.diff(np.append(first, len(episode)))
    return (np.arange(len(episode)) - np.repeat(first, length)).astype(np.int64)


def _sizes(log: Log, count: int) -> Floats:
    return sums(np.ones(len(log)), log.cluster, count)


def _quotient(above: Floats, below: Floats, multiplicity: Floats) -> Replicates:
    draws = (multiplicity @ above) / np.maximum(multiplicity @ below, 1e-12)
    return Replicates(float(above.sum() / below.sum()), draws)
