"""The work of one slice, as a worker process does it: fit, tune Prophet when the error is above the limit, borrow."""

from __future__ import annotations

import datetime as dt
import inspect
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, mape, plan_folds, roll
from nhm_sched_plugin.forecasting.covariates import known_in
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
from nhm_sched_plugin.forecasting.judge import PROPHET_FROM_HOURS
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.series import HistoryError, hours
from nhm_sched_plugin.forecasting.table import SliceForecast
from nhm_sched_plugin.settings import ProphetSettings
from nhm_sched_plugin.training.borrowing import METHOD, Lending, ShareOfParent, lend, share_of_parent

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "GRID",
    "TABLE_HOURS",
    "Fitted",
    "SliceTask",
    "competitive",
    "fit_slice",
    "incumbent_errors",
    "informed",
    "lost_slice",
]

logger = logging.getLogger(__name__)

TABLE_HOURS: Final = 16 * 24
"""Hours ahead in the forecast table."""
GRID: Final = (
    ProphetSettings(changepoint_prior_scale=0.5),
    ProphetSettings(changepoint_prior_scale=0.05, seasonality_mode="multiplicative"),
    ProphetSettings(changepoint_prior_scale=0.01, seasonality_prior_scale=1.0, seasonality_mode="multiplicative"),
)
"""What Prophet is retrained with above the error limit: three points inside the tuning ranges."""

_COMPETITIVE: Final = 1.2
"""A model within this factor of the best error at any horizon is worth trying on the parts."""
_AHEAD: Final = 0.9
"""The same for models that take long."""
_DRAWING: Final = ("matplotlib", "plotly")
"""Prophet imports them if it can, and a worker does not draw: some 30 MB and half a second each."""
_SHORTLISTS: Final = "shortlist" in inspect.signature(LoadForecaster.fit).parameters


@dataclass(slots=True, kw_only=True)
class SliceTask:
    """All that a worker is sent: one slice's own counts and what they are judged by."""

    key: str
    series: pd.Series[Any]
    horizons: tuple[int, ...]
    country: str | None
    config: ProphetSettings
    max_mape: float
    now: float
    production: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Horizon -> state of the model in production."""
    shortlist: tuple[str, ...] | None = None
    """The models to try; None: all that the history is worth."""
    holidays: dict[dt.date, str] = field(default_factory=dict)
    """The user's own."""
    regressors: pd.DataFrame | None = None
    """Of all hours, past and ahead."""
    parent: str | None = None
    lending: Lending | None = None
    """What the slice may borrow from: of `parent`."""
    lends: bool = False
    """Whether parts of this slice are trained too."""


UNREADABLE: Final = 1e6
"""Stands for the MAPE of a model in production that cannot be read any more: whatever replaces it is better."""


