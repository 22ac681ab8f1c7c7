"""The agent's answers as dictionaries: every field by its name in the proto file, quantiles and parameters mapped."""

from __future__ import annotations

from typing import Any

from nhm_sched_plugin.wire.convert import parameters_of, rounded

__all__ = ["plain"]


def plain(answer: Any) -> dict[str, Any]:
    """The message's fields. An `optional` one that is not set is None; single precision is rounded to six digits."""
    return {field.name: _value(answer, field) for field in answer.DESCRIPTOR.fields}


def _value(message: Any, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.name == "quantiles":
        return {one.level: one.value for one in value}
    if field.name == "parameters":
        return parameters_of(value)
    if field.name == "hours":
        return [plain(hour) for hour in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return rounded(value) if field.type == field.TYPE_FLOAT else value
