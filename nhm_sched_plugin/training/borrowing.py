"""Slices too small to be forecast by themselves borrow: their share of what their task type, or everything, will have.

Whether a slice borrows is decided by a backtest on its own last weeks: `share x forecast of the parent` against its own
models, both made at each origin only from what was known then. Where its own are not better, it is served the share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.backtest import MAX_LEAD, mape, plan_folds, wape
from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.selection import plan
from nhm_sched_plugin.forecasting.series import Floats, epoch, hours, stamps
from nhm_sched_plugin.forecasting.table import SliceForecast

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHOD", "Lending", "ShareOfParent", "lend", "share_of_parent"]

METHOD: Final = "share_of_parent"
_KIND: Final = "kind"
_VERSION: Final = 1
_HOUR: Final = 3600
_WEEK: Final = 168
_LEAST_HOURS: Final = 4 * _WEEK
"""Less than this is too short to lend: some weeks to fit on, and the last ones to be tried on."""
_SHARE_HOURS: Final = 4 * _WEEK
"""The share is that of the last four weeks."""
_BUSY: Final = 5.0
"""Tickets an hour from which on mean and median are about the same."""
_FEW_ORIGINS: Final = 12
"""Fewer origins in common with the parent are too few to compare at."""
_DECIMALS: Final = 6
_NORMAL: Final = np.array((-1.959964, -1.281552, 0.0, 1.281552, 1.959964))
"""The standard normal quantiles at LEVELS."""
_SPREADS: Final = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)

Refit = Callable[["pd.Series[Any]"], LoadForecaster]
Errors = dict[str, tuple[float | None, float | None]]


class Lending(msgspec.Struct, frozen=True):
    """What parts need of their whole: its counts, and its forecasts at the origins of its last weeks."""

    first: int
    """Start of the first hour of `known`, Unix seconds."""
    known: bytes
    """Counts (float64), hour by hour."""
    origins: list[int]
    """Unix seconds, rising."""
    rows: bytes
    """float32: origin x hour ahead x (mean, quantiles at LEVELS)."""

    def counts(self) -> Floats:
        return np.frombuffer(self.known, dtype=np.float64)

    def forecasts(self) -> Floats:
        flat = np.frombuffer(self.rows, dtype=np.float32).astype(np.float64)
        return flat.reshape(len(self.origins), MAX_LEAD, 1 + len(LEVELS))


def lend(series: pd.Series[Any], model: LoadForecaster) -> Lending | None:
    """A whole's forecasts at the origins of its backtest; None for one that is too short for that."""
    known = hours(series)
    if len(known) < _LEAST_HOURS or model.backtest is None:
        return None
    at = epoch(stamps(known))
    positions = _positions(len(known))
    rows = np.empty((len(positions), MAX_LEAD, 1 + len(LEVELS)), dtype=np.float32)
    spread = plan(model.bands, [], MAX_LEAD)
    for row, mean in zip(rows, model.backtest, strict=True):
        row[:, 0], row[:, 1:] = mean, spread.quantiles(mean)
    kept = max(positions[0] - _SHARE_HOURS, 0)
    values = np.asarray(known, dtype=np.float64)[kept:]
    return Lending(int(at[kept]), values.tobytes(), [int(at[i - 1]) + _HOUR for i in positions], rows.tobytes())


