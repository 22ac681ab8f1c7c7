"""Train every slice and horizon, register what came of it, and publish the table that hosts serve from."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import NhmSchedError, RegistryError
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
from nhm_sched_plugin.forecasting.table import MAX_HORIZON_MINUTES, ForecastTable, SliceForecast
from nhm_sched_plugin.training.data import SliceData, TrainingData, from_series, from_store
from nhm_sched_plugin.training.fitting import Fitted, fit_slice
from nhm_sched_plugin.training.publish import Served, describe, publish, served_models, slice_row
from nhm_sched_plugin.training.registry import ModelVersion, Registry, model_name

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import Settings

__all__ = ["Progress", "TrainingReport", "TrainingRow", "republish", "train"]

Progress = Callable[[int, int, str], None]
"""Hears (slices done, slices in all, what was just done)."""

STAGED: Final = "staged"
KEPT: Final = "incumbent kept"
BASELINE: Final = "baseline"
FAILED: Final = "failed"


class TrainingRow(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one slice at one horizon."""

    name: str
    slice: str
    horizon_minutes: int
    samples: int
    method: str = ""
    mape: float | None = None
    """Backtest MAPE in percent; None where no backtest was possible."""
    wape: float | None = None
    version: str = ""
    """Of the version that is served now."""
    alias: str = ""
    status: str
    """`staged`; `incumbent kept`: the new one missed the limit; `baseline`: the same without an incumbent; `failed`."""
    seconds: float = 0.0
    """Time of the slice's fit; the same on each of its horizons."""
    error: str = ""


class TrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    rows: list[TrainingRow]
    table: str | None
    """Path of the published table; None if nothing could be published."""
    seconds: float

    @property
    def failed(self) -> list[TrainingRow]:
        return [row for row in self.rows if row.status == FAILED]


def train(
    settings: Settings,
    *,
    horizons: Sequence[int] | None = None,
    task_type: str | None = None,
    risk_band: str | None = None,
    store: Any = None,
    series: Mapping[str, pd.Series[Any]] | None = None,
    jobs: int = 2,
    progress: Progress | None = None,
    keep: int | None = None,
    clock: Callable[[], float] = time.time,
) -> TrainingReport:
    """Train on the records (or on `series` by slice key), register, publish.

    No task type and no risk band: every slice that has data (`keep`: only that many besides the global one, busiest
    first). A horizon's model takes the alias `staging` at a backtest MAPE under `ml.training.max_mape`; above it, a
    small grid of Prophet settings is tried, else the incumbent stays, else the model is published as a baseline at
    half the confidence. Slices that fail are in the report and stop no other.
    Raises `NhmSchedError` when there is nothing to train on or the registry cannot be used.
    """
    began = time.perf_counter()
    wanted = _horizons(settings, horizons)
    registry = Registry.of(settings)
    data = _gather(settings, store, series, task_type, risk_band, keep)
    with _ready(registry):
        production = {} if not registry.exists() else _production(registry, data, wanted)
        fitted = {}
        for done, result in enumerate(_fit_all(settings, data, wanted, production, jobs, clock()), start=1):
            fitted[result.key] = result
            if progress:
                progress(done, len(data.slices), result.key or "all tickets")
    known = registry.list()
    rows: list[TrainingRow] = []
    published: dict[str, SliceForecast] = {}
    for entry in data.slices:
        new, served = _register(settings, registry, known, entry, fitted[entry.key], wanted)
        rows += new
        others = sorted(set(settings.ml.forecasting.horizons) - set(wanted))
        served += [found for h in others if (found := served_models(registry, known, entry, h)) is not None]
        if served:
            published[entry.key] = slice_row(entry, served)
    whole = task_type is None and risk_band is None
    if published:
        publish(settings, data, published, clock(), whole=whole)
    return TrainingReport(
        rows=rows,
        table=str(settings.forecast_table_path) if published else None,
        seconds=time.perf_counter() - began,
    )


def republish(
    settings: Settings, series: Mapping[str, pd.Series[Any]] | None, now: float, *, store: Any = None
) -> ForecastTable:
    """A new table from the served models, moved to the end of newer counts without a refit.

    `series` is recent counts by slice key (a few weeks are enough); None reads the records. Slices without a model
    are left to their parents. Shares and usage stay as in the last table when `series` is given.
    Raises `RegistryError` when no slice has a model.
    """
    registry = Registry.of(settings)
    data = _gather(settings, store, series, None, None, None)
    if series is not None:
        _keep_about(settings, data)
    known = registry.list() if registry.exists() else []
    rows = {}
    for entry in data.slices:
        found = [served_models(registry, known, entry, horizon) for horizon in settings.ml.forecasting.horizons]
        served = [one for one in found if one is not None]
        if served:
            rows[entry.key] = slice_row(entry, served)
    if not rows:
        raise RegistryError("no slice has a model to publish; run nhm-sched train first")
    return publish(settings, data, rows, now, whole=False)


def _keep_about(settings: Settings, data: TrainingData) -> None:
    """What short recent counts cannot say about a slice comes from the last table."""
    from nhm_sched_plugin.errors import ModelError
    from nhm_sched_plugin.forecasting.table import read_table

    try:
        old = read_table(settings.forecast_table_path).slices
    except ModelError:
        return
    for entry in data.slices:
        row = old.get(entry.key)
        if row is not None:
            entry.share = entry.share if row.share is None else row.share
            entry.cpu_core_hours = row.cpu_core_hours_per_ticket
            entry.memory_gib_hours = row.memory_gib_hours_per_ticket


