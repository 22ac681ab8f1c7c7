"""Everything about some tickets, out of every place where records are: the database, the spool, its quarantine.

What belongs to a ticket is what carries its id, and the decisions and outcomes that belong to those by `decision_id`.
Where `recording.hash_fields` holds the id back, its hash is looked for as well as the id itself.

Files that `ingest` has rejected rows to, exports and backups are not known here and not touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.errors import SpoolError
from nhm_sched_plugin.pseudonyms import Pseudonyms
from nhm_sched_plugin.store.frames import decode
from nhm_sched_plugin.types import Decision

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Erased", "erase"]

_BATCH: Final = 1000
_BUSY_S: Final = 30.0
_BY_TICKET: Final = ("execution_logs", "scheduling_decisions_raw", "scheduling_outcomes")


class Erased(msgspec.Struct, frozen=True):
    """One place: a table, or a file of the spool. `left` is counted anew afterwards."""

    place: str
    found: int
    removed: int
    left: int


class _Wanted(msgspec.Struct):
    """The names that tickets may be written down under, and the decisions about them."""

    tickets: frozenset[str]
    decisions: set[str]


def erase(
    store: Store,
    spool: Path,
    tickets: Sequence[str],
    *,
    hidden: Pseudonyms | None = None,
    dry_run: bool = False,
) -> list[Erased]:
    """Remove all records of these tickets; the places that held some, and whether any are left. Repeating it is safe.

    Args:
        store: an initialised store.
        spool: folder of the spool, which hosts may go on writing to.
        tickets: their ids, as the orchestrator calls them.
        hidden: what ids are hashed with, when they are.
        dry_run: only count.

    Raises `StoreError` and `SpoolError`; what was removed until then stays removed.
    """
    names = frozenset(tickets) | (frozenset(map(hidden.of, tickets)) if hidden is not None else frozenset())
    wanted = _Wanted(names, set())
    for batch in _batches(sorted(names)):
        wanted.decisions |= _decisions(store, batch)
    for file in sorted(spool.glob("*.sqlite")):
        _spooled(file, wanted, remove=False)  # an outcome may carry no ticket, and stand in an earlier file
    # The spool first: what is drained meanwhile would come into the database after it has been searched.
    # Twice, since hosts go on writing, and may begin another file meanwhile.
    result = [
        one
        for _ in range(1 if dry_run else 2)
        for file in sorted(spool.glob("*.sqlite"))
        for one in _from_file(file, wanted, dry_run=dry_run)
    ]
    result += [one for file in sorted(spool.glob("*.corrupt")) for one in _from_damaged(file, wanted, dry_run=dry_run)]
    for batch in _batches(sorted(names)):
        wanted.decisions |= _decisions(store, batch)
    result += _from_database(store, wanted, dry_run=dry_run)
    return result


# The database


def _decisions(store: Store, tickets: Sequence[str]) -> set[str]:
    found = " UNION DISTINCT ".join(
        f"SELECT decision_id FROM {store.database}.{table} WHERE ticket_id IN {{tickets:Array(String)}}"  # noqa: S608
        for table in _BY_TICKET
    )
    rows = store.rows(found, {"tickets": list(tickets)}, name="erase")
    return {str(row[0]) for row in rows if row[0]}


def _from_database(store: Store, wanted: _Wanted, *, dry_run: bool) -> Iterator[Erased]:
    either = "ticket_id IN {tickets:Array(String)} OR decision_id IN {decisions:Array(String)}"
    labels = "hasAny(mapValues(labels), {tickets:Array(String)})"
    for table in (*reversed(_BY_TICKET), "telemetry_metrics"):
        place, condition = f"{store.database}.{table}", labels if table == "telemetry_metrics" else either
        found = left = 0
        for ids in _pairs(wanted):
            count = _count(store, place, condition, ids)
            found += count
            if count and not dry_run:
                # Every replica has done it when this returns.
                store.command(
                    f"ALTER TABLE {place} DELETE WHERE {condition} SETTINGS mutations_sync = 2", ids, name="erase"
                )
                count = _count(store, place, condition, ids)
            left += count
        if found:
            yield Erased(f"table {place}", found, found - left, left)


def _pairs(wanted: _Wanted) -> Iterator[dict[str, list[str]]]:
    """Tickets and decisions, so many at a time: over HTTP they travel in the address."""
    batches = zip_longest(_batches(sorted(wanted.tickets)), _batches(sorted(wanted.decisions)))
    for tickets, decisions in batches:
        yield {"tickets": tickets or [], "decisions": decisions or []}


def _count(store: Store, place: str, condition: str, ids: dict[str, list[str]]) -> int:
    sql = f"SELECT count() FROM {place} WHERE {condition}"  # noqa: S608 - names of our own, values as parameters
    return int(store.rows(sql, ids, name="erase")[0][0])


def _batches(ids: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _BATCH):
        yield list(ids[start : start + _BATCH])


# The spool


def _from_file(file: Path, wanted: _Wanted, *, dry_run: bool) -> Iterator[Erased]:
    found = _spooled(file, wanted, remove=not dry_run)
    if found:
        left = found if dry_run else _spooled(file, wanted, remove=False)
        yield Erased(f"spool {file.name}", found, found - left, left)


def _spooled(file: Path, wanted: _Wanted, *, remove: bool) -> int:
    """How many records of the file belong to the tickets; their decisions are noted."""
    with _opened(file) as connection:
        if connection is None:
            return 0
        connection.execute("PRAGMA secure_delete = ON")  # the bytes are overwritten, not only let go
        connection.execute("BEGIN IMMEDIATE" if remove else "BEGIN")
        hits: dict[str, list[int]] = {}
        for table in ("records", "quarantine"):
            rows = connection.execute(f"SELECT seq, id, frame FROM {table} ORDER BY seq")  # noqa: S608
            hits[table] = [seq for seq, record_id, frame in rows if _belongs(record_id, frame, wanted)]
            if remove:
                connection.executemany(
                    f"DELETE FROM {table} WHERE seq = ?",  # noqa: S608
                    [(seq,) for seq in hits[table]],
                )
        connection.execute("COMMIT")
        if remove and any(hits.values()):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return sum(map(len, hits.values()))


def _belongs(record_id: str | None, frame: bytes, wanted: _Wanted) -> bool:
    if record_id in wanted.decisions:
        return True
    if not any(name.encode("utf-8", "surrogatepass") in frame for name in wanted.tickets):
        return False
    try:
        record, _ = decode(frame)
    except ValueError:
        return True  # it cannot be told what else it is, and it holds the id
    about = record if isinstance(record, Decision) else record.outcome
    if about.ticket_id not in wanted.tickets:
        return False
    wanted.decisions.add(about.decision_id)
    return True


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection | None]:
    """The file, under the lock that keeps other processes from setting it aside; None when it is gone by now."""
    try:
        lock = os.open(file.parent / "spool.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not file.exists():
                yield None
                return
            # Without `mode=rw` a file that is drained and deleted just now would be made anew.
            connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", _BUSY_S, isolation_level=None, uri=True)
            try:
                yield connection
            finally:
                connection.close()
        finally:
            os.close(lock)
    except (sqlite3.Error, OSError) as error:
        raise SpoolError(f"spool {file} cannot be searched: {error}; run the same command again") from error


def _from_damaged(file: Path, wanted: _Wanted, *, dry_run: bool) -> Iterator[Erased]:
    """A file that was set aside goes as a whole: what was readable of it has been saved long ago."""
    try:
        if not _holds(file, wanted):
            return
        if not dry_run:
            file.unlink()
    except OSError as error:
        raise SpoolError(f"{file} cannot be removed: {error.strerror or error}") from error
    yield Erased(f"damaged file {file.name}", 1, int(not dry_run), int(dry_run))


def _holds(file: Path, wanted: _Wanted) -> bool:
    if not file.stat().st_size:
        return False
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(
            content.find(name.encode("utf-8", "surrogatepass")) >= 0 for name in wanted.tickets | wanted.decisions
        )
