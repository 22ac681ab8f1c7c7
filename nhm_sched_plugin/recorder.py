"""From the caller's thread to the sinks: a bounded queue and one writer thread.

`record()` appends to a deque and returns; the writer takes everything each `recording.flush_ms` and offers it to every
sink. A sink that fails keeps its batch and is offered it again, with a growing pause; nothing is dropped before the
bounded queue is full, and what is dropped then is counted and logged.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from nhm_sched_plugin.advice.protocols import Sink
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import RecordingSettings
from nhm_sched_plugin.types import Decision, RewardedOutcome

__all__ = ["Recorder"]

Record = Decision | RewardedOutcome

LONGEST_PAUSE_S = 5.0


class _Lane:
    """One sink with what it has not taken yet."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.backlog: deque[Record] = deque()
        self.pause_s = 0.0
        self.not_before = 0.0


class Recorder:
    """Thread-safe. The first sink is the spool: only what it took counts as `spooled`."""

    def __init__(self, sinks: Sequence[Sink], settings: RecordingSettings, metrics: Metrics, faults: Faults) -> None:
        self._settings, self._faults = settings, faults
        self._lanes = [_Lane(sink) for sink in sinks]
        self._queued = metrics.child("records", "queued")
        self._spooled = metrics.child("records", "spooled")
        self._dropped = metrics.child("records", "dropped")
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        # After a fork the parent still writes what was queued before it, so the child starts with empty hands.
        self._pid = os.getpid()
        self._queue: deque[Record] = deque()
        for lane in self._lanes:
            lane.backlog.clear()
        self._wake, self._lock = threading.Event(), threading.Lock()
        self._waiting: list[threading.Event] = []
        self._thread: threading.Thread | None = None
        self._taking = False

    def record(self, record: Record, wait_s: float | None = None) -> bool:
        """Queue a record; with `wait_s`, wait until it is durable for at most so long.

        True when it is queued (and durable, if waited for). False when the queue is full: the record is counted as
        dropped; or when the wait was too short: it is still queued.
        """
        if self._thread is None or self._pid != os.getpid():
            self._start()
        if len(self._queue) >= self._settings.queue_size or self._closed:
            self._dropped.inc()
            why = "the recorder is closed" if self._closed else "recording.queue_size is reached"
            self._faults.report("recorder", f"records are being dropped: {why}")
            return False
        if wait_s is None:
            self._queue.append(record)
            return True
        durable = threading.Event()
        with self._lock:
            self._queue.append(record)
            self._waiting.append(durable)
        self._wake.set()
        return durable.wait(wait_s)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far is with every sink; False when that took longer or a sink fails."""
        until = time.monotonic() + timeout_s
        if self._pid != os.getpid() or self._thread is None:
            return not self._queue
        while self._queue or self._taking or any(lane.backlog for lane in self._lanes):
            self._wake.set()
            if time.monotonic() > until or self._thread is None:
                return False
            time.sleep(0.002)
        return True

    def close(self, timeout_s: float) -> None:
        """Write what is queued and stop. What no sink took within the time is counted as dropped."""
        if self._closed:
            return
        self.flush(timeout_s)
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(timeout_s)
        left = len(self._queue) + (len(self._lanes[0].backlog) if self._lanes else 0)
        if left:
            self._dropped.inc(left)
            self._faults.report("recorder", f"{left} records could not be written before shutdown")
        for lane in self._lanes:
            try:
                lane.sink.close()
            except Exception as error:  # noqa: BLE001 - also somebody else's sink
                self._faults.report(f"sink {lane.sink.name}", error)

    def _start(self) -> None:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="nhm-sched-recorder", daemon=True)
                self._thread = thread
                thread.start()

    def _run(self) -> None:
        pause = self._settings.flush_ms / 1000
        while not self._closed:
            self._wake.wait(pause)
            self._wake.clear()
            self._taking = True
            try:
                self._take()
            except Exception as error:  # noqa: BLE001 - the writer must live
                self._faults.report("recorder", error)
            finally:
                self._taking = False

    def _take(self) -> None:
        room = self._settings.queue_size - max((len(lane.backlog) for lane in self._lanes), default=0)
        with self._lock:  # a waiter's record and its event are taken together
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), max(room, 0)))]
            waiting, self._waiting = self._waiting, []
        if batch:
            self._queued.inc(len(batch))
        for index, lane in enumerate(self._lanes):
            lane.backlog.extend(batch)
            if lane.backlog and time.monotonic() >= lane.not_before:
                self._offer(lane, first=index == 0)
        if waiting:
            if self._lanes and self._lanes[0].backlog:
                with self._lock:
                    self._waiting.extend(waiting)
            else:
                for durable in waiting:
                    durable.set()

    def _offer(self, lane: _Lane, *, first: bool) -> None:
        offered = list(lane.backlog)
        try:
            lane.sink.write(offered)
        except Exception as error:  # noqa: BLE001 - disk full, database gone, somebody else's sink
            lane.pause_s = min(max(2 * lane.pause_s, self._settings.flush_ms / 1000), LONGEST_PAUSE_S)
            lane.not_before = time.monotonic() + lane.pause_s
            self._faults.report(f"sink {lane.sink.name}", error)
            return
        lane.pause_s = lane.not_before = 0.0
        lane.backlog.clear()
        if first:
            self._spooled.inc(len(offered))
