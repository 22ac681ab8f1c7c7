"""Threads that never hold the host."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.background import FileWatch, Pool, PoolFullError, Worker


def test_a_pool_answers_fails_and_is_bounded() -> None:
    pool = Pool(2, "test")
    assert pool.submit(lambda x: x + 1, 1).result(5) == 2
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result(5)
    gate = threading.Event()
    busy = [pool.submit(gate.wait, 5) for _ in range(2)]
    with pytest.raises(PoolFullError, match="all 2 threads"):
        pool.submit(int)
    gate.set()
    assert [future.result(5) for future in busy] == [True, True]
    assert pool.submit(int).result(5) == 0
    pool.close()
    with pytest.raises(PoolFullError, match="closed"):
        pool.submit(int)


def test_one_thread_serves_a_caller_that_asks_again_at_once() -> None:
    pool = Pool(1, "test")
    assert [pool.submit(int, i).result(5) for i in range(500)] == list(range(500))
    pool.close()


def test_waiting_in_line() -> None:
    pool = Pool(2, "test", wait_in_line=True)
    gate, order = threading.Event(), []
    futures = [pool.submit(lambda i=i: (gate.wait(5), order.append(i))) for i in range(20)]
    cancelled = pool.submit(order.append, "cancelled")
    assert cancelled.cancel()
    gate.set()
    for future in futures:
        future.result(5)
    assert sorted(order) == list(range(20))
    pool.close()


def test_the_threads_of_a_pool_are_daemons() -> None:
    pool = Pool(1, "named-for-the-test")
    pool.submit(int).result(5)
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("named-for-the-test")]
    assert thread.daemon
    pool.close()
    thread.join(5)
    assert not thread.is_alive()


@pytest.fixture
def failures() -> list[tuple[str, BaseException]]:
    return []


@pytest.fixture
def worker(failures: Any) -> Any:
    made = Worker("test-worker", lambda what, error: failures.append((what, error)), max_queue=10)
    yield made
    made.close(1)


def test_a_worker_runs_tasks_in_order_and_survives_their_errors(worker: Worker, failures: Any) -> None:
    done: list[int] = []
    for i in range(5):
        assert worker.submit("append", done.append, i)
        worker.submit("fail", lambda: 1 / 0)
    assert worker.flush(5)
    assert done == list(range(5))
    assert [what for what, _ in failures] == ["fail"] * 5


def test_a_worker_does_things_again_and_again_although_one_fails(worker: Worker, failures: Any) -> None:
    ticks: list[int] = []
    worker.every(0.01, "fail", lambda: 1 / 0)
    worker.every(0.02, "tick", lambda: ticks.append(1))
    worker.start()
    until = time.monotonic() + 5
    while len(ticks) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(ticks) >= 5
    assert len(failures) >= 5


def test_periodic_tasks_run_while_tasks_keep_coming(worker: Worker) -> None:
    ticks: list[int] = []
    worker.every(0.01, "tick", lambda: ticks.append(1))
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        worker.submit("work", time.sleep, 0.002)
    assert len(ticks) >= 5


def test_a_full_or_closed_worker_refuses(worker: Worker) -> None:
    started, gate = threading.Event(), threading.Event()
    worker.submit("wait", lambda: (started.set(), gate.wait(5)))
    assert started.wait(5)
    results = [worker.submit("more", int) for _ in range(20)]
    assert results.count(True) == 10
    gate.set()
    assert worker.flush(5)
    worker.close(5)
    worker.close(5)
    assert not worker.submit("late", int)


def test_close_runs_what_is_queued_and_gives_up_in_time(failures: Any) -> None:
    done: list[int] = []
    quick = Worker("quick", lambda what, error: failures.append((what, error)))
    for i in range(50):
        quick.submit("append", done.append, i)
    quick.close(5)
    assert done == list(range(50))
    slow = Worker("slow", lambda what, error: failures.append((what, error)))
    slow.submit("sleep", time.sleep, 3)
    started = time.monotonic()
    slow.close(0.1)
    assert time.monotonic() - started < 1.5


def test_a_watch_tells_each_change_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    watch = FileWatch(path)
    assert not watch.changed(), "not there"
    path.write_text("1")
    assert [watch.changed(), watch.changed(), watch.changed()] == [False, True, False], "once it has settled"
    path.write_text("22")
    assert not watch.changed()
    path.write_text("333")
    assert [watch.changed(), watch.changed()] == [False, True], "still being written at the first look"
    replacement = tmp_path / "new"
    replacement.write_text("444")
    os.utime(replacement, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns))
    os.replace(replacement, path)
    assert [watch.changed(), watch.changed()] == [False, True], "same size, same time, another file"
    path.unlink()
    assert [watch.changed(), watch.changed()] == [False, False]
    fresh = FileWatch(tmp_path, seen=False)
    assert [fresh.changed(), fresh.changed()] == [False, True], "what is there now is news"
