"""From live counts to a corrected forecast table, beside a host: whose share, which hours, when to ask for a retrain.

Runs in a background thread, once a minute of the host's clock; standard library only. The statistics are in `shift`.
docs/live-forecast.md says what it does and when it does nothing.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nhm_sched_plugin.files import replace_file
from nhm_sched_plugin.forecasting.intervals import thin
from nhm_sched_plugin.forecasting.shift import DRIFT_LIMIT, UNCORRECTED, Correction, Hour, LevelWatch, Running
from nhm_sched_plugin.forecasting.table import ForecastTable, SliceForecast, hour_of, slice_key

__all__ = [
    "MAX_TASK_TYPES",
    "MIN_HOURS",
    "MIN_TICKETS",
    "Counted",
    "LiveForecast",
    "RetrainRequest",
    "SliceLive",
    "read_retrain_request",
]

MIN_HOURS: Final = 6
"""Whole hours that a host has to see before it believes to know its share of the tickets."""
MIN_TICKETS: Final = 100
"""And tickets in them."""

MAX_TASK_TYPES: Final = 32
"""Counted by name in an hour; tickets of further ones count in the total only."""

_WHOLE: Final = 0.1
"""A share as near to one as this is one: the host sees every ticket."""
_SHARE_MEMORY: Final = 0.5 ** (1 / 24)
"""What an hour leaves of the evidence on the share: half is a day old."""
_FRESH_H: Final = 24.0
"""Only forecasts of a table this young teach the share: an old one may be wrong about the load itself."""
_SURE_H: Final = 6.0
"""Hours at which a level is believed to half; it grows with the hours since the share is known."""
_ENOUGH: Final = 240.0
"""Tickets in the share's memory from which on a task type is judged by itself, not with all tickets."""
_ERRORS: Final = 24
"""Hours in the live error."""
_HOUR: Final = 3600.0
_log = logging.getLogger(__name__)


class Counted(NamedTuple):
    """What a host counted in one hour."""

    start: float
    """Unix seconds."""
    total: int | None
    """Tickets; None: the host did not see the whole hour."""
    by_type: Mapping[str, int]
    """Task type -> tickets, of at most `MAX_TASK_TYPES`."""


class SliceLive(NamedTuple):
    """What is known of one slice, for health and metrics."""

    correction: Correction
    share: float | None
    """This host's share of the slice's tickets; None: not known yet, so nothing is corrected."""
    drift: float
    """Drift statistic over its limit: from 1 on the forecast has drifted."""
    mape: float | None
    """Mean absolute error of the table's own forecast in percent of the counts, over the last day's hours."""


class RetrainRequest(NamedTuple):
    """Content of the marker file: the forecast has drifted, train again."""

    requested_at: float
    """Unix seconds, on the clock of the host that asks."""
    slice: str
    reason: str
    statistic: float
    """Drift statistic; the limit is `shift.DRIFT_LIMIT`."""


