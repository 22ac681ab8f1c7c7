"""A rule book's file, read so that every complaint about it can name the line and the rule."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nhm_sched_plugin.decision.rulebook_model import BookModel, OtherwiseModel, RuleModel
from nhm_sched_plugin.errors import RuleBookError
from nhm_sched_plugin.types import Action

__all__ = ["BookSource"]

Path_ = Sequence[str | int]
MAX_BYTES = 1_000_000


class BookSource:
    """The checked model of a file plus the YAML nodes it came from.

    Raises `RuleBookError` when the file cannot be read, is no YAML, or does not have the form of a rule book.
    """

    def __init__(self, path: Path) -> None:
        self.file = str(path)
        text = self._read(path)
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise self._yaml_error(error) from None
        except (RecursionError, ValueError) as error:  # nested too deeply; an impossible date such as 2026-02-31
            raise RuleBookError(f"is not usable YAML: {error}", file=self.file) from None
        if not isinstance(raw, dict):
            found = "is empty" if raw is None else f"holds a {type(raw).__name__}"
            raise RuleBookError(f"{found}; a rule book is a mapping with version, name and rules", file=self.file)
        self._raw: dict[Any, Any] = raw
        self._refuse_double_keys()
        self.model = self._validated()
        self._refuse_double_names()

    def error(self, message: str, at: Path_, line_in_text: int = 1) -> RuleBookError:
        """An error at a place in the book, such as `("rules", 2, "when")`; `line_in_text` counts in a block text."""
        return RuleBookError(message, file=self.file, line=self._line(at, line_in_text), rule=self._rule(at))

    def _read(self, path: Path) -> str:
        try:
            if path.stat().st_size > MAX_BYTES:
                raise RuleBookError(f"is larger than {MAX_BYTES} bytes; that is no rule book", file=self.file)
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RuleBookError(f"cannot be read ({error.strerror or error})", file=self.file) from None
        except UnicodeDecodeError as error:
            raise RuleBookError(f"is not UTF-8 text ({error.reason} at byte {error.start})", file=self.file) from None

    def _yaml_error(self, error: yaml.YAMLError) -> RuleBookError:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        message = f"is not valid YAML: {problem}"
        if "mapping values are not allowed" in message:
            message += "; put a text that holds ': ' in quotes"
        if "cannot start any token" in message:
            message += "; indent with spaces and put texts that start with @, ` or % in quotes"
        return RuleBookError(message, file=self.file, line=mark.line + 1 if mark else None)

    def _validated(self) -> BookModel:
        try:
            return BookModel.model_validate(self._raw)
        except ValidationError as error:
            problems = sorted(error.errors(), key=lambda problem: self._line(_yaml_path(problem["loc"])) or 0)
            first = problems[0]
            places = {_yaml_path(problem["loc"]) for problem in problems}  # a union complains once for each member
            others = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
            raise self.error(_explain(first) + others, _yaml_path(first["loc"])) from None

    def _refuse_double_names(self) -> None:
        seen: dict[str, int] = {}
        for index, rule in enumerate(self.model.rules):
            if rule.name in seen:
                first = self._line(("rules", seen[rule.name], "name"))
                message = f"the name is taken by the rule at line {first}; give each rule a name of its own"
                raise self.error(message, ("rules", index, "name"))
            seen[rule.name] = index

    def _refuse_double_keys(self) -> None:
        for mapping, place in _mappings(self._root, (), set()):
            seen = set()
            for key, _ in mapping.value:
                if key.value in seen:
                    message = f"{key.value}: given twice in the same mapping; keep one"
                    raise RuleBookError(
                        message, file=self.file, line=key.start_mark.line + 1, rule=self._rule((*place, key.value))
                    )
                seen.add(key.value)

    def _line(self, at: Path_, line_in_text: int = 1) -> int | None:
        """The line of the value at this place; of the key for a mapping entry that is wrong as a whole."""
        node = self._root
        line: int | None = node.start_mark.line + 1 if node else None
        for part in at:
            found = _child(node, part)
            if found is None:
                break
            node = found
            line = node.start_mark.line + 1
        if line is not None and isinstance(node, yaml.ScalarNode):
            if node.style == "|":  # the text begins below the bar, and its lines are the file's lines
                return line + line_in_text
            if node.style == ">":  # folded: one long line, which begins below
                return line + 1
        return line

    def _rule(self, at: Path_) -> str | None:
        if len(at) < 2 or at[0] != "rules" or not isinstance(at[1], int):
            return None
        try:
            name = self._raw["rules"][at[1]]["name"]
        except (KeyError, IndexError, TypeError):
            return f"number {at[1] + 1}"
        return name if isinstance(name, str) else f"number {at[1] + 1}"


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part]
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    return None


def _mappings(node: Any, place: tuple[str | int, ...], seen: set[int]) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    if id(node) in seen:  # an alias: already looked at, and possibly its own parent
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node, place
        for key, value in node.value:
            yield from _mappings(value, (*place, str(key.value)), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _mappings(value, (*place, index), seen)


def _yaml_path(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """pydantic's place without what is not in the file: the members of a union, `[key]` of a wrong key."""
    if "parameters" not in location:
        return tuple(location)
    upto = location.index("parameters") + 2
    tail = ("cel",) if location[-1] == "cel" else ()
    return (*location[:upto], *tail)


def _explain(problem: Any) -> str:
    """One wrong thing in plain words, with the fix."""
    location = _yaml_path(problem["loc"])
    in_rule = len(location) > 1 and location[0] == "rules"
    key = ".".join(str(part) for part in (location[2:] if in_rule else location)) or "the rule"
    value, kind = problem.get("input"), problem["type"]
    if "parameters" in location:
        allowed = "a number or a text" if location[0] == "otherwise" else "a number, a text or {cel: 'expression'}"
        return f"{key} = {_shown(value)}: give {allowed}, under a name of letters, digits and underscores"
    if kind == "extra_forbidden":
        return f"{key}: unknown key; {_known_keys(location)}"
    if kind == "missing":
        return f"{key}: missing; {_known_keys(location)}"
    if kind == "enum":
        close = difflib.get_close_matches(str(value).upper(), list(Action), n=1, cutoff=0.4)
        meant = f"did you mean {close[0]}? " if close else ""
        return f"{key} = {_shown(value)}: unknown action; {meant}the actions are {', '.join(Action)}"
    if kind == "literal_error":
        return f"{key} = {_shown(value)}: this package reads version 1; write `version: 1`"
    if kind == "string_pattern_mismatch":
        return f"{key} = {_shown(value)}: use letters, digits, '-', '_' and '.' without spaces, as in queue-too-long"
    if kind == "string_type":
        return f"{key} = {_shown(value)}: expected a text; put it in quotes"
    if kind == "too_short" and key == "rules":
        return "rules: empty; a book needs at least one rule"
    return f"{key} = {_shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _known_keys(location: Sequence[str | int]) -> str:
    model: type[BookModel | RuleModel | OtherwiseModel] = BookModel
    place = "a rule book"
    if len(location) > 2 and location[0] == "rules":
        model, place = RuleModel, "a rule"
    elif len(location) > 1 and location[0] == "otherwise":
        model, place = OtherwiseModel, "otherwise"
    names = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    if close and close[0] != location[-1]:
        return f"did you mean {close[0]!r}?"
    return f"the keys of {place} are {', '.join(names)}"


def _shown(value: Any) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
