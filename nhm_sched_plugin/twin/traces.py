"""Traces: when tickets arrived and how long they took, from log files or the records database.

Where a log has no service times they are drawn from a lognormal distribution: mean `service_mean_s` (default 300 s)
and `service_sigma` (default 0.8, of the logarithm), seeded. That is the usual shape of task durations: many short ones,
a few long ones.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.types import Ticket

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = [
    "SERVICE_MEAN_S",
    "SERVICE_SIGMA",
    "Trace",
    "TraceError",
    "read_csv",
    "read_records",
    "read_swf",
    "read_trace",
]

SERVICE_MEAN_S: Final = 300.0
SERVICE_SIGMA: Final = 0.8
_SHORTEST_S: Final = 1.0
"""Logs with whole seconds say 0 for what took less than one."""


class TraceError(IngestError, ValueError):
    """A trace cannot be used as asked."""


class Trace:
    """Tickets in order of arrival, between `start` and `end` (Unix seconds).

    `arrivals` Unix seconds and `durations` seconds of service, one of each per ticket; `ids`, `task_types` and
    `risk_bands` may be empty.
    """

    def __init__(
        self,
        arrivals: Sequence[float],
        durations: Sequence[float],
        *,
        ids: Sequence[str] = (),
        task_types: Sequence[str | None] = (),
        risk_bands: Sequence[str | None] = (),
        name: str = "trace",
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        """Sorts by arrival. Raises `TraceError` for columns of different length, and without tickets or a period."""
        columns = [column for column in (durations, ids, task_types, risk_bands) if column]
        if any(len(column) != len(arrivals) for column in columns) or len(durations) != len(arrivals):
            raise TraceError("a trace needs one duration (and id, task type, risk band) per arrival")
        order = sorted(range(len(arrivals)), key=arrivals.__getitem__)
        self.arrivals = [float(arrivals[i]) for i in order]
        self.durations = [max(float(durations[i]), 1e-3) for i in order]
        self.ids = [ids[i] for i in order] if ids else []
        self.task_types = [task_types[i] for i in order] if task_types else []
        self.risk_bands = [risk_bands[i] for i in order] if risk_bands else []
        self.name = name
        if not self.arrivals and (start is None or end is None):
            raise TraceError("a trace without tickets needs a start and an end")
        self.start = self.arrivals[0] if start is None else start
        self.end = math.nextafter(self.arrivals[-1], math.inf) if end is None else end

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def service_mean_s(self) -> float:
        """Mean service time; 0 without tickets."""
        return math.fsum(self.durations) / len(self.durations) if self.durations else 0.0

    @property
    def load(self) -> float:
        """Mean number of busy workers that the tickets need (Erlangs)."""
        return math.fsum(self.durations) / (self.end - self.start)

    def ticket(self, index: int) -> Ticket:
        """The ticket as a host would submit it."""
        return Ticket(
            ticket_id=self.ids[index] if self.ids else f"{self.name}-{index}",
            task_type=self.task_types[index] if self.task_types else None,
            risk_band=self.risk_bands[index] if self.risk_bands else None,
        )

    def slice(self, start: float, end: float) -> Trace:
        """The tickets that arrive in [start, end)."""
        first, last = bisect_left(self.arrivals, start), bisect_left(self.arrivals, end)
        return Trace(
            self.arrivals[first:last],
            self.durations[first:last],
            ids=self.ids[first:last],
            task_types=self.task_types[first:last],
            risk_bands=self.risk_bands[first:last],
            name=self.name,
            start=start,
            end=end,
        )

    def split(self, train_fraction: float) -> tuple[Trace, Trace]:
        """The first part of the time and the rest, cut at a full hour (UTC) where that leaves both parts some time."""
        if not 0 < train_fraction < 1:
            raise TraceError(f"train_fraction is {train_fraction}; it must lie between 0 and 1")
        cut = self.start + (self.end - self.start) * train_fraction
        hour = cut - cut % 3600
        cut = hour if self.start < hour < self.end else cut
        return self.slice(self.start, cut), self.slice(cut, self.end)

    def scaled(self, factor: float, seed: int, jitter_s: float = 60.0) -> Trace:
        """Volume times `factor`: each ticket kept or copied, copies moved by up to +-`jitter_s`."""
        draw = random.Random(seed)
        arrivals, durations = [], []
        for arrival, duration in zip(self.arrivals, self.durations, strict=True):
            for copy in range(int(factor) + (draw.random() < factor % 1)):
                moved = arrival + draw.uniform(-jitter_s, jitter_s) if copy else arrival
                arrivals.append(min(max(moved, self.start), math.nextafter(self.end, -math.inf)))
                durations.append(duration)
        return Trace(arrivals, durations, name=self.name, start=self.start, end=self.end)

    def hourly(self) -> list[tuple[float, int]]:
        """(start of the hour, arrivals), every full hour of the period, idle ones included."""
        first = math.ceil(self.start / 3600)
        last = math.floor(self.end / 3600)
        counts = [0] * max(last - first, 0)
        for arrival in self.arrivals:
            hour = int(arrival // 3600) - first
            if 0 <= hour < len(counts):
                counts[hour] += 1
        return [(3600.0 * (first + n), count) for n, count in enumerate(counts)]

    @classmethod
    def from_frame(cls, frame: Any, *, name: str = "store", seed: int = 0, **service: float) -> Trace:
        """From a DataFrame of execution logs: `timestamp` (UTC) and, where present, the other columns of that table."""
        stamps = frame["timestamp"]
        if stamps.dt.tz is None:
            stamps = stamps.dt.tz_localize("UTC")
        arrivals = (stamps - dt.datetime.fromtimestamp(0, dt.UTC)).dt.total_seconds().tolist()
        ids, task_types, risk_bands = (
            frame[name].tolist() if name in frame else [] for name in ("ticket_id", "task_type", "risk_band")
        )
        if "actual_duration_ms" in frame:
            durations = [float(duration) / 1000 for duration in frame["actual_duration_ms"]]
        else:
            durations = _drawn(len(arrivals), seed, **service)
        return cls(arrivals, durations, name=name, ids=ids, task_types=task_types, risk_bands=risk_bands)


def read_trace(path: Path, *, mapping: Mapping[str, str] | None = None, seed: int = 0, **service: float) -> Trace:
    """SWF or CSV, by the file's name (`.swf`, `.csv`, each also with `.gz`). Raises `IngestError`."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind == "swf":
        return read_swf(path)
    if kind == "csv":
        return read_csv(path, mapping=mapping, seed=seed, **service)
    raise IngestError(f"{path}: the name ends in {path.suffix!r}; a trace is a .swf or a .csv file (also .gz)")