class Fitted(msgspec.Struct, kw_only=True):
    """What a worker answers."""

    key: str
    state: dict[str, Any] | None = None
    methods: dict[int, str] = {}
    """Horizon -> model; likewise below."""
    errors: dict[int, tuple[float | None, float | None]] = {}
    """MAPE and WAPE of the backtest in percent."""
    incumbents: dict[int, float] = {}
    """MAPE of the production model on the same backtest."""
    samples: int = 0
    failures: dict[str, str] = {}
    """Models that could not be fitted, and why."""
    shortlist: list[str] = []
    """Models worth trying on the parts of this slice."""
    row: SliceForecast | None = None
    """Of the table, without shares and usage; None for a slice that is served as a share of its parent."""
    lending: Lending | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process and of those that it waited for: Prophet's fits run in a process of Stan's."""
    peak_mib: float = 0.0
    """Most memory that the process ever held."""
    error: str = ""

    @property
    def borrows(self) -> bool:
        return self.state is not None and ShareOfParent.is_state(self.state)


def fit_slice(task: SliceTask) -> Fitted:
    """Never raises: a slice that fails says so and stops nothing else."""
    began, worked = time.perf_counter(), _cpu_seconds()
    result = Fitted(key=task.key)
    try:
        with _without_drawing():
            _fit_into(result, task)
    except Exception as error:  # noqa: BLE001 - whatever a model library raises belongs to this slice alone
        result.error = f"{type(error).__name__}: {error}"
    result.seconds, result.cpu_seconds = time.perf_counter() - began, _cpu_seconds() - worked
    result.peak_mib = peak_mib()
    return result


def lost_slice(task: SliceTask, why: str) -> Fitted:
    """The answer for a slice whose worker did not live to give one."""
    return Fitted(key=task.key, error=why)


def _fit_into(result: Fitted, task: SliceTask) -> None:
    known = hours(task.series)
    if int(known.notna().sum()) < PROPHET_FROM_HOURS:
        task.shortlist = None  # a short history has candidates of its own, and they cost little
    own = _fit(task, known, shortlist=task.shortlist)
    if _worth_tuning(own, task):
        own = _tuned(own, task)
    served = _names(own)

    def refit(earlier: pd.Series[Any]) -> LoadForecaster:
        return _fit(task, earlier, shortlist=served)

    share = None
    if task.lending is not None and task.parent is not None:
        share = share_of_parent(task.series, own, task.parent, task.lending, refit, task.now)
    result.samples = own.samples
    result.failures = own.failures
    result.shortlist = competitive(own)
    result.incumbents = incumbent_errors(task.series, task.production, task.lending, task.regressors)
    if share is not None:
        result.state = share.to_state()
        result.methods = dict.fromkeys(task.horizons, METHOD)
        result.errors = {int(horizon): pair for horizon, pair in share.errors.items()}
        return
    errors = own.errors.get("served", {})
    result.methods = {horizon: own.method(horizon) for horizon in task.horizons}
    result.errors = {h: _finite_pair(errors[str(h)]) for h in task.horizons if str(h) in errors}
    result.state = own.to_state()
    result.row = own.table(TABLE_HOURS)
    if task.lends:
        result.lending = lend(task.series, own)


def _fit(task: SliceTask, series: pd.Series[Any], **about: Any) -> LoadForecaster:
    """`about`: `shortlist`, and `config` instead of the task's."""
    config = about.pop("config", task.config)
    if about.get("shortlist") is None or not _SHORTLISTS:
        about = {}
    about |= {"holidays": task.holidays, "regressors": known_in(task.regressors, series)}
    return LoadForecaster.fit(series, task.horizons, task.country, config, lambda: task.now, **about)


def informed(model: LoadForecaster, regressors: pd.DataFrame | None) -> LoadForecaster:
    """A model with the regressors of now; without those that it was fitted with, it serves on with what it knows."""
    if regressors is not None and model.regressors:
        try:
            return model.inform(regressors)
        except HistoryError as error:
            logger.warning("a model keeps the regressors of its fit: %s", error)
    return model


def _names(model: LoadForecaster) -> tuple[str, ...]:
    """The models that serve: what is refitted on a part of the history."""
    return tuple(sorted({name for h in model.horizons for name in model.method(h).split("+")}))


def competitive(model: LoadForecaster) -> list[str]:
    """Models worth trying on the parts: those within 20 % of the best error at any horizon of the backtest.

    The error is the geometric mean of MAPE and WAPE. Prophet takes several times as long as all others together, so
    it has to be ahead of them by 10 % at some horizon.
    """
    kept: set[str] = set()
    for horizon in map(str, model.horizons):
        errors = {name: _error(row.get(horizon)) for name, row in model.errors.items() if name != "served"}
        cheap = {name: error for name, error in errors.items() if not name.startswith(FrozenProphet.name)}
        best = min((cheap or errors).values(), default=math.inf)
        for name, error in errors.items():
            factor = _COMPETITIVE if name in (cheap or errors) else _AHEAD
            if error <= factor * best < math.inf:
                kept.add(name)
    return sorted(kept or _names(model))


def _error(pair: tuple[float, float] | None) -> float:
    return math.inf if pair is None or not all(map(math.isfinite, pair)) else math.sqrt(pair[0] * pair[1])


