"""From a file's own columns to those of `execution_logs`, row by row accepted or rejected with a reason."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nhm_sched_plugin.errors import IngestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["TARGETS", "Plan", "plan", "shape"]

TEXTS: Final = ("ticket_id", "task_type", "risk_band", "status", "worker_id")
TARGETS: Final = (
    "timestamp",
    *TEXTS,
    "actual_duration_ms",
    "actual_duration_s",
    "actual_duration_min",
    "resource_cpu",
    "resource_memory",
    "sla_met",
    "queue_depth_at_start",
    "wait_s",
    "wait_min",
)
"""What a column may be mapped to: the columns of `execution_logs`, durations in other units, and the time a ticket
waited, from which `sla_met` follows."""
DEFAULTS: Final = {"task_type": "default", "risk_band": "", "status": "", "worker_id": ""}
DURATIONS: Final = {"actual_duration_ms": 1.0, "actual_duration_s": 1e3, "actual_duration_min": 60e3}
WAITS: Final = {"wait_s": 1.0, "wait_min": 60.0}
MAX_MS: Final = 2**32 - 1
LARGEST: Final = (2 - 2**-23) * 2.0**127
"""Of any number: what the table's columns (Float32) can hold."""
_ZONE: Final = r"[T :]\d{2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
_ISO: Final = r"^\d{4}-?\d{2}-?\d{2}"
TRUE: Final = ("1", "true", "t", "yes", "y", "1.0")
FALSE: Final = ("0", "false", "f", "no", "n", "0.0")


class Plan(NamedTuple):
    """Which column feeds which target, and everything else that shaping needs to know."""

    sources: Mapping[str, str]
    constants: Mapping[str, str]
    timezone: str
    timestamp_format: str | None
    sla_wait_s: float | None
    ticket_prefix: str


def plan(
    columns: Sequence[str],
    *,
    name: str,
    mapping: Mapping[str, str] | None,
    constants: Mapping[str, str] | None,
    timezone: str,
    timestamp_format: str | None,
    sla_wait_s: float | None,
    ticket_prefix: str,
) -> Plan:
    """Settle where each target comes from: the mapping first, then a column of the same name, in any case.

    Raises `IngestError` that names the wrong or missing column, the file's columns and the option to write.
    """
    import zoneinfo

    mapping, constants = dict(mapping or {}), {key: str(value) for key, value in (constants or {}).items()}
    for target in (*mapping, *constants):
        if target not in TARGETS:
            raise IngestError(
                f"--map {target}=...: no such target{_close(target, TARGETS)}; known: {', '.join(TARGETS)}"
            )
    try:
        zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        raise IngestError(f"time zone {timezone!r} is not known; write it as in 'America/Sao_Paulo'") from None
    spelled = {column.lower(): column for column in columns}
    sources: dict[str, str] = {}
    for target in TARGETS:
        if target in mapping:
            if mapping[target] not in columns:
                raise IngestError(
                    f"{name} has no column {mapping[target]!r} (--map {target}={mapping[target]})"
                    f"{_close(mapping[target], columns)}; its columns: {', '.join(columns)}"
                )
            sources[target] = mapping[target]
        elif target in spelled and target not in constants:
            sources[target] = spelled[target]
    if "timestamp" not in sources:
        likely = _likely_time(columns)
        raise IngestError(
            f"{name} has no column 'timestamp'; its columns: {', '.join(columns)}. Say which one holds the time "
            f"at which a ticket arrived: --map timestamp={likely or 'COLUMN'}"
        )
    return Plan(sources, constants, timezone, timestamp_format, sla_wait_s, ticket_prefix)


def _close(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word.lower(), [item.lower() for item in known], n=1, cutoff=0.5)
    return f"; did you mean {next(item for item in known if item.lower() == close[0])!r}?" if close else ""


def _likely_time(columns: Sequence[str]) -> str:
    for word in ("timestamp", "time", "date", "created", "opened", "start"):
        for column in columns:
            if word in column.lower():
                return column
    return ""


def shape(frame: pd.DataFrame, numbers: Sequence[int], how: Plan) -> tuple[pd.DataFrame, pd.Series[str]]:
    """The good rows as `execution_logs` has them, and why the others are not; both indexed by position."""
    return _Shaper(frame.reset_index(drop=True), how).run(numbers)


