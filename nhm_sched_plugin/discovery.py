"""Where third-party plugins come from: entry points of installed packages, and files in a folder."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.errors import HookError
from nhm_sched_plugin.hookspecs import PROJECT
from nhm_sched_plugin.settings import HooksSettings

__all__ = ["EVERYTHING", "Found", "discover", "is_disabled"]

OWN_ENTRY_POINT: Final = "nhm-sched-plugin"
EVERYTHING: Final = "all"
"""In `hooks.disabled`: no third-party plugin at all."""


class Found(NamedTuple):
    """A plugin that discovery came upon: usable (`plugin`) or not (`problem` says why)."""

    name: str
    origin: str
    plugin: Any = None
    problem: str | None = None


def is_disabled(settings: HooksSettings, name: str) -> bool:
    return EVERYTHING in settings.disabled or name in settings.disabled


def discover(settings: HooksSettings, hooks_dir: Path | None) -> Iterator[Found]:
    """Third-party plugins: entry points of group `nhm_sched`, then the files of `hooks_dir` in order of their names.

    Each file is executed once per call. Files that start with `_` or `.` and subfolders are left alone: a mounted
    ConfigMap holds its files in `..data` and shows them as symbolic links.
    """
    if EVERYTHING in settings.disabled:
        return
    for point in importlib.metadata.entry_points(group=PROJECT):
        if point.name != OWN_ENTRY_POINT and point.name not in settings.disabled:
            yield _found(point.name, f"entry point {point.value}", point.load)
    if hooks_dir is None:
        return
    if not hooks_dir.is_dir():
        yield Found(str(hooks_dir), "hooks_dir", problem="hooks_dir is not a directory")
        return
    for path in sorted(hooks_dir.glob("*.py")):
        if not path.name.startswith(("_", ".")) and path.stem not in settings.disabled:
            yield _found(path.stem, str(path), lambda path=path: _load_file(path))


def _found(name: str, origin: str, load: Any) -> Found:
    try:
        return Found(name, origin, load())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - somebody else's module may raise anything, SystemExit included
        return Found(name, origin, problem=_describe(error))


def _load_file(path: Path) -> types.ModuleType:
    # Two hosts in one process may each have a file of this name: the folder is part of the private module name.
    name = f"_nhm_sched_dropin_{zlib.crc32(str(path.absolute()).encode()):08x}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HookError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses in it look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _describe(error: BaseException) -> str:
    where = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{type(error).__name__}: {getattr(error, 'msg', None) or error}{where}"
