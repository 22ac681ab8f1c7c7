"""Outcomes on their way to the agent, on disk: what is in here survives a crash, a restart and an agent that is away.

One SQLite file (the spool's kind, so it takes forks, several processes and damage as the spool does). Any process of
the host puts in; one at a time takes out, in the order in which they were put in. When the file has reached its limit
the oldest go: the newest say most about the pool as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.store.frames import decode_experience, encode
from nhm_sched_plugin.store.spool_file import SpoolFile
from nhm_sched_plugin.types import Experience

__all__ = ["Outbox", "Waiting", "Written", "written"]

KEPT_ASIDE: Final = 1000
"""Outcomes that the agent refused; of more, the oldest are forgotten."""
LARGEST: Final = 512 * 1024
"""Bytes of one outcome, more than the agent takes of any: a larger one would cost many others their place."""
_DROPPED_AT_ONCE: Final = 256
_COUNTED_FOR_S: Final = 60.0


class Written(NamedTuple):
    """An outcome as it is kept."""

    decision_id: str
    frame: bytes


class Waiting(NamedTuple):
    seq: int
    experience: Experience


class _Count(NamedTuple):
    inode: tuple[int, int]
    until: float
    """Monotonic seconds: then it is counted again, since other processes may have dropped some."""
    waiting: int
    last: int
    """What has a higher `seq` is not counted yet."""


_NOTHING: Final = _Count((0, 0), 0.0, 0, 0)


def written(experience: Experience, now: float) -> Written:
    """The outcome as it is kept; `now` in Unix seconds. Raises `ValueError` that says why it cannot be written down."""
    try:
        frame = encode(experience, now)
        decode_experience(frame)  # what can be written and not read would be set aside later, and nobody told
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if len(frame) > LARGEST:
        raise ValueError(f"it takes {len(frame)} bytes; at most {LARGEST} are kept")
    return Written(experience.decision_id, frame)


class Outbox:
    """Thread-safe. Opens on first use, so that making one never fails; every method raises only `SpoolError`.

    Args:
        path: folder; made when missing. On a local disk, as the spool's.
        max_bytes: what the file may hold.
    """

    def __init__(self, path: Path, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.path, self._max_bytes, self._clock = path, max_bytes, clock
        self._file = SpoolFile(path, clock)
        self._turn: int | None = None
        self._counted = _NOTHING
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The turn is the parent's; its descriptor must not stay open here, or the turn would outlive the parent."""
        turn, self._turn = self._turn, None
        if turn is not None:
            os.close(turn)

    def put(self, outcomes: Sequence[Written]) -> int:
        """Keep them; when this returns they survive `kill -9`. Returns how many older ones had to go for them."""
        rows = [("experience", *one) for one in outcomes]
        more = sum(len(row[2]) for row in rows)

        def write(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            dropped = 0
            while _used(connection) + more > self._max_bytes:
                gone = connection.execute(
                    "DELETE FROM records WHERE seq IN (SELECT seq FROM records ORDER BY seq LIMIT ?)",
                    (_DROPPED_AT_ONCE,),
                ).rowcount
                if not gone:
                    break
                dropped += gone
            connection.executemany("INSERT INTO records (kind, id, frame) VALUES (?, ?, ?)", rows)
            connection.execute("COMMIT")
            if dropped:
                self._counted = _NOTHING
            return dropped

        return self._file.run(write)

    def first(self, count: int, after: int = 0) -> list[Waiting]:
        """The oldest ones beyond `after`. Damaged records are set aside on the way."""
        rows = self._file.run(
            lambda connection: connection.execute(
                "SELECT seq, frame FROM records WHERE seq > ? ORDER BY seq LIMIT ?", (after, count)
            ).fetchall()
        )
        found: list[Waiting] = []
        bad: dict[int, str] = {}
        for seq, frame in rows:
            try:
                found.append(Waiting(seq, decode_experience(frame)))
            except (ValueError, TypeError) as error:
                bad[seq] = str(error)
        if bad:
            self.set_aside(bad)
        return found if found or not rows else self.first(count, rows[-1][0])

    def done(self, seqs: Sequence[int]) -> None:
        """Forget these: the agent has them."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            self._count(connection)
            gone = connection.executemany("DELETE FROM records WHERE seq = ?", [(seq,) for seq in seqs]).rowcount
            connection.execute("COMMIT")
            self._gone(gone)
            if connection.execute("SELECT 1 FROM records LIMIT 1").fetchone() is None:
                connection.execute("PRAGMA incremental_vacuum").fetchall()

        if seqs:
            self._file.run(delete)

    def set_aside(self, reasons: dict[int, str]) -> None:
        """Out of the way of the others, with the reason: nobody will ever take these."""

        def move(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            self._count(connection)
            gone = 0
            for seq, reason in reasons.items():
                connection.execute(
                    "INSERT INTO quarantine (kind, id, frame, reason, at) "
                    "SELECT kind, id, frame, ?, ? FROM records WHERE seq = ?",
                    (reason, self._clock(), seq),
                )
                gone += connection.execute("DELETE FROM records WHERE seq = ?", (seq,)).rowcount
            connection.execute(
                "DELETE FROM quarantine WHERE seq <= (SELECT max(seq) FROM quarantine) - ?", (KEPT_ASIDE,)
            )
            connection.execute("COMMIT")
            self._gone(gone)

        self._file.run(move)

    def waiting(self) -> int:
        """How many there are. Cheap: what is new is counted, and all of them once a minute."""
        return self._file.run(self._count)

    def _count(self, connection: sqlite3.Connection) -> int:
        known, now = self._counted, time.monotonic()
        if known.inode != self._file.inode or now > known.until:
            known = _Count(self._file.inode, now + _COUNTED_FOR_S, 0, 0)
        new, last = connection.execute("SELECT count(*), max(seq) FROM records WHERE seq > ?", (known.last,)).fetchone()
        self._counted = known._replace(waiting=known.waiting + new, last=known.last if last is None else last)
        return self._counted.waiting

    def _gone(self, number: int) -> None:
        self._counted = self._counted._replace(waiting=self._counted.waiting - number)

    def refused(self) -> list[tuple[str, str]]:
        """Decision id and reason of those set aside, oldest first."""
        return self._file.run(
            lambda connection: connection.execute("SELECT id, reason FROM quarantine ORDER BY seq").fetchall()
        )

    def take_turn(self) -> bool:
        """Be the one process that takes out; False while it is another's. Kept until `close` or the process ends."""
        if self._turn is not None:
            return True
        with contextlib.suppress(OSError):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            turn = os.open(self.path / "delivery.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(turn)
                return False
            self._turn = turn
            return True
        return False

    def close(self) -> None:
        """Close the file and give up the turn; the next use opens it again."""
        turn, self._turn = self._turn, None
        if turn is not None:
            os.close(turn)
        self._file.close()


def batches(outbox: Outbox, size: int) -> Iterator[list[Waiting]]:
    """Everything that waits, `size` at a time; what stays in the box is not given out twice."""
    after = 0
    while found := outbox.first(size, after):
        after = found[-1].seq
        yield found


def _used(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