def read_retrain_request(path: Path, table: ForecastTable | None = None) -> RetrainRequest | None:
    """The request in the marker file; None without one, and when `table` was trained after it was made."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        request = RetrainRequest(
            float(raw["requested_at"]), str(raw["slice"]), str(raw["reason"]), float(raw["statistic"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if table is not None and _trained_at(table) > request.requested_at else request


class LiveForecast:
    """Keeps corrections by slice key up to date. Not thread-safe: one thread at a time calls `update`.

    `retrain_path` is where a request for a retrain is left; None: nowhere. With `sees_all` the host is known to see
    every ticket, which spares the warm-up.
    """

    def __init__(self, retrain_path: Path | None = None, *, sees_all: bool = False) -> None:
        self._path, self._sees_all = retrain_path, sees_all
        self._table: ForecastTable | None = None
        self._followers: dict[str, _Follower] = {}
        self._minute: int | None = None
        self._trained_at: float | None = None
        self.request: RetrainRequest | None = None
        """The request that is open."""

    def forget(self) -> None:
        """In a forked child, whose share of the tickets is another one."""
        self._followers = {}
        self._minute = None

    def due(self, now: float, table: ForecastTable | None) -> bool:
        """Whether `update` has something to do: a new minute or a new table."""
        return table is not None and (int(now // 60) != self._minute or table is not self._table)

    def update(
        self, now: float, table: ForecastTable, hours: Sequence[Counted], running: Counted | None, silent: float
    ) -> dict[str, Correction]:
        """The corrections to serve, by slice key (`""` and task types); slices left out are served as they are.

        `hours` are the completed ones, oldest first; those seen before are skipped. `running` is the present one with
        what came so far, `silent` the hours since the last ticket.
        """
        self._minute = int(now // 60)
        renewed, retrained = table is not self._table, self._retrained(table)
        self._table = table
        for name in self._names(table, hours):
            key = slice_key(name)
            follower = self._followers.get(key)
            fresh = follower is None
            if follower is None:
                follower = self._followers[key] = _Follower(name, key, sees_all=self._sees_all)
            if renewed or fresh:
                follower.renew(table.slices[key], table.origin)
            if retrained:
                follower.watch.restart()
            for hour in hours:
                follower.observe(hour)
            follower.look(now, running, silent)
        return {key: one.correction for key, one in self._followers.items() if one.says}

    def _retrained(self, table: ForecastTable) -> bool:
        """Whether somebody trained since the last look: by the table, or by taking the request away."""
        before, self._trained_at = self._trained_at, _trained_at(table)
        found = None if self._path is None else read_retrain_request(self._path, table)
        answered = self.request is not None and found is None
        self.request = found
        return answered or (before is not None and before < self._trained_at)

    @property
    def slices(self) -> dict[str, SliceLive]:
        """What is known, by slice key."""
        return {key: follower.told() for key, follower in self._followers.items()}

    def describe(self) -> str:
        """What is unusual now, in a few words for `health()`; empty when nothing is."""
        parts = [
            f"{_named(key)}: {_words(follower.correction)}"
            for key, follower in sorted(self._followers.items())
            if follower.correction.kind != "none"
        ][:3]
        if self.request is not None:
            parts.append(f"retrain asked for: {_named(self.request.slice)}, {self.request.reason}")
        return "; ".join(parts)

    def _names(self, table: ForecastTable, hours: Sequence[Counted]) -> list[str | None]:
        """All tickets (None), and the task types that were counted and have a forecast of their own."""
        for key in [key for key in self._followers if key not in table.slices]:
            del self._followers[key]
        known = {follower.name for follower in self._followers.values()}
        counted = {name for hour in hours[-_ERRORS:] for name in hour.by_type}
        types = sorted(name for name in (known | counted) - {None} if name and slice_key(name) in table.slices)
        return [*([None] if "" in table.slices else []), *types[:MAX_TASK_TYPES]]

    def ask_for_retrain(self, now: float) -> None:
        """Leave a request when a slice has drifted and none is there. Raises OSError when it cannot be written."""
        if self.request is not None or self._path is None or self._table is None:
            return
        worst = max(self._followers.values(), key=lambda one: one.watch.drift, default=None)
        if worst is None or worst.watch.drift < DRIFT_LIMIT:
            return
        request = RetrainRequest(now, worst.key, worst.watch.drift_reason, round(worst.watch.drift, 2))
        replace_file(self._path, json.dumps(request._asdict(), indent=1).encode() + b"\n")
        self.request = request
        _log.warning(
            "the forecast of %s has drifted (%s; statistic %.1f, limit %.0f): retrain asked for in %s",
            *(_named(worst.key), request.reason, request.statistic, DRIFT_LIMIT, self._path),
        )


class _Follower:
    """One slice: its share, its watch and its last errors."""

    def __init__(self, name: str | None, key: str, *, sees_all: bool) -> None:
        self.name, self.key, self._sees_all = name, key, sees_all
        self.watch = LevelWatch()
        self.correction: Correction = UNCORRECTED
        self._entry: SliceForecast | None = None
        self._origin = 0.0
        self._seen_until = float("-inf")
        self._came = self._expected = 0.0
        self._hours = self._tickets = 0
        self._carried = ""
        self._errors: deque[float] = deque(maxlen=_ERRORS)

    def renew(self, entry: SliceForecast, origin: float) -> None:
        """A new table knows the hours up to its origin; the hours since then are looked at anew."""
        self._carried = self.correction.kind
        self._entry, self._origin = entry, max(origin, entry.first_hour)
        self.watch.restart(keep_drift=True)
        self._seen_until = self._origin - _HOUR

    def observe(self, hour: Counted) -> None:
        """Take a completed hour in, unless it is known already or older than the table."""
        if self._entry is None or hour.start <= self._seen_until:
            return
        self._seen_until = hour.start
        mean, quantiles = hour_of(self._entry, hour.start)
        count = self._count(hour)
        if count is None:
            self.watch.observe(Hour(None, mean, quantiles))
            return
        share = self.share
        if share is not None:
            expected, levels = _part(mean, quantiles, share)
            self.watch.observe(Hour(count, expected, levels))
            if count:
                self._errors.append(abs(count - expected) / count)
        self._learn_share(count, mean, hour.start)

    def look(self, now: float, running: Counted | None, silent: float) -> None:
        """Make the correction as of now."""
        share, entry = self.share, self._entry
        if share is None or entry is None:
            self.correction = UNCORRECTED
            return
        part = None
        if running is not None and running.start >= self._origin and (count := self._count(running)) is not None:
            expected, levels = _part(*hour_of(entry, running.start), share)
            elapsed = min(max((now - running.start) / _HOUR, 0.0), 1.0)
            part = Running(count, elapsed, expected, levels, silent if not self.key else 0.0)
        found = self.watch.correction(part)
        if found.kind != self.correction.kind:
            _log.info("live forecast of %s: %s (was: %s)", _named(self.key), _words(found), _words(self.correction))
        if found.kind == "none":  # a small level is believed as far as the share is
            trust = self.watch.hours / (self.watch.hours + _SURE_H) if self._hours else 1.0
            found = found._replace(level=round(found.level * trust, 4))
        self.correction = found if found.level or found.outage_h else UNCORRECTED

    @property
    def share(self) -> float | None:
        """This host's share of the slice's tickets; None while it is not known."""
        if self._sees_all:
            return 1.0
        if self._hours < MIN_HOURS or self._tickets < MIN_TICKETS or self._expected <= 0:
            return None
        share = self._came / self._expected
        return 1.0 if abs(share - 1.0) <= _WHOLE else share

    @property
    def says(self) -> bool:
        """Whether it has a correction, or tickets enough to know that there is none to make (then not its parent's)."""
        return self.correction is not UNCORRECTED or (
            self.name is not None and self.share is not None and self._came >= _ENOUGH
        )

    def told(self) -> SliceLive:
        mape = 100 * sum(self._errors) / len(self._errors) if self._errors else None
        return SliceLive(self.correction, self.share, self.watch.drift / DRIFT_LIMIT, mape)

    def _count(self, hour: Counted) -> int | None:
        if hour.total is None or self.name is None:
            return hour.total
        none = None if len(hour.by_type) >= MAX_TASK_TYPES else 0  # there was no room to count it
        return hour.by_type.get(self.name, none)

    def _learn_share(self, count: int, mean: float, start: float) -> None:
        """From hours in which nothing unusual goes on, and from forecasts that are fresh.

        A shift that goes on under a new table, made from everybody's tickets, is taken for a change of the host's
        share, which is learned anew then, unless that would make it more than the whole.
        """
        known = self.share is not None
        if self._sees_all or (known and start - self._origin > _FRESH_H * _HOUR):
            return
        if not self.watch.settled:
            now = self.watch.correction()
            possible = (self.share or 1.0) * now.factor(1) <= 1.0 + _WHOLE
            if now.kind != self._carried or now.kind == "outage" or not possible:
                return
            self._came = self._expected = 0.0
            self._hours = self._tickets = 0
            self._carried, self.watch = "", LevelWatch()
        self._came = _SHARE_MEMORY * self._came + count
        self._expected = _SHARE_MEMORY * self._expected + mean
        self._hours += 1
        self._tickets += count


def _part(mean: float, quantiles: Sequence[float], share: float) -> tuple[float, list[float]]:
    """What of that forecast comes to a host with this share."""
    if share < 1.0:
        return thin(mean, quantiles, share)
    return share * mean, [share * value for value in quantiles]


def _trained_at(table: ForecastTable) -> float:
    return max((entry.trained_at for entry in table.slices.values()), default=table.generated_at)


def _named(key: str) -> str:
    return key or "all tickets"


def _words(by: Correction) -> str:
    if by.kind == "outage":
        return f"no tickets for {by.since:.1f} h, an outage"
    if by.kind == "none":
        return "as forecast"
    return f"level ×{by.factor(1):.2g} for {by.since:.0f} h"
