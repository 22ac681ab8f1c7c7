"""Another table as a source: of the same database server or of another one, read in slices of time.

A slice is what can be read again and gives the same rows, so that an interrupted ingest goes on with the next one. The
database finds the slices: hours of the column that is mapped to `timestamp`, as many together as make a good block, and
an hour with too many rows in parts by a hash of the rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nhm_sched_plugin.errors import IngestError, StoreError
from nhm_sched_plugin.store.ingest.chunks import Chunk, Position, TableChunk
from nhm_sched_plugin.store.ingest.csv_blocks import Kinds
from nhm_sched_plugin.store.ingest.profiles import Profile

if TYPE_CHECKING:
    import pyarrow as pa

    from nhm_sched_plugin.store.statements import Statements

__all__ = ["Table"]

_NAME: Final = re.compile(r"(?:[A-Za-z_]\w*\.)?[A-Za-z_]\w*", re.ASCII)
_ROWS: Final = 200_000
_TIMES: Final = re.compile(r"^(?:Nullable\()?(DateTime|Date)")
_NUMBERS: Final = re.compile(r"^(?:Nullable\()?U?Int(32|64)\b")


class _Slice(NamedTuple):
    """A condition over the key, and how many rows it holds."""

    condition: str
    rows: int


class Table:
    """One table of an open database.

    Args:
        store: the database it is in; only read from.
        name: `database.table`, or a table of the store's own database.
        where: SQL that rows must fulfil; it is run as it stands.

    Raises `IngestError` for a name that is none, and for a table that is not there.
    """

    def __init__(self, store: Statements, name: str, *, where: str | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise IngestError(f"--from-table {name!r}: write it as DATABASE.TABLE (letters, digits, underscore)")
        self.store, self.where = store, where
        self.name = name if "." in name else f"{store.database}.{name}"
        database, _, table = self.name.partition(".")
        if (database, table) == (store.database, "execution_logs"):
            raise IngestError(f"--from-table {self.name}: that is where the rows would go")
        found = store.rows(
            "SELECT name, type FROM system.columns WHERE database = {database:String} AND table = {table:String} "
            "ORDER BY position",
            {"database": database, "table": table},
            name="ingest",
        )
        if not found:
            raise IngestError(f"--from-table {self.name}: there is no such table, or the user may not read it")
        self.types = {str(column): str(kind) for column, kind in found}

    def digest(self) -> str:
        """Of the content, whatever the order of its rows."""
        columns = ", ".join(f"`{column}`" for column in self.types)
        ((count, total),) = self._asked(
            f"SELECT count(), sum(cityHash64(tuple({columns}))) FROM {self.name} {self._filter()}"  # noqa: S608
        )
        text = f"{self.name} {columns} {count} {total}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def chunks(self, how: Profile, kinds: Kinds, start: Position) -> Iterator[Chunk]:
        """Slices from `start` on, whose `offset` counts slices."""
        kinds(list(self.types), {})
        slices = self._slices(*self._key(how))
        total, done = sum(part.rows for part in slices), start.row
        for number, part in enumerate(slices[start.offset :], start=start.offset + 1):
            table = self._read(part.condition)
            first, done = done + 1, done + table.num_rows
            yield TableChunk(table, first, Position(row=done, offset=number), done, max(total, done))

    def _key(self, how: Profile) -> tuple[str, str]:
        """An expression that grows with time, hours of it make slices; and the time's column where it helps to skip."""
        column = how.mapping.get("timestamp") or next(name for name in self.types if name.lower() == "timestamp")
        kind, name = self.types[column], f"`{column}`"
        if _TIMES.match(kind):
            plain = kind.startswith("DateTime")
            return f"toInt64(floor(toInt64(toDateTime64({name}, 0)) / 3600))", name if plain else ""
        if _NUMBERS.match(kind):
            scale = f"multiIf({name} < 100000000000, 3600, {name} < 100000000000000, 3600000, 3600000000)"
            return f"toInt64(intDiv({name}, {scale}))", ""
        return f"substring(toString({name}), 1, 13)", ""

    def _slices(self, key: str, column: str) -> list[_Slice]:
        keys = self._asked(
            f"SELECT key, count() FROM (SELECT {key} AS key FROM {self.name} {self._filter()}) "  # noqa: S608
            "GROUP BY key ORDER BY key"
        )
        slices: list[_Slice] = []
        low: Any = None
        high: Any = None
        held = 0

        def close() -> None:
            nonlocal held
            if held:
                slices.append(_Slice(_between(key, column, low, high), held))
            held = 0

        for value, count in keys:
            if value is None:
                slices.append(_Slice(f"({key}) IS NULL", count))
                continue
            if held and held + count > _ROWS:
                close()
            if count > _ROWS:
                parts = -(-count // _ROWS)
                columns = ", ".join(f"`{name}`" for name in self.types)
                hour = _between(key, column, value, value)
                slices += [
                    _Slice(f"{hour} AND cityHash64(tuple({columns})) % {parts} = {part}", count // parts)
                    for part in range(parts)
                ]
                continue
            low, high, held = (low if held else value), value, held + count
        close()
        return slices

    def _read(self, condition: str) -> pa.Table:
        import pyarrow as pa

        columns = ", ".join(self._selected(column, kind) for column, kind in self.types.items())
        sql = f"SELECT {columns} FROM {self.name} {self._filter(condition)}"  # noqa: S608
        with self._explained():
            body = self.store.raw(sql, form="ArrowStream", name="ingest")
        return pa.ipc.open_stream(body).read_all()

    @staticmethod
    def _selected(column: str, kind: str) -> str:
        """As a type that Arrow knows too; of an enumeration and the like, its text."""
        name = f"`{column}`"
        if kind.startswith(("DateTime", "Nullable(DateTime")):
            return f"toDateTime64({name}, 6, 'UTC') AS {name}"
        if re.match(r"^(?:Nullable\()?(?:U?Int(?:8|16|32|64)|Float(?:32|64)|Date|Bool|String)\b", kind):
            return name
        return f"toString({name}) AS {name}"

    def _filter(self, condition: str = "") -> str:
        conditions = [f"({part})" for part in (self.where, condition) if part]
        return "WHERE " + " AND ".join(conditions) if conditions else ""

    def _asked(self, sql: str) -> list[tuple[Any, ...]]:
        with self._explained():
            return self.store.rows(sql, name="ingest")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Its own errors are told from those of the database that the rows go to."""
        try:
            yield
        except StoreError as error:
            hint = " (check --where)" if self.where else ""
            raise IngestError(f"{self.name} cannot be read{hint}: {error}") from None


def _between(key: str, column: str, low: Any, high: Any) -> str:
    """Both ends included. With a column of times, also as a range of it, which its table may be sorted by."""
    condition = f"({key} BETWEEN {_quoted(low)} AND {_quoted(high)})"
    if column and low >= 0:
        condition += f" AND {column} >= toDateTime({low * 3600}) AND {column} < toDateTime({high * 3600 + 3600})"
    return condition


def _quoted(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
