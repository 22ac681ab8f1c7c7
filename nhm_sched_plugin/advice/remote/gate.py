"""Keeps gRPC and `fork` apart: nobody is inside gRPC while the process forks.

gRPC's own fork handlers put its state in order only when no thread is in a call just then; otherwise they are skipped,
and the child crashes or hangs once it uses gRPC itself. Our threads wait inside a call most of the time, so a fork has
to call them out first: cancels what is under way, holds back new calls, and lets them go on afterwards. A child that
was forked in spite of that - a call that could not be stopped in time - leaves gRPC alone and lives on what its parent
keeps on disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from nhm_sched_plugin.errors import AgentUnavailableError

__all__ = ["cancellable", "inside"]

_PATIENCE_S: Final = 0.5
"""What a fork waits at most; a decision that is being asked for ends well before."""
_SETTLING_S: Final = 0.005
"""After a cancelled call, for gRPC's own thread that delivered the news."""


class _Gate:
    def __init__(self) -> None:
        self.fork_lock = threading.Lock()
        self.changed = threading.Condition()
        self.forking = False
        self.threads = 0
        self.calls: set[Any] = set()
        self.usable = True


_gate = _Gate()


@contextlib.contextmanager
def inside() -> Iterator[None]:
    """Around everything that enters gRPC. Waits while the process forks.

    Raises `AgentUnavailableError` in a child where gRPC cannot be used.
    """
    gate = _gate
    with gate.changed:
        while gate.forking:
            gate.changed.wait()
        if not gate.usable:
            raise AgentUnavailableError("forked", "this process was forked in the middle of a call to the agent")
        gate.threads += 1
    try:
        yield
    finally:
        with gate.changed:
            gate.threads -= 1
            gate.changed.notify_all()


@contextlib.contextmanager
def cancellable(call: Any) -> Iterator[None]:
    """Around the waiting for a call that a fork may cancel."""
    calls = _gate.calls
    calls.add(call)
    try:
        if _gate.forking:
            call.cancel()
        yield
    finally:
        calls.discard(call)


def _before_fork() -> None:
    gate = _gate
    gate.fork_lock.acquire()
    with gate.changed:
        gate.forking = True
        if not gate.threads:
            return
    for call in list(gate.calls):
        call.cancel()
    with gate.changed:
        gate.changed.wait_for(lambda: not gate.threads, _PATIENCE_S)
    time.sleep(_SETTLING_S)


def _after_fork_in_parent() -> None:
    gate = _gate
    with gate.changed:
        gate.forking = False
        gate.changed.notify_all()
    gate.fork_lock.release()


def _after_fork_in_child() -> None:
    global _gate
    before, _gate = _gate, _Gate()
    _gate.usable = before.usable and not before.threads


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
