"""From served models to the forecast table that hosts pick up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
from nhm_sched_plugin.forecasting.table import ForecastTable, SliceForecast, read_table, slice_key, write_table
from nhm_sched_plugin.training.data import SliceData, TrainingData
from nhm_sched_plugin.training.registry import ModelVersion, Registry, model_name

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["TABLE_HOURS", "Served", "publish", "served_models", "slice_row"]

TABLE_HOURS: Final = 16 * 24


class Served(msgspec.Struct, frozen=True):
    """The model that serves one horizon of a slice."""

    horizon: int
    forecaster: LoadForecaster
    version: str
    trusted: bool
    """False: a baseline that never met the error limit."""


def served_models(registry: Registry, known: Sequence[ModelVersion], entry: SliceData, horizon: int) -> Served | None:
    """What serves this slice and horizon: the staged version, else the one in production, else the newest baseline."""
    name = model_name(horizon, entry.task_type, entry.risk_band)
    versions = [version for version in known if version.name == name]
    if not versions:
        return None
    newest_first = sorted(versions, key=lambda version: -int(version.version))
    chosen = next(
        (v for alias in ("staging", "production") for v in newest_first if alias in v.aliases), newest_first[0]
    )
    state = registry.load(name, chosen.version)
    return Served(horizon, LoadForecaster.from_state(state), chosen.version, bool(chosen.aliases))


def slice_row(entry: SliceData, served: Sequence[Served]) -> SliceForecast:
    """One row of the table: each hour ahead from the model of the smallest horizon that reaches it.

    Every model starts at the end of `entry.series`, whenever it was fitted. Raises `ModelError` without any model.
    """
    if not served:
        raise ModelError(f"slice {entry.key or '(all)'} has no model; run nhm-sched train")
    parts = []
    for part in sorted(served, key=lambda part: part.horizon):
        row = part.forecaster.update(entry.series).table(
            TABLE_HOURS,
            share=entry.share,
            cpu_core_hours_per_ticket=entry.cpu_core_hours,
            memory_gib_hours_per_ticket=entry.memory_gib_hours,
        )
        parts.append((part, row))
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
        trusted=all(part.trusted for part, _ in parts),
    )


def publish(
    settings: Settings, data: TrainingData, rows: Mapping[str, SliceForecast], now: float, *, whole: bool
) -> ForecastTable:
    """Write the table. Unless the rows are the `whole` of it, the slices of the old table stay beside them."""
    slices: dict[str, SliceForecast] = {}
    shares: dict[str, float] = {}
    if not whole:
        try:
            old = read_table(settings.forecast_table_path)
            slices, shares = dict(old.slices), dict(old.shares)
        except ModelError:
            pass  # none yet, or unusable: the new rows are all there is
    slices |= rows
    shares = {key: share for key, share in (shares | data.shares).items() if key not in slices}
    lead = slices.get(slice_key()) or next(iter(rows.values()))
    table = ForecastTable(
        generated_at=now,
        origin=max(row.first_hour for row in rows.values()),
        model_version=lead.model_version,
        method=lead.method,
        slices=slices,
        shares=shares,
    )
    return write_table(settings.forecast_table_path, table)


def describe(entry: SliceData) -> dict[str, Any]:
    """Tags of a version: which slice it is, and until when its history goes."""
    return {"slice": entry.key, "history_ends": str(entry.series.index[-1])}
