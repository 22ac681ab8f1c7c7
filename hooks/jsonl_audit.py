"""An observer: writes every decision and every outcome to a file, one JSON object a line, for people and log shippers.

Switch it on: copy this file and `jsonl_audit.toml` into your `hooks_dir` and say there where to write. It runs in the
background, after the fact, and changes nothing. When the file is full it becomes `FILE.1`, the one before `FILE.2`, and
so on; the oldest goes. Several processes may write to the same file.

Settings (TOML, read when the host starts):

    path = "/var/log/nhm-sched/audit.jsonl"     # `~` is your home; the folder is made
    max_mb = 100                                # turn the file over at this size
    keep = 5                                    # turned files to keep, besides the one being written

A decision's line starts with `"kind": "decision"`, an outcome's with `"kind": "outcome"`; `decision_id` joins them.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import math
import os
import threading
import tomllib
from pathlib import Path
from typing import Any

from nhm_sched_plugin import Decision, Outcome, SchedulingState, hookimpl

DEFAULTS: dict[str, Any] = {"path": "~/.local/share/nhm-sched/audit.jsonl", "max_mb": 100, "keep": 5}


class AuditFile:
    """Appends lines to a file and turns it over at a size. Raises `OSError` when the disk says no."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self.path, self.max_bytes, self.keep = path, max_bytes, keep
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n"
        # Opened anew each time: whoever turned the file over meanwhile, the line goes to the current one.
        with self._lock, open(self.path.with_name(f".{self.path.name}.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._size() + len(data) > self.max_bytes:
                self._turn_over()
            with open(self.path, "ab", buffering=0) as file:
                file.write(data)

    def _size(self) -> int:
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0

    def _turn_over(self) -> None:
        files = [self.path, *(self.path.with_name(f"{self.path.name}.{number}") for number in range(1, self.keep + 1))]
        if not self.keep:
            self.path.unlink(missing_ok=True)
        for older, newer in zip(files[:0:-1], files[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)


def open_audit_file(settings_path: Path) -> AuditFile:
    """The file that a settings file asks for. Raises `ValueError` that names file, key and value."""
    try:
        settings = tomllib.loads(settings_path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{settings_path}: settings cannot be read ({error.strerror}); copy it here, too") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{settings_path}: not valid TOML: {error}") from None
    for key in settings.keys() - DEFAULTS.keys():
        raise ValueError(f"{settings_path}: unknown key {key!r}; known here: {', '.join(DEFAULTS)}")
    settings = DEFAULTS | settings
    path, max_mb, keep = settings["path"], settings["max_mb"], settings["keep"]
    if not isinstance(path, str) or not path:
        raise ValueError(f"{settings_path}: path = {path!r}: expected the name of a file")
    if isinstance(max_mb, bool) or not isinstance(max_mb, int | float) or not 0 < max_mb < float("inf"):
        raise ValueError(f"{settings_path}: max_mb = {max_mb!r}: expected a number above 0")
    if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= 1000:
        raise ValueError(f"{settings_path}: keep = {keep!r}: expected a whole number from 0 to 1000")
    return AuditFile(Path(path).expanduser(), int(max_mb * 1_000_000), keep)


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")


def _state(state: SchedulingState | None) -> dict[str, Any] | None:
    """The fields that are known. A refused state may hold NaN, which JSON has no number for: it is written as text."""
    if state is None:
        return None
    values = {name: getattr(state, name) for name in state.__struct_fields__ if name != "features"}
    known = {name: value for name, value in values.items() if value is not None} | dict(state.features)
    return {name: value if math.isfinite(value) else str(value) for name, value in known.items()}


def decision_line(record: Decision) -> dict[str, Any]:
    said = record.recommendation
    return {
        "kind": "decision",
        "at": _utc(record.decided_at),
        "decision_id": record.decision_id,
        "ticket_id": record.ticket_id,
        "task_type": record.task_type,
        "risk_band": record.risk_band,
        "action": record.action,
        "parameters": dict(record.parameters),
        "source": record.source,
        "reason": record.reason,
        "arm": record.arm,
        "justification": record.justification,
        "confidence": record.confidence,
        "recommended": said and {"action": said.action, "parameters": dict(said.parameters), "source": said.source},
        "is_exploration": record.is_exploration,
        "vetoes": [{"guard": veto.guard, "reason": veto.reason} for veto in record.vetoes],
        "predicted_volume": record.forecast and record.forecast.predicted_volume,
        "policy_version": record.policy_version,
        "rollout_percentage": record.rollout_percentage,
        "state": _state(record.state),
    }


def outcome_line(record: Outcome, reward: float | None) -> dict[str, Any]:
    return {
        "kind": "outcome",
        "at": _utc(record.finished_at),
        "decision_id": record.decision_id,
        "ticket_id": record.ticket_id,
        "status": record.status,
        "sla_met": record.sla_met,
        "actual_duration_ms": record.actual_duration_ms,
        "reward": reward,
    }


audit = open_audit_file(Path(__file__).with_suffix(".toml"))


@hookimpl
def nhm_sched_after_decision(record: Decision) -> None:
    audit.append(decision_line(record))


@hookimpl
def nhm_sched_after_outcome(record: Outcome, reward: float | None) -> None:
    audit.append(outcome_line(record, reward))
