"""The estimators against a decision process whose values are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nhm_sched_plugin.experiment import fqe
from nhm_sched_plugin.experiment.bootstrap import clusters, interval, multiplicities
from nhm_sched_plugin.experiment.ope import METHODS, doubly_robust, estimates, fitted_q, pdis, weighted
from nhm_sched_plugin.experiment.overlap import kish, ratios
from tests.experiment.mdp import HORIZON, POLICY, RULES, STATES, exact, rollout


def ratio_of(log: Any) -> Any:
    return ratios(log.target, log.target, log.rules, log.chance, log.unit, log.episode)


@pytest.mark.parametrize("chance", [0.2, 0.5])
def test_every_method_finds_the_value_of_both_sides(chance: float) -> None:
    found = estimates(rollout(4000, seed=1, chance=chance))
    truth = {"policy": exact(POLICY), "rules": exact(RULES), "difference": exact(POLICY) - exact(RULES)}
    assert {estimate.method for estimate in found.estimates} == set(METHODS)
    for estimate in found.estimates:
        assert estimate.value == pytest.approx(truth[estimate.of], abs=0.035), estimate
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low - 0.01 <= truth[estimate.of] <= estimate.high + 0.01, estimate
    assert found.policy.mean_weight == pytest.approx(1.0, abs=0.05)
    assert found.coverage == 1.0


def test_the_95_percent_interval_holds_the_truth_in_about_95_of_100_logs() -> None:
    truth, seeds = exact(POLICY), 200
    inside = dict.fromkeys(METHODS, 0)
    for seed in range(seeds):
        log = rollout(120, seed=seed)
        ratio, drawn = ratio_of(log), multiplicities(120, draws=200, seed=seed)
        answers = {
            "pdis": pdis(log, ratio, drawn),
            "weighted": weighted(log, ratio, drawn),
            "doubly_robust": doubly_robust(log, ratio, log.policy_actions, drawn),
            "fitted_q": fitted_q(log, log.policy_actions, drawn[:100]),
        }
        for name, answer in answers.items():
            low, high = interval(answer, 120)
            inside[name] += low <= truth <= high
    assert all(0.90 <= hits / seeds <= 0.99 for hits in inside.values()), inside


def test_doubly_robust_needs_only_one_of_both_to_be_right() -> None:
    log = rollout(6000, seed=3)
    drawn, truth = multiplicities(6000, draws=50), exact(POLICY)
    wrong_model = np.zeros((HORIZON + 1, STATES, 2))
    wrong_model[:, 0, 1] = -2.0
    right_ratio = doubly_robust(log, ratio_of(log), log.policy_actions, drawn, model=wrong_model)
    assert right_ratio.value == pytest.approx(truth, abs=0.03)
    # Probabilities that are wrong (treatment taken for twice as likely as it was) spoil the weights, not this.
    spoilt = replace(log, chance=np.full(len(log), 0.9))
    assert abs(pdis(spoilt, ratio_of(spoilt), drawn).value - truth) > 0.05
    right_model = doubly_robust(spoilt, ratio_of(spoilt), log.policy_actions, drawn)
    assert right_model.value == pytest.approx(truth, abs=0.03)
    # Both wrong: nothing saves it, so the two tests above can fail.
    neither = doubly_robust(spoilt, ratio_of(spoilt), log.policy_actions, drawn, model=wrong_model)
    assert abs(neither.value - truth) > 0.05


def test_doubly_robust_is_less_noisy_than_weighting() -> None:
    log = rollout(800, seed=5, chance=0.2)
    drawn, ratio = multiplicities(800), ratio_of(log)
    plain, better = pdis(log, ratio, drawn), doubly_robust(log, ratio, log.policy_actions, drawn)
    assert better.draws.std() < plain.draws.std()


def test_fitted_q_is_exact_on_a_deterministic_chain() -> None:
    # Action 1 moves on along 0 -> 1 -> 2 (rewards 1, 2, 4), action 0 stays for 0.5; 2 stays where it is.
    reward = np.array([[0.5, 1.0], [0.5, 2.0], [0.5, 4.0]])
    states, actions = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    after = np.where(actions == 1, np.minimum(states + 1, 2), states)
    # Every state and action once, followed by one decision in the next state.
    state = np.stack([states, after], axis=1).ravel()
    action = np.stack([actions, np.zeros(6, dtype=int)], axis=1).ravel()
    rows = fqe.Rows(reward[state, action], state, action, np.repeat(np.arange(6), 2), np.zeros(12, dtype=np.int64))
    onward = np.tile([0.0, 1.0], (3, 1))
    # Rows of the second decisions know no next state: they add to the reward's mean alone, which is the same number.
    q, v = fqe.plan(fqe.fit(rows, 3, 2), onward, 3)
    assert v[3].tolist() == [1 + 2 + 4, 2 + 4 + 4, 4 + 4 + 4]
    assert q[3, 0].tolist() == [0.5 + 1 + 2, 7.0]
    assert fqe.plan(fqe.fit(rows, 3, 2), onward, 2, discount=0.5)[1][2].tolist() == [1 + 1, 2 + 2, 4 + 2]


def test_pure_shadow_has_no_answer_by_weighting_and_says_why() -> None:
    log = rollout(400, seed=2, chance=0.0)
    found = estimates(log)
    for estimate in found.estimates:
        if estimate.of == "rules":
            continue
        assert estimate.value is None, estimate
        assert "not enough overlap" in estimate.reason
    share = 100 * float(log.differs.mean())
    assert f"at {share:.1f} % of the decisions" in found.estimates[0].reason
    assert found.best() is None
    # Of the rules, which did all of it, the log does say something.
    rules = next(e for e in found.estimates if (e.method, e.of) == ("doubly_robust", "rules"))
    assert rules.value == pytest.approx(float(log.reward.mean()))


def test_shadow_in_which_both_always_agree_has_an_answer() -> None:
    log = rollout(400, seed=2, chance=0.0)
    same = replace(
        log, target=np.ones(len(log)), differs=np.zeros(len(log), dtype=bool), policy_actions=log.rules_actions
    )
    best = estimates(same).best("policy")
    assert best is not None
    assert best.value == pytest.approx(float(log.reward.mean()))


def test_few_episodes_and_few_effective_ones_are_told_apart() -> None:
    assert "12 episodes with rewards, 20 are needed" in estimates(rollout(12, seed=1)).estimates[0].reason
    crowd = replace(rollout(60, seed=1), cluster=np.repeat(np.arange(3), 20 * HORIZON))
    assert "the episodes lie in 3 blocks or days, 10 are needed" in estimates(crowd).estimates[0].reason
    rare = rollout(60, seed=0, chance=0.02)
    assert 0 < estimates(rare).policy.effective < 10
    assert "60 episodes are worth" in estimates(rare).estimates[0].reason


def test_no_rewards_at_all() -> None:
    found = estimates(rollout(0, seed=1))
    assert {estimate.reason for estimate in found.estimates} == {"not enough data: no decision has a reward"}


def test_ratios_draw_the_arm_once_per_unit() -> None:
    one, half = np.ones(4), np.full(4, 0.5)
    # Two units of two decisions in one episode, followed by the policy where it differs: 1 / p each, not each decision.
    unit, episode = np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64)
    assert ratios(one, one, np.zeros(4), half, unit, episode).tolist() == [2, 2, 4, 4]
    # Under the rules: impossible from the first difference on.
    agreed_first = np.array([1.0, 0.0, 1.0, 1.0])
    assert ratios(agreed_first, agreed_first, one, half, unit, episode).tolist() == [1, 0, 0, 0]
    # Exploration: 0.9 against 0.5 * 0.9 + 0.5.
    found = ratios(np.full(4, 0.9), np.full(4, 0.9), one, half, unit, episode)
    assert found[0] == pytest.approx(0.9 / 0.95)
    assert found[1] == pytest.approx(0.81 / 0.905)
    # Thousands of them do not run out of numbers.
    many = 20_000
    long = ratios(
        *(np.full(many, 0.9),) * 2, np.zeros(many), np.full(many, 0.5), *(np.zeros(many, dtype=np.int64),) * 2
    )
    assert long[-1] == pytest.approx(2.0)


def test_kish() -> None:
    assert kish(np.array([1.0, 1.0, 1.0, 0.0])) == 3
    assert kish(np.array([10.0, 0.1])) == pytest.approx(1.0, abs=0.03)
    assert kish(np.zeros(3)) == 0


def test_clusters_are_blocks_until_there_are_days_enough() -> None:
    hours = np.arange(0, 48 * 3600, 600, dtype=float)
    assert len(np.unique(clusters(hours, 3600))) == 48
    assert len(np.unique(clusters(np.arange(0, 30 * 86_400, 3600, dtype=float), 3600))) == 30
