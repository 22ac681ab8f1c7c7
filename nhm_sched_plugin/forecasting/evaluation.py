"""How good are the forecasts? The whole `LoadForecaster`, model choice and all, judged on hours it has never seen.

There is one rolling-origin evaluation, for `nhm-sched backtest`, the benchmarks and the tests: `roll_out` asks every
method at every origin with nothing but the hours before it, and keeps each forecast; `forecasting.scores` counts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.forecasting.covariate_files import KnownAhead
from nhm_sched_plugin.forecasting.covariates import Covariates
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
from nhm_sched_plugin.forecasting.judge import candidates
from nhm_sched_plugin.forecasting.models.base import WEEK, Model
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet
from nhm_sched_plugin.forecasting.scores import Evaluation, Forecasts, Rolled, table
from nhm_sched_plugin.forecasting.series import Floats, HistoryError, hours

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import ProphetSettings

__all__ = [
    "SERVED",
    "Answer",
    "Ask",
    "Evaluation",
    "Fit",
    "Method",
    "evaluate",
    "own_methods",
    "plan_origins",
    "roll_out",
]

SERVED: Final = "served"
LONGEST_TEST: Final = 28 * 24
LEAST_HOURS: Final = 48
_MEMORY: Final = 8 * WEEK
"""Hours before an origin that `served` is brought up to date with between two refits."""
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """One forecast: the mean of each hour (steps) and, from a method that has any, quantiles (steps x LEVELS)."""

    mean: Floats
    quantiles: Floats | None = None


class Ask(Protocol):
    """A fitted method. `known` ends where the forecast starts; it is all that the method may look at."""

    def __call__(self, known: pd.Series[float], steps: int, /) -> Answer: ...


class Fit(Protocol):
    """Learn from hourly counts (as `hours` makes them). May raise: the method then drops out of the comparison."""

    def __call__(self, known: pd.Series[float], /) -> Ask: ...


class Method(NamedTuple):
    """A named way to forecast. `refits`: how often it learns on the way through the origins; None: at each of them."""

    name: str
    fit: Fit
    refits: int | None = None


def evaluate(
    history: pd.Series[Any],
    horizons: Sequence[int] = (60, 360, 1440),
    country: str | None = "BR",
    config: ProphetSettings | None = None,
    *,
    origins: int = 100,
    refits: int = 2,
    rivals: Sequence[Method] = (),
    progress: Callable[[float], None] | None = None,
    ahead: KnownAhead | None = None,
) -> list[Evaluation]:
    """`LoadForecaster`, each of its single models and `rivals`, by horizon: `roll_out` and `scores.table` in one.

    Everything of our own is fitted `refits` times and rolled through the origins that follow. `progress` hears the
    share done. `ahead`: own holidays and regressors, see `own_methods`. Raises `HistoryError` for a history too short
    to judge by.
    """
    known = hours(history)
    steps = max(-(-horizon // 60) for horizon in horizons)
    at = plan_origins(len(known), steps, origins)
    methods = [*own_methods(known.iloc[: at[0]], horizons, country, config, refits=refits, ahead=ahead), *rivals]
    rolled = roll_out(known, methods, steps, origins=at, progress=progress)
    return table(rolled, horizons)


def plan_origins(count: int, steps: int, origins: int, test_hours: int | None = None) -> NDArray[np.int64]:
    """Where to stand in `count` hours: up to `origins` positions (hours known there), `steps` hours before the end.

    The test region is the last quarter, at most 28 days, unless `test_hours` says otherwise. Its slots of equal width
    each give one origin, of the hour of the day that had fewest so far: 100 origins meet every hour about four times,
    which a stride with a factor in common with 24 would not. Raises `HistoryError` when there is too little.
    """
    span = min(count // 4, LONGEST_TEST) if test_hours is None else test_hours
    if count < LEAST_HOURS or span < steps or count - span < LEAST_HOURS // 2:
        raise HistoryError(f"{count} hours are too few to judge a horizon of {steps} h; give at least {4 * steps}")
    start, stop = count - span, count - steps + 1  # one past the last origin
    edges = np.unique(np.linspace(start, stop, min(origins, stop - start) + 1).astype(int))
    met = np.zeros(24, dtype=int)
    chosen = []
    for low, high in pairwise(edges):
        slot = np.arange(low, high)
        slot = slot[np.argsort(np.abs(slot - (low + high - 1) / 2), kind="stable")]
        best = int(slot[np.argmin(met[slot % 24])])
        met[best % 24] += 1
        chosen.append(best)
    return np.array(chosen, dtype=np.int64)


def own_methods(
    past: pd.Series[float],
    horizons: Sequence[int],
    country: str | None = "BR",
    config: ProphetSettings | None = None,
    *,
    refits: int = 2,
    singles: bool = True,
    ahead: KnownAhead | None = None,
) -> list[Method]:
    """`served` (the whole `LoadForecaster`) and, by their names, the single models that it chooses from.

    `past` is what the first fit will see: it decides which models there are, so that each of them meets every origin.
    Of `ahead` every origin sees all hours, those after it too: regressors are what is known ahead by definition.
    """
    ahead = ahead or KnownAhead()
    methods = [Method(SERVED, _served(horizons, country, config, ahead), refits)]
    if singles:
        covariates = Covariates.of(past, country, ahead.holidays, ahead.regressors)
        makers = candidates(int(past.notna().sum()), config, covariates.dates)
        # what everything is compared with
        makers.setdefault(FrozenProphet.name, lambda: FrozenProphet(holidays=covariates.dates))
        methods += [Method(name, _single(make, covariates), refits) for name, make in makers.items()]
    return methods


def _served(horizons: Sequence[int], country: str | None, config: ProphetSettings | None, ahead: KnownAhead) -> Fit:
    def fit(known: pd.Series[float]) -> Ask:
        forecaster = LoadForecaster.fit(
            known, horizons, country, config, holidays=ahead.holidays, regressors=ahead.regressors
        )

        def ask(now: pd.Series[float], steps: int) -> Answer:
            return Answer(*forecaster.update(now.iloc[-_MEMORY:]).evaluate(steps))

        return ask

    return fit


def _single(make: Callable[[], Model], covariates: Covariates) -> Fit:
    def fit(known: pd.Series[float]) -> Ask:
        model = make().fit(covariates.timeline(known))

        def ask(now: pd.Series[float], steps: int) -> Answer:
            return Answer(np.maximum(model.predict(covariates.timeline(now), steps), 0.0))

        return ask

    return fit


@dataclass(slots=True)
class _Part:
    """Neighbouring origins that one fit serves (each has its own where the method learns at every one)."""

    method: Method
    first: int
    origins: NDArray[np.int64]
    answers: list[Answer] = field(default_factory=list)
    fit_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)
    failure: str = ""


def roll_out(
    history: pd.Series[Any],
    methods: Sequence[Method],
    steps: int = 24,
    *,
    origins: int | Sequence[int] | NDArray[np.int64] = 100,
    test_hours: int | None = None,
    jobs: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Rolled:
    """Ask every method at every origin, and keep what it answered and what came.

    A method is handed the hours before the origin and no others: the rest of the series is not in what it gets. One
    that fails is left out of the comparison, with the reason in `failures`. `origins` is how many (`plan_origins`), or
    the positions themselves. Raises `HistoryError` for a history too short to judge by.
    """
    known = hours(history)
    at = plan_origins(len(known), steps, origins, test_hours) if isinstance(origins, int) else np.asarray(origins)
    if len({method.name for method in methods}) < len(methods):
        raise ValueError(f"two methods of one name: {', '.join(method.name for method in methods)}")
    parts = [part for method in methods for part in _parts(method, at)]
    total, done = sum(len(part.origins) for part in parts), 0
    by_method: dict[str, list[_Part]] = {method.name: [] for method in methods}
    for part in _worked(known, parts, steps, jobs):
        by_method[part.method.name].append(part)
        done += len(part.origins)
        if progress:
            progress(done / total)
    rolled = Rolled(
        known=known,
        origins=at,
        actual=np.array([known.to_numpy()[origin : origin + steps] for origin in at]),
        scale=_naive_error(np.asarray(known, dtype=np.float64)[: at[0]]),
    )
    for name, found in by_method.items():
        failures = [part.failure for part in found if part.failure]
        if failures:
            rolled.failures[name] = failures[0]
            _log.info("method %s is left out: %s", name, failures[0])
        else:
            rolled.methods[name] = _joined(sorted(found, key=lambda part: part.first))
    return rolled


def _parts(method: Method, at: NDArray[np.int64]) -> Iterator[_Part]:
    groups = np.array_split(at, min(len(at) if method.refits is None else method.refits, len(at)))
    first = 0
    for group in groups:
        yield _Part(method, first, group)
        first += len(group)


def _worked(known: pd.Series[float], parts: list[_Part], steps: int, jobs: int) -> Iterator[_Part]:
    if jobs == 1:
        for part in parts:
            yield _work(part, known, steps)
        return
    from joblib import Parallel, delayed

    # The costly ones first, so that no worker is left with one of them at the end.
    parts = sorted(parts, key=lambda part: part.method.name != SERVED)
    yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_work)(part, known.iloc[: part.origins[-1]], steps) for part in parts
    )


def _work(part: _Part, known: pd.Series[float], steps: int) -> _Part:
    """Fit on the hours before the part's first origin, then ask at each. Copies: no view leads to later hours."""
    try:
        began = cpu()
        ask = part.method.fit(known.iloc[: part.origins[0]].copy())
        part.fit_seconds.append(cpu() - began)
        for origin in part.origins:
            began = cpu()
            answer = ask(known.iloc[:origin].copy(), steps)
            part.ask_seconds.append(cpu() - began)
            if np.shape(answer.mean) != (steps,) or not np.isfinite(answer.mean).all():
                raise ValueError(f"the forecast is not {steps} finite numbers")
            part.answers.append(answer)
    except Exception as error:  # noqa: BLE001 - a rival may fail in any way of its library; the others go on
        part.failure = f"{type(error).__name__}: {error}"
    return part


def cpu() -> float:
    """Seconds of processor time, with those of ended children: Stan fits in a process of its own."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _joined(parts: list[_Part]) -> Forecasts:
    answers = [answer for part in parts for answer in part.answers]
    rows = [answer.quantiles for answer in answers if answer.quantiles is not None]
    return Forecasts(
        mean=np.array([answer.mean for answer in answers], dtype=np.float64),
        quantiles=np.array(rows, dtype=np.float64) if len(rows) == len(answers) else None,
        fit_seconds=float(np.mean([second for part in parts for second in part.fit_seconds])),
        predict_seconds=float(np.mean([second for part in parts for second in part.ask_seconds])),
    )


def _naive_error(values: Floats) -> float:
    """Mean absolute error of the seasonal naive within the history: MASE is in units of it (Hyndman, Koehler 2006)."""
    period = WEEK if len(values) >= 2 * WEEK else 24
    difference = np.abs(values[period:] - values[:-period])
    difference = difference[np.isfinite(difference)]
    return float(difference.mean()) if len(difference) else float("nan")
