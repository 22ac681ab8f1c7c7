"""Rule books: what to do when the policy is not followed. YAML with CEL conditions; the first rule that fires decides.

All conditions of a book are compiled into one CEL expression, `c1 ? [0, p1...] : c2 ? 1 : ... : -1` (the index of the
rule that fires, with its computed parameters), so that a decision costs one evaluation. CEL answers with an error
value when it meets a variable that is not known; only then are the rules asked one by one, so that a rule on something
unknown is passed over and the next can still fire. Plain arithmetic is tried in Python first (`rulebook_plain`).

    python -m nhm_sched_plugin.decision.rulebook > fallback/rulebook.schema.json      writes the JSON schema
    python -m nhm_sched_plugin.decision.rulebook FILE                                 checks a book
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec
from cel_expr_python import cel

from nhm_sched_plugin.decision.cel_check import Compiler
from nhm_sched_plugin.decision.last_resort import LAST_RESORT
from nhm_sched_plugin.decision.rulebook_model import CelParameter, RuleModel, json_schema
from nhm_sched_plugin.decision.rulebook_plain import plain
from nhm_sched_plugin.decision.rulebook_source import BookSource
from nhm_sched_plugin.decision.rulebook_variables import VARIABLES, Sentence, VariableReader
from nhm_sched_plugin.errors import RuleBookError
from nhm_sched_plugin.recurring import Recurring
from nhm_sched_plugin.settings import bundled
from nhm_sched_plugin.types import Action, Forecast, Recommendation, SchedulingState, Ticket

__all__ = ["LAST_RESORT", "RuleBook", "resolve_rule_book"]

Parameter = int | float | str
OTHERWISE: Final = "otherwise"
_NOT_KNOWN: Final = ("UNKNOWN:", "NOT_FOUND:")
_MOST_ANSWERS: Final = 1024
"""Situations whose answer is remembered: tickets of many hosts come between two measurements of their pools."""
_MAX_WORKERS: Final = 2**53
"""Largest whole number that a double counts exactly; beyond it a target is nonsense."""


class _Memo(msgspec.Struct, frozen=True, gc=False):
    """The last question and its answer."""

    ticket: Ticket | None
    state: SchedulingState
    forecast: Forecast | None
    reason: str
    answer: Recommendation


class _Rule(NamedTuple):
    name: str
    action: Action
    when: Any
    constants: dict[str, Parameter]
    computed: tuple[tuple[str, Any], ...]
    sentence: Sentence
    texts: tuple[str, ...]
    """The condition and then the computed parameters, in CEL."""
    fixed: Recommendation | None = None
    """The whole answer of a rule in which nothing is computed or filled in."""

    def branch(self, index: int) -> str:
        """This rule's part of the expression that asks all rules."""
        # A line break after each text keeps a `// comment` at its end from swallowing what follows.
        when, *parameters = self.texts
        if not parameters:
            return f"({when}\n) ? dyn({index})"
        return f"({when}\n) ? dyn([" + ", ".join([f"dyn({index})", *(f"dyn({text}\n)" for text in parameters)]) + "])"


class _Chunk(NamedTuple):
    """Some rules in a row and the one expression that asks them all (None: too deep for CEL, ask one by one)."""

    expression: Any
    rules: tuple[_Rule, ...]


