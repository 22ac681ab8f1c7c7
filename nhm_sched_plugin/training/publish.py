"""From served models to the forecast table that hosts pick up."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
from nhm_sched_plugin.forecasting.table import ForecastTable, SliceForecast, read_table, slice_key, write_table
from nhm_sched_plugin.training.borrowing import ShareOfParent
from nhm_sched_plugin.training.data import SliceData, TrainingData
from nhm_sched_plugin.training.fitting import TABLE_HOURS, informed
from nhm_sched_plugin.training.reconcile import reconcile
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import Head, model_name

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import Settings

__all__ = ["Served", "publish", "served_model", "slice_rows"]

_RECENT_DAYS: Final = 70
"""What a model looks back on at most: eight weeks, and some slack."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What serves one horizon of a slice: a model, or the row that it has made already."""

    horizon: int
    version: str
    trusted: bool
    """False: a baseline that never met the error limit."""
    model: LoadForecaster | ShareOfParent | None = None
    row: SliceForecast | None = None


def served_model(registry: Registry, heads: Mapping[str, Head], entry: SliceData, horizon: int) -> Served | None:
    """What serves this slice and horizon: the staged version, else the one in production, else the newest baseline.

    Raises `NhmSchedError` when that one cannot be read.
    """
    head = heads.get(model_name(horizon, entry.task_type, entry.risk_band))
    if head is None:
        return None
    state = registry.read(registry.version(head, head.served()))
    kind = ShareOfParent if ShareOfParent.is_state(state) else LoadForecaster
    return Served(horizon=horizon, version=head.served(), trusted=bool(head.aliases), model=kind.from_state(state))


def slice_rows(
    settings: Settings,
    slices: Sequence[SliceData],
    served: Mapping[str, Sequence[Served]],
    regressors: pd.DataFrame | None = None,
) -> dict[str, SliceForecast]:
    """Rows of the table, wholes before their parts. A slice whose parent has no forecast is left to its parents.

    `regressors` are what is known by now; a model without newer ones takes those of its fit.
    """
    rows: dict[str, SliceForecast] = {}
    before: Mapping[str, SliceForecast] | None = None
    for entry in sorted(slices, key=lambda entry: (entry.key != "", "|" in entry.key)):
        parts = served.get(entry.key, ())
        needed = {part.model.parent for part in parts if isinstance(part.model, ShareOfParent)}
        if needed - set(rows) and before is None:
            before = _old_table(settings)[0]
        known = {**(before or {}), **rows} if needed else {}
        if parts and needed <= set(known):
            rows[entry.key] = _joined(entry, parts, known, regressors)
    return rows


def _joined(
    entry: SliceData,
    served: Sequence[Served],
    wholes: Mapping[str, SliceForecast],
    regressors: pd.DataFrame | None,
) -> SliceForecast:
    """One row: each hour ahead from the model of the smallest horizon that reaches it.

    Every model starts at the end of `entry.series`, whenever it was fitted.
    """
    ordered = sorted(served, key=lambda part: part.horizon)
    parts = [(part, _row(entry, part, wholes, regressors)) for part in ordered]
    first, base = parts[0]
    mean: list[float] = []
    quantiles: dict[str, list[float]] = {level: [] for level in base.quantiles}
    methods: dict[str, str] = {}
    errors: dict[str, float] = {}
    for i, (part, row) in enumerate(parts):
        end = TABLE_HOURS if i == len(parts) - 1 else math.ceil(part.horizon / 60)
        begin = len(mean)
        mean += row.mean[begin:end]
        for level, values in row.quantiles.items():
            quantiles[level] += values[begin:end]
        key = str(part.horizon)
        methods[key] = row.methods.get(key, row.method)
        errors |= {key: row.mape[key]} if key in row.mape else {}
    return msgspec.structs.replace(
        base,
        mean=mean,
        quantiles=quantiles,
        methods=methods,
        mape=errors,
        method=methods[str(first.horizon)],
        model_version="/".join(part.version for part, _ in parts),
        share=entry.share,
        cpu_core_hours_per_ticket=entry.cpu_core_hours,
        memory_gib_hours_per_ticket=entry.memory_gib_hours,
        trusted=all(part.trusted for part, _ in parts),
    )


def _row(
    entry: SliceData, part: Served, wholes: Mapping[str, SliceForecast], regressors: pd.DataFrame | None
) -> SliceForecast:
    if part.row is not None:
        return part.row
    if isinstance(part.model, ShareOfParent):
        return part.model.row(wholes[part.model.parent])
    assert part.model is not None  # noqa: S101 - a model or a row, always
    return informed(part.model, regressors).update(_recent(entry.series)).table(TABLE_HOURS)


def _recent(series: pd.Series[Any]) -> pd.Series[Any]:
    """The end of a series, where it is in order: cleaning 18 months for each of thousands of slices takes minutes."""
    index: Any = series.index
    if len(index) == 0 or not index.is_monotonic_increasing:
        return series
    first = index.searchsorted(index[-1] - dt.timedelta(days=_RECENT_DAYS))
    return series.iloc[int(first) :]


def publish(
    settings: Settings, data: TrainingData, rows: Mapping[str, SliceForecast], now: float, *, whole: bool
) -> ForecastTable:
    """Write the table, its slices adding up. Unless the rows are the `whole` of it, the old ones stay beside them."""
    slices, shares = ({}, {}) if whole else _old_table(settings)
    slices |= rows
    shares = {key: share for key, share in (shares | data.shares).items() if key not in slices}
    lead = slices.get(slice_key()) or next(iter(rows.values()))
    table = ForecastTable(
        generated_at=now,
        origin=max(row.first_hour for row in rows.values()),
        model_version=lead.model_version,
        method=lead.method,
        slices=reconcile(slices),
        shares=shares,
    )
    return write_table(settings.forecast_table_path, table)


def _old_table(settings: Settings) -> tuple[dict[str, SliceForecast], dict[str, float]]:
    """Slices and shares of the table that is served; nothing where there is none, or an unusable one."""
    try:
        old = read_table(settings.forecast_table_path)
    except ModelError:
        return {}, {}
    return dict(old.slices), dict(old.shares)
