"""Which tickets and rows come twice, in bounded memory and without a database: hashes, sorted into files on disk.

64 bits of hash for each of 100 million rows: that two different ones meet by chance somewhere has odds of 1 in 4000.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.store.ingest.buckets import Buckets, Hashes
from nhm_sched_plugin.store.ingest.duplicates import Duplicates

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from nhm_sched_plugin.store.statements import Statements

__all__ = ["Seen"]

_STEP: Final = 200_000
_PRIME: Final = 0x100000001B3
_MIX: Final = 0x9E3779B97F4A7C15


class Seen:
    """Takes hashes in, and finds at the end which came more than once.

    Args:
        folder: an empty one for its files, 16 bytes for each row.
    """

    def __init__(self, folder: Path) -> None:
        self._buckets = Buckets(folder)
        self._known = False

    def add(self, tickets: pa.ChunkedArray, stamps: npt.NDArray[np.uint32], task_types: pa.ChunkedArray) -> None:
        """Rows of the source."""
        self._write("source", *_hashes(tickets, stamps, task_types))
        self._known = True

    def _write(self, side: str, tickets: Hashes, rows: Hashes) -> None:
        self._buckets.add(f"tickets-{side}", tickets)
        self._buckets.add(f"rows-{side}", rows)

    def found(self, store: Statements | None, first: int | None, last: int | None) -> Duplicates:
        """What comes twice; with a store, also what is in its table between these times (Unix seconds)."""
        import numpy as np

        if not self._known:
            return Duplicates()
        if store is not None and first is not None and last is not None:
            self._write_table(store, first, last)
        totals = {"rows_within": 0, "rows_elsewhere": 0, "tickets_within": 0, "tickets_elsewhere": 0}
        within, elsewhere = self._buckets.compared("tickets-source", "tickets-table")
        totals |= {"tickets_within": within, "tickets_elsewhere": elsewhere}
        for mine, others in self._buckets.pairs("rows-source", "rows-table"):
            totals["rows_within"] += len(mine) - len(np.unique(mine))
            totals["rows_elsewhere"] += int(np.count_nonzero(np.isin(mine, others, kind="sort")))
        return Duplicates(**totals)

    def _write_table(self, store: Statements, first: int, last: int) -> None:
        import pyarrow as pa

        table = f"{store.database}.execution_logs"
        ((held,),) = store.rows(
            f"SELECT count() FROM {table} WHERE timestamp BETWEEN toDateTime({{low:UInt32}}) "  # noqa: S608
            "AND toDateTime({high:UInt32})",
            {"low": first, "high": last},
            name="ingest",
        )
        parts = -(-held // _STEP)
        span = -(-(last - first + 1) // max(parts, 1))
        for low in range(first, last + 1, span) if parts else ():
            body = store.raw(
                "SELECT ticket_id, toUnixTimestamp(timestamp) AS t, task_type "  # noqa: S608
                f"FROM {table} WHERE timestamp BETWEEN toDateTime({{low:UInt32}}) AND toDateTime({{high:UInt32}})",
                {"low": low, "high": min(low + span - 1, last)},
                form="ArrowStream",
                name="ingest",
            )
            rows = pa.ipc.open_stream(body).read_all()
            if rows.num_rows:
                stamps = rows.column("t").to_numpy()
                self._write("table", *_hashes(rows.column("ticket_id"), stamps, rows.column("task_type")))


def _hashes(tickets: pa.ChunkedArray, stamps: npt.NDArray[np.uint32], types: pa.ChunkedArray) -> tuple[Hashes, Hashes]:
    """Of the tickets, and of time, ticket and task type together."""
    import numpy as np

    with np.errstate(over="ignore"):
        mine = _mixed(_text_hashes(tickets))
        moments: Hashes = stamps.astype("uint64") * np.uint64(_PRIME)
        rows = _mixed(mine + moments)
        rows = _mixed(rows ^ _text_hashes(types))
    return mine, rows


def _text_hashes(texts: Any) -> Hashes:
    """A polynomial over the bytes of each text, all texts at once."""
    import numpy as np
    import pyarrow as pa

    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if pa.types.is_dictionary(array.type):
        words: Hashes = _text_hashes(array.dictionary)[array.indices.to_numpy()]
        return words
    array = array.cast(pa.binary()) if not pa.types.is_binary(array.type) else array
    if not len(array):
        return np.zeros(0, dtype="uint64")
    offsets = np.frombuffer(array.buffers()[1], dtype="int32")[array.offset : array.offset + len(array) + 1]
    buffer = array.buffers()[2]
    data = (
        np.frombuffer(buffer, dtype="uint8")[offsets[0] : offsets[-1]] if buffer is not None else np.zeros(0, "uint8")
    )
    starts = (offsets - offsets[0]).astype("int64")
    lengths = np.diff(starts)
    longest = int(lengths.max(initial=0))
    powers = np.cumprod(np.full(longest + 1, _PRIME, dtype="uint64"))
    place = np.arange(len(data), dtype="int64") - np.repeat(starts[:-1], lengths)
    terms = _mixed((data.astype("uint64") + np.uint64(1)) * powers[place])
    sums = np.zeros(len(terms) + 1, dtype="uint64")
    np.cumsum(terms, out=sums[1:])
    result: Hashes = sums[starts[1:]] - sums[starts[:-1]] + lengths.astype("uint64")
    return result


def _mixed(values: Hashes) -> Hashes:
    import numpy as np

    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(_MIX)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Hashes = values ^ (values >> np.uint64(31))
        return mixed
