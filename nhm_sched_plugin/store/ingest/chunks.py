"""Parts of a source on their way in, each small enough for memory and known by where it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Broken", "Chunk", "FrameChunk", "Position", "TableChunk"]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a chunk ends, so that a later run can go on from there."""

    row: int = 0
    """Rows of the source up to here."""
    offset: int = 0
    """Bytes of the (unpacked) file up to here; other sources: what they like."""
    careful: bool = False
    """Of a CSV: quotes stand in the middle of fields, so that rows must be read one by one."""


class Broken(NamedTuple):
    """A row that cannot be read as a row: its number, its text, and why."""

    number: int
    text: str
    reason: str


class Chunk(ABC):
    """Some rows of the source, with its own columns. `done` of `total` bytes (or rows) have been read with it.

    Nothing is dropped: a row is among those that `full` gives, which have these `numbers` (1-based), or in `broken`.
    """

    def __init__(self, position: Position, done: int, total: int | None) -> None:
        self.position, self.done, self.total = position, done, total
        self.numbers: Sequence[int] = ()
        self.broken: Sequence[Broken] = ()

    def quick(self) -> pa.Table | None:
        """The columns that are needed, with types, where every row has them; None: look at `full`."""
        return None

    @abstractmethod
    def full(self) -> pa.Table | pd.DataFrame:
        """All columns as the source has them."""


class TableChunk(Chunk):
    """Of a source that has types of its own."""

    def __init__(self, table: pa.Table, first: int, position: Position, done: int, total: int | None) -> None:
        super().__init__(position, done, total)
        self._table = table
        self.numbers = range(first, first + table.num_rows)

    def quick(self) -> pa.Table:
        return self._table

    def full(self) -> pa.Table:
        return self._table


class FrameChunk(Chunk):
    """Rows that were put together one by one."""

    def __init__(
        self,
        frame: pd.DataFrame,
        numbers: Sequence[int],
        broken: Sequence[Broken],
        position: Position,
        done: int,
        total: int | None,
    ) -> None:
        super().__init__(position, done, total)
        self._frame, self.numbers, self.broken = frame, numbers, broken

    def full(self) -> pd.DataFrame:
        return self._frame
