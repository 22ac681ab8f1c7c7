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

__all__ = ["ALL_KEYS", "KEYS", "NO_METRICS", "SLA_TARGET", "state_index", "state_key"]

NO_METRICS: Final = "no-metrics"
_INF: Final = float("inf")
_NAN: Final = float("nan")
_MS_PER_HOUR: Final = 3_600_000.0
SLA_TARGET: Final = 0.95
"""The specification's compliance goal."""
KEYS: Final = (
    *(f"u{u}-b{b}-s{s}-t{t}" for u in "0123?" for b in "012?" for s in "01?" for t in "012"),
    NO_METRICS,
)
"""The keys, by `state_index`."""
ALL_KEYS: Final = frozenset(KEYS)
_NO_METRICS_INDEX: Final = len(KEYS) - 1


def state_index(
    workers: float,
    queue: float,
    duration_ms: float,
    sla: float,
    load_1h: float,
    load_6h: float,
    utilisation: float,
) -> int:
    """Where the state is in `KEYS`. Plain arithmetic, NaN for unknown: the twin compiles the very same code."""
    if not 0 <= workers < _INF:
        return _NO_METRICS_INDEX
    workers = max(workers, 1.0)
    loaded = 0 <= load_1h < _INF
    if loaded and 0 < duration_ms < _INF:
        utilisation = load_1h * duration_ms / _MS_PER_HOUR / workers
    elif not utilisation < _INF:
        utilisation = -1.0
    u = 4
    if utilisation >= 0:
        u = int(utilisation >= 0.5) + int(utilisation >= 0.8) + int(utilisation >= 1.0)
    b = 3
    if 0 <= queue < _INF:
        b = int(queue / workers >= 0.1) + int(queue / workers >= 1.0)
    s = int(sla >= SLA_TARGET) if 0 <= sla < _INF else 2
    t = 1
    if loaded and 0 <= load_6h < _INF:
        t = 0 if load_6h < 0.8 * load_1h else 1 + int(load_6h > 1.25 * load_1h)
    return ((u * 4 + b) * 3 + s) * 3 + t


def state_key(state: SchedulingState, forecast_volume: float | None = None) -> str:
    """The key of a state. `forecast_volume` (tickets in the next hour) is used when the state has no predicted load.

    Total: never raises on None, NaN, infinities or negative numbers.
    """
    load = state.predicted_load_1h
    if load is None or not 0 <= load < _INF:
        load = forecast_volume
    workers, queue, duration_ms = state.active_workers, state.queue_depth, state.avg_task_duration_ms
    sla, later, utilisation = state.sla_compliance_rate, state.predicted_load_6h, state.resource_cpu_avg
    return KEYS[
        state_index(  # on the hot path, so without a function that turns None into NaN
            _NAN if workers is None else workers,
            _NAN if queue is None else queue,
            _NAN if duration_ms is None else duration_ms,
            _NAN if sla is None else sla,
            _NAN if load is None else load,
            _NAN if later is None else later,
            _NAN if utilisation is None else utilisation,
        )
    ]
