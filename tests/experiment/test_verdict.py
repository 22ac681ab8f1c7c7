"""The verdict follows from the numbers, and never says more than they do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nhm_sched_plugin.experiment.arms import Comparison
from nhm_sched_plugin.experiment.ope import Estimate, Evaluated
from nhm_sched_plugin.experiment.overlap import Overlap
from nhm_sched_plugin.experiment.sequential import Sequence
from nhm_sched_plugin.experiment.verdict import KEEP, MORE, RAMP, Step, judge
from nhm_sched_plugin.settings import load_settings

SETTINGS = load_settings({})
STEP = Step(
    regime="ramp", percentage=20, rewarded=5000, asked=5000, followable=4000, agreement=0.7, span_s=7 * 86_400.0
)
GOOD = Overlap(episodes=100, clusters=100, effective=50.0, largest=0.03, mean_weight=1.0, unsupported=0.0)


def evaluated(low: float, high: float, overlap: Overlap = GOOD, answers: bool = True) -> Evaluated:
    value = (low + high) / 2
    span = {"value": value, "low": low, "high": high} if answers else {"reason": overlap.problem()}
    robust = Estimate(method="doubly_robust", of="difference", **span)  # type: ignore[arg-type]
    model = Estimate(method="fitted_q", of="difference", value=value, low=low, high=high, model_based=True)
    return Evaluated(estimates=[robust, model], policy=overlap, rules=overlap, coverage=1.0)


def arm(metric: str, low: float, high: float, mean: float = 1.0, reason: str = "") -> Comparison:
    return Comparison(
        metric=metric,
        treatment=2000,
        control=2000,
        blocks=100,
        treatment_mean=mean,
        control_mean=mean,
        difference=(low + high) / 2,
        low=low,
        high=high,
        p_value=0.04,
        sequential=Sequence(blocks=100, p_value=0.04),
        enough=not reason,
        reason=reason,
    )


def verdict(reward: Any = (0.01, 0.03), sla: Any = (-0.001, 0.002), workers: Any = (-1.0, 1.0), **more: Any) -> Any:
    step = msgspec.structs.replace(STEP, **more)
    arms = (arm("reward", *reward), arm("SLA", *sla), arm("workers", *workers, mean=100.0))
    return judge(step, evaluated(*reward), arms, SETTINGS)


@pytest.mark.parametrize(("now", "then"), [(5, 20), (20, 50), (50, 100)])
def test_a_better_policy_goes_one_step_up(now: int, then: int) -> None:
    found = verdict(percentage=now)
    assert (found.answer, found.percentage) == (RAMP, then)
    assert found.headline == f"The policy does better than the rules. Go to {then} %."
    assert found.next[0].command == f"NHM_SCHED_ROLLOUT__PERCENTAGE={then}"


def test_commands_name_the_file_and_the_unit() -> None:
    found = verdict(switchback=False, config="my conf.yaml")
    assert found.next[0].meaning.startswith(
        "set rollout.percentage to 50 and rollout.unit to switchback in my conf.yaml"
    )
    assert found.next[0].command.endswith("NHM_SCHED_ROLLOUT__UNIT=switchback")
    assert found.next[1].command == (
        "nhm-sched drain --config 'my conf.yaml' && nhm-sched shadow report --since 7d --config 'my conf.yaml'"
    )


def test_why_nobody_was_asked_is_what_the_decisions_say() -> None:
    assert "optimizer.forecast_volume_threshold" in verdict(asked=0, usual="below_volume_threshold").reasons[-1]
    for reason, told in (
        ("forecast_unavailable", "there was no forecast"),
        ("optimizer_unavailable", "the optimizer did not answer"),
        ("disabled", "optimizer.enabled is false"),
        ("budget_exceeded", "the reason was budget_exceeded"),
    ):
        found = verdict(asked=0, usual=reason)
        assert told in found.reasons[-1]
        assert "threshold" not in found.reasons[-1]


def test_at_100_there_is_nowhere_to_go() -> None:
    found = verdict(percentage=100)
    assert found.headline.endswith("Stay at 100 %.")
    assert (found.answer, found.title) == ("ramp", "Stay")
    assert verdict().title == "Ramp"
    assert [step.command.split()[0] for step in found.next] == ["nhm-sched"]


def test_no_harm_is_enough_but_a_wide_interval_is_not() -> None:
    assert verdict(reward=(-0.005, 0.006)).answer == RAMP
    wide = verdict(reward=(-0.05, 0.06))
    assert (wide.answer, wide.percentage) == (MORE, 20)
    assert "a loss of more than 0.01 cannot be ruled out yet" in wide.reasons
    assert verdict(sla=(-0.03, 0.02)).answer == MORE


def test_harm_sends_it_back_to_shadow() -> None:
    for found in (verdict(reward=(-0.03, -0.01)), verdict(sla=(-0.05, -0.02)), verdict(workers=(8.0, 12.0))):
        assert (found.answer, found.percentage) == (KEEP, 0)
        assert found.next[0].command == "NHM_SCHED_ROLLOUT__PERCENTAGE=0"
    assert verdict(sla=(-1e-12, -1e-12)).answer == RAMP
    # More workers that buy SLA are a trade, not a loss.
    assert verdict(workers=(8.0, 12.0), sla=(0.01, 0.03)).answer == RAMP


def test_too_little_is_named() -> None:
    found = verdict(rewarded=10, span_s=3600.0, asked=0)
    assert found.answer == MORE
    assert [reason.split()[0] for reason in found.reasons] == ["10", "the", "the"]
    short = (arm("reward", 0.01, 0.03, reason="not enough data: 5 outcomes"), arm("SLA", 0, 0), arm("workers", 0, 0))
    assert judge(STEP, evaluated(0.01, 0.03), short, SETTINGS).answer == MORE
    poor = msgspec.structs.replace(GOOD, effective=3.0)
    unclear = judge(STEP, evaluated(0, 0, poor, answers=False), short, SETTINGS)
    assert unclear.answer == MORE
    assert any("100 episodes are worth 3.0" in reason for reason in unclear.reasons)


def test_shadow_allows_a_first_step_and_claims_no_more() -> None:
    nothing = tuple(
        Comparison(metric=name, treatment=0, control=0, blocks=0, reason="none")
        for name in ("reward", "SLA", "workers")
    )
    shadow = msgspec.structs.replace(STEP, regime="shadow", percentage=0)
    first = judge(shadow, evaluated(0.02, 0.05), nothing, SETTINGS)  # type: ignore[arg-type]
    assert (first.answer, first.percentage) == (RAMP, 20)
    assert any("that is a guess, not evidence" in reason for reason in first.reasons)
    bad = judge(shadow, evaluated(-0.05, -0.02), nothing, SETTINGS)  # type: ignore[arg-type]
    assert (bad.answer, bad.percentage) == (KEEP, 0)
    unsure = judge(msgspec.structs.replace(shadow, followable=0), evaluated(0.02, 0.05), nothing, SETTINGS)  # type: ignore[arg-type]
    assert unsure.answer == KEEP
    assert "none was sure enough" in unsure.reasons[0]
    full = judge(msgspec.structs.replace(STEP, regime="full", percentage=100), evaluated(0, 0), nothing, SETTINGS)  # type: ignore[arg-type]
    assert full.answer == MORE
    assert "no control arm" in full.reasons[0]
