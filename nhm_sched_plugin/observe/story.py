"""One decision's story in plain words: what was seen, expected, advised, allowed, done, and what came of it.

This is what `nhm-sched explain DECISION_ID` prints. Every sentence is made from `facts`, and from nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.facts import facts
from nhm_sched_plugin.types import Arm, Decision, Outcome, Reason, Recommendation, RewardedOutcome, Source

__all__ = ["Chapter", "chapters", "facts", "tell", "why"]

Facts = Mapping[str, Any]


class Chapter(NamedTuple):
    """One step of the story."""

    title: str
    text: str


def tell(
    decision: Decision | Mapping[str, Any],
    outcome: RewardedOutcome | Outcome | Mapping[str, Any] | None = None,
    *,
    confidence_threshold: float = 0.7,
    volume_threshold: float | None = None,
    rule: Recommendation | None = None,
) -> list[str]:
    """The story of a decision, a line a step (`Forecast: ...`); for the arguments see `facts`."""
    known = facts(
        decision,
        outcome,
        confidence_threshold=confidence_threshold,
        volume_threshold=volume_threshold,
        rule=rule,
    )
    return [f"{chapter.title}: {chapter.text}" for chapter in chapters(known)]


def chapters(known: Facts) -> list[Chapter]:
    """The steps of the story in order, from the dict that `facts` gives; a step without known facts is left out."""
    told = [
        ("Asked", _asked(known)),
        ("State", _state(known["state"])),
        ("Forecast", _forecast(known["forecast"])),
        ("Volume gate", _volume_gate(known)),
        ("Advice", _advice(known)),
        ("Confidence gate", _confidence_gate(known["confidence_gate"])),
        ("Guards", _guards(known)),
        ("Rules", _rules(known)),
        ("Rollout", _rollout(known["rollout"])),
        ("Decision", _decision(known)),
        ("Outcome", _outcome(known)),
        ("Reward", _reward(known["outcome"])),
    ]
    return [Chapter(title, text) for title, text in told if text]


def why(known: Facts) -> str:
    """Why the applied action is what it is, with the numbers; every `Reason` has its own sentence."""
    reason = known["applied"]["reason"]
    explain = _WHY.get(reason)
    return explain(known) if explain else f"The reason is recorded as “{reason}”."


def _asked(known: Facts) -> str:
    ticket = known["ticket_id"]
    if ticket is None:
        subject = "the worker pool (a regular check, no single ticket)"
    else:
        traits = [text for text, name in (("type {}", "task_type"), ("risk {}", "risk_band")) if known[name]]
        values = [known[name] for name in ("task_type", "risk_band") if known[name]]
        about = ", ".join(trait.format(value) for trait, value in zip(traits, values, strict=True))
        subject = f"ticket {ticket}" + (f" ({about})" if about else "")
    text = f"on {words.when(known['decided_at'])} the host asked what to do for {subject}."
    if known["latency_us"]:
        text += f" The answer took {words.duration(known['latency_us'] / 1e6)}."
    return text


_STATE_WORDS: Final[tuple[tuple[str, Callable[[float], str]], ...]] = (
    ("queue_depth", lambda value: f"{words.count(value, 'ticket')} waiting"),
    ("active_workers", lambda value: f"{words.count(value, 'worker')} active"),
    ("avg_task_duration_ms", lambda value: f"a ticket takes {words.duration(value / 1000)} on average"),
    ("sla_compliance_rate", lambda value: f"{words.percent(value)} of recent tickets met their SLA"),
    ("resource_cpu_avg", lambda value: f"CPU {words.percent(value)} busy"),
    ("resource_memory_avg", lambda value: f"memory {words.percent(value)} used"),
)


def _state(state: Facts) -> str:
    parts = [say(state[name]) for name, say in _STATE_WORDS if name in state]
    parts += _features(state.get("features", {}))
    return "; ".join(parts) + "." if parts else "the host told nothing about its queue and its workers."


_ARRIVALS: Final = re.compile(r"arrivals_(?:(\d+)s|last_hour)")
_HOUR_S: Final = 3600


def _features(features: Mapping[str, float]) -> list[str]:
    """What the plugin counted itself, in words; what others added, by name."""
    came, parts = {}, []
    for name, value in features.items():
        if window := _ARRIVALS.fullmatch(name):
            came[int(window[1] or _HOUR_S)] = value
        elif name == "starting_workers":
            parts += [f"{words.count(value, 'worker')} starting"] if value else []
        elif name == "crowd_ahead":
            parts += [f"about now {words.number(value)} more than usual came on days before"] if value else []
        else:
            parts.append(f"{name} {words.number(value)}")
    if came:
        windows = ", ".join(words.duration(seconds) for seconds in sorted(came))
        counts = ", ".join(words.number(came[seconds]) for seconds in sorted(came))
        parts.insert(0, f"tickets that came in the last {windows}: {counts}")
    return parts


def _forecast(forecast: Facts | None) -> str:
    if forecast is None:
        return "there was none."
    horizon = words.duration(forecast["horizon_minutes"] * 60)
    tickets = words.count(_tickets(forecast["predicted_volume"]), "ticket")
    text = f"{tickets} expected in the hour that ends {horizon} ahead"
    if forecast["low"] is not None and forecast["high"] is not None:
        low, high = (words.number(_tickets(forecast[end])) for end in ("low", "high"))
        text += f", most likely (8 in 10) between {low} and {high}"
    text += f"; sureness {forecast['confidence']:.2f} of 1"
    if forecast["method"]:
        text += f", by the {forecast['method'].replace('_', ' ')} model"
    text += "."
    if forecast["bottleneck_probability"] is not None:
        text += f" Chance that this is more than the pool can do: {words.percent(forecast['bottleneck_probability'])}."
    return text


def _tickets(value: float) -> float:
    """Whole tickets where tenths say nothing."""
    return float(round(value)) if abs(value) >= 10 else value


def _volume_gate(known: Facts) -> str:
    gate = known["volume_gate"]
    if gate is None:
        return ""
    if gate["threshold"] is None:
        return "open, because without the number of workers and their speed nobody can tell whether the load is light."
    limit = words.number(_tickets(gate["threshold"]))
    origin = (
        "as configured"
        if gate["configured"]
        else (f"80 % of the {words.number(_tickets(gate['capacity']))} that the pool can do in an hour")
    )
    volume = words.number(_tickets(gate["predicted_volume"]))
    if gate["predicted_volume"] > gate["threshold"]:
        return f"open, because {volume} tickets are more than {limit} ({origin})."
    if gate["opened"]:
        queue, workers = (known["state"][name] for name in ("queue_depth", "active_workers"))
        return (
            f"open: {volume} tickets are not more than {limit} ({origin}), but {words.number(queue)} tickets wait "
            f"for {words.count(workers, 'worker')}, and a backlog above one ticket a worker opens it too."
        )
    return f"closed, because {volume} tickets are not more than {limit} ({origin}) and no backlog waits."


def _advice(known: Facts) -> str:
    advice = known["recommendation"]
    if advice is None:
        return ""
    workers = known["state"].get("active_workers")
    told = words.action(advice["action"], advice["parameters"], workers)
    by = "the policy" if advice["source"] in ("", "policy") else f"“{advice['source']}”"
    text = f"{by} advised to {told}"
    text += f", because {_sentence(advice['justification'])}" if advice["justification"] else "."
    text += (
        f" Confidence {advice['confidence']:.2f}: the chance that this is at least as good as what the rules would do."
    )
    text += _improvement(advice)
    if advice["is_exploration"]:
        text += (
            f" It was a try-out of another safe action, to learn from it (chance of it: {advice['propensity']:.3g})."
        )
    return text


def _improvement(advice: Facts) -> str:
    """The policy's own confidence is not made from this figure, and the two may point to different sides."""
    gain = advice["expected_improvement"]
    if gain is None:
        return ""
    if advice["source"] not in ("", "policy"):
        return f" Expected gain in reward over time: {gain:+.3f}."
    if not gain:
        return " Rewards so far tell no difference to what the rules would do."
    return (
        f" Rewards so far were {abs(gain):.3f} {'higher' if gain > 0 else 'lower'} over time than for what the rules "
        "would do. They are of different moments; the confidence goes by trials in the simulator that start from the "
        "same one."
    )


