"""Tickets whose fields cannot be right, found by the database itself: which rule, which field, and which tickets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from nhm_sched_plugin.store.statements import where

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Flaw", "flaws", "repeated"]

_EXAMPLES: Final = 10
_HOW: Final[tuple[tuple[Literal["fields", "values"], str, str, str], ...]] = (
    ("fields", "timestamp", "toUnixTimestamp(timestamp) = 0", "without a timestamp"),
    ("fields", "ticket_id", "ticket_id = ''", "without a ticket_id"),
    ("fields", "task_type", "task_type = ''", "without a task_type"),
    ("values", "timestamp", "timestamp > now() + toIntervalHour(1)", "that arrive in the future"),
    (
        "values",
        "resource_cpu",
        "NOT isFinite(resource_cpu) OR resource_cpu < 0",
        "whose CPU is negative or no number",
    ),
    (
        "values",
        "resource_memory",
        "NOT isFinite(resource_memory) OR resource_memory < 0",
        "whose memory is negative or no number",
    ),
    ("values", "sla_met", "ifNull(sla_met > 1, 0)", "whose sla_met is neither 0 nor 1"),
    (
        "values",
        "queue_depth_at_start",
        "ifNull(NOT isFinite(queue_depth_at_start) OR queue_depth_at_start < 0, 0)",
        "whose queue depth is negative or no number",
    ),
)


class Flaw(NamedTuple):
    """Tickets that break one rule in one field."""

    rule: Literal["fields", "values"]
    field: str
    text: str
    """What is wrong, as it follows on "3 tickets"."""
    tickets: int
    examples: list[tuple[str, str, str]]
    """Timestamp (ISO), ticket id and value of the first ones."""


def flaws(store: Store, task_type: str | None = None, risk_band: str | None = None) -> list[Flaw]:
    """Of a slice, or of all tickets. The table is read once, and again only for what is found."""
    condition, parameters = where(task_type, risk_band)
    logs = f"{store.database}.execution_logs"
    counts = ", ".join(f"countIf({wrong})" for _, _, wrong, _ in _HOW)
    (found,) = store.rows(f"SELECT {counts} FROM {logs} {condition}", parameters, name="flaws")  # noqa: S608
    result = []
    for (rule, field, wrong, text), count in zip(_HOW, found, strict=True):
        if count:
            rows = store.rows(
                f"SELECT toUnixTimestamp(timestamp), ticket_id, toString({field}) FROM {logs} "  # noqa: S608
                f"{condition or 'WHERE 1'} AND ({wrong}) ORDER BY timestamp LIMIT {_EXAMPLES}",
                parameters,
                name="flaws",
            )
            result.append(Flaw(rule, field, text, int(count), [_example(row) for row in rows]))
    return result


def repeated(store: Store, task_type: str | None = None, risk_band: str | None = None) -> tuple[int, list[Any]]:
    """Tickets of the same id, time and type that stand more than once: how many, and (time, id, how often) of some.

    They may be right (several events in one second), or the same history under two names.
    """
    condition, parameters = where(task_type, risk_band)
    rows = store.rows(
        "SELECT toUnixTimestamp(any(timestamp)), any(ticket_id), toString(count()), count() OVER () "  # noqa: S608
        f"FROM {store.database}.execution_logs {condition or 'WHERE 1'} AND ticket_id != '' "
        "GROUP BY cityHash64(ticket_id, timestamp, task_type, risk_band) HAVING count() > 1 "
        f"ORDER BY count() DESC, any(timestamp) LIMIT {_EXAMPLES}",
        parameters,
        name="flaws",
    )
    return (int(rows[0][3]) if rows else 0), [_example(row) for row in rows]


def _example(row: tuple[Any, ...]) -> tuple[str, str, str]:
    import datetime as dt

    return dt.datetime.fromtimestamp(int(row[0]), dt.UTC).isoformat(), str(row[1]), str(row[2])
