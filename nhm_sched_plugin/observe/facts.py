"""One decision as plain facts: the same for its story in words and for `explain --json`.

`facts` takes what there is: a `Decision` of the running host, or the mapping that the records database gives back,
nested or with JSON text in its columns.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nhm_sched_plugin.decision import gate
from nhm_sched_plugin.decision.reward import WEIGHTS, components
from nhm_sched_plugin.types import (
    STATE_FIELDS,
    Decision,
    Forecast,
    Outcome,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
)

__all__ = ["as_decision", "as_outcome", "facts"]

_NESTED: Final = ("parameters", "recommendation", "forecast", "state", "vetoes")
_OUTCOME_NESTED: Final = ("state_before", "state_after")


def facts(
    decision: Decision | Mapping[str, Any],
    outcome: RewardedOutcome | Outcome | Mapping[str, Any] | None = None,
    *,
    confidence_threshold: float = 0.7,
    volume_threshold: float | None = None,
    rule: Recommendation | None = None,
) -> dict[str, Any]:
    """Everything known about one decision, as JSON-ready values; what is not known is None or left out.

    `outcome` may also be inside the mapping: its fields under `outcome`, the reward and what the host reported there or
    beside it, as `Store.decision` gives them. `volume_threshold` is the configured one; None means
    80 % of the pool's capacity. `rule` is what the rule book says here, where the caller has asked it: it is shown when
    the policy was followed, so that one can see what would have happened otherwise.

    Raises `ValueError` when the mapping is no decision (`msgspec.ValidationError`, naming the field).
    """
    if outcome is None and isinstance(decision, Mapping):
        outcome = _inside(decision)
    made, came = as_decision(decision), as_outcome(outcome)
    state = made.state or SchedulingState()
    return {
        "decision_id": made.decision_id,
        "ticket_id": made.ticket_id,
        "task_type": made.task_type,
        "risk_band": made.risk_band,
        "decided_at": made.decided_at,
        "decided_at_utc": dt.datetime.fromtimestamp(made.decided_at, dt.UTC).isoformat(),
        "latency_us": made.latency_us,
        "state": _state(state),
        "forecast": _forecast(made.forecast),
        "volume_gate": _volume_gate(made, state, volume_threshold),
        "recommendation": _recommendation(made.recommendation),
        "confidence_gate": _confidence_gate(made, confidence_threshold),
        "vetoes": [{"guard": veto.guard, "reason": veto.reason} for veto in made.vetoes],
        "rule": _recommendation(rule),
        "rollout": {"arm": str(made.arm), "percentage": made.rollout_percentage},
        "applied": {
            "action": str(made.action),
            "parameters": dict(made.parameters),
            "source": str(made.source),
            "reason": str(made.reason),
            "justification": made.justification,
            "is_exploration": made.is_exploration,
            "propensity": made.propensity,
            "policy_version": made.policy_version,
        },
        "outcome": _outcome(came, made),
    }


def as_decision(given: Decision | Mapping[str, Any]) -> Decision:
    """A `Decision` from a mapping with its field names; other keys are ignored, empty structured fields are None.

    Raises `msgspec.ValidationError` (a `ValueError`) that names the field which does not fit.
    """
    if isinstance(given, Decision):
        return given
    values = {name: _json(given[name]) if name in _NESTED else given[name] for name in _fields(Decision, given)}
    for name in ("recommendation", "forecast", "state"):
        if name in values and not values[name]:
            values[name] = None
    for name in ("parameters", "vetoes"):
        if name in values and not values[name]:
            del values[name]
    if "state" not in values and any(given.get(name) is not None for name in STATE_FIELDS):
        values["state"] = {name: given.get(name) for name in STATE_FIELDS}
    values["decided_at"] = _epoch(values.get("decided_at"))
    return msgspec.convert(values, Decision, strict=False, str_keys=True)


def as_outcome(given: RewardedOutcome | Outcome | Mapping[str, Any] | None) -> RewardedOutcome | None:
    """A `RewardedOutcome` from what came of a decision: nested as recorded, or flat with `reward` beside the rest."""
    if given is None or isinstance(given, RewardedOutcome):
        return given
    if isinstance(given, Outcome):
        return RewardedOutcome(outcome=given, reward=None)
    if not given:
        return None
    inner = _json(given.get("outcome"))
    plain: Mapping[str, Any] = inner if isinstance(inner, Mapping) else given
    values = {name: _json(plain[name]) if name in _OUTCOME_NESTED else plain[name] for name in _fields(Outcome, plain)}
    for name in _OUTCOME_NESTED:
        if name in values and not values[name]:
            values[name] = None
    if "finished_at" in values:
        values["finished_at"] = _epoch(values["finished_at"])
    around = {name: given[name] for name in _fields(RewardedOutcome, given) if name != "outcome"}
    around["executed_action"] = around.get("executed_action") or None  # a column without NULL holds empty text
    whole = {"reward": None, **around, "outcome": {"decision_id": "", **values}}
    return msgspec.convert(whole, RewardedOutcome, strict=False, str_keys=True)


def _inside(decision: Mapping[str, Any]) -> Mapping[str, Any] | None:
    came = _json(decision.get("outcome"))
    if not came:
        return None
    beside = {name: decision[name] for name in _fields(RewardedOutcome, decision) if name != "outcome"}
    whole: Mapping[str, Any] = {**beside, **came} if "outcome" in came else {**beside, **came, "outcome": came}
    return whole


def _fields(kind: type[msgspec.Struct], given: Mapping[str, Any]) -> list[str]:
    """The struct's fields that the mapping holds; a NULL of a column that cannot be None means the default."""
    known = msgspec.structs.fields(kind)
    return [f.name for f in known if f.name in given and (given[f.name] is not None or f.default is None)]


