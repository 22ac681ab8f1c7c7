"""History from files and DataFrames into `execution_logs`.

Each source is known by a digest of its content. A finished one is not taken in again (unless asked to replace it), an
interrupted one starts over after its rows have been removed: nothing doubles. Rows that cannot be used go to a file
with the reason, so that nothing is lost on the way either.

    ingest(Path("incidents.csv"), store,
           mapping={"timestamp": "CompleteTimestamp", "ticket_id": "CaseID", "task_type": "ActivityID"})
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.readers import FORMATS, Chunk, detect, read
from nhm_sched_plugin.store.retention import current_days
from nhm_sched_plugin.store.shaping import Plan, plan, shape

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.store.repository import Store

__all__ = ["IngestReport", "ingest", "ingest_frame"]

Progress = Callable[[int, int | None], None]
_FRAME_ROWS: Final = 100_000


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `rows` + `rejected` are all rows of the source."""

    source: str
    ingest_id: str
    rows: int = 0
    rejected: int = 0
    first: dt.datetime | None = None
    last: dt.datetime | None = None
    task_types: Mapping[str, int] = {}
    """Tickets by task type, busiest first."""
    kept_expired: int = 0
    """Rows older than the retention that are exempt from it."""
    already_ingested: bool = False
    warnings: tuple[str, ...] = ()
    rejects_path: Path | None = None
    seconds: float = 0.0