def _sentence(text: str) -> str:
    """As the second half of a sentence: first letter small unless it is a name or a code, one full stop."""
    text = text.strip().rstrip(".")
    first = text.split(" ", 1)[0]
    lowered = text if first[1:].lower() != first[1:] or not first.isalpha() else text[0].lower() + text[1:]
    return f"{lowered}."


def _confidence_gate(gate: Facts | None) -> str:
    if gate is None:
        return ""
    relation = "reaches" if gate["passed"] else "is below"
    verdict = "passed" if gate["passed"] else "not passed"
    return f"{verdict}, because {gate['confidence']:.2f} {relation} the {gate['threshold']:.2f} that is asked for."


def _guards(known: Facts) -> str:
    if known["vetoes"]:
        return "objected. " + " ".join(f"{veto['guard']}: {veto['reason'].rstrip('.')}." for veto in known["vetoes"])
    gate = known["confidence_gate"]
    return "no objection." if gate and gate["passed"] and known["recommendation"] else ""


def _rules(known: Facts) -> str:
    applied, workers = known["applied"], known["state"].get("active_workers")
    if applied["source"] == Source.FALLBACK:
        told = words.action(applied["action"], applied["parameters"], workers)
        because = f", because {_sentence(applied['justification'])}" if applied["justification"] else "."
        return f"they say: {told}{because}"
    rule = known["rule"]
    if rule is None:
        return ""
    told = words.action(rule["action"], rule["parameters"], workers)
    because = f", because {_sentence(rule['justification'])}" if rule["justification"] else "."
    name = f" (rule “{rule['source']}”)" if rule["source"] else ""
    return f"without the policy they would have said{name}: {told}{because}"


