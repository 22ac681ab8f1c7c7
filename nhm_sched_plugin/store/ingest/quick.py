"""`shaping` for columns that have types, many rows at a time: what it accepts is exactly what `shape` makes of them.

`shape` is the rule, this is its short way: a value that it cannot be sure of is left to `shape`, row by row, which
finds the reason too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.store.ingest.shaping import (
    DEFAULTS,
    DURATIONS,
    FALSE,
    LARGEST,
    MAX_MS,
    TEXTS,
    TRUE,
    WAITS,
    Plan,
    to_utc,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

__all__ = ["as_table", "column_types", "quick"]

_DAY: Final = r"\d{4}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
"""A day that exists (the 29th of February is left to `shape`)."""
_TIME: Final = r"[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?"
_NAIVE: Final = rf"^{_DAY}(?:{_TIME})?$"
_ZONED: Final = rf"^{_DAY}{_TIME}(?:Z|[+-](?:0\d|1[0-4]):?[0-5]\d)$"
_UNIX: Final = r"^\d{9,16}$"
_NUMBER: Final = r"^[+-]?\d{1,15}(?:\.\d{0,15})?$"


class _UnknownTypeError(Exception):
    """A column of a type that only `shape` knows."""


def column_types(columns: Sequence[str], how: Plan, sample: Mapping[str, str]) -> dict[str, pa.DataType]:
    """The columns that are needed and the type each should be parsed as; `sample` has a value of each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    word = pa.dictionary(pa.int32(), pa.string())
    kinds: dict[str, pa.DataType] = {}
    for target, column in how.sources.items():
        if target == "timestamp":
            value = pa.array([sample.get(column, "").strip()])
            forms = ((_NAIVE, pa.timestamp("us")), (_ZONED, pa.timestamp("us", "UTC")), (_UNIX, pa.int64()))
            found = [kind for form, kind in forms if pc.match_substring_regex(value, form)[0].as_py()]
            kind = found[0] if found and how.timestamp_format is None else pa.string()
        elif target == "ticket_id":
            kind = pa.string()
        elif target in TEXTS or target == "sla_met":
            kind = word
        else:
            kind = pa.float64()
        # One column for two targets: text, which serves any.
        kinds[column] = kind if kinds.get(column, kind) == kind else pa.string()
    return {column: kinds[column] for column in columns if column in kinds}


def quick(table: pa.Table, numbers: Sequence[int], how: Plan) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """The rows as `execution_logs` has them, and which of them are so; the others are for `shape`."""
    import numpy as np

    work = _Quick(table.combine_chunks(), numbers, how)
    try:
        return work.run(), work.good
    except _UnknownTypeError:
        return table, np.zeros(table.num_rows, dtype=bool)


def as_table(columns: Mapping[str, Any]) -> pa.Table:
    """Columns in the order and with the types of an insert, timestamps as Unix seconds."""
    import pyarrow as pa

    types = {
        "timestamp": pa.uint32(),
        **dict.fromkeys(TEXTS, pa.string()),
        "actual_duration_ms": pa.uint32(),
        "resource_cpu": pa.float32(),
        "resource_memory": pa.float32(),
        "queue_depth_at_start": pa.float32(),
        "sla_met": pa.uint8(),
    }
    arrays = []
    for name, kind in types.items():
        array = columns[name]
        array = array if isinstance(array, pa.Array | pa.ChunkedArray) else pa.array(array, from_pandas=True)
        arrays.append(array if pa.types.is_dictionary(array.type) else array.cast(kind))
    return pa.table(arrays, names=list(types))


