"""The on-disk spool in the host: records wait here, safe, until `nhm-sched drain` has delivered them.

One SQLite file in WAL mode. Several processes (and threads) may append at once; whoever drains reads batches in the
order of writing and acknowledges each when it has been stored. Durability: a plain `append` survives a crash or
`kill -9` of the process at any point after it returns; `append(..., sync=True)` also waits for the disk (fsync), so it
survives a power cut. A damaged file is renamed to `spool-<utc>.corrupt`, what can be read of it moves to a new file.

The folder must be on a local disk: SQLite's WAL does not work across network file systems.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from nhm_sched_plugin.errors import SpoolError
from nhm_sched_plugin.store.frames import Record, check, decode, encode, kind_of, record_id
from nhm_sched_plugin.store.spool_file import SpoolFile
from nhm_sched_plugin.types import Decision, RewardedOutcome

__all__ = ["Batch", "Quarantined", "Spool", "SpoolSink", "SpooledRecord"]

log = logging.getLogger(__name__)

_ROWS_AT_ONCE: Final = (256, 32, 4, 1)
"""Rows a statement. sqlite3 gives the interpreter lock up at each statement and has to win it back from a busy host, so
few statements; and few different ones, since each prepared one keeps memory."""
_COUNTED_UP_TO: Final = 200_000


class SpooledRecord(msgspec.Struct, frozen=True):
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
    """Consecutive records, oldest first; `ack` it once they are stored."""

    first_seq: int
    last_seq: int
    records: tuple[SpooledRecord, ...]

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
        max_bytes: what the file may hold; at the limit `append` raises, and accepts again after a drain.
        clock: Unix seconds, for the created stamps.

    `salvaged`, `set_aside` and `refused` count, in this process, records saved from damaged files, damaged files
    renamed, and records that could not be written down and went to quarantine.
    """

    def __init__(self, path: Path, max_bytes: int = 1024 * 1024 * 1024, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.refused = 0
        self._clock = clock
        self._file = SpoolFile(self.path, clock)

    @property
    def salvaged(self) -> int:
        return self._file.salvaged

    @property
    def set_aside(self) -> int:
        return self._file.damaged

    # Writing

    def append(self, records: Sequence[Record], *, sync: bool = False) -> None:
        """Write the records in one transaction: when this returns, all of them are safe; when it raises, none is.

        With `sync` it returns after they are on the disk itself. A record that cannot be written down (say, an
        attribute of an unknown type) goes to quarantine and holds up nothing. Raises `SpoolError` when the spool is
        full or the disk refuses; it works again as soon as the disk does.
        """
        if not records:
            return
        now = self._clock()
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

        def write(connection: sqlite3.Connection) -> None:
            self._file.synchronous(connection, sync)
            connection.execute("BEGIN IMMEDIATE")
            if _used(connection) + total > self.max_bytes:
                raise SpoolError(
                    f"spool is full: {_used(connection) / 2**20:.1f} MB of recording.spool_max_mb "
                    f"{round(self.max_bytes / 2**20, 1):g} in {self.path}; run `nhm-sched drain` or raise the limit"
                )
            first = 0
            for size in _ROWS_AT_ONCE:
                while len(rows) - first >= size:
                    values = ", ".join(["(?, ?, ?)"] * size)
                    connection.execute(
                        f"INSERT INTO records (kind, id, frame) VALUES {values}",  # noqa: S608 - placeholders only
                        [value for row in rows[first : first + size] for value in row],
                    )
                    first += size
            connection.executemany("INSERT INTO quarantine (kind, id, frame, reason, at) VALUES (?, ?, ?, ?, ?)", bad)
            connection.execute("COMMIT")

        self._file.run(write)
        if bad:
            self.refused += len(bad)
            log.error("%d records cannot be written down and are in quarantine: %s", len(bad), bad[0][3])

    # Reading

    def pending(self) -> int:
        """Records that wait for delivery; above 200,000 an upper bound, which costs no scan."""

        def count(connection: sqlite3.Connection) -> int:
            low, high = connection.execute(
                "SELECT (SELECT min(seq) FROM records), (SELECT max(seq) FROM records)"
            ).fetchone()
            if low is None:
                return 0
            span = int(high - low + 1)
            if span > _COUNTED_UP_TO:
                return span
            return int(connection.execute("SELECT count(*) FROM records").fetchone()[0])

        return self._file.run(count)

    def oldest(self) -> float | None:
        """When the oldest waiting record was written, Unix seconds; None for an empty spool."""

        def first(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT frame FROM records ORDER BY seq LIMIT 1").fetchone()
            return row[0] if row else None

        frame = self._file.run(first)
        if frame is None:
            return None
        try:
            return check(frame)[1]
        except ValueError:
            return None

    def size_bytes(self) -> int:
        """Bytes in use: what `max_bytes` limits."""
        return self._file.run(_used)

    def batches(self, size: int) -> Iterator[Batch]:
        """Everything that waits, oldest first, `size` records at a time. Damaged records go to quarantine on the way.

        Holds no lock and no transaction between batches: hosts keep appending. Records appended meanwhile are included.
        """
        if size < 1:
            raise ValueError(f"batch size {size}: must be at least 1")
        after = 0
        while True:
            rows = self._file.run(partial(_read, after=after, size=size))
            if not rows:
                return
            after = rows[-1][0]
            good: list[SpooledRecord] = []
            bad: dict[int, str] = {}
            for seq, frame in rows:
                try:
                    record, created = decode(frame)
                except (ValueError, TypeError) as error:
                    bad[seq] = str(error)
                else:
                    good.append(SpooledRecord(seq, record, created))
            if bad:
                self.quarantine(bad)
            if good:
                yield Batch(rows[0][0], after, tuple(good))

    def ack(self, batch: Batch) -> None:
        """Forget a batch: its records are stored. Call it only after the insert has succeeded."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM records WHERE seq BETWEEN ? AND ?", (batch.first_seq, batch.last_seq))
            if connection.execute("SELECT 1 FROM records LIMIT 1").fetchone() is None:
                # Only now are the free pages at the end, where giving them back to the disk moves nothing.
                connection.execute("PRAGMA incremental_vacuum").fetchall()

        self._file.run(delete)

    def quarantine(self, reasons: dict[int, str]) -> None:
        """Put records (by their `seq`) aside with a reason, out of the way of the others."""

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

        self._file.run(move)
        log.error("%d records are in quarantine in %s: %s", len(reasons), self.path, next(iter(reasons.values())))

    def quarantined(self) -> list[Quarantined]:
        """What is in quarantine, oldest first. Nothing is removed from there by itself."""
        rows = self._file.run(
            lambda connection: connection.execute(
                "SELECT kind, id, reason, at, frame FROM quarantine ORDER BY seq"
            ).fetchall()
        )
        return [Quarantined(*row) for row in rows]

    def quarantined_count(self) -> int:
        """How many records are in quarantine."""
        return self._file.run(lambda c: int(c.execute("SELECT count(*) FROM quarantine").fetchone()[0]))

    def damaged_files(self) -> list[Path]:
        """Files that were set aside, in this process or before."""
        return sorted(path for path in self.path.glob("spool-*.corrupt"))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()


class SpoolSink:
    """The spool as a sink: the first one of every host. With `sync` each write waits for the disk."""

    name = "spool"

    def __init__(self, spool: Spool, *, sync: bool = False) -> None:
        self.spool = spool
        self._sync = sync

    def write(self, records: Sequence[Record]) -> None:
        """Make the batch durable. Raises `SpoolError`: nothing of it was written, offer it again."""
        self.spool.append(records, sync=self._sync)

    def close(self) -> None:
        self.spool.close()


def _read(connection: sqlite3.Connection, after: int, size: int) -> list[tuple[int, bytes]]:
    return connection.execute(
        "SELECT seq, frame FROM records WHERE seq > ? ORDER BY seq LIMIT ?", (after, size)
    ).fetchall()


def _used(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
