"""What is wrong with a book is said with file, line, rule and fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nhm_sched_plugin.decision.rulebook import RuleBook, resolve_rule_book
from nhm_sched_plugin.errors import RuleBookError

HEAD = "version: 1\nname: mine\nrules:\n"  # a rule starts in line 4


def rule(**changes: str) -> str:
    entries = {"name": "grow", "when": "queue_depth > 3.0", "action": "NO_ACTION"} | changes
    lines = [f"{key}: {value}" for key, value in entries.items() if value]
    return HEAD + "  - " + "\n    ".join(lines) + "\n"


def load(tmp_path: Path, text: str) -> RuleBookError:
    path = tmp_path / "book.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RuleBookError) as caught:
        RuleBook.load(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.file == str(path)
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "name", "words"),
    [
        # The form of the file.
        ("version: 1\nname: [", 2, None, "is not valid YAML"),
        ("version: 1\nname: a: b", 2, None, "put a text that holds ': ' in quotes"),
        ("version: 1\n\tname: x", 2, None, "indent with spaces"),
        ("", None, None, "is empty; a rule book is a mapping with version, name and rules"),
        ("- 1\n- 2", None, None, "holds a list"),
        ("version: 1\nname: x", 1, None, "rules: missing; the keys of a rule book are version, name"),
        ("version: 2\nname: x\nrules: []", 1, None, "this package reads version 1; write `version: 1`"),
        ("version: 1\nname: x\nrules: []", 3, None, "a book needs at least one rule"),
        ("version: 1\nname: x\nrules: 7", 3, None, "rules = 7: input should be a valid list"),
        ("version: 1\nname: x\nrule: []\nrules: []", 3, None, "rule: unknown key; did you mean 'rules'? (and 1 more)"),
        (rule() + "    when: 'true'\n", 7, "grow", "when: given twice in the same mapping; keep one"),
        (rule() + "otherwise: {action: SLEEP}\n", 7, None, "unknown action"),
        (rule() + "otherwise:\n  parameters:\n    x: {cel: '1'}\n", 9, None, "give a number or a text, under"),
        (rule() + "otherwise:\n  action: NO_ACTION\n  because: '{nothing}'\n", 9, None, "{nothing} is no placeholder"),
        # The form of a rule.
        (rule(whenn="'true'"), 7, "grow", "whenn: unknown key; did you mean 'when'?"),
        (rule(when=""), 4, "grow", "when: missing; the keys of a rule are name, when, action, parameters, because"),
        (rule(name=""), 4, "number 1", "name: missing"),
        (rule(name="two words"), 4, "two words", "use letters, digits, '-', '_' and '.' without spaces"),
        (rule(name="7"), 4, "number 1", "name = 7: expected a text; put it in quotes"),
        (rule(when="true"), 5, "grow", "when = True: expected a text; put it in quotes"),
        (rule(action="INCREASE_WORKERS"), 6, "grow", "unknown action; did you mean INCREASE_WORKER_POOL? the"),
        (rule(action="decrease_worker_pool"), 6, "grow", "did you mean DECREASE_WORKER_POOL?"),
        (rule() + rule().removeprefix(HEAD), 7, "grow", "the name is taken by the rule at line 4"),
        # Conditions.
        (rule(when="queue_depth > 3"), 5, "grow", "with a double such as queue_depth write 3.0 instead of 3"),
        (rule(when="3.0 < hour"), 5, "grow", "with hour and weekday write 3"),
        (rule(when="hour > 22.0"), 5, "grow", "with hour and weekday write 3"),
        (rule(when="queue_dept > 3.0"), 5, "grow", "undeclared reference to 'queue_dept' at column 1 of"),
        (rule(when="queue_dept > 3.0"), 5, "grow", "did you mean 'queue_depth'?"),
        (rule(when="math.pow(queue_depth, 2.0) > 3.0"), 5, "grow", "of math there are greatest, least, ceil"),
        (rule(when="nonsense > 3.0"), 5, "grow", "the variables are queue_depth, active_workers"),
        (rule(when="known.queue > 3.0"), 5, "grow", "write for instance known.queue_depth"),
        (rule(when="known.features"), 5, "grow", "for a feature write has(features.NAME)"),
        (rule(when="queue_depth > 3.0 and hour > 3"), 5, "grow", "write && for `and`"),
        (rule(when="hour = 3"), 5, "grow", "compare with =="),
        (rule(when="queue_depth >"), 5, "grow", "Syntax error"),
        (rule(when="True"), 5, "grow", "expected a text"),
        (rule(when="known.reason == True"), 5, "grow", "write true and false in small letters"),
        (rule(when="task_type > 3.0"), 5, "grow", "compare and combine values of the same type"),
        (rule(when="queue_depth + 3.0"), 5, "grow", "gives a double; a condition gives true or false"),
        (rule(when="'\"yes\"'"), 5, "grow", "gives a string; a condition gives true or false"),
        (rule(when="(" * 99 + "hour > 1" + ")" * 99), 5, "grow", "split it into several rules"),
        # ... which may stand on several lines.
        (rule(when="|\n      hour > 1 &&\n      queue_depth > 3"), 7, "grow", "write 3.0 instead of 3"),
        (rule(when=">\n      hour > 1 &&\n      queue_depth > 3"), 6, "grow", "write 3.0 instead of 3"),
        # Parameters and sentences.
        (rule(parameters="{target_workers: true}"), 7, "grow", "target_workers = True: give a number, a text or {cel"),
        (rule(parameters="{target_workers: -1}"), 7, "grow", "a number of workers is a number from 0 up"),
        (rule(parameters="{target_workers: many}"), 7, "grow", "a number of workers is a number from 0 up"),
        (rule(parameters="{x: .nan}"), 7, "grow", "give a number"),
        (rule(parameters="{'a b': 1}"), 7, "grow", "under a name of letters, digits and underscores"),
        (rule(parameters="{x: {celery: '1'}}"), 7, "grow", "{cel: 'expression'}"),
        (rule(parameters="\n      a: 1\n      x: {cel: 'queue_depth + 1'}"), 9, "grow", "write 3.0 instead of 3"),
        (rule(parameters="{x: {cel: 'hour > 1'}}"), 7, "grow", "gives a bool; expected a number or a text"),
        (rule(parameters="{target_workers: {cel: task_type}}"), 7, "grow", "gives a string; expected a number"),
        (rule(because="'{load}'"), 7, "grow", "{load} is no placeholder here; there are active_workers"),
        (rule(because="'{hour.real}'"), 7, "grow", "{hour.real} is no placeholder"),
        (rule(because="'{hour!r}'"), 7, "grow", "conversions are not supported; write {hour}"),
        (rule(because="'{hour:99999999d}'"), 7, "grow", "keep the format simple"),
        (rule(because="'{hour:zz}'"), 7, "grow", "is no number format"),
        (rule(because="'{ 7 '"), 7, "grow", "write a brace that is meant as such twice"),
    ],
)  # fmt: skip
def test_a_broken_book(tmp_path: Path, text: str, line: int | None, name: str | None, words: str) -> None:
    error = load(tmp_path, text)
    assert (error.line, error.rule) == (line, name), str(error)
    assert words in str(error)
    if line:
        assert f"book.yaml:{line}: " in str(error)
    if name:
        assert f"rule {name!r}" in str(error)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(RuleBookError, match=r"nothing\.yaml: cannot be read \(No such file or directory\)"):
        RuleBook.load(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(RuleBookError, match="is not UTF-8 text"):
        RuleBook.load(tmp_path / "bytes.yaml")
    (tmp_path / "huge.yaml").write_text("#" * 1_000_001)
    with pytest.raises(RuleBookError, match="larger than 1000000 bytes"):
        RuleBook.load(tmp_path / "huge.yaml")
    with pytest.raises(RuleBookError, match="cannot be read"):
        RuleBook.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1200,
        "a: " * 50 + "1",
        "version: 1\nname: x\nrules: &r [*r]",
        "version: 1\nname: x\nrules: &r\n  - *r",
        "--- 1\n--- 2",
        "!!python/object/apply:os.system ['true']",
        "version: 2026-02-31\nname: x\nrules: []",
        "{[1, 2]: 3}",
        "? {a: b}\n: c",
        "version: 1\nname: \0",
        "rules:\n- 1\n- null\nversion: 1\nname: x",
        "<<: [1]\nversion: 1",
        "otherwise: [1]\nversion: 1\nname: x\nrules: [{name: a, when: 'true', action: NO_ACTION}]",
        "1: 2\nversion: 1\nname: x\nrules: [{name: a, when: 'true', action: NO_ACTION, 3: 4}]",
    ],
)
def test_strange_yaml_is_refused_like_any_other(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)


def test_books_are_found_by_bundled_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_rule_book("default").name == "default.yaml"
    own = tmp_path / "own.yaml"
    own.write_text(rule())
    assert resolve_rule_book(str(own)) == own
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_rule_book("~/own.yaml") == own


@pytest.mark.parametrize("name", ["defualt", "", "../fallback/default", "~nobody-at-all/x", "a\0b", "."])
def test_a_book_that_does_not_exist_is_named_with_the_choices(name: str) -> None:
    with pytest.raises(RuleBookError) as caught:
        resolve_rule_book(name)
    assert "conservative, default" in str(caught.value) or "cannot be looked for" in str(caught.value)


def test_the_command_checks_a_book(tmp_path: Path) -> None:
    broken = tmp_path / "book.yaml"
    broken.write_text(rule(when="queue_depth > 3"))
    command = [sys.executable, "-m", "nhm_sched_plugin.decision.rulebook"]
    bad = subprocess.run([*command, str(broken)], capture_output=True, text=True, check=False, env=os.environ)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert f"{broken}:5: rule 'grow': when: " in bad.stderr
    good = subprocess.run([*command, "default"], capture_output=True, text=True, check=False)
    assert good.returncode == 0
    assert "default, 7 rules: backlog," in good.stdout
