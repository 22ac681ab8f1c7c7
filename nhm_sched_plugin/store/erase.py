"""Everything about some tickets, out of every place where records are: the database, the spool, its quarantine.

What belongs to a ticket is what carries its id, and the decisions and outcomes that belong to those by `decision_id`.
Where `recording.hash_fields` holds the id back, its hash is looked for as well as the id itself. An empty id names
nothing: history that was ingested has no decisions, and an empty `decision_id` in every row.

Files that `ingest` has rejected rows to, exports and backups are not known here and not touched.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.errors import SpoolError
from nhm_sched_plugin.pseudonyms import Pseudonyms
from nhm_sched_plugin.store.frames import decode
from nhm_sched_plugin.store.salvage import UNSALVAGED, unlink
from nhm_sched_plugin.store.segments import Segments
from nhm_sched_plugin.store.spool_file import FILE_NAME
from nhm_sched_plugin.types import Decision

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Erased", "erase"]

_BATCH: Final = 1000
_DRAIN_S: Final = 30.0
"""How long a drain that is under way is waited for."""
_BLOCK: Final = 8 * 1024 * 1024
_OVERLAP: Final = 4096
"""Bytes; no id is longer."""
_BY_TICKET: Final = ("execution_logs", "scheduling_decisions_raw", "scheduling_outcomes")
_packed: Final = msgspec.msgpack.encode
_SET_ASIDE: Final = re.compile(r"(.+\.(?:corrupt|unsalvaged))(?:-wal|-shm)?")


class Erased(msgspec.Struct, frozen=True):
    """One place: a table, or a file of the spool. `left` is counted anew afterwards."""

    place: str
    found: int
    removed: int
    left: int


class _Wanted:
    """The names that tickets may be written down under, and the decisions about them; none of them empty."""

    def __init__(self, tickets: frozenset[str]) -> None:
        self.tickets = tickets
        self.decisions: set[str] = set()

    def note(self, decision_id: str) -> None:
        if decision_id:
            self.decisions.add(decision_id)

    def traces(self) -> list[bytes]:
        """How the fields stand in bytes that cannot be read as records: whole, so that `a1` is not found in `a10`."""
        found = []
        for field, names in (("ticket_id", self.tickets), ("decision_id", self.decisions)):
            for name in names:
                found.append(f"{field}={name!r}".encode("utf-8", "replace"))  # of what could not be written down
                with contextlib.suppress(UnicodeEncodeError):  # then no frame holds it either
                    found.append(_packed(field) + _packed(name))
        return found

    def torn(self) -> re.Pattern[bytes]:
        """The same for files without whole fields: a name that stands there by itself, not within another."""
        names = [name.encode("utf-8", "surrogatepass") for name in self.tickets | self.decisions]
        alone = rb"(?<![\w-])(?:" + b"|".join(map(re.escape, names)) + rb")(?![\w-])"
        return re.compile(b"|".join([alone, *map(re.escape, self.traces())]))


def erase(
    store: Store,
    spool: Path,
    tickets: Sequence[str],
    *,
    hidden: Pseudonyms | None = None,
    dry_run: bool = False,
) -> list[Erased]:
    """Remove all records of these tickets; the places that held some, and whether any are left. Repeating it is safe.

    Nothing is drained meanwhile: a drain that is under way is waited for.

    Args:
        store: an initialised store.
        spool: folder of the spool, which hosts may go on writing to.
        tickets: their ids, as the orchestrator calls them; empty ones are passed over.
        hidden: what ids are hashed with, when they are.
        dry_run: only count.

    Raises `StoreError` and `SpoolError`; what was removed until then stays removed.
    """
    named = frozenset(filter(None, tickets))
    if not named:
        return []
    wanted = _Wanted(named | (frozenset(map(hidden.of, named)) if hidden is not None else frozenset()))
    _note_decisions(store, wanted)
    result: list[Erased] = []
    with contextlib.ExitStack() as stack:
        if _holds_files(spool):  # opening would make one
            files = Segments(spool, time.time)
            stack.callback(files.close)
            if not dry_run:
                stack.enter_context(files.only_drain(_DRAIN_S))
            result += _from_spool(files, wanted, dry_run=dry_run)
            _note_decisions(store, wanted)
        return result + list(_from_database(store, wanted, dry_run=dry_run))


# The database


def _note_decisions(store: Store, wanted: _Wanted) -> None:
    found = " UNION DISTINCT ".join(
        f"SELECT decision_id FROM {store.database}.{table} WHERE ticket_id IN {{tickets:Array(String)}}"  # noqa: S608
        for table in _BY_TICKET
    )
    for batch in _batches(sorted(wanted.tickets)):
        for (decision_id,) in store.rows(found, {"tickets": batch}, name="erase"):
            wanted.note(str(decision_id))


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


def _holds_files(spool: Path) -> bool:
    """Whether there is a file of records, also when all that is left are those that were set aside."""
    return spool.is_dir() and any(".sqlite" in path.name or _SET_ASIDE.fullmatch(path.name) for path in spool.iterdir())


def _from_spool(files: Segments, wanted: _Wanted, *, dry_run: bool) -> Iterator[Erased]:
    # An outcome may carry no ticket, and stand in an earlier file than the decision that tells.
    for name in files.names():
        files.run(name, partial(_search, wanted=wanted), 0)
    # Twice, since hosts go on writing, and may begin another file meanwhile.
    for _ in range(1 if dry_run else 2):
        if any(files.path.glob(f"*{UNSALVAGED}")):
            files.active.salvage()
        for name in files.names():
            yield from _from_file(files, name, wanted, dry_run=dry_run)
    for file in sorted({found[1] for path in files.path.iterdir() if (found := _SET_ASIDE.fullmatch(path.name))}):
        # As one that uses the spool: nobody sets a file aside meanwhile, its log before itself.
        yield from files.active.run(partial(_from_damaged, file=files.path / file, wanted=wanted, dry_run=dry_run))


def _from_file(files: Segments, name: str, wanted: _Wanted, *, dry_run: bool) -> Iterator[Erased]:
    found = files.run(name, partial(_search, wanted=wanted, remove=not dry_run), 0)
    left = found
    if not dry_run:
        files.run(name, partial(_overwrite, file=files.path / name), None)
        left = files.run(name, partial(_search, wanted=wanted), 0)
        if name != FILE_NAME and files.run(name, _is_empty, False):
            files.remove(name)
    if found:
        yield Erased(f"spool {name}", found, found - left, left)


def _search(connection: sqlite3.Connection, *, wanted: _Wanted, remove: bool = False) -> int:
    """How many records of the file belong to the tickets; their decisions are noted."""
    connection.execute("PRAGMA secure_delete = ON")  # the bytes are overwritten, not only let go
    connection.execute("BEGIN IMMEDIATE" if remove else "BEGIN")
    total, traces = 0, wanted.traces()
    for table in ("records", "quarantine"):
        rows = connection.execute(f"SELECT seq, id, frame FROM {table} ORDER BY seq")  # noqa: S608
        hits = [(seq,) for seq, record_id, frame in rows if _belongs(record_id, frame, wanted, traces)]
        total += len(hits)
        if remove:
            connection.executemany(f"DELETE FROM {table} WHERE seq = ?", hits)  # noqa: S608
    connection.execute("COMMIT")
    return total


def _belongs(record_id: str | None, frame: bytes, wanted: _Wanted, traces: list[bytes]) -> bool:
    if record_id in wanted.decisions:
        return True
    try:
        record, _ = decode(frame)
    except ValueError:
        return any(trace in frame for trace in traces)
    about = record if isinstance(record, Decision) else record.outcome
    if about.ticket_id not in wanted.tickets:
        return False
    wanted.note(about.decision_id)
    return True


def _overwrite(connection: sqlite3.Connection, *, file: Path) -> None:
    """Also what a drain has let go long ago, and what the log holds: no byte of it stays in the file."""
    connection.execute("VACUUM")
    _fold(connection, file)


def _fold(connection: sqlite3.Connection, file: Path) -> None:
    if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        raise SpoolError(f"spool {file} is being read by another process; run the same command again")


def _is_empty(connection: sqlite3.Connection) -> bool:
    held = "SELECT EXISTS (SELECT 1 FROM records) OR EXISTS (SELECT 1 FROM quarantine)"
    return not connection.execute(held).fetchone()[0]


def _from_damaged(_: sqlite3.Connection, *, file: Path, wanted: _Wanted, dry_run: bool) -> list[Erased]:
    """A file that was set aside goes as a whole, with its log: what was readable of it has been saved long ago.

    One that was set aside this moment is not saved yet, and left.
    """
    try:
        torn = wanted.torn()
        if not (_holds(file, torn) or _holds(file.with_name(f"{file.name}-wal"), torn)):
            return []
        left = dry_run or (file.suffix == UNSALVAGED and file.exists())
        if not left:
            unlink(file)
    except OSError as error:
        raise SpoolError(f"{file} cannot be removed: {error.strerror or error}") from error
    return [Erased(f"damaged file {file.name}", 1, int(not left), int(left))]


def _holds(file: Path, torn: re.Pattern[bytes]) -> bool:
    """Whether that stands anywhere in the file, which may be gone."""
    before = b""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            if torn.search(before + block):
                return True
            before = block[-_OVERLAP:]
    return False
