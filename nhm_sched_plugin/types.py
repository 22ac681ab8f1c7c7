"""What everyone speaks: the immutable values that travel through the house.

Units are in the names or the docstrings: `_ms` milliseconds, `_s` seconds, `_minutes` minutes, rates in [0, 1],
CPU in cores, memory in GiB, clock stamps in Unix seconds unless a field says `datetime`.
`None` means "not known" everywhere; it never means zero.

The values hold no reference cycles, so the garbage collector need not look at them (`gc=False`): with tens of thousands
of decisions in memory a full collection would hold the host's process for a tenth of a second and more.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping
from typing import Any, Final

import msgspec

__all__ = [
    "STATE_FIELDS",
    "Action",
    "Arm",
    "Decision",
    "Experience",
    "Forecast",
    "ForecastPoint",
    "Health",
    "Outcome",
    "Reason",
    "Recommendation",
    "RewardedOutcome",
    "SchedulingState",
    "Source",
    "Ticket",
    "Veto",
]


class _Code(enum.StrEnum):
    # Enum hashes through a Python-level method; these are dictionary keys on the hot path.
    __hash__ = str.__hash__


class Action(_Code):
    """The six actions of the specification."""

    INCREASE_WORKER_POOL = "INCREASE_WORKER_POOL"
    DECREASE_WORKER_POOL = "DECREASE_WORKER_POOL"
    ADJUST_PRIORITY_WEIGHTS = "ADJUST_PRIORITY_WEIGHTS"
    PREEMPTIVE_SCALING = "PREEMPTIVE_SCALING"
    LOAD_BALANCING_RECONFIG = "LOAD_BALANCING_RECONFIG"
    NO_ACTION = "NO_ACTION"


class Source(_Code):
    """Who chose the action that the host is asked to apply."""

    POLICY = "policy"
    FALLBACK = "fallback"
    CUSTOM = "custom"  # a third-party `nhm_sched_recommend` or `nhm_sched_fallback`
    DEFAULT = "default"  # the last resort in code: keep things as they are


class Arm(_Code):
    """Where the rollout put the decision."""

    SHADOW = "shadow"
    CONTROL = "control"
    TREATMENT = "treatment"


class Reason(_Code):
    """Why the applied action is what it is. The codes are stable: dashboards and queries use them."""

    APPLIED = "applied"
    BELOW_VOLUME_THRESHOLD = "below_volume_threshold"
    CONFIDENCE_BELOW_THRESHOLD = "confidence_below_threshold"
    VETOED = "vetoed"
    SHADOW = "shadow"
    NOT_IN_ROLLOUT = "not_in_rollout"
    CONTROL_GROUP = "control_group"
    FORECAST_UNAVAILABLE = "forecast_unavailable"
    OPTIMIZER_UNAVAILABLE = "optimizer_unavailable"
    BUDGET_EXCEEDED = "budget_exceeded"
    DISABLED = "disabled"
    INVALID_STATE = "invalid_state"
    INTERNAL_ERROR = "internal_error"


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of work that the orchestrator wants scheduled."""

    ticket_id: str
    task_type: str | None = None
    risk_band: str | None = None
    priority: int | None = None
    attributes: Mapping[str, Any] = {}
    """Anything else the host knows; hooks may read it, nothing else does."""


STATE_FIELDS: Final = (
    "queue_depth",
    "active_workers",
    "avg_task_duration_ms",
    "sla_compliance_rate",
    "predicted_load_1h",
    "predicted_load_6h",
    "resource_cpu_avg",
    "resource_memory_avg",
)
"""The eight state fields, in the order of the specification (and of the wire format)."""


