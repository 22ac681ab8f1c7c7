"""What holds for every ready-made drop-in, through the real hook manager and the host."""

from __future__ import annotations

import ast
import datetime as dt
import shutil
import sys
from pathlib import Path

import pytest

from nhm_sched_plugin import SchedulerHost, SchedulingState
from nhm_sched_plugin.extension import HookManager, discover
from nhm_sched_plugin.hookspecs import ExtensionSpecs, SchedulerSpecs
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import HooksSettings, bundled

FILES = sorted(bundled("hooks").glob("*.py"))
NAMES = [path.stem for path in FILES]


def test_there_are_some() -> None:
    assert {"business_calendar", "jsonl_audit", "maintenance_window", "quota_guard"} <= set(NAMES)


@pytest.mark.parametrize("specs", [ExtensionSpecs, SchedulerSpecs])
def test_the_hook_manager_takes_them_all(specs: type, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled("hooks"), tmp_path / "hooks")
    (folder / "jsonl_audit.toml").write_text(f'path = "{tmp_path}/audit.jsonl"')
    settings = HooksSettings()
    manager = HookManager(specs, settings, Faults(Metrics()))
    try:
        for found in discover(settings, folder):
            assert manager.add(found), manager.problems
        assert {name for name, _ in manager.list_name_plugin()} >= set(NAMES)
    finally:
        manager.close()


def test_in_a_host_they_tell_the_hosts_time(tmp_path: Path) -> None:
    folder = shutil.copytree(bundled("hooks"), tmp_path / "hooks")
    (folder / "jsonl_audit.toml").write_text(f'path = "{tmp_path}/audit.jsonl"')
    saturday = dt.datetime(2026, 11, 28, 23, 30, tzinfo=dt.UTC).timestamp()
    config = {"data_dir": str(tmp_path / "data"), "hooks_dir": str(folder), "metrics": {"enabled": False}}
    with SchedulerHost.from_config(config, clock=lambda: saturday) as host:
        decision = host.decide(None, SchedulingState(queue_depth=5, active_workers=10))
        assert host.flush()
    assert decision.state is not None
    assert decision.state.features["hours_to_open"] == 33.5
    assert '"at":"2026-11-28T23:30:00.000+00:00"' in (tmp_path / "audit.jsonl").read_text()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_each_is_one_file_on_the_standard_library_and_the_public_names(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name) or "."
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"nhm_sched_plugin"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_each_says_how_to_switch_it_on_and_has_settings_beside_it(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert "Switch it on" in said
    assert f"{path.stem}.toml" in said
    assert path.with_suffix(".toml").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_that_of_a_library(name: str) -> None:
    assert name not in sys.stdlib_module_names
    assert not any(Path(entry, candidate).exists() for entry in sys.path if entry for candidate in (name, f"{name}.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_settings_file_is_named(name: str, tmp_path: Path) -> None:
    shutil.copy(bundled("hooks") / f"{name}.py", tmp_path)
    (found,) = discover(HooksSettings(), tmp_path)
    assert found.problem is not None
    assert str(tmp_path / f"{name}.toml") in found.problem
    assert "settings cannot be read" in found.problem


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("text", "told"), [("colour = 1", "unknown key 'colour'"), ("= 3", "Invalid")])
def test_wrong_settings_are_named(name: str, text: str, told: str, tmp_path: Path) -> None:
    shutil.copy(bundled("hooks") / f"{name}.py", tmp_path)
    (tmp_path / f"{name}.toml").write_text(text)
    (found,) = discover(HooksSettings(), tmp_path)
    assert found.problem is not None
    assert f"{name}.toml" in found.problem
    assert told in found.problem
