"""The learned policy in the registry: Q-table and planner calibration as one version of `scheduling_policy`.

A version's state holds both files as they are, letter by letter, with a SHA-256 digest of each in a tag. They belong
together: the table's actions come from that planner. Both are read as JSON; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.advice.snapshots import forget_learned
from nhm_sched_plugin.errors import ModelError, RegistryError
from nhm_sched_plugin.files import file_lock, keep_beside, replace_file
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import ModelVersion, NewVersion

if TYPE_CHECKING:
    from pathlib import Path

    from nhm_sched_plugin.settings import Settings

__all__ = ["MAX_ECE", "POLICY", "measured_lacks", "publish_policy", "register_policy"]

POLICY: Final = "scheduling_policy"
MAX_ECE: Final = 0.08
"""Calibration error of confidence above which a policy does not go to production."""
_TABLE, _PLANNER = "q_table", "planner"
_MADE_FOR: Final = ("startup_s", "sla_wait_s", "late_cost", "limits")
"""Tags that must be alike for two versions' figures to be compared."""


def register_policy(settings: Settings, *, decisions: int, seed: int, ece: float | None = None) -> str:
    """Keep the Q-table and the planner's calibration as a new version, alias `staging`; returns the version.

    `ece`: the calibration error of confidence on days held out, None where none were. Raises `ModelError` for a file
    that is missing or unusable, `RegistryError` for an unusable registry.
    """
    with file_lock(settings.q_table_path):
        raw = {_TABLE: _content(settings.q_table_path), _PLANNER: _content(settings.planner_path)}
    table = QTable.parse(raw[_TABLE], str(settings.q_table_path))
    model = DemandModel.parse(raw[_PLANNER], str(settings.planner_path))
    tags = {
        "decisions": str(decisions),
        "seed": str(seed),
        "startup_s": f"{model.startup_s:g}",
        "sla_wait_s": f"{model.sla_wait_s:g}",
        "late_cost": f"{model.late_cost:g}",
        "limits": settings.limits.model_dump_json(),
        **{_digest_tag(part): hashlib.sha256(content).hexdigest() for part, content in raw.items()},
    }
    metrics = {
        "planner_sla": model.sla,
        "planner_cost": model.cost,
        "states": float(len(table)),
        "updates": float(table.updates),
        **({} if ece is None else {"ece": ece}),
        **({} if table.gap is None else {"gap_closed": table.gap}),
    }
    state = msgspec.json.encode({part: content.decode() for part, content in raw.items()})
    new = NewVersion(name=POLICY, state=state, metrics=metrics, tags=tags, alias="staging")
    return Registry.of(settings).save_all([new])[0]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); run `nhm-sched learn` first") from None


def _digest_tag(part: str) -> str:
    return f"{part}_sha256"


def measured_lacks(found: ModelVersion, current: ModelVersion | None) -> list[str]:
    """What the policy's own figures lack: criteria 1 and, against the version in production, 2.

    Figures are compared between versions made for the same settings only; else an approval has to do.
    """
    missing = []
    error = found.metrics.get("ece")
    if error is None:
        missing.append("1. its confidence was not checked (fewer than five days of tickets): learn from more")
    elif error > MAX_ECE:
        missing.append(f"1. the calibration error of its confidence {error:.3f} is above {MAX_ECE:g}")
    if current is None:
        return missing
    other = [key for key in _MADE_FOR if found.tags.get(key) != current.tags.get(key)]
    if other:
        if not found.tags.get("approved_by"):
            missing.append(
                f"2. it cannot be compared with the policy in production, which was made for another "
                f"{', '.join(other)}: somebody has to approve it"
            )
        return missing
    rival = current.metrics.get("ece")
    if error is not None and rival is not None and error > rival:
        missing.append(f"2. the policy in production is better calibrated ({rival:.3f} against {error:.3f})")
    mine, theirs = _loss(found), _loss(current)
    if mine > theirs:
        missing.append(f"2. the planner in production is better on its own check ({theirs:.3f} against {mine:.3f})")
    return missing


def _loss(found: ModelVersion) -> float:
    """Calibration's own measure over the oracle's worker-hours, taking the oracle's workers to be always busy."""
    return found.metrics["planner_cost"] + float(found.tags["late_cost"]) * (1.0 - found.metrics["planner_sla"])


def publish_policy(settings: Settings, registry: Registry, found: ModelVersion) -> list[str]:
    """Write both files of a version to the snapshots that hosts follow; returns what a person should know.

    What was there is kept beside as `<name>.superseded-<n>`. Raises `ModelError` for a version that is damaged or was
    made for another pool, and where a file cannot be written; a damaged version changes nothing.
    """
    raw = _checked(settings, found, registry.read(found))
    notes = []
    try:
        # The planner first: a host that finds the new table finds its planner too.
        with file_lock(settings.q_table_path):
            for path, content in ((settings.planner_path, raw[_PLANNER]), (settings.q_table_path, raw[_TABLE])):
                if path.exists() and path.read_bytes() != content:
                    aside = keep_beside(path, "superseded")
                    notes.append(f"What was in {path.name} is kept as {aside}{_experience(aside)}.")
                replace_file(path, content)
    except OSError as error:
        raise ModelError(
            f"{error.filename or settings.q_table_path}: cannot be written ({error.strerror or error}); "
            "free space or fix permissions, then promote again"
        ) from None
    if not forget_learned(settings):
        notes.append(
            f"The cached copy stays: Redis did not answer. It ends within {settings.ml.caching.q_table_ttl} s."
        )
    return notes


def _experience(aside: Path) -> str:
    """How much of the real pool is in a table that was replaced."""
    try:
        table = QTable.load(aside)
    except ModelError:  # the planner's file, or a table that was unusable already
        return ""
    live = sum(cell.live for row in table.rows.values() for cell in row.values())
    return f", with what it learned from {live:,} rewards of the real pool" if live else ""


def _checked(settings: Settings, found: ModelVersion, state: dict[str, Any]) -> dict[str, bytes]:
    """Both files of a version, if each is what was registered, can be read and is for this pool."""
    name, raw = f"{found.name} version {found.version}", {}
    for part in (_TABLE, _PLANNER):
        text = state.get(part)
        if not isinstance(text, str):
            raise RegistryError(f"{name} holds no {part}: register it with nhm-sched learn --register")
        raw[part] = text.encode()
        if hashlib.sha256(raw[part]).hexdigest() != found.tags.get(_digest_tag(part)):
            raise ModelError(f"{name}: its {part} does not match its digest; learn and register anew")
    QTable.parse(raw[_TABLE], f"{name}, {_TABLE}")
    model = DemandModel.parse(raw[_PLANNER], f"{name}, {_PLANNER}")
    asked = settings.planner
    if (model.startup_s, model.sla_wait_s) != (asked.startup_s, asked.sla_wait_s):
        raise ModelError(
            f"{name} was made for startup_s {model.startup_s:g} and sla_wait_s {model.sla_wait_s:g}, but planner has "
            f"{asked.startup_s:g} and {asked.sla_wait_s:g}: hosts could not use it; run nhm-sched learn --register"
        )
    return raw
