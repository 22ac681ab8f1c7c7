"""Threads that never hold the host: a worker for later, and a bounded pool for calls that may oversleep.

All threads are daemons: a sleeping hook must not keep the orchestrator from exiting, which the standard
`ThreadPoolExecutor` would do (it joins its threads at interpreter exit). Threads do not survive a fork; both classes
start afresh in the child.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from nhm_sched_plugin.files import stamp
from nhm_sched_plugin.forks import renew_after_fork

__all__ = ["FileWatch", "Loop", "Pool", "PoolFullError", "Worker"]


class PoolFullError(RuntimeError):
    """Every thread of the pool is busy, most likely with hooks that overslept."""


class Pool:
    """At most `size` daemon threads, started on demand. With `wait_in_line` a job waits while all are busy."""

    def __init__(self, size: int, name: str, *, wait_in_line: bool = False) -> None:
        self._size, self._name, self._wait_in_line = size, name, wait_in_line
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """No thread survives a fork: the child starts its own on demand."""
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it in a thread. Raises PoolFullError when all are busy and none may wait in line, or after `close`."""
        if self._closed:
            raise PoolFullError(f"{self._name} is closed")
        future: Future[Any] = Future()
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()
            elif not self._wait_in_line:
                raise PoolFullError(f"all {self._size} threads of {self._name} are busy")
        self._jobs.put((future, function, args, kwargs))
        return future

    def _run(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            future, function, args, kwargs = job
            tell = self._run_one(future, function, args, kwargs)
            # Idle before the caller hears of it: its next job must not find a pool that only looks busy.
            with self._lock:
                self._idle += 1
            tell()
            del job, future, function, args, kwargs, tell

    @staticmethod
    def _run_one(
        future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[[], None]:
        if not future.set_running_or_notify_cancel():
            return _nothing
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - handed to whoever reads the future
            return functools.partial(future.set_exception, error)
        return functools.partial(future.set_result, result)

    def close(self) -> None:
        """End the threads as they come free; later jobs are refused."""
        self._closed = True
        for _ in range(self._threads):
            self._jobs.put(None)


class Worker:
    """One thread that runs tasks in order, and others again and again.

    `on_error(what, error)` gets what a task raises; the thread goes on.
    """

    def __init__(self, name: str, on_error: Callable[[str, BaseException], None], max_queue: int = 100_000) -> None:
        self._name, self._on_error, self._max_queue = name, on_error, max_queue
        self._periodic: list[tuple[float, str, Callable[[], None]]] = []
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """What was queued before a fork is the parent's to do; the child's thread starts with its first task."""
        self._tasks: queue.SimpleQueue[tuple[str, Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()

    def every(self, seconds: float, what: str, task: Callable[[], None]) -> None:
        """Run `task` each `seconds`, from the start of the thread on."""
        self._periodic.append((seconds, what, task))

    def start(self) -> None:
        """Start the thread if it does not run."""
        if self._thread is None and not self._closed:
            with self._start_lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread = thread
                    thread.start()

    def submit(self, what: str, task: Callable[..., Any], *args: Any) -> bool:
        """Queue a task; False when the queue is full or the worker closed (nothing is queued then)."""
        self.start()
        if self._closed or self._tasks.qsize() >= self._max_queue:
            return False
        self._tasks.put((what, task, args))
        return True

    def waiting(self) -> int:
        """Tasks in the queue."""
        return self._tasks.qsize()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far has run; False when that took too long."""
        if self._thread is None or self._thread is threading.current_thread():
            return True
        if self._closed:
            return False
        done = threading.Event()
        self._tasks.put(("flush", done.set, ()))  # also into a full queue
        return done.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Run what is queued, then end the thread; give up waiting after `timeout_s`."""
        if self._closed:
            return
        self._closed = True
        thread = self._thread
        if thread is not None:
            self._tasks.put(None)
            thread.join(timeout_s)

    def _run(self) -> None:
        tasks, due = self._tasks, [time.monotonic()] * len(self._periodic)
        while True:
            try:
                task = tasks.get(timeout=max(min(due) - time.monotonic(), 0.0) if due else None)
            except queue.Empty:
                task = ("", _nothing, ())
            if task is None:
                return
            self._attempt(*task)
            now = time.monotonic()
            for index, (seconds, what, periodic) in enumerate(self._periodic):
                if now >= due[index]:
                    self._attempt(what, periodic, ())
                    due[index] = time.monotonic() + seconds

    def _attempt(self, what: str, task: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            task(*args)
        except Exception as error:  # noqa: BLE001 - a failing task must not end the thread
            self._on_error(what, error)


class Loop:
    """One thread that runs the same task over and over; the task says after how many seconds.

    `on_error(what, error)` gets what it raises; the thread goes on after `PAUSE_S`.
    """

    PAUSE_S = 1.0

    def __init__(self, name: str, task: Callable[[], float], on_error: Callable[[str, BaseException], None]) -> None:
        self._name, self._task, self._on_error = name, task, on_error
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The child starts its own thread when it is told to."""
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started in this process. Costs nothing."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread if it does not run."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Run the task now."""
        self._awake.set()

    def close(self, timeout_s: float) -> None:
        """End the thread after the task that it is in; give up waiting after `timeout_s`."""
        self._closed = True
        self._awake.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self) -> None:
        awake = self._awake
        while not self._closed:
            awake.clear()
            try:
                pause_s = self._task()
            except Exception as error:  # noqa: BLE001 - a failing task must not end the thread
                self._on_error(self._name, error)
                pause_s = self.PAUSE_S
            if not self._closed:
                awake.wait(pause_s)


def _nothing() -> None:
    return None


class FileWatch:
    """Says whether a file changed since it was last looked at, symbolic links (ConfigMap mounts) followed.

    A change counts when two looks in a row saw the same new file: a writer that empties the file before it fills it
    must not be caught in between. `seen=False`: what the file holds now counts as a change, since it may be newer
    than what was read of it.
    """

    def __init__(self, path: Path, *, seen: bool = True) -> None:
        self.path = path
        self._signature = stamp(path) if seen else None
        self._candidate: tuple[int, int, int] | None = None

    def changed(self, *, complete: bool = False) -> bool:
        """True once per change; a file that is gone counts as unchanged (what was loaded stays in use).

        `complete`: nobody is writing to it now, so one look is enough.
        """
        now = stamp(self.path)
        if now is None or now == self._signature or (now != self._candidate and not complete):
            self._candidate = now
            return False
        self._signature = now
        return True
