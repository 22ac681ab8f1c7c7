"""What is wrong with a configuration, in words that name the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

__all__ = ["explain"]

_CREDENTIALS: Final = re.compile(r"://[^/@\s]*@")


def explain(problem: Any, spelling: Mapping[str, str], root: type[BaseModel]) -> str:
    """One mistake in plain words: the key as it was written, its value unless that is a secret, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(spelling.get(part, part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(root, location)}"
    value = problem.get("input")
    whole_tree = key in ("", "ml", "ml.clickhouse", "ml.caching") and not isinstance(value, str | int | float)
    secret = whole_tree or any(word in key for word in ("password", "dsn", "redisUrl", "redis_url"))
    shown = "(hidden)" if secret else _CREDENTIALS.sub("://(hidden)@", repr(value))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error" and isinstance(value, BaseModel | Mapping):
        return f"{key or 'settings'}: {message}"  # how keys go together; the message names them
    return f"{key or 'settings'} = {shown}: {message}{_allowed(root, location)}"


def _field_at(root: type[BaseModel], location: list[str]) -> tuple[type[BaseModel] | None, Any]:
    model: type[BaseModel] | None = root
    field: Any = None
    for part in location:
        if model is None or part not in model.model_fields:
            return model, None
        field = model.model_fields[part]
        annotation = field.annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return model, field


def _nearest(root: type[BaseModel], location: list[str]) -> str:
    model, _ = _field_at(root, location[:-1]) if location[:-1] else (root, None)
    if model is None:
        return ""
    names = list(model.model_fields)
    close = difflib.get_close_matches(location[-1], names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(names)}"


def _allowed(root: type[BaseModel], location: list[str]) -> str:
    """The allowed range, both ends, where a field has one (pydantic names only the end that was crossed)."""
    _, field = _field_at(root, location)
    if field is None:
        return ""
    bounds = {type(item).__name__.lower(): item for item in field.metadata}
    low = next(
        (f"{sign}{getattr(bounds[name], name)}" for name, sign in (("ge", "["), ("gt", "(")) if name in bounds), ""
    )
    high = next(
        (f"{getattr(bounds[name], name)}{sign}" for name, sign in (("le", "]"), ("lt", ")")) if name in bounds), ""
    )
    if not (low or high):
        return ""
    return f" (allowed: {low or '(-inf'}, {high or 'inf)'}; default {field.default!r})"
