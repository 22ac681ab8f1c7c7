"""Tables and views as files: CSV or Parquet, a window of time after the other, so that memory stays bounded."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.statements import utc

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["EXPORTABLE", "FORMATS", "Window", "export"]

EXPORTABLE: Final = {
    "execution_logs": "timestamp",
    "telemetry_metrics": "timestamp",
    "queue_snapshots": "timestamp",
    "scheduling_decisions": "decided_at",
    "forecasts": "target",
    "tickets": "timestamp",
    "sla_misses": "timestamp",
    "hours_alive": "hour",
    "features_hourly": "hour",
    "bottlenecks": "hour",
}
"""Tables and views, each with the column that says when."""
FORMATS: Final = ("csv", "parquet")
_ROWS: Final = 200_000
_HOUR: Final = 3600
_QUOTED: Final = re.compile(rb'"[^"]*"')


class Window(NamedTuple):
    """Rows with a time in [low, high), Unix seconds."""

    low: int
    high: int
    rows: int


def export(
    store: Store,
    table: str,
    path: Path,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the rows of [since, until) to the file, oldest first; how many they were.

    The format is the file's ending, `.csv` or `.parquet`. The file appears under its name when it is complete; one
    that was there is replaced. Memory holds about 200,000 rows, or one hour's where that is more.

    Raises `StoreError` for a table or ending that is not known here, and what the database and the disk refuse.
    """
    if table not in EXPORTABLE:
        raise StoreError(f"table {table!r} cannot be exported; known are {', '.join(EXPORTABLE)}")
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise StoreError(f"{path}: the name has to end in .csv or .parquet, which says the format")
    column = EXPORTABLE[table]
    windows = _windows(store, table, column, since, until)
    total, done = sum(window.rows for window in windows), 0
    unfinished = path.with_name(f".{path.name}.part")
    try:
        writer: _Csv | _Parquet = _Csv(unfinished) if kind == "csv" else _Parquet(unfinished)
        try:
            # Without any rows one empty window still brings the columns' names.
            for window in windows or [Window(0, 0, 0)]:
                writer.add(_content(store, table, column, window, writer.format))
                done += window.rows
                if progress is not None:
                    progress(done, total)
        finally:
            writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return writer.rows


def _windows(
    store: Store, table: str, column: str, since: dt.datetime | None, until: dt.datetime | None
) -> list[Window]:
    """Whole hours together, until they have enough rows; the first and the last one cut to the span asked for."""
    second = f"toUnixTimestamp({column})"
    low = 0 if since is None else int(utc(since).timestamp())
    high = 2**32 if until is None else int(utc(until).timestamp())
    hours = store.rows(
        f"SELECT intDiv({second}, {_HOUR}) AS h, count() FROM {store.database}.{table} "  # noqa: S608
        f"WHERE {second} >= {{low:Int64}} AND {second} < {{high:Int64}} GROUP BY h ORDER BY h",
        {"low": low, "high": high},
        name="export",
    )
    return list(_grouped(hours, low, high))


def _grouped(hours: list[tuple[Any, ...]], low: int, high: int) -> Iterator[Window]:
    start, rows = low, 0
    for index, (hour, count) in enumerate(hours):
        rows += int(count)
        last = index == len(hours) - 1
        if last or rows >= _ROWS:
            end = high if last else (int(hour) + 1) * _HOUR
            yield Window(start, end, rows)
            start, rows = end, 0


def _content(store: Store, table: str, column: str, window: Window, form: str) -> bytes:
    second = f"toUnixTimestamp({column})"
    sql = (
        f"SELECT * FROM {store.database}.{table} WHERE {second} >= {{low:Int64}} AND {second} < {{high:Int64}} "  # noqa: S608
        f"ORDER BY {column}"
    )
    if form.startswith("CSV"):
        # Times with their zone (UTC), else what was written in one server's zone would be read in another's.
        sql += " SETTINGS format_csv_null_representation = '', date_time_output_format = 'iso'"
    return store.raw(sql, {"low": window.low, "high": window.high}, form=form, name="export")


class _Csv:
    """Names in the first line; NULL is an empty field; times are UTC: `2026-03-01T10:00:00Z`."""

    format = "CSVWithNames"

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._named = False
        self.rows = 0

    def add(self, content: bytes) -> None:
        names, _, lines = content.partition(b"\n")
        if not self._named:
            self._file.write(names + b"\n")
            self._named = True
        self._file.write(lines)
        # A text may hold line breaks, so lines are not rows.
        self.rows += _QUOTED.sub(b"", lines).count(b"\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """A row group or more for each window."""

    format = "Parquet"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self.rows = 0

    def add(self, content: bytes) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(pa.BufferReader(content))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)
        self.rows += table.num_rows

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
