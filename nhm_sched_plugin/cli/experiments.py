"""Is the policy worth following? `shadow report` and `experiment result`."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, between, records, settings_of, writable
from nhm_sched_plugin.cli.show import out, progress, show, table
from nhm_sched_plugin.observe import words

if TYPE_CHECKING:
    from nhm_sched_plugin.experiment.shadow import ShadowReport

shadow_app = typer.Typer(help="What the policy would have done.", no_args_is_help=True)
experiment_app = typer.Typer(help="Treatment against control.", no_args_is_help=True)
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def _window(text: str) -> str:
    if text != "all" and not (re.fullmatch(r"\d+(\.\d+)?[mhdw]", text) and float(text[:-1]) > 0):
        raise typer.BadParameter(f"{text!r} is no length of time; write it as 90m, 12h, 7d, 2w, or all")
    return text


SinceOption = Annotated[
    str, typer.Option(callback=_window, help="How far back from the newest decision: 12h, 7d, 2w, or all.")
]


def _seconds(since: str) -> float | None:
    return None if since == "all" else float(since[:-1]) * _UNITS[since[-1]]


@shadow_app.command("report")
def shadow_report(
    since: SinceOption = "7d",
    episode_minutes: Annotated[
        int | None,
        typer.Option(callback=between(1, 10_080), help="Length of an episode. Default: rollout.block_minutes."),
    ] = None,
    report_path: Annotated[
        Path | None,
        typer.Option("--report", metavar="OUT.html", callback=writable, help="Write a page with plots."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ramp, keep in shadow, or not enough data: what the records say about following the policy."""
    from nhm_sched_plugin.experiment.shadow import shadow_report as look

    settings = settings_of(config)
    with records(settings) as store, progress("Reading the records"):
        found = look(
            store,
            settings,
            window_s=_seconds(since),
            episode_minutes=episode_minutes,
            config=str(config or ""),
        )
    if report_path is not None:
        from nhm_sched_plugin.observe.shadow_page import render_shadow

        render_shadow(found, report_path, command=shlex.join(["nhm-sched", *sys.argv[1:]]))
    show(found, as_json, lambda: _tell(found, report_path))


def _tell(found: ShadowReport, report: Path | None) -> None:
    from nhm_sched_plugin.observe import shadow_words as told

    def say(text: str, style: str = "") -> None:
        out.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    verdict = found.verdict
    say(f"{verdict.title}: {verdict.headline}", "bold")
    for reason in verdict.reasons:
        say(f"  - {reason}")
    say("")
    say(told.lead(found))
    asked, followed = found.asked / found.decisions, found.followable / found.decisions
    say(
        f"The policy was asked at {words.percent(asked)}; its advice would be followed at {words.percent(followed)} "
        f"(confidence {found.confidence_threshold:g} or more, no veto)."
    )
    say(told.learned(found))
    if found.overall.decisions:
        say(told.agreement(found).means)
    say("")
    table(_estimates(found), title="Mean reward at 100 %, policy less rules")
    say("* a guess: it takes the state key for all that matters", "dim")
    for line in told.unanswered(found):
        say(f"{line}.")
    overlap = found.evaluated.policy
    say(
        f"On {told.REGIMES[found.evaluated_on]}: {words.count(overlap.episodes, 'episode')}, effective sample size "
        f"{overlap.effective:.1f}, mean weight {overlap.mean_weight:.2f}.",
        "dim",
    )
    say("")
    table([_arm(found, index) for index in range(len(found.arms))], title="By arm")
    for one in (found.reward, found.sla, found.workers):
        if one.blocks:
            say(told.compared(one))
    say("")
    for step in verdict.next:
        say(f"{step.meaning[:1].upper()}{step.meaning[1:]}:")
        say(f"  {step.command}", "bold")
    if report is not None:
        say(f"Report: {report}")


def _estimates(found: ShadowReport) -> list[dict[str, object]]:
    from nhm_sched_plugin.observe import shadow_words as told

    rows = [one for one in found.evaluated.estimates if one.of == "difference"]
    return [
        {
            "method": told.METHODS[one.method] + ("*" if one.model_based else ""),
            "difference": told.signed(one.value),
            "95 %": told.span(one.low, one.high),
        }
        for one in rows
    ]


def _arm(found: ShadowReport, index: int) -> dict[str, object]:
    from nhm_sched_plugin.observe import shadow_words as told

    arm = found.arms[index]
    return {
        "arm": arm.arm,
        "decisions": arm.decisions,
        "with a reward": arm.rewarded,
        "mean reward": told.signed(arm.mean_reward),
        "95 %": told.span(arm.low, arm.high),
        "SLA": "-" if arm.sla is None else words.percent(arm.sla, 1),
    }


@experiment_app.command("result")
def experiment_result(
    name: Annotated[str | None, typer.Argument(help="A registered model: write the p-value to it.")] = None,
    version: Annotated[str | None, typer.Argument(help="Its version.")] = None,
    since: SinceOption = "all",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare treatment with control; with NAME VERSION, note the p-value there for `promote`."""
    from nhm_sched_plugin.experiment.shadow import comparisons, read
    from nhm_sched_plugin.observe.shadow_words import compared

    if (name is None) != (version is None):
        raise typer.BadParameter("give NAME and VERSION, or neither")
    settings = settings_of(config)
    with records(settings) as store, progress("Reading the records"):
        found, ticks, _ = read(store, settings, _seconds(since))
        reward, sla, workers = comparisons(found, settings, ticks=ticks)
    written = None
    if name is not None and version is not None:
        from nhm_sched_plugin.training.promotion import note_experiment

        written = note_experiment(settings, name, version, reward, sla)

    def tell() -> None:
        for one in (reward, sla, workers):
            out.print(compared(one), markup=False, highlight=False, soft_wrap=True)
        if written is not None:
            text = f"Noted at {name} version {version}: p = {written:.3g}."
            out.print(text, markup=False, highlight=False, soft_wrap=True)

    show({"reward": reward, "sla": sla, "workers": workers, "written": written}, as_json, tell)


app.add_typer(shadow_app, name="shadow")
app.add_typer(experiment_app, name="experiment")
