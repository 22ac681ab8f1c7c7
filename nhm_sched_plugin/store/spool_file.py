"""One SQLite file that several processes share, survives damage, forks and a disk that comes and goes.

The spool's inside: locks between processes, opening, sealing a full file, setting a damaged one aside and saving what
is readable of it. Other files of this kind subclass it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from nhm_sched_plugin.errors import NhmSchedError, SpoolError
from nhm_sched_plugin.store.frames import describe
from nhm_sched_plugin.store.salvage import UNSALVAGED, finish, move, readable_frames, set_aside, unlink

__all__ = ["FILE_NAME", "SpoolFile", "identity", "in_parts"]

log = logging.getLogger(__name__)

FILE_NAME: Final = "spool.sqlite"
_BUSY_S: Final = 5.0
_ROWS_AT_ONCE: Final = (256, 32, 4, 1)
"""Rows a statement. sqlite3 gives the interpreter lock up at each statement and has to win it back from a busy host, so
few statements; and few different ones, since each prepared one keeps memory."""
_CHECKED_UP_TO: Final = 128 * 1024 * 1024
"""Twice what a file grows to: only one of an earlier version is larger, and shows damage when it is read."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, id TEXT, frame BLOB);
CREATE TABLE IF NOT EXISTS quarantine (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, id TEXT, frame BLOB,
                                       reason TEXT, at REAL);
