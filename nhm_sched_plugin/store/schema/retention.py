"""How long rows live: what the tables say, and the statements that change it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.store.schema.tables import TABLES, age_clause

if TYPE_CHECKING:
    from nhm_sched_plugin.store.statements import Statements

__all__ = ["changes", "current_days", "modify"]

_AGES: Final = {table.name: table.age for table in TABLES if table.age}
_DAYS: Final = re.compile(r"\bTTL \w+ \+ toIntervalDay\((\d+)\)")


def current_days(store: Statements) -> dict[str, int | None]:
    """Days that the engine keeps rows of each table that is there; None: for ever."""
    rows = store.rows(
        "SELECT name, create_table_query FROM system.tables WHERE database = {database:String}",
        {"database": store.database},
    )
    result: dict[str, int | None] = {}
    for name, made in rows:
        if name in _AGES:
            found = _DAYS.search(made)
            result[str(name)] = int(found.group(1)) if found else None
    return result


def changes(
    current: Mapping[str, int | None], wanted: Mapping[str, int | None]
) -> Iterator[tuple[str, int | None, int | None]]:
    """Table, days now and days wanted, of each table where they differ."""
    for table, days in wanted.items():
        if table in current and current[table] != days:
            yield table, current[table], days


def modify(database: str, table: str, old: int | None, new: int | None) -> str:
    """The statement. A shorter life is applied, in the background, to the rows that are there; a longer need not be."""
    if new is None:
        return f"ALTER TABLE {database}.{table} REMOVE TTL"
    shorter = old is None or new < old
    return (
        f"ALTER TABLE {database}.{table} MODIFY TTL {age_clause(_AGES[table], new)} "
        f"SETTINGS materialize_ttl_after_modify = {int(shorter)}"
    )
