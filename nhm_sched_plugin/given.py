"""What a host gives, as our own types: mappings become structs, numbers of other libraries plain ones.

What a host measures is often a NumPy scalar, a `datetime` or a number where a name is meant. Written down as it came it
could not be read back, and the record would end in quarantine; so it is made plain here, once, at the door.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final

import msgspec

from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.types import STATE_FIELDS, Outcome, SchedulingState, Ticket

__all__ = ["UNKNOWN_STATE", "as_outcome", "as_state", "as_ticket"]

UNKNOWN_STATE: Final = SchedulingState()
UNKNOWN_STATUS: Final = "unknown"
_LATEST: Final = dt.datetime(2200, 1, 1, tzinfo=dt.UTC).timestamp()
_TEXTS: Final = ("decision_id", "ticket_id", "status", "worker_id")
_STATES: Final = ("state_before", "state_after")


def as_ticket(ticket: Any) -> Ticket | None:
    """The ticket as our own type; names that are no text become text, so that it can be recorded."""
    if ticket is None:
        return None
    if not isinstance(ticket, Ticket):
        return msgspec.convert(ticket, Ticket, from_attributes=True, strict=False)
    if type(ticket.ticket_id) is str and _is_text(ticket.task_type) and _is_text(ticket.risk_band):
        return ticket
    return msgspec.structs.replace(
        ticket, ticket_id=str(ticket.ticket_id), task_type=_text(ticket.task_type), risk_band=_text(ticket.risk_band)
    )


def as_state(state: Any) -> Any:
    """The state as our own type; fields of a mapping that we do not know are left out. What is neither stays."""
    if isinstance(state, SchedulingState):
        return state
    if isinstance(state, Mapping):
        return SchedulingState(**{name: state[name] for name in (*STATE_FIELDS, "features") if name in state})
    return UNKNOWN_STATE if state is None else state


def as_outcome(given: Any, unusable: Callable[[str], Any]) -> Outcome:
    """The outcome with plain values. `unusable` is told of each field whose value is none of its kind: it is unknown.

    Raises `TypeError` for what is no outcome at all.
    """
    if isinstance(given, Mapping):
        given = Outcome(**{name: given[name] for name in Outcome.__struct_fields__ if name in given})
    if not isinstance(given, Outcome):
        raise TypeError(f"the host's outcome is a {type(given).__name__}; expected an Outcome")
    changed: dict[str, Any] = {}
    if given.status is None:
        unusable("status")
        changed["status"] = UNKNOWN_STATUS
    for name in _TEXTS:
        value = getattr(given, name)
        if not _is_text(value):
            changed[name] = str(value)
    for name, plain in _PLAIN:
        value = getattr(given, name)
        if value is None:
            continue
        better = plain(value)
        if better is None:
            unusable(name)
        if better is not value:
            changed[name] = better
    return msgspec.structs.replace(given, **changed) if changed else given


def _measure(value: Any) -> float | None:
    """Durations and resources: finite and not below 0."""
    number = value if type(value) is float else known(value)
    return number if number is not None and 0 <= number < inf else None


def _stamp(value: Any) -> float | None:
    """Unix seconds; a `datetime` without a zone is local time, as everywhere in Python."""
    if isinstance(value, dt.datetime):
        value = value.timestamp()
    number = _measure(value)
    return number if number is not None and number < _LATEST else None


def _yes(value: Any) -> bool | None:
    """True and False, also NumPy's, and 1 and 0."""
    if value is True or value is False:
        return value
    try:
        return bool(value) if value in (0, 1) else None
    except Exception:  # noqa: BLE001 - an array, say
        return None


def _state(value: Any) -> SchedulingState | None:
    """With plain numbers; those that are not finite are left out."""
    state = as_state(value)
    if not isinstance(state, SchedulingState):
        return None
    changed: dict[str, Any] = {}
    for name in STATE_FIELDS:
        number = getattr(state, name)
        if number is not None and (better := known(number)) is not number:
            changed[name] = better
    if state.features:
        numbers = state.features.items() if isinstance(state.features, Mapping) else ()
        features = {str(name): known(number) for name, number in numbers}
        plain = {name: number for name, number in features.items() if number is not None}
        if plain != state.features:
            changed["features"] = plain
    return msgspec.structs.replace(state, **changed) if changed else state


_PLAIN: Final[tuple[tuple[str, Callable[[Any], Any]], ...]] = (
    ("actual_duration_ms", _measure),
    ("sla_met", _yes),
    ("finished_at", _stamp),
    ("resource_cpu", _measure),
    ("resource_memory", _measure),
    *((name, _state) for name in _STATES),
)


def _is_text(value: Any) -> bool:
    return value is None or type(value) is str


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
