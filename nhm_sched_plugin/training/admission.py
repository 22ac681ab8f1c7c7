"""Which model serves a horizon after a training: the new one, the one before, or the new one as a mere baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.training.borrowing import ShareOfParent
from nhm_sched_plugin.training.data import SliceData
from nhm_sched_plugin.training.fitting import Fitted
from nhm_sched_plugin.training.publish import Served, served_model
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import Head, NewVersion, model_name

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["BASELINE", "FAILED", "KEPT", "STAGED", "TrainingRow", "admit", "incumbent"]

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


class _Verdict(msgspec.Struct):
    row: TrainingRow
    served: Served | None
    new: NewVersion | None = None


def admit(
    settings: Settings,
    registry: Registry,
    heads: Mapping[str, Head],
    slices: Sequence[SliceData],
    fitted: Mapping[str, Fitted],
    horizons: Sequence[int],
) -> tuple[list[TrainingRow], dict[str, list[Served]]]:
    """Register what came of the fits, all at once; returns the report's rows, and what serves each slice now."""
    verdicts = []
    for entry in slices:
        raw = msgspec.json.encode(fitted[entry.key].state)
        verdicts += [_judge(settings, registry, heads, entry, fitted[entry.key], h, raw) for h in horizons]
    new = [verdict for verdict in verdicts if verdict.new is not None]
    versions = registry.save_all([verdict.new for verdict in new if verdict.new is not None], heads)
    for verdict, version in zip(new, versions, strict=True):
        verdict.row = msgspec.structs.replace(verdict.row, version=version)
        assert verdict.served is not None  # noqa: S101 - what is new is served
        verdict.served = msgspec.structs.replace(verdict.served, version=version)
    served: dict[str, list[Served]] = {}
    for verdict in verdicts:
        if verdict.served is not None:
            served.setdefault(verdict.row.slice, []).append(verdict.served)
    return [verdict.row for verdict in verdicts], served


def _judge(
    settings: Settings,
    registry: Registry,
    heads: Mapping[str, Head],
    entry: SliceData,
    fitted: Fitted,
    horizon: int,
    raw: bytes,
) -> _Verdict:
    row = TrainingRow(
        name=model_name(horizon, entry.task_type, entry.risk_band),
        slice=entry.key,
        horizon_minutes=horizon,
        samples=fitted.samples,
        seconds=fitted.seconds,
        status=FAILED,
        error=fitted.error,
    )
    if fitted.state is None:
        known = int(entry.series.notna().sum())
        return _Verdict(msgspec.structs.replace(row, samples=known), incumbent(registry, heads, entry, horizon))
    relative, weighted = fitted.errors.get(horizon, (None, None))
    row = msgspec.structs.replace(
        row,
        method=fitted.methods[horizon],
        mape=relative,
        wape=weighted,
        error="; ".join(f"{model}: {why}" for model, why in fitted.failures.items()),
    )
    good = relative is not None and relative < settings.ml.training.max_mape  # no backtest possible is not good
    before = None if good else incumbent(registry, heads, entry, horizon)
    if before is not None and before.trusted:
        return _Verdict(msgspec.structs.replace(row, status=KEPT, version=before.version), before)
    alias = "staging" if good else ""
    row = msgspec.structs.replace(row, status=STAGED if good else BASELINE, alias=alias)
    model = ShareOfParent.from_state(fitted.state) if fitted.borrows else None
    served = Served(horizon=horizon, version="", trusted=good, model=model, row=fitted.row)
    return _Verdict(row, served, _version(entry, fitted, row, raw))


def _version(entry: SliceData, fitted: Fitted, row: TrainingRow, raw: bytes) -> NewVersion:
    metrics = {"mape": row.mape, "wape": row.wape, "production_mape": fitted.incumbents.get(row.horizon_minutes)}
    known = {key: value for key, value in metrics.items() if value is not None and math.isfinite(value)}
    tags = {"slice": entry.key, "history_ends": str(entry.series.index[-1]), "method": row.method}
    return NewVersion(
        name=row.name, state=raw, metrics={**known, "samples": float(fitted.samples)}, tags=tags, alias=row.alias
    )


def incumbent(registry: Registry, heads: Mapping[str, Head], entry: SliceData, horizon: int) -> Served | None:
    """The model that serves already; None if there is none, or it cannot be read any more."""
    try:
        return served_model(registry, heads, entry, horizon)
    except NhmSchedError:
        return None
