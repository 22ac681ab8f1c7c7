"""A chunk of a source becomes rows of `execution_logs` and rejected rows, the short way where it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nhm_sched_plugin.store.ingest.chunks import Broken, Chunk
from nhm_sched_plugin.store.ingest.quick import as_table, quick
from nhm_sched_plugin.store.ingest.shaping import TEXTS, Plan, shape

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Settled", "settle"]


class Settled(NamedTuple):
    """What came of a chunk."""

    good: pa.Table
    """Columns of `execution_logs` but for `ingest_id` and `kept`; `timestamp` as Unix seconds (UInt32)."""
    rejected: list[Broken]


def settle(chunk: Chunk, how: Plan) -> Settled:
    """Every row of the chunk is in one of the two."""
    import pyarrow as pa

    table = chunk.quick()
    if table is not None:
        rows, good = quick(table, chunk.numbers, how)
        if good.all():
            return Settled(rows, list(chunk.broken))
    full = chunk.full()
    if not isinstance(full, pa.Table):
        return _slow(full, chunk.numbers, chunk.broken, how)
    rows, good = quick(full, chunk.numbers, how)
    if good.all():
        return Settled(rows, list(chunk.broken))
    left = [number for number, fine in zip(chunk.numbers, good, strict=True) if not fine]
    rest = _slow(full.filter(pa.array(~good)).to_pandas(), left, chunk.broken, how)
    if not good.any():
        return rest
    plain = rows.filter(pa.array(good)).cast(rest.good.schema)
    return Settled(pa.concat_tables([plain, rest.good]), rest.rejected)


def _slow(frame: pd.DataFrame, numbers: Sequence[int], broken: Sequence[Broken], how: Plan) -> Settled:
    frame = frame.reset_index(drop=True)
    good, reasons = shape(frame, numbers, how)
    rejected = list(broken)
    for place, reason in reasons.items():
        position = int(str(place))
        rejected.append(Broken(numbers[position], _text(frame.iloc[position]), reason))
    columns: dict[str, Any] = {name: good[name] for name in good.columns}
    columns["timestamp"] = good["timestamp"].astype("datetime64[s, UTC]").astype("int64").astype("uint32")
    for name in TEXTS:
        columns[name] = columns[name].astype("str")
    return Settled(as_table(columns), sorted(rejected))


def _text(values: pd.Series[Any]) -> str:
    return ",".join("" if value is None or value != value else str(value) for value in values)
