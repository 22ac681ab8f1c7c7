"""A state collector: tells rules and policies where in the business calendar this moment is.

Switch it on: copy this file and `business_calendar.toml` into your `hooks_dir` and write your hours and holidays there.
The features can be read in rule conditions as `features.NAME`:

    is_business_hour   1 while open, else 0
    is_holiday         1 on a listed holiday (by the local date), else 0
    hours_to_close     until closing time; only while open
    hours_to_open      until the next opening; only while closed, and only when that is within two weeks

Settings (TOML, read when the host starts):

    timezone = "America/Sao_Paulo"      # IANA name; what the times below mean. Default "UTC".
    days = ["mon", "tue", "wed", "thu", "fri"]     # that is the default
    open = 09:00:00
    close = 18:00:00                    # not after `open`: closes on the next day
    holidays = [2026-02-17, 2026-06-04] # single dates
    yearly_holidays = ["01-01", "12-25"]           # month-day, every year
"""

from __future__ import annotations

import datetime as dt
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from nhm_sched_plugin import hookimpl

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
KEYS = {"timezone", "days", "open", "close", "holidays", "yearly_holidays"}
LOOK_AHEAD_DAYS = 14

clock: Callable[[], float] = time.time
"""Unix seconds; the host's own clock once it is up, so that a replay tells simulated time."""


class Calendar:
    """Opening hours and holidays. Raises `ValueError` that names key and value when they make no sense."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        for key in given.keys() - KEYS:
            raise ValueError(f"unknown key {key!r}; known here: {', '.join(sorted(KEYS))}")
        name = given.get("timezone", "UTC")
        try:
            self.zone = ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            raise ValueError(f"timezone = {name!r}: not a time zone known on this machine") from None
        days = _list(given, "days", list(DAYS[:5]))
        if unknown := [day for day in days if day not in DAYS]:
            raise ValueError(f"days = {unknown[0]!r}: expected some of {', '.join(DAYS)}")
        self.days = {DAYS.index(day) for day in days}
        self.opens, self.closes = _time(given, "open"), _time(given, "close")
        self.holidays: set[dt.date] = set()
        for day in _list(given, "holidays", []):
            if not isinstance(day, dt.date) or isinstance(day, dt.datetime):
                raise ValueError(f"holidays = {day!r}: expected dates such as 2026-12-25, unquoted")
            self.holidays.add(day)
        self.yearly = {_month_day(day) for day in _list(given, "yearly_holidays", [])}
        self._cached: tuple[int, dict[str, float]] = (-1, {})

    def is_holiday(self, day: dt.date) -> bool:
        return day in self.holidays or (day.month, day.day) in self.yearly

    def opening(self, day: dt.date) -> tuple[dt.datetime, dt.datetime] | None:
        """When the business day that starts on this date opens and closes, in UTC; None when it stays shut."""
        if day.weekday() not in self.days or self.is_holiday(day):
            return None
        closing_day = day if self.closes > self.opens else day + dt.timedelta(days=1)
        opens = dt.datetime.combine(day, self.opens, self.zone)
        closes = dt.datetime.combine(closing_day, self.closes, self.zone)
        return opens.astimezone(dt.UTC), closes.astimezone(dt.UTC)

    def features(self, now: float) -> dict[str, float]:
        """The features at a Unix time, to the minute: computed once a minute, as this is asked at every decision."""
        minute = int(now // 60)
        cached = self._cached
        if cached[0] != minute:
            # One assignment, so that another thread sees all of it or nothing.
            cached = self._cached = minute, self._compute(dt.datetime.fromtimestamp(minute * 60, dt.UTC))
        return cached[1]

    def _compute(self, now: dt.datetime) -> dict[str, float]:
        today = now.astimezone(self.zone).date()
        features = {"is_business_hour": 0.0, "is_holiday": float(self.is_holiday(today))}
        for ahead in range(-1, LOOK_AHEAD_DAYS + 1):  # from yesterday: its hours may reach past midnight
            hours = self.opening(today + dt.timedelta(days=ahead))
            if hours is None or now >= hours[1]:
                continue
            if now >= hours[0]:
                features["is_business_hour"] = 1.0
                features["hours_to_close"] = (hours[1] - now).total_seconds() / 3600
            else:
                features["hours_to_open"] = (hours[0] - now).total_seconds() / 3600
            break
        return features


def _list(given: Mapping[str, Any], key: str, default: list[Any]) -> list[Any]:
    value = given.get(key, default)
    if not isinstance(value, list):
        raise ValueError(f"{key} = {value!r}: expected a list")
    return value


def _time(given: Mapping[str, Any], key: str) -> dt.time:
    value = given.get(key)
    if not isinstance(value, dt.time):
        raise ValueError(f"{key} = {value!r}: expected a time of day such as 09:00:00, unquoted")
    return value


def _month_day(text: Any) -> tuple[int, int]:
    try:
        day = dt.date.fromisoformat(f"2000-{text}")  # a leap year, so that 02-29 is one of its days
    except ValueError:
        raise ValueError(f"yearly_holidays = {text!r}: expected month and day such as '12-25'") from None
    return day.month, day.day


def read_calendar(path: Path) -> Calendar:
    """The calendar of a settings file. Raises `ValueError` that names file, key and value."""
    try:
        return Calendar(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: settings cannot be read ({error.strerror}); copy {path.name} here, too") from None
    except ValueError as error:  # TOML's own errors are ValueErrors, too
        raise ValueError(f"{path}: {error}") from None


calendar = read_calendar(Path(__file__).with_suffix(".toml"))


@hookimpl
def nhm_sched_startup(host: Any) -> None:
    global clock
    clock = host.clock


@hookimpl
def nhm_sched_collect_state() -> Mapping[str, float]:
    return calendar.features(clock())
