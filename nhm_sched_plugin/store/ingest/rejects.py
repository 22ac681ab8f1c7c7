"""Rejected rows, to a CSV that is made with the first of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.ingest.chunks import Broken

__all__ = ["Rejects", "rejects_path"]


def rejects_path(path: Path) -> Path:
    """Beside the source or, if that folder is not writable, in the working directory."""
    folder = path.parent if os.access(path.parent, os.W_OK) else Path.cwd()
    return folder / f"{path.name}.rejects.csv"


class Rejects(AbstractContextManager["Rejects"]):
    """Counts them, and writes them where there is a path.

    Args:
        path: None: they are only counted.
        count, first, size: of an earlier run that is gone on with: how many, the first of them, and how many bytes of
            the file are certain. What it wrote after that comes again.
    """

    def __init__(self, path: Path | None, count: int = 0, first: str = "", size: int = 0) -> None:
        self.path, self.count, self.first, self._size = path, count, first, size
        self._file: IO[str] | None = None

    def add(self, rows: Iterable[Broken]) -> None:
        """Raises `IngestError` when they cannot be written."""
        for row in rows:
            self.count += 1
            self.first = self.first or f"row {row.number}: {row.reason}"
            if self.path is not None:
                self._writer(self.path).writerow([row.number, row.reason, row.text])

    def _writer(self, path: Path) -> Any:
        if self._file is None:
            try:
                self._file = path.open("r+" if self._size and path.exists() else "w", encoding="utf-8", newline="")
                self._file.seek(0, os.SEEK_END)
                self._file.truncate(min(self._size, self._file.tell()))
                self._file.seek(0, os.SEEK_END)
            except OSError as error:
                raise IngestError(
                    f"rejected rows cannot be written to {path} ({error.strerror or error}); name another file "
                    "with --rejects"
                ) from None
            if self._file.tell() == 0:
                csv.writer(self._file).writerow(["row_number", "reason", "row"])
        return csv.writer(self._file)

    def flushed(self) -> int:
        """Bytes of the file that are written."""
        if self._file is not None:
            self._file.flush()
            self._size = self._file.tell()
        return self._size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
