"""The on-disk spool in the host: records wait here, safe, until a drain has delivered them.

SQLite files in WAL mode. Several processes (and threads) may append at once; whoever drains reads batches in the order
of writing and acknowledges each when it has been stored. Durability: a plain `append` survives a crash or `kill -9` of
the process at any point after it returns; `append(..., sync=True)` also waits for the disk (fsync), so it survives a
power cut. A full file is sealed and another begun; a damaged one is renamed to `spool-<utc>.corrupt`, what can be read
of it moves to the file in use.

The folder must be on a local disk: SQLite's WAL does not work across network file systems.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.errors import SpoolError, SpoolFullError
from nhm_sched_plugin.store.frames import HEADER_BYTES, Record, check, decode, encode, kind_of, record_id
from nhm_sched_plugin.store.segments import Place, Segments, Tally, used
from nhm_sched_plugin.store.spool_file import FILE_NAME, identity, in_parts
from nhm_sched_plugin.types import Decision, RewardedOutcome

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["Batch", "Quarantined", "Spool", "SpoolSink", "SpooledRecord", "spool_of"]

log = logging.getLogger(__name__)

_LARGEST_FILE: Final = 64 * 1024 * 1024
_SMALLEST_FILE: Final = 1024 * 1024
_FILES: Final = 8
"""A spool at its limit has about so many files, or more of the largest size."""
_OUTCOMES_ONLY: Final = 16
"""This part of the limit is for outcomes alone: what came of a decision that is already safe must not be lost to newer
decisions."""


class SpooledRecord(msgspec.Struct, frozen=True, gc=False):
    """A record with its place in the spool and the time (Unix seconds) at which it was written there."""

    seq: int
    record: Record
    created: float


class Quarantined(msgspec.Struct, frozen=True):
    """A record that could not be written down, read back or delivered, with the reason."""

    kind: str
    record_id: str
    reason: str
    at: float
    frame: bytes


class Batch(msgspec.Struct, frozen=True):
    """Consecutive records of one file, oldest first; `ack` it once they are stored.

    `token` names its content: the same records in the same order have the same one, whoever reads them.
    """

    first_seq: int
    last_seq: int
    records: tuple[SpooledRecord, ...]
    place: Place
    token: str

    @property
    def decisions(self) -> list[tuple[Decision, float]]:
        return [(item.record, item.created) for item in self.records if isinstance(item.record, Decision)]

    @property
    def outcomes(self) -> list[tuple[RewardedOutcome, float]]:
        return [(item.record, item.created) for item in self.records if isinstance(item.record, RewardedOutcome)]


class Spool:
    """Records on disk. Opens on first use, so that making one never fails; every method raises only `SpoolError`.

    Args:
        path: folder for the spool's files; made when missing.
        max_bytes: what the files may hold; at the limit `append` raises, and accepts again after a drain. The last
            sixteenth of it is for outcomes alone.
        clock: Unix seconds, for the created stamps. Where it goes back, the stamps stay where they are until it has
            caught up: of two reports of one decision the later one counts, by its stamp.

    `salvaged`, `set_aside` and `refused` count, in this process, records saved from damaged files, damaged files
    renamed, and records that could not be written down and went to quarantine.
    """

    def __init__(self, path: Path, max_bytes: int = 1024 * 1024 * 1024, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.file_bytes = min(_LARGEST_FILE, max(max_bytes // _FILES, _SMALLEST_FILE))
        self.refused = 0
        self._clock = clock
        self._latest = 0.0
        self._clock_is_back = False
        self._files = Segments(self.path, clock)

    @property
    def salvaged(self) -> int:
        return self._files.active.salvaged

    @property
    def set_aside(self) -> int:
        return self._files.active.damaged

    # Writing

    def append(self, records: Sequence[Record], *, sync: bool = False) -> None:
        """Write the records in one transaction: when this returns, all of them are safe; when it raises, none is.

        With `sync` it returns after they are on the disk itself. A record that cannot be written down (say, an
        attribute of an unknown type) goes to quarantine and holds up nothing. Raises `SpoolFullError` when the spool
        is full and another `SpoolError` when the disk refuses; it works again as soon as the disk does.
        """
        if not records:
            return
        now = self._now()
        rows: list[tuple[str, str, bytes]] = []
        bad: list[tuple[str, str, bytes, str, float]] = []
        for record in records:
            try:
                rows.append((kind_of(record), record_id(record), encode(record, now)))
            except (TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
                bad.append(
                    (type(record).__name__, "", repr(record)[:10_000].encode("utf-8", "replace"), str(error), now)
                )
        total = sum(len(row[2]) for row in rows) + sum(len(row[2]) for row in bad)
        limit = self.max_bytes
        if any(row[0] == "decision" for row in rows):
            limit -= limit // _OUTCOMES_ONLY
        size = self._files.active.run(partial(self._write, rows=rows, bad=bad, total=total, limit=limit, sync=sync))
        if size > self.file_bytes:
            self._seal()
        if bad:
            self.refused += len(bad)
            log.error("%d records cannot be written down and are in quarantine: %s", len(bad), bad[0][3])

    def _write(
        self,
        connection: sqlite3.Connection,
        rows: list[tuple[str, str, bytes]],
        bad: list[tuple[str, str, bytes, str, float]],
        total: int,
        limit: int,
        sync: bool,
    ) -> int:
        self._files.active.synchronous(connection, sync)
        connection.execute("BEGIN IMMEDIATE")
        active = used(connection)
        taken = active + self._files.sealed_bytes()
        if taken + total > limit:
            raise SpoolFullError(
                f"spool is full: {taken / 2**20:.1f} MB of recording.spool_max_mb "
                f"{round(self.max_bytes / 2**20, 1):g} in {self.path}; run `nhm-sched drain` or raise the limit"
            )
        for part in in_parts(rows):
            values = ", ".join(["(?, ?, ?)"] * len(part))
            connection.execute(
                f"INSERT INTO records (kind, id, frame) VALUES {values}",  # noqa: S608 - placeholders only
                [value for row in part for value in row],
            )
        if bad:
            connection.executemany("INSERT INTO quarantine (kind, id, frame, reason, at) VALUES (?, ?, ?, ?, ?)", bad)
        connection.execute("COMMIT")
        return active + total

    def _now(self) -> float:
        """The clock, but never before what it said last."""
        now = self._clock()
        back = self._latest - now
        if back > 0:
            if not self._clock_is_back and back > 1:
                log.warning("the clock went back by %.0f s: records are stamped as before until it has caught up", back)
                self._clock_is_back = True
            return self._latest
        self._clock_is_back = False
        self._latest = now
        return now

    def _seal(self) -> None:
        try:
            self._files.seal()
        except SpoolError as error:  # what was appended is safe; the file is sealed at a later append
            log.warning("%s", error)

    # Reading

    def tally(self) -> Tally:
        """How many records wait for delivery (above 200,000 a file an upper bound, which costs no scan), and how many
        are in quarantine."""
        return self._files.tally()

    def pending(self) -> int:
        """Of `tally`, those that wait."""
        return self.tally().waiting

    def oldest(self) -> float | None:
        """When the oldest waiting record was written, Unix seconds; None for an empty spool."""
        for name in self._files.names():
            _, rows = self._rows(name, {}, 1)
            if rows:
                return check(rows[0][1])[1] if _whole(rows[0][1]) else None
        return None

    def size_bytes(self) -> int:
        """Bytes in use: what `max_bytes` limits."""
        return self._files.active.run(used) + self._files.sealed_bytes()

    def batches(self, size: int) -> Iterator[Batch]:
        """Everything that waits, oldest first, at most `size` records of one file at a time. Damaged records go to
        quarantine on the way.

        Holds no lock and no transaction between batches: hosts keep appending. Records appended meanwhile are included.
        """
        if size < 1:
            raise ValueError(f"batch size {size}: must be at least 1")
        read: dict[int, int] = {}  # how far, by the file's identity: one that is sealed meanwhile changes its name
        emptied: set[str] = set()  # sealed ones that stay for what is in quarantine
        while True:
            for name in self._files.names():
                place, rows = (Place(0, name), []) if name in emptied else self._rows(name, read, size)
                if rows:
                    break
                if name != FILE_NAME:
                    emptied.add(name)
            else:
                return
            read[place.identity] = rows[-1][0]
            good, bad = _decoded(rows)
            if bad:
                self.quarantine(bad, place)
            if good:
                yield Batch(rows[0][0], rows[-1][0], good, place, _token(rows))

    def _rows(self, name: str, read: Mapping[int, int], size: int) -> tuple[Place, list[tuple[int, bytes]]]:
        none: list[tuple[int, bytes]] = []
        return self._files.run(name, partial(_read, name=name, read=read, size=size), (Place(0, name), none))

    def ack(self, batch: Batch) -> None:
        """Forget a batch: its records are stored. Call it only after the insert has succeeded."""

        def delete(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM records WHERE seq BETWEEN ? AND ?", (batch.first_seq, batch.last_seq))
            if connection.execute("SELECT 1 FROM records LIMIT 1").fetchone() is not None:
                return False
            # Only now are the free pages at the end, where giving them back to the disk moves nothing.
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            return connection.execute("SELECT 1 FROM quarantine LIMIT 1").fetchone() is None

        done = self._files.run_at(batch.place, delete)
        if done is not None:
            name, empty = done
            if empty and name != FILE_NAME:
                self._files.remove(name)

    def only_drain(self) -> AbstractContextManager[None]:
        """Held by whoever delivers. Raises `SpoolError` when another process does already."""
        return self._files.only_drain()

    # Quarantine

    def quarantine(self, reasons: dict[int, str], place: Place) -> None:
        """Put records of one file (by their `seq`) aside with a reason, out of the way of the others."""

        def move(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            for seq, reason in reasons.items():
                connection.execute(
                    "INSERT INTO quarantine (kind, id, frame, reason, at) "
                    "SELECT kind, id, frame, ?, ? FROM records WHERE seq = ?",
                    (reason, self._clock(), seq),
                )
                connection.execute("DELETE FROM records WHERE seq = ?", (seq,))
            connection.execute("COMMIT")

        self._files.run_at(place, move)
        log.error("%d records are in quarantine in %s: %s", len(reasons), self.path, next(iter(reasons.values())))

    def quarantined(self) -> list[Quarantined]:
        """What is in quarantine, oldest first. Nothing is removed from there by itself."""
        none: list[tuple[str, str, str, float, bytes]] = []
        return [Quarantined(*row) for name in self._files.names() for row in self._files.run(name, _put_aside, none)]

    def quarantined_count(self) -> int:
        """Of `tally`, those in quarantine."""
        return self.tally().quarantined

    def retry_quarantined(self, ids: Collection[str] | None = None) -> int:
        """Put records from quarantine (all, or those of these ids) among the waiting ones again; how many.

        What is no whole record stays: it could not be delivered either.
        """

        def back(connection: sqlite3.Connection) -> int:
            moved = 0
            connection.execute("BEGIN IMMEDIATE")
            for seq, record, frame in connection.execute("SELECT seq, id, frame FROM quarantine").fetchall():
                if (ids is None or record in ids) and _whole(frame):
                    connection.execute(
                        "INSERT INTO records (kind, id, frame) SELECT kind, id, frame FROM quarantine WHERE seq = ?",
                        (seq,),
                    )
                    connection.execute("DELETE FROM quarantine WHERE seq = ?", (seq,))
                    moved += 1
            connection.execute("COMMIT")
            return moved

        return sum(self._files.run(name, back, 0) for name in self._files.names())

    def damaged_files(self) -> list[Path]:
        """Files that were set aside, in this process or before."""
        return sorted(path for path in self.path.glob("spool-*.corrupt"))

    def close(self) -> None:
        """Close the files; the next use opens them again."""
        self._files.close()


def spool_of(settings: Settings) -> Spool:
    """The spool that the settings mean."""
    return Spool(settings.spool_path, settings.recording.spool_max_mb * 1024 * 1024)


class SpoolSink:
    """The spool as a sink: the first one of every host. With `sync` each write waits for the disk."""

    name = "spool"

    def __init__(self, spool: Spool, *, sync: bool = False) -> None:
        self.spool = spool
        self._sync = sync

    def open(self) -> None:
        """Open the file and look it over, so that the first records need not wait for it. What is wrong shows later."""
        with suppress(SpoolError):
            self.spool.pending()

    def write(self, records: Sequence[Record]) -> None:
        """Make the batch durable. Raises `SpoolError`: nothing of it was written, offer it again."""
        self.spool.append(records, sync=self._sync)

    def close(self) -> None:
        self.spool.close()


def _read(
    connection: sqlite3.Connection, name: str, read: Mapping[int, int], size: int
) -> tuple[Place, list[tuple[int, bytes]]]:
    place = Place(identity(connection), name)
    return place, connection.execute(
        "SELECT seq, frame FROM records WHERE seq > ? ORDER BY seq LIMIT ?", (read.get(place.identity, 0), size)
    ).fetchall()


def _decoded(rows: Sequence[tuple[int, bytes]]) -> tuple[tuple[SpooledRecord, ...], dict[int, str]]:
    good: list[SpooledRecord] = []
    bad: dict[int, str] = {}
    for seq, frame in rows:
        try:
            record, created = decode(frame)
        except (ValueError, TypeError) as error:
            bad[seq] = str(error)
        else:
            good.append(SpooledRecord(seq, record, created))
    return tuple(good), bad


def _token(rows: Sequence[tuple[int, bytes]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for _, frame in rows:
        digest.update(frame[:HEADER_BYTES])  # holds the checksum of the rest
    return digest.hexdigest()


def _put_aside(connection: sqlite3.Connection) -> list[tuple[str, str, str, float, bytes]]:
    return connection.execute("SELECT kind, id, reason, at, frame FROM quarantine ORDER BY seq").fetchall()


def _whole(frame: bytes) -> bool:
    try:
        check(frame)
    except (ValueError, TypeError):
        return False
    return True