def read_records(store: Store, *, name: str = "the records", seed: int = 0) -> Trace:
    """The tickets in the records database that have a duration; where none has one, all, with drawn ones.

    Raises `TraceError` when there are no tickets.
    """
    frame = store.execution_logs()
    if frame.empty:
        raise TraceError("the database holds no tickets; run `nhm-sched ingest FILE` first, or name a trace file")
    known = frame["actual_duration_ms"].notna()
    frame = frame[known] if known.any() else frame.drop(columns="actual_duration_ms")
    return Trace.from_frame(frame, name=name, seed=seed)


def read_swf(path: Path, *, max_duration_s: float = math.inf) -> Trace:
    """Standard Workload Format 2.2: field 1 job number, 2 submit time (s), 4 run time (s), 15 queue number.

    Jobs without a run time (-1) are left out. The header's UnixStartTime makes the times absolute.
    https://www.cs.huji.ac.il/labs/parallel/workload/swf.html
    """
    origin, arrivals, durations, ids, kinds = 0.0, [], [], [], []
    for number, line in enumerate(_lines(path), 1):
        if line.startswith(";"):
            key, _, value = line[1:].partition(":")
            if key.strip() == "UnixStartTime":
                origin = _number(path, number, "UnixStartTime", value)
            continue
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 5:
            raise IngestError(f"{path}:{number}: {len(fields)} fields; a job in Standard Workload Format has 18")
        run_time = _number(path, number, "run time", fields[3])
        if run_time < 0:
            continue
        arrivals.append(origin + _number(path, number, "submit time", fields[1]))
        durations.append(min(max(run_time, _SHORTEST_S), max_duration_s))
        ids.append(f"job-{fields[0]}")
        kinds.append(f"queue-{fields[14]}" if len(fields) > 14 and fields[14] != "-1" else "job")
    if not arrivals:
        raise IngestError(f"{path}: no job with a run time in it")
    return Trace(arrivals, durations, ids=ids, task_types=kinds, name=path.name)


def read_csv(path: Path, *, mapping: Mapping[str, str] | None = None, seed: int = 0, **service: float) -> Trace:
    """A CSV file with a header. `mapping` names its columns: keys `timestamp`, `ticket_id`, `task_type`, `risk_band`,
    `actual_duration_ms`; a key that is not mapped is looked for under its own name. Only `timestamp` is required:
    ISO 8601 (UTC unless it has an offset) or Unix seconds. Without durations see the module's text. Raises
    `IngestError`.
    """
    rows = csv.DictReader(_lines(path))
    header = rows.fieldnames or []
    chosen = {key: (mapping or {}).get(key, key) for key in _COLUMNS}
    for key, column in chosen.items():
        if column not in header and (key == "timestamp" or key in (mapping or {})):
            raise IngestError(f"{path}: no column {column!r} for {key}; the file has: {', '.join(header) or 'nothing'}")
    found: dict[str, list[str]] = {key: [] for key, column in chosen.items() if column in header}
    for row in rows:
        for key, values in found.items():
            values.append(row[chosen[key]] or "")
    stamps = [_stamp(path, number, text) for number, text in enumerate(found["timestamp"], 2)]
    if not stamps:
        raise IngestError(f"{path}: no rows below the header")
    if "actual_duration_ms" in found:
        numbered = enumerate(found["actual_duration_ms"], 2)
        durations = [_number(path, number, chosen["actual_duration_ms"], text) / 1000 for number, text in numbered]
    else:
        durations = _drawn(len(stamps), seed, **service)
    return Trace(
        stamps,
        durations,
        ids=found.get("ticket_id", ()),
        task_types=found.get("task_type", ()),
        risk_bands=found.get("risk_band", ()),
        name=path.name,
    )


_COLUMNS: Final = ("timestamp", "ticket_id", "task_type", "risk_band", "actual_duration_ms")


def _drawn(
    count: int, seed: int, *, service_mean_s: float = SERVICE_MEAN_S, service_sigma: float = SERVICE_SIGMA
) -> list[float]:
    """Lognormal service times; the mean of exp(N(mu, sigma)) is exp(mu + sigma^2 / 2)."""
    draw, mu = random.Random(seed), math.log(service_mean_s) - service_sigma**2 / 2
    return [draw.lognormvariate(mu, service_sigma) for _ in range(count)]


def _lines(path: Path) -> Iterable[str]:
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8").read().splitlines()
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise IngestError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _number(path: Path, line: int, what: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise IngestError(f"{path}:{line}: {what} is {text.strip()!r}, not a number")
    return number


def _stamp(path: Path, line: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        stamp = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise IngestError(f"{path}:{line}: timestamp {text!r} is neither ISO 8601 nor Unix seconds") from None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=dt.UTC)).timestamp()