"""
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_T = TypeVar("_T")

_live: weakref.WeakSet[SpoolFile] = weakref.WeakSet()


class SpoolFile:
    """`run(work)` hands an open connection to `work`; everything that can go wrong comes out as `failure`.

    `name` other than the default is a sealed file: it is never made, and what can be saved of it when it is damaged
    goes into the one that is written to.

    `checked`: do not look a file over when it is opened.

    `salvaged` and `damaged` count records saved from damaged files and damaged files set aside, in this process.
    """

    what: ClassVar[str] = "spool"
    """In the names of the files and in messages."""
    failure: ClassVar[type[NhmSchedError]] = SpoolError
    schema: ClassVar[str] = _SCHEMA
    page: ClassVar[int] = 16_384
    """Bytes; large enough that a decision with its forecast stays in one page, where a raw scan finds it."""

    def __init__(self, path: Path, clock: Callable[[], float], name: str = "", *, checked: bool = False) -> None:
        self.path = path
        self.file = path / (name or f"{self.what}.sqlite")
        self.sealed = bool(name)
        self.salvaged = self.damaged = 0
        self._clock = clock
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._lock_file: int | None = None
        self._synced, self._checked = False, checked
        self._pid = os.getpid()
        _live.add(self)

    @property
    def inode(self) -> tuple[int, int]:
        """Device and inode of the file that was used last: another one when a damaged file was replaced."""
        return self._inode

    def close(self) -> None:
        """Close the file; the next `run` opens it again."""
        with self._lock:
            self._drop()

    def seal(self, target: Callable[[], Path]) -> bool:
        """Rename the file to `target()`, unless another process has just done so; the next use begins a new one.

        Raises `SpoolError`; the file is then as it was, or sealed.
        """
        with self._lock:
            try:
                connection = self._open()
                self._flock(fcntl.LOCK_EX)
                try:
                    return self._seal(connection, target)
                finally:
                    self._flock(fcntl.LOCK_UN)
            except (sqlite3.Error, OSError) as error:
                self._drop()
                raise SpoolError(f"spool {self.file} cannot be sealed: {error}") from error

    def _seal(self, connection: sqlite3.Connection, target: Callable[[], Path]) -> bool:
        status = os.stat(self.file)
        if (status.st_dev, status.st_ino) != self._inode:
            return False
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            return False  # somebody reads the log outside our locks; next time, then
        self._drop_connection()
        move(self.file, target())
        self._connect()  # which also sees to it that the folder is on the disk
        return True

    def remove(self) -> None:
        """Delete a sealed file that holds nothing any more."""
        with self._lock:
            self._drop()
            try:
                unlink(self.file)
            except OSError as error:
                raise SpoolError(f"drained spool {self.file} cannot be removed: {error.strerror or error}") from error

    def salvage(self) -> None:
        """Take over what is readable of files that were set aside since this one was opened."""
        self.close()
        self.run(lambda connection: None)

    def synchronous(self, connection: sqlite3.Connection, sync: bool) -> None:
        """Whether the next commit waits for the disk. Outside a transaction only."""
        if sync != self._synced:
            connection.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            self._synced = sync

    def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run `work` on an open connection, under the locks; sets a damaged file aside and tries once more."""
        with self._lock:
            for attempt in (1, 2):
                try:
                    with self._shared() as connection:
                        return work(connection)
                except sqlite3.Error as error:
                    damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
                    if not damaged or attempt == 2:
                        self._drop()  # the next call starts afresh: the disk may be back by then
                        raise self.failure(f"{self.what} {self.file} cannot be used: {error}") from error
                    self._replace_damaged(str(error))
                except OSError as error:
                    self._drop()
                    raise self.failure(f"{self.what} {self.path} cannot be used: {error.strerror or error}") from error
            raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _shared(self) -> Iterator[sqlite3.Connection]:
        """The connection, while no other process may set the file aside."""
        for _ in range(10):
            connection = self._open()
            self._flock(fcntl.LOCK_SH)
            try:
                status = os.stat(self.file)
                current = (status.st_dev, status.st_ino)
            except FileNotFoundError:
                current = (0, 0)
            if current == self._inode:
                break
            self._drop()  # another process has set the file aside, or somebody removed it
        else:
            raise self.failure(f"{self.what} {self.file} keeps being replaced by another process")
        try:
            yield connection
        finally:
            # A failed rollback means that the connection is past use; the error that led here says why.
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            self._flock(fcntl.LOCK_UN)

    def _open(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            self._forget()
        if self._connection is not None:
            return self._connection
        if self.sealed:
            os.stat(self.file)  # SQLite would make an empty one
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._flock(fcntl.LOCK_EX)
        try:
            try:
                connection = self._connect()
                self._check_once(connection)
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
                    raise
                self._drop_connection()
                self._rename_damaged(str(error))
                if self.sealed:
                    raise
                connection = self._connect()
            if not self.sealed:
                self._salvage_leftovers(connection)
            return connection
        finally:
            self._flock(fcntl.LOCK_UN)

    def _connect(self) -> sqlite3.Connection:
        new = not self.file.exists()
        connection = sqlite3.connect(self.file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection, self._synced = connection, False
        if new:
            connection.execute(f"PRAGMA page_size={self.page}")
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=256")
        connection.execute(f"PRAGMA journal_size_limit={8 * 1024 * 1024}")
        connection.executescript(self.schema)
        if not identity(connection):
            connection.execute(f"PRAGMA user_version={random.randrange(1, 2**31)}")
        if new:
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)  # so that the file's name is on the disk too
            finally:
                os.close(folder)
        status = os.stat(self.file)
        self._inode = (status.st_dev, status.st_ino)
        return connection

    def _check_once(self, connection: sqlite3.Connection) -> None:
        """Look a file over when it is first opened: a garbled page may otherwise simply hold fewer rows."""
        if self._checked or self.file.stat().st_size > _CHECKED_UP_TO:
            return
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if verdict != "ok":
            raise _damage(" ".join(verdict.split()))
        self._checked = True

    def _replace_damaged(self, why: str) -> None:
        """Set the file aside, unless another process has done so, and open a new one with what could be saved."""
        mine = self._inode
        self._drop_connection()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._flock(fcntl.LOCK_EX)
            try:
                status = os.stat(self.file)
                if mine in ((0, 0), (status.st_dev, status.st_ino)):
                    self._rename_damaged(why)
            finally:
                self._flock(fcntl.LOCK_UN)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self.failure(
                f"damaged {self.what} {self.file} cannot be set aside: {error.strerror or error}"
            ) from error

    def _rename_damaged(self, why: str) -> None:
        stamp = dt.datetime.fromtimestamp(self._clock(), dt.UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = set_aside(self.file, self.what, stamp)
        self.damaged += 1
        finished = aside.with_suffix(".corrupt").name
        log.error("%s %s is damaged (%s): set aside as %s", self.what, self.file, why, finished)

    def _salvage_leftovers(self, connection: sqlite3.Connection) -> None:
        """Move what is readable from set-aside files into the new one; a crash in between repeats it, harmlessly."""
        for aside in sorted(self.path.glob(f"{self.what}-*{UNSALVAGED}")):
            connection.execute("BEGIN IMMEDIATE")
            try:
                saved = self._save_from(aside, connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            finished = finish(aside)
            self.salvaged += saved
            log.error("%d records were saved from %s", saved, finished.name)

    def _save_from(self, aside: Path, connection: sqlite3.Connection) -> int:
        """Copy what is readable of a file that was set aside; returns how many records. In a transaction."""
        saved = 0
        for frame in readable_frames(aside):
            connection.execute("INSERT INTO records (kind, id, frame) VALUES (?, ?, ?)", (*describe(frame), frame))
            saved += 1
        return saved

    def _flock(self, operation: int) -> None:
        """Between processes: shared while using the file, exclusive while opening or replacing it."""
        if self._lock_file is None:
            if operation == fcntl.LOCK_UN:
                return
            self._lock_file = os.open(self.path / f"{self.what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _BUSY_S
        while True:
            try:
                fcntl.flock(self._lock_file, operation | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR) or time.monotonic() > deadline:
                    raise
            time.sleep(0.002)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Closing may fail on a dead disk; the file is given up either way.
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _drop(self) -> None:
        self._drop_connection()
        lock_file, self._lock_file = self._lock_file, None
        if lock_file is not None:
            os.close(lock_file)

    def _forget(self) -> None:
        """After a fork that skipped our hooks: the parent's connection must be neither used nor closed here."""
        if self._connection is not None:
            _parents_own.append(self._connection)
        self._connection, self._pid = None, os.getpid()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def identity(connection: sqlite3.Connection) -> int:
    """A number that a file keeps when it is sealed under another name: `seq` counts within one file."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def in_parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """What goes into a statement each."""
    first = 0
    for size in _ROWS_AT_ONCE:
        while len(items) - first >= size:
            yield items[first : first + size]
            first += size


def _damage(message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


# SQLite forbids a connection to cross a fork, even one that the child never uses: its bookkeeping of file locks would.
# So every spool is closed before a fork and opened again afterwards, by parent and child alike, when next used.
_parents_own: list[sqlite3.Connection] = []
_held: list[SpoolFile] = []


def _before_fork() -> None:
    for spool in list(_live):
        spool._lock.acquire()
        spool._drop()
        _held.append(spool)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _held:
        spool = _held.pop()
        spool._lock = threading.RLock()
        spool._pid = os.getpid()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
