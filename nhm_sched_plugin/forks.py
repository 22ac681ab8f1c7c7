"""What has to be made anew in a forked child: threads are gone there, and one of them may hold a lock for ever."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

__all__ = ["Renewable", "renew_after_fork"]


class Renewable(Protocol):
    def after_fork(self) -> None:
        """Called in the child, before any of its code runs: new locks, no threads."""


_live: Final[weakref.WeakSet[Renewable]] = weakref.WeakSet()


def renew_after_fork(thing: Renewable) -> None:
    """Have `thing.after_fork()` called in every child forked while it is alive."""
    _live.add(thing)


def _renew_all() -> None:
    for thing in list(_live):
        thing.after_fork()


os.register_at_fork(after_in_child=_renew_all)