def _horizons(settings: Settings, horizons: Sequence[int] | None) -> tuple[int, ...]:
    wanted = tuple(sorted(set(horizons or settings.ml.forecasting.horizons)))
    bad = [horizon for horizon in wanted if not 60 <= horizon <= MAX_HORIZON_MINUTES]
    if bad:
        raise RegistryError(f"horizon {bad[0]} is outside 60 to {MAX_HORIZON_MINUTES} minutes")
    return wanted


def _gather(
    settings: Settings,
    store: Any,
    series: Mapping[str, pd.Series[Any]] | None,
    task_type: str | None,
    risk_band: str | None,
    keep: int | None,
) -> TrainingData:
    if series is not None:
        return from_series(series, task_type, risk_band)
    if store is not None:
        return from_store(store, settings, task_type, risk_band, keep=keep)
    from nhm_sched_plugin.store.client import open_store

    with open_store(settings) as opened:
        return from_store(opened, settings, task_type, risk_band, keep=keep)


@contextmanager
def _ready(registry: Registry) -> Iterator[None]:
    """Open the registry (seconds of imports, and a new database) while the workers fit."""
    failures: list[BaseException] = []

    def warm() -> None:
        try:
            registry.open()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=warm, name="nhm-sched-registry")
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def _production(
    registry: Registry, data: TrainingData, horizons: tuple[int, ...]
) -> dict[str, dict[int, dict[str, Any]]]:
    """States of the models in production, by slice and horizon: the new ones are measured against them."""
    result: dict[str, dict[int, dict[str, Any]]] = {}
    live = {version.name for version in registry.list() if "production" in version.aliases}
    for entry in data.slices:
        for horizon in horizons:
            name = model_name(horizon, entry.task_type, entry.risk_band)
            if name in live:
                result.setdefault(entry.key, {})[horizon] = registry.load(name, "production")
    return result


def _fit_all(
    settings: Settings,
    data: TrainingData,
    horizons: tuple[int, ...],
    production: Mapping[str, dict[int, dict[str, Any]]],
    jobs: int,
    now: float,
) -> Iterator[Fitted]:
    """Fan out over worker processes; answers come as they get ready. One slice or one job: in this process."""
    ml = settings.ml
    calls = [
        (
            entry.key,
            entry.series,
            horizons,
            ml.forecasting.country,
            ml.prophet,
            ml.training.max_mape,
            now,
            production.get(entry.key, {}),
        )
        for entry in data.slices
    ]
    if jobs == 1 or len(calls) == 1:
        yield from (fit_slice(*call) for call in calls)
        return
    from joblib import Parallel, delayed

    work = Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered", pre_dispatch="all")
    yield from work(delayed(fit_slice)(*call) for call in calls)


def _register(
    settings: Settings,
    registry: Registry,
    known: Sequence[ModelVersion],
    entry: SliceData,
    fitted: Fitted,
    horizons: tuple[int, ...],
) -> tuple[list[TrainingRow], list[Served]]:
    """Save one slice's models; returns the report's rows and what serves each horizon now."""
    rows, served = [], []
    for horizon in horizons:
        name = model_name(horizon, entry.task_type, entry.risk_band)
        if fitted.state is None:
            row = TrainingRow(
                name=name,
                slice=entry.key,
                horizon_minutes=horizon,
                samples=int(entry.series.notna().sum()),
                status=FAILED,
                seconds=fitted.seconds,
                error=fitted.error,
            )
            serving = _incumbent(registry, known, entry, horizon)
        else:
            row, serving = _register_one(settings, registry, known, entry, fitted, horizon)
        rows.append(row)
        served += [serving] if serving else []
    return rows, served


def _incumbent(registry: Registry, known: Sequence[ModelVersion], entry: SliceData, horizon: int) -> Served | None:
    """The model that serves already; None if there is none, or it cannot be read any more."""
    try:
        return served_models(registry, known, entry, horizon)
    except NhmSchedError:
        return None


def _register_one(
    settings: Settings,
    registry: Registry,
    known: Sequence[ModelVersion],
    entry: SliceData,
    fitted: Fitted,
    horizon: int,
) -> tuple[TrainingRow, Served]:
    assert fitted.state is not None  # noqa: S101 - the caller's promise
    name = model_name(horizon, entry.task_type, entry.risk_band)
    forecaster = LoadForecaster.from_state(fitted.state)
    relative, weighted = forecaster.errors.get("served", {}).get(str(horizon), (math.nan, math.nan))
    good = relative < settings.ml.training.max_mape  # NaN (no backtest possible) is not good
    incumbent = None if good else _incumbent(registry, known, entry, horizon)
    method = forecaster.method(horizon)
    if incumbent is not None and incumbent.trusted:
        status, alias, serving = KEPT, "", incumbent
    else:
        metrics = {"mape": relative, "wape": weighted, "samples": float(forecaster.samples)}
        if horizon in fitted.incumbents:
            metrics["production_mape"] = fitted.incumbents[horizon]
        version = registry.save(name, fitted.state, metrics, {**describe(entry), "method": method})
        status, alias = (STAGED, "staging") if good else (BASELINE, "")
        if good:
            registry.alias(name, version, alias)
        serving = Served(horizon, forecaster, version, good)
    row = TrainingRow(
        name=name,
        slice=entry.key,
        horizon_minutes=horizon,
        samples=forecaster.samples,
        method=method,
        mape=None if math.isnan(relative) else relative,
        wape=None if math.isnan(weighted) else weighted,
        version=serving.version,
        alias=alias,
        status=status,
        seconds=fitted.seconds,
        error="; ".join(f"{model}: {why}" for model, why in forecaster.failures.items()),
    )
    return row, serving
