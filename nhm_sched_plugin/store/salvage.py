"""What can still be read of a damaged spool file."""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nhm_sched_plugin.store.frames import check, scan

__all__ = ["UNSALVAGED", "finish", "move", "readable_frames", "set_aside", "unlink"]

UNSALVAGED: Final = ".unsalvaged"
"""Ending of a file that was set aside and not yet read; `.corrupt` once it was."""
_SIDE_FILES: Final = ("-wal", "-shm")


def set_aside(path: Path, what: str, stamp: str) -> Path:
    """Rename the file and its write-ahead log to `<what>-<stamp>.unsalvaged`, beside it; returns the new path."""
    number = 0
    while True:
        aside = path.with_name(f"{what}-{stamp}{f'-{number}' if number else ''}{UNSALVAGED}")
        if not aside.exists() and not aside.with_suffix(".corrupt").exists():
            break
        number += 1
    # The log first: if the process dies in between, the main file is still found damaged and set aside again.
    move(path, aside)
    return aside


def finish(aside: Path) -> Path:
    """Mark a set-aside file as read: its ending becomes `.corrupt`."""
    finished = aside.with_suffix(".corrupt")
    move(aside, finished)
    return finished


def move(source: Path, target: Path) -> None:
    """Rename a database file with what belongs to it. The log goes first: without it the file is merely older."""
    for suffix in _SIDE_FILES:
        if os.path.exists(f"{source}{suffix}"):
            os.replace(f"{source}{suffix}", f"{target}{suffix}")
        else:
            Path(f"{target}{suffix}").unlink(missing_ok=True)
    os.replace(source, target)


def readable_frames(aside: Path) -> Iterator[bytes]:
    """Every undamaged frame of a file that was set aside, each once.

    First through SQLite, as far as that goes; when it finds damage, then byte by byte as well. The second way may bring
    back records that had been delivered already (their bytes stay in free pages): that is harmless, because delivery is
    exactly once in effect.
    """
    seen: set[int] = set()
    try:
        for frame in _rows(aside):
            seen.add(hash(frame))
            yield frame
        return
    except sqlite3.Error:
        pass  # the damage is why the file is here; the scan takes over
    for frame in _raw_frames(aside):
        if hash(frame) not in seen:
            seen.add(hash(frame))
            yield frame


def _rows(aside: Path) -> Iterator[bytes]:
    # Read only, so that SQLite neither folds the log into the file nor removes it: the scan wants both as they are.
    connection = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        # A garbled page can answer without an error and simply hold fewer rows: then the scan has to look as well.
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()
        for (frame,) in connection.execute("SELECT frame FROM records ORDER BY seq"):
            try:
                check(frame)
            except (ValueError, TypeError):
                continue
            yield frame
        if verdict != ("ok",):
            raise sqlite3.DatabaseError("damaged")
    finally:
        connection.close()


def _raw_frames(aside: Path) -> Iterator[bytes]:
    for name in (aside, Path(f"{aside}-wal")):
        if name.exists() and name.stat().st_size:
            with name.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                yield from scan(blob)


def unlink(path: Path) -> None:
    """Delete a database file. Its log goes first: left behind, it would be taken for that of a later file."""
    for suffix in _SIDE_FILES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.unlink(missing_ok=True)
