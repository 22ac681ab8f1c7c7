"""Kubernetes' autoscalers: the HorizontalPodAutoscaler on utilisation, and on a queue's length as KEDA feeds it."""

from __future__ import annotations

import math
from typing import Final

from nhm_sched_plugin.twin.rivals.base import STABILISATION_S, Autoscaler, Scene, ceiling, in_system, positive
from nhm_sched_plugin.twin.simulator import STARTING
from nhm_sched_plugin.types import SchedulingState

__all__ = ["SYNC_S", "TOLERANCE", "Hpa", "Keda", "hpa_desired"]

TOLERANCE: Final = 0.1
"""`--horizontal-pod-autoscaler-tolerance`: closer to its target than this, a metric changes nothing."""
SYNC_S: Final = 15.0
"""`--horizontal-pod-autoscaler-sync-period`."""
_STEP_SHARE: Final = 1.0
_STEP_WORKERS: Final = 4
"""The default `scaleUp` policies: 100 % or 4 pods within 15 s, whichever is more."""


def hpa_desired(
    busy: float, ready: int, starting: int, target: float, *, missing: int = 0, tolerance: float = TOLERANCE
) -> int | None:
    """Replicas by the documented algorithm: ceil(replicas x current utilisation / target utilisation).

    `busy` is the summed utilisation of the `ready` workers with a metric (in workers), `starting` are not ready and
    `missing` ready without a metric. Workers that start count as 0 % when scaling up and not at all when scaling down;
    a missing metric as 0 % when scaling up and as 100 % when scaling down. When that turns the direction, or what
    remains lies within the tolerance, nothing changes. None without any metric.

    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/#algorithm-details, and the same in
    pkg/controller/podautoscaler/replica_calculator.go.
    """
    if not ready:
        return None
    current = ready + starting + missing
    ratio = busy / ready / target
    rebalanced = starting if ratio > 1 else 0
    if not rebalanced and not missing:
        return current if abs(1 - ratio) <= tolerance else ceiling(ratio * ready)
    counted = ready + missing + rebalanced
    again = (busy + (missing if ratio < 1 else 0)) / counted / target
    if abs(1 - again) <= tolerance or (ratio < 1 < again) or (again < 1 < ratio):
        return current
    replicas = ceiling(again * counted)
    turned = replicas > current if again < 1 else replicas < current
    return current if turned else replicas


class _Synced(Autoscaler):
    """Looks every 15 seconds, or at control ticks where these are rarer, and doubles (or adds four) at most."""

    def __init__(self, name: str, scene: Scene, *, stabilisation_s: float = STABILISATION_S) -> None:
        super().__init__(name, scene, stabilisation_s=stabilisation_s)
        self._next = -math.inf

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        if now < self._next:
            return None
        self._next = now + SYNC_S
        return super().on_tick(state, now)

    def most(self, current: int) -> int:
        return max(math.ceil(current * (1 + _STEP_SHARE)), current + _STEP_WORKERS)


class Hpa(_Synced):
    """HorizontalPodAutoscaler on the utilisation of ready workers, with every default of Kubernetes.

    Knob: the target utilisation, in (0, 1]. The state has one figure for all ready workers, so none is ever missing.
    From 0.91 on it can never grow, as in Kubernetes: full workers are then within the tolerance.
    """

    def __init__(self, scene: Scene, target: float = 0.7, *, tolerance: float = TOLERANCE) -> None:
        super().__init__("hpa", scene)
        if positive(target, "hpa: the target utilisation") > 1:
            raise ValueError(f"hpa: the target utilisation is {target}; it must be at most 1")
        self._target, self._tolerance = target, tolerance

    def desired(self, state: SchedulingState, now: float) -> int | None:
        if state.resource_cpu_avg is None:
            return None
        ready, starting = round(state.active_workers or 0.0), round(state.features.get(STARTING, 0.0))
        return hpa_desired(state.resource_cpu_avg * ready, ready, starting, self._target, tolerance=self._tolerance)


class Keda(_Synced):
    """KEDA's way: an HPA on an external metric with a target average value, ceil(tickets in the system / target).

    Knob: tickets per worker. Waiting and running tickets count, as KEDA's queue scalers do with unacknowledged
    messages. Stabilisation and steps are the HPA's. Its tolerance is off by default here: with it a worker's tenth is
    missing where every ticket needs a worker, which serves worse (give `tolerance` 0.1 for Kubernetes' default).

    https://keda.sh/docs/latest/concepts/scaling-deployments/ and GetExternalPerPodMetricReplicas in Kubernetes'
    replica_calculator.go.
    """

    def __init__(self, scene: Scene, per_worker: float = 1.0, *, tolerance: float = 0.0) -> None:
        super().__init__("keda", scene)
        self._per_worker, self._tolerance = positive(per_worker, "keda: tickets per worker"), tolerance

    def desired(self, state: SchedulingState, now: float) -> int | None:
        current = round((state.active_workers or 0.0) + state.features.get(STARTING, 0.0))
        tickets = in_system(state)
        if current and abs(1 - tickets / (self._per_worker * current)) <= self._tolerance:
            return current
        return ceiling(tickets / self._per_worker)
