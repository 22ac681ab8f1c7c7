"""Files of what is known ahead: the user's own holidays, and regressors by the hour.

It lives beside the reader of counts, below training and commands, because both of them need it. Every mistake is one
`IngestError` that names the setting or option, the file, the line, the value and what to write instead.
"""

from __future__ import annotations

import csv
import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from nhm_sched_plugin.errors import IngestError

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import Settings

__all__ = ["KnownAhead", "known_ahead", "read_holidays", "read_regressors"]

HOLIDAYS: Final = "ml.forecasting.holidays"
REGRESSORS: Final = "ml.forecasting.regressors"
_YAML: Final = (".yaml", ".yml")
_DATE: Final = "write it as 2026-11-27"
_STAMP: Final = "write it as 2026-11-27T08:00:00-03:00"


@dataclass(frozen=True, slots=True)
class KnownAhead:
    """What `LoadForecaster.fit` takes besides the history and the country."""

    holidays: Mapping[dt.date, str] = field(default_factory=dict)
    regressors: pd.DataFrame | None = None
    """Hours x names; NaN where unknown. In UTC, or naive where the file names no offsets."""
    source: str = REGRESSORS
    """What an error calls the regressors: setting or option, and file."""

    def check(self, history: pd.Series[Any]) -> None:
        """Raises `IngestError` when nothing could be learned from a regressor on that history: before the work."""
        if self.regressors is None:
            return
        from nhm_sched_plugin.forecasting.covariates import Covariates
        from nhm_sched_plugin.forecasting.series import HistoryError, hours, stamps

        try:
            known = hours(history)
        except HistoryError:
            return  # its fit will say so
        index: Any = self.regressors.index
        zones = [stamps(known).tz is not None, index.tz is not None]
        if zones == [True, False]:
            raise IngestError(f"{self.source}: its stamps have no offset, those of the history do; {_STAMP}")
        if zones == [False, True]:
            raise IngestError(f"{self.source}: its stamps have an offset, those of the history do not; leave it out")
        try:
            Covariates.of(known, None, None, self.regressors)
        except HistoryError as error:
            raise IngestError(f"{self.source}: {error}") from None


def known_ahead(
    settings: Settings, *, holidays: str | Path | None = None, regressors: str | Path | None = None
) -> KnownAhead:
    """What the settings name; `holidays` and `regressors` (paths of `--holidays`, `--regressors`) win over them.

    The text `none` is no file. Raises `IngestError` for a file that cannot be used.
    """
    about = settings.ml.forecasting
    days = _chosen(holidays, "--holidays", about.holidays, HOLIDAYS)
    hourly = _chosen(regressors, "--regressors", about.regressors, REGRESSORS)
    return KnownAhead(
        {} if days is None else read_holidays(days[1], days[0]),
        None if hourly is None else read_regressors(hourly[1], hourly[0]),
        REGRESSORS if hourly is None else f"{hourly[0]} = {hourly[1]}",
    )


def _chosen(given: str | Path | None, option: str, configured: Path | None, key: str) -> tuple[str, Path] | None:
    if given is None:
        return None if configured is None else (key, configured)
    return None if str(given).lower() == "none" else (option, Path(given).expanduser())


def read_holidays(path: Path, key: str = HOLIDAYS) -> dict[dt.date, str]:
    """Days and their names from a CSV file with the columns `date,name`, or a YAML list of such pairs.

    Names of one day are joined with "; ". `key` is what an error calls the file. Raises `IngestError`.
    """
    said = f"{key} = {path}"
    found: dict[dt.date, list[str]] = {}
    for where, day, name in _yaml_days(path, said) if path.suffix.lower() in _YAML else _csv_days(path, said):
        found.setdefault(_day(day, f"{said}: {where}"), []).append(name)
    return {day: "; ".join(dict.fromkeys(names)) for day, names in sorted(found.items())}


def _csv_days(path: Path, said: str) -> Iterator[tuple[str, Any, str]]:
    names, rows = _csv(path, said, ("date", "name"))
    at, called = names.index("date"), names.index("name")
    for line, row in rows:
        if not row[called]:
            raise IngestError(f"{said}: line {line}: {row[at]} has no name; give it one, such as Black Friday")
        yield f"line {line}", row[at], row[called]