def _rollout(rollout: Facts) -> str:
    share = f"the policy decides for {rollout['percentage']} % of the units"
    if rollout["arm"] == Arm.SHADOW:
        return f"shadow, because {share}; its advice is only written down."
    if rollout["arm"] == Arm.CONTROL:
        return f"control: {share}, and here the rules decide, for comparison."
    return f"treatment: {share}, and this is one of them."


def _decision(known: Facts) -> str:
    applied = known["applied"]
    told = words.action(applied["action"], applied["parameters"], known["state"].get("active_workers"))
    who = words.SOURCES[Source(applied["source"])] if applied["source"] in list(Source) else applied["source"]
    return f"{told}, as {who} said. {why(known)}"


def _why_light_load(known: Facts) -> str:
    gate = known["volume_gate"]
    if gate is None or gate["threshold"] is None:
        return "The load ahead was light, so the policy was not asked."
    volume, limit = (words.number(_tickets(gate[name])) for name in ("predicted_volume", "threshold"))
    return (
        f"The load ahead was light ({volume} tickets expected, the policy is asked above {limit}), so it was not asked."
    )


def _why_unsure(known: Facts) -> str:
    gate = known["confidence_gate"]
    if gate is None:
        return "The advice was not sure enough to follow."
    return (
        f"The advice was not sure enough to follow: confidence {gate['confidence']:.2f}, "
        f"asked for is {gate['threshold']:.2f}."
    )


def _why_vetoed(known: Facts) -> str:
    guards = ", ".join(f"“{veto['guard']}”" for veto in known["vetoes"])
    return f"The advice was not followed because a guard objected{f' ({guards})' if guards else ''}."


def _why_applied(known: Facts) -> str:
    gate = known["confidence_gate"]
    sure = f"sure enough ({gate['confidence']:.2f} of 1)" if gate else "sure enough"
    return f"The advice was followed: {sure}, no guard objected, and the rollout includes it."


def _why_late(known: Facts) -> str:
    took = f" ({words.duration(known['latency_us'] / 1e6)} had passed)" if known["latency_us"] else ""
    return f"No answer came within the time that the host allows{took}, so the safe way was taken."


