"""Forecasting: how many tickets will arrive. Lazy: importing this package costs next to nothing.

Hosts serve `SnapshotForecaster` from a finished table; `LoadForecaster` fits models and needs the `training` extra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nhm_sched_plugin.forecasting.forecaster import LoadForecaster
    from nhm_sched_plugin.forecasting.intervals import bottleneck_probability
    from nhm_sched_plugin.forecasting.table import (
        ForecastTable,
        SliceForecast,
        SnapshotForecaster,
        read_table,
        slice_key,
        write_table,
    )

__all__ = [
    "ForecastTable",
    "LoadForecaster",
    "SliceForecast",
    "SnapshotForecaster",
    "bottleneck_probability",
    "read_table",
    "slice_key",
    "write_table",
]

_HOME: Final = {"LoadForecaster": "forecaster", "bottleneck_probability": "intervals"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, 'table')}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
