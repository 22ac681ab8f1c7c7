"""The forecast table: what a host serves from, written by training, read without pandas or numpy.

One row of hour buckets per slice, from the end of the known history some two weeks ahead. A host looks its answer up
here; no model is evaluated in its process. The file is JSON with a version and a sha256 digest of its own content.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import replace_file, stamp
from nhm_sched_plugin.forecasting.correction import UNCORRECTED, Correction, corrected
from nhm_sched_plugin.forecasting.intervals import LEVELS, confidence, thin
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.types import Forecast, ForecastPoint, Health

__all__ = [
    "MAX_HORIZON_MINUTES",
    "TABLE_VERSION",
    "UNKNOWN_SHARE",
    "ForecastTable",
    "SliceForecast",
    "SnapshotForecaster",
    "hour_of",
    "parse_table",
    "read_table",
    "slice_key",
    "write_table",
]

TABLE_VERSION: Final = 1
MAX_HORIZON_MINUTES: Final = 10_080
UNKNOWN_SHARE: Final = 0.01
"""Share of all tickets that a slice nobody has seen yet is taken to have."""
BORROWED: Final = 0.5
"""Factor on the confidence of an answer that another slice gave."""
UNTRUSTED: Final = 0.5
"""Factor on the confidence of a model that never met the error limit."""
STALE_CAP: Final = 0.5
"""Most confidence of an answer from beyond the table's end; it halves with every further week."""

_ALL: Final = 0.9999
_HOUR: Final = 3600.0
_WEEK_HOURS: Final = 168
_CACHE_HOURS: Final = 16_384
"""Hours in the answers that are kept, each some 500 bytes: whoever asks decides how long a forecast is."""
_FIX: Final = 'run "nhm-sched train" to write a new one'
_log = logging.getLogger(__name__)


class SliceForecast(msgspec.Struct, frozen=True, kw_only=True):
    """The forecast of one slice: element i of each list is the hour that starts at `first_hour + 3600 * i`."""

    first_hour: float
    """Start of the first hour, Unix seconds."""
    mean: list[float]
    """Tickets expected in each hour."""
    quantiles: dict[str, list[float]]
    """Level (`"0.025"`, `"0.1"`, `"0.5"`, `"0.9"`, `"0.975"`) -> tickets in each hour."""
    samples: int
    """Hours of history behind it."""
    trained_at: float
    """When the models were fitted, Unix seconds."""
    method: str
    """Which model makes the first hour: `prophet`, `ridge`, `arima`, `seasonal_mean`, ..."""
    methods: dict[str, str] = {}
    """Which model is served at each trained horizon in minutes."""
    mape: dict[str, float] = {}
    """Backtest MAPE in percent at each trained horizon in minutes."""
    model_version: str = ""
    share: float | None = None
    """This slice's share of all tickets, in [0, 1]."""
    cpu_core_hours_per_ticket: float | None = None
    memory_gib_hours_per_ticket: float | None = None
    trusted: bool = True
    """False: its models never met the error limit; answers come at half the confidence."""


class ForecastTable(msgspec.Struct, frozen=True, kw_only=True):
    """Every slice's forecast. `write_table` fills in the digest."""

    version: int = TABLE_VERSION
    digest: str = ""
    """sha256 of the table without this field."""
    generated_at: float
    """When the table was made, Unix seconds."""
    origin: float
    """End of the last known hour, Unix seconds."""
    model_version: str
    method: str
    slices: dict[str, SliceForecast]
    """By `slice_key`; `""` is the global one."""
    shares: dict[str, float] = {}
    """Share of all tickets of slices that have no forecast of their own."""


class _Header(msgspec.Struct):
    version: int


def slice_key(task_type: str | None = None, risk_band: str | None = None) -> str:
    """The key of a slice: `""` for everything, `"task_type"`, `"task_type|risk_band"`, or `"|risk_band"`."""
    kind, band = (part.replace("%", "%25").replace("|", "%7C") if part else "" for part in (task_type, risk_band))
    return f"{kind}|{band}" if band else kind


