"""A column of few different words, kept as small numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Labels"]


class Labels:
    """A column of few different words, such as task types: a code per ticket, and the words."""

    def __init__(self, codes: NDArray[np.int32], words: tuple[str | None, ...]) -> None:
        self.codes, self.words = codes, words

    @classmethod
    def of(cls, column: Sequence[str | None] | Labels) -> Labels:
        """Of one word per ticket; words in order of appearance."""
        if isinstance(column, Labels):
            return column
        words: dict[str | None, int] = {}
        codes = [words.setdefault(word, len(words)) for word in column]
        return cls(np.array(codes, np.int32), tuple(words))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, which: slice | NDArray[Any]) -> Labels:
        return Labels(self.codes[which], self.words)

    def at(self, index: int) -> str | None:
        """The word of one ticket; None when the log has no such column."""
        return self.words[self.codes[index]] if len(self.codes) else None

    def tolist(self) -> list[str | None]:
        return [self.words[code] for code in self.codes.tolist()]
