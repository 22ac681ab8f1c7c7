"""History files as chunks of raw columns: CSV (also gzip, zip, bzip2), Parquet, Standard Workload Format.

Nothing is dropped: a row of the file is in a chunk's table or among its broken ones.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.ingest.chunks import Broken, Chunk, FrameChunk, Position, TableChunk
from nhm_sched_plugin.store.ingest.csv_blocks import CsvFile, Kinds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "detect", "read"]

FORMATS: Final = ("csv", "parquet", "swf")
_CHUNK: Final = 50_000
_PARQUET_ROWS: Final = 131_072
_SWF: Final = (
    "job_number",
    "submit_time",
    "wait_time",
    "run_time",
    "allocated_processors",
    "average_cpu_time",
    "used_memory",
    "requested_processors",
    "requested_time",
    "requested_memory",
    "swf_status",
    "user_id",
    "group_id",
    "executable",
    "queue",
    "partition",
    "preceding_job",
    "think_time",
)
"""http://www.cs.huji.ac.il/labs/parallel/workload/swf.html, in the order of the file."""
_SWF_COLUMNS: Final = (
    *_SWF,
    "timestamp",
    "ticket_id",
    "actual_duration_s",
    "wait_s",
    "status",
    "resource_cpu",
    "resource_memory",
)
_SWF_STATUS: Final = {"0": "failed", "1": "success", "2": "partial", "3": "partial", "4": "partial", "5": "cancelled"}


def detect(path: Path) -> str:
    """The format by the file's ending, else by its first bytes. Raises `IngestError` when it cannot be read."""
    endings = [ending.lower() for ending in path.suffixes]
    for ending, name in (
        (".csv", "csv"),
        (".tsv", "csv"),
        (".parquet", "parquet"),
        (".pq", "parquet"),
        (".swf", "swf"),
    ):
        if ending in endings:
            return name
    with _opened(path) as (stream, _):
        start = stream.read(64)
    if start.startswith(b"PAR1"):
        return "parquet"
    return "swf" if start.lstrip().startswith(b";") else "csv"


def read(path: Path, kind: str, kinds: Kinds, start: Position) -> Iterator[Chunk]:
    """The file in chunks, from `start` on; `kinds` is called once its columns are known, before the first chunk.

    Raises `IngestError` that names the file and what is wrong with it.
    """
    try:
        if kind == "parquet":
            yield from _parquet(path, kinds, start)
        elif kind == "swf":
            yield from _swf(path, kinds, start)
        else:
            with _opened(path) as (stream, tell):
                yield from CsvFile(path, stream, tell).chunks(kinds, start)
    except (OSError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise IngestError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


class _opened:  # noqa: N801 - reads as the function it stands for
    """The file's bytes, unpacked, and a function that tells how many packed bytes have been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[Any] = []

    def __enter__(self) -> tuple[IO[bytes], Any]:
        try:
            raw = self._path.open("rb")
        except OSError as error:
            raise IngestError(f"{self._path} cannot be read: {error.strerror or error}") from None
        self._files.append(raw)
        start = raw.read(4)
        raw.seek(0)
        stream: Any = raw
        if start.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=raw)
        elif start.startswith(b"BZh"):
            stream = bz2.BZ2File(raw)
        elif start == b"PK\x03\x04":
            archive = zipfile.ZipFile(raw)
            self._files.append(archive)
            members = [member for member in archive.namelist() if not member.endswith("/")]
            if len(members) != 1:
                raise IngestError(f"{self._path} holds {len(members)} files ({', '.join(members[:5])}); expected one")
            stream = archive.open(members[0])
        if stream is not raw:
            self._files.append(stream)
        return stream, raw.tell

    def __exit__(self, *_: object) -> None:
        for file in reversed(self._files):
            file.close()


def _parquet(path: Path, kinds: Kinds, start: Position) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise IngestError(f"{path} is no readable Parquet file: {error}") from None
    with file:
        total = int(file.metadata.num_rows)
        kinds(file.schema_arrow.names, {})
        groups, done = list(range(file.metadata.num_row_groups)), 0
        while groups and done + file.metadata.row_group(groups[0]).num_rows <= start.row:
            done += file.metadata.row_group(groups.pop(0)).num_rows
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=groups):
            table = pa.Table.from_batches([batch]).slice(max(0, start.row - done))
            first = done + batch.num_rows - table.num_rows + 1
            done += batch.num_rows
            if table.num_rows:
                yield TableChunk(table, first, Position(row=done), done, total)


def _swf(path: Path, kinds: Kinds, start: Position) -> Iterator[Chunk]:
    total = path.stat().st_size
    kinds(_SWF_COLUMNS, {})
    with _opened(path) as (stream, tell):
        header: dict[str, str] = {}
        rows: list[list[str]] = []
        numbers: list[int] = []
        broken: list[Broken] = []
        number = 0
        for number, raw in enumerate(stream, start=1):
            line = raw.decode("utf-8", "backslashreplace").strip()
            if line.startswith(";"):
                key, colon, value = line[1:].partition(":")
                if colon:
                    header.setdefault(key.strip(), value.strip())
            elif line and number > start.row:
                fields = line.split()
                if len(fields) == len(_SWF):
                    rows.append(fields)
                    numbers.append(number)
                else:
                    broken.append(Broken(number, line, f"{len(fields)} fields; the format has {len(_SWF)}"))
                if len(rows) + len(broken) >= _CHUNK:
                    frame = _jobs(rows, header, path)
                    yield FrameChunk(frame, numbers, broken, Position(row=number), min(tell(), total), total)
                    rows, numbers, broken = [], [], []
        yield FrameChunk(_jobs(rows, header, path), numbers, broken, Position(row=number), total, total)


def _jobs(rows: list[list[str]], header: Mapping[str, str], path: Path) -> pd.DataFrame:
    """The raw fields (-1 means not known) and, beside them, what they are in `execution_logs`."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=pd.Index(_SWF), dtype="str")
    frame = frame.mask(frame == "-1")
    try:
        start = float(header.get("UnixStartTime", 0))
    except ValueError:
        raise IngestError(f"{path}: header UnixStartTime {header['UnixStartTime']!r} is no number") from None
    submit = pd.to_numeric(frame["submit_time"], errors="coerce")
    run, processors, cpu, memory = (
        pd.to_numeric(frame[name], errors="coerce")
        for name in ("run_time", "allocated_processors", "average_cpu_time", "used_memory")
    )
    frame["timestamp"] = start + submit
    frame["ticket_id"] = frame["job_number"]
    frame["actual_duration_s"] = run
    frame["wait_s"] = frame["wait_time"]
    frame["status"] = frame["swf_status"].map(_SWF_STATUS)
    # Cores in use: the share of its time that the average processor was busy, else all of them.
    frame["resource_cpu"] = processors * (cpu / run.where(run > 0)).clip(upper=1).fillna(1.0)
    frame["resource_memory"] = memory * processors.fillna(1) / 2**20  # KB for each processor
    return frame
