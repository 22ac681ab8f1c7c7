"""From the spool to the database, exactly once in effect: one pass. `delivery` runs them again and again.

A batch is acknowledged only after both its inserts have succeeded. A crash in between delivers it again: under the same
deduplication token, by which the engine knows a batch that it has already, and into tables that replace a record of the
same id by itself. A record that does not fit its table goes to the spool's quarantine with the reason; an unreachable
database stops the pass and loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.frames import record_id
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.rows import DECISION_COLUMNS, OUTCOME_COLUMNS, decision_row, outcome_row
from nhm_sched_plugin.store.spool import Batch, Spool
from nhm_sched_plugin.store.statements import RejectedRowsError
from nhm_sched_plugin.types import Decision

if TYPE_CHECKING:
    from tenacity import Retrying

__all__ = ["BATCH", "DrainResult", "drain"]

BATCH: Final = 10_000
"""Records an insert. Each insert makes a part on the server's disk, so few large ones."""
_SUSPICIOUS: Final = 16
"""So many rows refused and none taken: it is not the rows that are wrong."""


class _Part(NamedTuple):
    """What goes into one table: rows, and where each stands in the spool."""

    seqs: list[int]
    rows: list[tuple[Any, ...]]

    def cut(self, first: int, last: int) -> _Part:
        return _Part(self.seqs[first:last], self.rows[first:last])


class DrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a drain did. `delivered` counts records; `quarantined` those set aside during this drain."""

    delivered: int = 0
    decisions: int = 0
    outcomes: int = 0
    quarantined: int = 0
    remaining: int = 0
    seconds: float = 0.0


def drain(
    spool: Spool,
    store: Store,
    batch: int = BATCH,
    progress: Callable[[int, int | None], None] | None = None,
    *,
    stored: Callable[[int], object] | None = None,
    log_tickets: bool = False,
    retry: Retrying | None = None,
    enough: Callable[[], bool] | None = None,
) -> DrainResult:
    """Deliver everything that waits in the spool.

    Args:
        spool: what the hosts wrote.
        store: an initialised store.
        batch: records an insert.
        progress: called after each batch with (records done, records known so far); those in quarantine are done too.
        stored: called after each batch with how many of its records are in the database.
        log_tickets: also write each ended ticket into `execution_logs`, once. For hosts whose tickets nothing else
            writes there; where something does, they would be counted twice.
        retry: how often and with which pauses an insert is tried again while the database does not answer; None: not.
        enough: asked between batches; True ends the pass early.

    Raises `StoreError` when the database does not answer and `SpoolError` when the disk does not, or when another
    process drains; what was delivered until then is acknowledged, everything else is still in the spool.
    """
    started = time.monotonic()
    decisions = outcomes = done = 0
    with spool.only_drain():
        total, quarantined = spool.tally()
        for item in spool.batches(batch):
            good_decisions, good_outcomes = _deliver(item, spool, store, retry)
            if log_tickets:
                ids = sorted({record_id(entry.record) for entry in item.records})
                _patiently(retry, store.log_finished, ids)
            spool.ack(item)
            decisions, outcomes, done = decisions + good_decisions, outcomes + good_outcomes, done + len(item.records)
            if stored is not None:
                stored(good_decisions + good_outcomes)
            if progress is not None:
                progress(done, max(total, done))
            if enough is not None and enough():
                break
        left = spool.tally()
        return DrainResult(
            delivered=decisions + outcomes,
            decisions=decisions,
            outcomes=outcomes,
            quarantined=left.quarantined - quarantined,
            remaining=left.waiting,
            seconds=time.monotonic() - started,
        )


def _patiently(retry: Retrying | None, work: Callable[..., Any], *arguments: Any) -> None:
    if retry is None:
        work(*arguments)
    else:
        retry(work, *arguments)


def _deliver(batch: Batch, spool: Spool, store: Store, retry: Retrying | None) -> tuple[int, int]:
    """Insert a batch; returns how many decisions and outcomes are stored now."""
    decisions, outcomes = _Part([], []), _Part([], [])
    bad: dict[int, str] = {}
    for item in batch.records:
        record = item.record
        try:
            if isinstance(record, Decision):
                decisions.rows.append(decision_row(record, item.created))
                decisions.seqs.append(item.seq)
            else:
                outcomes.rows.append(outcome_row(record, item.created))
                outcomes.seqs.append(item.seq)
        except ValueError as error:
            bad[item.seq] = str(error)
    stored = [
        _Insert(store, table, columns, batch.token, bad, retry).all_that_fit(part)
        for table, columns, part in (
            ("scheduling_decisions_raw", DECISION_COLUMNS, decisions),
            ("scheduling_outcomes", OUTCOME_COLUMNS, outcomes),
        )
    ]
    if bad:
        spool.quarantine(bad, batch.place)
    return stored[0], stored[1]


class _Insert:
    """One table's part of a batch. A refused one is halved until the rows at fault are alone; those land in `bad`."""

    def __init__(
        self,
        store: Store,
        table: str,
        columns: Sequence[str],
        token: str,
        bad: dict[int, str],
        retry: Retrying | None,
    ) -> None:
        self._store, self._table, self._columns = store, table, columns
        self._token, self._bad, self._retry = token, bad, retry
        self._taken = self._refused = 0

    def all_that_fit(self, part: _Part) -> int:
        """How many of them are stored now. Raises `StoreError`, also when the table refuses row after row."""
        if not part.rows:
            return 0
        # Parts of a halved batch differ in their first row or in their length.
        token = f"{self._token}-{self._table}-{part.seqs[0]}-{len(part.rows)}"
        try:
            _patiently(self._retry, self._store.insert_rows, self._table, self._columns, part.rows, token)
        except RejectedRowsError as error:
            return self._halved(part, error)
        self._taken += len(part.rows)
        return len(part.rows)

    def _halved(self, part: _Part, error: RejectedRowsError) -> int:
        count = len(part.rows)
        if count > 1:
            middle = count // 2
            return self.all_that_fit(part.cut(0, middle)) + self.all_that_fit(part.cut(middle, count))
        self._bad[part.seqs[0]] = str(error)
        self._refused += 1
        if self._refused >= _SUSPICIOUS and not self._taken:
            raise StoreError(
                f"table {self._table} refuses one record after another, so it is the table that has changed, and "
                f"nothing was put into quarantine: {error}; run `nhm-sched init` to see what differs"
            ) from error
        return 0
