"""Compiles the twin's inner loops with numba and keeps the machine code on disk.

Decorate with `compiled`, `allocating` or `inner`, never with `numba.njit`: numba notices when a function's own file
changes, not when a function or number that it takes from another file does. So the folder of the cache is named after a
digest of all files that compiled functions are in, and of every file of the package that these import, however
indirectly. Code compiled from other sources is never found; caches of earlier sources are removed.

The folder is below `$NUMBA_CACHE_DIR`, else `$XDG_CACHE_HOME/nhm-sched`, else `~/.cache/nhm-sched`; the user's own,
because machine code is loaded from it. Where it cannot be written, every process compiles for itself.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

try:
    import numba
    from numba.extending import register_jitable
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the twin needs {error.name}: pip install 'nhm-sched-plugin[twin]'", name=error.name
    ) from error

__all__ = ["CACHE", "allocating", "compiled", "inner"]

Function = TypeVar("Function", bound=Callable[..., Any])
_PREFIX: Final = "twin-"
_KEPT: Final = 3
"""Caches of other sources that stay: several checkouts or versions may be in use."""


def sources(package: Path) -> list[Path]:
    """The files of the twin that use this module, and all those of the package that they import."""
    this = f"{package.name}.twin.compiled"
    todo = [path for path in (package / "twin").rglob("*.py") if this in path.read_text(encoding="utf-8")]
    found: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in found and path.is_file():
            found.add(path)
            todo += [package.parent / name for name in _imports(path) if name.parts[0] == package.name]
    return sorted(found)


def _imports(path: Path) -> Iterator[Path]:
    """The files that it may import from, relative to the folder of the package."""
    todo: list[ast.AST] = [ast.parse(path.read_bytes())]
    while todo:
        node, names = todo.pop(), []
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            yield Path(*name.split("."), "__init__.py")
            yield Path(*name.split(".")).with_suffix(".py")


def digest(package: Path) -> str:
    """Of what compiled code of the package is made from, by the files' names and contents."""
    found = hashlib.sha256()
    for path in sources(package):
        found.update(f"{path.relative_to(package)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def cache_folder(package: Path) -> Path | None:
    """The folder for code compiled from the package, made when it is missing; None when it cannot be written."""
    parent = os.environ.get("NUMBA_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "nhm-sched")
    try:
        folder = Path(parent).expanduser() / f"{_PREFIX}{digest(package)}"
        known = folder.is_dir()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not known:
        with contextlib.suppress(OSError):  # another process may be at it
            _forget_all_but(folder)
    return folder


def _forget_all_but(folder: Path) -> None:
    others = [path for path in folder.parent.glob(f"{_PREFIX}*") if path != folder]
    for path in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)[_KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


CACHE: Final = cache_folder(Path(__file__).parents[1])
"""Where this process keeps compiled code; None: nowhere."""


def compiled(function: Function) -> Function:
    """`numba.njit` with the cache described above; division follows numpy (no ZeroDivisionError).

    The function must not make arrays, and numba refuses one that does: so no references have to be counted, which for
    named tuples of arrays would be most of the work. Otherwise take `allocating`.
    """
    return _compiled(function, **_BORROWED)


def allocating(function: Function) -> Function:
    """The same for a function that makes arrays."""
    return _compiled(function)


def inner(function: Function) -> Function:
    """For what compiled functions alone call: compiled with them, which takes half the time; plain to Python.

    Like `compiled` ones they must not make arrays.
    """
    made: Any = register_jitable(error_model="numpy", **_BORROWED)(function)
    return made  # type: ignore[no-any-return]


_BORROWED: Final[dict[str, Any]] = {"_nrt": False}


def _compiled(function: Function, **options: Any) -> Function:
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(CACHE or "")
    options |= {"no_cfunc_wrapper": True}  # nobody calls it from C, and compiling that takes a while
    try:
        made: Any = numba.njit(function, cache=CACHE is not None, error_model="numpy", **options)
    finally:
        config.CACHE_DIR = before
    if CACHE is not None:
        _forgive(made)
    return made  # type: ignore[no-any-return]


def _forgive(made: Any) -> None:
    """What becomes of the cache later (a full disk, a removed folder, a damaged file) costs time, not the run."""
    cache = made._cache
    cache.load_overload, cache.save_overload = _attempt(cache.load_overload), _attempt(cache.save_overload)


def _attempt(action: Callable[..., Any]) -> Callable[..., Any]:
    def attempt(*args: Any) -> Any:
        with contextlib.suppress(Exception):
            return action(*args)
        return None

    return attempt