def _yaml_days(path: Path, said: str) -> Iterator[tuple[str, Any, str]]:
    try:
        entries = yaml.safe_load(_text(path, said))
    except (yaml.YAMLError, ValueError) as error:  # the latter for a date that there is not
        raise IngestError(f"{said} is not valid YAML: {' '.join(str(error).split())}") from None
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        if not isinstance(entry, dict) or set(entry) != {"date", "name"} or not entry["name"]:
            raise IngestError(
                f"{said}: entry {number} is {entry!r}; write a list of lines like "
                "- {date: 2026-11-27, name: Black Friday}"
            )
        yield f"entry {number}", entry["date"], str(entry["name"])


def _day(value: Any, where: str) -> dt.date:
    if isinstance(value, dt.date):  # as YAML reads it; a datetime is one, too
        return dt.date(value.year, value.month, value.day)
    try:
        return dt.date.fromisoformat(str(value))
    except ValueError:
        raise IngestError(f"{where}: date {value!r} is none; {_DATE}") from None


def read_regressors(path: Path, key: str = REGRESSORS) -> pd.DataFrame:
    """Hours x names from a CSV file with a column `timestamp` and one of numbers for each regressor; empty: unknown.

    Stamps are ISO 8601, all with an offset from UTC (they become UTC) or all without one; of equal stamps the last row
    stands. `key` is what an error calls the file. Raises `IngestError`.
    """
    import pandas as pd

    said = f"{key} = {path}"
    names, rows = _csv(path, said, ("timestamp",))
    at = names.index("timestamp")
    if len(names) == 1:
        raise IngestError(f"{said} has no regressor; add a column of numbers for each")
    stamps, values, lines = [], [], []
    for line, row in rows:
        stamps.append(_stamp(row[at], f"{said}: line {line}"))
        values.append([_number(cell, name, f"{said}: line {line}") for name, cell in zip(names, row, strict=True)])
        lines.append(line)
    if not stamps:
        raise IngestError(f"{said} has no rows; give one an hour, past and as far ahead as it is known")
    odd = next((i for i, stamp in enumerate(stamps) if (stamp.tzinfo is None) != (stamps[0].tzinfo is None)), None)
    if odd is not None:
        raise IngestError(
            f"{said}: line {lines[odd]}: some stamps have an offset from UTC and others none; give it to all ({_STAMP})"
        )
    index = pd.DatetimeIndex(pd.to_datetime(stamps, utc=stamps[0].tzinfo is not None))
    table = pd.DataFrame(np.array(values), index=index, columns=names).drop(columns="timestamp")
    table = table[~table.index.duplicated(keep="last")].sort_index()
    steps = np.diff(np.asarray(table.index.as_unit("s").asi8))  # type: ignore[attr-defined]
    if len(steps) and float(np.median(steps)) > 3600:
        raise IngestError(
            f"{said}: its rows are {np.median(steps) / 3600:g} hours apart; give one an hour (what holds for a day, "
            "in each of its hours)"
        )
    return table


def _stamp(text: str, where: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise IngestError(f"{where}: timestamp {text!r} is none; {_STAMP}") from None


def _number(text: str, name: str, where: str) -> float:
    if name == "timestamp" or not text:
        return math.nan
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise IngestError(f"{where}: {name} = {text!r} is no number; write one like 3.5, or nothing where unknown")
    return number


def _csv(path: Path, said: str, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names, and the rows with their line numbers; cells stripped, empty lines left out."""
    reader = csv.reader(_text(path, said).splitlines())
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise IngestError(f"{said}: line {reader.line_num} is not CSV ({error})") from None
    names = lines[0][1] if lines else []
    for name in needed:
        if name not in names:
            has = ", ".join(map(repr, names)) or "nothing"
            raise IngestError(f"{said} has no column {name!r}; it has {has}: write the names into its first line")
    if "" in names:
        raise IngestError(f"{said}: column {names.index('') + 1} has no name; name it or leave it out")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise IngestError(f"{said} has the column {twice!r} twice; name each column once")
    for line, row in lines[1:]:
        if len(row) != len(names):
            raise IngestError(
                f"{said}: line {line} has {len(row)} cells, its first line {len(names)}; separate by commas, "
                "write decimals with a point"
            )
    return names, lines[1:]


def _text(path: Path, said: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise IngestError(
            f"{said} cannot be read ({error.strerror or error}); name an existing file, or leave it out"
        ) from None
    except UnicodeDecodeError:
        raise IngestError(f"{said} is no text in UTF-8; save it as a CSV file in UTF-8") from None
