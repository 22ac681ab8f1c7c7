"""The one discretisation of a scheduling state, for the live path, training and simulation alike.

Four dimensionless ratios, so that a table learned on a pool of 10 serves a pool of 1000:

    u  utilisation at the forecast: predicted tickets/h x mean service time / workers
       0: < 0.5   1: < 0.8   2: < 1.0   3: >= 1.0
       Without a predicted load or a service time, `resource_cpu_avg` stands in; without that: u?
    b  backlog per worker        0: < 0.1   1: < 1   2: >= 1 (a full worker-round)   b?: queue unknown
    s  SLA compliance            0: < 0.95  1: >= 0.95                               s?: unknown
    t  trend, load 6 h / load 1 h   0: < 0.8 falling   1: flat, also when unknown   2: > 1.25 rising

5 x 4 x 3 x 3 = 180 keys such as `u2-b0-s1-t1`, and `no-metrics` when the number of workers is unknown. A number that is
NaN, infinite or negative counts as unknown.
"""

from __future__ import annotations

from typing import Final

from nhm_sched_plugin.types import SchedulingState

__all__ = ["ALL_KEYS", "NO_METRICS", "SLA_TARGET", "state_key"]

NO_METRICS: Final = "no-metrics"
_INF: Final = float("inf")
_MS_PER_HOUR: Final = 3_600_000.0
SLA_TARGET: Final = 0.95
"""The specification's compliance goal."""
_U, _B, _S, _T = "0123?", "012?", "01?", "012"

# A lookup instead of string formatting: this runs on the hot path.
_KEYS: Final = tuple(tuple(tuple(tuple(f"u{u}-b{b}-s{s}-t{t}" for t in _T) for s in _S) for b in _B) for u in _U)
ALL_KEYS: Final = frozenset(key for us in _KEYS for bs in us for ss in bs for key in ss) | {NO_METRICS}


def state_key(state: SchedulingState, forecast_volume: float | None = None) -> str:
    """The key of a state. `forecast_volume` (tickets in the next hour) is used when the state has no predicted load.

    Total: never raises on None, NaN, infinities or negative numbers.
    """
    workers = state.active_workers
    if workers is None or not 0 <= workers < _INF:
        return NO_METRICS
    if workers < 1:
        workers = 1.0
    load = state.predicted_load_1h
    if load is None or not 0 <= load < _INF:
        load = forecast_volume if forecast_volume is not None and 0 <= forecast_volume < _INF else None
    queue = state.queue_depth
    b = 3 if queue is None or not 0 <= queue < _INF else _backlog_band(queue / workers)
    sla = state.sla_compliance_rate
    s = 2 if sla is None or not 0 <= sla < _INF else int(sla >= SLA_TARGET)
    return _KEYS[_utilisation_band(state, load, workers)][b][s][_trend_band(load, state.predicted_load_6h)]


def _utilisation_band(state: SchedulingState, load: float | None, workers: float) -> int:
    duration = state.avg_task_duration_ms
    if load is not None and duration is not None and 0 < duration < _INF:
        utilisation = load * duration / _MS_PER_HOUR / workers
    else:
        cpu = state.resource_cpu_avg
        if cpu is None or not 0 <= cpu < _INF:
            return 4
        utilisation = cpu
    if utilisation < 0.5:
        return 0
    if utilisation < 0.8:
        return 1
    return 2 if utilisation < 1.0 else 3


def _backlog_band(per_worker: float) -> int:
    if per_worker < 0.1:
        return 0
    return 1 if per_worker < 1.0 else 2


def _trend_band(load_1h: float | None, load_6h: float | None) -> int:
    if load_1h is None or load_6h is None or not 0 <= load_6h < _INF:
        return 1
    if load_6h < 0.8 * load_1h:
        return 0
    return 2 if load_6h > 1.25 * load_1h else 1
