"""The shadow report in plain words: what each part shows and means, for the page and the terminal alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.captions import Caption

if TYPE_CHECKING:
    from nhm_sched_plugin.experiment.arms import Comparison
    from nhm_sched_plugin.experiment.shadow import ShadowReport

__all__ = [
    "METHODS",
    "REGIMES",
    "agreement",
    "compared",
    "estimates",
    "lead",
    "learned",
    "signed",
    "span",
    "unanswered",
]

METHODS: Final = {
    "doubly_robust": "doubly robust",
    "weighted": "weighted importance sampling",
    "pdis": "importance sampling",
    "fitted_q": "model only (fitted Q)",
}
REGIMES: Final = {
    "ramp": "the decisions at which either arm was possible",
    "shadow": "the decisions in shadow, all made by the rules",
    "full": "the decisions at 100 %",
}


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def span(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def lead(report: ShadowReport) -> str:
    kind = "control tick" if report.ticks else "ticket"
    rollout = ", ".join(f"{percentage} %" for percentage in report.percentages)
    text = (
        f"{words.count(report.decisions, 'decision')} ({kind}s) of "
        f"{words.count(report.hosts, 'host process', 'host processes')}, "
        f"{words.when(report.first, seconds=False)} to {words.when(report.last, seconds=False)}, "
        f"at a rollout of {rollout}."
    )
    if report.others:
        other = "tickets" if report.ticks else "control ticks"
        text += f" {words.number(report.others)} decisions on {other} are not compared here."
    if report.left_out:
        text += f" {words.number(report.left_out)} older ones were left out."
    return text


def learned(report: ShadowReport) -> str:
    text = (
        f"Shadow mode teaches: the policy learned from {words.count(report.learned_from, 'outcome')} of this time, "
        "whoever had decided."
    )
    if report.updates is not None:
        text += f" Its table has {words.count(report.updates, 'update')} in all."
    return text


def agreement(report: ShadowReport) -> Caption:
    found = report.overall
    see = "A bar for each of the most frequent states: what the policy would do there, beside what the rules would."
    differ = found.decisions - found.same
    if not differ:
        return Caption(see, "The policy would have done what the rules did, everywhere.")
    means = (
        f"They agree at {words.percent(found.same / found.decisions)} of {words.count(found.decisions, 'decision')} "
        "that the rules made and the policy would be followed at. "
        f"Where they differ, the policy would have more workers {words.number(found.more)} times and fewer "
        f"{words.number(found.fewer)} times"
    )
    if found.median_apart is not None:
        means += f", in the middle {found.median_apart:+g} workers"
    if found.other:
        means += f"; at {words.number(found.other)} it is another action"
    return Caption(see, means + ".")


def estimates(report: ShadowReport) -> Caption:
    see = (
        "The difference in mean reward of a decision between following the policy everywhere and following the rules "
        "everywhere, with 95 % intervals. Left of the line the rules are better, right of it the policy."
    )
    model = next(e for e in report.evaluated.estimates if (e.method, e.of) == ("fitted_q", "difference"))
    best = report.evaluated.best()
    if best is None:
        why = report.evaluated.policy.problem() or report.evaluated.rules.problem("rules")
        text = f"The records cannot answer by weighting: {why}."
        if model.value is not None:
            text += (
                " What is drawn comes from a model of the log that takes the state key for all that matters. It has "
                "been wrong by more than its interval; do not ramp on it alone."
            )
        return Caption(see, text)
    text = f"By {METHODS[best.method]}: {signed(best.value)} ({span(best.low, best.high)})."
    if best.low is not None and best.high is not None:
        sides = (best.low > 0, best.high < 0)
        text += " " + {(True, False): "The policy is better.", (False, True): "The rules are better."}.get(
            sides, "That may be chance: 0 is inside."
        )
    if best.value is not None and model.low is not None and not model.low <= best.value <= (model.high or model.low):
        text += f" The model alone says {signed(model.value)}, so it misses something here: go by the others."
    return Caption(see, text)


def unanswered(report: ShadowReport) -> list[str]:
    """Why methods have no answer: a line for each reason, with the methods it holds for."""
    reasons: dict[str, list[str]] = {}
    for one in report.evaluated.estimates:
        if one.of == "difference" and one.reason:
            reasons.setdefault(one.reason, []).append(METHODS[one.method])
    return [f"No answer by {', '.join(methods)}: {why}" for why, methods in reasons.items()]


def compared(found: Comparison) -> str:
    """One line on a comparison of arms."""
    if found.difference is None:
        return f"{found.metric}: {found.reason}"
    where = "within shared blocks" if found.shared else "by block"
    digits = 1 if found.metric == "workers" else 4
    ends = "" if found.low is None or found.high is None else f" ({found.low:+.{digits}f} to {found.high:+.{digits}f})"
    text = (
        f"{found.metric}: {found.difference:+.{digits}f}{ends}, "
        f"{words.count(found.blocks, 'block')} ({where}), p = {found.p_value:.3g} for one look"
    )
    following = found.sequential
    if following is not None:
        known = following.p_value is not None
        text += f", p = {following.p_value:.3g} however often you look" if known else f"; {following.reason}"
    return text + (f"; {found.reason}" if found.reason else "")
