"""Is a training needed? For schedules that ask often: `nhm-sched train --if-needed`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting.table import read_table, slice_key

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["MAX_AGE_DAYS", "RetrainRequest", "answered", "asked", "marker", "why_now"]

MAX_AGE_DAYS: Final = 7.0
_DAY: Final = 86_400.0


class RetrainRequest(msgspec.Struct, kw_only=True):
    """What a host leaves in `<data_dir>/snapshots/retrain.json` when the load leaves its forecasts behind."""

    requested_at: float = 0.0
    """Unix seconds."""
    slice: str = ""
    """Slice key."""
    reason: str = ""
    statistic: float | None = None


def marker(settings: Settings) -> Path:
    """Where a host asks for a training."""
    return settings.forecast_table_path.with_name("retrain.json")


def why_now(settings: Settings, now: float, max_age_days: float = MAX_AGE_DAYS) -> str | None:
    """Why a training is needed, in a few words; None if it is not.

    That is: there is no table or an unusable one, a host asked for it, or the models are older than `max_age_days`.
    """
    try:
        table = read_table(settings.forecast_table_path)
    except ModelError as error:
        return f"no forecast table yet: {error}" if not settings.forecast_table_path.exists() else str(error)
    request = _request(settings)
    if request is not None:
        where = (request.slice or "all tickets").replace("|", "/")
        return f"a host asked for it: {request.reason or 'no reason given'} ({where})"
    lead = table.slices.get(slice_key())
    trained = min(row.trained_at for row in table.slices.values()) if lead is None else lead.trained_at
    age = (now - trained) / _DAY
    return f"the model is {age:.1f} days old (allowed: {max_age_days:g})" if age > max_age_days else None


def _request(settings: Settings) -> RetrainRequest | None:
    raw = asked(settings)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=RetrainRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return RetrainRequest(reason="the request cannot be read")


def asked(settings: Settings) -> bytes | None:
    """The request as it stands, to be handed to `answered` when the training is over; None without one."""
    try:
        return marker(settings).read_bytes()
    except OSError:
        return None


def answered(settings: Settings, before: bytes | None, trained: Collection[str] | None) -> None:
    """Take away the request that stood there `before` the training; one that came meanwhile stays.

    `trained`: the slices that were trained, None for all of them.
    """
    request = _request(settings)
    if request is not None and asked(settings) == before and (trained is None or request.slice in trained):
        marker(settings).unlink(missing_ok=True)
