"""History from files, DataFrames and other tables into `execution_logs`.

Each source is known by a digest of its content. A finished one is not taken in again (unless asked to replace it), an
interrupted one goes on after its last finished block, also after kill -9: nothing doubles. Rows that cannot be used go
to a file with the reason, so that nothing is lost on the way either.

    ingest(Path("incidents.csv"), store,
           mapping={"timestamp": "CompleteTimestamp", "ticket_id": "CaseID", "task_type": "ActivityID"})
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.ingest.chunks import Chunk, FrameChunk, Position
from nhm_sched_plugin.store.ingest.csv_blocks import Kinds
from nhm_sched_plugin.store.ingest.profiles import Profile
from nhm_sched_plugin.store.ingest.readers import FORMATS, detect, read
from nhm_sched_plugin.store.ingest.rejects import rejects_path
from nhm_sched_plugin.store.ingest.run import IngestReport, Rows, Run, Source
from nhm_sched_plugin.store.ingest.tables_in import Table

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.store.repository import Store

__all__ = ["IngestReport", "file_source", "ingest", "ingest_frame", "ingest_table"]

Progress = Callable[[int, int | None], None]
_FRAME_ROWS: Final = 100_000


def ingest(
    path: Path | str,
    store: Store,
    *,
    mapping: Mapping[str, str] | None = None,
    format: str | None = None,
    constants: Mapping[str, str] | None = None,
    timezone: str | None = None,
    timestamp_format: str | None = None,
    sla_wait_s: float | None = None,
    profile: Profile | None = None,
    rejects: Path | None = None,
    keep_expired: bool | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    rows: Rows | None = None,
) -> IngestReport:
    """Take a history file into `execution_logs`.

    Args:
        path: CSV (first line: names; separated by `,`, `;`, tab or `|`; plain, gzip, bzip2 or zip), Parquet or SWF.
        store: an initialised store.
        mapping: target -> column of the file, for names that differ. Targets: the columns of `execution_logs`, and
            `actual_duration_s`, `actual_duration_min`, `wait_s`, `wait_min`.
        format: `csv`, `parquet` or `swf`; by default from the ending or the content.
        constants: target -> value, for what the file does not say (`{"risk_band": "medium"}`).
        timezone: of stamps that carry none; default UTC.
        timestamp_format: as for `strptime`, for stamps that are neither ISO 8601 nor Unix time.
        sla_wait_s: a ticket that waited at most this long met its SLA; for files that tell the wait but no `sla_met`.
        profile: all of these (from `mapping` on) at once; those that are given win over it.
        rejects: where rejected rows go; default `<name>.rejects.csv` beside the file or, if that folder is not
            writable, in the working directory. Written only when there are any.
        keep_expired: True exempts rows older than the retention from it, False leaves them to it. None: exempt when
            the whole file is that old, since it would be gone at once; else left to it, with a warning.
        replace: remove what an earlier run took from the same content, and take it again.
        progress: called as (done, total) in bytes of the file, in rows for Parquet.
        rows: called as (rows taken, rows rejected).

    Raises `IngestError` for a file, mapping or column that cannot work, and `StoreError`.
    """
    path = Path(path)
    how = (profile or Profile()).changed(
        mapping=mapping,
        constants=constants,
        timezone=timezone,
        timestamp_format=timestamp_format,
        sla_wait_s=sla_wait_s,
        format=format,
    )
    source = file_source(path, how)
    job = Run(
        store,
        path.name,
        _file_digest(path),
        how,
        rejects=rejects or rejects_path(path),
        keep_expired=keep_expired,
        progress=progress,
        rows=rows,
    )
    return job.run(source, replace=replace)


def file_source(path: Path, how: Profile) -> Source:
    """How a file is read. Raises `IngestError` when it is not there or its format is not known."""
    if how.format is not None and how.format not in FORMATS:
        raise IngestError(f"format {how.format!r}: known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise IngestError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    return functools.partial(read, path, how.format or detect(path))


def ingest_frame(
    frame: pd.DataFrame,
    store: Store,
    *,
    name: str,
    mapping: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    timezone: str | None = None,
    timestamp_format: str | None = None,
    sla_wait_s: float | None = None,
    profile: Profile | None = None,
    rejects: Path | None = None,
    keep_expired: bool | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """The same for a DataFrame; `name` stands for the file. Without `rejects`, rejected rows are only counted."""
    import pandas as pd

    digest = hashlib.sha256(repr([(str(key), str(kind)) for key, kind in frame.dtypes.items()]).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    how = (profile or Profile()).changed(
        mapping=mapping,
        constants=constants,
        timezone=timezone,
        timestamp_format=timestamp_format,
        sla_wait_s=sla_wait_s,
    )
    job = Run(
        store,
        name,
        digest.hexdigest()[:32],
        how,
        rejects=rejects,
        keep_expired=keep_expired,
        progress=progress,
        rows=None,
    )
    return job.run(functools.partial(_frame_chunks, frame), replace=replace)


def ingest_table(
    table: Table,
    store: Store,
    *,
    profile: Profile | None = None,
    rejects: Path | None = None,
    keep_expired: bool | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    rows: Rows | None = None,
) -> IngestReport:
    """The same for a table of this database or of another one. `progress` counts rows.

    Raises `IngestError` for a table, column or condition that cannot work, and `StoreError`.
    """
    how = profile or Profile()
    job = Run(
        store,
        table.name,
        table.digest(),
        how,
        rejects=rejects or Path.cwd() / f"{table.name}.rejects.csv",
        keep_expired=keep_expired,
        progress=progress,
        rows=rows,
    )
    return job.run(functools.partial(table.chunks, how), replace=replace)


def _frame_chunks(frame: pd.DataFrame, kinds: Kinds, start: Position) -> Iterator[Chunk]:
    kinds([str(column) for column in frame.columns], {})
    for first in range(start.row, max(len(frame), 1), _FRAME_ROWS):
        part = frame.iloc[first : first + _FRAME_ROWS]
        end = first + len(part)
        yield FrameChunk(part, range(first + 1, end + 1), [], Position(row=end), end, len(frame))


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise IngestError(f"{path} cannot be read: {error.strerror or error}") from None
