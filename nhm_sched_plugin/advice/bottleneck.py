"""P(tickets in the hour at the horizon > capacity), filled into a forecast for the pool that the host showed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import msgspec

from nhm_sched_plugin.decision.gate import MS_PER_HOUR
from nhm_sched_plugin.forecasting.intervals import LEVELS, bottleneck_probability
from nhm_sched_plugin.types import Forecast, SchedulingState

__all__ = ["Bottlenecks"]

_BELOW = (0.0, *LEVELS)


class Bottlenecks:
    """`filled(forecast, state)` is the forecast with its `bottleneck_probability`.

    Forecasts are asked for again and again with the same few capacities, so the last answer and the quantiles of the
    last forecast are kept. Thread-safe: what is kept is replaced as a whole.
    """

    def __init__(self) -> None:
        self._last: tuple[Any, float, Forecast] | None = None
        self._curve: tuple[Any, tuple[float, ...]] | None = None

    def filled(self, forecast: Forecast, state: SchedulingState) -> Forecast:
        """The same forecast where the capacity is unknown or the forecast brings no quantiles or its own probability.

        Capacity is `active_workers * 3600e3 / avg_task_duration_ms` tickets an hour; `state` has numbers >= 0 or None.
        """
        workers, duration_ms = state.active_workers, state.avg_task_duration_ms
        if workers is None or not duration_ms:
            return forecast
        capacity = workers * MS_PER_HOUR / duration_ms
        last = self._last
        if last is not None and last[0] is forecast and last[1] == capacity:
            return last[2]
        if not forecast.points or forecast.bottleneck_probability is not None:
            return forecast
        probability = self._exceeds(forecast, capacity)
        if probability is None:
            return forecast
        answer = msgspec.structs.replace(forecast, bottleneck_probability=probability)
        self._last = (forecast, capacity, answer)
        return answer

    def _exceeds(self, forecast: Forecast, capacity: float) -> float | None:
        """As `intervals.bottleneck_probability`, which costs more than all else here."""
        curve = self._curve
        if curve is None or curve[0] is not forecast:
            quantiles: Mapping[float, float] = forecast.points[-1].quantiles
            try:
                ends = (0.0, *(quantiles[level] for level in LEVELS))
            except KeyError:
                return None  # somebody else's forecaster has other levels
            curve = self._curve = (forecast, ends)
        values = curve[1]
        index = bisect_right(values, capacity)
        if 0 < index < len(values) and values[index - 1] > 0 and math.isfinite(capacity):
            low, high = values[index - 1], values[index]
            below, above = _BELOW[index - 1], _BELOW[index]
            return 1.0 - (below + (above - below) * (capacity - low) / (high - low))
        return bottleneck_probability(dict(zip(LEVELS, values[1:], strict=True)), capacity)
