"""The two gates of the decision flow: is there enough load to ask the policy, and is its answer sure enough?"""

from __future__ import annotations

import math
from typing import Final

from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.types import SchedulingState

__all__ = ["GATE_UTILISATION", "MS_PER_HOUR", "capacity", "confident", "opens", "volume_threshold"]

MS_PER_HOUR: Final = 3600e3
GATE_UTILISATION: Final = 0.8
"""Share of the pool's capacity above which the load deserves the policy's attention."""


def capacity(state: SchedulingState) -> float | None:
    """Tickets that the pool can finish in an hour: `active_workers * 3600e3 / avg_task_duration_ms`.

    None when either is unknown, negative, or the duration is zero.
    """
    workers, duration_ms = state.active_workers, state.avg_task_duration_ms
    if type(workers) is float and type(duration_ms) is float and workers >= 0 and 1 <= duration_ms < math.inf:
        rate = workers * MS_PER_HOUR / duration_ms  # the usual case, on the hot path
        return rate if rate < math.inf else None
    workers, duration_ms = known(workers), known(duration_ms)
    if workers is None or duration_ms is None or workers < 0 or duration_ms <= 0:
        return None
    return known(workers * MS_PER_HOUR / duration_ms)


def volume_threshold(state: SchedulingState, configured: float | None = None) -> float | None:
    """Tickets per hour above which the policy is asked: `configured`, else 80 % of the pool's capacity.

    None when nothing is configured and the capacity cannot be computed from the state.
    """
    if configured is not None:
        return configured
    limit = capacity(state)
    return None if limit is None else GATE_UTILISATION * limit


def opens(predicted_volume: float | None, state: SchedulingState, configured: float | None = None) -> bool:
    """Whether the policy is asked at all.

    It is when `predicted_volume` (tickets in the hour at the horizon) exceeds the threshold, and also when more
    tickets wait than there are workers: a backlog above one worker-round is load, whatever the forecast says.

    An unknown capacity opens the gate: "light load" cannot be told without it, and the confidence gate and the
    guards still stand between the policy and the pool.
    """
    threshold = volume_threshold(state, configured)
    if threshold is None:
        return True
    volume = known(predicted_volume)
    if volume is not None and volume > threshold:
        return True
    queue, workers = known(state.queue_depth), known(state.active_workers)
    return queue is not None and workers is not None and queue > workers


def confident(confidence: float | None, threshold: float) -> bool:
    """Whether an answer of this confidence is followed: `round(confidence, 6) >= threshold`.

    Rounded because a float32 on the wire turns 0.7 into 0.69999999. Unknown, NaN and anything outside [0, 1] is
    no confidence at all, so the answer is False, even with a threshold of 0.
    """
    value = known(confidence)
    return value is not None and 0.0 <= value <= 1.0 and round(value, 6) >= threshold
