"""A memory of what is asked again: what is asked once only does not fill it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

__all__ = ["Recurring"]

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Recurring(dict[_K, _V]):
    """A dictionary that `keep` puts a value into when its key has been kept once before, not long ago.

    Where every question is a new one, to keep the answers takes longer than to make them: all of them pass through the
    processor's cache, push what is needed out of it, and are seen for the last time when they are thrown away.
    At most `most` entries; then all are forgotten. Any thread may read and keep.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._once: set[int] = set()

    def keep(self, key: _K, value: _V) -> None:
        mark, once = hash(key), self._once
        if mark not in once:
            if len(once) >= self._most:
                once.clear()
            once.add(mark)
            return
        if len(self) >= self._most:
            self.clear()
        self[key] = value
