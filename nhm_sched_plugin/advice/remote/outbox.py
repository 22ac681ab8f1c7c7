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

__all__ = ["Outbox", "Waiting"]

KEPT_ASIDE: Final = 1000
"""Outcomes that the agent refused; of more, the oldest are forgotten."""
_DROPPED_AT_ONCE: Final = 256


class Waiting(NamedTuple):
    seq: int
    experience: Experience


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
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The turn is the parent's; its descriptor must not stay open here, or the turn would outlive the parent."""
        turn, self._turn = self._turn, None
        if turn is not None:
            os.close(turn)

    def put(self, experiences: Sequence[Experience]) -> int:
        """Keep them; when this returns they survive `kill -9`. Returns how many older ones had to go for them."""
        now = self._clock()
        rows = [("experience", one.decision_id, encode(one, now)) for one in experiences]
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
            connection.executemany("DELETE FROM records WHERE seq = ?", [(seq,) for seq in seqs])
            connection.execute("COMMIT")
            if connection.execute("SELECT 1 FROM records LIMIT 1").fetchone() is None:
                connection.execute("PRAGMA incremental_vacuum").fetchall()

        if seqs:
            self._file.run(delete)

    def set_aside(self, reasons: dict[int, str]) -> None:
        """Out of the way of the others, with the reason: nobody will ever take these."""

        def move(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            for seq, reason in reasons.items():
                connection.execute(
                    "INSERT INTO quarantine (kind, id, frame, reason, at) "
                    "SELECT kind, id, frame, ?, ? FROM records WHERE seq = ?",
                    (reason, self._clock(), seq),
                )
                connection.execute("DELETE FROM records WHERE seq = ?", (seq,))
            connection.execute(
                "DELETE FROM quarantine WHERE seq <= (SELECT max(seq) FROM quarantine) - ?", (KEPT_ASIDE,)
            )
            connection.execute("COMMIT")

        self._file.run(move)

    def waiting(self) -> int:
        """How many there are."""
        return self._count("records")

    def refused(self) -> list[tuple[str, str]]:
        """Decision id and reason of those set aside, oldest first."""
        return self._file.run(
            lambda connection: connection.execute("SELECT id, reason FROM quarantine ORDER BY seq").fetchall()
        )

    def _count(self, table: str) -> int:
        query = f"SELECT count(*) FROM {table}"  # noqa: S608 - one of our own two names
        return self._file.run(lambda connection: int(connection.execute(query).fetchone()[0]))

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
