"""Numbers, codes and moments in words: one wording for the terminal, the report and the story of a decision."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Final

from nhm_sched_plugin.types import Action, Arm, Reason, Source

__all__ = [
    "ACTIONS",
    "ARMS",
    "REASONS",
    "SOURCES",
    "action",
    "count",
    "duration",
    "number",
    "percent",
    "quantity",
    "when",
]

ACTIONS: Final[Mapping[Action, str]] = {
    Action.INCREASE_WORKER_POOL: "add workers",
    Action.DECREASE_WORKER_POOL: "remove workers",
    Action.ADJUST_PRIORITY_WEIGHTS: "change the priority weights",
    Action.PREEMPTIVE_SCALING: "add workers ahead of the load",
    Action.LOAD_BALANCING_RECONFIG: "spread the load anew over the workers",
    Action.NO_ACTION: "keep things as they are",
}

SOURCES: Final[Mapping[Source, str]] = {
    Source.POLICY: "the learned policy",
    Source.FALLBACK: "the rules",
    Source.CUSTOM: "a hook of yours",
    Source.DEFAULT: "the last resort in code",
}

ARMS: Final[Mapping[Arm, str]] = {
    Arm.SHADOW: "shadow: the policy only watches",
    Arm.CONTROL: "control: the rules decide",
    Arm.TREATMENT: "treatment: the policy may decide",
}

REASONS: Final[Mapping[Reason, str]] = {
    Reason.APPLIED: "The advice was followed: sure enough, no objection, inside the rollout.",
    Reason.BELOW_VOLUME_THRESHOLD: "The load ahead was light, so nobody was asked and the rules decided.",
    Reason.CONFIDENCE_BELOW_THRESHOLD: "The advice was not sure enough, so the rules decided.",
    Reason.VETOED: "A guard objected to the advice, so the rules decided.",
    Reason.SHADOW: "Shadow mode: the advice was written down, the rules decided.",
    Reason.NOT_IN_ROLLOUT: "Outside the share of units that follow the policy, so the rules decided.",
    Reason.CONTROL_GROUP: "In the comparison group of an experiment, so the rules decided.",
    Reason.FORECAST_UNAVAILABLE: "There was no forecast to go by, so the rules decided.",
    Reason.OPTIMIZER_UNAVAILABLE: "The policy gave no answer, so the rules decided.",
    Reason.BUDGET_EXCEEDED: "No answer came within the time that the host allows, so the safe way was taken.",
    Reason.DISABLED: "The policy is switched off, so the rules decided.",
    Reason.INVALID_STATE: "The host's numbers made no sense (negative, not a number), so the safe way was taken.",
    Reason.INTERNAL_ERROR: "Something inside the plugin failed, so the safe way was taken.",
}


def number(value: float, digits: int = 3) -> str:
    """`value` as a person writes it: `1,234`, `12.5`, `0.083`; whole above 1000, else so many significant digits."""
    if value != value:
        return "unknown"
    if value in (float("inf"), float("-inf")):
        return "unlimited" if value > 0 else "minus unlimited"
    if float(value).is_integer() or abs(round(value)) >= 10**digits:
        return f"{round(value):,}"  # through an int, so that -0.0 is 0
    return f"{float(f'{value:.{digits}g}'):.12f}".rstrip("0").rstrip(".")


def percent(share: float, digits: int = 0) -> str:
    """A share in [0, 1] as `83 %`. Never `100 %` for less than everything, nor `0 %` for more than nothing."""
    text = f"{100 * share:.{digits}f}"
    while digits < 3 and ((share < 1 and float(text) >= 100) or (share > 0 and float(text) <= 0)):
        digits += 1
        text = f"{100 * share:.{digits}f}"
    return f"{text} %"


def count(value: float, one: str, many: str | None = None) -> str:
    """`1 ticket`, `2 tickets`, `0 tickets`."""
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


def quantity(value: float | None, unit: str) -> str:
    """`value` with its unit, or `unknown`."""
    return "unknown" if value is None else f"{number(value)} {unit}"


def duration(seconds: float) -> str:
    """`250 microseconds`, `3.2 milliseconds`, `45 seconds`, `2.5 minutes`, `3 hours`, `14 days`."""
    scales = (
        (1e-3, 1e6, "microsecond"),
        (1, 1e3, "millisecond"),
        (120, 1, "second"),
        (7200, 1 / 60, "minute"),
        (172_800, 1 / 3600, "hour"),
    )
    for limit, factor, unit in scales:
        if abs(seconds) < limit:
            return count(float(f"{seconds * factor:.3g}"), unit) if seconds else "0 seconds"
    return count(float(f"{seconds / 86_400:.3g}"), "day")


def when(epoch: float, seconds: bool = True) -> str:
    """A Unix time as `Tue 24 December 2013, 17:05:00 UTC`."""
    moment = dt.datetime.fromtimestamp(epoch, dt.UTC)
    clock = "%H:%M:%S" if seconds else "%H:%M"
    return f"{moment:%a} {moment.day} {moment:%B %Y}, {moment.strftime(clock)} UTC"


def action(name: Action | str, parameters: Mapping[str, int | float | str], workers: float | None = None) -> str:
    """An action with its parameters: `add workers: from 10 to 14`."""
    text = ACTIONS.get(Action(name), str(name)) if name in list(Action) else f"do “{name}”"
    rest = dict(parameters)
    target = rest.pop("target_workers", None)
    parts = []
    if target is not None:
        shown = number(float(target)) if isinstance(target, int | float) else str(target)
        same = isinstance(target, int | float) and workers == target
        origin = "" if workers is None else f"from {number(workers)} "
        parts.append(f"stay at {shown}" if same else f"{origin}to {shown}")
    for key, value in rest.items():
        parts.append(f"{key.replace('_', ' ')} {number(value) if isinstance(value, int | float) else value}")
    return f"{text}: {', '.join(parts)}" if parts else text