class _Quick:
    """One table on its way; `good` says which rows are settled so far."""

    def __init__(self, table: pa.Table, numbers: Sequence[int], how: Plan) -> None:
        import numpy as np

        self.table, self.numbers, self.how = table, numbers, how
        self.good: npt.NDArray[np.bool_] = np.ones(table.num_rows, dtype=bool)

    def run(self) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        columns: dict[str, Any] = {"timestamp": self.stamps()}
        for target in TEXTS:
            columns[target] = self.text(target)
        columns["ticket_id"] = self.named(columns["ticket_id"])
        duration = np.rint(np.clip(self.first_of(DURATIONS), 1, MAX_MS))
        columns["actual_duration_ms"] = np.nan_to_num(duration, nan=0.0).astype("uint32")
        for target in ("resource_cpu", "resource_memory"):
            columns[target] = np.nan_to_num(self.number(target), nan=0.0).astype("float32")
        depth = self.number("queue_depth_at_start")
        columns["queue_depth_at_start"] = pa.array(depth.astype("float32"), mask=np.isnan(depth))
        columns["sla_met"] = self.sla_met()
        return as_table(columns)

    def raw(self, target: str) -> pa.Array | None:
        import pyarrow as pa

        if target in self.how.sources:
            column = self.table.column(self.how.sources[target])
            return column.chunk(0) if column.num_chunks == 1 else pa.array([], column.type)
        if target in self.how.constants:
            words = pa.array([self.how.constants[target]])
            return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), self.table.num_rows), words)
        return None

    def text(self, target: str) -> pa.Array:
        import pyarrow as pa

        raw, default = self.raw(target), DEFAULTS.get(target)
        if raw is None:
            if default is None:
                return pa.nulls(self.table.num_rows, pa.string())
            words = pa.array([default])
            return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), self.table.num_rows), words)
        if pa.types.is_integer(raw.type):
            raw = raw.cast(pa.string())
        if pa.types.is_dictionary(raw.type):
            words = _trimmed(raw.dictionary)
            if words.null_count == raw.null_count == 0:
                return pa.DictionaryArray.from_arrays(raw.indices, words)
            raw = words.take(raw.indices)
        texts = _trimmed(raw)
        return texts if default is None else texts.fill_null(default)

    def named(self, tickets: pa.Array) -> pa.Array:
        """Tickets without an id get one made of their number."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not tickets.null_count:
            return tickets
        numbers = pa.array(self.numbers, pa.int64()).cast(pa.string())
        made = pc.binary_join_element_wise(self.how.ticket_prefix, numbers, "-")
        return pc.coalesce(tickets, made)

    def number(self, target: str) -> npt.NDArray[np.float64]:
        import numpy as np

        raw = self.raw(target)
        if raw is None:
            return np.full(self.table.num_rows, np.nan)
        values, known = _numbers(raw)
        self.good &= known
        return values

    def first_of(self, units: Mapping[str, float]) -> npt.NDArray[np.float64]:
        for target, scale in units.items():
            if target in self.how.sources or target in self.how.constants:
                return self.number(target) * scale
        return self.number(next(iter(units)))

    def sla_met(self) -> pa.Array:
        import numpy as np
        import pyarrow as pa

        raw = self.raw("sla_met")
        if raw is None:
            waited = self.first_of(WAITS)
            limit = self.how.sla_wait_s
            if limit is None:
                return pa.nulls(self.table.num_rows, pa.uint8())
            return pa.array((waited <= limit).astype("uint8"), mask=np.isnan(waited))
        if pa.types.is_boolean(raw.type):
            return raw.cast(pa.uint8())
        if pa.types.is_floating(raw.type):
            raise _UnknownTypeError
        words = raw if pa.types.is_dictionary(raw.type) else raw.cast(pa.string()).dictionary_encode()
        spelled = [None if word is None else str(word).strip().lower() for word in words.dictionary.to_pylist()]
        met = [1 if word in TRUE else 0 if word in FALSE else None for word in spelled]
        result = pa.array(met, pa.uint8()).take(words.indices)
        self.good &= _flags(result.is_valid()) | _flags(raw.is_null())
        return result

    def stamps(self) -> npt.NDArray[np.uint32]:
        import numpy as np

        raw = self.raw("timestamp")
        assert raw is not None  # noqa: S101 - a plan has one
        micros = self.moments(raw)
        self.good &= (micros >= 0) & (micros <= (2**32 - 1) * 1_000_000)
        return (np.where(self.good, micros, 0) // 1_000_000).astype("uint32")

    def moments(self, raw: pa.Array) -> npt.NDArray[np.int64]:
        """Microseconds since 1970, -1 where not sure."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = raw.type
        if pa.types.is_timestamp(kind):
            return self.utc(raw)
        if self.how.timestamp_format is not None:
            raise _UnknownTypeError
        if pa.types.is_integer(kind):
            return _unix(np.where(_flags(raw.is_valid()), raw.fill_null(0).cast(pa.int64()).to_numpy(), 0))
        if not pa.types.is_string(kind):
            raise _UnknownTypeError
        texts = pc.utf8_trim_whitespace(raw)
        result = np.full(len(raw), -1, dtype="int64")
        for form, target in (
            (_NAIVE, pa.timestamp("us")),
            (_ZONED, pa.timestamp("us", "UTC")),
            (_UNIX, pa.int64()),
        ):
            fits = pc.match_substring_regex(texts, form).fill_null(False)
            if fits.true_count:
                found = texts.filter(fits).cast(target)
                result[_flags(fits)] = _unix(found.to_numpy()) if target == pa.int64() else self.utc(found)
        return result

    def utc(self, stamps: pa.Array) -> npt.NDArray[np.int64]:
        import pyarrow as pa

        absent = _flags(stamps.is_null())
        zoned = stamps.type.tz is not None
        stamps = stamps.cast(pa.timestamp("us", stamps.type.tz), safe=False)
        if zoned or self.how.timezone == "UTC":
            micros = stamps.cast(pa.int64()).fill_null(-1).to_numpy().copy()
        else:
            import pandas as pd

            local = pd.Series(stamps.to_numpy(zero_copy_only=False))
            micros = to_utc(local, self.how.timezone).astype("datetime64[us, UTC]").astype("int64").to_numpy().copy()
        micros[absent] = -1
        result: npt.NDArray[np.int64] = micros
        return result


def _flags(values: pa.Array) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = values.to_numpy(zero_copy_only=False)
    return flags


def _trimmed(texts: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(texts.type):
        raise _UnknownTypeError
    texts = pc.utf8_trim_whitespace(texts)
    empty = pc.equal(texts, "")
    return pc.if_else(empty, pa.scalar(None, pa.string()), texts) if empty.true_count else texts


def _numbers(raw: pa.Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Values, NaN where there is none, and which of them are sure to be right."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = raw.type
    if pa.types.is_dictionary(kind):
        values, known = _numbers(raw.dictionary)
        indices = raw.indices.fill_null(0).to_numpy()
        absent = _flags(raw.is_null())
        return np.where(absent, np.nan, values[indices]), known[indices] | absent
    absent = _flags(raw.is_null())
    if pa.types.is_string(kind):
        fits = pc.match_substring_regex(raw, _NUMBER)
        raw = pc.if_else(fits, raw, pa.scalar(None, pa.string()))
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise _UnknownTypeError
    values = raw.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    known = (values >= 0) & (values <= LARGEST)
    return np.where(known, values, np.nan), known | absent


def _unix(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """From Unix time in seconds, milliseconds or microseconds; -1 for what is too short to be one."""
    import numpy as np

    scale = np.select([values < 10**11, values < 10**14], [10**6, 10**3], 1)
    micros: npt.NDArray[np.int64] = np.where(values >= 10**8, values * scale, -1)
    return micros