class RuleBook:
    """A loaded rule book. Immutable but for what it remembers and `failures`; safe to use from several threads.

    `failures` counts, by rule name, how often a rule could not be evaluated although it should have been: a division
    by zero, a parameter that is no usable number. A condition on something that is not known is no failure.
    """

    def __init__(self, source: BookSource) -> None:
        model = source.model
        self.file, self.name, self.description = source.file, model.name, model.description
        self.failures: Counter[str] = Counter()
        self._failures_lock = threading.Lock()
        self._failed_evaluations = 0
        compiler = Compiler(source)
        self._rules = tuple(_compiled(compiler, source, index, rule) for index, rule in enumerate(model.rules))
        self._env = compiler.env
        self._chunks = tuple(_chunks(compiler.env, self._rules))
        self._plain = plain(rule.texts for rule in self._rules)
        otherwise = model.otherwise
        sentence = _sentence(source, otherwise.because, set(otherwise.parameters), (OTHERWISE, "because"))
        try:
            constants = {name: _checked(name, value) for name, value in otherwise.parameters.items()}
        except ValueError as error:
            raise source.error(str(error), (OTHERWISE, "parameters", "target_workers")) from None
        self._otherwise = _fixed(_Rule(OTHERWISE, otherwise.action, None, constants, (), sentence, ()))
        shown = frozenset().union(*(rule.sentence.names for rule in (*self._rules, self._otherwise)))
        self._choices = (*self._rules, self._otherwise)
        self._reader = VariableReader((text for rule in self._rules for text in rule.texts), shown)
        self._memo: _Memo | None = None
        self._answers: Recurring[tuple[Any, ...], Recommendation] = Recurring(_MOST_ANSWERS)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RuleBook:
        """Read, check and compile a book. Raises `RuleBookError` with file, line, rule and the fix."""
        return cls(BookSource(Path(path)))

    @property
    def rule_names(self) -> tuple[str, ...]:
        return tuple(rule.name for rule in self._rules)

    @property
    def uses_features(self) -> bool:
        """Whether an answer may depend on the state's features."""
        return self._reader.uses_features

    def evaluate(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None, reason: str, now: float
    ) -> Recommendation:
        """The action of the first rule that fires, else of `otherwise`. Never raises; `now` in Unix seconds.

        `source` is the rule's name and `justification` its sentence. `confidence` is 1.0: it means "at least as good
        as what the fallback would do here", and this is the fallback. Asked again for the very same objects, the last
        answer comes back at once.
        """
        memo = self._memo
        try:
            if (
                memo is not None
                # By identity: the objects are immutable, the memo keeps them alive, and it is quick.
                and memo.state is state
                and memo.forecast is forecast
                and memo.ticket is ticket
                and (memo.reason == reason or not self._reader.uses_reason)
                and not self._reader.uses_clock
            ):
                return memo.answer
            values = self._reader.read(ticket, state, forecast, reason, now)
            answer = self._in_python(values) or self._remembered(values)
            # One assignment: never seen half done.
            self._memo = _Memo(ticket, state, forecast, reason, answer)
            return answer
        except Exception:  # noqa: BLE001 - whatever a state may hold, the host gets an answer
            self._failed("(book)")
            return LAST_RESORT

    def _in_python(self, values: dict[str, Any]) -> Recommendation | None:
        """The answer as far as it takes plain arithmetic only; made quicker than remembered."""
        if self._plain is None:
            return None
        try:
            fires, computed = self._plain(values)
            rule = self._choices[fires]
            return rule.fixed or _recommendation(rule, _parameters(rule, computed), values)
        except Exception:  # noqa: BLE001 - something is not known, or not plain: CEL says what it comes to
            return None

    def _remembered(self, values: dict[str, Any]) -> Recommendation:
        """CEL's answer to these values, which depends on nothing else; one with a failure is made and counted anew."""
        features = values.get("features")
        if features is None:
            asked = (*values, *values.values())
        else:
            asked = (*values, *(value for value in values.values() if value is not features), *features.items())
        found = self._answers.get(asked)
        if found is None:
            failed = self._failed_evaluations
            found = self._answer(values)
            if failed == self._failed_evaluations:
                self._answers.keep(asked, found)
        return found

    def _answer(self, values: dict[str, Any]) -> Recommendation:
        fired, parameters = self._first(values)
        return fired.fixed or _recommendation(fired, parameters, values)

    def _first(self, values: dict[str, Any]) -> tuple[_Rule, dict[str, Parameter]]:
        """The first rule that fires, with its parameters; else `otherwise`."""
        values = values | self._reader.booleans(values)
        for expression, rules in self._chunks:
            found = None if expression is None else expression.eval(data=values).plain_value()
            if found == -1:
                continue
            if type(found) is int:
                return rules[found], rules[found].constants
            if type(found) is list:
                rule = rules[found[0]]
                try:
                    return rule, _parameters(rule, found[1:])
                except ValueError:  # this rule cannot fire: ask all of them one by one
                    pass
            fired = self._one_by_one(rules, values)
            if fired is not None:
                return fired
        return self._otherwise, self._otherwise.constants

    def _one_by_one(self, rules: Sequence[_Rule], values: dict[str, Any]) -> tuple[_Rule, dict[str, Parameter]] | None:
        activation = self._env.Activation(values)
        for rule in rules:
            held = rule.when.eval(activation).plain_value()
            if held is True:
                try:
                    return rule, _parameters(rule, [_plain(part.eval(activation)) for _, part in rule.computed])
                except ValueError:
                    self._failed(rule.name)
            elif held is not False and not str(held).startswith(_NOT_KNOWN):
                self._failed(rule.name)
        return None

    def _failed(self, rule: str) -> None:
        with self._failures_lock:
            self._failed_evaluations += 1
            self.failures[rule] += 1


