"""What has been taken in, and how far an interrupted run came: the table `ingested_files`.

A block of rows is inserted under a token made of the run and the block's number, and noted here afterwards. So the
block that was under way when a process died is inserted again by the next run, and the database ignores what it has of
it already.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nhm_sched_plugin.store.ingest.chunks import Position

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Earlier", "Ledger", "Progress"]


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """After a block: what is in the table and in the file of rejected rows, and where to go on."""

    run: str
    """Of the tokens: another run of the same source has others."""
    how: str
    """Digest of the options: a run with others cannot go on here."""
    blocks: int = 0
    position: Position = Position()
    rows: int = 0
    rejected: int = 0
    rejects_bytes: int = 0
    first_reject: str = ""
    expired: int = 0
    first: int | None = None
    last: int | None = None

    def token(self, ingest_id: str) -> str:
        """Of the next block."""
        return f"{ingest_id}-{self.run}-{self.blocks}"


class Earlier(NamedTuple):
    """The newest entry of a source."""

    file: str
    rows: int
    complete: bool
    at: dt.datetime
    progress: Progress | None


class Ledger:
    """Of one source."""

    def __init__(self, store: Store, ingest_id: str, name: str) -> None:
        self._store, self._id, self._name = store, ingest_id, name
        self._at = dt.datetime.fromtimestamp(0, dt.UTC)

    def earlier(self) -> Earlier | None:
        """What is known of the source. None: nothing."""
        found = self._store.dicts(
            f"SELECT file, rows, complete, at, progress FROM {self._store.database}.ingested_files FINAL "  # noqa: S608
            "WHERE ingest_id = {id:String}",
            {"id": self._id},
            name="ingest",
        )
        if not found:
            return None
        row = found[0]
        self._at = row["at"].replace(tzinfo=row["at"].tzinfo or dt.UTC)
        return Earlier(row["file"], row["rows"], bool(row["complete"]), row["at"], _progress(row["progress"]))

    def note(self, sources: Mapping[str, str], progress: Progress, *, complete: bool = False) -> None:
        """The newest entry wins, so time goes forward here even where the clock does not."""
        self._at = max(dt.datetime.now(dt.UTC), self._at + dt.timedelta(milliseconds=1))
        row: dict[str, Any] = {
            "ingest_id": self._id,
            "file": self._name,
            "mapping": dict(sources),
            "rows": progress.rows,
            "rejected": progress.rejected,
            "complete": int(complete),
            "at": self._at,
            "progress": msgspec.json.encode(progress).decode(),
        }
        self._store.insert_rows("ingested_files", list(row), [list(row.values())])


def _progress(text: str) -> Progress | None:
    try:
        return msgspec.json.decode(text, type=Progress) if text else None
    except msgspec.DecodeError:  # of another release: such a run starts over
        return None
