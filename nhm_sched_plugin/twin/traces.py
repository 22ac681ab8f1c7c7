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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.twin.labels import Labels
from nhm_sched_plugin.types import Ticket

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nhm_sched_plugin.store.repository import Store

    Floats = NDArray[np.float64]

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
_NO_TIME_S: Final = 1e-3
"""No ticket takes less than this."""


class TraceError(IngestError, ValueError):
    """A trace cannot be used as asked."""


class Trace:
    """Tickets in order of arrival, between `start` and `end` (Unix seconds).

    `arrivals` (Unix seconds) and `durations` (seconds of service) are float64 arrays with an element per ticket, `ids`
    is an array of strings, empty when the tickets have no names. Treat them as constant: slices share them.
    """

    def __init__(
        self,
        arrivals: Sequence[float] | Floats,
        durations: Sequence[float] | Floats,
        *,
        ids: Sequence[str] | NDArray[Any] = (),
        task_types: Sequence[str | None] | Labels = (),
        risk_bands: Sequence[str | None] | Labels = (),
        name: str = "trace",
        start: float | None = None,
        end: float | None = None,
        drawn: bool = False,
    ) -> None:
        """Sorts by arrival. `drawn`: the log had no service times, these are drawn. Raises `TraceError` for columns of
        different length, times that are no numbers, and without tickets or a period (or with one that ends before it
        starts)."""
        moments, lengths = np.asarray(arrivals, np.float64), np.asarray(durations, np.float64)
        names = np.asarray(ids, np.dtypes.StringDType())
        kinds, bands = Labels.of(task_types), Labels.of(risk_bands)
        optional = [len(column) for column in (names, kinds, bands) if len(column)]
        if any(length != len(moments) for length in optional) or len(lengths) != len(moments):
            raise TraceError("a trace needs one duration (and id, task type, risk band) per arrival")
        if not (np.isfinite(moments).all() and np.isfinite(lengths).all()):
            raise TraceError(f"{name}: every arrival and duration must be a finite number of seconds")
        if (moments[1:] < moments[:-1]).any():
            order = np.argsort(moments, kind="stable")
            moments, lengths = moments[order], lengths[order]
            names = names[order] if len(names) else names
            kinds, bands = (column[order] if len(column) else column for column in (kinds, bands))
        if not len(moments) and (start is None or end is None):
            raise TraceError("a trace without tickets needs a start and an end")
        self.arrivals, self.ids, self.name = moments, names, name
        self.durations = lengths if lengths.min(initial=1.0) >= _NO_TIME_S else np.maximum(lengths, _NO_TIME_S)
        self.kinds, self.bands = kinds, bands
        self.drawn = drawn
        self.start = float(moments[0] if start is None else start)
        self.end = float(math.nextafter(moments[-1], math.inf) if end is None else end)
        if not self.start <= self.end:
            raise TraceError(f"{name}: it starts at {self.start} and ends before, at {self.end}")

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def task_types(self) -> list[str | None]:
        """One per ticket; empty when the log has none."""
        return self.kinds.tolist()

    @property
    def risk_bands(self) -> list[str | None]:
        """One per ticket; empty when the log has none."""
        return self.bands.tolist()

    @property
    def service_mean_s(self) -> float:
        """Mean service time; 0 without tickets."""
        return float(self.durations.mean()) if len(self) else 0.0

    @property
    def load(self) -> float:
        """Mean number of busy workers that the tickets need (Erlangs)."""
        return float(self.durations.sum()) / (self.end - self.start)

    def ticket(self, index: int) -> Ticket:
        """The ticket as a host would submit it."""
        return Ticket(
            ticket_id=str(self.ids[index]) if len(self.ids) else f"{self.name}-{index}",
            task_type=self.kinds.at(index),
            risk_band=self.bands.at(index),
        )

    def slice(self, start: float, end: float) -> Trace:
        """The tickets that arrive in [start, end)."""
        first, last = np.searchsorted(self.arrivals, (start, end))
        return Trace(
            self.arrivals[first:last],
            self.durations[first:last],
            ids=self.ids[first:last],
            task_types=self.kinds[first:last],
            risk_bands=self.bands[first:last],
            name=self.name,
            start=start,
            end=end,
            drawn=self.drawn,
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
        """Volume times `factor`: each ticket dropped, kept or copied.

        The first copy of a ticket stays where it is, further ones are moved by up to +-`jitter_s`. Ids are not kept.
        Raises `TraceError` for a factor or jitter that is negative or no number.
        """
        if not (0 <= factor < math.inf and 0 <= jitter_s < math.inf):
            raise TraceError(f"cannot scale by {factor} with a jitter of {jitter_s} s; both must be 0 or more")
        draw = np.random.default_rng(seed)
        copies = (draw.random(len(self)) < factor % 1) + int(factor)
        origin = np.repeat(np.arange(len(self), dtype=np.int32), copies)
        arrivals = self.arrivals[origin]
        copied = np.zeros(len(origin), bool)
        copied[1:] = origin[1:] == origin[:-1]
        arrivals[copied] += draw.uniform(-jitter_s, jitter_s, np.count_nonzero(copied))
        arrivals.clip(self.start, math.nextafter(self.end, -math.inf), out=arrivals)
        return Trace(
            arrivals,
            self.durations[origin],
            task_types=self.kinds[origin] if len(self.kinds) else (),
            risk_bands=self.bands[origin] if len(self.bands) else (),
            name=self.name,
            start=self.start,
            end=self.end,
            drawn=self.drawn,
        )

    def capped(self, max_duration_s: float) -> Trace:
        """No ticket takes longer than that. Raises `TraceError` when it is not above 0."""
        if not max_duration_s > 0:
            raise TraceError(f"max_duration_s is {max_duration_s}; it must be above 0")
        if not len(self) or self.durations.max() <= max_duration_s:
            return self
        return Trace(
            self.arrivals,
            np.minimum(self.durations, max_duration_s),
            ids=self.ids,
            task_types=self.kinds,
            risk_bands=self.bands,
            name=self.name,
            start=self.start,
            end=self.end,
            drawn=self.drawn,
        )

    def hourly(self) -> list[tuple[float, int]]:
        """(start of the hour, arrivals), every full hour of the period, idle ones included."""
        first, last = math.ceil(self.start / 3600), math.floor(self.end / 3600)
        inside = self.slice(3600.0 * first, 3600.0 * last).arrivals if last > first else self.arrivals[:0]
        counts = np.bincount((inside // 3600).astype(np.int64) - first, minlength=max(last - first, 0))
        return [(3600.0 * (first + n), count) for n, count in enumerate(counts.tolist())]

    @classmethod
    def from_frame(cls, frame: Any, *, name: str = "store", seed: int = 0, **service: float) -> Trace:
        """From a DataFrame of execution logs: `timestamp` (UTC) and, where present, the other columns of that table."""
        stamps = frame["timestamp"]
        if stamps.dt.tz is None:
            stamps = stamps.dt.tz_localize("UTC")
        arrivals = (stamps - dt.datetime.fromtimestamp(0, dt.UTC)).dt.total_seconds().tolist()
        ids, task_types, risk_bands = (
            frame[column].tolist() if column in frame else [] for column in ("ticket_id", "task_type", "risk_band")
        )
        durations: Floats | list[float]
        if "actual_duration_ms" in frame:
            _refuse(name, service)
            durations = [float(duration) / 1000 for duration in frame["actual_duration_ms"]]
        else:
            durations = _drawn(len(arrivals), seed, **service)
        timed = "actual_duration_ms" in frame
        return cls(
            arrivals, durations, name=name, ids=ids, task_types=task_types, risk_bands=risk_bands, drawn=not timed
        )


def read_trace(
    path: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    seed: int = 0,
    max_duration_s: float = math.inf,
    **service: float,
) -> Trace:
    """SWF or CSV, by the file's name (`.swf`, `.csv`, each also with `.gz`).

    No ticket takes more than `max_duration_s`. `service` (`service_mean_s`, `service_sigma`) says how to draw service
    times where the file has none, see the module's text. Raises `IngestError`, also when the file has its own and
    `service` is given.
    """
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind == "swf":
        _refuse(str(path), service)
        return read_swf(path, max_duration_s=max_duration_s)
    if kind == "csv":
        return read_csv(path, mapping=mapping, seed=seed, **service).capped(max_duration_s)
    raise IngestError(f"{path}: the name ends in {path.suffix!r}; a trace is a .swf or a .csv file (also .gz)")


def read_records(
    store: Store,
    *,
    name: str = "the records",
    seed: int = 0,
    max_duration_s: float = math.inf,
    **service: float,
) -> Trace:
    """The tickets in the records database that have a duration; where none has one, all, with drawn ones.

    The arguments are those of `read_trace`. Raises `TraceError` when there are no tickets.
    """
    frame = store.execution_logs()
    if frame.empty:
        raise TraceError("the database holds no tickets; run `nhm-sched ingest FILE` first, or name a trace file")
    known = frame["actual_duration_ms"].notna()
    frame = frame[known] if known.any() else frame.drop(columns="actual_duration_ms")
    return Trace.from_frame(frame, name=name, seed=seed, **service).capped(max_duration_s)


def read_swf(path: Path, *, max_duration_s: float = math.inf) -> Trace:
    """Standard Workload Format 2.2: field 1 job number, 2 submit time (s), 4 run time (s), 15 queue number.

    No job takes more than `max_duration_s`. Jobs without a run time (-1) are left out. The header's UnixStartTime makes
    the times absolute.
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
        durations.append(max(run_time, _SHORTEST_S))
        ids.append(f"job-{fields[0]}")
        kinds.append(f"queue-{fields[14]}" if len(fields) > 14 and fields[14] != "-1" else "job")
    if not arrivals:
        raise IngestError(f"{path}: no job with a run time in it")
    return Trace(arrivals, durations, ids=ids, task_types=kinds, name=path.name).capped(max_duration_s)


def read_csv(path: Path, *, mapping: Mapping[str, str] | None = None, seed: int = 0, **service: float) -> Trace:
    """A CSV file with a header. `mapping` names its columns: keys `timestamp`, `ticket_id`, `task_type`, `risk_band`,
    `actual_duration_ms` (or `_s`, `_min`); a key that is not mapped is looked for under its own name. Only `timestamp`
    is required: ISO 8601 (UTC unless it has an offset) or Unix seconds. Without durations see the module's text. Raises
    `IngestError`.
    """
    mapping = mapping or {}
    if unknown := [key for key in mapping if key not in _COLUMNS]:
        raise IngestError(f"--map {unknown[0]}=...: no such target; a trace takes: {', '.join(_COLUMNS)}")
    rows = csv.DictReader(_lines(path))
    try:
        header = rows.fieldnames or []
        chosen = {key: mapping.get(key, key) for key in _COLUMNS}
        for key, column in chosen.items():
            if column not in header and (key == "timestamp" or key in mapping):
                there = ", ".join(header) or "nothing"
                raise IngestError(f"{path}: no column {column!r} for {key}; the file has: {there}")
        found: dict[str, list[str]] = {key: [] for key, column in chosen.items() if column in header}
        lines: list[int] = []
        for row in rows:
            lines.append(rows.line_num)
            for key, values in found.items():
                values.append(row[chosen[key]] or "")
    except csv.Error as error:
        raise IngestError(f"{path}:{rows.line_num}: {error}; is a quotation mark left open?") from None
    stamps = [_stamp(path, number, text) for number, text in zip(lines, found["timestamp"], strict=True)]
    if not stamps:
        raise IngestError(f"{path}: no rows below the header")
    durations: Floats | list[float]
    timed = [key for key in _DURATIONS if key in found]
    if timed:
        _refuse(str(path), service)
        key = next((key for key in timed if key in mapping), timed[0])
        numbered = zip(lines, found[key], strict=True)
        durations = [_duration_s(path, number, chosen[key], text, _DURATIONS[key]) for number, text in numbered]
    else:
        durations = _drawn(len(stamps), seed, **service)
    return Trace(
        stamps,
        durations,
        ids=found.get("ticket_id", ()),
        task_types=found.get("task_type", ()),
        risk_bands=found.get("risk_band", ()),
        name=path.name,
        drawn=not timed,
    )


_DURATIONS: Final = {"actual_duration_ms": 1e-3, "actual_duration_s": 1.0, "actual_duration_min": 60.0}
"""Seconds in one."""
_COLUMNS: Final = ("timestamp", "ticket_id", "task_type", "risk_band", *_DURATIONS)
_OPTIONS: Final = {"service_mean_s": "--service-mean", "service_sigma": "--service-sigma"}
_LATEST_S: Final = 1e11
"""Unix seconds of the year 5138; what is beyond it counts in milliseconds or less."""
_LONGEST_S: Final = 1e9
"""Thirty years."""


def _drawn(
    count: int, seed: int, *, service_mean_s: float = SERVICE_MEAN_S, service_sigma: float = SERVICE_SIGMA
) -> Floats:
    """Lognormal service times; the mean of exp(N(mu, sigma)) is exp(mu + sigma^2 / 2)."""
    if not (0 < service_mean_s < math.inf and 0 <= service_sigma < math.inf):
        raise TraceError(
            f"service times with mean {service_mean_s} s and sigma {service_sigma}: "
            "the mean must be above 0, sigma 0 or more"
        )
    mu = math.log(service_mean_s) - service_sigma**2 / 2
    return np.random.default_rng(seed).lognormal(mu, service_sigma, count)


def _refuse(name: str, service: Mapping[str, float]) -> None:
    if service:
        given = ", ".join(f"{_OPTIONS.get(key, key)} {value:g}" for key, value in service.items())
        raise TraceError(f"{name} has service times of its own; leave out {given}: they are for logs without")


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


def _duration_s(path: Path, line: int, what: str, text: str, unit_s: float) -> float:
    seconds = _number(path, line, what, text) * unit_s
    if not 0 <= seconds <= _LONGEST_S:
        raise IngestError(
            f"{path}:{line}: {what} is {text.strip()}; a duration is 0 or more, and less than thirty years. Leave out "
            "lines of tickets that did not end, or the column, and service times are drawn"
        )
    return seconds


def _stamp(path: Path, line: int, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if math.isfinite(seconds) and abs(seconds) > _LATEST_S:
            raise IngestError(
                f"{path}:{line}: timestamp {text.strip()} would be in year {1970 + seconds / 31_556_952:,.0f}; Unix "
                "seconds are expected, so divide milliseconds by 1000"
            )
        if math.isfinite(seconds):
            return seconds
    try:
        stamp = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise IngestError(f"{path}:{line}: timestamp {text!r} is neither ISO 8601 nor Unix seconds") from None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=dt.UTC)).timestamp()