class SchedulingState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the host sees of its own queue and pool. Every field is optional: absent is not zero."""

    queue_depth: float | None = None
    """Tickets waiting to start."""
    active_workers: float | None = None
    """Workers able to take a ticket now."""
    avg_task_duration_ms: float | None = None
    sla_compliance_rate: float | None = None
    """Share of recent tickets that met their SLA, in [0, 1]."""
    predicted_load_1h: float | None = None
    """Tickets expected in the next hour; filled in from the forecast when absent."""
    predicted_load_6h: float | None = None
    """Tickets expected in the sixth hour from now; filled in from the forecast when absent."""
    resource_cpu_avg: float | None = None
    """Utilisation in [0, 1]."""
    resource_memory_avg: float | None = None
    """Utilisation in [0, 1]."""
    features: Mapping[str, float] = {}
    """What `nhm_sched_collect_state` hooks added; rule conditions read it as `features.NAME`."""


class ForecastPoint(msgspec.Struct, frozen=True, gc=False):
    """One hour of a forecast."""

    timestamp: dt.datetime
    """Start of the hour, in the time zone (or lack of one) of the history."""
    mean: float
    """Tickets expected in that hour."""
    quantiles: Mapping[float, float]
    """Level -> tickets, for 0.025, 0.1, 0.5, 0.9 and 0.975."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The load expected from now to the horizon, an hour at a time."""

    horizon_minutes: int
    predicted_volume: float
    """Tickets in the hour that ends at the horizon."""
    confidence: float
    """In [0, 1]: 1 is a forecast without spread, 0 one that says nothing."""
    bottleneck_probability: float | None = None
    """P(demand in the hour at the horizon exceeds capacity), when the capacity is known."""
    points: tuple[ForecastPoint, ...] = ()
    generated_at: dt.datetime
    resource_demand_cpu: float | None = None
    """Cores busy in the hour at the horizon."""
    resource_demand_memory: float | None = None
    """GiB in use in the hour at the horizon."""
    model_version: str = ""
    method: str = ""
    """Which model made it: `prophet`, `arima`, `seasonal_mean`, ..."""
    live_factor: float = 1.0
    """What the counts of the last hours did to `predicted_volume`; 1: nothing."""

    @property
    def next_hour(self) -> float:
        """Tickets in the coming hour, also of a forecast that looks further ahead: `predicted_load_1h`."""
        return self.points[0].mean if self.horizon_minutes > 60 and self.points else self.predicted_volume


class Recommendation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An action that a policy, a rule book or a hook proposes."""

    action: Action
    parameters: Mapping[str, int | float | str] = {}
    """For pool actions `target_workers` as int; for weights one number per priority class."""
    confidence: float = 0.0
    """P(the action is at least as good as what the fallback would do here), in [0, 1]."""
    justification: str = ""
    """One plain sentence: why."""
    expected_improvement: float | None = None
    """Expected difference in discounted reward to the fallback's action.

    The built-in policy's is the difference of the two Q-values: rewards of different moments. Its confidence comes from
    trials that begin at the same one, so the two may point to different sides where the difference is small.
    """
    risk_score: float | None = None
    is_exploration: bool = False
    propensity: float = 1.0
    """Probability with which this action was chosen here: what off-policy evaluation needs."""
    policy_version: str = ""
    state_hash: str = ""
    source: str = ""
    """`policy`, a rule's name, or the hook that answered."""


class Veto(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A guard's "no", with its reason in plain words."""

    guard: str
    reason: str


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the host is asked to do, and everything needed to explain it later."""

    decision_id: str
    ticket_id: str | None = None
    action: Action = Action.NO_ACTION
    parameters: Mapping[str, int | float | str] = {}
    source: Source = Source.DEFAULT
    reason: Reason = Reason.INTERNAL_ERROR
    confidence: float | None = None
    """Of the recommendation; None when nobody was asked."""
    arm: Arm = Arm.SHADOW
    recommendation: Recommendation | None = None
    """What the policy said, also when it was not followed."""
    propensity: float = 1.0
    policy_version: str = ""
    forecast: Forecast | None = None
    latency_us: float = 0.0
    decided_at: float = 0.0
    """Unix seconds on the host's clock."""
    task_type: str | None = None
    risk_band: str | None = None
    state: SchedulingState | None = None
    """The state as the pipeline saw it: the host's, plus hooks' features, plus the predicted loads."""
    vetoes: tuple[Veto, ...] = ()
    justification: str = ""
    """Why this action, in plain words: the rule that fired or the policy's own sentence."""
    is_exploration: bool = False
    rollout_percentage: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What came of a decision: a ticket ended, or a control interval passed (`ticket_id=None`)."""

    decision_id: str
    ticket_id: str | None = None
    status: str = "success"
    """`success`, `failed`, `cancelled`, or `tick` for a control interval."""
    actual_duration_ms: float | None = None
    sla_met: bool | None = None
    state_before: SchedulingState | None = None
    state_after: SchedulingState | None = None
    finished_at: float | None = None
    """Unix seconds; the host's clock when absent."""
    worker_id: str | None = None
    resource_cpu: float | None = None
    """Cores used."""
    resource_memory: float | None = None
    """GiB used."""


class Experience(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One step to learn from: what was *executed* (the fallback's actions too) and what came of it."""

    decision_id: str
    state: SchedulingState
    action: Action
    reward: float
    next_state: SchedulingState | None = None
    parameters: Mapping[str, int | float | str] = {}
    """Of the executed action; lets the policy tell its own target from somebody else's."""


class RewardedOutcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An outcome with its reward, as it is recorded."""

    outcome: Outcome
    reward: float | None
    executed_action: Action | None = None
    applied: bool | None = None
    """What the host reported through `applied()`; None when it never did."""
    error: str | None = None


class Health(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One component's readiness, for `/healthz` and `nhm-sched doctor`."""

    component: str
    ok: bool
    detail: str = ""
