"""The caches: in process, and in a real Redis that comes and goes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from nhm_sched_plugin.errors import ConfigError, StoreError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store import cache as module
from nhm_sched_plugin.store.cache import LARGEST, Cache, LocalCache, open_cache, ttls
from nhm_sched_plugin.store.redis_cache import RedisCache

TTLS: dict[module.Kind, float] = {"model": 60.0, "forecast": 0.15, "q_table": 60.0}
PASSWORD = "hunter2/@"
WRITTEN = "hunter2%2F%40"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """A cache with what it counts."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic, **caching: Any) -> None:
        self.metrics = Metrics()
        tree = {"redis_url": url, "key_prefix": uuid.uuid4().hex, "redis_connect_timeout_s": 0.2, **caching}
        self.settings = load_settings({"ml": {"caching": {key: value for key, value in tree.items() if value}}})
        self.caching = self.settings.ml.caching
        self.cache = RedisCache(self.caching, TTLS, self.metrics, Faults(self.metrics), clock=clock)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def failures(self, reason: str) -> float:
        return self.counted("nhm_sched_cache_failures_total", reason=reason)


@pytest.fixture
def tcp(redis_server: Any) -> str:
    return f"redis://127.0.0.1:{redis_server.port}"


# -- in process


def test_a_value_is_found_until_its_kind_has_lived() -> None:
    clock = Clock()
    cache: Cache = LocalCache({"model": 10.0, "forecast": 5.0, "q_table": 20.0}, clock=clock)
    cache.put("model", "a", b"1")
    cache.put("forecast", "a", b"2")
    assert (cache.get("model", "a"), cache.get("forecast", "a"), cache.get("q_table", "a")) == (b"1", b"2", None)
    clock.now += 5.0
    assert (cache.get("model", "a"), cache.get("forecast", "a")) == (b"1", None)
    cache.put("model", "a", b"3")
    clock.now += 9.0
    assert cache.get("model", "a") == b"3", "it lives anew"
    cache.forget("model", "a")
    assert cache.get("model", "a") is None
    assert not cache.shared


def test_what_was_used_least_recently_goes_first_and_a_giant_does_not_come_in() -> None:
    cache = LocalCache(TTLS, most=1000)
    for key in "abc":
        cache.put("model", key, b"x" * 100)
    cache.get("model", "a")
    cache.put("model", "d", b"x" * 100)
    assert [key for key in "abcd" if cache.get("model", key)] == ["a", "c", "d"]
    cache.put("model", "a", b"x" * 1000)
    assert cache.get("model", "a") is None, "nor is the old value served for it"
    assert len(cache) == 2
    cache.close()
    assert len(cache) == 0


def test_questions_and_hits_are_counted() -> None:
    metrics = Metrics()
    cache = open_cache(load_settings({}), metrics, Faults(metrics))
    assert isinstance(cache, LocalCache)
    cache.get("model", "a")
    cache.put("model", "a", b"1")
    cache.get("model", "a")
    asked = metrics.registry.get_sample_value("optimizer_cache_requests_total", {"cache_type": "model"})
    hits = metrics.registry.get_sample_value("optimizer_cache_hits_total", {"cache_type": "model"})
    assert (asked, hits) == (2, 1)


def test_the_specifications_times_and_a_switch() -> None:
    assert ttls(load_settings({})) == {"model": 3600, "forecast": 300, "q_table": 7200}
    metrics = Metrics()
    assert open_cache(load_settings({"ml": {"caching": {"enabled": False}}}), metrics, Faults(metrics)) is None


