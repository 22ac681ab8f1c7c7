"""The cache in Redis, with one in this process behind it for when Redis does not answer.

A failure is counted by its reason, logged once per cause, and followed by a pause in which only the process is asked;
after it the next call tries again. Passwords show in no message.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from nhm_sched_plugin.errors import ConfigError, StoreError
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings_ml import CachingSettings, checked_redis_url
from nhm_sched_plugin.store.cache import LARGEST, Fetching, Kind, LocalCache, count

if TYPE_CHECKING:
    import redis

__all__ = ["RedisCache"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_SHORTEST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


class RedisCache(Fetching):
    """Implements the `Cache` protocol. Thread-safe; a forked child connects anew.

    Args:
        caching: URL, timeouts and prefix.
        ttls: seconds that a value lives, by kind.
        clock: monotonic seconds, for the pauses and for what is kept in process.

    Raises `ConfigError` when the URL's file cannot be used or the client is not installed. The first call is the first
    to ask Redis itself.
    """

    _metrics: Metrics

    def __init__(
        self,
        caching: CachingSettings,
        ttls: Mapping[Kind, float],
        metrics: Metrics,
        faults: Faults,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if importlib.util.find_spec("redis") is None:
            raise ConfigError(["ml.caching.redis_url: needs the Redis client: pip install 'nhm-sched-plugin[redis]'"])
        self._caching, self._ttls, self._metrics, self._faults, self._clock = caching, ttls, metrics, faults, clock
        self._local = LocalCache(ttls, clock=clock)
        self._pause_s, self._paused_until = 0.0, 0.0
        self._shared = False
        self._url = _url(caching)
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        super().after_fork()
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None

    @property
    def shared(self) -> bool:
        return self._shared

    def get(self, kind: Kind, key: str) -> bytes | None:
        # Never more than the largest that anybody put, whatever is there.
        found = self._ask(lambda client: client.getrange(self._name(kind, key), 0, LARGEST))
        if found is None:
            value = self._local.get(kind, key)
        elif found:
            self._local.put(kind, key, found)
            value = found
        else:
            self._local.forget(kind, key)
            value = None
        return count(self._metrics, kind, value)

    def put(self, kind: Kind, key: str, value: bytes) -> None:
        if len(value) > LARGEST:
            self._failed("value", f"{kind} {key!r} is not cached: {len(value)} bytes, at most {LARGEST}")
            return
        self._local.put(kind, key, value)
        self._ask(lambda client: client.set(self._name(kind, key), value, px=round(self._ttls[kind] * 1000)))

    def forget(self, kind: Kind, key: str) -> None:
        self._local.forget(kind, key)
        self._ask(lambda client: client.delete(self._name(kind, key)))

    def check(self) -> str:
        """Where Redis is, if it answers. Raises `StoreError` with what happens instead."""
        try:
            self._connected().ping()
        except Exception as error:  # noqa: BLE001 - as in `_ask`
            raise StoreError(self._told(error)) from None
        return _place(self._url)

    def close(self) -> None:
        self._local.close()
        self._disconnect()

    def _name(self, kind: Kind, key: str) -> str:
        return f"{self._caching.key_prefix}:{kind}:{key}"

    def _ask(self, question: Callable[[Any], _T]) -> _T | None:
        """The answer of Redis; None when there is none, which is counted, or during the pause after that."""
        with self._lock:
            now = self._clock()
            if now < self._paused_until:
                self._shared = False
                return None
            if self._pause_s:  # of several threads, one tries
                self._paused_until = now + self._pause_s
        try:
            answer = question(self._connected())
        except Exception as error:  # noqa: BLE001 - whatever a server or what only looks like one makes of it
            self._went_wrong(error)
            return None
        with self._lock:
            back, self._pause_s, self._paused_until, self._shared = self._pause_s > 0, 0.0, 0.0, True
        if back:
            _log.info("Redis at %s answers again", _place(self._url))
        return answer

    def _connected(self) -> redis.Redis:
        client = self._client
        if client is None:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._url = _url(self._caching)
            client = self._client = redis.Redis.from_url(
                self._url,
                socket_connect_timeout=self._caching.redis_connect_timeout_s,
                socket_timeout=self._caching.redis_read_timeout_s,
                retry=Retry(NoBackoff(), 0),  # the pause is here
            )
        return client

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _went_wrong(self, error: Exception) -> None:
        with self._lock:
            self._shared = False
            self._pause_s = min(max(self._pause_s * 2, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
            self._paused_until = self._clock() + self._pause_s
        self._failed(_reason(error), f"{self._told(error)}; this process caches alone")
        # The password may be a new one by then, and half an answer must not be taken for the next one.
        self._disconnect()

    def _told(self, error: Exception) -> str:
        said = _without(self._url, " ".join(str(error).split())[:300]) or type(error).__name__
        return f"Redis at {_place(self._url)}: {_reason(error)}: {said}"

    def _failed(self, reason: str, text: str) -> None:
        self._metrics.child("cache_failures", reason).inc()
        self._faults.report("cache", text)


def _reason(error: Exception) -> str:
    from redis import exceptions

    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.NoPermissionError):
        return "authentication"
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return "timeout"
    if isinstance(error, exceptions.ConnectionError | OSError):
        return "connection"
    if isinstance(error, ConfigError):
        return "configuration"
    return "answer"


def _url(caching: CachingSettings) -> str:
    if caching.redis_url is not None:
        return caching.redis_url.get_secret_value()
    path = caching.redis_url_file
    key = f"ml.caching.redis_url_file = {str(path)!r}"
    try:
        text = path.read_text(encoding="utf-8").strip() if path is not None else ""
    except OSError as error:
        raise ConfigError([f"{key}: cannot be read ({error.strerror or error}); create it or unset the key"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{key}: is no text; write the URL into it"]) from None
    try:
        return checked_redis_url(SecretStr(text)).get_secret_value()
    except ValueError as error:
        raise ConfigError([f"{key}: its content {error}"]) from None


def _place(url: str) -> str:
    """The URL without user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _without(url: str, text: str) -> str:
    """The text without the URL's password, written either way: what only looks like Redis may send back all it got."""
    query = dict(item.partition("=")[::2] for item in urlsplit(url).query.split("&"))
    for secret in (urlsplit(url).password, query.get("password")):
        for written in (secret, unquote(secret or "")):
            if written:
                text = text.replace(written, "(hidden)")
    return text
