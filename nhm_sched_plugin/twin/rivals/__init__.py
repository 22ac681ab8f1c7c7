"""What a user could run instead of the plugin: the rivals of a replay, each with its source and its one knob.

All are `Controller`s that see a `SchedulingState` and nothing else; `tuning` finds a knob on the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from nhm_sched_plugin.twin.rivals.base import Autoscaler, Scene
from nhm_sched_plugin.twin.rivals.kubernetes import Hpa, Keda
from nhm_sched_plugin.twin.rivals.staffing import Headroom, Seasonal, SquareRoot, quick_square_root

__all__ = ["RIVALS", "Rival", "Scene"]


class Rival(NamedTuple):
    """One way of scaling with one knob."""

    make: Callable[[Scene, float], Autoscaler]
    """Raises `ValueError` for a knob that makes no sense."""
    knob: str
    """What the knob is, in words."""
    values: tuple[float, ...]
    """Of the knob, from the cheapest to the one with most room to spare."""


RIVALS: Final[Mapping[str, Rival]] = MappingProxyType(
    {
        "hpa": Rival(Hpa, "target utilisation", (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)),
        "keda": Rival(Keda, "tickets per worker", (1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.45, 0.3)),
        "sqrt": Rival(SquareRoot, "beta", (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0)),
        "sqrt-quick": Rival(quick_square_root, "beta", (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0)),
        "seasonal": Rival(Seasonal, "factor on the forecast", (0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.5, 6.0)),
        "headroom": Rival(Headroom, "headroom", (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.25, 2.5)),
    }
)
"""The rivals by name; `replay` also knows `plugin`, `planner`, `rules`, `static` and `oracle`."""
