"""What is trained on: the hourly counts of every slice, its share of all tickets, and what a ticket uses."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.forecasting.table import slice_key

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.forecasting.treatment import Glitch
    from nhm_sched_plugin.settings import Settings

__all__ = ["SliceData", "TrainingData", "from_series", "from_store"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class SliceData:
    """One slice: `key` as in the forecast table, `series` of counts per hour."""

    key: str
    task_type: str | None
    risk_band: str | None
    series: pd.Series[Any]
    share: float
    cpu_core_hours: float | None = None
    memory_gib_hours: float | None = None
    glitches: list[Glitch] = field(default_factory=list)
    """Hours that were not believed: they are missing in `series`."""


@dataclass(slots=True)
class TrainingData:
    slices: list[SliceData]
    shares: dict[str, float] = field(default_factory=dict)
    """Shares of slices that are known, but not trained."""


def from_series(
    series: Mapping[str, pd.Series[Any]],
    task_type: str | None = None,
    risk_band: str | None = None,
    settings: Settings | None = None,
) -> TrainingData:
    """Slices given as series by `slice_key` (`""` is the global one). A task type or band keeps only that slice.

    With settings the series are treated as `ml.training.outliers` says; without, they stay as they are.
    """
    total = float(series[""].sum()) if "" in series else 0.0
    result = []
    for key, counts in series.items():
        kind, _, band = key.partition("|")
        share = 1.0 if key == "" else float(counts.sum()) / total if total > 0 else 0.0
        names = [part.replace("%7C", "|").replace("%25", "%") or None for part in (kind, band)]
        result.append(SliceData(key, names[0], names[1], counts, min(share, 1.0)))
    kept = _only(result, task_type, risk_band)
    if settings is not None:
        _treat(kept, settings)
    return TrainingData(kept)


def _only(slices: list[SliceData], task_type: str | None, risk_band: str | None) -> list[SliceData]:
    if task_type is None and risk_band is None:
        kept = slices
    else:
        kept = [entry for entry in slices if entry.key == slice_key(task_type, risk_band)]
    if not kept:
        known = ", ".join(sorted(entry.key or "(all)" for entry in slices)) or "none"
        asked = f"task type {task_type!r}, risk band {risk_band!r}"
        raise IngestError(f"there are no tickets of {asked} to train on; slices with data: {known}")
    return kept


def from_store(
    store: Any,
    settings: Settings,
    task_type: str | None = None,
    risk_band: str | None = None,
    *,
    keep: int | None = None,
    until: dt.datetime | None = None,
) -> TrainingData:
    """Slices from the records database: the global one, each task type, each task type and risk band.

    `keep` trains only that many slices besides the global one, the busiest first; of the others only the share is
    kept. A band that is the only one of its task type is that task type, and not trained twice. The last
    `window_days` count; `until` (default: the running hour, which is not over yet) leaves out what began then or later.
    Hours that are not believed (`forecasting.treatment`) are missing, unless `ml.training.outliers` is `keep`.
    """
    until = until or dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    counted = [(kind or None, band or None, count) for kind, band, count in store.slices() if count > 0]
    total = sum(count for _, _, count in counted)
    if not total:
        raise IngestError("the records hold no tickets to train on; run nhm-sched ingest FILE first")
    by_kind: dict[str, dict[str | None, int]] = {}
    for kind, band, count in counted:
        if kind is not None:
            by_kind.setdefault(kind, {})[band] = count
    wanted: list[tuple[str | None, str | None, int]] = []
    shares: dict[str, float] = {}
    for kind, bands in by_kind.items():
        wanted.append((kind, None, sum(bands.values())))
        named = [(kind, band, count) for band, count in bands.items() if band is not None]
        if len(bands) > 1:
            wanted += named
        else:
            shares |= {slice_key(kind, band): count / total for kind, band, count in named}
    wanted.sort(key=lambda row: -row[2])
    if task_type is not None or risk_band is not None:
        chosen = [(task_type, risk_band, sum(c for k, b, c in counted if _matches(k, b, task_type, risk_band)))]
        if not chosen[0][2]:
            known = ", ".join(f"{kind}/{band}" for kind, band, _ in counted[:20])
            asked = f"task type {task_type!r}, risk band {risk_band!r}"
            raise IngestError(f"there are no tickets of {asked} to train on; known type/band: {known}")
    else:
        chosen = [(None, None, total), *wanted[: len(wanted) if keep is None else keep]]
    keys = {slice_key(kind, band) for kind, band, _ in chosen}
    shares |= {slice_key(k, b): count / total for k, b, count in wanted if slice_key(k, b) not in keys}
    usage = _usage(store)
    slices = []
    volumes = store.hourly_volumes([(kind, band) for kind, band, _ in chosen], until=until)
    for (kind, band, count), volume in zip(chosen, volumes, strict=True):
        if len(volume):
            cpu, memory = _usage_of(usage, kind, band)
            series = _window(volume, settings)
            slices.append(SliceData(slice_key(kind, band), kind, band, series, count / total, cpu, memory))
    _treat(slices, settings)
    return TrainingData(slices, {key: share for key, share in shares.items() if key not in keys})


def _matches(kind: str | None, band: str | None, task_type: str | None, risk_band: str | None) -> bool:
    return (task_type is None or kind == task_type) and (risk_band is None or band == risk_band)


def _window(series: pd.Series[Any], settings: Settings) -> pd.Series[Any]:
    return series.iloc[-settings.ml.training.window_days * 24 :]


def _treat(slices: list[SliceData], settings: Settings) -> None:
    """Make the glitches of every slice missing, and say how many there were."""
    if settings.ml.training.outliers == "keep":
        return
    from nhm_sched_plugin.forecasting.covariate_files import known_ahead
    from nhm_sched_plugin.forecasting.series import HistoryError, holiday_dates, hours, stamps
    from nhm_sched_plugin.forecasting.treatment import without_glitches

    own = known_ahead(settings, regressors="none").holidays
    holidays: dict[range, Collection[dt.date]] = {}
    for entry in slices:
        try:
            known = hours(entry.series)
        except HistoryError:
            continue  # its fit will say so, and stop no other
        years = range(stamps(known)[0].year - 1, stamps(known)[-1].year + 2)
        if years not in holidays:
            holidays[years] = {*holiday_dates(settings.ml.forecasting.country, years), *own}
        treated, entry.glitches = without_glitches(known, holidays[years])
        if entry.glitches:
            entry.series = treated
    touched = [entry for entry in slices if entry.glitches]
    if touched:
        logger.warning(
            "%d hours in %d of %d slices are left out of the training as glitches, for instance %s at %s; "
            "`nhm-sched quality` lists them, ml.training.outliers: keep trains on them",
            sum(len(entry.glitches) for entry in touched),
            len(touched),
            len(slices),
            f"{touched[0].glitches[0].value:g} tickets where {touched[0].glitches[0].expected:.0f} were expected",
            touched[0].glitches[0].at,
        )


def _usage(store: Any) -> list[Any]:
    return [entry for entry in store.per_ticket_usage() if entry.tickets > 0]


def _usage_of(usage: list[Any], task_type: str | None, risk_band: str | None) -> tuple[float | None, float | None]:
    """CPU core-hours and memory GiB-hours of an average ticket of the slice; None where nothing was measured."""
    rows = [row for row in usage if _matches(row.task_type, row.risk_band, task_type, risk_band)]

    def mean(name: str) -> float | None:
        known = [(getattr(row, name), row.tickets) for row in rows if getattr(row, name) is not None]
        tickets = sum(count for _, count in known)
        return sum(value * count for value, count in known) / tickets if tickets else None

    return mean("cpu_core_hours"), mean("memory_gib_hours")