def ingest(
    path: Path | str,
    store: Store,
    *,
    mapping: Mapping[str, str] | None = None,
    format: str | None = None,
    constants: Mapping[str, str] | None = None,
    timezone: str = "UTC",
    timestamp_format: str | None = None,
    sla_wait_s: float | None = None,
    rejects: Path | None = None,
    keep_expired: bool | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Take a history file into `execution_logs`.

    Args:
        path: CSV (first line: names; separated by `,`, `;`, tab or `|`; plain, gzip, bzip2 or zip), Parquet or SWF.
        store: an initialised store.
        mapping: target -> column of the file, for names that differ. Targets: the columns of `execution_logs`, and
            `actual_duration_s`, `actual_duration_min`, `wait_s`, `wait_min`.
        format: `csv`, `parquet` or `swf`; by default from the ending or the content.
        constants: target -> value, for what the file does not say (`{"risk_band": "medium"}`).
        timezone: of stamps that carry none.
        timestamp_format: as for `strptime`, for stamps that are neither ISO 8601 nor Unix time.
        sla_wait_s: a ticket that waited at most this long met its SLA; for files that tell the wait but no `sla_met`.
        rejects: where rejected rows go; default `<name>.rejects.csv` beside the file or, if that folder is not
            writable, in the working directory. Written only when there are any.
        keep_expired: True exempts rows older than the retention (540 days) from it, False leaves them to it. None:
            exempt when the whole file is that old, since it would be gone at once; else left to it, with a warning.
        replace: remove what an earlier run took from the same content, and take it again.
        progress: called as (done, total) in bytes of the file, in rows for Parquet.

    Raises `IngestError` for a file, mapping or column that cannot work, and `StoreError`.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise IngestError(f"format {format!r}: known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise IngestError(f"{path}: no such file")
    kind = format or detect(path)
    job = _Job(store, path.name, _file_digest(path), rejects or _rejects_path(path), keep_expired, progress)
    options = {
        "mapping": mapping,
        "constants": constants,
        "timezone": timezone,
        "timestamp_format": timestamp_format,
        "sla_wait_s": sla_wait_s,
    }
    return job.run(read(path, kind), options, replace)


def ingest_frame(
    frame: pd.DataFrame,
    store: Store,
    *,
    name: str,
    mapping: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    timezone: str = "UTC",
    timestamp_format: str | None = None,
    sla_wait_s: float | None = None,
    rejects: Path | None = None,
    keep_expired: bool | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """The same for a DataFrame; `name` stands for the file. Without `rejects`, rejected rows are only counted."""
    import pandas as pd

    digest = hashlib.sha256(repr([(str(key), str(kind)) for key, kind in frame.dtypes.items()]).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    job = _Job(store, name, digest.hexdigest()[:32], rejects, keep_expired, progress)
    options = {
        "mapping": mapping,
        "constants": constants,
        "timezone": timezone,
        "timestamp_format": timestamp_format,
        "sla_wait_s": sla_wait_s,
    }
    return job.run(_chunks(frame), options, replace)


def _chunks(frame: pd.DataFrame) -> Iterator[Chunk]:
    for start in range(0, max(len(frame), 1), _FRAME_ROWS):
        part = frame.iloc[start : start + _FRAME_ROWS]
        numbers = list(range(start + 1, start + len(part) + 1))
        yield Chunk(part, numbers, [], start + len(part), len(frame))


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise IngestError(f"{path} cannot be read: {error.strerror or error}") from None


def _rejects_path(path: Path) -> Path:
    folder = path.parent if os.access(path.parent, os.W_OK) else Path.cwd()
    return folder / f"{path.name}.rejects.csv"


class _Rejects(AbstractContextManager["_Rejects"]):
    """Rejected rows, to a CSV that is made with the first of them."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.count, self.first = path, 0, ""
        self._file: IO[str] | None = None

    def add(self, number: int, reason: str, row: str) -> None:
        self.count += 1
        self.first = self.first or f"row {number}: {reason}"
        if self.path is None:
            return
        if self._file is None:
            try:
                self._file = self.path.open("w", encoding="utf-8", newline="")
            except OSError as error:
                raise IngestError(
                    f"rejected rows cannot be written to {self.path} ({error.strerror or error}); name another file "
                    "with --rejects"
                ) from None
            csv.writer(self._file).writerow(["row_number", "reason", "row"])
        csv.writer(self._file).writerow([number, reason, row])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


class _Job:
    """One source on its way in."""

    def __init__(
        self,
        store: Store,
        name: str,
        ingest_id: str,
        rejects: Path | None,
        keep_expired: bool | None,
        progress: Progress | None,
    ) -> None:
        self.store, self.name, self.ingest_id = store, name, ingest_id
        self.rejects_path, self.keep_expired, self.progress = rejects, keep_expired, progress
        self.days = current_days(store).get("execution_logs")
        self.rows = self.expired = 0
        self.first: pd.Timestamp | None = None
        self.last: pd.Timestamp | None = None
        self.task_types: Counter[str] = Counter()
        self.started = time.monotonic()

    def run(self, chunks: Iterable[Chunk], options: Mapping[str, Any], replace: bool) -> IngestReport:
        earlier = self._earlier()
        if earlier is not None and earlier["complete"] and not replace:
            return self._nothing_new(earlier)
        how: Plan | None = None
        with _Rejects(self.rejects_path) as rejects:
            for chunk in chunks:
                if how is None:
                    columns = [str(column) for column in chunk.frame.columns]
                    how = plan(columns, name=self.name, ticket_prefix=self.ingest_id[:8], **options)
                    self._begin(how, earlier is not None)
                self._take(chunk, how, rejects)
                if self.progress is not None:
                    self.progress(chunk.done, chunk.total)
        if not self.rows:
            where = f"; all {rejects.count} rejected rows are in {rejects.path}" if rejects.count else ""
            raise IngestError(f"{self.name} holds no usable row ({rejects.first or 'no rows at all'}){where}")
        return self._finish(how, rejects)

    def _earlier(self) -> dict[str, Any] | None:
        found = self.store.dicts(
            f"SELECT file, rows, rejected, complete, at FROM {self.store.database}.ingested_files FINAL "  # noqa: S608
            "WHERE ingest_id = {id:String}",
            {"id": self.ingest_id},
            name="ingest",
        )
        return found[0] if found else None

    def _nothing_new(self, earlier: Mapping[str, Any]) -> IngestReport:
        warning = (
            f"{self.name}: the same content was taken in on {earlier['at']:%Y-%m-%d %H:%M} UTC as {earlier['file']} "
            f"({earlier['rows']} rows); nothing was added (--replace takes it again)"
        )
        return IngestReport(source=self.name, ingest_id=self.ingest_id, already_ingested=True, warnings=(warning,))

    def _begin(self, how: Plan, again: bool) -> None:
        if again:
            self.store.command(
                f"DELETE FROM {self.store.database}.execution_logs WHERE ingest_id = {{id:String}}",  # noqa: S608
                {"id": self.ingest_id},
                name="ingest",
            )
        self._log(how, rejected=0, complete=False)

    def _log(self, how: Plan, rejected: int, complete: bool) -> None:
        now = dt.datetime.now(dt.UTC)
        columns = ["ingest_id", "file", "mapping", "rows", "rejected", "complete", "at"]
        row = [self.ingest_id, self.name, dict(how.sources), self.rows, rejected, int(complete), now]
        self.store.insert_rows("ingested_files", columns, [row])

    def _take(self, chunk: Chunk, how: Plan, rejects: _Rejects) -> None:
        for broken in chunk.broken:
            rejects.add(broken.number, broken.reason, broken.text)
        good, reasons = shape(chunk.frame, chunk.numbers, how)
        for position, reason in reasons.items():
            values = chunk.frame.iloc[int(str(position))]
            text = ",".join("" if value is None or value != value else str(value) for value in values)
            rejects.add(chunk.numbers[int(str(position))], reason, text)
        if not len(good):
            return
        old = good["timestamp"] < self._cutoff()
        # Undecided rows are kept for now: the engine would delete them while the rest of the file is being read.
        good = good.assign(ingest_id=self.ingest_id, kept=(old & (self.keep_expired is not False)).astype("uint8"))
        self.store.insert_execution_logs(good)
        self.rows += len(good)
        self.expired += int(old.sum())
        low, high = good["timestamp"].min(), good["timestamp"].max()
        self.first = low if self.first is None else min(self.first, low)
        self.last = high if self.last is None else max(self.last, high)
        self.task_types.update(good["task_type"].tolist())

    def _finish(self, how: Plan | None, rejects: _Rejects) -> IngestReport:
        assert how is not None  # noqa: S101 - rows were taken, so there was a plan
        warnings = [*self._retention(), *self._overlap()]
        if rejects.count:
            place = f", see {rejects.path}" if rejects.path is not None else ""
            warnings.append(f"{rejects.count} rows were rejected{place}; the first: {rejects.first}")
        self._log(how, rejects.count, complete=True)
        return IngestReport(
            source=self.name,
            ingest_id=self.ingest_id,
            rows=self.rows,
            rejected=rejects.count,
            first=None if self.first is None else self.first.to_pydatetime(),
            last=None if self.last is None else self.last.to_pydatetime(),
            task_types=dict(self.task_types.most_common()),
            kept_expired=self.expired if self.keep_expired else 0,
            warnings=tuple(warnings),
            rejects_path=rejects.path if rejects.count else None,
            seconds=time.monotonic() - self.started,
        )

    def _retention(self) -> list[str]:
        """Decide about old rows where the caller did not, and say what becomes of them."""
        if not self.expired:
            self.keep_expired = bool(self.keep_expired)
            return []
        if self.keep_expired is None:
            self.keep_expired = self.last is not None and self.last < self._cutoff()
            if not self.keep_expired:
                self.store.command(
                    f"ALTER TABLE {self.store.database}.execution_logs UPDATE kept = 0 WHERE ingest_id = {{id:String}}",
                    {"id": self.ingest_id},
                    name="ingest",
                )
        old = f"{self.expired} of {self.rows} rows are older than the retention of {self.days} days"
        if self.keep_expired:
            return [f"{old}: they are exempt from it and stay until they are deleted by hand"]
        return [f"{old}: the database deletes them; --keep-expired (with --replace) keeps them"]

    def _overlap(self) -> list[str]:
        """Rows that another source had brought already are not removed, but neither are they silent."""
        table = f"{self.store.database}.execution_logs"
        parameters = {"id": self.ingest_id, "low": self._unix(self.first), "high": self._unix(self.last)}
        span = "toUnixTimestamp(timestamp) BETWEEN {low:Int64} AND {high:Int64}"
        others = self.store.rows(
            f"SELECT count() FROM {table} WHERE ingest_id != {{id:String}} AND {span}",  # noqa: S608
            parameters,
            name="ingest",
        )[0][0]
        if not others:
            return []
        twice = self.store.rows(
            f"SELECT count() FROM {table} WHERE ingest_id = {{id:String}} AND (timestamp, ticket_id, task_type) IN ("  # noqa: S608
            f"SELECT timestamp, ticket_id, task_type FROM {table} WHERE ingest_id != {{id:String}} AND {span})",
            parameters,
            name="ingest",
        )[0][0]
        if not twice:
            return []
        return [f"{twice} rows (same time, ticket and task type) were there already from another source: counted twice"]

    @staticmethod
    def _unix(stamp: pd.Timestamp | None) -> int:
        return 0 if stamp is None else int(stamp.timestamp())

    def _cutoff(self) -> pd.Timestamp:
        """What is older is past its age; nothing is where tickets are kept for ever."""
        import pandas as pd

        return (
            pd.Timestamp(0, tz="UTC") if self.days is None else pd.Timestamp.now("UTC") - pd.Timedelta(days=self.days)
        )
