"""Statements to the database and what can go wrong with them: the ground under `Store`.

Values reach the engine as parameters only; the database's name is checked by the settings.
"""

from __future__ import annotations

import datetime as dt
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from clickhouse_connect.driver.client import Client

__all__ = ["RejectedRowsError", "Statements", "code_of", "utc", "where"]

_CODE: Final = re.compile(r"Code: (\d+)")
_SETTINGS: Final = re.compile(r"(with url: /)\?\S*")
"""In what the HTTP client says of a lost connection: all settings, in any order, and perhaps values of the query."""
_WRONG_VALUES: Final = {6, 27, 38, 41, 69, 72, 131, 321, 349, 469}
"""Error codes of the engine about a value: it cannot be parsed, is out of range, NULL where none may be, or breaks a
constraint."""


class RejectedRowsError(StoreError):
    """The database is there, but these rows do not fit their table."""


class Statements:
    """An open database: statements, queries and inserts, each counted and its errors explained.

    Args:
        client: an open clickhouse-connect client.
        database: name of the database.
        observer: called as (name of the statement, success, seconds) after every statement.
    """

    def __init__(
        self, client: Client, database: str, observer: Callable[[str, bool, float], None] | None = None
    ) -> None:
        self.client = client
        self.database = database
        self._observer = observer

    # Statements

    def command(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "command", wait: bool = True
    ) -> Any:
        """Run a statement that returns nothing or one value; with `wait`, mutations are done when it returns."""
        settings = {"mutations_sync": 1} if wait else {}
        return self._observed(name, lambda: self.client.command(sql, dict(parameters or {}), settings=settings))

    def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "query"
    ) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return list(self._observed(name, lambda: self.client.query(sql, dict(parameters or {})).result_rows))

    def dicts(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "query"
    ) -> list[dict[str, Any]]:
        """All rows of a query by column name; times in UTC, whatever zone the server is in."""
        result = self._observed(name, lambda: self.client.query(sql, dict(parameters or {})))
        names = result.column_names
        return [{name: _in_utc(value) for name, value in zip(names, row, strict=True)} for row in result.result_rows]

    def frame(self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "query") -> pd.DataFrame:
        """A query's result as a DataFrame."""
        frame: pd.DataFrame = self._observed(name, lambda: self.client.query_df(sql, dict(parameters or {})))
        return frame

    def raw(self, sql: str, parameters: Mapping[str, Any] | None = None, *, form: str, name: str = "query") -> bytes:
        """A query's result in one of the engine's formats (`CSVWithNames`, `Parquet`, ...)."""
        return bytes(self._observed(name, lambda: self.client.raw_query(sql, dict(parameters or {}), fmt=form)))

    def insert_rows(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], token: str | None = None
    ) -> None:
        """Insert rows; all of them or, with an error, none. A table that keeps a window of tokens ignores rows under
        one it has seen. Raises `RejectedRowsError` when the values do not fit."""
        if rows:
            place = f"{self.database}.{table}"
            names = list(columns)
            self._inserted(table, lambda: self.client.insert(place, rows, column_names=names, settings=_once(token)))

    def insert_frame(self, table: str, frame: pd.DataFrame) -> None:
        """Insert a DataFrame whose columns are named as the table's."""
        if len(frame):
            self._inserted(table, lambda: self.client.insert_df(table, frame, database=self.database, settings=_once()))

    def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
        """Insert an Arrow table whose columns are named as the table's; under a token it has seen, nothing happens."""
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows)
        body, place = sink.getvalue().to_pybytes(), f"{self.database}.{table}"
        settings = _once(token)
        self._inserted(
            table,
            lambda: self.client.raw_insert(place, rows.column_names, body, fmt="ArrowStream", settings=settings),
        )

    def give_back_memory(self) -> None:
        """Let the embedded engine return what it no longer needs to the system; a server is left alone."""
        if str(self.client.uri).startswith("chdb:"):
            self.command("SYSTEM JEMALLOC PURGE", name="purge", wait=False)

    def _inserted(self, table: str, work: Callable[[], object]) -> None:
        from clickhouse_connect.driver.exceptions import DataError

        try:
            self._observed(f"insert {table}", work)
        except StoreError as error:
            # What the client cannot put into a column's type is the rows' fault, and what the engine says of values;
            # anything else is the database's.
            wrong = (DataError, TypeError, ValueError, OverflowError, AttributeError)
            if isinstance(error.__cause__, wrong) or code_of(error) in _WRONG_VALUES:
                raise RejectedRowsError(str(error)) from error.__cause__
            raise

    def _observed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = False
        try:
            result = work()
            done = True
            return result
        except StoreError:
            raise
        except Exception as error:  # struct, numpy and urllib3 errors come through the client too
            text = _SETTINGS.sub(r"\1", " ".join(str(error).split()))[:600]
            raise StoreError(f"{name}: {text or type(error).__name__}") from error
        finally:
            if self._observer is not None:
                self._observer(name, done, time.perf_counter() - started)

    def _t(self, table: str) -> str:
        return f"{self.database}.{table}"


def _once(token: str | None = None) -> dict[str, str]:
    """Of one insert: the client sends it again when an answer is lost, and the table then knows it.

    Tables are partitioned by month, and history in one insert may span any number of them.
    """
    return {"insert_deduplication_token": token or uuid.uuid4().hex, "max_partitions_per_insert_block": "0"}


def code_of(error: BaseException) -> int | None:
    """The engine's number of an error; None for one that is not the engine's."""
    found = _CODE.search(str(error))
    return int(found[1]) if found else None


def where(
    task_type: str | None,
    risk_band: str | None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    *,
    column: str = "timestamp",
) -> tuple[str, dict[str, Any]]:
    """A WHERE clause (or nothing) and its parameters. Naive datetimes are UTC."""
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for name, value in (("task_type", task_type), ("risk_band", risk_band)):
        if value is not None:
            conditions.append(f"{name} = {{{name}:String}}")
            parameters[name] = value
    for name, sign, moment in (("since", ">=", since), ("until", "<", until)):
        if moment is not None:
            conditions.append(f"toUnixTimestamp({column}) {sign} {{{name}:Float64}}")
            parameters[name] = utc(moment).timestamp()
    return ("WHERE " + " AND ".join(conditions) if conditions else ""), parameters


def utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


def _in_utc(value: Any) -> Any:
    # The client leaves the zone out where it is UTC.
    return utc(value).astimezone(dt.UTC) if isinstance(value, dt.datetime) else value
