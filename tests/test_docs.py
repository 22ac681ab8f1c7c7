"""The pages on hooks and configuration say what the code does."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

from nhm_sched_plugin import Settings
from nhm_sched_plugin.extension import Found, HookManager
from nhm_sched_plugin.hookchecks import implementations
from nhm_sched_plugin.hookspecs import ExtensionSpecs, SchedulerSpecs
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import HooksSettings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "hooks.md").read_text(encoding="utf-8")
SPECS = {
    name: function
    for specs in (SchedulerSpecs, ExtensionSpecs)
    for name, function in vars(specs).items()
    if inspect.isfunction(function)
}


def section(name: str) -> str:
    """What the page says about one hook."""
    found = re.search(rf"^### {name}\(.*?(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/hooks.md has no section on {name}"
    return found[0]


def module_of(code: str, name: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(code, name, "exec"), module.__dict__)  # noqa: S102 - our own documentation
    return module


def test_every_hook_has_its_exact_signature_as_a_heading_and_there_are_no_others() -> None:
    headings = re.findall(r"^### (nhm_sched_\w+\(.*\))$", PAGE, re.MULTILINE)
    expected = [f"{name}({', '.join(list(inspect.signature(spec).parameters)[1:])})" for name, spec in SPECS.items()]
    assert headings == expected


@pytest.mark.parametrize("name", SPECS)
def test_every_hook_says_what_happens_when_it_fails_and_shows_an_example(name: str) -> None:
    text = section(name)
    assert "```python" in text
    assert "Fails" in text or name == "nhm_sched_decide"


@pytest.mark.parametrize("name", SPECS)
def test_every_example_registers_with_a_real_hook_manager(name: str) -> None:
    specs = SchedulerSpecs if name in vars(SchedulerSpecs) else ExtensionSpecs
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", section(name), re.DOTALL)):
        module = module_of(code, f"example_{name}_{number}")
        if name == "nhm_sched_decide":
            assert module.manager.hook.nhm_sched_decide is not None
            assert module.ask(module.manager) is None, "nobody is registered there"
            continue
        manager = HookManager(specs, HooksSettings(), Faults(Metrics()))
        try:
            assert manager.add(Found("example", "docs/hooks.md", module)), manager.problems
            assert [hook for hook, _, _ in implementations(manager, module).values()] == [name]
        finally:
            manager.close()


def test_the_example_at_the_top_registers_too() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    manager = HookManager(ExtensionSpecs, HooksSettings(), Faults(Metrics()))
    assert manager.add(Found("top", "docs/hooks.md", module_of(code[1], "top")))
    manager.close()


def test_the_examples_that_make_parts_work_in_a_host(kit: Any) -> None:
    names = ("nhm_sched_make_forecaster", "nhm_sched_make_policy", "nhm_sched_make_sinks", "nhm_sched_collect_state")
    plugins = {}
    for name in names:
        code = re.search(r"```python\n(.*?)```", section(name), re.DOTALL)
        assert code is not None
        plugins[name] = module_of(code[1], name)
    host = kit.start(plugins=plugins, built_in=True)
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.reason, decision.action) == ("applied", "NO_ACTION")
    assert decision.policy_version == ""
    assert decision.forecast.predicted_volume == 900.0
    assert "month_end" in decision.state.features
    assert host.flush()


def leaves(model: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += leaves(kind, (*path, name))
        else:
            found.append(((*path, name), field))
    return found


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configuration", DOCS / "make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator().page()
    assert made == (DOCS / "configuration.md").read_text(encoding="utf-8"), "run: python docs/make_configuration.py"


def test_the_configuration_page_lists_every_key_with_a_meaning() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    tables = {
        heading.strip("`"): body for heading, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    }
    for path, _ in leaves():
        table = tables[".".join(path[:-1]) or "Top level"]
        row = next((line for line in table.splitlines() if line.startswith(f"| `{path[-1]}` |")), None)
        assert row is not None, path
        key, kind, default, _, meaning = (cell.strip() for cell in row.strip("|").split(" | "))
        assert (key, bool(kind), bool(default)) == (f"`{path[-1]}`", True, True), row
        assert meaning, f"{'.'.join(path)} has no docstring in settings.py"
