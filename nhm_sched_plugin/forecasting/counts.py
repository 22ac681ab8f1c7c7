"""Any CSV of counts as a series: which column says when, which says how many."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import IngestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_counts"]

_WHEN: Final = ("timestamp", "datetime", "time", "date", "ds", "hour", "stamp", "created_at", "period")
_HOW_MANY: Final = ("volume", "count", "counts", "y", "value", "requests", "tickets", "jobs", "cnt", "total", "n")
_EPOCH_SECONDS: Final = (1e8, 1e11)
"""Numbers in here are Unix seconds (1973 to 5138), a thousand times more are milliseconds."""


def read_counts(path: Path, timestamp: str | None = None, volume: str | None = None) -> pd.Series[Any]:
    """The counts of a CSV file (also gzip, bzip2, zip), as they stand there, on a DatetimeIndex.

    Columns that are not named are guessed: by their name, else the first whose texts are times, and the only other
    one that holds numbers. Stamps are ISO 8601 or Unix time; stamps of several offsets become UTC. Raises `IngestError`
    naming the columns that there are.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise IngestError(f"{path} is not a CSV file that can be read: {error}") from None
    for name in (timestamp, volume):
        if name is not None and name not in table.columns:
            raise IngestError(f"{path} has no column {name!r}; it has {_listed(table.columns)}")
    when = timestamp or _guess_when(table, volume)
    if when is None:
        raise IngestError(f"{path}: no column looks like times; name it with --timestamp, of {_listed(table.columns)}")
    many = volume or _guess_many(table, when)
    if many is None:
        raise IngestError(f"{path}: which column holds the counts? Name it with --volume, of {_listed(table.columns)}")
    index = _stamps(table[when])
    if index is None:
        raise IngestError(f"{path}: column {when!r} holds no times, as {table[when].iloc[0]!r}; use ISO 8601")
    return pd.Series(table[many].to_numpy(), index=index, name="volume")


def _listed(columns: Any) -> str:
    return ", ".join(repr(str(name)) for name in columns)


def _guess_when(table: pd.DataFrame, volume: str | None) -> str | None:
    names = [str(name) for name in table.columns if name != volume]
    plain = {name.strip().lower(): name for name in names}
    named = [plain[name] for name in _WHEN if name in plain]
    return next((name for name in [*named, *names] if _stamps(table[name]) is not None), None)


def _guess_many(table: pd.DataFrame, when: str) -> str | None:
    from pandas.api.types import is_numeric_dtype

    numbers = [str(name) for name in table.columns if name != when and is_numeric_dtype(table[name])]
    plain = {name.strip().lower(): name for name in numbers}
    named = next((plain[name] for name in _HOW_MANY if name in plain), None)
    return named or (numbers[0] if len(numbers) == 1 else None)


def _stamps(column: pd.Series[Any]) -> pd.DatetimeIndex | None:
    """The column as times; None if it is something else."""
    import pandas as pd
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if not len(column) or is_bool_dtype(column):
        return None
    if is_numeric_dtype(column):
        low, high = _EPOCH_SECONDS
        middle = float(column.median())
        factor = 1 if low <= middle < high else 1000 if low * 1000 <= middle < high * 1000 else None
        # In milliseconds, which a float holds exactly.
        return None if factor is None else pd.DatetimeIndex(pd.to_datetime(column * (1000 / factor), unit="ms"))
    attempts: tuple[dict[str, Any], ...] = ({}, {"format": "ISO8601", "utc": True})
    for options in attempts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a format that has to be guessed for each value: not times, then
            try:
                return pd.DatetimeIndex(pd.to_datetime(column, **options))
            except (ValueError, TypeError, OverflowError):
                continue
    return None
