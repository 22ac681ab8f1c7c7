"""From rows of the records to arrays: who would have done what, and how likely it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.experiment.log import decided, observed, sample
from nhm_sched_plugin.experiment.ope import estimates
from nhm_sched_plugin.experiment.shadow import comparisons
from nhm_sched_plugin.settings import load_settings

DEFAULTS: dict[str, Any] = {
    "host": "h",
    "at": 0.0,
    "ticket": "",
    "task_type": "",
    "action": "NO_ACTION",
    "target": np.nan,
    "arm": "shadow",
    "reason": "shadow",
    "confidence": 0.9,
    "advised": "NO_ACTION",
    "advised_target": np.nan,
    "advised_propensity": 0.9,
    "propensity": 1.0,
    "is_exploration": 0,
    "rollout_percentage": 0,
    "policy_version": "q1",
    "forecast_volume": 400.0,
    "queue_depth": 1.0,
    "active_workers": 10.0,
    "avg_task_duration_ms": 60_000.0,
    "sla_compliance_rate": 0.9,
    "predicted_load_1h": np.nan,
    "predicted_load_6h": np.nan,
    "resource_cpu_avg": 0.5,
    "reward": 0.1,
    "sla": 1.0,
    "workers": 10.0,
}
SETTINGS = load_settings({})
TREATED = {"arm": "treatment", "reason": "applied", "rollout_percentage": 50}
GROWN = {"advised": "INCREASE_WORKER_POOL", "advised_target": 12.0}


def rows(*changes: dict[str, Any], settings: Any = SETTINGS, ticks: bool = True) -> Any:
    frame = pd.DataFrame([{**DEFAULTS, "at": 120.0 * index, **change} for index, change in enumerate(changes)])
    return decided(frame, settings, ticks=ticks)


def test_targets_are_compared_and_not_names() -> None:
    found = rows(
        {},
        GROWN,
        {"advised": "INCREASE_WORKER_POOL", "advised_target": 10.0},
        {"action": "PREEMPTIVE_SCALING", "target": 100.0, "advised": "INCREASE_WORKER_POOL", "advised_target": 104.0},
        {"advised": "LOAD_BALANCING_RECONFIG"},
        {"action": "INCREASE_WORKER_POOL", "target": 12.0},
    )
    assert found.same.tolist() == [True, False, True, True, False, False]
    assert found.apart[1] == 2
    assert np.isnan(found.apart[4])
    assert found.apart[5] == -2
    assert found.wanted.tolist()[:2] == ["as many workers", "5 to 20 % more workers"]
    assert found.wanted[4] == "LOAD_BALANCING_RECONFIG"


def test_probabilities_of_what_was_executed() -> None:
    log = sample(
        rows(
            {},  # agreed in shadow: the policy would, with 0.9
            GROWN,  # it would not
            {"reason": "confidence_below_threshold"},  # the same in every arm
            {**TREATED, **GROWN, "action": "INCREASE_WORKER_POOL", "target": 12.0, "propensity": 0.9},
            {**TREATED, "confidence": 1.0, "propensity": 0.9},  # the rules would too
            {**TREATED, "is_exploration": 1, "propensity": 0.05, "advised_propensity": 0.05, "confidence": 0.8},
        ),
        SETTINGS,
        ticks=True,
    )
    assert log.target.tolist() == [0.9, 0.0, 1.0, 0.9, 0.9, 0.05]
    assert log.rules.tolist() == [1, 1, 1, 0, 1, 0]
    assert log.differs.tolist() == [False, True, False, True, False, True]
    assert log.chance.tolist() == [0, 0, 0, 0.5, 0.5, 0.5]
    assert log.policy_actions.sum(axis=1).round(9).tolist() == [1, 1, 1, 1, 1, 0]
    assert log.rules_actions.sum(axis=1).tolist() == [1, 1, 1, 0, 1, 0]


def test_episodes_are_blocks_of_one_host_and_decisions_without_a_reward_are_left_out() -> None:
    found = rows(
        {"at": 0.0}, {"at": 3500.0}, {"at": 3700.0}, {"at": 3800.0, "reward": np.nan}, {"at": 10.0, "host": "i"}
    )
    log = sample(found, SETTINGS, ticks=True)
    assert log.episode.tolist() == [0, 0, 1, 2]
    assert log.cluster.tolist() == [0, 0, 1, 0]
    assert len(np.unique(sample(found, SETTINGS, ticks=True, episode_minutes=1440).episode)) == 2
    assert len(np.unique(sample(found, SETTINGS, ticks=False).episode)) == 4


def test_a_control_group_makes_treatment_rarer_on_its_days() -> None:
    settings = load_settings({"experiment": {"control_group_pct": 0.4, "treatment_group_pct": 0.6}})
    found = rows(
        {**TREATED, "at": 0.0},
        {"arm": "control", "reason": "control_group", "rollout_percentage": 50, "at": 7200.0},
        {**TREATED, "at": 90_000.0},
        settings=settings,
    )
    assert found.chance.tolist() == [0.3, 0.3, 0.5]


def test_units_are_blocks_for_ticks_and_tickets_for_tickets() -> None:
    same_block = (
        {**TREATED, "ticket": "a"},
        {**TREATED, "ticket": "b"},
        {**TREATED, "ticket": "a", "rollout_percentage": 20},
    )
    assert rows(*same_block).unit.tolist() in ([0, 0, 1], [1, 1, 0])
    assert len(set(rows(*same_block, ticks=False).unit.tolist())) == 3
    seen = observed(rows(*same_block), np.ones(3), SETTINGS, ticks=True)
    assert seen.block.tolist() == [1, 1, 0]
    assert seen.treated.all()


def ramp(moments: int, moment: Any, settings: Any = SETTINGS, ticks: bool = True, **more: Any) -> Any:
    """A log at 50 %: for each moment a draw of the arm, and what `moment(draw, treated)` says of it."""
    draw = np.random.default_rng(3)
    made = []
    for at in range(moments):
        treated = bool(draw.random() < 0.5)
        arm = TREATED if treated else {"arm": "control", "reason": "not_in_rollout", "rollout_percentage": 50}
        made.append({**arm, "advised_propensity": 1.0, "at": 3600.0 * at, **more, **moment(draw, treated)})
    return rows(*made, settings=settings, ticks=ticks)


def difference(found: Any) -> dict[str, Any]:
    evaluated = estimates(sample(found, SETTINGS, ticks=True))
    assert evaluated.policy.mean_weight == pytest.approx(1.0, abs=0.1)
    assert evaluated.rules.mean_weight == pytest.approx(1.0, abs=0.1)
    return {each.method: each for each in evaluated.estimates if each.of == "difference"}


def holds(estimate: Any, truth: float) -> bool:
    return bool(estimate.low <= truth <= estimate.high)


def test_what_differs_by_little_has_the_same_weight_in_both_arms() -> None:
    """103 workers where the rules keep 100, at the worse half of the moments: neither does anything."""

    def moment(draw: Any, treated: bool) -> dict[str, Any]:
        near = bool(draw.random() < 0.5)
        advice = {"advised": "INCREASE_WORKER_POOL", "advised_target": 103.0} if near else {"confidence": 1.0}
        done = {"action": "INCREASE_WORKER_POOL", "target": 103.0} if near and treated else {}
        return {"reward": (-0.1 if near else 0.1) + draw.normal(0, 0.05), **advice, **done}

    found = ramp(2000, moment, active_workers=100.0)
    assert found.same.sum() > found.alike.sum(), "for people it is the same"
    for estimate in difference(found).values():
        assert abs(estimate.value) < 0.015, estimate
        assert estimate.model_based or holds(estimate, 0.0)


def test_moments_at_which_the_arm_decides_may_be_worse_than_others() -> None:
    """The rules' action of treated moments is not recorded; that of those where both agree does not stand for it."""

    def moment(draw: Any, treated: bool) -> dict[str, Any]:
        apart = bool(draw.random() < 0.5)
        done = {"action": "INCREASE_WORKER_POOL", "target": 13.0} if apart and not treated else {}
        return {"reward": (0.0 if apart else 0.2) + draw.normal(0, 0.02), "confidence": 0.9 if apart else 1.0, **done}

    found = difference(ramp(4000, moment))
    for method in ("pdis", "weighted", "doubly_robust"):
        assert holds(found[method], 0.0), found[method]


