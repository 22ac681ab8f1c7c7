"""Caches of bytes, by kind and key: in this process, or in Redis with this process behind it.

A cache is never the only copy of anything: what it holds can be made again, and what it has lost is simply not found.
`open_cache` makes the one that the settings ask for; see docs/caching.md.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Literal, Protocol

from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.metrics import Metrics

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.settings import Settings

__all__ = ["LARGEST", "Cache", "Fetching", "Kind", "LocalCache", "count", "open_cache", "ttls"]

Kind = Literal["model", "forecast", "q_table"]
LARGEST: Final = 64 * 1024 * 1024
"""Bytes: of one value, and of everything that a process keeps."""
_OVERHEAD: Final = 200
"""Bytes that an entry costs besides its value, about."""


class Cache(Protocol):
    """Nothing here raises for a cache that is down; it may take a network's time, so never ask on the hot path."""

    @property
    def shared(self) -> bool:
        """Whether the last call reached what other processes see too."""

    def get(self, kind: Kind, key: str) -> bytes | None:
        """The value, or None when there is none (any more). Counted."""

    def put(self, kind: Kind, key: str, value: bytes) -> None:
        """Keep it as long as its kind lives."""

    def forget(self, kind: Kind, key: str) -> None:
        """Remove it."""

    def fetch(self, kind: Kind, key: str, make: Callable[[], bytes]) -> bytes:
        """The value, or what `make` answers, which is then kept.

        Of the threads of a process that ask at once, one looks and makes and the others wait for it; what `make` raises
        all of them get, and the next one tries again. `make` must not ask for the same value.
        """

    def close(self) -> None: ...


class Fetching(ABC):
    """`fetch` over `get` and `put`, for caches. `_metrics` counts those that waited for another's answer as hits."""

    _metrics: Metrics | None

    @abstractmethod
    def get(self, kind: Kind, key: str) -> bytes | None: ...

    @abstractmethod
    def put(self, kind: Kind, key: str, value: bytes) -> None: ...

    def after_fork(self) -> None:
        self._flights_lock = threading.Lock()
        self._flights: dict[tuple[Kind, str], Future[bytes]] = {}

    def fetch(self, kind: Kind, key: str, make: Callable[[], bytes]) -> bytes:
        with self._flights_lock:
            flight = self._flights.get((kind, key))
            first = flight is None
            if flight is None:
                flight = self._flights[kind, key] = Future()
        if not first:
            value = flight.result()
            count(self._metrics, kind, value)
            return value
        try:
            found = self.get(kind, key)
            if found is None:
                found = make()
                self.put(kind, key, found)
            flight.set_result(found)
            return found
        except BaseException as error:
            flight.set_exception(error)
            raise
        finally:
            with self._flights_lock:
                del self._flights[kind, key]


class LocalCache(Fetching):
    """In this process; the entries used least recently go when it is full. Thread-safe.

    Args:
        ttls: seconds that a value lives, by kind.
        metrics: where questions and hits are counted; None: somebody else counts.
        clock: monotonic seconds.
        most: bytes to keep; a larger value is not kept at all.
    """

    shared: Final = False

    def __init__(
        self,
        ttls: Mapping[Kind, float],
        metrics: Metrics | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        most: int = LARGEST,
    ) -> None:
        self._ttls, self._metrics, self._clock, self._most = ttls, metrics, clock, most
        self._entries: OrderedDict[tuple[Kind, str], tuple[float, bytes]] = OrderedDict()
        self._size = 0
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        super().after_fork()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, kind: Kind, key: str) -> bytes | None:
        with self._lock:
            value = self._alive((kind, key))
        return count(self._metrics, kind, value)

    def put(self, kind: Kind, key: str, value: bytes) -> None:
        with self._lock:
            self._remove((kind, key))
            if len(value) + _OVERHEAD > self._most:
                return
            self._entries[kind, key] = self._clock() + self._ttls[kind], value
            self._size += len(value) + _OVERHEAD
            while self._size > self._most:
                self._remove(next(iter(self._entries)))

    def forget(self, kind: Kind, key: str) -> None:
        with self._lock:
            self._remove((kind, key))

    def close(self) -> None:
        with self._lock:
            self._entries.clear()
            self._size = 0

    def _alive(self, name: tuple[Kind, str]) -> bytes | None:
        found = self._entries.get(name)
        if found is None:
            return None
        if found[0] <= self._clock():
            self._remove(name)
            return None
        self._entries.move_to_end(name)
        return found[1]

    def _remove(self, name: tuple[Kind, str]) -> None:
        found = self._entries.pop(name, None)
        if found is not None:
            self._size -= len(found[1]) + _OVERHEAD


def count(metrics: Metrics | None, kind: Kind, value: bytes | None) -> bytes | None:
    """Count a question and, if there is a value, a hit; returns the value."""
    if metrics is not None:
        metrics.child("cache_requests", kind).inc()
        if value is not None:
            metrics.child("cache_hits", kind).inc()
    return value


def ttls(settings: Settings) -> dict[Kind, float]:
    """Seconds that each kind lives."""
    caching = settings.ml.caching
    return {"model": caching.model_ttl, "forecast": caching.forecast_ttl, "q_table": caching.q_table_ttl}


def open_cache(settings: Settings, metrics: Metrics, faults: Faults) -> Cache | None:
    """The cache of these settings: Redis where it is configured, else in process; None when switched off.

    Asks no server. Raises `ConfigError` for a URL file that cannot be used, and where the Redis client is missing.
    """
    caching = settings.ml.caching
    if not caching.enabled:
        return None
    if not caching.in_redis:
        return LocalCache(ttls(settings), metrics)
    from nhm_sched_plugin.store.redis_cache import RedisCache

    return RedisCache(caching, ttls(settings), metrics, faults)
