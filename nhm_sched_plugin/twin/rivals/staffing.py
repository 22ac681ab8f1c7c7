"""Rules of thumb that staff for the load: square-root staffing, a seasonal forecast, a constant headroom."""

from __future__ import annotations

import math
from typing import Final

from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.twin.forecasts import SeasonalGuess
from nhm_sched_plugin.twin.rivals.base import STABILISATION_S, Autoscaler, Scene, ceiling, in_system, positive
from nhm_sched_plugin.types import SchedulingState

__all__ = ["Headroom", "Seasonal", "SquareRoot", "quick_square_root"]

_FIVE_MINUTES: Final = "arrivals_300s"


class SquareRoot(Autoscaler):
    """Square-root staffing, c = a + beta sqrt(a), on the offered load a as it is measured.

    a is the arrivals of the last five minutes times the mean service time, and at least what is in the system: tickets
    that wait are load too. `over` names another feature of arrivals (see `demand.ARRIVED`). Knob: beta, 0 or more.
    Halfin and Whitt (1981), "Heavy-traffic limits for queues with many exponential servers", Operations Research 29(3).
    """

    def __init__(
        self,
        scene: Scene,
        beta: float = 1.0,
        *,
        over: str = _FIVE_MINUTES,
        stabilisation_s: float = STABILISATION_S,
        name: str = "sqrt",
    ) -> None:
        super().__init__(name, scene, stabilisation_s=stabilisation_s)
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"sqrt: beta is {beta}; it must be 0 or more")
        self._beta, self._over = beta, over

    def desired(self, state: SchedulingState, now: float) -> int | None:
        service_s = (state.avg_task_duration_ms or 0.0) / 1000
        rate = state.features.get(self._over, 0.0) / ARRIVED[self._over]
        load = max(rate * service_s, in_system(state))
        return ceiling(load + self._beta * math.sqrt(load))


def quick_square_root(scene: Scene, beta: float = 1.0) -> SquareRoot:
    """The same on the last minute's arrivals, removing workers at once: cheaper on bursts that are short."""
    return SquareRoot(scene, beta, over="arrivals_60s", stabilisation_s=0.0, name="sqrt-quick")


class Seasonal(Autoscaler):
    """A seasonal forecast for when a worker ordered now is ready, and never fewer workers than tickets in the system.

    The forecast is the mean of the training part by hour of the week (from two weeks on; else of the day), times
    the mean service time there. Knob: the factor on the forecast. That is scheduled scaling as the cloud providers
    offer it (for example AWS "Scheduled scaling" over target tracking), with the schedule computed.
    """

    def __init__(self, scene: Scene, factor: float = 1.0, *, stabilisation_s: float = STABILISATION_S) -> None:
        super().__init__("seasonal", scene, stabilisation_s=stabilisation_s)
        self._guess = SeasonalGuess(scene.train)
        self._scale = positive(factor, "seasonal: the factor") * scene.train.service_mean_s / 3600

    def desired(self, state: SchedulingState, now: float) -> int | None:
        ahead = self._guess.rate(now + self.scene.startup_s)
        return ceiling(max(self._scale * ahead, in_system(state)))


class Headroom(Autoscaler):
    """A constant headroom over what is in the system: ceil((1 + h) x tickets waiting and running). Knob: h, 0 or more.

    The same as a utilisation target of 1 / (1 + h) that also sees the queue ("target tracking").
    """

    def __init__(self, scene: Scene, share: float = 0.15, *, stabilisation_s: float = STABILISATION_S) -> None:
        super().__init__("headroom", scene, stabilisation_s=stabilisation_s)
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"headroom: the share is {share}; it must be 0 or more")
        self._share = share

    def desired(self, state: SchedulingState, now: float) -> int | None:
        return ceiling((1 + self._share) * in_system(state))