_WHY: Final[Mapping[str, Callable[[Facts], str]]] = {
    Reason.APPLIED: _why_applied,
    Reason.BELOW_VOLUME_THRESHOLD: _why_light_load,
    Reason.CONFIDENCE_BELOW_THRESHOLD: _why_unsure,
    Reason.VETOED: _why_vetoed,
    Reason.SHADOW: lambda known: (
        f"The rollout stands at {known['rollout']['percentage']} % (shadow mode), so the advice was written down "
        "and not followed."
    ),
    Reason.NOT_IN_ROLLOUT: lambda known: (
        f"The policy decides for {known['rollout']['percentage']} % of the units, and this one is not among them."
    ),
    Reason.CONTROL_GROUP: lambda known: (
        "An experiment is under way, and this unit was drawn into the group that the policy is compared with."
    ),
    Reason.FORECAST_UNAVAILABLE: lambda known: (
        "There was no forecast for this hour (no model trained yet, or its table has run out), "
        "so the policy was not asked."
    ),
    Reason.OPTIMIZER_UNAVAILABLE: lambda known: "The policy was asked and gave no answer.",
    Reason.BUDGET_EXCEEDED: _why_late,
    Reason.DISABLED: lambda known: "The policy is switched off (optimizer.enabled: false).",
    Reason.INVALID_STATE: lambda known: (
        "The host's numbers made no sense (negative, or not numbers), so they were not used for anything."
    ),
    Reason.INTERNAL_ERROR: lambda known: (
        "Something inside the plugin failed, so the safe way was taken; the log and nhm_sched_component_errors_total "
        "name the part."
    ),
}

_STATUS: Final[Mapping[str, str]] = {
    "success": "the ticket was done",
    "failed": "the ticket failed",
    "cancelled": "the ticket was cancelled",
    "tick": "the control interval passed",
}


def _outcome(known: Facts) -> str:
    outcome = known["outcome"]
    if outcome is None:
        return "nothing has been reported yet."
    text = _STATUS.get(outcome["status"], f"ended as “{outcome['status']}”")
    if outcome["actual_duration_ms"] is not None:
        text += f" in {words.duration(outcome['actual_duration_ms'] / 1000)}"
    if outcome["sla_met"] is not None:
        text += " and met its SLA" if outcome["sla_met"] else " and missed its SLA"
    text += "."
    if outcome["applied"] is False:
        error = f": {outcome['error'].rstrip('.')}" if outcome["error"] else ""
        text += f" The host did not carry the decision out{error}."
    elif outcome["applied"] is None:
        text += " The host never said whether it carried the decision out."
    changes = _changes(outcome["state_before"], outcome["state_after"])
    return f"{text} {changes}" if changes else text


def _changes(before: Facts | None, after: Facts | None) -> str:
    if before is None or after is None:
        return ""
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("sla_compliance_rate", "SLA met", words.percent),
        ("queue_depth", "waiting tickets", words.number),
        ("active_workers", "workers", words.number),
        ("resource_cpu_avg", "CPU busy", words.percent),
    )
    parts = [
        f"{label} {say(before[name])} → {say(after[name])}"
        if before[name] != after[name]
        else f"{label} still {say(after[name])}"
        for name, label, say in shown
        if name in before and name in after
    ]
    return "Before → after: " + ", ".join(parts) + "." if parts else ""


_COMPONENTS: Final[Mapping[str, str]] = {
    "sla": "SLA",
    "throughput": "throughput",
    "efficiency": "use of resources",
    "cost": "cost",
}


def _reward(outcome: Facts | None) -> str:
    if outcome is None:
        return ""
    if outcome["reward"] is None:
        return "none, because the state before or after is not known."
    value = outcome["reward"]
    verdict = "better than before" if value > 0.005 else "worse than before" if value < -0.005 else "no change"
    text = f"{value:+.3f} on a scale from -1 to +1 ({verdict})"
    components = outcome["components"] or []
    explained = sum(part["contribution"] for part in components)
    if components and abs(explained - value) < 0.0005:
        text += ": " + ", ".join(f"{_COMPONENTS[part['name']]} {part['contribution']:+.3f}" for part in components)
    elif components:
        text += f", from a reward hook (the built-in formula gives {explained:+.3f})"
    return text + "."
