"""A guard: keeps the growth of the pool within a quota per hour and a budget per day.

Switch it on: copy this file and `quota_guard.toml` into your `hooks_dir` and set one limit or both. A recommendation
that would take the pool beyond one is vetoed; shrinking never is. What counts is the pool as the host reported it
(`active_workers` of each decision's state): workers that joined, for whatever reason, and the time they were there.

Settings (TOML, read when the host starts):

    max_workers_added_per_hour = 50     # those that joined in the last 60 minutes and those asked for now, together
    worker_hours_per_day = 480          # used since midnight, plus one hour of the pool that is asked for
    timezone = "America/Sao_Paulo"      # whose midnight; IANA name, default "UTC"

The count starts anew with the host's process: after a restart, the hour and the day begin empty.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nhm_sched_plugin import Action, Decision, Recommendation, SchedulingState, Veto, hookimpl

GROWTH = frozenset({Action.INCREASE_WORKER_POOL, Action.PREEMPTIVE_SCALING})
LIMITS = ("max_workers_added_per_hour", "worker_hours_per_day")
AN_HOUR = 3600.0

clock: Callable[[], float] = time.time
"""Unix seconds; the host's own clock once it is up, so that a replay tells simulated time."""


class Ledger:
    """What the pool did in the last hour and since midnight. Safe to use from several threads."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None  # when, and how many workers there were
        self._joined: deque[tuple[float, float]] = deque()
        self._midnight = float("-inf")
        self._next_midnight = float("-inf")
        self._worker_hours = 0.0

    def observe(self, at: float, workers: float) -> None:
        """The pool had this many workers at this Unix time."""
        with self._lock:
            last, self._last = self._last, (at, workers)
            if last is None or at < last[0]:
                return  # nothing to compare with, or records that overtook each other
            if workers > last[1]:
                self._joined.append((at, workers - last[1]))
            self._turn_day(at)
            self._worker_hours += last[1] * (at - max(last[0], self._midnight)) / AN_HOUR

    def added(self, now: float) -> float:
        """Workers that joined within the last hour."""
        with self._lock:
            while self._joined and self._joined[0][0] <= now - AN_HOUR:
                self._joined.popleft()
            return sum(workers for _, workers in self._joined)

    def worker_hours(self, now: float) -> float:
        """Worker-hours since midnight, those since the last report included."""
        with self._lock:
            self._turn_day(now)
            if self._last is None:
                return 0.0
            at, workers = self._last
            return self._worker_hours + workers * max(0.0, now - max(at, self._midnight)) / AN_HOUR

    def _turn_day(self, now: float) -> None:
        if now < self._next_midnight:
            return
        today = dt.datetime.fromtimestamp(now, self._zone).date()
        self._midnight, self._next_midnight = (
            dt.datetime.combine(today + dt.timedelta(days=days), dt.time(), self._zone).timestamp() for days in (0, 1)
        )
        self._worker_hours = 0.0


def read_settings(path: Path) -> tuple[Mapping[str, float], ZoneInfo]:
    """The limits and the time zone of a settings file. Raises `ValueError` that names file, key and value."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: settings cannot be read ({error.strerror}); copy {path.name} here, too") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    name = settings.pop("timezone", "UTC")
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ValueError(f"{path}: timezone = {name!r}: not a time zone known on this machine") from None
    for key, value in settings.items():
        if key not in LIMITS:
            raise ValueError(f"{path}: unknown key {key!r}; known here: {', '.join(LIMITS)}, timezone")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{path}: {key} = {value!r}: expected a number of 0 or more")
    return settings, zone


limits, timezone = read_settings(Path(__file__).with_suffix(".toml"))
ledger = Ledger(timezone)


@hookimpl
def nhm_sched_startup(host: Any) -> None:
    global clock
    clock = host.clock


@hookimpl
def nhm_sched_after_decision(record: Decision) -> None:
    workers = None if record.state is None else record.state.active_workers
    if workers is not None and 0 <= workers < float("inf"):  # the record of a refused state may hold anything
        ledger.observe(record.decided_at, workers)


@hookimpl
def nhm_sched_guard(state: SchedulingState, recommendation: Recommendation) -> Veto | None:
    if recommendation.action not in GROWTH or state.active_workers is None:
        return None  # what to do without metrics is the built-in guard's business
    now = clock()
    target = float(recommendation.parameters.get("target_workers", state.active_workers + 1))
    asked = target - state.active_workers
    quota, budget = (limits.get(key) for key in LIMITS)
    if quota is not None and (joined := ledger.added(now)) + asked > quota:
        reason = f"{joined:g} workers joined in the last hour and {asked:g} more are asked for; the quota is {quota:g}"
        return Veto(guard="quota_guard", reason=reason)
    if budget is not None and (used := ledger.worker_hours(now)) + target > budget:
        reason = f"{used:.1f} worker-hours used today and {target:g} more for the next hour; the budget is {budget:g}"
        return Veto(guard="quota_guard", reason=reason)
    return None