def write_table(path: Path, table: ForecastTable) -> ForecastTable:
    """Write the table so that a reader sees either the old or the new one; returns it with its digest.

    Raises `ModelError` for a table with unusable numbers, OSError when the folder cannot be written.
    """
    _check(str(path), table)
    table = msgspec.structs.replace(table, version=TABLE_VERSION, digest="")
    table = msgspec.structs.replace(table, digest=_digest(table))
    replace_file(path, msgspec.json.encode(table, order="deterministic"))
    return table


def read_table(path: Path) -> ForecastTable:
    """The table in `path`, checked. Raises `ModelError` that names the file and the fix."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"forecast table {path} cannot be read ({error.strerror or error}); {_FIX}") from None
    return parse_table(raw, str(path))


def parse_table(raw: bytes, name: str) -> ForecastTable:
    """The table in `raw`, checked. Raises `ModelError` that names `name` and the fix."""
    try:
        found = msgspec.json.decode(raw, type=_Header).version
        if found != TABLE_VERSION:
            raise ModelError(f"forecast table {name} has version {found}, expected {TABLE_VERSION}; {_FIX}")
        table = msgspec.json.decode(raw, type=ForecastTable)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"forecast table {name} is damaged ({error}); {_FIX}") from None
    if _digest(msgspec.structs.replace(table, digest="")) != table.digest:
        raise ModelError(f"forecast table {name} does not match its digest; it was changed or cut off; {_FIX}")
    _check(name, table)
    return table


def _digest(table: ForecastTable) -> str:
    return hashlib.sha256(msgspec.json.encode(table, order="deterministic")).hexdigest()


def _check(name: str, table: ForecastTable) -> None:
    names = {str(level) for level in LEVELS}
    for key, entry in table.slices.items():
        rows = [entry.mean, *entry.quantiles.values()]
        if set(entry.quantiles) != names or not entry.mean or len({len(row) for row in rows}) != 1:
            raise ModelError(f"forecast table {name}: slice {key!r} lacks hours or quantiles {sorted(names)}; {_FIX}")
        if not all(math.isfinite(value) and value >= 0 for row in rows for value in row):
            raise ModelError(f"forecast table {name}: slice {key!r} holds a negative or endless volume; {_FIX}")


class _Loaded:
    """One table with the answers built from it; replaced as a whole, so that readers need no lock."""

    def __init__(self, table: ForecastTable) -> None:
        self.table = table
        self.generated_at = dt.datetime.fromtimestamp(table.generated_at, dt.UTC)
        self.rows = {
            key: list(zip(entry.mean, *(entry.quantiles[str(level)] for level in LEVELS), strict=True))
            for key, entry in table.slices.items()
        }
        self.corrections: Mapping[str, Correction] = {}
        self.answers: dict[tuple[str | None, str | None, int, int], Forecast | None] = {}
        self.hours = 0

    def corrected(self, corrections: Mapping[str, Correction]) -> _Loaded:
        """The same table with other corrections, and no answers yet."""
        other = copy.copy(self)
        other.corrections, other.answers, other.hours = corrections, {}, 0
        return other


class SnapshotForecaster:
    """Answers `forecast` from a table in memory (about a microsecond); `refresh` takes a newer file over.

    Forecasts start *now*: point i covers the hour from `now + (i - 1) h` to `now + i h`, with `now` cut to the
    minute. A window that straddles two hour buckets takes its part of each (arrivals spread evenly within an hour).
    `generated_at` is the table's own stamp, so that its age shows. What a background thread found out from the counts
    of the last hours (`correct`) is in every answer.

    `on_load` hears `"success"` or `"error"` of every file read, for the metrics.
    """

    def __init__(self, path: Path, on_load: Callable[[str], None] | None = None) -> None:
        self._path = path
        self._on_load = on_load
        self._loaded: _Loaded | None = None
        self._seen: tuple[int, int, int] | None = None
        self._error: ModelError | None = None
        self._remark = ""
        self.after_fork()
        renew_after_fork(self)
        try:
            self.refresh()
        except ModelError as error:  # a host starts without a forecast too; `health` and the next refresh say why
            _log.warning("%s", error)

    def after_fork(self) -> None:
        self._swap = threading.Lock()

    @property
    def table(self) -> ForecastTable | None:
        """The table being served."""
        loaded = self._loaded
        return loaded.table if loaded else None

    def correct(self, table: ForecastTable, corrections: Mapping[str, Correction], remark: str = "") -> None:
        """Serve that table with these corrections by slice key; a table that is served no more is left alone.

        A task type without one of its own takes that of all tickets. `remark` goes into `health()`.
        """
        with self._swap:
            loaded = self._loaded
            if loaded is None or loaded.table is not table:
                return
            self._remark = remark
            if loaded.corrections != corrections:
                self._loaded = loaded.corrected(dict(corrections))

    def refresh(self) -> None:
        """Read the file again if it changed. Raises `ModelError` if it cannot be used; the old table then stays."""
        seen = stamp(self._path)
        if seen is None:
            self._error = None  # nothing published yet, or withdrawn: what is in memory goes on
            return
        if seen != self._seen:
            try:
                fresh = _Loaded(read_table(self._path))
                with self._swap:
                    self._loaded, self._error, self._remark = fresh, None, ""
            except ModelError as error:
                self._error = error
            self._seen = seen
            if self._on_load:
                self._on_load("error" if self._error else "success")
        if self._error:
            raise self._error

    def health(self) -> Health:
        """Ready when a table is in memory; `detail` says which, or what is wrong with the file."""
        loaded = self._loaded
        if loaded is None:
            detail = str(self._error) if self._error else f"no forecast table at {self._path} yet; {_FIX}"
            return Health(component="forecaster", ok=False, detail=detail)
        made = f"{loaded.generated_at:%Y-%m-%d %H:%M} UTC"
        detail = f"{len(loaded.rows)} slices, model {loaded.table.model_version}, made {made}"
        detail += f"; {self._remark}" if self._remark else ""
        return Health(component="forecaster", ok=True, detail=f"{detail}; but {self._error}" if self._error else detail)

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None:
        """The load from `now` (Unix seconds) to the horizon; None while there is no table.

        `predicted_volume` is the tickets of the hour that ends at the horizon (of the hour from now on, for a horizon
        below 60). A slice without a forecast is answered from its nearest parent, scaled by its share, at half the
        confidence; a time outside the table from the same hour of the week inside it, at low, decaying confidence.
        Raises ValueError for a horizon outside 1 to 10080 minutes.
        """
        loaded = self._loaded
        if loaded is None:
            return None
        key = (task_type, risk_band, horizon_minutes, int(now // 60))
        try:
            return loaded.answers[key]
        except KeyError:
            pass
        answer = _answer(loaded, horizon_minutes, key[3] * 60.0, task_type, risk_band)
        loaded.hours += 1 if answer is None else len(answer.points)
        if loaded.hours > _CACHE_HOURS:
            loaded.answers.clear()
            loaded.hours = 0
        loaded.answers[key] = answer
        return answer


def _answer(
    loaded: _Loaded, horizon: int, start: float, task_type: str | None, risk_band: str | None
) -> Forecast | None:
    if not 1 <= horizon <= MAX_HORIZON_MINUTES:
        raise ValueError(f"horizon_minutes {horizon!r} is outside 1 to {MAX_HORIZON_MINUTES}")
    found = _source(loaded.table, task_type, risk_band)
    if found is None:
        return None
    key, share = found
    entry, rows = loaded.table.slices[key], loaded.rows[key]
    by = _correction(loaded, key, task_type)
    points = []
    for step in range(math.ceil(horizon / 60)):
        at = start + step * _HOUR
        mean, levels = _window(rows, entry.first_hour, at, share, by, step + 1.0)
        begins = dt.datetime.fromtimestamp(at, dt.UTC)
        points.append(ForecastPoint(begins, mean, dict(zip(LEVELS, levels, strict=True))))
    last, ahead = start + max(horizon - 60, 0) * 60.0, max(horizon / 60, 1.0)
    volume, levels = _window(rows, entry.first_hour, last, share, by, ahead)
    sure = confidence(dict(zip(LEVELS, levels, strict=True)), entry.samples) * by.sure(ahead)
    sure *= (1.0 if share is None else BORROWED) * (1.0 if entry.trusted else UNTRUSTED)
    cpu, memory = entry.cpu_core_hours_per_ticket, entry.memory_gib_hours_per_ticket
    return Forecast(
        horizon_minutes=horizon,
        predicted_volume=volume,
        confidence=_faded(sure, last, entry),
        points=tuple(points),
        generated_at=loaded.generated_at,
        resource_demand_cpu=None if cpu is None else volume * cpu,
        resource_demand_memory=None if memory is None else volume * memory,
        model_version=entry.model_version or loaded.table.model_version,
        method=_method(entry, horizon),
        live_factor=by.factor(ahead),
    )


def _correction(loaded: _Loaded, key: str, task_type: str | None) -> Correction:
    """Of the task type where that is counted by itself, else of all tickets."""
    if not loaded.corrections:
        return UNCORRECTED
    own = loaded.corrections.get(key)
    if own is None and task_type is not None:
        own = loaded.corrections.get(slice_key(task_type))
    return own or loaded.corrections.get("", UNCORRECTED)


def _source(table: ForecastTable, task_type: str | None, risk_band: str | None) -> tuple[str, float | None] | None:
    """Which slice answers, and the share of it that was asked for (None: all of it)."""
    wanted = slice_key(task_type, risk_band)
    if wanted in table.slices:
        return wanted, None
    share = table.shares.get(wanted, UNKNOWN_SHARE)
    parent = slice_key(task_type)
    entry = table.slices.get(parent)
    if parent and entry is not None:  # the share is of all tickets; of the parent's it is larger
        part = share / entry.share if entry.share else share
        return parent, part if part < _ALL else None
    return ("", share) if "" in table.slices else None


def _window(
    rows: list[tuple[float, ...]], first_hour: float, at: float, share: float | None, by: Correction, ahead: float
) -> tuple[float, list[float]]:
    """Mean and quantiles of the hour from `at` on: the parts of the two buckets it straddles, corrected."""
    whole, part = divmod((at - first_hour) / _HOUR, 1.0)
    left, right = rows[_index(int(whole), len(rows))], rows[_index(int(whole) + 1, len(rows))]
    mean, *levels = (a + (b - a) * part for a, b in zip(left, right, strict=True))
    if by is not UNCORRECTED:
        mean, levels = corrected(mean, levels, ahead, by)
    return (mean, levels) if share is None else thin(mean, levels, share)


def hour_of(entry: SliceForecast, start: float) -> tuple[float, list[float]]:
    """Mean and quantiles (at LEVELS) that this row gives for the hour from `start` (Unix seconds) on."""
    whole, part = divmod((start - entry.first_hour) / _HOUR, 1.0)
    i, j = _index(int(whole), len(entry.mean)), _index(int(whole) + 1, len(entry.mean))
    mean, *levels = (
        row[i] + (row[j] - row[i]) * part for row in (entry.mean, *(entry.quantiles[str(level)] for level in LEVELS))
    )
    return mean, levels


def _index(hour: int, count: int) -> int:
    """The bucket of that hour; outside the table the same hour of the week (of the day in a short table) inside it."""
    if 0 <= hour < count:
        return hour
    period = _WEEK_HOURS if count >= _WEEK_HOURS else 24 if count >= 24 else count
    return hour % period if hour < 0 else count - period + (hour - count) % period


def _faded(sure: float, at: float, entry: SliceForecast) -> float:
    """The confidence of an hour: unchanged inside the table, outside capped and halved with every week."""
    ahead = (at - entry.first_hour) / _HOUR - (len(entry.mean) - 1)
    outside = max(ahead, (entry.first_hour - at) / _HOUR)
    return sure if outside <= 0 else min(sure, STALE_CAP) * 0.5 ** (outside / _WEEK_HOURS)


def _method(entry: SliceForecast, horizon: int) -> str:
    """The model served at the trained horizon nearest to this one."""
    trained: Mapping[str, str] = entry.methods
    return trained[min(trained, key=lambda name: abs(int(name) - horizon))] if trained else entry.method