def _worth_tuning(own: LoadForecaster, task: SliceTask) -> bool:
    """Above the limit, with Prophet among the models, and not hopeless.

    Counts around `m` scatter like a Poisson variable's at least: even the true mean errs by `sqrt(2 / (pi m))` then.
    """
    worst = max((pair[0] for pair in own.errors.get("served", {}).values()), default=math.nan)
    if not worst >= task.max_mape or own.samples < PROPHET_FROM_HOURS:
        return False
    if task.shortlist is not None and FrozenProphet.name not in task.shortlist:
        return False
    level = float(np.nanmean(np.asarray(hours(task.series), dtype=np.float64)))
    return level > 0 and 100 * math.sqrt(2 / (math.pi * level)) < task.max_mape


def _tuned(plain: LoadForecaster, task: SliceTask) -> LoadForecaster:
    """Try the grid on the last fold; fit anew with its best point if that beats what is served."""
    known, days = hours(task.series), plain.holidays
    past = plain.timeline(known)

    def maker(config: ProphetSettings) -> Any:
        return lambda: FrozenProphet(
            config.seasonality_mode, config.changepoint_prior_scale, config.seasonality_prior_scale, days
        )

    makers = {str(i): maker(config) for i, config in enumerate(GRID)}
    backtest = roll(past, makers, plan_folds(len(past))[-1:])
    horizon = str(max(plain.horizons))
    end = min(math.ceil(int(horizon) / 60), MAX_LEAD)
    errors = {name: mape(backtest.actual[:, :end], rows[:, :end]) for name, rows in backtest.forecasts.items()}
    best = min(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf, default=None)
    served = plain.errors["served"].get(horizon, (math.nan, math.nan))[0]
    if best is None or not errors[best] < served:
        return plain
    shortlist = tuple(sorted({*_names(plain), FrozenProphet.name}))
    tuned = _fit(task, task.series, config=GRID[int(best)], shortlist=shortlist)
    return tuned if tuned.errors["served"][horizon][0] < served else plain


def incumbent_errors(
    series: pd.Series[Any],
    production: dict[int, dict[str, Any]],
    lending: Lending | None = None,
    regressors: pd.DataFrame | None = None,
) -> dict[int, float]:
    """MAPE of each horizon's production model over the origins that the new one was judged at.

    The incumbent is not refitted; it may have seen some of these hours in its own fit, which is in its favour. One
    that is a share of its parent can be judged where the parent lends its forecasts.
    """
    known = hours(series)
    result: dict[int, float] = {}
    for state in _distinct(production.values()):
        served = [horizon for horizon, one in production.items() if one == state]
        if ShareOfParent.is_state(state):
            shared = ShareOfParent.from_state(state)
            result |= shared.judged(series, lending, served) if lending is not None else {}
            continue
        try:
            model = informed(LoadForecaster.from_state(state), regressors)
        except ModelError:  # made by a version of this package that is gone: it serves nothing any more
            result |= dict.fromkeys(served, UNREADABLE)
            continue
        for horizon in served:
            end = min(math.ceil(horizon / 60), MAX_LEAD)
            folds = plan_folds(len(known))
            origins = [origin for fold in folds for origin in fold.origins if origin + end <= len(known)]
            forecasts = [model.starting(known.iloc[:origin]).evaluate(end)[0] for origin in origins]
            actual = [known.to_numpy()[origin : origin + end] for origin in origins]
            if origins:
                result[horizon] = mape(np.array(actual), np.array(forecasts))
    return result


def _distinct(states: Sequence[dict[str, Any]] | Any) -> Iterator[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    for state in states:
        if state not in seen:
            seen.append(state)
            yield state


def _finite_pair(pair: tuple[float, float]) -> tuple[float | None, float | None]:
    first, second = (value if math.isfinite(value) else None for value in pair)
    return first, second


@contextmanager
def _without_drawing() -> Iterator[None]:
    """Libraries for plots count as not installed meanwhile, unless somebody has imported them already."""
    hidden = [name for name in _DRAWING if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # None: `import` raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, "") is None:
                del sys.modules[name]


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def peak_mib() -> float:
    """Most memory (resident) that this process ever held, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
