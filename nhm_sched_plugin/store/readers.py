"""History files as chunks of raw columns: CSV (also gzip, zip, bzip2), Parquet, Standard Workload Format.

Every reader yields `Chunk`s: a DataFrame of the file's own columns and the number (1-based) of each row in the file,
plus the rows that are broken as such. Nothing is dropped: a row is in the frame or among the broken ones.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from nhm_sched_plugin.errors import IngestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMATS", "Broken", "Chunk", "detect", "read"]

FORMATS: Final = ("csv", "parquet", "swf")
_CHUNK: Final = 50_000
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
_SWF_STATUS: Final = {"0": "failed", "1": "success", "2": "partial", "3": "partial", "4": "partial", "5": "cancelled"}


class Broken(NamedTuple):
    """A row that cannot be read as a row: its number, its text, and why."""

    number: int
    text: str
    reason: str


class Chunk(NamedTuple):
    """Some rows. `done` of `total` bytes (or rows, for Parquet) have been read with it."""

    frame: pd.DataFrame
    numbers: list[int]
    broken: list[Broken]
    done: int
    total: int | None


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


def read(path: Path, kind: str) -> Iterator[Chunk]:
    """The file in chunks. Raises `IngestError` that names the file and what is wrong with it."""
    try:
        if kind == "parquet":
            yield from _parquet(path)
        elif kind == "swf":
            yield from _swf(path)
        else:
            yield from _csv(path)
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


def _csv(path: Path) -> Iterator[Chunk]:
    total = path.stat().st_size
    with _opened(path) as (stream, tell):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="backslashreplace", newline="")
        head = text.readline()
        if not head.strip():
            raise IngestError(f"{path} is empty: expected a first line with the names of the columns")
        delimiter = max(",;\t|", key=head.count)
        names = [name.strip() for name in next(csv.reader([head], delimiter=delimiter))]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise IngestError(f"{path}: the first line names {', '.join(map(repr, twice))} more than once")
        rows: list[list[str]] = []
        numbers: list[int] = []
        broken: list[Broken] = []
        number = 0
        for row in csv.reader(text, delimiter=delimiter):
            if not row:
                continue
            number += 1
            if len(row) == len(names):
                rows.append(row)
                numbers.append(number)
            else:
                reason = f"{len(row)} fields where the first line names {len(names)}"
                broken.append(Broken(number, delimiter.join(row), reason))
            if len(rows) + len(broken) >= _CHUNK:
                yield Chunk(_texts(rows, names), numbers, broken, min(tell(), total), total)
                rows, numbers, broken = [], [], []
        yield Chunk(_texts(rows, names), numbers, broken, total, total)


def _texts(rows: list[list[str]], names: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=pd.Index(names), dtype="str")
    return frame.mask(frame == "")


def _parquet(path: Path) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise IngestError(f"{path} is no readable Parquet file: {error}") from None
    done = 0
    with file:
        total = int(file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=_CHUNK):
            frame = batch.to_pandas()
            numbers = list(range(done + 1, done + len(frame) + 1))
            done += len(frame)
            yield Chunk(frame, numbers, [], done, total)


def _swf(path: Path) -> Iterator[Chunk]:
    total = path.stat().st_size
    with _opened(path) as (stream, tell):
        header: dict[str, str] = {}
        rows: list[list[str]] = []
        numbers: list[int] = []
        broken: list[Broken] = []
        for number, raw in enumerate(stream, start=1):
            line = raw.decode("utf-8", "backslashreplace").strip()
            if line.startswith(";"):
                key, colon, value = line[1:].partition(":")
                if colon:
                    header.setdefault(key.strip(), value.strip())
            elif line:
                fields = line.split()
                if len(fields) == len(_SWF):
                    rows.append(fields)
                    numbers.append(number)
                else:
                    broken.append(Broken(number, line, f"{len(fields)} fields; the format has {len(_SWF)}"))
                if len(rows) + len(broken) >= _CHUNK:
                    yield Chunk(_jobs(rows, header, path), numbers, broken, min(tell(), total), total)
                    rows, numbers, broken = [], [], []
        yield Chunk(_jobs(rows, header, path), numbers, broken, total, total)


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
