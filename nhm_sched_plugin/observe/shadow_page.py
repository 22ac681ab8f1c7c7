"""The page of the shadow report: should the policy decide more, and what says so.

`render_shadow(report, path)` writes one file without network, scripts or fonts of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nhm_sched_plugin.observe import shadow_words as told
from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.captions import Caption, Card
from nhm_sched_plugin.observe.page import write_page

if TYPE_CHECKING:
    from nhm_sched_plugin.experiment.ope import Estimate
    from nhm_sched_plugin.experiment.shadow import ShadowReport

__all__ = ["render_shadow"]

_STATES: Final = 12


class Table(NamedTuple):
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    prose: int = 1
    """Leading columns of text."""


class Section(NamedTuple):
    name: str
    title: str
    caption: Caption | None = None
    plot: Any = None
    table: Table | None = None
    missing: str = ""


def render_shadow(report: ShadowReport, path: Path, *, command: str = "") -> Path:
    """Write the page and return its absolute path. Raises `OSError` when it cannot be written.

    Needs the `report` extra (matplotlib, jinja2).
    """
    return write_page(
        "shadow.html.j2",
        path,
        report=report,
        lead=told.lead(report),
        learned=told.learned(report),
        cards=_cards(report),
        sections=[section for build in _SECTIONS if (section := build(report)) is not None],
        command=command,
        made=words.when(time.time(), seconds=False),
    )


def _cards(report: ShadowReport) -> list[Card]:
    share = report.asked / report.decisions
    followed = report.followable / report.decisions
    cards = [
        Card(words.number(report.decisions), "decisions looked at", f"the policy was asked at {words.percent(share)}"),
        Card(words.percent(followed), "would follow the policy at 100 %", "sure enough, and no guard objected"),
    ]
    if report.overall.decisions:
        cards.append(
            Card(words.percent(report.overall.share), "agreement with the rules", "where it would be followed")
        )
    overlap = report.evaluated.policy
    if overlap.problem():
        return [*cards, Card("none", "effective sample size", "the records cannot answer by weighting: see below")]
    hint = f"of {words.count(overlap.episodes, 'episode')} of {words.duration(60 * report.episode_minutes)}"
    cards.append(
        Card(words.number(overlap.effective), "effective sample size", hint if report.ticks else "of the tickets")
    )
    return cards


def _estimates(report: ShadowReport) -> Section:
    name, title = "estimates", "What would have happened at 100 %"
    everything = report.evaluated.estimates
    rows = [_estimate(one, everything) for one in everything if one.of == "difference"]
    overlap = report.evaluated.policy
    note = (
        f"On {told.REGIMES[report.evaluated_on]}. Mean reward of a decision, from -1 to +1. Effective sample size "
        f"{overlap.effective:.1f} of {words.count(overlap.episodes, 'episode')}, resampled in "
        f"{words.count(overlap.clusters, 'cluster')}; largest weight {words.percent(overlap.largest, 1)} of all; mean "
        f"weight {overlap.mean_weight:.2f} (1 is expected); the model has seen "
        f"{words.percent(report.evaluated.coverage)} of what the policy would do. "
        + " ".join(f"{line}." for line in told.unanswered(report))
    )
    table = Table(["Method", "Policy everywhere", "Rules everywhere", "Difference", "95 % interval"], rows, note)
    known = [one for one in everything if one.of == "difference" and one.value is not None]
    caption = told.estimates(report)
    if not known:
        return Section(name, title, table=table, missing=caption.means)
    from nhm_sched_plugin.observe import shadow_plots

    spans = [(told.METHODS[one.method], one.value or 0.0, one.low, one.high) for one in known]
    model = [told.METHODS[one.method] for one in known if one.model_based]
    plot = shadow_plots.forest("shadow-estimates", "mean reward, policy less rules", spans, model)
    return Section(name, title, caption, plot, table)


def _estimate(one: Estimate, everything: Sequence[Estimate]) -> list[str]:
    side = {other.of: other for other in everything if other.method == one.method}
    first = told.METHODS[one.method]
    values = [told.signed(side[of].value) for of in ("policy", "rules", "difference")]
    return [first, *values, told.span(one.low, one.high)]


def _arms(report: ShadowReport) -> Section:
    name, title = "arms", "What was reached in each arm"
    rows = [
        [
            f"{arm.arm}",
            words.number(arm.decisions),
            words.number(arm.rewarded),
            told.signed(arm.mean_reward),
            told.span(arm.low, arm.high),
            "–" if arm.sla is None else words.percent(arm.sla, 1),
        ]
        for arm in report.arms
    ]
    note = "Arms of different weeks are not comparable; treatment and control of the same time are: see the next part."
    table = Table(["Arm", "Decisions", "With a reward", "Mean reward", "95 % interval", "SLA met"], rows, note)
    known = [(arm.arm, arm.mean_reward, arm.low, arm.high) for arm in report.arms if arm.mean_reward is not None]
    if not known:
        return Section(name, title, table=table, missing="No decision has a reward yet.")
    from nhm_sched_plugin.observe import shadow_plots

    caption = Caption(
        "The mean reward of each arm with its 95 % interval, resampled by blocks of time.",
        "The reward says whether things got better after a decision: it is near 0 in a steady state, in every arm.",
    )
    return Section(name, title, caption, shadow_plots.forest("shadow-arms", "mean reward", known), table)


def _sequence(report: ShadowReport) -> Section:
    name, title = "comparison", "Treatment against control"
    compared = (report.reward, report.sla, report.workers)
    lines = [told.compared(one) for one in compared if one.blocks] or [report.reward.reason]
    found = report.reward.sequential
    if found is None or not found.means:
        return Section(name, title, missing=" ".join(f"{line}." for line in lines))
    from nhm_sched_plugin.observe import shadow_plots

    caption = Caption(
        "The difference in reward as it was known after each block, with a band that may be looked at after every "
        "block: its error holds over all looks together.",
        " ".join(f"{line[:1].upper()}{line[1:]}." for line in lines),
    )
    return Section(name, title, caption, shadow_plots.sequence(report.reward))


def _agreement(report: ShadowReport) -> Section | None:
    name, title = "agreement", "Where policy and rules agree"
    if not report.overall.decisions:
        return None
    from nhm_sched_plugin.observe import shadow_plots

    head = ["State", "Decisions", "The same", "More workers", "Fewer workers", "Something else", "Median difference"]
    rows = [
        [
            row.name,
            words.number(row.decisions),
            words.percent(row.share),
            *(words.number(count) for count in (row.more, row.fewer, row.other)),
            "–" if row.median_apart is None else f"{row.median_apart:+g}",
        ]
        for row in (report.overall, *report.by_state[:_STATES])
    ]
    note = (
        "States: u utilisation at the forecast (0: under half, 3: over full), b backlog per worker, s SLA (1: met), "
        "t trend of the load (0: falling, 2: rising)."
    )
    plot = shadow_plots.agreement(report.by_state[:_STATES])
    return Section(name, title, told.agreement(report), plot, Table(head, rows, note))


def _actions(report: ShadowReport) -> Section | None:
    name, title = "actions", "What each of them did"
    if not report.by_action:
        return None
    rows = [
        [
            _plain(pair.rules),
            _plain(pair.policy),
            words.number(pair.decisions),
            words.percent(pair.same / pair.decisions),
        ]
        for pair in report.by_action
    ]
    note = "Where the rules decided and the policy would be followed at 100 %. The same: as many workers, within 5 %."
    return Section(
        name, title, table=Table(["The rules did", "The policy would", "Decisions", "The same"], rows, note, 2)
    )


def _plain(action: str) -> str:
    return words.action(action, {})


def _apart(report: ShadowReport) -> Section | None:
    name, title = "apart", "Which way they differ"
    if not report.apart:
        return None
    from nhm_sched_plugin.observe import shadow_plots

    caption = Caption(
        "How many workers more (right) or fewer (left) the policy would have than the rules, where they differ; what "
        "is further out stands in the outermost bars.",
        _way(report),
    )
    return Section(name, title, caption, shadow_plots.apart(report.apart_edges, report.apart))


def _way(report: ShadowReport) -> str:
    more, fewer = report.overall.more, report.overall.fewer
    if more > 2 * fewer:
        return "The policy is the more generous of the two: look at the cost."
    if fewer > 2 * more:
        return "The policy is the thriftier of the two: look at the SLA."
    return "It goes both ways."


def _confidence(report: ShadowReport) -> Section | None:
    name, title = "confidence", "How sure the policy was"
    total = sum(report.confidences)
    if not total:
        return None
    from nhm_sched_plugin.observe import shadow_plots

    share = report.followable / report.decisions
    caption = Caption(
        "Recommendations by their confidence; advice is followed right of the line, at "
        f"{report.confidence_threshold:g} or more.",
        f"{words.count(report.followable, 'decision')} of {words.number(report.decisions)} "
        f"({words.percent(share)}) would follow it. A confidence of 1 means that policy and rules would do the same.",
    )
    return Section(name, title, caption, shadow_plots.confidence(report.confidences, report.confidence_threshold))


def _calibration(report: ShadowReport) -> Section:
    name, title = "calibration", "Is the confidence true?"
    known = [one for one in report.calibration if one.at_least_as_good is not None]
    if not known:
        return Section(
            name,
            title,
            missing="that takes decisions where policy and rules differ, at least 30 in treatment and in control.",
        )
    from nhm_sched_plugin.observe import shadow_plots

    rows = [
        [
            f"{one.low:.1f} to {one.high:.1f}",
            words.number(one.treatment),
            words.number(one.control),
            f"{one.mean_confidence:.2f}",
            f"{one.at_least_as_good:.2f}",
        ]
        for one in known
    ]
    caption = Caption(
        "How often the reward of a followed recommendation was no less than that of one of about the same confidence "
        "that was drawn not to be followed. On the line, confidence and frequency are the same.",
        "Single rewards are noisy and often equal, so this is a sanity check and no proof: the confidence is about "
        "averages.",
    )
    table = Table(["Confidence", "Treatment", "Control", "Mean confidence", "At least as good"], rows)
    return Section(name, title, caption, shadow_plots.calibration(report.calibration), table)


def _reasons(report: ShadowReport) -> Section:
    meanings = {str(code): text for code, text in words.REASONS.items()}
    rows = [
        [
            reason,
            meanings.get(reason, "A reason of a newer version."),
            words.number(count),
            words.percent(count / report.decisions),
        ]
        for reason, count in report.reasons.items()
    ]
    table = Table(["Reason", "In plain words", "Decisions", "Share"], rows, prose=2)
    return Section("reasons", "Why decisions were what they were", table=table)


_SECTIONS: Final[tuple[Callable[[ShadowReport], Section | None], ...]] = (
    _estimates,
    _arms,
    _sequence,
    _agreement,
    _actions,
    _apart,
    _confidence,
    _calibration,
    _reasons,
)
