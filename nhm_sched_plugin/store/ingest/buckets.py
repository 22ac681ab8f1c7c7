"""Hashes on disk, sorted into files by their first bits, so that equal ones meet in one file that fits into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Buckets", "Hashes"]

Hashes: TypeAlias = "npt.NDArray[np.uint64]"
_BITS: Final = 6


class Buckets:
    """In an empty folder, 8 bytes for each hash; 64 files for each name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, hashes: Hashes) -> None:
        """Raises `OSError` where the disk is full."""
        import numpy as np

        place = (hashes >> np.uint64(64 - _BITS)).astype("uint8")
        ordered = hashes[np.argsort(place, kind="stable")]
        bounds = np.cumsum(np.bincount(place, minlength=2**_BITS))
        for number, part in enumerate(np.split(ordered, bounds[:-1])):
            if len(part):
                with (self._folder / f"{name}-{number}").open("ab") as file:
                    part.tofile(file)

    def pairs(self, one: str, other: str) -> Iterator[tuple[Hashes, Hashes]]:
        """The hashes of two names, a file of each at a time."""
        for number in range(2**_BITS):
            yield self._read(one, number), self._read(other, number)

    def compared(self, one: str, other: str) -> tuple[int, int]:
        """Different hashes of the first name that are there more than once, and that the other name has too."""
        import numpy as np

        repeated = shared = 0
        for mine, others in self.pairs(one, other):
            values = np.sort(mine)
            again = values[1:] == values[:-1]
            distinct: Any = values
            if again.any():
                distinct, counts = np.unique(values, return_counts=True)
                repeated += int(np.count_nonzero(counts > 1))
            if len(others):
                shared += int(np.count_nonzero(np.isin(distinct, others, kind="sort")))
        return repeated, shared

    def _read(self, name: str, number: int) -> Hashes:
        import numpy as np

        path = self._folder / f"{name}-{number}"
        return np.fromfile(path, dtype="uint64") if path.exists() else np.zeros(0, dtype="uint64")
