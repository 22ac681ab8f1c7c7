"""Training: fit every slice, keep the models in a registry, publish the forecast table. Batch only, never in a host."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nhm_sched_plugin.training.pipeline import TrainingReport, TrainingRow, republish, train
    from nhm_sched_plugin.training.promotion import approve, promote
    from nhm_sched_plugin.training.registry import Registry
    from nhm_sched_plugin.training.versions import ModelVersion, model_name

__all__ = [
    "ModelVersion",
    "Registry",
    "TrainingReport",
    "TrainingRow",
    "approve",
    "model_name",
    "promote",
    "republish",
    "train",
]

_HOME: Final = {
    "ModelVersion": "versions",
    "Registry": "registry",
    "approve": "promotion",
    "model_name": "versions",
    "promote": "promotion",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'pipeline')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