def test_what_the_action_does_is_found_by_every_method() -> None:
    """Growing earns 1, keeping 0; the rules grow at half of the moments, the policy never."""

    def moment(draw: Any, treated: bool) -> dict[str, Any]:
        grows = bool(draw.random() < 0.5)
        done = {"action": "INCREASE_WORKER_POOL", "target": 13.0} if grows and not treated else {}
        return {"reward": float(bool(done)) + draw.normal(0, 0.05), "confidence": 0.9 if grows else 1.0, **done}

    for estimate in difference(ramp(4000, moment)).values():
        assert estimate.value == pytest.approx(-0.5, abs=0.03), estimate
        assert holds(estimate, -0.5)


def test_a_confidence_of_1_that_the_record_contradicts_is_not_believed() -> None:
    """Somebody else's advice is always sure."""

    def moment(draw: Any, treated: bool) -> dict[str, Any]:
        done = {"action": "INCREASE_WORKER_POOL", "target": 12.0} if treated else {}
        return {**GROWN, "confidence": 1.0, "reward": 0.3 * treated + draw.normal(0, 0.05), **done}

    found = ramp(1000, moment)
    assert not found.alike.any()
    assert difference(found)["doubly_robust"].value == pytest.approx(0.3, abs=0.02)


def test_task_types_that_stay_in_their_arm_are_not_compared() -> None:
    """Two task types with different rewards, one in each arm: no effect of anything."""
    settings = load_settings({"rollout": {"unit": "task_type", "percentage": 50}})

    def moment(draw: Any, treated: bool) -> dict[str, Any]:
        return {"task_type": "ab"[treated], "ticket": str(draw.random()), "reward": 0.1 * treated, "at": draw.random()}

    found = ramp(400, moment, settings, ticks=False)
    for comparison in comparisons(found, settings, ticks=False):
        assert comparison.difference is None
        assert "task_type" in comparison.reason
    evaluated = estimates(sample(found, settings, ticks=False))
    assert evaluated.policy.clusters == 2
    assert evaluated.best() is None, "two task types tell nothing, however many tickets"


def test_nothing_rewarded_and_unknown_states_break_nothing() -> None:
    found = rows({"reward": np.nan, "active_workers": np.nan, "advised": "", "confidence": np.nan})
    assert found.state.tolist() == ["no-metrics"]
    assert not found.followable.any()
    assert len(sample(found, SETTINGS, ticks=True)) == 0
