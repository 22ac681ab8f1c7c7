"""Loads a ready-made drop-in as a plugin manager would: a copy of the file in a folder, with settings of its own."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pluggy
import pytest

from nhm_sched_plugin.hookspecs import PROJECT, ExtensionSpecs
from nhm_sched_plugin.settings import bundled


class DropIn(NamedTuple):
    module: Any
    hook: Any


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str, str | None], DropIn]]:
    """`load(name, settings)`: the drop-in's module and a real plugin manager's hooks; settings None: as shipped."""
    names: list[str] = []
    numbers = itertools.count()

    def load_one(name: str, settings: str | None = None) -> DropIn:
        folder = tmp_path / f"hooks-{next(numbers)}"
        folder.mkdir()
        for path in bundled("hooks").glob(f"{name}.*"):
            shutil.copy(path, folder)
        if settings is not None:
            (folder / f"{name}.toml").write_text(settings, encoding="utf-8")
        private = f"_dropin_under_test_{folder.name}_{name}"
        spec = importlib.util.spec_from_file_location(private, folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[private] = module
        names.append(private)
        spec.loader.exec_module(module)
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(ExtensionSpecs)
        # Of the other spec class; there the drop-in learns the host's clock.
        manager.register(module, name)
        return DropIn(module, manager.hook)

    yield load_one
    for name in names:
        sys.modules.pop(name, None)
