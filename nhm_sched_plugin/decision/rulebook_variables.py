"""What a rule may speak of: the variables, how they are filled from a state, and `{placeholders}` in sentences."""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.decision.gate import MS_PER_HOUR, capacity
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.types import STATE_FIELDS, Forecast, SchedulingState, Ticket

__all__ = ["VARIABLES", "Sentence", "Variable", "VariableReader", "words"]


class Variable(NamedTuple):
    name: str
    kind: str
    """CEL type: `double`, `int`, `string` or `map`."""
    meaning: str


VARIABLES: Final = (
    Variable("queue_depth", "double", "tickets waiting to start"),
    Variable("active_workers", "double", "workers able to take a ticket now"),
    Variable("avg_task_duration_ms", "double", "average duration of a ticket, milliseconds"),
    Variable("sla_compliance_rate", "double", "share of recent tickets that met their SLA, 0 to 1"),
    Variable("predicted_load_1h", "double", "tickets expected in the next hour"),
    Variable("predicted_load_6h", "double", "tickets expected in the sixth hour from now"),
    Variable("resource_cpu_avg", "double", "utilisation of the workers, 0 to 1"),
    Variable("resource_memory_avg", "double", "memory utilisation, 0 to 1"),
    Variable("predicted_volume", "double", "tickets in the hour at the forecast's horizon; else `predicted_load_1h`"),
    Variable("forecast_confidence", "double", "how much the forecast says, 0 to 1"),
    Variable("capacity", "double", "tickets per hour the pool can do: active_workers * 3600e3 / avg_task_duration_ms"),
    Variable("offered_load", "double", "workers that the predicted volume keeps busy (Little's law)"),
    Variable("backlog_ratio", "double", "queue_depth / active_workers; an empty pool counts as one worker"),
    Variable("task_type", "string", "of the ticket; not known on a control tick"),
    Variable("risk_band", "string", "of the ticket; not known on a control tick"),
    Variable("reason", "string", "why the policy is not followed, such as `confidence_below_threshold`"),
    Variable("hour", "int", "hour of the day, 0 to 23, UTC"),
    Variable("weekday", "int", "0 Monday to 6 Sunday, UTC"),
    Variable("features", "map", "numbers that `nhm_sched_collect_state` hooks added: `features.NAME`"),
)
_NAMES: Final = frozenset(variable.name for variable in VARIABLES)
_LARGEST: Final = sys.float_info.max
_DERIVED: Final = frozenset({"predicted_volume", "forecast_confidence", "capacity", "offered_load", "backlog_ratio"})
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KNOWN: Final = re.compile(r"\bknown\s*\.\s*([A-Za-z_][A-Za-z0-9_]*)")


def words(expression: str) -> frozenset[str]:
    """The variables that an expression may read (a superset: names inside its texts count as well)."""
    return _NAMES.intersection(_WORD.findall(expression))


