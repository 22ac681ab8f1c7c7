"""Thousands of model versions in one transaction: for MLflow's sqlite registry, which takes 20 ms for each otherwise.

MLflow's interface makes one version at a time, in a dozen statements and three commits. This writes the same rows to
the same tables, through MLflow's own table classes. Only the registry under `data_dir` is written like that: nobody
else uses it, and its tables are those of the MLflow that is installed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Row", "add_versions"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A version to be made: its model (made too, if there is none), where its state is, and what stands for it."""

    name: str
    run_id: str
    source: str
    tags: Mapping[str, str]
    alias: str = ""


def add_versions(database: Path, rows: Sequence[Row]) -> list[str]:
    """Write them all or none; returns their numbers. Raises whatever sqlalchemy or another MLflow's tables raise."""
    import sqlalchemy as sa
    from mlflow.store.model_registry.dbmodels import models as tables

    model, version = tables.SqlRegisteredModel, tables.SqlModelVersion
    now = int(time.time() * 1000)
    engine = sa.create_engine(f"sqlite:///{database}")
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        connection = stack.enter_context(engine.begin())
        known: set[str] = set(connection.scalars(sa.select(model.name)))
        newest: Any = sa.select(version.name, sa.func.max(version.version)).group_by(version.name)
        last: dict[str, int] = {name: int(number) for name, number in connection.execute(newest)}
        numbers = []
        for row in rows:
            last[row.name] = last.get(row.name, 0) + 1
            numbers.append(last[row.name])
        names = {row.name: None for row in rows}
        _insert(
            connection,
            model,
            [{"name": name, "creation_time": now, "last_updated_time": now} for name in names if name not in known],
        )
        old = [{"key": name, "moment": now} for name in names if name in known]
        if old:
            touched = sa.update(model).where(model.name == sa.bindparam("key"))
            connection.execute(touched.values(last_updated_time=sa.bindparam("moment")), old)
        _insert(connection, version, [_version(row, number, now) for row, number in zip(rows, numbers, strict=True)])
        _insert(
            connection,
            tables.SqlModelVersionTag,
            [
                {"name": row.name, "version": number, "key": key, "value": value}
                for row, number in zip(rows, numbers, strict=True)
                for key, value in row.tags.items()
            ],
        )
        _point(connection, tables.SqlRegisteredModelAlias, rows, numbers)
    return [str(number) for number in numbers]


def _version(row: Row, number: int, now: int) -> dict[str, Any]:
    return {
        "name": row.name,
        "version": number,
        "creation_time": now,
        "last_updated_time": now,
        "source": row.source,
        "storage_location": row.source,
        "run_id": row.run_id,
    }


def _point(connection: Any, alias: Any, rows: Sequence[Row], numbers: Sequence[int]) -> None:
    import sqlalchemy as sa

    named = [(row, number) for row, number in zip(rows, numbers, strict=True) if row.alias]
    if not named:
        return
    gone = sa.delete(alias).where(alias.name == sa.bindparam("key"), alias.alias == sa.bindparam("which"))
    connection.execute(gone, [{"key": row.name, "which": row.alias} for row, _ in named])
    _insert(connection, alias, [{"name": row.name, "alias": row.alias, "version": number} for row, number in named])


def _insert(connection: Any, table: Any, rows: list[dict[str, Any]]) -> None:
    import sqlalchemy as sa

    if rows:
        connection.execute(sa.insert(table), rows)
