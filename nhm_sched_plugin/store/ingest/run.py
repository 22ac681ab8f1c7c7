"""One source on its way into `execution_logs`, block by block, so that it can be interrupted anywhere."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.observe.words import count
from nhm_sched_plugin.store.ingest.chunks import Chunk, Position
from nhm_sched_plugin.store.ingest.csv_blocks import Kinds
from nhm_sched_plugin.store.ingest.duplicates import Duplicates, duplicates
from nhm_sched_plugin.store.ingest.ledger import Earlier, Ledger, Progress
from nhm_sched_plugin.store.ingest.profiles import Profile
from nhm_sched_plugin.store.ingest.quick import column_types
from nhm_sched_plugin.store.ingest.rejects import Rejects
from nhm_sched_plugin.store.ingest.settle import Settled, settle
from nhm_sched_plugin.store.ingest.shaping import Plan, plan
from nhm_sched_plugin.store.schema.retention import current_days

if TYPE_CHECKING:
    import pyarrow as pa

    from nhm_sched_plugin.store.repository import Store

__all__ = ["IngestReport", "Rows", "Run", "Source", "planned", "settled"]

Source = Callable[[Kinds, Position], Iterator[Chunk]]
Rows = Callable[[int, int], None]
"""Called as (rows taken in so far, rows rejected so far)."""
_T = TypeVar("_T")
_TYPES_SHOWN: Final = 1000


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `rows` + `rejected` are all rows of the source."""

    source: str
    ingest_id: str
    rows: int = 0
    rejected: int = 0
    first: dt.datetime | None = None
    last: dt.datetime | None = None
    task_types: Mapping[str, int] = {}
    """Tickets by task type, busiest first; the first thousand of them."""
    kept_expired: int = 0
    """Rows older than the retention that are exempt from it."""
    duplicates: Duplicates = Duplicates()
    already_ingested: bool = False
    resumed_rows: int = 0
    """Rows that an interrupted run had taken in, and that were not taken in again."""
    warnings: tuple[str, ...] = ()
    rejects_path: Path | None = None
    seconds: float = 0.0


class _StartOverError(Exception):
    """The table does not hold what the ledger says."""


def planned(profile: Profile, name: str, prefix: str, keep: Callable[[Plan], None]) -> Kinds:
    """Settles the plan once the columns are known, and hands it on."""
    known: list[Plan] = []

    def kinds(columns: Sequence[str], sample: Mapping[str, str]) -> Mapping[str, pa.DataType]:
        if not known:
            known.append(
                plan(
                    columns,
                    name=name,
                    mapping=profile.mapping,
                    constants=profile.constants,
                    timezone=profile.timezone,
                    timestamp_format=profile.timestamp_format,
                    sla_wait_s=profile.sla_wait_s,
                    ticket_prefix=prefix,
                )
            )
            keep(known[0])
        return column_types(columns, known[0], sample)

    return kinds


def settled(chunks: Iterator[Chunk], how: Callable[[], Plan]) -> Iterator[tuple[Chunk, Settled]]:
    """Each chunk and what came of it, one ahead of the caller: it is read while the last one is inserted."""
    return _ahead((chunk, settle(chunk, how())) for chunk in chunks)


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    with ThreadPoolExecutor(1, thread_name_prefix="ingest") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


