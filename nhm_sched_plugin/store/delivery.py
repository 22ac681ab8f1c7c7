"""Draining all the time: as a thread in a host with a ClickHouse server, or as a process beside it (`drain --follow`).

What waits is delivered as soon as it fills a batch or has waited long enough. Whatever fails - the network, a right, a
disk, the schema - is counted by cause, logged once per cause, and tried again with growing pauses for as long as it
takes; nothing leaves the spool before it is stored.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import SpoolError, StoreError
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.words import count
from nhm_sched_plugin.store.drain import DrainResult, drain
from nhm_sched_plugin.store.spool import Spool, spool_of
from nhm_sched_plugin.store.statements import RejectedRowsError, code_of
from nhm_sched_plugin.types import Health

if TYPE_CHECKING:
    from tenacity import Retrying

    from nhm_sched_plugin.settings import RecordingSettings, Settings
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Delivery", "cause_of", "delivery", "retrying"]

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
_LOOK_S: Final = 0.5
"""How often an idle spool is looked at, at least."""

_CAUSES: Final = {
    "access": {192, 193, 194, 497, 516},
    "disk": {22, 74, 75, 76, 164, 243},  # also read-only
    "schema": {16, 36, 47, 53, 60, 81, 117},
    "unreachable": {159, 198, 203, 209, 210},
}
"""The engine's error codes by what a person would have to look at."""
_UNREACHABLE: Final = re.compile(
    r"cannot be reached|refused|timed? ?out|unreachable|Connection|RemoteDisconnected", re.I
)
_SCHEMA: Final = re.compile(r"Unrecognized column|refuses one record after another|lacks ", re.I)


_THREAD: Final = "nhm-sched-drain"
_TALKATIVE: Final = ("urllib3.connectionpool", "clickhouse_connect.driver._backend.http_sync")


def _said_once(line: logging.LogRecord) -> bool:
    """Of the client's libraries, no line at each attempt: the failure itself is counted and logged here."""
    return line.threadName != _THREAD


def cause_of(error: BaseException) -> str:
    """`unreachable`, `access`, `disk`, `schema`, `spool` or `other`: the label of `nhm_sched_drain_failures_total`."""
    if isinstance(error, SpoolError):
        return "spool"
    text, code = str(error), code_of(error)
    for cause, codes in _CAUSES.items():
        if code in codes:
            return cause
    if "refuses user" in text:
        return "access"
    if _SCHEMA.search(text):
        return "schema"
    return "unreachable" if _UNREACHABLE.search(text) else "other"


def retrying(
    stop: threading.Event | None = None,
    *,
    attempts: int | None = None,
    before_sleep: Callable[[Any], None] | None = None,
) -> Retrying:
    """Calls a function again while it raises what may pass; the last error comes out once `stop` is set or after
    `attempts`. What is the rows' own fault comes out at once."""
    from tenacity import (
        Retrying,
        retry_if_exception,
        sleep_using_event,
        stop_after_attempt,
        stop_when_event_set,
        wait_exponential,
        wait_random,
    )

    stop = stop or threading.Event()
    ends = stop_when_event_set(stop)
    return Retrying(
        retry=retry_if_exception(_may_pass),
        stop=ends if attempts is None else ends | stop_after_attempt(attempts),
        wait=wait_exponential(FIRST_PAUSE_S, max=LONGEST_PAUSE_S) + wait_random(0, FIRST_PAUSE_S),
        sleep=sleep_using_event(stop),
        before_sleep=before_sleep,
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, StoreError | SpoolError) and not isinstance(error, RejectedRowsError)


def delivery(settings: Settings, metrics: Metrics, faults: Faults, *, migrate: bool, **options: Any) -> Delivery:
    """The one that the settings mean, with a spool of its own. `migrate`: bring the schema up to date first."""
    from nhm_sched_plugin.store.client import open_store

    queries, failed = metrics.child("queries"), metrics.child("query_errors")

    def count(_name: str, done: bool, _seconds: float) -> None:
        queries.inc()
        if not done:
            failed.inc()

    opened = partial(open_store, settings, observer=count, migrate=migrate)
    return Delivery(spool_of(settings), opened, settings.recording, metrics, faults, **options)


