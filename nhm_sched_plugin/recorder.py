"""From the caller's thread to the sinks: a bounded queue, and a lane with a thread of its own for every sink.

`record()` appends to a deque and returns; within `recording.flush_ms` what came in goes to the sinks. A sink that fails
keeps its batch and is offered it again, with a growing pause; one that hangs holds up nobody else. Nothing is dropped
before the bounded queue is full, and what is dropped then is counted by cause and logged. What came in first stays;
of what comes in, decisions are dropped first and outcomes last: an outcome's decision is most likely safe already, and
worth nothing without it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from nhm_sched_plugin.advice.protocols import Sink
from nhm_sched_plugin.errors import SpoolError, SpoolFullError
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import RecordingSettings
from nhm_sched_plugin.types import Decision, RewardedOutcome

__all__ = ["Recorder"]

Record = Decision | RewardedOutcome

LONGEST_PAUSE_S: Final = 5.0
CHUNK: Final = 5000
"""Most records offered to a sink at once."""
ROOM_FOR_OUTCOMES: Final = 0.25
"""So much of `recording.queue_size` beyond it is for outcomes alone."""
DROPS: Final = {
    "queue_full": "recording.queue_size is reached: the disk is slower than the decisions",
    "spool_full": "recording.spool_max_mb and recording.queue_size are reached: run `nhm-sched drain`",
    "disk": "recording.queue_size is reached while the disk refuses the spool",
    "sink": "recording.queue_size is reached while the first sink fails",
    "closed": "the recorder is closed",
    "shutdown": "the host shut down before they could be written",
}
"""Why a record may be dropped: the label of `nhm_sched_records_dropped_total`, and what is said about it."""


class _Lane:
    """One sink with what it has not taken yet. Only one thread calls `offer`."""

    def __init__(self, sink: Sink, first_pause_s: float, faults: Faults) -> None:
        self.sink, self._first_pause_s, self._faults = sink, first_pause_s, faults
        self.backlog: deque[Record] = deque()
        self.wake = threading.Event()
        self.not_before = self._pause_s = 0.0
        self.cause = "queue_full"
        """Why records would be dropped now."""
        self._chunk = CHUNK

    def offer(self) -> int:
        """Offer what waits, a chunk at a time; how many records the sink took."""
        taken = 0
        while self.backlog and time.monotonic() >= self.not_before:
            chunk = list(islice(self.backlog, self._chunk))
            try:
                self.sink.write(chunk)
            except Exception as error:  # noqa: BLE001 - disk full, database gone, somebody else's sink
                self._failed(error, len(chunk))
                if isinstance(error, SpoolFullError):
                    taken += self._offer_outcomes()
                break
            self.not_before = self._pause_s = 0.0
            self.cause = "queue_full"
            self._chunk = min(2 * self._chunk, CHUNK)
            for _ in chunk:
                self.backlog.popleft()
            taken += len(chunk)
        return taken

    def _failed(self, error: Exception, offered: int) -> None:
        self._pause_s = min(max(2 * self._pause_s, self._first_pause_s), LONGEST_PAUSE_S)
        self.not_before = time.monotonic() + self._pause_s
        self._chunk = max(offered // 2, 1)  # what does not fit as a whole may fit in parts
        full = isinstance(error, SpoolFullError)
        self.cause = "spool_full" if full else "disk" if isinstance(error, SpoolError) else "sink"
        self._faults.report(f"sink {self.sink.name}", error)

    def _offer_outcomes(self) -> int:
        """A spool that is full for decisions has room left for outcomes: they go past the decisions that wait."""
        outcomes = [record for record in self.backlog if isinstance(record, RewardedOutcome)][:CHUNK]
        if not outcomes:
            return 0
        try:
            self.sink.write(outcomes)
        except Exception as error:  # noqa: BLE001 - full for outcomes too
            self._faults.report(f"sink {self.sink.name}", error)
            return 0
        gone = {id(record) for record in outcomes}
        self.backlog = deque(record for record in self.backlog if id(record) not in gone)
        return len(outcomes)


class Recorder:
    """Thread-safe. The first sink is the spool: only what it took counts as `spooled`.

    `hide` makes of a record what may be written down; it runs on the writer's thread, before any sink.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        settings: RecordingSettings,
        metrics: Metrics,
        faults: Faults,
        hide: Callable[[Record], Record] | None = None,
    ) -> None:
        self._settings, self._faults, self._metrics, self._hide = settings, faults, metrics, hide
        self._limit = settings.queue_size
        self._limit_of_outcomes = self._limit + int(self._limit * ROOM_FOR_OUTCOMES)
        # Half of it, so that what came right after one look is on disk, not merely on its way, when it is over.
        self._pause_s = settings.flush_ms / 2000
        self._spool, *self._others = [_Lane(sink, settings.flush_ms / 1000, faults) for sink in sinks]
        self._queued = metrics.child("records", "queued")
        self._spooled = metrics.child("records", "spooled")
        self._dropped = metrics.child("records", "dropped")
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The parent still writes what was queued before the fork, so the child starts with empty hands."""
        self._queue: deque[Record] = deque()
        for lane in self._lanes():
            lane.backlog, lane.wake = deque(), threading.Event()
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._waiting: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._taking = False

    def open(self) -> None:
        """Let sinks that have an `open()` get ready for their first records; in the background, it may take time."""
        for lane in self._lanes():
            getattr(lane.sink, "open", _nothing)()

    def record(self, record: Record, durable: threading.Event | None = None) -> bool:
        """Queue a record; `durable` is set once it is on disk. False when it was dropped: the queue is full."""
        if self._thread is None:
            self._start()
        waiting = len(self._queue) + len(self._spool.backlog)
        if self._closed or (
            waiting >= self._limit and (waiting >= self._limit_of_outcomes or isinstance(record, Decision))
        ):
            self._drop("closed" if self._closed else self._spool.cause, 1)
            return False
        if durable is None:
            self._queue.append(record)
            return True
        with self._lock:
            self._queue.append(record)
            self._waiting.append(durable)
        self._wake.set()
        return True

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far is with every sink; False when that took longer or a sink fails."""
        until = time.monotonic() + timeout_s
        for lane in self._lanes():
            lane.not_before = 0.0  # once more, however often it failed
        while self._queue or self._taking or any(lane.backlog for lane in self._lanes()):
            self._wake.set()
            for lane in self._others:
                lane.wake.set()
            if time.monotonic() > until or self._thread is None:
                return False
            time.sleep(0.002)
        return True

    def close(self, timeout_s: float) -> None:
        """Write what is queued and stop. What the spool did not take within the time is counted as dropped."""
        if self._closed:
            return
        until = time.monotonic() + timeout_s
        self.flush(timeout_s)
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(until - time.monotonic(), 0.1))
        left = len(self._queue) + len(self._spool.backlog)
        if left:
            self._drop("shutdown", left)
        for lane in self._lanes():
            try:
                lane.sink.close()
            except Exception as error:  # noqa: BLE001 - also somebody else's sink
                self._faults.report(f"sink {lane.sink.name}", error)

    def _drop(self, cause: str, count: int) -> None:
        self._dropped.inc(count)
        self._metrics.child("drops", cause).inc(count)
        self._faults.report("recorder", f"records are being dropped: {DROPS[cause]}")

    def _lanes(self) -> Iterable[_Lane]:
        return (self._spool, *self._others)

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._closed:
                return
            self._thread = threading.Thread(target=self._run, name="nhm-sched-recorder", daemon=True)
            self._thread.start()
            for lane in self._others:
                threading.Thread(
                    target=self._serve, args=(lane,), name=f"nhm-sched-sink-{lane.sink.name}", daemon=True
                ).start()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._pause_s)
            self._wake.clear()
            self._taking = True
            try:
                self._take()
            except Exception as error:  # noqa: BLE001 - the writer must live
                self._faults.report("recorder", error)
            finally:
                self._taking = False

    def _take(self) -> None:
        with self._lock:  # a waiter's record and its event are taken together
            batch = [self._queue.popleft() for _ in range(len(self._queue))]
            if self._hide is not None:
                batch = [self._hide(record) for record in batch]
            # Into the backlog before the lock is released: what is counted must not vanish in between.
            self._spool.backlog.extend(batch)
            waiting, self._waiting = self._waiting, []
        if batch:
            self._queued.inc(len(batch))
            for lane in self._others:
                self._feed(lane, batch)
        self._spooled.inc(self._spool.offer())
        if self._spool.backlog:
            with self._lock:
                self._waiting = waiting + self._waiting
            return
        for durable in waiting:
            durable.set()

    def _feed(self, lane: _Lane, batch: list[Record]) -> None:
        room = max(self._settings.queue_size - len(lane.backlog), 0)
        lane.backlog.extend(batch[:room])
        if len(batch) > room:
            self._faults.report(f"sink {lane.sink.name}", "it lags too far behind and misses records")

    def _serve(self, lane: _Lane) -> None:
        while not self._closed:
            lane.wake.wait(self._pause_s)
            lane.wake.clear()
            lane.offer()


def _nothing() -> None:
    return None