class ShareOfParent(msgspec.Struct, frozen=True, kw_only=True):
    """A slice that is served as a share of its parent's forecast."""

    parent: str
    """Slice key."""
    share: float
    spread: float
    """Factor on the distance of the quantiles, so that they fit the errors of the backtest."""
    samples: int
    trained_at: float
    errors: Errors
    """Horizon in minutes -> MAPE and WAPE of the backtest in percent."""

    def row(self, parent: SliceForecast, **about: Any) -> SliceForecast:
        """The slice's row of the table, from its parent's; `about` sets other fields, e.g. `share`."""
        flat = np.array([parent.mean, *(parent.quantiles[str(level)] for level in LEVELS)]).T
        mine = np.round(_part(flat, self.share, self.spread), _DECIMALS)
        return SliceForecast(
            first_hour=parent.first_hour,
            mean=mine[:, 0].tolist(),
            quantiles={str(level): mine[:, 1 + i].tolist() for i, level in enumerate(LEVELS)},
            samples=self.samples,
            trained_at=self.trained_at,
            method=METHOD,
            methods=dict.fromkeys(self.errors, METHOD),
            mape={horizon: pair[0] for horizon, pair in self.errors.items() if pair[0] is not None},
            **about,
        )

    def judged(self, series: pd.Series[Any], lending: Lending, horizons: Sequence[int]) -> dict[int, float]:
        """Its MAPE at the origins of the parent's last weeks; empty where the parent lends none that can be used."""
        trial = _Trial.of(series, lending, horizons)
        if trial is None:
            return {}
        rows = trial.lent[:, :, 0] * self.share
        ends = {horizon: min(math.ceil(horizon / 60), MAX_LEAD) for horizon in horizons}
        return {horizon: mape(trial.actual[:, :end], rows[:, :end]) for horizon, end in ends.items()}

    def to_state(self) -> dict[str, Any]:
        """As JSON values."""
        return {_KIND: METHOD, "version": _VERSION, **msgspec.to_builtins(self)}

    @staticmethod
    def is_state(state: Mapping[str, Any]) -> bool:
        """Whether a state is of this kind, and not a `LoadForecaster`'s."""
        return state.get(_KIND) == METHOD

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Raises `ModelError` for a damaged state or one of another version."""
        if state.get("version") != _VERSION:
            raise ModelError(f"state has version {state.get('version')!r}, expected {_VERSION}; train anew")
        try:
            return msgspec.convert(dict(state), cls)
        except msgspec.MsgspecError as error:
            raise ModelError(f"state of a share is damaged ({error}); train anew") from None


def share_of_parent(
    series: pd.Series[Any], own: LoadForecaster, parent: str, lending: Lending, refit: Refit, now: float
) -> ShareOfParent | None:
    """The slice as a share of its parent, or None where its own models are better.

    Errors are averaged over all hours up to each horizon, and those over the horizons: WAPE for a busy slice, squared
    errors for a sparse one, because absolute ones reward those who forecast nothing where most hours are empty. Where
    the slice was too short for a backtest, `refit` fits its models on the first part of what there is.
    """
    trial = _Trial.of(series, lending, own.horizons, own.backtest)
    if trial is None or trial.own_is_better(refit):
        return None
    return ShareOfParent(
        parent=parent,
        share=trial.share(len(trial.known)),
        spread=trial.spread(),
        samples=own.samples,
        trained_at=now,
        errors=trial.errors(),
    )


class _Trial:
    """The origins at which both are tried: `mean` is what the share forecasts, `actual` what came."""

    def __init__(
        self,
        known: pd.Series[float],
        whole: Floats,
        positions: list[int],
        lent: Floats,
        own: Floats | None,
        horizons: Sequence[int],
    ) -> None:
        self.known = known
        self._values = np.asarray(known, dtype=np.float64)
        self._whole = whole
        self._positions = positions
        self._own = own
        self._ends = {str(horizon): min(math.ceil(horizon / 60), MAX_LEAD) for horizon in horizons}
        self.lent = lent
        self.shares = np.array([self.share(position) for position in positions])
        self.mean: Floats = lent[:, :, 0] * self.shares[:, None]
        at = np.array(positions)[:, None] + np.arange(MAX_LEAD)[None, :]
        inside = at < len(known)
        self.actual: Floats = np.where(inside, self._values[np.where(inside, at, 0)], np.nan)

    @classmethod
    def of(
        cls, series: pd.Series[Any], lending: Lending, horizons: Sequence[int], own: Floats | None = None
    ) -> Self | None:
        """The origins that the slice and its parent were both tried at, if those are enough; else the parent's.

        Of the latter those that leave the slice half of its history before them. None where no such hour had a count.
        """
        known = hours(series)
        first = int(epoch(stamps(known))[0])
        counts = lending.counts()
        at = np.arange(len(known)) + (first - lending.first) // _HOUR
        inside = (at >= 0) & (at < len(counts))
        whole = np.where(inside, counts[np.where(inside, at, 0)], np.nan)
        lent = {(origin - first) // _HOUR: i for i, origin in enumerate(lending.origins)}
        mine = {} if own is None else {position: i for i, position in enumerate(_positions(len(known)))}
        both = [position for position in lent if position in mine]
        if len(both) < _FEW_ORIGINS:
            own, both = None, [p for p in lent if max(len(known) // 2, 1) <= p < len(known)]
        if not both:
            return None
        rows = None if own is None else own[[mine[position] for position in both]]
        made = cls(known, whole, both, lending.forecasts()[[lent[position] for position in both]], rows, horizons)
        seen = [np.isfinite(made.actual[:, :end]).any() for end in made._ends.values()]
        return made if all(seen) else None

    def share(self, position: int) -> float:
        """Of the parent's tickets in the four weeks before that hour."""
        mine, all_of_it = (values[max(position - _SHARE_HOURS, 0) : position] for values in (self._values, self._whole))
        both = np.isfinite(mine) & np.isfinite(all_of_it)
        total = float(all_of_it[both].sum())
        return min(float(mine[both].sum()) / total, 1.0) if total > 0 else 0.0

    def own_is_better(self, refit: Refit) -> bool:
        if self._own is None:
            model = refit(self.known.iloc[: self._positions[0]])
            rows = [model.starting(self.known.iloc[:p]).evaluate(MAX_LEAD)[0] for p in self._positions]
            self._own = np.array(rows)
        busy = float(np.nanmean(self.actual)) >= _BUSY
        error = wape if busy else _squared
        mine, shared = (
            np.mean([error(self.actual[:, :end], rows[:, :end]) for end in self._ends.values()])
            for rows in (self._own, self.mean)
        )
        return bool(mine < shared)

    def errors(self) -> Errors:
        pairs = {
            horizon: (mape(self.actual[:, :end], self.mean[:, :end]), wape(self.actual[:, :end], self.mean[:, :end]))
            for horizon, end in self._ends.items()
        }
        return {horizon: (_finite(pair[0]), _finite(pair[1])) for horizon, pair in pairs.items()}

    def spread(self) -> float:
        """The factor with the least pinball loss."""
        used = np.isfinite(self.actual)
        parts = _part(self.lent, self.shares[:, None], 1.0)
        truth, rows = self.actual[used][:, None], parts[used]
        levels = np.array(LEVELS)

        def loss(factor: float) -> float:
            error = truth - np.maximum(rows[:, :1] + factor * (rows[:, 1:] - rows[:, :1]), 0.0)
            return float(np.mean(np.maximum(levels * error, (levels - 1) * error)))

        return min(_SPREADS, key=lambda factor: (loss(factor), factor))


def _positions(count: int) -> list[int]:
    """Origins of the backtest of that many hours."""
    return [origin for fold in plan_folds(count) for origin in fold.origins]


def _part(rows: Floats, share: Floats | float, spread: float) -> Floats:
    """Mean and quantiles (last axis) of a share of the tickets: `intervals.thin` for many hours at once."""
    rate = np.asarray(share)[..., None]
    mean, whole = rate * rows[..., :1], rows[..., :1]
    chance = rate * (1 - rate) * whole
    distance = np.hypot(rate * (rows[..., 1:] - whole), _NORMAL * np.sqrt(chance))
    moved = np.where(_NORMAL == 0, rate * rows[..., 1:] - mean, np.copysign(distance, _NORMAL))
    quantiles = np.maximum.accumulate(np.maximum(mean + spread * moved, 0.0), axis=-1)
    return np.concatenate((mean, quantiles), axis=-1)


def _squared(actual: Floats, forecast: Floats) -> float:
    return float(np.nanmean((actual - forecast) ** 2))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
