"""Whether the tables of a database are what this release works with, and how to mend what is not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.store.schema.tables import TABLES, Table

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["differences"]

_ELSE: Final = (
    "or, if the table was made by something else, rename it or set ml.clickhouse.database to another name, "
    "and run `nhm-sched init`"
)


def differences(store: Store, cluster: str | None = None, *, missing_tables: bool = True) -> list[str]:
    """Each difference with its fix. `missing_tables` False: those are yet to be made."""
    database = {"database": store.database}
    columns: dict[str, dict[str, str]] = {}
    for table, name, kind in store.rows(
        "SELECT table, name, type FROM system.columns WHERE database = {database:String}", database
    ):
        columns.setdefault(table, {})[name] = kind
    engines = {
        str(name): str(engine)
        for name, engine in store.rows(
            "SELECT name, engine FROM system.tables WHERE database = {database:String}", database
        )
    }
    problems = [
        problem
        for table in TABLES
        if missing_tables or table.name in engines
        for problem in _of_table(store.database, table, columns.get(table.name, {}), engines.get(table.name), cluster)
    ]
    return problems


def _of_table(
    database: str, table: Table, present: dict[str, str], engine: str | None, cluster: str | None
) -> list[str]:
    place = f"{database}.{table.name}"
    if engine is None:
        return [
            f"table {place} is missing: remove all lines of {database}.schema_migrations and run `nhm-sched init`, "
            "which leaves alone what is there"
        ]
    missing = [column for column in table.all_columns if column.name not in present]
    problems = []
    if missing:
        fix = ", ".join(f"ADD COLUMN {column.sql}" for column in missing)
        names = ", ".join(column.name for column in missing)
        problems.append(f"table {place} lacks {names}: ALTER TABLE {place} {fix}; {_ELSE}")
    for column in table.all_columns:
        found = present.get(column.name)
        if found is not None and _plain(found) != _plain(column.type):
            problems.append(
                f"table {place}: column {column.name} is {found}, not {column.type}: "
                f"ALTER TABLE {place} MODIFY COLUMN {column.name} {column.type}; {_ELSE}"
            )
    expected = table.engine.split("(")[0]
    if engine.removeprefix("Replicated").removeprefix("Shared") != expected:
        problems.append(f"table {place} has the engine {engine}, not {expected}: rename it and run `nhm-sched init`")
    elif cluster is not None and not engine.startswith(("Replicated", "Shared")):
        problems.append(
            f"table {place} is on one server only ({engine}), though ml.clickhouse.cluster = {cluster!r}: rename it, "
            f"run `nhm-sched init`, and copy its rows with INSERT INTO {place} SELECT"
        )
    return problems


def _plain(kind: str) -> str:
    """Types that take the same values: a dictionary of texts, and a time zone that is only for showing."""
    kind = re.sub(r"LowCardinality\((Nullable\(\w+\)|\w+)\)", r"\1", kind)
    return re.sub(r"DateTime\('[^']*'\)", "DateTime", kind).replace(" ", "")