# -- in Redis


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_hit_miss_and_expiry(redis_server: Any, tcp: str, way: str) -> None:
    url = tcp if way == "tcp" else f"unix://{redis_server.unix_socket_path}"
    one = Seen(url)
    other = Seen(url, key_prefix=one.caching.key_prefix)
    assert other.cache.get("q_table", "a") is None
    one.cache.put("q_table", "a", b"\x00\xff" * 1000)
    one.cache.put("forecast", "a", b"2")
    assert other.cache.get("q_table", "a") == b"\x00\xff" * 1000, "what one host puts another finds"
    assert other.cache.get("forecast", "a") == b"2"
    assert Seen(url).cache.get("q_table", "a") is None, "another prefix, another pool"
    assert one.cache.shared
    assert other.cache.shared
    time.sleep(0.2)
    assert other.cache.get("forecast", "a") is None, "expired there, so not served from this process either"
    one.cache.forget("q_table", "a")
    assert other.cache.get("q_table", "a") is None
    assert other.counted("optimizer_cache_requests_total", cache_type="q_table") == 3
    assert other.counted("optimizer_cache_hits_total", cache_type="q_table") == 1
    for seen in (one, other):
        seen.cache.close()


def test_killed_in_between_and_back_again(mortal_redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    seen = Seen(f"redis://127.0.0.1:{mortal_redis.port}", clock)
    seen.cache.put("model", "a", b"1")
    mortal_redis.terminate()
    for _ in range(3):
        assert seen.cache.get("model", "a") == b"1", "from this process"
        assert not seen.cache.shared
    seen.cache.put("model", "b", b"2")
    assert seen.failures("connection") == 1, "then there is a pause"
    for pause in (1.0, 2.0, 4.0):
        clock.now += pause
        assert seen.cache.get("model", "b") == b"2"
    assert seen.failures("connection") == 4
    assert len([line for line in caplog.records if line.levelno >= logging.WARNING]) == 1, "logged once"
    clock.now += 8.0
    mortal_redis.start()
    assert seen.cache.get("model", "a") is None, "an empty server: it was the last to know"
    assert seen.cache.shared
    assert "answers again" in caplog.messages[-1]
    seen.cache.put("model", "b", b"3")
    assert (
        Seen(f"redis://127.0.0.1:{mortal_redis.port}", key_prefix=seen.caching.key_prefix).cache.get("model", "b")
        == b"3"
    )
    mortal_redis.terminate()
    assert seen.cache.get("model", "b") == b"3"
    assert seen.cache.get("model", "a") is None, "what Redis did not have any more is forgotten here too"


def test_the_pause_grows_to_half_a_minute_at_most() -> None:
    clock = Clock()
    seen = Seen("unix:///nobody/listens", clock)
    for _ in range(8):
        seen.cache.get("model", "a")
        clock.now += 30.0
    assert seen.failures("connection") == 8


def test_a_server_that_hangs_costs_the_timeout_once(tcp: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        seen = Seen(f"redis://127.0.0.1:{deaf.getsockname()[1]}", redis_read_timeout_s=0.1)
        began = time.monotonic()
        for _ in range(20):
            assert seen.cache.get("model", "a") is None
        assert time.monotonic() - began < 2.0
        assert seen.failures("timeout") == 1


def test_wrong_password_is_told_without_it(mortal_redis: Any, caplog: pytest.LogCaptureFixture) -> None:
    url = f"redis://127.0.0.1:{mortal_redis.port}"
    redis.Redis.from_url(url).config_set("requirepass", "right")
    clock = Clock()
    seen = Seen(url.replace("//", f"//:{WRITTEN}@"), clock)
    assert seen.cache.get("model", "a") is None
    assert seen.failures("authentication") == 1
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:\d+: authentication: ") as told:
        seen.cache.check()
    assert Seen(url.replace("//", "//:right@")).cache.check() == url
    for text in (caplog.text, str(told.value), repr(seen.caching), str(seen.settings)):
        assert "hunter2" not in text
    assert "authentication" in caplog.text


def test_what_only_looks_like_redis_and_sends_everything_back(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as echo:

        def answer() -> None:
            peer, _ = echo.accept()
            with peer:
                peer.sendall(b"!" + peer.recv(4096).replace(b"\r\n", b" ") + b"\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        seen = Seen(f"redis://:{WRITTEN}@127.0.0.1:{echo.getsockname()[1]}")
        assert seen.cache.get("model", "a") is None
        thread.join()
    assert sum(seen.failures(reason) for reason in ("answer", "connection", "timeout")) == 1
    assert PASSWORD not in caplog.text
    assert "Redis at redis://127.0.0.1" in caplog.text


def test_a_key_of_another_type_is_a_failure_and_not_a_value(tcp: str) -> None:
    seen = Seen(tcp)
    redis.Redis.from_url(tcp).rpush(f"{seen.caching.key_prefix}:model:a", "x")
    assert seen.cache.get("model", "a") is None
    assert seen.failures("answer") == 1


def test_a_value_that_is_too_large_stays_out(tcp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.store.redis_cache.LARGEST", 10)
    seen = Seen(tcp)
    seen.cache.put("model", "a", b"x" * 11)
    assert seen.failures("value") == 1
    assert redis.Redis.from_url(tcp).exists(f"{seen.caching.key_prefix}:model:a") == 0
    redis.Redis.from_url(tcp).set(f"{seen.caching.key_prefix}:model:a", b"y" * 1000)
    assert len(seen.cache.get("model", "a") or b"") == 11, "nobody reads more into memory than that"
    assert LARGEST > 10_000_000


def test_a_new_password_in_the_file_is_taken_over(mortal_redis: Any, tmp_path: Path) -> None:
    url, file = f"redis://127.0.0.1:{mortal_redis.port}", tmp_path / "url"
    redis.Redis.from_url(url).config_set("requirepass", "right")
    file.write_text(url.replace("//", "//:old@") + "\n")
    clock = Clock()
    seen = Seen("", clock, redis_url_file=str(file))
    seen.cache.put("model", "a", b"1")
    assert seen.failures("authentication") == 1
    file.write_text(url.replace("//", "//:right@") + "\n")
    clock.now += 1.0
    seen.cache.put("model", "a", b"1")
    assert seen.cache.shared
    file.unlink()
    seen.cache.get("model", "a")
    assert seen.cache.shared, "an open connection needs no file"


def test_a_forked_child_has_a_connection_of_its_own(tcp: str) -> None:
    seen = Seen(tcp)
    seen.cache.put("model", "a", b"1")
    child = os.fork()
    if child == 0:
        found = seen.cache.get("model", "a") == b"1" and seen.cache.shared
        os._exit(0 if found else 1)
    assert seen.cache.get("model", "a") == b"1"
    assert os.waitpid(child, 0)[1] == 0
    assert seen.cache.shared


# -- one flight


def test_threads_that_miss_at_once_make_it_once(tcp: str) -> None:
    seen = Seen(tcp)
    made: list[int] = []
    begun, making, go = threading.Barrier(8), threading.Event(), threading.Event()

    def make() -> bytes:
        made.append(1)
        making.set()
        go.wait(60)
        return b"made"

    answers: list[bytes] = []

    def ask() -> None:
        begun.wait(60)
        answers.append(seen.cache.fetch("model", "a", make))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    making.wait(60)
    go.set()
    for thread in threads:
        thread.join(60)
    assert answers == [b"made"] * 8
    assert made == [1]
    assert seen.cache.fetch("model", "a", make) == b"made"
    assert made == [1]
    assert seen.counted("optimizer_cache_requests_total", cache_type="model") == 9
    assert seen.counted("optimizer_cache_hits_total", cache_type="model") == 8
    assert Seen(tcp, key_prefix=seen.caching.key_prefix).cache.get("model", "a") == b"made"


def test_what_cannot_be_made_is_told_to_all_and_tried_again() -> None:
    cache = LocalCache(TTLS)
    begun, go = threading.Event(), threading.Event()

    def fail() -> bytes:
        begun.set()
        go.wait(60)
        raise OSError("no such model")

    told: list[str] = []

    def ask() -> None:
        try:
            cache.fetch("model", "a", fail)
        except OSError as error:
            told.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join(60)
    assert told == ["no such model"] * 3
    assert cache.fetch("model", "a", lambda: b"made") == b"made"
    assert cache.fetch("model", "a", fail) == b"made"


def test_a_child_forked_while_somebody_makes_it_makes_its_own() -> None:
    cache = LocalCache(TTLS)
    begun, go = threading.Event(), threading.Event()

    def slow() -> bytes:
        begun.set()
        go.wait(60)
        return b"parent's"

    thread = threading.Thread(target=cache.fetch, args=("model", "a", slow))
    thread.start()
    begun.wait(60)
    child = os.fork()
    if child == 0:
        os._exit(0 if cache.fetch("model", "a", lambda: b"child's") == b"child's" else 1)
    status = os.waitpid(child, 0)[1]
    go.set()
    thread.join(60)
    assert status == 0
    assert cache.get("model", "a") == b"parent's"


def test_redis_killed_under_load_is_counted_and_everybody_is_answered(mortal_redis: Any) -> None:
    url = f"redis://127.0.0.1:{mortal_redis.port}"
    seen = Seen(url, lambda: 20 * time.monotonic())  # so that the pauses are short
    stop, troubles = threading.Event(), []
    answered = [0] * 4

    def load(which: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key = f"{number % 50}"
            try:
                found = seen.cache.fetch("model", key, lambda key=key: key.encode() * 100)
                if found != key.encode() * 100:
                    troubles.append(found)
                seen.cache.put("q_table", f"{which}-{key}", found)
                got = seen.cache.get("q_table", f"{which}-{key}")
                if got not in (found, None):
                    troubles.append(got)
            except Exception as error:
                troubles.append(error)
            answered[which] += 1

    def until(what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def all_go_on() -> None:
        before = list(answered)
        until(lambda: all(now > then + 20 for now, then in zip(answered, before, strict=True)))

    threads = [threading.Thread(target=load, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(3):
            until(lambda: seen.cache.shared)
            all_go_on()
            failures = seen.failures("connection")
            os.kill(mortal_redis._process.pid, signal.SIGKILL)
            until(lambda failures=failures: seen.failures("connection") > failures)
            until(lambda: not seen.cache.shared)
            all_go_on()
            mortal_redis.terminate()
            mortal_redis.start()
            assert troubles == [], round_
        until(lambda: seen.cache.shared)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert troubles == []
    seen.cache.put("model", "last", b"shared again")
    assert Seen(url, key_prefix=seen.caching.key_prefix).cache.get("model", "last") == b"shared again"


# -- settings


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"http://:{WRITTEN}@h", "expected redis://host:6379/0"),
        (f"redis://:{WRITTEN}@h:port", "the port must be a number"),
        (f"redis://:{WRITTEN}@", "names no host"),
        ("unix://", "names no socket"),
        ("hunter2", "expected redis://"),
    ],
)
@pytest.mark.parametrize("place", ["redis_url", "redisUrl", "file"])
def test_a_url_that_cannot_work_is_refused_without_quoting_it(url: str, said: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(url)
    given = {"redis_url_file": str(tmp_path / "url")} if place == "file" else {place: url}
    with pytest.raises(ConfigError) as error:
        Seen("", **given)
    assert said in str(error.value)
    assert "redis_url" in str(error.value).replace("redisUrl", "redis_url")
    assert "hunter2" not in str(error.value)


def test_other_settings_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"redis_url_file = .*: cannot be read"):
        Seen("", redis_url_file=str(tmp_path / "none"))
    (tmp_path / "url").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no text"):
        Seen("", redis_url_file=str(tmp_path / "url"))
    with pytest.raises(ConfigError, match="both set") as both:
        load_settings({"ml": {"caching": {"redis_url": "redis://:hunter2@h", "redis_url_file": "/x"}}})
    assert "hunter2" not in str(both.value)
