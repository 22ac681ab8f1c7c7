"""The ledger: every outcome that an agent was told of, once, in the one order in which all its processes learn.

One SQLite file in WAL mode under `settings.ledger_path`, on a local disk. When `append` returns, what it was given is
on the disk itself (`synchronous=FULL`: each commit waits for it) and survives `kill -9` of every process and a power
cut. The unique decision id makes an outcome count once, across processes and restarts; its number `seq` is its place
in the order.

What a saved Q-table contains need not be kept. The last `KEPT` outcomes are all the same, so that a table made
meanwhile from an older one can catch up. The ids stay for `keep_days`, but at most `MOST_IDS` of them.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nhm_sched_plugin.agent.ledger_file import Entry, LedgerFile, frame_of, read_frame
from nhm_sched_plugin.policy.qtable import Mark
from nhm_sched_plugin.store.spool_file import in_parts
from nhm_sched_plugin.types import Experience

__all__ = ["KEPT", "MOST_IDS", "Ledger", "Saved", "mark_of"]

KEPT: Final = 10_000
"""Outcomes that a saved table contains and that can be learned from all the same."""
MOST_IDS: Final = 10_000_000
"""About 100 bytes each."""
_FORGOTTEN_AT_ONCE: Final = 20_000
_DAY: Final = 86_400.0


class Saved(NamedTuple):
    """The Q-table file that the processes of an agent agree on."""

    epoch: int
    """One more whenever they took over a table that somebody else wrote."""
    seq: int
    """The file contains the outcomes up to here."""
    stamp: tuple[int, int, int]
    """How the file looks (`files.stamp`): another one was written by somebody else."""


class Ledger:
    """Opens on first use; every method raises only `LedgerError`. Threads and processes may share it; forks too.

    Args:
        path: folder of the file; made when missing.
        keep_days: how long decision ids are known.
        clock: Unix seconds.
    """

    def __init__(self, path: Path, keep_days: float = 30.0, clock: Callable[[], float] = time.time) -> None:
        self._keep_s, self._clock = keep_days * _DAY, clock
        self._file = LedgerFile(path, clock)

    @property
    def path(self) -> Path:
        return self._file.file

    @property
    def id(self) -> str:
        """Names this ledger in the tables that contain some of it."""
        return self._file.run(_id)

    @property
    def inode(self) -> tuple[int, int]:
        """Changes when the file was damaged and replaced, by whichever process."""
        return self._file.inode

    @property
    def damaged(self) -> int:
        """Damaged files that this process has set aside."""
        return self._file.damaged

    def append(self, experiences: Sequence[Experience]) -> list[tuple[int, bool]]:
        """Write them down in one transaction; returns each one's number, and whether it is new.

        When it returns all are safe; when it raises, none was recorded. One whose decision id is known has the number
        that it got then.
        """
        return self._file.run(lambda connection: self._append(connection, experiences)) if experiences else []

    def _append(self, connection: sqlite3.Connection, experiences: Sequence[Experience]) -> list[tuple[int, bool]]:
        self._file.synchronous(connection, True)
        with _transaction(connection):
            ids = [experience.decision_id for experience in experiences]
            known = dict(_known(connection, ids))
            fresh: dict[str, Experience] = {}
            for each in experiences:
                if each.decision_id not in known:
                    fresh.setdefault(each.decision_id, each)
            if fresh:
                self._insert(connection, fresh, known)
        return [(known[decision_id], fresh.pop(decision_id, None) is not None) for decision_id in ids]

    def _insert(self, connection: sqlite3.Connection, fresh: dict[str, Experience], known: dict[str, int]) -> None:
        """In the order of arrival; adds their numbers to `known`."""
        seq, ledger, now = _last(connection), _id(connection), self._clock()
        outcomes: list[tuple[int | str | float, ...]] = []
        frames: list[tuple[int | bytes, ...]] = []
        for decision_id, experience in fresh.items():
            seq += 1
            known[decision_id] = seq
            outcomes.append((seq, decision_id, now))
            frames.append((seq, frame_of(Entry(ledger, seq, now, experience))))
        _insert_many(connection, "outcomes (seq, decision_id, recorded_at)", outcomes)
        _insert_many(connection, "experiences (seq, frame)", frames)

    def after(self, seq: int, limit: int = 1000) -> list[tuple[int, Experience]]:
        """What was recorded after this number, in order; empty at the end. Damaged entries are left out."""
        found: list[tuple[int, Experience]] = []
        while True:
            rows = self._file.run(
                lambda connection: connection.execute(
                    "SELECT seq, frame FROM experiences WHERE seq > ? ORDER BY seq LIMIT ?",
                    (seq, limit),  # noqa: B023 - runs at once
                ).fetchall()
            )
            for number, frame in rows:
                with contextlib.suppress(ValueError):
                    found.append((number, read_frame(frame).experience))
            if found or not rows:
                return found
            seq = rows[-1][0]

    def last(self) -> int:
        """The number given last; 0 for an empty ledger."""
        return self._file.run(_last)

    def mark(self) -> Mark:
        """Where the ledger stands."""
        return self._file.run(lambda connection: Mark(_id(connection), _last(connection)))

    def dropped(self) -> int:
        """Up to where nothing is left to learn from: only the ids are."""

        def find(connection: sqlite3.Connection) -> int:
            first = connection.execute("SELECT min(seq) FROM experiences").fetchone()[0]
            return _last(connection) if first is None else int(first) - 1

        return self._file.run(find)

    def saved(self) -> Saved | None:
        """The Q-table file that counts; None before the first."""

        def find(connection: sqlite3.Connection) -> Saved | None:
            epoch, seq, stamp = connection.execute("SELECT epoch, seq, stamp FROM ledger").fetchone()
            if epoch is None:
                return None
            modified, size, inode = (int(part) for part in stamp.split())
            return Saved(int(epoch), int(seq), (modified, size, inode))

        return self._file.run(find)

    def note(self, saved: Saved) -> None:
        """From now on this Q-table file counts. What need no longer be kept goes."""

        def write(connection: sqlite3.Connection) -> None:
            self._file.synchronous(connection, True)
            with _transaction(connection):
                connection.execute(
                    "UPDATE ledger SET epoch = ?, seq = ?, stamp = ?",
                    (saved.epoch, saved.seq, " ".join(str(part) for part in saved.stamp)),
                )
                connection.execute("DELETE FROM experiences WHERE seq <= ?", (saved.seq - KEPT,))
                self._forget(connection, saved.seq - KEPT)

        self._file.run(write)

    def learned(self, numbers: Sequence[int]) -> None:
        """What these stand for is durable elsewhere: only their ids are kept."""

        def write(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.executemany("DELETE FROM experiences WHERE seq = ?", [(number,) for number in numbers])
                self._forget(connection, _last(connection) - KEPT)

        self._file.run(write)

    def _forget(self, connection: sqlite3.Connection, contained: int) -> None:
        """Ids from the front, as long as they are too old, and those that are too many; not more than some at once.

        Never the last `KEPT`, so that a clock that jumps ahead forgets no outcome that may still be on its way again.
        """
        first = connection.execute("SELECT min(seq) FROM outcomes").fetchone()[0]
        if first is None:
            return
        most = min(contained, first + _FORGOTTEN_AT_ONCE)
        young = connection.execute(
            "SELECT seq FROM outcomes WHERE seq <= ? AND recorded_at >= ? ORDER BY seq LIMIT 1",
            (most, self._clock() - self._keep_s),
        ).fetchone()
        until = max(most if young is None else young[0] - 1, min(most, _last(connection) - MOST_IDS))
        connection.execute("DELETE FROM outcomes WHERE seq <= ?", (until,))

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()


def mark_of(path: Path) -> Mark | None:
    """Where the ledger in this folder stands; None if there is none. Raises `LedgerError`."""
    ledger = Ledger(path)
    if not ledger.path.exists():
        return None
    with contextlib.closing(ledger):
        return ledger.mark()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """The file rolls back what was not committed."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _id(connection: sqlite3.Connection) -> str:
    return str(connection.execute("SELECT id FROM ledger").fetchone()[0])


def _last(connection: sqlite3.Connection) -> int:
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outcomes'").fetchone()
    return 0 if found is None else int(found[0])


def _known(connection: sqlite3.Connection, ids: list[str]) -> Iterator[tuple[str, int]]:
    for part in in_parts(ids):
        places = ", ".join("?" * len(part))
        yield from connection.execute(
            f"SELECT decision_id, seq FROM outcomes WHERE decision_id IN ({places})",  # noqa: S608 - placeholders only
            part,
        )


def _insert_many(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    for part in in_parts(rows):
        row = f"({', '.join('?' * len(part[0]))})"
        connection.execute(
            f"INSERT INTO {into} VALUES {', '.join([row] * len(part))}",  # noqa: S608 - placeholders only
            [value for values in part for value in values],
        )
