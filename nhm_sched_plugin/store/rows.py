"""Records as table rows. A value that does not fit its column raises `ValueError` that names it.

Each delivered record passes through here, so times are the column's own ticks and JSON stays bytes: the client would
turn datetimes and texts into just these. Rows are tuples of plain values, which the garbage collector soon leaves
alone; as lists, tens of thousands of them would cost more in its walks than in the making.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec

from nhm_sched_plugin.types import STATE_FIELDS, Decision, RewardedOutcome

__all__ = ["DECISION_COLUMNS", "OUTCOME_COLUMNS", "decision_row", "outcome_row"]

DECISION_COLUMNS: Final = (
    "decision_id",
    "decided_at",
    "ticket_id",
    "task_type",
    "risk_band",
    "action",
    "parameters",
    "source",
    "reason",
    "arm",
    "confidence",
    "recommended_action",
    "recommendation",
    "propensity",
    "policy_version",
    "is_exploration",
    "rollout_percentage",
    "justification",
    "vetoes",
    "forecast_volume",
    "forecast_confidence",
    "forecast",
    *STATE_FIELDS,
    "state",
    "record",
    "latency_us",
    "recorded_at",
    "version",
)

OUTCOME_COLUMNS: Final = (
    "decision_id",
    "ticket_id",
    "status",
    "finished_at",
    "actual_duration_ms",
    "sla_met",
    "reward",
    "executed_action",
    "applied",
    "error",
    "worker_id",
    "resource_cpu",
    "resource_memory",
    "state_before",
    "state_after",
    "recorded_at",
    "version",
)

_LATEST: Final = dt.datetime(2200, 1, 1, tzinfo=dt.UTC).timestamp()
_REWARDED: Final = 1 << 60
_MICROS: Final = 1_000_000
_MILLIS: Final = 1_000
_encode: Final = msgspec.json.Encoder().encode
_state_fields: Final = attrgetter(*STATE_FIELDS)
_NO_STATE: Final = (None,) * len(STATE_FIELDS)


def decision_row(decision: Decision, recorded_at: float) -> tuple[Any, ...]:
    """The decision in the order of `DECISION_COLUMNS`; `recorded_at` in Unix seconds is also its version."""
    _text("decision_id", decision.decision_id)
    recommendation, forecast, state = decision.recommendation, decision.forecast, decision.state
    vetoes = decision.vetoes
    if not 0 <= decision.rollout_percentage <= 100:
        raise ValueError(f"rollout_percentage = {decision.rollout_percentage}: not in [0, 100]")
    return (
        decision.decision_id,
        _ticks("decided_at", decision.decided_at, _MICROS),
        decision.ticket_id,
        decision.task_type,
        decision.risk_band,
        str(decision.action),
        _texts(decision.parameters),
        str(decision.source),
        str(decision.reason),
        str(decision.arm),
        decision.confidence,
        str(recommendation.action) if recommendation else None,
        _json(recommendation),
        decision.propensity,
        decision.policy_version,
        int(decision.is_exploration),
        decision.rollout_percentage,
        decision.justification,
        tuple([f"{veto.guard}: {veto.reason}" for veto in vetoes]) if vetoes else (),
        forecast.predicted_volume if forecast else None,
        forecast.confidence if forecast else None,
        _json(forecast),
        *(_state_fields(state) if state else _NO_STATE),
        _json(state),
        # All the rest with its types, so that a decision can be shown as it was made.
        _json(msgspec.structs.replace(decision, recommendation=None, forecast=None, state=None)),
        decision.latency_us,
        _ticks("recorded_at", recorded_at, _MILLIS),
        int(recorded_at * 1000),
    )


def outcome_row(record: RewardedOutcome, recorded_at: float) -> tuple[Any, ...]:
    """The outcome in the order of `OUTCOME_COLUMNS`.

    A later report of the same decision replaces an earlier one, but never one with a reward by one without.
    """
    outcome = record.outcome
    _text("decision_id", outcome.decision_id)
    return (
        outcome.decision_id,
        outcome.ticket_id,
        outcome.status,
        None if outcome.finished_at is None else _ticks("finished_at", outcome.finished_at, _MICROS),
        _measured(outcome.actual_duration_ms),
        None if outcome.sla_met is None else int(outcome.sla_met),
        record.reward,
        None if record.executed_action is None else str(record.executed_action),
        None if record.applied is None else int(record.applied),
        record.error,
        outcome.worker_id,
        _measured(outcome.resource_cpu),
        _measured(outcome.resource_memory),
        _json(outcome.state_before),
        _json(outcome.state_after),
        _ticks("recorded_at", recorded_at, _MILLIS),
        int(recorded_at * 1000) + (_REWARDED if record.reward is not None else 0),
    )


def _measured(value: float | None) -> float | None:
    """One NaN or infinity would be the mean of everything that it is in."""
    return value if value is not None and 0 <= value < math.inf else None


def _text(name: str, value: str) -> None:
    if not value:
        raise ValueError(f"{name} is empty")


def _ticks(name: str, stamp: float, a_second: int) -> int:
    if not 0 <= stamp < _LATEST:  # NaN is neither
        raise ValueError(f"{name} = {stamp}: no time between 1970 and 2200 (Unix seconds)")
    return round(stamp * a_second)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()} if values else {}


def _json(value: Any) -> bytes:
    return b"" if value is None else _encode(value)
