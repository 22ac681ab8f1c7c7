"""The one reward function, used by the live path, training and simulation alike.

`0.4*sla + 0.3*throughput + 0.2*efficiency + 0.1*cost` with each delta relative, clipped to [-1, 1], positive = better:

* `sla`: better, `(after - before) / max(1 - before, 0.05)`: the share of the remaining gap that was closed;
  worse, `(after - before) / max(before, 0.05)`.
* `throughput`, `efficiency`: `(after - before) / max(before, EPSILON)`.
* `cost`: `(before - after) / max(before, EPSILON)`: cheaper is better.

`EPSILON` only keeps a division from failing: any real growth from zero is a full +1, zero to zero is 0.
A component that is missing, or not a finite number, on either side counts 0.

`sla_delta`, `growth`, `throughput_of` and `weighted` are plain arithmetic on numbers (NaN: unknown), so that the twin
compiles the very same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from nhm_sched_plugin.decision.gate import MS_PER_HOUR
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.types import SchedulingState

__all__ = [
    "EPSILON",
    "GAP_FLOOR",
    "SLA_FLOOR",
    "WEIGHTS",
    "calculate_reward",
    "components",
    "gap_closed",
    "growth",
    "reward",
    "sla_delta",
    "throughput_of",
    "weighted",
]

Metrics = SchedulingState | Mapping[str, Any]
_Lookup = Callable[[str], Any]

_SLA, _THROUGHPUT, _EFFICIENCY, _COST = 0.4, 0.3, 0.2, 0.1
WEIGHTS: Final[Mapping[str, float]] = {
    "sla": _SLA,
    "throughput": _THROUGHPUT,
    "efficiency": _EFFICIENCY,
    "cost": _COST,
}
SLA_FLOOR: Final = 0.05
"""Smallest gap that an SLA delta is measured against: below it noise would look like triumph."""
EPSILON: Final = 1e-9
_NONE: Final[Mapping[str, Any]] = {}
GAP_FLOOR: Final = 1e-3
"""Smallest lead of the oracle over the rules, as a share of the oracle's figure, that counts as a gap to close."""


def reward(before: SchedulingState, after: SchedulingState) -> float:
    """How good was it, in [-1, 1]? The weighted sum of `components`. Never raises."""
    return calculate_reward(before, after)


def calculate_reward(before: Metrics, after: Metrics) -> float:
    """As `reward`, for states or mappings of metrics (see `components` for the keys)."""
    parts = components(before, after)
    return weighted(parts["sla"], parts["throughput"], parts["efficiency"], parts["cost"])


def components(before: Metrics, after: Metrics) -> dict[str, float]:
    """The four deltas by name, each in [-1, 1]; what is not known on both sides counts 0.

    Keys of a mapping, or fields and then `features` of a state: `sla_compliance_rate` (or `sla_compliance`);
    `throughput` in tickets per hour, else by the utilisation law
    `active_workers * resource_cpu_avg * 3600e3 / avg_task_duration_ms`; `resource_efficiency`, else
    `resource_cpu_avg`; `cost`, else `active_workers`. Both sides are always read in the same way.
    """
    was, now = _lookup(before), _lookup(after)
    sla = _pair(was, now, "sla_compliance_rate") or _pair(was, now, "sla_compliance")
    throughput = _pair(was, now, "throughput") or _throughputs(was, now)
    efficiency = _pair(was, now, "resource_efficiency") or _pair(was, now, "resource_cpu_avg")
    cost = _pair(was, now, "cost") or _pair(was, now, "active_workers")
    return {
        "sla": sla_delta(*sla) if sla else 0.0,
        "throughput": growth(*throughput) if throughput else 0.0,
        "efficiency": growth(*efficiency) if efficiency else 0.0,
        "cost": 0.0 - growth(*cost) if cost else 0.0,  # 0.0 - x, so that no change is 0.0 and not -0.0
    }


def gap_closed(policy: Mapping[str, float], rules: Mapping[str, float], oracle: Mapping[str, float]) -> float | None:
    """The share of the gap between the rules and a clairvoyant oracle that a policy closes, in [-1, 1].

    Each argument maps the names of `WEIGHTS` to a figure over the same arrivals, of a day or more: `sla` as a share,
    `throughput` in tickets per hour, `efficiency` as the share of paid time that is worked, `cost` in worker-hours.
    Per component `(policy - rules) / (oracle - rules)`, clipped to [-1, 1]; then the mean with the weights of the
    reward. A component is left out where the oracle is not better than the rules by `GAP_FLOOR`: there is nothing to
    close, as where the rules are cheaper because they let tickets wait. 0 = as good as the rules, 1 = clairvoyant;
    None when no component has a gap. Raises `KeyError` for a figure that is missing.
    """
    total = weights = 0.0
    for name, weight in WEIGHTS.items():
        better = -1.0 if name == "cost" else 1.0
        gap = better * (oracle[name] - rules[name])
        if gap <= GAP_FLOOR * abs(oracle[name]):
            continue
        total += weight * max(-1.0, min(1.0, better * (policy[name] - rules[name]) / gap))
        weights += weight
    return total / weights if weights else None


def _lookup(metrics: Metrics) -> _Lookup:
    if isinstance(metrics, Mapping):
        return metrics.get

    def read(name: str) -> Any:
        found = getattr(metrics, name, None)
        return getattr(metrics, "features", _NONE).get(name) if found is None else found

    return read


def _pair(was: _Lookup, now: _Lookup, name: str) -> tuple[float, float] | None:
    before, after = known(was(name)), known(now(name))
    return None if before is None or after is None else (before, after)


def _throughputs(was: _Lookup, now: _Lookup) -> tuple[float, float] | None:
    before, after = _utilisation_law(was), _utilisation_law(now)
    return None if before is None or after is None else (before, after)


def _utilisation_law(metrics: _Lookup) -> float | None:
    """Tickets per hour of busy workers: workers * utilisation / service time (Denning & Buzen 1978)."""
    workers, utilisation = known(metrics("active_workers")), known(metrics("resource_cpu_avg"))
    duration_ms = known(metrics("avg_task_duration_ms"))
    if workers is None or utilisation is None or duration_ms is None:
        return None
    return known(throughput_of(workers, utilisation, duration_ms))


def throughput_of(workers: float, utilisation: float, duration_ms: float) -> float:
    """Tickets per hour; NaN when that cannot be told."""
    if not duration_ms > 0:
        return math.nan
    return workers * utilisation * MS_PER_HOUR / duration_ms


def sla_delta(before: float, after: float) -> float:
    """The component `sla`; 0 for NaN on either side."""
    gap = 1 - before if after > before else before
    delta = (after - before) / max(gap, SLA_FLOOR)
    return 0.0 if math.isnan(delta) else max(-1.0, min(1.0, delta))


def growth(before: float, after: float) -> float:
    """Relative change, clipped to [-1, 1]; 0 for NaN on either side."""
    delta = (after - before) / max(before, EPSILON)
    return 0.0 if math.isnan(delta) else max(-1.0, min(1.0, delta))


def weighted(sla: float, throughput: float, efficiency: float, cost: float) -> float:
    """The reward of its components."""
    return _SLA * sla + _THROUGHPUT * throughput + _EFFICIENCY * efficiency + _COST * cost