class VariableReader:
    """Fills the variables that some expressions really use, and no others: on the hot path each one costs 0.7 us."""

    __slots__ = ("_asked", "_derived", "_fields", "_ticket", "uses_clock", "uses_features", "uses_reason")

    def __init__(self, expressions: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        texts = list(expressions)
        wanted = frozenset().union(*map(words, texts), names)
        self._fields = tuple(name for name in STATE_FIELDS if name in wanted)
        self._derived = wanted & _DERIVED
        self._ticket = not wanted.isdisjoint(("task_type", "risk_band"))
        self.uses_features = "features" in wanted
        self.uses_reason = "reason" in wanted
        self.uses_clock = not wanted.isdisjoint(("hour", "weekday"))
        self._asked = _NAMES.intersection(name for text in texts for name in _KNOWN.findall(text))

    def read(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None, reason: str, now: float
    ) -> dict[str, Any]:
        """Variable -> value; what is not known (or no finite number) is left out. `now` in Unix seconds."""
        values: dict[str, Any] = {}
        for name in self._fields:
            value = getattr(state, name)
            if type(value) is float and -_LARGEST <= value <= _LARGEST:  # `known`, without the call
                values[name] = value
            elif value is not None:
                _put_number(values, name, value)
        if self._derived:
            _derive(values, self._derived, state, forecast)
        if self._ticket and ticket is not None:
            _put_text(values, "task_type", ticket.task_type)
            _put_text(values, "risk_band", ticket.risk_band)
        if self.uses_clock and known(now) is not None:
            values["hour"] = int(now // 3600) % 24
            values["weekday"] = (int(now // 86400) + 3) % 7  # 1970-01-01 was a Thursday
        if self.uses_reason:
            _put_text(values, "reason", reason)
        if self.uses_features:
            values["features"] = _finite_features(state.features)
        return values

    def booleans(self, values: Mapping[str, Any]) -> dict[str, bool]:
        """`known.NAME` for each that the expressions ask of."""
        return {f"known.{name}": name in values for name in self._asked}


def _derive(values: dict[str, Any], wanted: frozenset[str], state: SchedulingState, forecast: Forecast | None) -> None:
    volume = None if forecast is None else known(forecast.predicted_volume)
    if volume is None:
        volume = known(state.predicted_load_1h)
    if volume is not None:
        if "predicted_volume" in wanted:
            values["predicted_volume"] = volume
        if "offered_load" in wanted:
            duration_ms = known(state.avg_task_duration_ms)
            if duration_ms is not None:
                _put_number(values, "offered_load", volume * duration_ms / MS_PER_HOUR)
    if "capacity" in wanted:
        most = capacity(state)
        if most is not None:
            values["capacity"] = most
    if "forecast_confidence" in wanted and forecast is not None:
        _put_number(values, "forecast_confidence", forecast.confidence)
    if "backlog_ratio" in wanted:
        queue, workers = known(state.queue_depth), known(state.active_workers)
        if queue is not None and workers is not None:
            _put_number(values, "backlog_ratio", queue / max(workers, 1.0))


def _put_number(values: dict[str, Any], name: str, number: Any) -> None:
    value = known(number)
    if value is not None:
        values[name] = value


def _put_text(values: dict[str, Any], name: str, text: Any) -> None:
    """Lone surrogates are no text: CEL strings are UTF-8."""
    if isinstance(text, str):
        values[name] = str(text) if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _finite_features(features: Any) -> dict[str, float]:
    if not isinstance(features, Mapping):
        return {}
    readable = ((name, known(value)) for name, value in features.items() if isinstance(name, str))
    return {name.encode("utf-8", "replace").decode("utf-8"): value for name, value in readable if value is not None}


class Sentence:
    """A `because` text with `{placeholders}`, taken apart once.

    Raises ValueError, with the fix, for a placeholder that is no known name or has an impossible format.
    """

    __slots__ = ("_parts", "_quick", "_text", "names")

    def __init__(self, text: str, known_names: Iterable[str]) -> None:
        allowed = set(known_names)
        parts: list[tuple[str, str | None, str]] = []
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{error}; write a brace that is meant as such twice: {{{{ or }}}}") from None
        for literal, name, form, conversion in pieces:
            if name is not None and conversion:
                raise ValueError(f"{{{name}!{conversion}}}: conversions are not supported; write {{{name}}}")
            if name is not None and name not in allowed:
                raise ValueError(f"{{{name}}} is no placeholder here; there are {', '.join(sorted(allowed))}")
            if name is not None:
                _check_format(name, form or "")
            parts.append((literal, name, form or ""))
        self._text, self._parts = text, tuple(parts)
        # Without a format of its own a float reads best in six digits; `str.format` would show them all.
        self._quick = all(form for _, name, form in parts if name is not None)
        self.names = frozenset(name for _, name, _ in parts if name)

    def render(self, values: Mapping[str, Any]) -> str:
        """The sentence with its values; what is not known reads "unknown"."""
        if self._quick:
            try:
                return self._text.format_map(values)
            except (KeyError, ValueError, TypeError):
                pass
        out = []
        for literal, name, form in self._parts:
            out.append(literal)
            if name is not None:
                out.append(_render(values.get(name), form))
        return "".join(out)


def _check_format(name: str, form: str) -> None:
    if "{" in form or any(int(digits) > 99 for digits in re.findall(r"\d+", form)):
        raise ValueError(f"{{{name}:{form}}}: keep the format simple, as in {{{name}:.1f}}")
    for sample in (1.5, 1, "text"):
        try:
            format(sample, form)
        except ValueError:
            continue
        return
    raise ValueError(f"{{{name}:{form}}}: {form!r} is no number format; write for instance {{{name}:.1f}}")


def _render(value: Any, form: str) -> str:
    if value is None:
        return "unknown"
    try:
        return format(value, form or ("" if isinstance(value, str | int) else ".6g"))
    except ValueError:  # a number's format on a text, or the reverse
        return str(value)
