"""How many workers keep waiting short: Erlang-C for small pools, square-root staffing for large ones. Pure arithmetic.

Sources:
    A. K. Erlang (1917), the M/M/c queue: P(wait > 0) = C(c, a) and P(wait > t) = C(c, a) exp(-(c - a) t / S), with
    a = arrival rate x mean service time S (in Erlangs), c workers.
    S. Halfin, W. Whitt (1981), "Heavy-traffic limits for queues with many exponential servers", Operations Research 29:
    with c = a + beta sqrt(a), P(wait > 0) -> 1 / (1 + beta Phi(beta) / phi(beta)).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

__all__ = ["erlang_c", "halfin_whitt", "wait_exceeds", "workers_for"]

MISS: Final = 0.05
"""Share of tickets that may wait longer than the SLA allows: the specification's 95 %."""
LARGE: Final = 150.0
"""Erlangs above which square-root staffing replaces the exact sum; there they differ by at most one worker."""
_STEP: Final = math.log(1.02)
_log, _ceil, _floor = math.log, math.ceil, math.floor


def erlang_c(workers: int, load: float) -> float:
    """P(wait > 0) in M/M/c with `load` Erlangs. 1.0 when the queue is unstable (load >= workers).

    Uses the recursion of Erlang-B, 1/B(c) = 1 + c/(a B(c-1)), which neither overflows nor cancels.
    """
    if load <= 0:
        return 0.0
    if workers <= load:
        return 1.0
    blocked = 1.0
    for c in range(1, workers + 1):
        blocked = load * blocked / (c + load * blocked)
    return blocked / (1.0 - load / workers * (1.0 - blocked))


def halfin_whitt(beta: float) -> float:
    """Limit of P(wait > 0) with a + beta sqrt(a) workers, beta > 0."""
    phi = math.exp(-beta * beta / 2) / math.sqrt(2 * math.pi)
    cumulative = 0.5 * (1 + math.erf(beta / math.sqrt(2)))
    return phi / (phi + beta * cumulative)


def wait_exceeds(workers: int, load: float, wait: float) -> float:
    """P(wait > t) in M/M/c; `wait` is t over the mean service time."""
    if workers <= load:
        return 1.0 if load > 0 else 0.0
    return erlang_c(workers, load) * math.exp(-(workers - load) * wait)


def workers_for(load: float, wait: float, miss: float = MISS) -> int:
    """Fewest workers with P(wait > t) <= `miss` at `load` Erlangs; `wait` is t over the mean service time.

    The load is rounded up by at most 2 % to a grid, so that answers come from memory on the hot path.
    """
    if load <= 0:
        return 0
    return _workers_on_grid(_ceil(_log(load) / _STEP), _floor(_log(wait) / _STEP), miss)


@lru_cache(maxsize=8192)
def _workers_on_grid(load_step: int, wait_step: int, miss: float) -> int:
    load, wait = math.exp(load_step * _STEP), math.exp(wait_step * _STEP)
    if load > LARGE:
        return _square_root_staffing(load, wait, miss)
    workers, blocked = 0, 1.0
    while True:
        workers += 1
        blocked = load * blocked / (workers + load * blocked)
        if workers > load:
            waits = blocked / (1.0 - load / workers * (1.0 - blocked))
            if waits * math.exp(-(workers - load) * wait) <= miss:
                return workers


def _square_root_staffing(load: float, wait: float, miss: float) -> int:
    root = math.sqrt(load)
    low, high = 1e-6, 8.0
    for _ in range(40):
        beta = (low + high) / 2
        if halfin_whitt(beta) * math.exp(-beta * root * wait) > miss:
            low = beta
        else:
            high = beta
    return math.ceil(load + high * root)
