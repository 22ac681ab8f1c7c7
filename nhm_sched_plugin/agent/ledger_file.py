"""The ledger's file: its tables, how an outcome is written down in it, and what can be saved of a damaged one."""

from __future__ import annotations

import contextlib
import mmap
import secrets
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from nhm_sched_plugin.errors import LedgerError, NhmSchedError
from nhm_sched_plugin.store.spool_file import SpoolFile
from nhm_sched_plugin.types import Experience

__all__ = ["Entry", "LedgerFile", "frame_of", "read_frame"]

_MAGIC: Final = b"NHL\x01"
_HEADER: Final = struct.Struct("<4sII")
_LARGEST: Final = 64 * 1024 * 1024
_AT_ONCE: Final = 1000
_JUMP: Final = 1_000_000
"""Left free above the last number that a damaged ledger still shows: the table may contain later ones."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS outcomes (seq INTEGER PRIMARY KEY AUTOINCREMENT, decision_id TEXT NOT NULL UNIQUE,
                                     recorded_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS experiences (seq INTEGER PRIMARY KEY, frame BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, epoch INTEGER,
                                   seq INTEGER, stamp TEXT);
"""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One outcome as it stands in the ledger: enough to be found and sorted in a file whose structure is lost."""

    ledger: str
    seq: int
    recorded_at: float
    experience: Experience


_encoder = msgspec.msgpack.Encoder()
_entries: Final = msgspec.msgpack.Decoder(Entry)


def frame_of(entry: Entry) -> bytes:
    """Magic, length, CRC-32, then the entry in MessagePack: JSON would turn a NaN among the features into null."""
    body = _encoder.encode(entry)
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def read_frame(frame: bytes) -> Entry:
    """Raises `ValueError` for one that is damaged."""
    magic, length, crc = _HEADER.unpack_from(frame.ljust(_HEADER.size, b"\0"))
    body = frame[_HEADER.size :]
    if magic != _MAGIC or len(body) != length or zlib.crc32(body) != crc:
        raise ValueError("damaged entry")
    try:
        return _entries.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


class LedgerFile(SpoolFile):
    """`ledger.sqlite`: ids in one table and what was learned from in another, which is emptied from the front."""

    what: ClassVar[str] = "ledger"
    failure: ClassVar[type[NhmSchedError]] = LedgerError
    schema: ClassVar[str] = _SCHEMA
    page: ClassVar[int] = 4096

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        if connection.execute("SELECT 1 FROM ledger").fetchone() is None:
            connection.execute("INSERT OR IGNORE INTO ledger (one, id) VALUES (1, ?)", (secrets.token_hex(8),))
        return connection

    def _save_from(self, aside: Path, connection: sqlite3.Connection) -> int:
        """Ids and entries keep their numbers and the ledger its id, so that the table knows what it contains."""
        left = _Left(aside)
        connection.executemany(
            "INSERT OR IGNORE INTO outcomes (seq, decision_id, recorded_at) VALUES (?, ?, ?)", left.outcomes.values()
        )
        connection.executemany(
            "INSERT OR IGNORE INTO experiences (seq, frame) SELECT seq, ? FROM outcomes WHERE seq = ? AND"
            " decision_id = ?",
            [(frame, entry.seq, entry.experience.decision_id) for entry, frame in left.entries.values()],
        )
        if left.ledger:
            connection.execute("UPDATE ledger SET id = ? ", (left.ledger,))
        if left.saved:
            connection.execute("UPDATE ledger SET epoch = ?, seq = ?, stamp = ?", left.saved)
        last = max([left.last, *left.outcomes, left.saved[1] if left.saved else 0])
        connection.execute("DELETE FROM sqlite_sequence WHERE name = 'outcomes'")
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('outcomes', ?)", (last + _JUMP,))
        return len(left.outcomes)


class _Left:
    """What can be read of a damaged ledger: through SQLite, as far as that goes, and byte by byte."""

    def __init__(self, aside: Path) -> None:
        self.ledger, self.last = "", 0
        self.saved: tuple[int, int, str] | None = None
        self.outcomes: dict[int, tuple[int, str, float]] = {}
        self.entries: dict[int, tuple[Entry, bytes]] = {}
        connection = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            with contextlib.suppress(sqlite3.Error):
                self._head(connection)
            for seq, decision_id, recorded_at in _rows(connection, "seq, decision_id, recorded_at", "outcomes"):
                if isinstance(seq, int) and isinstance(decision_id, str) and isinstance(recorded_at, float):
                    self.outcomes[seq] = seq, decision_id, recorded_at
            for _, frame in _rows(connection, "seq, frame", "experiences"):
                self._keep(frame)
        for frame in _scanned(aside):
            self._keep(frame)

    def _head(self, connection: sqlite3.Connection) -> None:
        ledger, epoch, seq, stamp = connection.execute("SELECT id, epoch, seq, stamp FROM ledger").fetchone()
        self.ledger = str(ledger)
        if epoch is not None:
            self.saved = int(epoch), int(seq), str(stamp)
        self.last = int(connection.execute("SELECT max(seq) FROM sqlite_sequence").fetchone()[0] or 0)

    def _keep(self, frame: object) -> None:
        try:
            entry = read_frame(frame) if isinstance(frame, bytes) else None
        except ValueError:
            return
        if entry is None or (self.ledger and entry.ledger != self.ledger):
            return
        self.ledger = entry.ledger
        self.entries[entry.seq] = entry, bytes(frame)  # type: ignore[call-overload]
        self.outcomes.setdefault(entry.seq, (entry.seq, entry.experience.decision_id, entry.recorded_at))


def _rows(connection: sqlite3.Connection, columns: str, table: str) -> Iterator[tuple[object, ...]]:
    """The rows that SQLite can reach, from both ends: past a damaged page only the other way leads."""
    for order, compare, start in (("ASC", ">", 0), ("DESC", "<", 2**63 - 1)):
        at = start
        try:
            while True:
                found = connection.execute(
                    f"SELECT {columns} FROM {table} WHERE seq {compare} ? ORDER BY seq {order} LIMIT {_AT_ONCE}",  # noqa: S608 - constants
                    (at,),
                ).fetchall()
                yield from found
                if not found:
                    return
                at = found[-1][0]
        except sqlite3.Error:
            continue


def _scanned(aside: Path) -> Iterator[bytes]:
    for name in (aside, Path(f"{aside}-wal")):
        if not name.exists() or not name.stat().st_size:
            continue
        with name.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
            at = blob.find(_MAGIC)
            while at >= 0:
                if at + _HEADER.size <= len(blob):
                    length = _HEADER.unpack_from(blob, at)[1]
                    if length <= _LARGEST:
                        yield blob[at : at + _HEADER.size + length]
                at = blob.find(_MAGIC, at + 1)
