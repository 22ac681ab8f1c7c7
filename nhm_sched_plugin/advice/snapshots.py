"""Keeps the tables under `data_dir` in the cache that hosts share, and starts a host without any from there.

The files stay the truth: one that is there is never replaced by a cached one. A thread of its own does it all, so a
slow network holds up neither decisions nor learning.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from nhm_sched_plugin.background import Worker
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, replace_file, stamp
from nhm_sched_plugin.forecasting.table import TABLE_VERSION, parse_table
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy import qtable
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.store.cache import Cache, Kind, open_cache, ttls

__all__ = ["Group", "Shelf", "Snapshots", "forget_learned", "groups"]

_log = logging.getLogger(__name__)
_LOOK_S: Final = 0.5
"""How often the files are looked at."""
_AGAIN_S: Final = 5.0
"""After a cache that did not answer."""
_IMPORTING_S: Final = 1.0
"""The first question also imports the client; what a start waits for that, at most."""
_DIGEST: Final = hashlib.sha256().digest_size


class Group(NamedTuple):
    """Files that are cached as one value, since they belong together. The first decides which value is newer."""

    kind: Kind
    key: str
    """Names the files' format: hosts of another version look elsewhere."""
    files: Mapping[Path, Callable[[bytes, str], float]]
    """How to read each, from its content and name: raises `ModelError`, or tells how far it has come.

    0: not worth keeping.
    """


def groups(settings: Settings) -> tuple[Group, Group]:
    """What is cached: the Q-table with the planner that its actions come from, and the forecast table."""
    learned = Group(
        "q_table",
        f"policy-{qtable.VERSION}",
        {
            settings.q_table_path: lambda raw, name: qtable.QTable.parse(raw, name).updates,
            settings.planner_path: lambda raw, name: DemandModel.parse(raw, name).tickets,
        },
    )
    forecast = Group(
        "forecast",
        f"table-{TABLE_VERSION}",
        {settings.forecast_table_path: lambda raw, name: parse_table(raw, name).generated_at},
    )
    return learned, forecast


class Shelf:
    """One group of files and its place in the cache.

    Args:
        ttl_s: how long the cache keeps it; what has not changed is put again after half of that.
        clock: monotonic seconds.
    """

    def __init__(
        self, group: Group, cache: Cache, ttl_s: float, metrics: Metrics, faults: Faults, clock: Callable[[], float]
    ) -> None:
        self._group, self._cache, self._ttl_s = group, cache, ttl_s
        self._metrics, self._faults, self._clock = metrics, faults, clock
        self._first = next(iter(group.files))
        self._answered = self._had = False
        self._seen: tuple[object, ...] | None = None
        self._put: tuple[object, ...] | None = None
        self._due = self._ask_again = clock()

    def take_over(self) -> None:
        """Write the files from the cache, if they are missing; once, but again while the cache does not answer.

        A file that is there stays. One that differs from the cached one is another story, which nothing is added to.
        """
        if self._answered or self._clock() < self._ask_again:
            return
        self._ask_again = self._clock() + _AGAIN_S
        if self._first.exists():
            self._answered = True
            return
        raw = self._cache.get(self._group.kind, self._group.key)
        if raw is None:
            self._answered = self._cache.shared
            return
        parts, come = self._opened(raw)
        if come > 0:
            done = self._write(parts)
            _log.info("%s in the cache: %s", ", ".join(parts), "taken over" if done else "not for the files here")
        self._answered = True

    def put(self, *, complete: bool = False) -> None:
        """Cache the files when they are new, or when half their time is over.

        `complete`: no file is being written to now. Otherwise two looks in a row must see the same ones.
        """
        now = tuple(stamp(path) for path in self._group.files)
        settled, self._seen = complete or now == self._seen, now
        if now[0] is None or not settled or (now == self._put and self._clock() < self._due):
            return
        self._put, self._due = now, self._clock() + self._ttl_s / 2
        cached = self._cache.get(self._group.kind, self._group.key)
        if self._cache.shared:  # only then is it worth reading the files
            self._offer(cached)
        if not self._cache.shared:
            self._due = self._clock() + _AGAIN_S

    def _offer(self, cached: bytes | None) -> None:
        """Cache the files, unless others have come further; forget them when somebody here has started over."""
        kind, key = self._group.kind, self._group.key
        parts = {path.name: path.read_bytes() for path in self._group.files if path.exists()}
        try:
            come = self._come(parts)
        except ModelError:
            return  # whoever serves from the file says what is wrong with it
        if come > 0:
            packed, self._had = _packed(parts), True
            if cached is None or cached == packed or self._opened(cached)[1] <= come:
                self._cache.put(kind, key, packed)
        elif self._had:
            self._cache.forget(kind, key)
            self._had = not self._cache.shared

    def _opened(self, raw: bytes) -> tuple[dict[str, bytes], float]:
        """The files in a cached value and how far the first has come; nothing (counted) if nobody can use it."""
        try:
            parts = _unpacked(raw)
            return parts, self._come(parts)
        except ModelError as error:
            self._metrics.child("cache_failures", "value").inc()
            kind, key = self._group.kind, self._group.key
            self._faults.report("cache", f"the cached {kind} {key!r} is not used: {error}")
            return {}, 0.0

    def _come(self, parts: Mapping[str, bytes]) -> float:
        """Reads every file as its readers do. Raises `ModelError` where one of them cannot be used."""
        known = {path.name: read for path, read in self._group.files.items()}
        if self._first.name not in parts or not parts.keys() <= known.keys():
            raise ModelError(f"it holds {sorted(parts)}; expected {sorted(known)}")
        come = {name: known[name](content, name) for name, content in parts.items()}
        return come[self._first.name]

    def _write(self, parts: Mapping[str, bytes]) -> bool:
        """The first file last: who reads it finds the others. False when somebody else wrote in the meantime."""
        with file_lock(self._first):
            there = [path for path in self._group.files if path.exists()]
            if self._first in there or any(path.read_bytes() != parts.get(path.name) for path in there):
                return False
            for path in reversed(list(self._group.files)):
                if path.name in parts and path not in there:
                    replace_file(path, parts[path.name])
        return True


