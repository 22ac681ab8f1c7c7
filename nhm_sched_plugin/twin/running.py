"""The tickets that run: a binary heap by the time they end, compiled. Part of `engine.py`."""

from __future__ import annotations

from typing import Any

from nhm_sched_plugin.twin.compiled import inner
from nhm_sched_plugin.twin.layout import BUSY, NOW

__all__ = ["add", "remove"]


@inner
def _earlier(sim: Any, a: int, b: int) -> bool:
    """Whether the heap's entry `a` ends before `b`; at the same moment the ticket that arrived first does."""
    ends, holders = sim.ends, sim.holders
    return ends[a] < ends[b] or (ends[a] == ends[b] and holders[a] < holders[b])  # type: ignore[no-any-return]


@inner
def _swap(sim: Any, a: int, b: int) -> None:
    ends, holders = sim.ends, sim.holders
    ends[a], ends[b] = ends[b], ends[a]
    holders[a], holders[b] = holders[b], holders[a]


@inner
def _rise(sim: Any, at: int) -> None:
    while at > 0:
        parent = (at - 1) >> 1
        if not _earlier(sim, at, parent):
            return
        _swap(sim, at, parent)
        at = parent


@inner
def remove(sim: Any, at: int) -> int:
    """Takes an entry out of the heap of running tickets; its ticket."""
    n = sim.n
    ticket = sim.holders[at]
    n[BUSY] -= 1
    size = n[BUSY]
    if at < size:
        _swap(sim, at, size)
        _rise(sim, at)
        child = 2 * at + 1
        while child < size:
            if child + 1 < size and _earlier(sim, child + 1, child):
                child += 1
            if not _earlier(sim, child, at):
                break
            _swap(sim, at, child)
            at, child = child, 2 * child + 1
    return ticket  # type: ignore[no-any-return]


@inner
def add(sim: Any, ticket: int) -> None:
    """A ticket that starts now."""
    at = sim.n[BUSY]
    sim.ends[at] = sim.t[NOW] + sim.durations[ticket]
    sim.holders[at] = ticket
    sim.n[BUSY] += 1
    _rise(sim, at)
