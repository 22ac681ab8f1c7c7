"""docs/rule-books.md is true: its example loads and answers, its tables are complete."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from nhm_sched_plugin.decision.rulebook import RuleBook
from nhm_sched_plugin.decision.rulebook_model import BookModel, RuleModel
from nhm_sched_plugin.decision.rulebook_variables import VARIABLES
from nhm_sched_plugin.errors import RuleBookError
from nhm_sched_plugin.types import Action, SchedulingState, Ticket

PAGE = (Path(__file__).parents[2] / "docs" / "rule-books.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, language
    return found[1]


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rules.yaml"
    path.write_text(block("yaml rule-book"))
    return path


def test_the_example_book_does_what_it_says(rules: Path) -> None:
    book = RuleBook.load(rules)
    idle = SchedulingState(queue_depth=0, active_workers=8, resource_cpu_avg=0.1)
    night = book.evaluate(None, idle, None, "shadow", 23 * 3600.0)
    assert (night.action, night.parameters) == (Action.DECREASE_WORKER_POOL, {"target_workers": 2})
    assert night.justification == "It is 23 o'clock (UTC), nothing waits and the pool is 10% busy."
    assert book.evaluate(None, idle, None, "shadow", 12 * 3600.0).action == Action.NO_ACTION
    late = SchedulingState(queue_depth=0, active_workers=8, sla_compliance_rate=0.8)
    risky = Ticket(ticket_id="t", risk_band="critical")
    assert book.evaluate(risky, late, None, "shadow", 0.0).action == Action.ADJUST_PRIORITY_WEIGHTS
    assert book.evaluate(None, late, None, "shadow", 0.0).action == Action.NO_ACTION


def test_the_python_example_prints_what_it_says(rules: Path) -> None:
    code = block("python")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "rule-books.md", "exec"), {})  # noqa: S102 - our own page
    promised = [line.split("# ", 1)[1] for line in code.splitlines() if line.startswith("print")]
    assert out.getvalue().splitlines() == promised


def test_the_variables_table_is_the_code_s() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", PAGE.split("## Variables")[1].split("##")[0], re.MULTILINE)
    assert rows == [tuple(variable) for variable in VARIABLES]


def test_every_key_and_action_is_explained() -> None:
    keys = PAGE.split("## Keys")[1].split("##")[0]
    for model, place in ((BookModel, "book"), (RuleModel, "rule")):
        for name in model.model_fields:
            assert f"| `{name}` | {place} |" in keys
    assert all(f"`{action}`" in keys for action in Action)


def test_the_messages_shown_are_real(rules: Path) -> None:
    first, second = block("text").splitlines()
    text = rules.read_text()
    for message, broken in (
        (first, text.replace("queue_depth > 2.0 * active_workers", "queue_depth > 3")),
        (second, text.replace("INCREASE_WORKER_POOL", "INCREASE_WORKERS")),
    ):
        rules.write_text(broken)
        with pytest.raises(RuleBookError) as caught:
            RuleBook.load("rules.yaml")
        assert str(caught.value) == message
