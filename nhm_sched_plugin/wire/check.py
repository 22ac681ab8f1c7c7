"""What a caller may send. Everything else is the caller's mistake, answered with the name of the field.

The limits (`limits`) keep one caller from filling the agent's memory.
"""

from __future__ import annotations

from typing import Any, Final

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import Action, Arm
from nhm_sched_plugin.wire.limits import (
    LONGEST_HORIZON_MINUTES,
    MOST_ENTRIES,
    MOST_NAME,
    MOST_NUMBER,
    MOST_TEXT,
    STATE_LIMITS,
)

__all__ = [
    "InvalidFieldError",
    "check_forecast_request",
    "check_outcome_request",
    "check_snapshot_request",
    "check_state_request",
]

_STATE: Final = {field: (field.name, STATE_LIMITS.get(field.name)) for field in pb.StateRequest.DESCRIPTOR.fields}
"""Name of each field, and the most that a number may be."""
_ARMS: Final = ("", *Arm)
_ACTIONS: Final = frozenset(Action)


class InvalidFieldError(ValueError):
    """A field of a request cannot be used. `field` is its name, with the outer one before a dot."""

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"{field}: {problem}")


def check_forecast_request(request: Any) -> None:
    """Raises `InvalidFieldError`."""
    horizon = request.horizon_minutes
    if not 1 <= horizon <= LONGEST_HORIZON_MINUTES:
        raise InvalidFieldError("horizon_minutes", f"{horizon} is not in [1, {LONGEST_HORIZON_MINUTES}]")
    _name("task_type", request.task_type)
    _name("risk_band", request.risk_band)


def check_state_request(request: Any, outer: str = "") -> dict[str, Any]:
    """What is set of a `SchedulingState`, by field: read once. Raises `InvalidFieldError`.

    `outer`: the field that holds this state, with a dot.
    """
    given: dict[str, Any] = {}
    for field, value in request.ListFields():  # those that are set, in one call
        name, most = _STATE[field]
        if most is not None:
            if not 0.0 <= value <= most:  # NaN is in no range
                raise InvalidFieldError(f"{outer}{name}", f"{value} is not in [0, {most:g}]")
            given[name] = value
        elif type(value) is str:
            if len(value) > MOST_NAME:
                _name(f"{outer}{name}", value)
        else:
            given[name] = _features(f"{outer}{name}", value)
    return given


def _features(field: str, entries: Any) -> dict[str, float]:
    _entries(field, entries)
    features = dict(entries)
    for name, value in features.items():
        if not -MOST_NUMBER <= value <= MOST_NUMBER:  # NaN is in no range
            expected = f"expected a number in [-{MOST_NUMBER:g}, {MOST_NUMBER:g}]"
            raise InvalidFieldError(field, f"{name!r} is {value}; {expected}")
    return features


def check_outcome_request(request: Any) -> None:
    """Raises `InvalidFieldError`."""
    if not request.HasField("state"):
        raise InvalidFieldError("state", "is missing; send the state in which the action was taken")
    check_state_request(request.state, "state.")
    if request.action not in _ACTIONS:
        raise InvalidFieldError("action", f"{request.action[:MOST_NAME]!r} is unknown; expected one of {_listed()}")
    if not -1.0 <= request.reward <= 1.0:  # NaN is in no range
        raise InvalidFieldError("reward", f"{request.reward} is not in [-1, 1]")
    if request.HasField("next_state"):
        check_state_request(request.next_state, "next_state.")
    _name("decision_id", request.decision_id)
    if len(request.rejection_reason) > MOST_TEXT:
        raise InvalidFieldError("rejection_reason", f"is longer than {MOST_TEXT} characters")
    if request.arm not in _ARMS:
        raise InvalidFieldError("arm", f"{request.arm[:MOST_NAME]!r} is unknown; expected shadow, control or treatment")
    parameters = request.parameters
    if parameters:
        _entries("parameters", parameters)
        for value in parameters.values():
            _name("parameters", value)


def check_snapshot_request(request: Any) -> None:
    """Raises `InvalidFieldError`."""
    _name("etag", request.etag)


def _name(field: str, value: str) -> None:
    if len(value) > MOST_NAME:
        raise InvalidFieldError(field, f"is longer than {MOST_NAME} characters")


def _entries(field: str, entries: Any) -> None:
    if len(entries) > MOST_ENTRIES:
        raise InvalidFieldError(field, f"has {len(entries)} entries; at most {MOST_ENTRIES} are taken")
    for name in entries:
        _name(field, name)


def _listed() -> str:
    return ", ".join(Action)
