"""One decision with every hook call written down, for `nhm-sched hooks trace`."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nhm_sched_plugin.cli.show import plain
from nhm_sched_plugin.host import SchedulerHost
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.settings_ml import CachingSettings
from nhm_sched_plugin.types import Decision, Ticket

__all__ = ["trace_decision"]


class _Calls(logging.Handler):
    """Collects what the hook managers log about each call while `hooks.trace` is on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.rows: list[tuple[float, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not isinstance(record.args, tuple) or len(record.args) != 5:
            return
        hook, _, plugins, answer, took = record.args
        assert isinstance(took, float) and isinstance(plugins, list)  # noqa: S101, PT018 - as the managers log them
        row = {
            "hook": hook,
            "plugins": ", ".join(plugins),
            "microseconds": took,
            "answer": _simple(answer),
        }
        # Logged when a call ends; in the order in which they began an outer call comes before those inside it.
        self.rows.append((record.__dict__["started"], row))


def trace_decision(
    settings: Settings, ticket: Ticket | None, state: Mapping[str, float]
) -> tuple[Decision, list[dict[str, Any]]]:
    """The decision, and the hook calls that made it, in order of their start: hook, plugins, microseconds, answer.

    Works on copies of the snapshots in a temporary folder, without recording and without the listener, so that
    nothing of the user's changes. The plugins' own hooks run as always.
    """
    calls = _Calls()
    log = logging.getLogger("nhm_sched_plugin.extension")
    before = log.level, log.propagate
    with (
        tempfile.TemporaryDirectory(prefix="nhm-sched-trace-") as folder,
        SchedulerHost.from_config(_isolated(settings, Path(folder))) as host,
    ):
        log.addHandler(calls)
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            decision = host.decide(ticket, state)
            host.flush()  # what observes a decision is called in the background
        finally:
            log.removeHandler(calls)
            log.setLevel(before[0])
            log.propagate = before[1]
    return decision, [row for _, row in sorted(calls.rows, key=lambda timed: timed[0])]


def _simple(answer: Any) -> Any:
    """An answer as JSON values, without the fields that say nothing."""
    if isinstance(answer, list):
        return [_simple(part) for part in answer]
    if isinstance(answer, msgspec.Struct):
        return {name: value for name, value in plain(answer).items() if value not in (None, {}, [], "")}
    try:
        return plain(answer)
    except Exception:  # noqa: BLE001 - whatever a third-party hook answers
        return repr(answer)


def _isolated(settings: Settings, folder: Path) -> Settings:
    snapshots = settings.forecast_table_path.parent
    if snapshots.is_dir():
        shutil.copytree(snapshots, folder / "snapshots")
    return settings.model_copy(
        update={
            "data_dir": folder,
            "ml": settings.ml.model_copy(update={"caching": CachingSettings(enabled=False)}),
            "hooks": settings.hooks.model_copy(update={"trace": True}),
            "recording": settings.recording.model_copy(update={"enabled": False}),
            "metrics": settings.metrics.model_copy(update={"enabled": False}),
        }
    )
