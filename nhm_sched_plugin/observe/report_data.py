"""What a report and a summary are made of. Every part is optional: a missing one is left out.

Shared by `nhm-sched demo`, `nhm-sched replay --report` and the `--json` outputs. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

__all__ = [
    "DecisionCount",
    "Difference",
    "Example",
    "Frontier",
    "HorizonError",
    "HourLoad",
    "Phase",
    "PolicyResult",
    "ReportData",
    "RewardSample",
]


class HourLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One hour of load: what came, and what had been expected an hour before."""

    epoch: float
    """Start of the hour."""
    actual: float | None = None
    """Tickets that came."""
    forecast: float | None = None
    """Tickets that were expected."""
    low: float | None = None
    """10 % quantile of the forecast."""
    high: float | None = None
    """90 % quantile of the forecast."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time with one rollout percentage."""

    name: str
    start: float
    end: float
    percentage: int | None = None


class HorizonError(msgspec.Struct, frozen=True, kw_only=True):
    """How wrong forecasts were, so far ahead."""

    horizon_minutes: int
    mape_pct: float | None = None
    """Mean of |actual - forecast| / actual over the hours with tickets, percent."""
    wape_pct: float | None = None
    """Sum of |actual - forecast| / sum of actual, percent."""
    naive_wape_pct: float | None = None
    """WAPE of "as in the same hour a week before" on the same hours: what a forecast has to beat."""
    method: str = ""
    hours: int | None = None
    """Hours compared."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How much more of something one way of deciding had than the first one, over several seeds."""

    mean: float
    low: float | None = None
    """Lower end of the 95 % confidence interval, paired by seed."""
    high: float | None = None


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """What one rival can do, over its knob."""

    name: str
    points: list[tuple[float, float]]
    """(cost as a multiple of the oracle's, tickets in time in percent), the cheapest first."""


class PolicyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one way of deciding did with the same tickets."""

    name: str
    """`plugin`, `rules`, `static`, ..."""
    sla_pct: float | None = None
    """Tickets that started within the SLA's wait, percent."""
    worker_hours: float | None = None
    """Workers paid for, summed over the hours."""
    wait_p50_s: float | None = None
    wait_p95_s: float | None = None
    wait_p99_s: float | None = None
    scale_events: int | None = None
    """How often the number of workers was changed."""
    reward_mean: float | None = None
    timeline: list[tuple[float, float, float, float]] = []
    """(epoch, arrivals since the point before, workers, tickets waiting), in order of time."""
    note: str = ""
    """A word on what this way is: `8 workers, always`."""
    cost_ratio: float | None = None
    """Worker-hours as a multiple of the clairvoyant oracle's."""
    decided_by: str = ""
    """Who made the decisions: `policy 61 %, rules 39 %`."""
    gap_closed_pct: float | None = None
    """Share of the reward gap between rules and oracle that was closed, percent."""
    equal_sla_ratio: float | None = None
    """Worker-hours as a multiple of what the best rival needs for the same SLA."""
    differences: dict[str, Difference] = {}
    """To the first policy: `sla_pct` (points), `cost_ratio`, `wait_p95_s`, `wait_p99_s`."""


class DecisionCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many decisions were alike."""

    action: str
    source: str
    arm: str
    reason: str
    count: int
    phase: str = ""


class RewardSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reward, or the mean of several close to each other."""

    epoch: float
    arm: str
    reward: float
    weight: float = 1.0
    """How many rewards this is the mean of."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A decision whose story is told."""

    decision: Any
    """A `Decision`, or the mapping that the records database gives back."""
    outcome: Any = None
    """A `RewardedOutcome`, an `Outcome`, a mapping, or None."""
    title: str = ""


class ReportData(msgspec.Struct, kw_only=True):
    title: str = "Predictive scheduling: what happened"
    subtitle: str = ""
    """One sentence: which tickets, over which time."""
    notes: list[str] = []
    """What to know about the figures, a sentence each; also in the terminal."""
    done: list[str] = []
    """What was done, step by step, a sentence each."""
    tickets: int | None = None
    decisions: int | None = None
    load: list[HourLoad] = []
    phases: list[Phase] = []
    horizon_errors: list[HorizonError] = []
    policies: list[PolicyResult] = []
    """The plugin first, then what it is compared with."""
    frontiers: list[Frontier] = []
    """What rivals reach when their knobs are turned."""
    seeds: int | None = None
    """Seeds that the policies' figures are means of."""
    sla_target_pct: float | None = 95.0
    sla_wait_s: float | None = None
    """A ticket meets its SLA when it starts within this many seconds."""
    decision_counts: list[DecisionCount] = []
    rewards: list[RewardSample] = []
    confidences: list[float] = []
    """Of every recommendation, followed or not."""
    confidence_threshold: float = 0.7
    volume_threshold: float | None = None
    """The configured `forecast_volume_threshold`; None: 80 % of the pool's capacity."""
    examples: list[Example] = []
    environment: Mapping[str, str] = {}
    """Versions and the machine, by name."""
    command: str = ""
    """What made this report."""
    options: str = ""
    """What commands need to find these records: `--config demo-output/nhm-sched.yaml`."""
    next_commands: list[tuple[str, str]] = []
    """(command, what it shows)."""
    generated_at: float | None = None
    report_path: str = ""
    duration_s: float | None = None
    """How long the run took, by the wall clock."""
