"""The quality of what is there to train on: the records, or a file of counts; and what training would do about it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import pandas as pd

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.forecasting.quality import Example, Finding, QualityReport, Rule, many, read_rows, runs, validate
from nhm_sched_plugin.forecasting.series import INTERPOLATED_HOURS, HistoryError, holiday_dates, hours, stamps
from nhm_sched_plugin.forecasting.treatment import Glitches, glitches
from nhm_sched_plugin.store.flaws import flaws, repeated

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.store.repository import Store

__all__ = ["Checked", "Treatment", "check_file", "check_records"]

COLUMNS: Final = ("timestamp", "volume")


class Treatment(msgspec.Struct, frozen=True, kw_only=True):
    """What is done about the flaws before a model sees the history."""

    interpolated: int
    """Missing hours in gaps under 3 h: filled linearly."""
    left_missing: int
    """Missing hours in longer gaps: they stay missing."""
    glitches: Glitches
    """Hours that are made missing, unless `ml.training.outliers` is `keep`."""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    source: str
    """What was checked: the file, or the slice of the records."""
    report: QualityReport
    treatment: Treatment | None
    """None where training would refuse the history as it is."""
    refused: str = ""
    """Why it would."""


def check_file(path: Path, mapping: Mapping[str, str] | None = None, country: str | None = None) -> Checked:
    """A CSV or Parquet file of counts: columns `timestamp` and `volume`, or those that `mapping` names instead.

    Raises `IngestError` for a file that cannot be read, or has no such columns; what is wrong with its rows is in the
    report.
    """
    import pyarrow as pa

    from nhm_sched_plugin.store.ingest.chunks import Broken, Position
    from nhm_sched_plugin.store.ingest.readers import detect, read

    if not path.is_file():
        raise IngestError(f"{path}: no such file; give a CSV or Parquet file with the columns timestamp and volume")
    kind = detect(path)
    if kind == "swf":
        raise IngestError(f"{path} holds jobs, not counts; `nhm-sched ingest` it, then check the records")
    frames: list[pd.DataFrame] = []
    rows: list[int] = []
    broken: list[Broken] = []
    for chunk in read(path, kind, lambda columns, _: dict.fromkeys(columns, pa.string()), Position()):
        full = chunk.full()
        frames.append(full.to_pandas() if isinstance(full, pa.Table) else full)
        rows += chunk.numbers
        broken += chunk.broken
    frame = pd.concat(frames, ignore_index=True)
    names = _columns(path, list(frame.columns), mapping or {})
    history, numbers, found = read_rows(frame, rows, *names)
    if broken:
        examples = [Example(row=bad.number, value=bad.text[:80]) for bad in broken[:10]]
        text = f"{many(len(broken), 'row')} that cannot be read ({broken[0].reason}), the first is {broken[0].number}"
        found.append(Finding(rule="types", failed=True, count=len(broken), text=text, examples=examples))
    report = validate(history, rows=numbers, found=found, count=len(rows) + len(broken))
    return _checked(str(path), report, history, country)


def _columns(path: Path, given: list[str], mapping: Mapping[str, str]) -> list[str]:
    wrong = sorted(set(mapping) - set(COLUMNS))
    if wrong:
        raise IngestError(f"--map {wrong[0]}=...: no such target; known: {', '.join(COLUMNS)}")
    names = [mapping.get(target, target) for target in COLUMNS]
    for target, name in zip(COLUMNS, names, strict=True):
        if name not in given:
            raise IngestError(
                f"{path} has no column {name!r}; its columns: {', '.join(given)}. "
                f"Say which one holds it: --map {target}=COLUMN"
            )
    return names


def check_records(
    store: Store, settings: Settings, task_type: str | None = None, risk_band: str | None = None
) -> Checked:
    """A slice of the records, or all of them, up to the running hour: every ticket's fields, and the counts by hour.

    Raises `IngestError` when there are no such tickets.
    """
    known = store.slices()
    tickets = sum(n for kind, band, n in known if task_type in (None, kind) and risk_band in (None, band))
    source = "/".join(name for name in (task_type, risk_band) if name is not None) or "all tickets"
    if not tickets:
        if not known:
            raise IngestError("the records hold no tickets to check; run nhm-sched ingest FILE first, or give a file")
        some = ", ".join(f"{kind}/{band}" if band else kind for kind, band, _ in known[:20])
        raise IngestError(f"there are no tickets of {source}; known type/band: {some}")
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    series = store.hourly_volume(task_type, risk_band, until=now)
    found = _ticket_findings(store, task_type, risk_band)
    report = validate(series, found=found, count=tickets)
    return _checked(source, report, series, settings.ml.forecasting.country)


def _ticket_findings(store: Store, task_type: str | None, risk_band: str | None) -> list[Finding]:
    by_rule: dict[Rule, list[Any]] = {}
    for flaw in flaws(store, task_type, risk_band):
        by_rule.setdefault(flaw.rule, []).append(flaw)
    found = [
        Finding(
            rule=rule,
            failed=True,
            count=sum(flaw.tickets for flaw in some),
            text="; ".join(f"{many(flaw.tickets, 'ticket')} {flaw.text}" for flaw in some),
            examples=[
                Example(at=at, field=flaw.field, value=f"{value} (ticket {ticket})" if ticket else value)
                for flaw in some
                for at, ticket, value in flaw.examples
            ][:10],
        )
        for rule, some in by_rule.items()
    ]
    count, worst = repeated(store, task_type, risk_band)
    if count:
        text = f"holds; {many(count, 'ticket')} more than once with the same id, time and type: a history taken twice?"
        examples = [Example(at=at, field="ticket_id", value=f"{ticket} ({times} times)") for at, ticket, times in worst]
        found.append(Finding(rule="duplicates", failed=False, count=count, text=text, examples=examples))
    return found


def _checked(source: str, report: QualityReport, history: pd.Series[Any], country: str | None) -> Checked:
    try:
        known = hours(history)
    except HistoryError as error:
        return Checked(source=source, report=report, treatment=None, refused=str(error))
    years = range(stamps(known)[0].year - 1, stamps(known)[-1].year + 2)
    lengths = np.array([length for _, length in runs(known.isna().to_numpy())], dtype=np.int64)
    short = lengths <= INTERPOLATED_HOURS
    treatment = Treatment(
        interpolated=int(lengths[short].sum()),
        left_missing=int(lengths[~short].sum()),
        glitches=glitches(known, holiday_dates(country, years)),
    )
    return Checked(source=source, report=report, treatment=treatment)
