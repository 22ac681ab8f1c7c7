"""A guard: the pool's size stays as it is during maintenance windows.

Switch it on: copy this file and `maintenance_window.toml` into your `hooks_dir` and write your windows there. A window
either comes back every week (`from`, `to`, `days`) or happens once (`start`, `end`). Inside one, every recommendation
to change the number of workers is vetoed; the fallback answers instead, and everything else goes on as usual.

Settings (TOML, read when the host starts):

    timezone = "America/Sao_Paulo"      # IANA name; what the times below mean. Default "UTC".

    [[window]]
    name = "database upgrade"           # appears in the decision's veto
    days = ["sat", "sun"]               # on which it opens; default: every day
    from = 23:00:00
    to = 02:00:00                       # not after `from`: closes on the next day

    [[window]]
    name = "Black Friday"
    start = 2026-11-27T00:00:00         # with an offset (`Z`, `-03:00`) or, without one, in `timezone`
    end = 2026-11-30T00:00:00           # the first moment after the window
"""

from __future__ import annotations

import datetime as dt
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nhm_sched_plugin import Action, Recommendation, Veto, hookimpl

POOL_CHANGES = frozenset({Action.INCREASE_WORKER_POOL, Action.DECREASE_WORKER_POOL, Action.PREEMPTIVE_SCALING})
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
A_DAY = dt.timedelta(days=1)

clock: Callable[[], float] = time.time
"""Unix seconds; the host's own clock once it is up, so that a replay tells simulated time."""


class Weekly(NamedTuple):
    """Opens on some days of the week at a time of day; wall-clock time, whatever daylight saving does."""

    name: str
    days: frozenset[int]
    opens: dt.time
    closes: dt.time

    def is_open(self, now: dt.datetime) -> bool:
        today, at = now.weekday(), now.time()
        if self.opens < self.closes:
            return today in self.days and self.opens <= at < self.closes
        opened_today = today in self.days and at >= self.opens
        opened_yesterday = (now - A_DAY).weekday() in self.days and at < self.closes
        return opened_today or opened_yesterday


class Once(NamedTuple):
    name: str
    start: dt.datetime
    end: dt.datetime

    def is_open(self, now: dt.datetime) -> bool:
        return self.start <= now < self.end


Window = Weekly | Once


def read_settings(path: Path) -> tuple[ZoneInfo, list[Window]]:
    """The time zone and the windows of a settings file. Raises `ValueError` that names file, key and value."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: settings cannot be read ({error.strerror}); copy {path.name} here, too") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    _known(settings, {"timezone", "window"}, f"{path}")
    name = settings.get("timezone", "UTC")
    try:
        zone = ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ValueError(f"{path}: timezone = {name!r}: not a time zone known on this machine") from None
    windows = settings.get("window", [])
    if not isinstance(windows, list) or not all(isinstance(window, dict) for window in windows):
        raise ValueError(f"{path}: window = {windows!r}: write each window under a line `[[window]]`")
    return zone, [_window(window, zone, f"{path}: window {index}") for index, window in enumerate(windows, 1)]


def _window(given: dict[str, Any], zone: ZoneInfo, where: str) -> Window:
    name = str(given.get("name", "maintenance"))
    if "start" in given or "end" in given:
        _known(given, {"name", "start", "end"}, where)
        start, end = (_moment(given, key, zone, where) for key in ("start", "end"))
        if end <= start:
            raise ValueError(f"{where}: end = {end.isoformat()} is not after start = {start.isoformat()}")
        return Once(name, start, end)
    _known(given, {"name", "from", "to", "days"}, where)
    opens, closes = (_time(given, key, where) for key in ("from", "to"))
    days = given.get("days", list(DAYS))
    unknown = [day for day in days if day not in DAYS] if isinstance(days, list) else [days]
    if unknown or not days:
        raise ValueError(f"{where}: days = {days!r}: expected a list of {', '.join(DAYS)}")
    return Weekly(name, frozenset(DAYS.index(day) for day in days), opens, closes)


def _moment(given: dict[str, Any], key: str, zone: ZoneInfo, where: str) -> dt.datetime:
    value = given.get(key)
    if not isinstance(value, dt.datetime):
        raise ValueError(f"{where}: {key} = {value!r}: expected a date and time such as 2026-11-27T00:00:00Z, unquoted")
    return value if value.tzinfo else value.replace(tzinfo=zone)


def _time(given: dict[str, Any], key: str, where: str) -> dt.time:
    value = given.get(key)
    if not isinstance(value, dt.time):
        raise ValueError(f"{where}: {key} = {value!r}: expected a time of day such as 23:00:00, unquoted")
    return value


def _known(given: dict[str, Any], keys: set[str], where: str) -> None:
    for key in given.keys() - keys:
        raise ValueError(f"{where}: unknown key {key!r}; known here: {', '.join(sorted(keys))}")


timezone, windows = read_settings(Path(__file__).with_suffix(".toml"))


@hookimpl
def nhm_sched_startup(host: Any) -> None:
    global clock
    clock = host.clock


@hookimpl
def nhm_sched_guard(recommendation: Recommendation) -> Veto | None:
    if recommendation.action not in POOL_CHANGES:
        return None
    now = dt.datetime.fromtimestamp(clock(), timezone)
    for window in windows:
        if window.is_open(now):
            return Veto(guard="maintenance_window", reason=f"{window.name}: no pool changes in this maintenance window")
    return None
