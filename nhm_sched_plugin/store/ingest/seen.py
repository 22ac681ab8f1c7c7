"""Which tickets and rows come twice, in bounded memory and without a database: hashes, sorted into files on disk.

64 bits of hash for each of 100 million rows: that two different ones meet by chance somewhere has odds of 1 in 4000.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.store.ingest.buckets import Buckets, Hashes
from nhm_sched_plugin.store.ingest.duplicates import Duplicates, slices

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from nhm_sched_plugin.store.statements import Statements

__all__ = ["Seen"]

_STEP: Final = 200_000
"""Rows of the table at a time, about: their texts are in memory."""


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

    def found(self, store: Statements | None) -> Duplicates:
        """What comes twice; with a store, also what is in its table, of whatever time: as an ingest would count it."""
        import numpy as np

        if not self._known:
            return Duplicates()
        if store is not None:
            self._write_table(store)
        totals = {"rows_within": 0, "rows_elsewhere": 0, "tickets_within": 0, "tickets_elsewhere": 0}
        within, elsewhere = self._buckets.compared("tickets-source", "tickets-table")
        totals |= {"tickets_within": within, "tickets_elsewhere": elsewhere}
        for mine, others in self._buckets.pairs("rows-source", "rows-table"):
            totals["rows_within"] += len(mine) - len(np.unique(mine))
            totals["rows_elsewhere"] += int(np.count_nonzero(np.isin(mine, others, kind="sort")))
        return Duplicates(**totals)

    def _write_table(self, store: Statements) -> None:
        import pyarrow as pa

        for low, high in slices(store, 0, 2**32 - 1, _STEP):
            body = store.raw(
                "SELECT ticket_id, toUnixTimestamp(timestamp) AS t, task_type "  # noqa: S608
                f"FROM {store.database}.execution_logs "
                "WHERE timestamp BETWEEN toDateTime({low:UInt32}) AND toDateTime({high:UInt32})",
                {"low": low, "high": high},
                form="ArrowStream",
                name="ingest",
            )
            rows = pa.ipc.open_stream(body).read_all()
            stamps = rows.column("t").to_numpy()
            self._write("table", *_hashes(rows.column("ticket_id"), stamps, rows.column("task_type")))


def _hashes(tickets: pa.ChunkedArray, stamps: npt.NDArray[np.uint32], types: pa.ChunkedArray) -> tuple[Hashes, Hashes]:
    """Of the tickets, and of time, ticket and task type together."""
    import pandas as pd

    mine = _text_hashes(tickets)
    rows = pd.DataFrame({"ticket": mine, "time": stamps, "type": _text_hashes(types)})
    together: Any = pd.util.hash_pandas_object(rows, index=False).to_numpy()
    return mine, together


def _text_hashes(texts: Any) -> Hashes:
    """SipHash with a fixed key: the same in every process."""
    import pandas as pd
    import pyarrow as pa

    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if pa.types.is_dictionary(array.type):
        words: Hashes = _text_hashes(array.dictionary)[array.indices.to_numpy()]
        return words
    return pd.util.hash_array(array.to_numpy(zero_copy_only=False), categorize=False)