class Run:
    """Takes in one source. Raises `IngestError` and `StoreError`."""

    def __init__(
        self,
        store: Store,
        name: str,
        ingest_id: str,
        profile: Profile,
        *,
        rejects: Path | None,
        keep_expired: bool | None,
        progress: Callable[[int, int | None], None] | None,
        rows: Rows | None,
    ) -> None:
        self.store, self.name, self.ingest_id, self.profile = store, name, ingest_id, profile
        self.rejects_path, self.keep_expired, self.progress, self.rows = rejects, keep_expired, progress, rows
        self.ledger = Ledger(store, ingest_id, name)
        self.days = current_days(store).get("execution_logs")
        self.started = time.monotonic()
        self.how: Plan | None = None
        self.warnings: list[str] = []

    def run(self, source: Source, *, replace: bool) -> IngestReport:
        earlier = self.ledger.earlier()
        if earlier is not None and earlier.complete and not replace:
            return self._nothing_new(earlier)
        state = None if earlier is None or replace else self._resumable(earlier)
        if state is not None:
            try:
                return self._take_all(source, state, resumed=state.rows)
            except _StartOverError:
                self.warnings.append(
                    f"{self.name}: the rows of the interrupted run have changed in the meantime; it was started over"
                )
        if earlier is not None:
            self._remove()
        return self._take_all(source, Progress(run=uuid.uuid4().hex[:12], how=self._options()), resumed=None)

    def _options(self) -> str:
        text = msgspec.json.encode([self.profile, self.keep_expired], order="sorted")
        return hashlib.sha256(text).hexdigest()[:16]

    def _resumable(self, earlier: Earlier) -> Progress | None:
        state = earlier.progress
        return state if state is not None and state.blocks and state.how == self._options() else None

    def _nothing_new(self, earlier: Earlier) -> IngestReport:
        warning = (
            f"{self.name}: the same content was taken in on {earlier.at:%Y-%m-%d %H:%M} UTC as {earlier.file} "
            f"({count(earlier.rows, 'row')}); nothing was added (--replace takes it again)"
        )
        return IngestReport(source=self.name, ingest_id=self.ingest_id, already_ingested=True, warnings=(warning,))

    def _remove(self) -> None:
        self.store.command(
            f"DELETE FROM {self.store.database}.execution_logs WHERE ingest_id = {{id:String}}",  # noqa: S608
            {"id": self.ingest_id},
            name="ingest",
        )

    def _take_all(self, source: Source, state: Progress, *, resumed: int | None) -> IngestReport:
        in_table = self._count() if resumed is not None else 0
        if in_table < state.rows:
            raise _StartOverError
        kinds = planned(self.profile, self.name, self.ingest_id[:8], self._keep_plan)
        with Rejects(self.rejects_path, state.rejected, state.first_reject, state.rejects_bytes) as rejects:
            for chunk, part in settled(source(kinds, state.position), self._plan):
                if not state.blocks:
                    self.ledger.note(self._plan().sources, state)
                rejects.add(part.rejected)
                state = self._take(state, chunk, part, rejects)
                if in_table and in_table != (resumed or 0):
                    # The interrupted run left a part of this block, which the token should have kept from doubling.
                    in_table = 0
                    if self._count() != state.rows:
                        raise _StartOverError
                if self.progress is not None:
                    self.progress(chunk.done, chunk.total)
                if self.rows is not None:
                    self.rows(state.rows, state.rejected)
            if not state.rows:
                where = f"; {count(rejects.count, 'rejected row')} in {rejects.path}" if rejects.count else ""
                raise IngestError(f"{self.name} holds no usable row ({rejects.first or 'no rows at all'}){where}")
        return self._finish(state, resumed or 0)

    def _keep_plan(self, how: Plan) -> None:
        self.how = how

    def _plan(self) -> Plan:
        assert self.how is not None  # noqa: S101 - a source settles it before its first chunk
        return self.how

    def _count(self) -> int:
        sql = f"SELECT count() FROM {self.store.database}.execution_logs WHERE ingest_id = {{id:String}}"  # noqa: S608
        return int(self.store.rows(sql, {"id": self.ingest_id}, name="ingest")[0][0])

    def _take(self, state: Progress, chunk: Chunk, part: Settled, rejects: Rejects) -> Progress:
        import numpy as np
        import pyarrow as pa

        good, expired, first, last = part.good, 0, state.first, state.last
        if good.num_rows:
            stamps = good.column("timestamp").to_numpy()
            # Old rows are kept for now: the engine would delete them while the rest is being read.
            old = stamps < self._cutoff()
            expired = int(np.count_nonzero(old))
            good = good.append_column("kept", pa.array(old.astype("uint8")))
            origin = pa.DictionaryArray.from_arrays(
                pa.repeat(pa.scalar(0, pa.int32()), good.num_rows), pa.array([self.ingest_id])
            )
            good = good.append_column("ingest_id", origin)
            self.store.insert_arrow("execution_logs", good, state.token(self.ingest_id))
            self.store.give_back_memory()
            low, high = int(stamps.min()), int(stamps.max())
            first = low if first is None else min(first, low)
            last = high if last is None else max(last, high)
        state = msgspec.structs.replace(
            state,
            blocks=state.blocks + 1,
            position=chunk.position,
            rows=state.rows + good.num_rows,
            rejected=rejects.count,
            rejects_bytes=rejects.flushed(),
            first_reject=rejects.first,
            expired=state.expired + expired,
            first=first,
            last=last,
        )
        self.ledger.note(self._plan().sources, state)
        return state

    def _finish(self, state: Progress, resumed: int) -> IngestReport:
        assert state.first is not None  # noqa: S101 - there are rows
        assert state.last is not None  # noqa: S101
        types = self._task_types(state)
        self.warnings += self._retention(state)
        named = "ticket_id" in self._plan().sources
        twice = duplicates(self.store, self.ingest_id, state.first, state.last, tickets=named)
        self.warnings += _doubled(twice)
        if state.rejected:
            place = f", see {self.rejects_path}" if self.rejects_path is not None else ""
            self.warnings.append(f"{count(state.rejected, 'row')} rejected{place}; the first: {state.first_reject}")
        self.ledger.note(self._plan().sources, state, complete=True)
        return IngestReport(
            source=self.name,
            ingest_id=self.ingest_id,
            rows=state.rows,
            rejected=state.rejected,
            first=dt.datetime.fromtimestamp(state.first, dt.UTC),
            last=dt.datetime.fromtimestamp(state.last, dt.UTC),
            task_types=types,
            kept_expired=state.expired if self.keep_expired else 0,
            duplicates=twice,
            resumed_rows=resumed,
            warnings=tuple(self.warnings),
            rejects_path=self.rejects_path if state.rejected else None,
            seconds=time.monotonic() - self.started,
        )

    def _task_types(self, state: Progress) -> dict[str, int]:
        rows = self.store.rows(
            f"SELECT task_type, count() AS n FROM {self.store.database}.execution_logs "  # noqa: S608
            "WHERE ingest_id = {id:String} "
            "AND timestamp BETWEEN toDateTime({low:UInt32}) AND toDateTime({high:UInt32}) "
            f"GROUP BY task_type ORDER BY n DESC, task_type LIMIT {_TYPES_SHOWN}",
            {"id": self.ingest_id, "low": state.first, "high": state.last},
            name="ingest",
        )
        return {str(task_type): int(count) for task_type, count in rows}

    def _retention(self, state: Progress) -> list[str]:
        """Decide about old rows where the caller did not, and say what becomes of them."""
        if not state.expired:
            return []
        if self.keep_expired is None:
            self.keep_expired = state.last is not None and state.last < self._cutoff()
        if not self.keep_expired:
            self.store.command(
                f"ALTER TABLE {self.store.database}.execution_logs UPDATE kept = 0 "
                "WHERE kept = 1 AND ingest_id = {id:String}",
                {"id": self.ingest_id},
                name="ingest",
            )
        old = f"{state.expired:,} of {count(state.rows, 'row')} older than the retention of {self.days} days"
        if self.keep_expired:
            return [f"{old}: exempt from it, so that only deletion by hand removes them"]
        return [f"{old}: the database deletes them; --keep-expired (with --replace) keeps them"]

    def _cutoff(self) -> float:
        """Unix seconds: what is older is past its age; nothing is where tickets are kept for ever."""
        return 0.0 if self.days is None else time.time() - self.days * 86_400


def _doubled(found: Duplicates) -> list[str]:
    """Rows that are there twice are not removed, but neither are they silent."""
    same = "(same time, ticket and task type)"
    warnings = []
    if found.rows_within:
        warnings.append(f"{count(found.rows_within, 'row')} {same} repeated within the same source: counted twice")
    if found.rows_elsewhere:
        warnings.append(f"{count(found.rows_elsewhere, 'row')} {same} there already from another source: counted twice")
    elif found.tickets_elsewhere:
        warnings.append(f"{count(found.tickets_elsewhere, 'ticket id')} in other sources too, at other times or types")
    return warnings