class Snapshots:
    """Takes missing files over from the cache, and keeps the cache up to date, in a thread of its own.

    Without Redis it does nothing: a process would only keep a second copy of its own files. Nor does it where the
    tables come from a remote agent. Raises `ConfigError` for settings of Redis that cannot work.
    """

    def __init__(self, settings: Settings, metrics: Metrics, faults: Faults) -> None:
        caching, self._faults = settings.ml.caching, faults
        self._patience_s = caching.redis_connect_timeout_s + caching.redis_read_timeout_s + _IMPORTING_S
        self._worker = Worker("nhm-sched-cache", lambda _, error: faults.report("cache", error))
        shared = caching.in_redis and settings.optimizer.endpoint is None
        self._cache = open_cache(settings, metrics, faults) if shared else None
        self._shelves: list[Shelf] = []
        if self._cache is not None:
            lives = ttls(settings)
            self._shelves = [
                Shelf(group, self._cache, lives[group.kind], metrics, faults, time.monotonic)
                for group in groups(settings)
            ]
            self._worker.every(_LOOK_S, "look", self.look)

    def start(self) -> None:
        """Take over what is missing, waiting no longer than the timeouts; what comes later is taken over as well."""
        if self._cache is not None:
            asked = threading.Event()
            self._worker.submit("take over", self._take_over, asked)
            asked.wait(self._patience_s)

    def go_on(self) -> None:
        """Start the thread in a forked child; costs nothing where it runs."""
        if self._cache is not None:
            self._worker.start()

    def look(self, *, complete: bool = False) -> None:
        """Take over what is still missing, and cache what is new. Raises nothing."""
        for shelf in self._shelves:
            self._attempt(shelf.take_over)
            self._attempt(functools.partial(shelf.put, complete=complete))

    def close(self, timeout_s: float = 0.0) -> None:
        """Cache what was saved last, as far as the time allows, and end the thread."""
        if self._cache is not None:
            self._worker.submit("last look", lambda: self.look(complete=True))
            self._worker.submit("close", self._cache.close)
        self._worker.close(timeout_s)

    def _take_over(self, asked: threading.Event) -> None:
        for shelf in self._shelves:
            self._attempt(shelf.take_over)
        asked.set()

    def _attempt(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - a file that cannot be read or written: the other group goes on
            self._faults.report("cache", error)


def forget_learned(settings: Settings) -> bool:
    """Remove the cached Q-table and planner; False when Redis did not answer. Raises `ConfigError`."""
    metrics = Metrics()
    cache = open_cache(settings, metrics, Faults(metrics)) if settings.ml.caching.in_redis else None
    if cache is None:
        return True
    learned, _ = groups(settings)
    cache.forget(learned.kind, learned.key)
    removed = cache.shared
    cache.close()
    return removed


def _packed(parts: Mapping[str, bytes]) -> bytes:
    """One value: the SHA-256 digest of the rest, then names and contents (MessagePack)."""
    body = msgspec.msgpack.encode(parts)
    return hashlib.sha256(body).digest() + body


def _unpacked(raw: bytes) -> dict[str, bytes]:
    body = raw[_DIGEST:]
    if hashlib.sha256(body).digest() != raw[:_DIGEST]:
        raise ModelError("it fails its SHA-256 digest (cut short, or somebody else's)")
    try:
        return msgspec.msgpack.decode(body, type=dict[str, bytes])
    except msgspec.MsgspecError as error:
        raise ModelError(f"it does not hold files ({error})") from None
