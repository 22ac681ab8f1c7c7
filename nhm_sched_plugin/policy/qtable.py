"""The Q-table: per state and arm the learned value, how often it was tried, and how much its outcomes spread.

An *arm* is an action, or an action with a `+` or `-` when it was executed with a target above or below the capacity
planner's. One JSON file holds it: versioned, with a SHA-256 digest, written atomically.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError

__all__ = ["Cell", "QTable", "file_lock", "reset", "set_aside", "stamp"]

FORMAT: Final = "nhm-sched-q-table"
VERSION: Final = 1


class Cell(msgspec.Struct, frozen=True, gc=False):
    """What is known about one arm in one state. Immutable, so that readers need no lock."""

    q: float
    """The Q-value of the update rule, from 0."""
    visits: int
    mean: float
    """Running mean of the TD targets (Welford)."""
    m2: float
    """Sum of squared deviations of the TD targets from their mean (Welford)."""


class QTable:
    """`rows[state_key][arm] -> Cell`. Readers may run beside one writer; writers need a lock of their own."""

    def __init__(self, rows: dict[str, dict[str, Cell]] | None = None, updates: int = 0) -> None:
        self.rows = rows if rows is not None else {}
        self.updates = updates

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def version(self) -> str:
        """Format version and number of updates: tells one state of learning from the next."""
        return f"q{VERSION}-{self.updates}" if self.updates else f"q{VERSION}-untrained"

    def cell(self, state: str, arm: str) -> Cell | None:
        row = self.rows.get(state)
        return None if row is None else row.get(arm)

    def best(self, state: str) -> float:
        """max_a Q(s, a) over the arms tried there; 0, the initial value, where none was.

        Arms never tried are left out: their 0 would hide that a state is bad once every tried arm is below 0.
        """
        row = self.rows.get(state)
        return max([cell.q for cell in row.values()]) if row else 0.0

    def update(self, state: str, arm: str, target: float, learning_rate: float) -> float:
        """Q(s,a) += lr * (target - Q(s,a)); returns the new value. `target` is r + gamma * max_a' Q(s',a')."""
        row = self.rows.get(state, {})
        old = row.get(arm)
        if old is None:
            cell = Cell(learning_rate * target, 1, target, 0.0)
            # A new dict, so that no reader ever sees one grow under its loop.
            self.rows[state] = {**row, arm: cell}
        else:
            visits = old.visits + 1
            delta = target - old.mean
            mean = old.mean + delta / visits
            q = old.q + learning_rate * (target - old.q)
            cell = row[arm] = Cell(q, visits, mean, old.m2 + delta * (target - mean))
        self.updates += 1
        return cell.q

    def dump(self) -> bytes:
        """The JSON text of the file."""
        body = _body(self.rows, self.updates)
        return _canonical({**body, "digest": _digest(body)}) + b"\n"

    @classmethod
    def parse(cls, raw: bytes, name: str) -> QTable:
        """The table in `raw`. Raises `ModelError` that names `name` and the fix."""
        try:
            tree = json.loads(raw)
        except ValueError as error:
            raise _unusable(name, f"is not valid JSON ({error})") from None
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise _unusable(name, "is not a Q-table")
        if tree.get("version") != VERSION:
            raise _unusable(name, f"has version {tree.get('version')!r}; this program reads version {VERSION}")
        digest = tree.pop("digest", None)
        if digest != _digest(tree):
            raise _unusable(name, "fails its SHA-256 digest (cut short or edited)")
        try:
            rows = {
                str(state): {
                    str(arm): Cell(float(q), int(n), float(mean), float(m2)) for arm, (q, n, mean, m2) in row.items()
                }
                for state, row in tree["states"].items()
            }
            updates = int(tree["updates"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unusable(name, f"holds a wrong entry ({type(error).__name__}: {error})") from None
        if not all(
            math.isfinite(number)
            for row in rows.values()
            for cell in row.values()
            for number in msgspec.structs.astuple(cell)
        ):
            raise _unusable(name, "holds a value that is not finite or a count below 1")
        return cls(rows, updates)

    @classmethod
    def load(cls, path: Path) -> QTable:
        """The table in the file. Raises `FileNotFoundError` when there is none, else `ModelError`."""
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
        return cls.parse(raw, str(path))

    def save(self, path: Path) -> str:
        """Write the file atomically and durably; returns its digest. Raises `OSError` (disk full, no permission)."""
        raw = self.dump()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        return hashlib.sha256(raw).hexdigest()


def set_aside(path: Path, why: str = "corrupt") -> Path:
    """Rename a file to `<name>.<why>-<n>`, with the first free n, so that nothing is overwritten."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{why}-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file is replaced: modification time (ns), size, inode. None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """One writer of `path` at a time, across processes (advisory, released by the system when a process dies)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def reset(path: Path) -> Path | None:
    """Start over: keep the old file as `<name>.reset-<n>` (returned; None when there was none), write an empty table.

    Running policies take the empty table over at their next refresh.
    """
    with file_lock(path):
        aside = set_aside(path, "reset") if path.exists() else None
        QTable().save(path)
    return aside


def _body(rows: dict[str, dict[str, Cell]], updates: int) -> dict[str, Any]:
    states = {
        state: {arm: list(msgspec.structs.astuple(cell)) for arm, cell in row.items()} for state, row in rows.items()
    }
    return {"format": FORMAT, "version": VERSION, "updates": updates, "states": states}


def _canonical(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _unusable(name: str, what: str) -> ModelError:
    return ModelError(f"{name}: {what}; restore a copy, or move the file away to start a new Q-table")


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
