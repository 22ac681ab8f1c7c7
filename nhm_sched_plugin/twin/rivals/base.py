"""What the rivals share: the scene they play in, what they can measure, and Kubernetes' stabilisation window."""

from __future__ import annotations

import abc
import math
import operator
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.simulator import STARTING
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import SchedulingState

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.twin.forecasts import RollingForecasts

__all__ = ["STABILISATION_S", "Autoscaler", "Highest", "Scene", "ceiling", "in_system", "positive"]

STABILISATION_S: Final = 300.0
"""Kubernetes' default for scaling down: the highest recommendation of the last five minutes counts."""
_ROUNDING: Final = 1e-9


class Scene(NamedTuple):
    """Where a controller plays: what it may know before the tickets come."""

    train: Trace
    """The tickets before; everything that is learned is learned from them."""
    tick_s: float = 15.0
    startup_s: float = 120.0
    sla_wait_s: float = 60.0
    min_workers: int = 1
    max_workers: int = 1000
    seed: int = 0
    settings: Settings | None = None
    """The replay's settings, for controllers that need more of them."""
    classes: tuple[TicketClass, ...] = ()
    """Of tickets with SLAs and priorities of their own."""
    forecasts: Callable[[], RollingForecasts | None] | None = None
    """Makes the forecasts that the plugin and the rules get too: fitted on `train`, moved by `advance(now)`."""


def ceiling(value: float) -> int:
    """The next whole number up; what is only rounding above one does not count: 14 / 0.7 is 20."""
    return math.ceil(value - _ROUNDING)


def positive(value: float, what: str) -> float:
    """The value. Raises `ValueError` when it is not a number above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{what} is {value}; it must be a number above 0")
    return value


def in_system(state: SchedulingState) -> float:
    """Tickets waiting and running. What workers on their way out still do is not counted: it needs no other worker."""
    return (state.queue_depth or 0.0) + (state.active_workers or 0.0) * (state.resource_cpu_avg or 0.0)


class Highest:
    """The highest value of the last `window_s` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._kept: deque[tuple[float, int]] = deque()  # falling: what a later, higher value outlives is dropped

    def add(self, now: float, value: int) -> int:
        """Note a value; the highest one that is not older than the window."""
        kept = self._kept
        while kept and kept[-1][1] <= value:
            kept.pop()
        kept.append((now, value))
        while kept[0][0] < now - self._window_s:
            kept.popleft()
        return kept[0][1]


class Autoscaler(abc.ABC):
    """A controller that computes a number of workers, and removes workers only when it was lower for a while.

    Subclasses implement `desired`. Growth is immediate; a removal goes to the highest number desired within
    `stabilisation_s` (0: at once). Results keep to the scene's limits.
    """

    watches_tickets = False

    def __init__(self, name: str, scene: Scene, *, stabilisation_s: float = STABILISATION_S) -> None:
        self.name = name
        self.scene = scene
        self._highest = Highest(stabilisation_s)

    @abc.abstractmethod
    def desired(self, state: SchedulingState, now: float) -> int | None:
        """Workers to have in this state; None: no opinion."""

    def most(self, current: int) -> int:
        """How many workers may be ordered at once, those present included."""
        return self.scene.max_workers

    # Rivals act at control ticks alone.
    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...  # noqa: B027

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...  # noqa: B027

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        current = round((state.active_workers or 0.0) + state.features.get(STARTING, 0.0))
        asked = self.desired(state, now)
        wanted = current if asked is None else operator.index(asked)
        highest = self._highest.add(now, wanted)
        target = min(wanted, self.most(current)) if wanted >= current else min(highest, current)
        return max(self.scene.min_workers, min(target, self.scene.max_workers))
