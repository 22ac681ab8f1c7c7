"""Files that several processes read while one writes: replaced as a whole, told apart, locked, kept beside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nhm_sched_plugin.errors import ModelError

__all__ = ["file_lock", "keep_beside", "read_file", "replace_file", "set_aside", "stamp"]


def replace_file(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Write a file so that a reader sees either the old or the new one; its folder is made.

    `durable`: return once it survives a power cut. Raises `OSError` (disk full, no permission); the old file then
    stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if mode != 0o600:  # what mkstemp gives
                os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """What is in the file. Raises `FileNotFoundError` when there is none, else `ModelError` with the fix."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file is replaced: modification time (ns), size, inode. None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One writer of `path` at a time, across processes (advisory, released by the system when a process dies).

    Raises `BlockingIOError` when there is another one and `wait` is off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def set_aside(path: Path, why: str = "corrupt") -> Path:
    """Rename a file to `<name>.<why>-<n>`, with the first free n, so that nothing is overwritten."""
    aside = _aside(path, why)
    path.rename(aside)
    return aside


def keep_beside(path: Path, why: str) -> Path:
    """A copy under the name that `set_aside` would give: readers find the file until it is replaced."""
    aside = _aside(path, why)
    shutil.copy2(path, aside)
    return aside


def _aside(path: Path, why: str) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
        number += 1
    return aside