class Delivery:
    """Drains a spool until it is stopped.

    Args:
        spool: what to drain; of its own, since it is used from another thread.
        opened: opens the store; called again after each failure, so that a new password or address is found.
        settings: `drain_batch` and `drain_max_age_s`.
        metrics, faults: where it is counted and logged.
        log_tickets: as for `drain`.
    """

    def __init__(
        self,
        spool: Spool,
        opened: Callable[[], AbstractContextManager[Store]],
        settings: RecordingSettings,
        metrics: Metrics,
        faults: Faults,
        *,
        log_tickets: bool = False,
    ) -> None:
        self._spool, self._opened, self._settings = spool, opened, settings
        self._metrics, self._faults, self._log_tickets = metrics, faults, log_tickets
        self._stored = metrics.child("records", "stored")
        self._grace_ends: float | None = None
        self._failures, self._last_cause = 0, ""
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The parent goes on delivering, for its children too: a child must not touch the parent's connections."""
        self._stop, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._store: Store | None = None
        self._open = ExitStack()

    # As a thread

    def start(self) -> None:
        """Drain in a daemon thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name=_THREAD, daemon=True)
            self._thread.start()

    def close(self, grace_s: float) -> None:
        """Deliver what waits, as far as that is possible within the time, and end the thread."""
        self.stop(grace_s)
        self.join(grace_s)

    def stop(self, grace_s: float) -> None:
        """Make `run` return after one more pass, which ends between two batches once the time is over."""
        self._grace_ends = time.monotonic() + grace_s
        self._stop.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended; a signal may interrupt that. (`Thread.join` then takes it for dead.)"""
        if self._thread is not None:
            self._ended.wait(timeout_s)

    def health(self) -> list[Health]:
        """Whether the last pass reached the database."""
        detail = f"{count(self._failures, 'failure')} in a row, {self._last_cause}" if self._failures else ""
        return [Health(component="drain", ok=not self._failures, detail=detail)]

    # In the loop

    def run(self) -> None:
        """Drain until `stop`; never raises for what a person can mend."""
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(_said_once)  # adding one that is there changes nothing
        patiently = retrying(self._stop, before_sleep=lambda state: self._failed(state.outcome.exception()))
        try:
            while not self._stop.is_set():
                self._wait_for_work()
                try:
                    patiently(self._pass)
                except Exception as error:  # noqa: BLE001 - also what nobody thought of must not end the delivery
                    self._failed(error)
                    self._stop.wait(min(FIRST_PAUSE_S * 2 ** min(self._failures, 10), LONGEST_PAUSE_S))
            self._last_pass()
        finally:
            self._close_store()
            self._spool.close()
            self._ended.set()

    def _wait_for_work(self) -> None:
        """Until a batch is full, its first record has waited long enough, or `stop`. Ages go by the monotonic clock:
        a wall clock that goes back must not hold up anything.

        After a failure, until the spool can be read: a pass then shows whether all is well again, with or without work.
        """
        since: float | None = None
        while not self._stop.is_set():
            waiting = self._look()
            if self._failures and waiting is not None:
                return
            now = time.monotonic()
            since = (since or now) if waiting else None
            if waiting and waiting >= self._settings.drain_batch:
                return
            if since is not None and now - since >= self._settings.drain_max_age_s:
                return
            self._stop.wait(min(_LOOK_S, self._settings.drain_max_age_s / 4))

    def _look(self) -> int | None:
        """How many records wait; None: the spool cannot be read."""
        try:
            waiting, oldest = self._spool.pending(), self._spool.oldest()
        except SpoolError as error:
            self._failed(error)
            return None
        self._metrics.child("spool_waiting").set(waiting)
        self._metrics.child("spool_age").set(0.0 if oldest is None else max(time.time() - oldest, 0.0))
        return waiting

    def _pass(self) -> DrainResult:
        try:
            if self._store is None:
                self._store = self._open.enter_context(self._opened())
            result = drain(
                self._spool,
                self._store,
                self._settings.drain_batch,
                log_tickets=self._log_tickets,
                progress=self._show_waiting,
                stored=self._stored.inc,
                enough=self._enough,
            )
        except BaseException:
            self._close_store()
            raise
        if self._failures:
            log.warning("records are delivered again, after %s", count(self._failures, "failure"))
            self._failures = 0
        self._metrics.child("spool_bytes").set(self._spool.size_bytes())
        self._metrics.child("quarantined").set(self._spool.quarantined_count())
        return result

    def _show_waiting(self, done: int, total: int | None) -> None:
        self._metrics.child("spool_waiting").set(max((total or done) - done, 0))

    def _enough(self) -> bool:
        return self._grace_ends is not None and time.monotonic() >= self._grace_ends

    def _last_pass(self) -> None:
        try:
            self._pass()
            self._look()
        except Exception as error:  # noqa: BLE001 - ending goes on; what waits is safe in the spool
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._failures += 1
        self._last_cause = cause_of(error)
        self._metrics.child("drain_failures", self._last_cause).inc()
        self._faults.report("drain", error if isinstance(error, Exception) else str(error))

    def _close_store(self) -> None:
        self._store = None
        try:
            self._open.close()
        except Exception as error:  # noqa: BLE001 - a connection that is gone may fail to close, and is gone
            log.debug("closing the store: %s", error)
