"""From the spool to the database, exactly once in effect.

A batch is acknowledged only after both inserts have succeeded. A crash in between delivers it again, and the tables
replace a record of the same id by itself, so that nothing is doubled. A record that does not fit its table goes to the
spool's quarantine with the reason; an unreachable database stops the drain and loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from nhm_sched_plugin.store.frames import record_id
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.rows import DECISION_COLUMNS, OUTCOME_COLUMNS, decision_row, outcome_row
from nhm_sched_plugin.store.spool import Batch, Spool
from nhm_sched_plugin.store.statements import RejectedRowsError
from nhm_sched_plugin.types import Decision

__all__ = ["DrainResult", "drain"]

_Row = tuple[int, list[Any]]


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
    batch: int = 5000,
    progress: Callable[[int, int | None], None] | None = None,
    *,
    log_tickets: bool = False,
) -> DrainResult:
    """Deliver everything that waits in the spool.

    Args:
        spool: what the hosts wrote.
        store: an initialised store.
        batch: records an insert.
        progress: called after each batch with (records done, records known so far).
        log_tickets: also write each ended ticket into `execution_logs`, once. For hosts whose tickets nothing else
            writes there; where something does, they would be counted twice.

    Raises `StoreError` when the database does not answer and `SpoolError` when the disk does not; what was delivered
    until then is acknowledged, everything else is still in the spool.
    """
    started = time.monotonic()
    total, quarantined = spool.pending(), spool.quarantined_count()
    decisions = outcomes = done = 0
    for item in spool.batches(batch):
        good_decisions, good_outcomes = _deliver(item, spool, store)
        if log_tickets:
            store.log_finished(sorted({record_id(entry.record) for entry in item.records}))
        spool.ack(item)
        decisions, outcomes, done = decisions + good_decisions, outcomes + good_outcomes, done + len(item.records)
        if progress is not None:
            progress(done, max(total, done))
    return DrainResult(
        delivered=decisions + outcomes,
        decisions=decisions,
        outcomes=outcomes,
        quarantined=spool.quarantined_count() - quarantined,
        remaining=spool.pending(),
        seconds=time.monotonic() - started,
    )


def _deliver(batch: Batch, spool: Spool, store: Store) -> tuple[int, int]:
    """Insert a batch; returns how many decisions and outcomes are stored now."""
    decisions: list[_Row] = []
    outcomes: list[_Row] = []
    bad: dict[int, str] = {}
    for item in batch.records:
        try:
            if isinstance(item.record, Decision):
                decisions.append((item.seq, decision_row(item.record, item.created)))
            else:
                outcomes.append((item.seq, outcome_row(item.record, item.created)))
        except ValueError as error:
            bad[item.seq] = str(error)
    stored_decisions = _insert(store, "scheduling_decisions_raw", DECISION_COLUMNS, decisions, bad)
    stored_outcomes = _insert(store, "scheduling_outcomes", OUTCOME_COLUMNS, outcomes, bad)
    if bad:
        spool.quarantine(bad)
    return stored_decisions, stored_outcomes


def _insert(store: Store, table: str, columns: Sequence[str], rows: Sequence[_Row], bad: dict[int, str]) -> int:
    """Insert the rows, halving a refused batch until the rows at fault are alone; those land in `bad`."""
    if not rows:
        return 0
    try:
        store.insert_rows(table, columns, [row for _, row in rows])
    except RejectedRowsError as error:
        if len(rows) == 1:
            bad[rows[0][0]] = str(error)
            return 0
        middle = len(rows) // 2
        return _insert(store, table, columns, rows[:middle], bad) + _insert(store, table, columns, rows[middle:], bad)
    return len(rows)
