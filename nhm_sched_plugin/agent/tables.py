"""The tables that hosts mirror: the content of the agent's own files, read again when they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nhm_sched_plugin.files import stamp
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.wire.snapshots import etag, pack_policy

__all__ = ["Table", "forecast_table", "policy_table"]

_ABSENT: Final[bytes] = pb.SnapshotResponse().SerializeToString()


class _Snapshot(NamedTuple):
    """One state of the table, as answers."""

    etag: str
    whole: bytes
    unchanged: bytes


_NONE: Final = _Snapshot("", _ABSENT, _ABSENT)
"""There is no such table: no version, no etag, no content."""


class Table:
    """One snapshot. `refresh` is for the background thread, `answer` for any.

    Args:
        paths: the files; without the first there is no table.
        pack: the content from that of the files, None for one that is not there.
    """

    def __init__(self, paths: Sequence[Path], pack: Callable[..., bytes]) -> None:
        self._paths, self._pack = paths, pack
        self._stamps: list[tuple[int, int, int] | None] = []
        self._snapshot = _NONE  # replaced as a whole: callers ask meanwhile

    def answer(self, known: str) -> bytes:
        """A serialized `SnapshotResponse` for a caller that has the snapshot with this etag."""
        snapshot = self._snapshot
        return snapshot.unchanged if known and known == snapshot.etag else snapshot.whole

    def refresh(self) -> None:
        """Raises OSError or `ModelError` for a file that cannot be used; the old content stays, as it does without."""
        stamps = [stamp(path) for path in self._paths]
        if stamps == self._stamps or stamps[0] is None:
            return
        contents = [
            None if found is None else path.read_bytes() for path, found in zip(self._paths, stamps, strict=True)
        ]
        if [stamp(path) for path in self._paths] != stamps:
            return  # replaced meanwhile: the next look takes all of the new ones
        self._stamps = stamps
        content = self._pack(*contents)
        millis = max(found[0] for found in stamps if found is not None) // 1_000_000
        tag = etag(content)
        whole = pb.SnapshotResponse(version=millis, etag=tag, content=content, timestamp=millis)
        unchanged = pb.SnapshotResponse(version=millis, etag=tag, not_modified=True, timestamp=millis)
        self._snapshot = _Snapshot(tag, whole.SerializeToString(), unchanged.SerializeToString())


def policy_table(q_table: Path, planner: Path) -> Table:
    """The Q-table with the planner that its actions come from."""
    return Table((q_table, planner), pack_policy)


def forecast_table(path: Path) -> Table:
    """The forecast table's file as it is."""
    return Table((path,), lambda content: content)
