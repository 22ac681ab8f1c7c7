"""The files of a spool: one that is written to, and sealed ones before it, oldest first.

A file that has grown to its limit is sealed under the next number; a sealed one is deleted once it holds nothing. So
damage is confined to one file, and the disk gets its space back as the drain goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from nhm_sched_plugin.errors import SpoolError
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.store.spool_file import FILE_NAME, SpoolFile, identity

__all__ = ["Place", "Segments", "Tally", "used"]

_SEALED: Final = re.compile(r"segment-(\d+)\.sqlite")
_COUNTED_UP_TO: Final = 200_000
_T = TypeVar("_T")


class Place(NamedTuple):
    """A file of the spool: what it is, and what it was called last."""

    identity: int
    name: str


class Tally(NamedTuple):
    """Records that wait for delivery, and that are in quarantine."""

    waiting: int
    quarantined: int


class Segments:
    """All files of the spool in `path`. Sealed ones are opened as they are needed, one at a time."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.active = SpoolFile(path, clock)
        self._clock = clock
        self._reader: SpoolFile | None = None
        self._tallies: dict[str, tuple[tuple[int, ...], Tally]] = {}
        self._drain_lock: int | None = None
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The parent's lock on draining is not the child's to keep: it would outlive the parent's pass."""
        self._lock = threading.RLock()
        if self._drain_lock is not None:
            os.close(self._drain_lock)
            self._drain_lock = None

    def sealed(self) -> list[str]:
        """Names of the sealed files, oldest first."""
        try:
            return sorted(name for name in os.listdir(self.path) if _SEALED.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SpoolError(f"spool {self.path} cannot be read: {error.strerror or error}") from error

    def names(self) -> list[str]:
        """Every file, in the order of writing."""
        return [*self.sealed(), FILE_NAME]

    def sealed_bytes(self) -> int:
        """What the sealed files take on disk."""
        total = 0
        for name in self.sealed():
            with contextlib.suppress(FileNotFoundError):  # drained in between
                total += os.stat(self.path / name).st_size
        return total

    def tally(self) -> Tally:
        """Of all files. A sealed one is counted again only after it has changed: a long outage makes hundreds."""
        with self._lock:
            names = self.sealed()
            self._tallies = {name: self._tallies[name] for name in names if name in self._tallies}
            tallies = [self.active.run(_tally), *(self._sealed_tally(name) for name in names)]
        return Tally(sum(one.waiting for one in tallies), sum(one.quarantined for one in tallies))

    def _sealed_tally(self, name: str) -> Tally:
        state = self._state(name)
        known = self._tallies.get(name)
        if known is not None and known[0] == state:
            return known[1]
        file = SpoolFile(self.path, self._clock, name, checked=True)  # whoever reads the records looks for damage
        try:
            found = file.run(_tally)
        except SpoolError:
            if file.file.exists():
                raise
            return Tally(0, 0)  # drained meanwhile
        finally:
            file.close()
        self._tallies[name] = self._state(name), found
        return found

    def _state(self, name: str) -> tuple[int, ...]:
        state: list[int] = []
        for path in (self.path / name, self.path / f"{name}-wal"):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(path)
                state += (status.st_ino, status.st_size, status.st_mtime_ns)
        return tuple(state)

    def seal(self) -> bool:
        """Go on in a new file; False when another process was quicker."""
        return self.active.seal(self._next)

    def _next(self) -> Path:
        names = self.sealed()
        number = int(names[-1][8:-7]) + 1 if names else 1
        return self.path / f"segment-{number:08d}.sqlite"

    def run(self, name: str, work: Callable[[sqlite3.Connection], _T], gone: _T) -> _T:
        """Run `work` on the file of that name; `gone` when a sealed one is no longer there (drained, or damaged).

        Of a damaged one, what is readable is taken over into the file that is written to.
        """
        if name == FILE_NAME:
            return self.active.run(work)
        with self._lock:
            file = self._open(name)
            damaged = file.damaged
            try:
                return file.run(work)
            except SpoolError:
                if file.file.exists():
                    raise
            if file.damaged > damaged:
                self.active.damaged += file.damaged - damaged
                self.active.salvage()
            return gone

    def run_at(self, place: Place, work: Callable[[sqlite3.Connection], _T]) -> tuple[str, _T] | None:
        """Run `work` on the file of that identity, which may have been sealed since; its name now, and the result.

        None when it is no longer there: drained by somebody else, or damaged and its records taken over.
        """

        def checked(connection: sqlite3.Connection) -> tuple[_T] | None:
            return (work(connection),) if identity(connection) == place.identity else None

        for name in (place.name, *(name for name in reversed(self.names()) if name != place.name)):
            done = self.run(name, checked, None)
            if done is not None:
                return name, done[0]
        return None

    def remove(self, name: str) -> None:
        """Delete a sealed file that is empty."""
        with self._lock:
            file = self._open(name)
            self._reader = None
            file.remove()

    def _open(self, name: str) -> SpoolFile:
        if self._reader is None or self._reader.file.name != name:
            if self._reader is not None:
                self._reader.close()
            self._reader = SpoolFile(self.path, self._clock, name)
        return self._reader

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        self.active.close()

    @contextlib.contextmanager
    def only_drain(self, wait_s: float = 0.0) -> Iterator[None]:
        """While this process delivers or erases, which no two may at once. Raises `SpoolError` when another one has not
        ended within `wait_s`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "drain.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(f"spool {self.path} cannot be used: {error.strerror or error}") from error
        try:
            self._take(descriptor, time.monotonic() + wait_s)
            self._drain_lock = descriptor
            yield
        finally:
            self._drain_lock = None
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child forked past our hooks, which shares it
            os.close(descriptor)

    def _take(self, descriptor: int, until: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() >= until:
                    raise SpoolError(
                        f"another process delivers from the spool {self.path}, or erases in it, just now"
                    ) from None
            time.sleep(0.02)


def _tally(connection: sqlite3.Connection) -> Tally:
    quarantined = int(connection.execute("SELECT count(*) FROM quarantine").fetchone()[0])
    low, high = connection.execute("SELECT (SELECT min(seq) FROM records), (SELECT max(seq) FROM records)").fetchone()
    if low is None:
        return Tally(0, quarantined)
    span = int(high - low + 1)
    if span > _COUNTED_UP_TO:
        return Tally(span, quarantined)
    return Tally(int(connection.execute("SELECT count(*) FROM records").fetchone()[0]), quarantined)


def used(connection: sqlite3.Connection) -> int:
    """Bytes in use of one file."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