def _compiled(compiler: Compiler, source: BookSource, index: int, rule: RuleModel) -> _Rule:
    place = ("rules", index)
    when = compiler.condition(rule.when, (*place, "when"))
    constants: dict[str, Parameter] = {}
    computed: list[tuple[str, Any]] = []
    texts = [rule.when]
    for name, value in rule.parameters.items():
        if isinstance(value, CelParameter):
            at = (*place, "parameters", name, "cel")
            computed.append((name, compiler.parameter(value.cel, at, numeric=name == "target_workers")))
            texts.append(value.cel)
        else:
            try:
                constants[name] = _checked(name, value)
            except ValueError as error:
                raise source.error(str(error), (*place, "parameters", name)) from None
    sentence = _sentence(source, rule.because, set(rule.parameters), (*place, "because"))
    return _fixed(_Rule(rule.name, rule.action, when, constants, tuple(computed), sentence, tuple(texts)))


def _fixed(rule: _Rule) -> _Rule:
    """The rule with its answer made in advance, where that is possible."""
    if rule.computed or not rule.sentence.names <= rule.constants.keys():
        return rule
    return rule._replace(fixed=_recommendation(rule, rule.constants, {}))


def _chunks(env: Any, rules: tuple[_Rule, ...]) -> list[_Chunk]:
    """CEL limits the depth of an expression (32), so a long book becomes several expressions."""
    branches = [rule.branch(index) for index, rule in enumerate(rules)]
    try:
        return [_Chunk(env.compile(" : ".join([*branches, "dyn(-1)"])), rules)]
    except RuntimeError:
        if len(rules) == 1:
            return [_Chunk(None, rules)]
    half = len(rules) // 2
    return _chunks(env, rules[:half]) + _chunks(env, rules[half:])


def _sentence(source: BookSource, text: str, parameters: set[str], at: Sequence[str | int]) -> Sentence:
    names = {variable.name for variable in VARIABLES if variable.kind != "map"} | parameters
    try:
        return Sentence(text, names)
    except ValueError as error:
        raise source.error(f"because: {error}", at) from None


def _parameters(rule: _Rule, computed: Sequence[Any]) -> dict[str, Parameter]:
    found = dict(rule.constants)
    for (name, _), value in zip(rule.computed, computed, strict=True):
        found[name] = _checked(name, value)
    return found


def _recommendation(rule: _Rule, parameters: dict[str, Parameter], values: Mapping[str, Any]) -> Recommendation:
    return Recommendation(
        action=rule.action,
        parameters=parameters,
        confidence=1.0,
        justification=rule.sentence.render({**values, **parameters}),
        source=rule.name,
    )


def _plain(value: Any) -> Any:
    if value.type() == cel.Type.ERROR:
        raise ValueError(str(value))
    return value.plain_value()


def _checked(name: str, value: Any) -> Parameter:
    """A parameter as it leaves the book. Raises ValueError for NaN, infinities and impossible numbers of workers."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"parameters.{name} = {value}: not a finite number")
    if name != "target_workers":
        return cast(Parameter, value)  # a number or a text: checked when the book was compiled
    if isinstance(value, str) or not 0 <= value <= _MAX_WORKERS:
        raise ValueError(f"parameters.{name} = {value!r}: a number of workers is a number from 0 up")
    workers: int = math.ceil(round(value, 6))  # 12.000000000000002 is 12 workers, not 13
    return workers


def resolve_rule_book(name_or_path: str) -> Path:
    """The file of a bundled book (`default`, `conservative`) or of a book of one's own.

    A bare name is looked for among the bundled books first, then as a path. Raises `RuleBookError` when there is none.
    """
    folder = bundled("fallback")
    shipped = folder / f"{name_or_path}.yaml"
    if name_or_path and Path(name_or_path).name == name_or_path and shipped.is_file():
        return shipped
    try:
        own = Path(name_or_path).expanduser()
        if name_or_path and own.is_file():
            return own
    except (OSError, RuntimeError) as error:  # a folder that may not be entered; the home of an unknown user
        raise RuleBookError(f"cannot be looked for ({error})", file=name_or_path) from None
    names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
    raise RuleBookError(
        f"no such rule book; give the path of a YAML file or one of the bundled names: {names}",
        file=name_or_path or "(empty name)",
    )


def _main(arguments: Sequence[str]) -> int:
    if not arguments:
        sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
        return 0
    try:
        for argument in arguments:
            book = RuleBook.load(resolve_rule_book(argument))
            sys.stdout.write(f"{book.file}: {book.name}, {len(book.rule_names)} rules: {', '.join(book.rule_names)}\n")
    except RuleBookError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(sys.argv[1:]))