class _Shaper:
    """One chunk on its way. `reasons` holds, for every row, why it is rejected; the first reason stays."""

    def __init__(self, frame: pd.DataFrame, how: Plan) -> None:
        import pandas as pd

        self.frame, self.how = frame, how
        self.reasons = pd.Series("", index=frame.index, dtype="str")

    def run(self, numbers: Sequence[int]) -> tuple[pd.DataFrame, pd.Series[str]]:
        import pandas as pd

        result = pd.DataFrame({"timestamp": self.stamps()})
        for target in TEXTS:
            result[target] = self.text(target)
        generated = pd.Series([f"{self.how.ticket_prefix}-{number}" for number in numbers], index=self.frame.index)
        result["ticket_id"] = result["ticket_id"].fillna(generated)
        # 0 means "not known" in the table, so a known duration is at least 1 ms; one above 49 days is held at that.
        duration = self.first_of(DURATIONS)
        result["actual_duration_ms"] = duration.clip(1, MAX_MS).fillna(0).round().astype("uint32")
        for target in ("resource_cpu", "resource_memory"):
            result[target] = self.number(target).fillna(0).astype("float32")
        result["queue_depth_at_start"] = self.number("queue_depth_at_start").astype("Float32")
        result["sla_met"] = self.sla_met()
        return result[self.reasons == ""], self.reasons[self.reasons != ""]

    def reject(self, where: pd.Series[bool], reason: pd.Series[str] | str) -> None:
        first = where.fillna(False).astype(bool) & (self.reasons == "")
        if first.any():
            self.reasons[first] = reason if isinstance(reason, str) else reason[first]

    def raw(self, target: str) -> pd.Series[Any] | None:
        """What the file or a constant says; None when neither does."""
        import pandas as pd

        if target in self.how.sources:
            return self.frame[self.how.sources[target]]
        if target in self.how.constants:
            return pd.Series(self.how.constants[target], index=self.frame.index)
        return None

    def text(self, target: str) -> pd.Series[str]:
        import pandas as pd

        default = DEFAULTS.get(target)
        raw = self.raw(target)
        if raw is None:
            return pd.Series(default, index=self.frame.index, dtype="str")
        texts = raw.astype("str").str.strip()
        texts = texts.mask(raw.isna() | (texts == ""))
        return texts if default is None else texts.fillna(default)

    def number(self, target: str) -> pd.Series[float]:
        """Values from 0 to `LARGEST`, NaN where there is none; anything else rejects its row."""
        import numpy as np
        import pandas as pd

        raw = self.raw(target)
        if raw is None:
            return pd.Series(np.nan, index=self.frame.index)
        values = pd.to_numeric(raw, errors="coerce").astype("float64")
        shown = f"{target} = " + raw.astype("str")
        self.reject(raw.notna() & values.isna(), shown + " is no number")
        wrong = (values < 0) | (values > LARGEST)
        self.reject(wrong, shown + " is out of range")
        return values.mask(wrong)

    def first_of(self, units: Mapping[str, float]) -> pd.Series[float]:
        """The first of the targets that is given, in the unit of the first."""
        for target, scale in units.items():
            if target in self.how.sources or target in self.how.constants:
                return self.number(target) * scale
        return self.number(next(iter(units)))

    def sla_met(self) -> pd.Series[Any]:
        """Given as such, else from the time waited, else not known."""
        import pandas as pd

        raw = self.raw("sla_met")
        if raw is None:
            waited = self.first_of(WAITS)
            met = pd.Series(pd.NA, index=self.frame.index, dtype="UInt8")
            if self.how.sla_wait_s is not None:
                known = waited.notna()
                met[known] = (waited[known] <= self.how.sla_wait_s).astype("uint8")
            return met
        words = raw.astype("str").str.strip().str.lower()
        met = pd.Series(pd.NA, index=self.frame.index, dtype="UInt8")
        met[words.isin(TRUE)] = 1
        met[words.isin(FALSE)] = 0
        self.reject(raw.notna() & met.isna(), "sla_met = " + raw.astype("str") + " is neither true nor false")
        return met

    def stamps(self) -> pd.Series[Any]:
        import pandas as pd

        raw = self.frame[self.how.sources["timestamp"]]
        stamps = _moments(raw, self.how)
        shown = "timestamp = " + raw.astype("str")
        self.reject(raw.isna(), "timestamp is missing")
        hint = "" if self.how.timestamp_format else " as ISO 8601 or Unix time; give its format with --timestamp-format"
        self.reject(stamps.isna(), shown + " cannot be read" + hint)
        low, high = pd.Timestamp(0, tz="UTC"), pd.Timestamp(2**32 - 1, unit="s", tz="UTC")
        self.reject((stamps < low) | (stamps > high), shown + " is not between 1970 and 2106")
        return stamps


def _moments(raw: pd.Series[Any], how: Plan) -> pd.Series[Any]:
    """UTC times, NaT where there is none. Unix time may be in seconds, milliseconds or microseconds."""
    import numpy as np
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(raw):
        return to_utc(raw, how.timezone).astype("datetime64[us, UTC]")
    texts = raw.astype("str").str.strip()
    result = pd.Series(pd.NaT, index=raw.index, dtype="datetime64[us, UTC]")
    if how.timestamp_format is not None:
        return to_utc(pd.to_datetime(texts, format=how.timestamp_format, errors="coerce"), how.timezone)
    numbers = pd.to_numeric(raw, errors="coerce").astype("float64")
    # A year such as 2013 or a day such as 20130401 is no Unix time.
    unix = numbers.notna() & (texts.str.len() > 8)
    seconds = numbers[unix]
    size = seconds.abs()
    seconds = seconds / np.select([size < 1e11, size < 1e14], [1.0, 1e3], 1e6)
    result[unix] = pd.to_datetime((seconds * 1e6).round().astype("int64"), unit="us", utc=True)
    zoned = ~unix & texts.str.contains(_ZONE, regex=True)
    result[zoned] = pd.to_datetime(texts[zoned], format="ISO8601", errors="coerce", utc=True)
    naive = ~unix & ~zoned & texts.str.contains(_ISO, regex=True)
    result[naive] = to_utc(pd.to_datetime(texts[naive], format="ISO8601", errors="coerce"), how.timezone)
    return result


def to_utc(stamps: pd.Series[Any], timezone: str) -> pd.Series[Any]:
    if stamps.dt.tz is None:
        # The hour that a clock shows twice is taken as the first; one that it skips moves to the next that exists.
        first = [True] * len(stamps)
        stamps = stamps.dt.tz_localize(timezone, ambiguous=first, nonexistent="shift_forward")
    utc: pd.Series[Any] = stamps.dt.tz_convert("UTC")
    return utc
