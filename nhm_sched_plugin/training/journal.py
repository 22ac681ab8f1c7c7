"""What a training has finished so far: one JSON file per slice, so that a run that was interrupted goes on from there.

A file is named by a digest of everything its content depends on - the slice's counts, the settings, the models it is
compared with, the code - so that a result is used again for exactly the same question and never for another.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from nhm_sched_plugin.errors import TrainingError
from nhm_sched_plugin.files import replace_file

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Journal", "digest_of", "frame_digest"]

_LIBRARIES: Final = ("numpy", "pandas", "prophet", "statsmodels", "holidays")
_T = TypeVar("_T")


class Journal:
    """The run folder. `fresh` starts with an empty one."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self._folder = folder
        self._used: set[str] = set()
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)

    def find(self, digest: str, kind: type[_T]) -> _T | None:
        """The finished result of that digest; None if there is none, or only a part of one."""
        try:
            found = msgspec.json.decode(self._file(digest).read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None
        self._used.add(digest)
        return found

    def keep(self, digest: str, result: msgspec.Struct) -> None:
        """Write a result so that a reader sees all of it or nothing. Raises `TrainingError` for an unusable folder."""
        file = self._file(digest)
        try:
            replace_file(file, msgspec.json.encode(result), durable=False)
        except OSError as error:
            raise TrainingError(f"the run folder {file.parent} cannot be written ({error.strerror or error})") from None
        self._used.add(digest)

    def close(self, *, done: bool) -> None:
        """After a success nothing is kept; after one with failed slices what this run used, and nothing older."""
        if done:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for file in self._folder.glob("*.*"):
            if file.stem not in self._used:
                file.unlink(missing_ok=True)

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}.json"


def digest_of(series: pd.Series[Any], about: Any, blobs: Iterable[bytes] = ()) -> str:
    """Of a slice's counts and stamps, of what its fit depends on besides (JSON values) and of this version's code."""
    import numpy as np

    found = hashlib.sha256(_code())
    index: Any = series.index
    found.update(str((index.dtype, series.dtype, len(series))).encode())
    found.update(np.ascontiguousarray(getattr(index, "asi8", index.to_numpy())).tobytes())
    found.update(np.ascontiguousarray(series.to_numpy()).tobytes())
    found.update(msgspec.json.encode(about, order="deterministic"))
    for blob in blobs:
        found.update(hashlib.sha256(blob).digest())
    return found.hexdigest()


def frame_digest(frame: pd.DataFrame) -> bytes:
    """Of hours x numbers with their names."""
    import numpy as np

    index: Any = frame.index
    found = hashlib.sha256(repr((str(index.dtype), [str(name) for name in frame.columns])).encode())
    found.update(np.ascontiguousarray(index.asi8).tobytes())
    found.update(np.ascontiguousarray(frame.to_numpy(dtype=np.float64)).tobytes())
    return found.digest()


@cache
def _code() -> bytes:
    """Digest of the modules that fit, and the versions of what they fit with."""
    package = Path(__file__).resolve().parent.parent
    found = hashlib.sha256()
    for folder in ("forecasting", "training"):
        for file in sorted((package / folder).rglob("*.py")):
            found.update(file.read_bytes())
    for library in _LIBRARIES:
        try:
            found.update(f"{library} {version(library)}\n".encode())
        except PackageNotFoundError:
            found.update(f"no {library}\n".encode())
    return found.digest()
