"""Rows and tickets that a source brought twice, or that another had brought before: counted by the database.

Memory stays bounded: rows are compared slice by slice of time, since the same row has the same time; the hashes of
tickets go through files on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.store.ingest.buckets import Buckets

if TYPE_CHECKING:
    from nhm_sched_plugin.store.statements import Statements

__all__ = ["Duplicates", "duplicates", "slices"]

_SLICE: Final = 1_000_000


class Duplicates(msgspec.Struct, frozen=True, kw_only=True):
    """A row is the same when time (to the second), ticket and task type are."""

    rows_within: int = 0
    """Rows that repeat an earlier one of the same source."""
    rows_elsewhere: int = 0
    """Rows that another source had brought already."""
    tickets_within: int = 0
    """Ticket ids in more than one row of the source, as in a log of events."""
    tickets_elsewhere: int = 0
    """Ticket ids that other sources have too."""


def duplicates(store: Statements, ingest_id: str, first: int, last: int, *, tickets: bool) -> Duplicates:
    """Of the rows of one ingest, which lie between `first` and `last` (Unix seconds).

    `tickets`: whether the source has ids of its own.
    """
    if not tickets:  # ids made of the source's digest and the row's number are there once
        return Duplicates()
    logs = f"{store.database}.execution_logs"
    ids_within, ids_elsewhere = _tickets(store, ingest_id)
    if not (ids_within or ids_elsewhere):
        return Duplicates()
    within = elsewhere = 0
    for low, high in slices(store, first, last):
        ((again, known),) = store.rows(
            "SELECT sumIf(mine - 1, mine > 1), sumIf(mine, mine > 0 AND others > 0) FROM ("  # noqa: S608
            f"SELECT countIf(ingest_id = {{id:String}}) AS mine, count() - mine AS others FROM {logs} "
            "WHERE timestamp >= toDateTime({low:UInt32}) AND timestamp <= toDateTime({high:UInt32}) "
            "GROUP BY cityHash64(timestamp, ticket_id, task_type))",
            {"id": ingest_id, "low": low, "high": high},
            name="ingest",
        )
        within, elsewhere = within + int(again), elsewhere + int(known)
    return Duplicates(
        rows_within=within,
        rows_elsewhere=elsewhere,
        tickets_within=ids_within,
        tickets_elsewhere=ids_elsewhere,
    )


def _tickets(store: Statements, ingest_id: str) -> tuple[int, int]:
    """Ids in more than one row of the source, and ids that others have too: by 64 bits of hash, on disk."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="nhm-sched-ingest-") as folder:
        buckets = Buckets(Path(folder))
        for low, high in slices(store, 0, 2**32 - 1):
            body = store.raw(
                "SELECT cityHash64(ticket_id) AS hash, ingest_id = {id:String} AS mine "  # noqa: S608
                f"FROM {store.database}.execution_logs "
                "WHERE timestamp >= toDateTime({low:UInt32}) AND timestamp <= toDateTime({high:UInt32})",
                {"id": ingest_id, "low": low, "high": high},
                form="ArrowStream",
                name="ingest",
            )
            rows = pa.ipc.open_stream(body).read_all()
            hashes, mine = rows.column("hash").to_numpy(), rows.column("mine").to_numpy().astype(bool)
            buckets.add("mine", hashes[mine])
            buckets.add("others", hashes[~mine])
        return buckets.compared("mine", "others")


def slices(store: Statements, first: int, last: int, rows: int = _SLICE) -> Iterator[tuple[int, int]]:
    """Parts of the table in order: from which second to which, about so many rows together, but whole hours."""
    hours = store.rows(
        f"SELECT intDiv(toUnixTimestamp(timestamp), 3600) AS h, count() FROM {store.database}.execution_logs "  # noqa: S608
        "WHERE timestamp >= toDateTime({low:UInt32}) AND timestamp <= toDateTime({high:UInt32}) GROUP BY h ORDER BY h",
        {"low": first, "high": last},
        name="ingest",
    )
    start: int | None = None
    held = end = 0
    for hour, count in hours:
        if start is not None and held + count > rows:
            yield start, end
            start, held = None, 0
        start = hour * 3600 if start is None else start
        held, end = held + count, min(hour * 3600 + 3599, 2**32 - 1)
    if start is not None:
        yield start, end
