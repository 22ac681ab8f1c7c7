"""Conditions that are plain arithmetic, in Python: CEL's evaluator takes ten times as long for the same few operations.

What is translated means the same in both: comparisons and arithmetic of doubles and texts, `&&`, `||`, `!`, `? :`,
`known.NAME`, `math.greatest`, `math.least` and `math.sqrt`. Whole numbers (CEL's overflow), `features` and whatever
else there is stay CEL's. So do the odd cases of what is translated: a variable that is not known and a division by
zero raise here, and CEL is asked what they come to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from nhm_sched_plugin.decision.rulebook_variables import VARIABLES

__all__ = ["First", "plain"]

First = Callable[[dict[str, Any]], tuple[int, Sequence[Any]]]
"""From the values to the index of the rule that fires (-1: none) and its computed parameters. May raise anything."""

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<number>\d+\.\d+(?:[eE][-+]?\d+)?)(?!\w)
      | (?P<text>"[^"\\\r\n]*"(?!")|'[^'\\\r\n]*'(?!'))
      | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?!["'])
      | (?P<sign>\|\||&&|[<>=!]=|[-+*/<>!?:(),])
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_LEVELS: Final[tuple[dict[str, str], ...]] = (
    {"||": "or"},
    {"&&": "and"},
    {sign: sign for sign in ("==", "!=", "<", "<=", ">", ">=")},
    {sign: sign for sign in "+-"},
    {sign: sign for sign in "*/"},
)
"""The operators and Python's for them, the loosest first, all left-associative."""
_NAMES: Final = {
    **{one.name: f"v[{one.name!r}]" for one in VARIABLES if one.kind in ("double", "string")},
    **{f"known.{one.name}": f"({one.name!r} in v)" for one in VARIABLES if one.kind != "map"},
    "true": "True",
    "false": "False",
}
_FUNCTIONS: Final = {"math.greatest": "max", "math.least": "min", "math.sqrt": "sqrt"}


def plain(rules: Iterable[Sequence[str]]) -> First | None:
    """Python for the rules, each its condition and then its computed parameters, as far as they can be translated.

    The expressions are valid CEL. None: not even the first rule can be; where a later one cannot, reaching it raises.
    """
    lines = ["def first(v):"]
    for index, texts in enumerate(rules):
        try:
            when, *parameters = [_Expression(text).python for text in texts]
        except _Other:
            lines.append(" raise LookupError")
            if not index:
                return None
            break
        lines.append(f" if {when}: return {index}, ({''.join(f'{each},' for each in parameters)})")
    else:
        lines.append(" return -1, ()")
    names: dict[str, Any] = {"max": max, "min": min, "sqrt": math.sqrt}
    try:
        exec("\n".join(lines), names)  # noqa: S102 - of the words and numbers above, nothing else
    except (SyntaxError, RecursionError, MemoryError):  # nested too deep
        return None
    found: First = names["first"]
    return found


class _Other(Exception):  # noqa: N818 - not a failure
    """The expression holds something that is not translated."""


class _Expression:
    """A CEL expression as `python`; every operation in parentheses. Raises `_Other`."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        place, kind = 0, ""
        while kind != "end":
            found = _TOKEN.match(text, place)
            if found is None:
                raise _Other
            kind, place = str(found.lastgroup), found.end()
            self._tokens.append((kind, found[kind]))
        self._tokens.reverse()
        self.python = self._choice()
        if self._tokens != [("end", "")]:
            raise _Other

    def _taken(self, *signs: str) -> str | None:
        kind, token = self._tokens[-1]
        if kind != "sign" or token not in signs:
            return None
        self._tokens.pop()
        return token

    def _wanted(self, sign: str) -> None:
        if self._taken(sign) is None:
            raise _Other

    def _choice(self) -> str:
        condition = self._operation(0)
        if self._taken("?") is None:
            return condition
        yes = self._operation(0)
        self._wanted(":")
        return f"({yes} if {condition} else {self._choice()})"

    def _operation(self, level: int) -> str:
        if level == len(_LEVELS):
            return self._operand()
        signs = _LEVELS[level]
        left = self._operation(level + 1)
        while (sign := self._taken(*signs)) is not None:
            left = f"({left} {signs[sign]} {self._operation(level + 1)})"
        return left

    def _operand(self) -> str:
        sign = self._taken("!", "-", "(")
        if sign == "(":
            inner = self._choice()
            self._wanted(")")
            return inner
        if sign is not None:
            return f"({'not' if sign == '!' else '-'} {self._operand()})"
        kind, token = self._tokens.pop()
        if kind == "number":
            return repr(float(token))
        if kind == "text":
            return repr(token[1:-1])
        if kind == "name" and token in _NAMES:
            return _NAMES[token]
        if kind == "name" and token in _FUNCTIONS:
            return f"{_FUNCTIONS[token]}({self._arguments()})"
        raise _Other

    def _arguments(self) -> str:
        self._wanted("(")
        arguments = [self._choice()]
        while self._taken(",") is not None:
            arguments.append(self._choice())
        self._wanted(")")
        return ", ".join(arguments)
