"""From staging to production: four criteria, checked and named.

1. Backtest MAPE under the limit. 2. No worse than the model in production on the same backtest. 3. An A/B or switchback
test won at p < 0.05 (tag `experiment_p_value`, written by `note_experiment`). 4. Somebody approved it. The very first
model needs 1 and 4 only.

For the policy, `scheduling_policy`, the calibration error of its confidence takes the place of MAPE; promoting it also
publishes its files (`policy_model`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.errors import RegistryError
from nhm_sched_plugin.training.policy_model import POLICY, measured_lacks, publish_policy
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import ModelVersion

if TYPE_CHECKING:
    from nhm_sched_plugin.experiment.arms import Comparison
    from nhm_sched_plugin.settings import Settings

__all__ = ["Promoted", "approve", "missing_criteria", "note_experiment", "promote"]

SIGNIFICANCE: Final = 0.05
P_VALUE_TAG: Final = "experiment_p_value"


class Promoted(ModelVersion, frozen=True, kw_only=True):
    """A version that is in production now."""

    notes: list[str] = msgspec.field(default_factory=list)
    """What a person should know, a sentence each."""


def approve(settings: Settings, name: str, version: str, by: str, clock: Callable[[], float] = time.time) -> None:
    """Note who approved a version, and when. Raises `RegistryError` for an unknown version or a blank name."""
    if not by.strip():
        raise RegistryError(f"approval of {name} version {version} needs a name: --by WHO")
    registry = Registry.of(settings)
    registry.tag(name, version, "approved_by", by.strip())
    registry.tag(name, version, "approved_at", f"{clock():.0f}")


def note_experiment(
    settings: Settings,
    name: str,
    version: str,
    reward: Comparison,
    sla: Comparison,
    clock: Callable[[], float] = time.time,
) -> float:
    """Note at a version that treatment did better than control while it served; returns the p-value noted.

    It is the always-valid one, so that looking again every day until it is small is no cheating. Raises `RegistryError`
    for an unknown version, too little data, or a treatment that did no better or cost SLA; then nothing is noted.
    """
    following = reward.sequential
    why = reward.reason or ("" if following is None else following.reason)
    if not why and reward.difference is not None and reward.difference <= 0:
        why = f"treatment did no better than control ({reward.difference:+.4f} in mean reward)"
    if not why and sla.high is not None and sla.high < 0:
        why = f"treatment cost SLA ({sla.low:+.4f} to {sla.high:+.4f})"
    if why or following is None or following.p_value is None:
        raise RegistryError(f"nothing to note at {name} version {version}: {why or 'the arms were not compared'}")
    registry = Registry.of(settings)
    registry.tag(name, version, P_VALUE_TAG, f"{following.p_value:.6g}")
    registry.tag(name, version, "experiment_difference", f"{reward.difference:.6g}")
    registry.tag(name, version, "experiment_at", f"{clock():.0f}")
    return following.p_value


def promote(settings: Settings, name: str, version: str) -> Promoted:
    """Give the version the alias `production`; the policy's files are published first.

    Raises `RegistryError` that lists every criterion it misses, and what `publish_policy` does.
    """
    registry = Registry.of(settings)
    found = registry.find(name, version)
    if found is None:
        registry.load(name, version)  # raises, and says what there is
        raise RegistryError(f"model {name!r} has no version {version!r}")
    missing = missing_criteria(found, registry.find(name, "production"), settings.ml.training.max_mape)
    if missing:
        raise RegistryError(f"{name} version {version} cannot go to production: " + "; ".join(missing))
    notes = publish_policy(settings, registry, found) if name == POLICY else []
    registry.alias(name, version, "production")
    return Promoted(**msgspec.structs.asdict(registry.find(name, version) or found), notes=notes)


def missing_criteria(found: ModelVersion, current: ModelVersion | None, max_mape: float) -> list[str]:
    """What a version lacks to go to production, one line each; empty when it may."""
    rival = None if current is None or current.version == found.version else current
    missing = measured_lacks(found, rival) if found.name == POLICY else _backtest_lacks(found, rival, max_mape)
    if rival is not None and not _significant(found.tags.get(P_VALUE_TAG)):
        missing.append(
            f"3. no A/B or switchback test with p < {SIGNIFICANCE:g} is recorded: "
            f"nhm-sched experiment result {found.name} {found.version}"
        )
    if not found.tags.get("approved_by"):
        missing.append(f"4. nobody approved it: nhm-sched approve {found.name} {found.version} --by WHO")
    return missing


def _backtest_lacks(found: ModelVersion, current: ModelVersion | None, max_mape: float) -> list[str]:
    missing = []
    error, rival = found.metrics.get("mape"), found.metrics.get("production_mape")
    if error is None:
        missing.append("1. it has no backtest MAPE (too little history)")
    elif error >= max_mape:
        missing.append(f"1. its MAPE {error:.1f} % is not under {max_mape:g} %")
    if current is not None:
        if rival is None:
            missing.append("2. it was not measured against the model in production: train again")
        elif error is not None and error > rival:
            missing.append(f"2. the model in production is better on the same backtest ({rival:.1f} %)")
    return missing


def _significant(text: str | None) -> bool:
    try:
        return text is not None and 0 <= float(text) < SIGNIFICANCE
    except ValueError:
        return False
