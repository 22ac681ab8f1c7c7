"""Compiling CEL with complaints that a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, Final

from cel_expr_python import cel
from cel_expr_python.ext import ext_math

from nhm_sched_plugin.decision.rulebook_source import BookSource
from nhm_sched_plugin.decision.rulebook_variables import VARIABLES
from nhm_sched_plugin.errors import RuleBookError

__all__ = ["Compiler"]

_PLACE: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")
_KINDS: Final = {"double": cel.Type.DOUBLE, "int": cel.Type.INT, "string": cel.Type.STRING}
_NUMBERS: Final = ("DOUBLE", "INT", "UINT")


class Compiler:
    """Compiles the expressions of one book; `env` declares the variables, `known.NAME` for each, and `math.*`."""

    def __init__(self, source: BookSource) -> None:
        self._source = source
        declared: dict[str, Any] = {}
        for variable in VARIABLES:
            if variable.kind == "map":
                declared[variable.name] = cel.Type.Map(cel.Type.STRING, cel.Type.DOUBLE)
            else:
                declared[variable.name] = _KINDS[variable.kind]
                # A variable whose name has a dot: the cheapest form there is, one boolean and no map to build.
                declared[f"known.{variable.name}"] = cel.Type.BOOL
        self.env = cel.NewEnv(variables=declared, extensions=[ext_math.ExtMath()])

    def condition(self, text: str, at: Sequence[str | int]) -> Any:
        """A compiled `when`. Raises `RuleBookError` unless it is valid CEL that gives true or false."""
        expression = self._compile("when", text, at)
        kind = expression.return_type().name()
        if kind != "BOOL":
            message = (
                f"when: {_quoted(text)} gives a {kind.lower()}; a condition gives true or false, as `x > 3.0` does"
            )
            raise self._source.error(message, at)
        return expression

    def parameter(self, text: str, at: Sequence[str | int], *, numeric: bool) -> Any:
        """A compiled parameter. Raises `RuleBookError` unless it gives a number (or, where allowed, a text)."""
        name = f"parameters.{at[-2]}"
        expression = self._compile(name, text, at)
        kind = expression.return_type().name()
        if kind not in (_NUMBERS if numeric else (*_NUMBERS, "STRING")):
            wanted = "a number" if numeric else "a number or a text"
            raise self._source.error(f"{name}: {_quoted(text)} gives a {kind.lower()}; expected {wanted}", at)
        return expression

    def _compile(self, what: str, text: str, at: Sequence[str | int]) -> Any:
        try:
            return self.env.compile(text)
        except RuntimeError as error:
            raise self._explained(what, text, at, str(error)) from None

    def _explained(self, what: str, text: str, at: Sequence[str | int], error: str) -> RuleBookError:
        found = _PLACE.search(error)
        if found is None:
            hint = "; split it into several rules" if "recursion limit" in error else ""
            return self._source.error(f"{what}: {_quoted(text)}: {_short(error)}{hint}", at)
        line, column, problem = int(found[1]), int(found[2]), _short(found[3].removesuffix(" [INVALID_ARGUMENT]"))
        problem = problem.replace(" (in container '')", "")
        fix = _fix(problem, text)
        message = f"{what}: {problem} at column {column} of {_quoted(text)}{fix}"
        return self._source.error(message, at, line)


def _fix(problem: str, text: str) -> str:
    undeclared = re.match(r"undeclared reference to '([^']*)'", problem)
    if undeclared:
        return _known_names(undeclared[1], text)
    if "no matching overload" in problem:
        if "(double, int)" in problem or "(int, double)" in problem:
            return (
                "; CEL does not mix kinds of numbers: with a double such as queue_depth write 3.0 instead of 3,"
                " with hour and weekday write 3"
            )
        if "applied to '(int" in problem and "math." in problem:
            return "; math functions take doubles: write 3.0 instead of 3"
        return "; compare and combine values of the same type"
    for pattern, advice in (
        (r"\band\b", "write && for `and`"),
        (r"\bor\b", "write || for `or`"),
        (r"\bnot\b", "write ! for `not`"),
        (r"(?<![=!<>])=(?!=)", "compare with =="),
        (r"\b(True|False)\b", "write true and false in small letters"),
    ):
        if "Syntax error" in problem and re.search(pattern, text):
            return f"; {advice}"
    return "; see docs/rule-books.md for the language"


def _known_names(name: str, text: str) -> str:
    names = [variable.name for variable in VARIABLES]
    if name == "known" or name.startswith("known."):
        rest = name.removeprefix("known.")
        if rest == "features" or "known.features" in text:
            return "; for a feature write has(features.NAME)"
        close = difflib.get_close_matches(rest, names, n=1)
        return f"; write for instance known.{close[0] if close else 'queue_depth'}"
    if name in ("True", "False"):
        return "; write true and false in small letters"
    first = name.split(".")[0]
    if first == "math":
        return "; of math there are greatest, least, ceil, floor, round, trunc, abs, sign and sqrt, all on doubles"
    close = difflib.get_close_matches(first, names, n=1)
    if close and close[0] != first:
        return f"; did you mean {close[0]!r}?"
    return f"; the variables are {', '.join(names)}"


def _quoted(text: str) -> str:
    return "`" + _short(" ".join(text.split()), 80) + "`"


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