def _json(value: Any) -> Any:
    if isinstance(value, str | bytes):
        return msgspec.json.decode(value) if value else None
    return value


def _epoch(value: Any) -> float:
    """Unix seconds; a datetime without a zone is UTC, as everywhere in the records."""
    if isinstance(value, dt.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=dt.UTC)).timestamp()
    return float(value or 0.0)


def _state(state: SchedulingState) -> dict[str, Any]:
    values = {name: getattr(state, name) for name in STATE_FIELDS}
    known: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if state.features:
        known["features"] = dict(state.features)
    return known


def _forecast(forecast: Forecast | None) -> dict[str, Any] | None:
    if forecast is None:
        return None
    last = forecast.points[-1].quantiles if forecast.points else {}
    return {
        "horizon_minutes": forecast.horizon_minutes,
        "predicted_volume": forecast.predicted_volume,
        "low": last.get(0.1),
        "high": last.get(0.9),
        "confidence": forecast.confidence,
        "bottleneck_probability": forecast.bottleneck_probability,
        "resource_demand_cpu": forecast.resource_demand_cpu,
        "resource_demand_memory": forecast.resource_demand_memory,
        "method": forecast.method,
        "model_version": forecast.model_version,
    }


def _volume_gate(decision: Decision, state: SchedulingState, configured: float | None) -> dict[str, Any] | None:
    if decision.forecast is None:
        return None
    volume = decision.forecast.predicted_volume
    queue, workers = state.queue_depth, state.active_workers
    return {
        "threshold": gate.volume_threshold(state, configured),
        "configured": configured is not None,
        "capacity": gate.capacity(state),
        "predicted_volume": volume,
        "backlog": queue is not None and workers is not None and queue > workers,
        "opened": gate.opens(volume, state, configured),
    }


def _recommendation(advice: Recommendation | None) -> dict[str, Any] | None:
    if advice is None:
        return None
    plain: dict[str, Any] = msgspec.to_builtins(advice)
    return plain


def _confidence_gate(decision: Decision, threshold: float) -> dict[str, Any] | None:
    confidence = decision.confidence
    if confidence is None and decision.recommendation is not None:
        confidence = decision.recommendation.confidence
    if confidence is None:
        return None
    return {"confidence": confidence, "threshold": threshold, "passed": gate.confident(confidence, threshold)}


def _outcome(came: RewardedOutcome | None, decision: Decision) -> dict[str, Any] | None:
    if came is None:
        return None
    outcome = came.outcome
    before, after = outcome.state_before or decision.state, outcome.state_after
    parts = components(before, after) if before is not None and after is not None else None
    return {
        "status": outcome.status,
        "finished_at": outcome.finished_at,
        "actual_duration_ms": outcome.actual_duration_ms,
        "sla_met": outcome.sla_met,
        "executed_action": came.executed_action and str(came.executed_action),
        "applied": came.applied,
        "error": came.error,
        "state_before": None if before is None else _state(before),
        "state_after": None if after is None else _state(after),
        "reward": came.reward,
        "components": parts
        and [
            {"name": name, "weight": WEIGHTS[name], "delta": delta, "contribution": WEIGHTS[name] * delta}
            for name, delta in parts.items()
        ],
    }
