"""Ramp, keep in shadow, or not enough data: one decision from all the numbers, its reasons and the next command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.types import Reason

if TYPE_CHECKING:
    from nhm_sched_plugin.experiment.arms import Comparison
    from nhm_sched_plugin.experiment.ope import Evaluated
    from nhm_sched_plugin.settings import Settings

__all__ = ["KEEP", "MORE", "RAMP", "Next", "Step", "Verdict", "judge"]

RAMP: Final = "ramp"
KEEP: Final = "keep in shadow"
MORE: Final = "not enough data"
STAGES: Final = (20, 50, 100)
MARGIN: Final = 0.01
"""A loss of mean reward, or of SLA, that is no reason to wait: a point of SLA. Reward is near 0 in any steady state, so
SLA and workers have to be looked at beside it."""
ROUNDING: Final = 1e-6
"""Arms that are exactly alike may differ in the last digits."""
DEARER: Final = 0.05
"""More workers than this (share of the control arm's) have to buy something."""
DAY_S: Final = 86_400.0
_UNASKED: Final[Mapping[str, str]] = {
    Reason.BELOW_VOLUME_THRESHOLD: "the load stayed under the gate (optimizer.forecast_volume_threshold)",
    Reason.FORECAST_UNAVAILABLE: "there was no forecast; `nhm-sched doctor` says why, `nhm-sched train` makes one",
    Reason.OPTIMIZER_UNAVAILABLE: "the optimizer did not answer; `nhm-sched doctor` says why",
    Reason.DISABLED: "optimizer.enabled is false",
}


class Next(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now."""

    meaning: str
    command: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    answer: str
    """`ramp`, `keep in shadow`, or `not enough data`."""
    percentage: int
    """Where rollout.percentage should stand now."""
    headline: str
    """One plain sentence."""
    reasons: list[str]
    next: list[Next]
    there: bool = False
    """It stands there already."""

    @property
    def title(self) -> str:
        """The answer as a heading: there is nothing left to ramp to at 100 %."""
        answer = "stay" if self.answer == RAMP and self.there else self.answer
        return f"{answer[:1].upper()}{answer[1:]}"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rollout stands, in numbers."""

    regime: str
    """`shadow`, `ramp` or `full`."""
    percentage: int
    """Of the newest decision."""
    rewarded: int
    asked: int
    followable: int
    agreement: float
    span_s: float
    switchback: bool = True
    """Whether rollout.unit is."""
    config: str = ""
    """The configuration file, for the commands to name."""
    usual: str = Reason.BELOW_VOLUME_THRESHOLD
    """The most frequent reason of the decisions: why nobody was asked, where nobody was."""


def judge(
    step: Step, evaluated: Evaluated, arms: tuple[Comparison, Comparison, Comparison], settings: Settings
) -> Verdict:
    """The verdict; `arms`: reward, SLA and workers compared.

    In shadow it can only say that a first, small step is reasonable: see docs/shadow-report.md.
    """
    lacks = _lacks(step, settings)
    if lacks:
        return _stay(step, MORE, "There is not enough in the records yet to say anything.", lacks)
    if step.regime == "shadow":
        return _from_shadow(step, evaluated)
    if step.regime == "full":
        why = "everything follows the policy, so there is no control arm to compare with"
        return _stay(step, MORE, "At 100 % nothing shows what the rules would have done.", [why])
    return _from_ramp(step, evaluated, *arms)


def _lacks(step: Step, settings: Settings) -> list[str]:
    found, needed = [], settings.experiment.min_samples
    if step.rewarded < needed:
        found.append(f"{step.rewarded:,} decisions have a reward; experiment.min_samples asks for {needed:,}")
    if step.span_s < DAY_S:
        found.append(f"the decisions cover {step.span_s / 3600:.1f} hours; a day has to be seen, since load has days")
    if not step.asked:
        found.append(f"the policy was never asked: {_UNASKED.get(step.usual, f'the reason was {step.usual}')}")
    return found


def _from_shadow(step: Step, evaluated: Evaluated) -> Verdict:
    if not step.followable:
        why = (
            f"of {step.asked:,} recommendations none was sure enough and free of vetoes, so a ramp would change nothing"
        )
        return _stay(step, KEEP, "The policy is not sure of anything yet; let it go on learning.", [why])
    model = next(e for e in evaluated.estimates if (e.method, e.of) == ("fitted_q", "difference"))
    about = (
        f"its advice would be followed at {step.followable:,} decisions and agrees with the rules at "
        f"{_share(step.agreement)} of those they decided"
    )
    if model.high is not None and model.high < -MARGIN:
        why = f"a model of the log expects it to lose {_span(model.value, model.low, model.high)} of mean reward"
        return _stay(step, KEEP, "What is known speaks against the policy.", [why, about])
    if model.value is None:
        expected = f"no estimate of its worth: {model.reason}"
    else:
        expected = (
            f"a model of the log expects a difference of {_span(model.value, model.low, model.high)} in mean reward; "
            "in shadow that is a guess, not evidence"
        )
    only = "shadow cannot show what the other actions bring; a ramp in one block of time in five can"
    return _go(step, STAGES[0], "Nothing speaks against a first, small step.", [about, expected, only])


def _from_ramp(step: Step, evaluated: Evaluated, reward: Comparison, sla: Comparison, workers: Comparison) -> Verdict:
    best = evaluated.best()
    reasons = []
    if reward.difference is not None:
        p = (
            ""
            if reward.sequential is None or reward.sequential.p_value is None
            else (f", always-valid p = {reward.sequential.p_value:.3g}")
        )
        reasons.append(f"treatment less control: {_span(reward.difference, reward.low, reward.high)} in mean reward{p}")
    if sla.difference is not None:
        reasons.append(f"SLA, treatment less control: {_span(sla.difference, sla.low, sla.high)}")
    share = _dearer(workers)
    if share is not None:
        reasons.append(f"workers, treatment less control: {_percents(*share)} of those in control")
    if best is not None:
        reasons.append(
            f"at 100 %, policy less rules: {_span(best.value, best.low, best.high)} ({best.method.replace('_', ' ')})"
        )
    else:
        reasons.append(evaluated.policy.problem() or evaluated.rules.problem("rules"))
    ends = [(one.low, one.high) for one in (reward, best, sla) if one is not None and one.low is not None]
    if any(high is not None and high < -ROUNDING for _, high in ends):
        return _stay(
            step,
            KEEP,
            "The policy does worse than the rules; go back to shadow and let it learn.",
            reasons,
            percentage=0,
        )
    if share is not None and share[1] > DEARER and not (sla.low is not None and sla.low > 0):
        text = "The policy pays for more workers and shows no better SLA for it; go back to shadow."
        return _stay(step, KEEP, text, reasons, percentage=0)
    if reward.reason or best is None:
        return _stay(step, MORE, "The ramp has not shown enough yet; stay where it is.", [reward.reason, *reasons])
    if all(low is not None and low > -MARGIN for low, _ in ends):
        better = reward.low is not None and reward.low > 0
        text = "The policy does better than the rules." if better else "The policy does no harm that matters."
        return _go(step, next((stage for stage in STAGES if stage > step.percentage), 100), text, reasons)
    why = f"a loss of more than {MARGIN:g} cannot be ruled out yet"
    return _stay(step, MORE, "The ramp has not shown enough yet; stay where it is.", [why, *reasons])


def _dearer(workers: Comparison) -> tuple[float, float, float] | None:
    """Difference and its interval, as shares of the control arm's workers."""
    mean, ends = workers.control_mean, (workers.difference, workers.low, workers.high)
    if not mean or any(end is None or not math.isfinite(end) for end in ends):
        return None
    value, low, high = (float(end) / mean for end in ends if end is not None)
    return value, low, high


def _percents(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"


def _go(step: Step, percentage: int, headline: str, reasons: list[str]) -> Verdict:
    there = percentage == step.percentage
    return Verdict(
        answer=RAMP,
        percentage=percentage,
        there=there,
        headline=f"{headline} {'Stay at' if there else 'Go to'} {percentage} %.",
        reasons=reasons,
        next=[*([] if there else [_set(step, percentage)]), _again(step, "7d")],
    )


def _stay(step: Step, answer: str, headline: str, reasons: list[str], percentage: int | None = None) -> Verdict:
    stand = step.percentage if percentage is None else percentage
    change = [] if stand == step.percentage else [_set(step, stand)]
    kept = [reason for reason in reasons if reason]
    return Verdict(
        answer=answer, percentage=stand, headline=headline, reasons=kept, next=[*change, _again(step, "14d")]
    )


def _set(step: Step, percentage: int) -> Next:
    keys, command = f"rollout.percentage to {percentage}", f"NHM_SCHED_ROLLOUT__PERCENTAGE={percentage}"
    if percentage and not step.switchback:
        keys, command = f"{keys} and rollout.unit to switchback", f"{command} NHM_SCHED_ROLLOUT__UNIT=switchback"
    return Next(
        meaning=f"set {keys} in {step.config or 'the configuration file'}; running hosts follow within seconds. "
        "Where variables configure the host, restart it with",
        command=command,
    )


def _again(step: Step, since: str) -> Next:
    option = f" --config {shlex.quote(step.config)}" if step.config else ""
    return Next(
        meaning="look again when there is more",
        command=f"nhm-sched drain{option} && nhm-sched shadow report --since {since}{option}",
    )


def _span(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "unknown"
    if low is None or high is None or not math.isfinite(high - low):
        return f"{value:+.4f}"
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _share(share: float) -> str:
    return "no share" if math.isnan(share) else f"{100 * share:.0f} %"
