"""Train every slice and horizon, register what came of it, and publish the table that hosts serve from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError, RegistryError
from nhm_sched_plugin.forecasting.covariate_files import KnownAhead, known_ahead
from nhm_sched_plugin.forecasting.table import MAX_HORIZON_MINUTES, ForecastTable, read_table
from nhm_sched_plugin.training.admission import FAILED, TrainingRow, admit, incumbent
from nhm_sched_plugin.training.data import SliceData, TrainingData, from_series, from_store
from nhm_sched_plugin.training.due import answered, asked
from nhm_sched_plugin.training.engine import Engine
from nhm_sched_plugin.training.engine import engine as workers
from nhm_sched_plugin.training.fitting import Fitted, SliceTask, fit_slice, lost_slice
from nhm_sched_plugin.training.journal import Journal, digest_of, frame_digest
from nhm_sched_plugin.training.publish import publish, served_model, slice_rows
from nhm_sched_plugin.training.reconcile import parent_key
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import Head, model_name

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import Settings

__all__ = ["Progress", "TrainingReport", "TrainingRow", "republish", "train"]

Progress = Callable[[int, int, str], None]
"""Hears (slices done, slices in all, what was just done)."""

SCOUTS: Final = 8
"""So many task types, the busiest, are tried with all models, like the total; others with what did well above them."""


class TrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    rows: list[TrainingRow]
    table: str | None
    """Path of the published table; None if nothing could be published."""
    seconds: float
    stages: dict[str, float] = {}
    """Seconds of each: gather, fit, register, publish."""
    resumed: int = 0
    """Slices that an interrupted training before this one had finished."""
    cpu_seconds: float = 0.0
    """What all fits together took, wherever they ran."""
    peak_worker_mib: float = 0.0
    """Most memory that a process ever held which fitted a slice."""
    reason: str = ""
    """With `--if-needed`: why this training was, or was not, needed."""

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
    engine: str = "loky",
    scheduler: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    keep: int | None = None,
    clock: Callable[[], float] = time.time,
) -> TrainingReport:
    """Train on the records (or on `series` by slice key), register, publish.

    No task type and no risk band: every slice that has data (`keep`: only that many besides the global one, busiest
    first). A horizon's model takes the alias `staging` at a backtest MAPE under `ml.training.max_mape`; above it, a
    small grid of Prophet settings is tried, else the incumbent stays, else the model is published as a baseline at
    half the confidence. Slices that fail, or whose worker dies, are in the report and stop no other.

    `engine`: `loky` (`jobs` processes here) or `dask` (the workers of the cluster at `scheduler`). What is finished is
    kept in `<data_dir>/training/` until the table is out, so that a training after an interrupted one goes on from
    there; `fresh` forgets it. Raises `NhmSchedError` when there is nothing to train on, or no workers or registry.
    """
    timer = _Timer()
    wanted = _horizons(settings, horizons)
    request = asked(settings)
    ahead = known_ahead(settings)
    registry = Registry.of(settings)
    journal = Journal(settings.data_dir / "training" / "unfinished", fresh=fresh)
    with workers(engine, jobs, scheduler) as pool:
        data = _gather(settings, store, series, task_type, risk_band, keep)
        ahead.check(max(data.slices, key=lambda entry: (entry.key == "", len(entry.series))).series)
        timer.lap("gather")
        if len(data.slices) == 1 and engine == "loky":
            pool = Engine()  # a process of its own would take longer to start than it takes to fit
        with _ready(registry):
            production = {} if not registry.exists() else _production(registry, data, wanted)
            run = _Run(settings, data, ahead, wanted, production, clock(), journal)
            fitted = run.fit_all(pool, progress or (lambda *_: None))
    timer.lap("fit")
    if progress:
        progress(len(data.slices), len(data.slices), "all slices; registering")
    heads = registry.heads()
    rows, served = admit(settings, registry, heads, data.slices, fitted, wanted)
    timer.lap("register")
    for entry in data.slices if (others := set(settings.ml.forecasting.horizons) - set(wanted)) else []:
        found = [incumbent(registry, heads, entry, horizon) for horizon in sorted(others)]
        served.setdefault(entry.key, []).extend(one for one in found if one is not None)
    published = slice_rows(settings, data.slices, served, ahead.regressors)
    whole = task_type is None and risk_band is None
    if published:
        publish(settings, data, published, clock(), whole=whole)
    timer.lap("publish")
    report = TrainingReport(
        rows=rows,
        table=str(settings.forecast_table_path) if published else None,
        seconds=timer.total(),
        stages=timer.laps,
        resumed=run.resumed,
        cpu_seconds=sum(one.cpu_seconds for one in fitted.values()),
        peak_worker_mib=max((one.peak_mib for one in fitted.values()), default=0.0),
    )
    journal.close(done=not report.failed)
    if published:
        answered(settings, request, None if whole else set(published))
    return report


def republish(
    settings: Settings, series: Mapping[str, pd.Series[Any]] | None, now: float, *, store: Any = None
) -> ForecastTable:
    """A new table from the served models, moved to the end of newer counts without a refit.

    `series` is recent counts by slice key (a few weeks are enough); None reads the records. Slices without a model
    are left to their parents. What the file of `ml.forecasting.regressors` says by now stands. Shares and usage stay as
    in the last table when `series` is given.
    Raises `RegistryError` when no slice has a model.
    """
    registry, ahead = Registry.of(settings), known_ahead(settings)
    data = _gather(settings, store, series, None, None, None)
    if series is not None:
        _keep_about(settings, data)
    heads = registry.heads() if registry.exists() else {}
    served = {}
    for entry in data.slices:
        found = [served_model(registry, heads, entry, horizon) for horizon in settings.ml.forecasting.horizons]
        served[entry.key] = [one for one in found if one is not None]
    rows = slice_rows(settings, data.slices, served, ahead.regressors)
    if not rows:
        raise RegistryError("no slice has a model to publish; run nhm-sched train first")
    return publish(settings, data, rows, now, whole=False)


def _keep_about(settings: Settings, data: TrainingData) -> None:
    """What short recent counts cannot say about a slice comes from the last table."""
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
        return from_series(series, task_type, risk_band, settings)
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
    heads = registry.heads()
    for entry in data.slices:
        for horizon in horizons:
            head: Head | None = heads.get(model_name(horizon, entry.task_type, entry.risk_band))
            if head is not None and (version := head.aliases.get("production")):
                result.setdefault(entry.key, {})[horizon] = registry.read(registry.version(head, version))
    return result


class _Timer:
    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    def total(self) -> float:
        return time.perf_counter() - self._began


class _Run:
    """The fits of one training: wholes first, so that their parts can learn and borrow from them."""

    def __init__(
        self,
        settings: Settings,
        data: TrainingData,
        ahead: KnownAhead,
        horizons: tuple[int, ...],
        production: Mapping[str, dict[int, dict[str, Any]]],
        now: float,
        journal: Journal,
    ) -> None:
        self._ml = settings.ml
        self._ahead = ahead
        self._ahead_digest = b"" if ahead.regressors is None else frame_digest(ahead.regressors)
        self._slices = {entry.key: entry for entry in data.slices}
        self._horizons = horizons
        self._production = production
        self._now = now
        self._journal = journal
        self._above = {key: parent_key(key, self._slices) for key in self._slices}
        kinds = sorted((entry for entry in data.slices if "|" not in entry.key), key=lambda entry: -entry.share)
        self._scouts = {entry.key for entry in kinds[: SCOUTS + 1]}
        self.fitted: dict[str, Fitted] = {}
        self.resumed = 0

    def fit_all(self, pool: Engine, progress: Progress) -> dict[str, Fitted]:
        """What came of every slice, by key."""
        for wave in self._waves():
            tasks = {entry.key: self._task(entry) for entry in wave}
            digests = {key: _digest(task, self._ahead_digest) for key, task in tasks.items()}
            for key, digest in digests.items():
                if (found := self._journal.find(digest, Fitted)) is not None:
                    self._done(found, progress)
                    del tasks[key]
                    self.resumed += 1
            for result in pool.run(fit_slice, list(tasks.values()), lost_slice):
                if not result.error:
                    self._journal.keep(digests[result.key], result)
                self._done(result, progress)
        return self.fitted

    def _done(self, result: Fitted, progress: Progress) -> None:
        self.fitted[result.key] = result
        progress(len(self.fitted), len(self._slices), result.key.replace("|", "/") or "all tickets")

    def _waves(self) -> Iterator[list[SliceData]]:
        left = dict(self._slices)
        while left:
            ready = [entry for key, entry in left.items() if self._above[key] not in left]
            for entry in ready:
                del left[entry.key]
            yield sorted(ready, key=lambda entry: -entry.share)

    def _task(self, entry: SliceData) -> SliceTask:
        forebears = list(self._forebears(entry.key))
        lender = next((key for key in forebears if self.fitted[key].lending is not None), None)
        known = next((self.fitted[key].shortlist for key in forebears if self.fitted[key].shortlist), None)
        return SliceTask(
            key=entry.key,
            series=entry.series,
            horizons=self._horizons,
            country=self._ml.forecasting.country,
            config=self._ml.prophet,
            max_mape=self._ml.training.max_mape,
            now=self._now,
            production=self._production.get(entry.key, {}),
            shortlist=None if known is None or entry.key in self._scouts else tuple(known),
            parent=lender,
            lending=None if lender is None else self.fitted[lender].lending,
            lends=entry.key in self._above.values(),
            holidays=dict(self._ahead.holidays),
            regressors=self._ahead.regressors,
        )

    def _forebears(self, key: str) -> Iterator[str]:
        above = self._above[key]
        while above is not None:
            yield above
            above = self._above[above]


def _digest(task: SliceTask, regressors: bytes) -> str:
    """Of everything that the answer depends on; not the time. `regressors` is the digest of theirs."""
    about = {
        "key": task.key,
        "horizons": task.horizons,
        "country": task.country,
        "config": task.config.model_dump(),
        "max_mape": task.max_mape,
        "production": {str(horizon): state for horizon, state in task.production.items()},
        "shortlist": task.shortlist,
        "parent": task.parent,
        "lends": task.lends,
        "holidays": [(day.isoformat(), name) for day, name in task.holidays.items()],
    }
    lent = [] if task.lending is None else [task.lending.known, task.lending.rows]
    return digest_of(task.series, about, [regressors, *lent])
