"""Decisions and outcomes as a host makes them, for the measurements of the records."""

from __future__ import annotations

import datetime as dt
import resource
from pathlib import Path

from nhm_sched_plugin.types import (
    Action,
    Arm,
    Decision,
    Forecast,
    Outcome,
    Reason,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
    Source,
)

AT = 1_750_000_000.0


def decision(number: int) -> Decision:
    """One of the treatment arm, with everything that a host fills in."""
    parameters = {"target_workers": 5 + number % 30}
    words = f"the planner asks for {5 + number % 30} workers: 500 tickets an hour expected, {number % 300} wait"
    return Decision(
        decision_id=f"{number:032x}",
        ticket_id=f"ticket-{number}",
        action=Action.INCREASE_WORKER_POOL,
        parameters=parameters,
        source=Source.POLICY,
        reason=Reason.APPLIED,
        confidence=0.82,
        arm=Arm.TREATMENT,
        recommendation=Recommendation(
            action=Action.INCREASE_WORKER_POOL,
            parameters=parameters,
            confidence=0.82,
            justification=words,
            expected_improvement=0.11,
            policy_version="v12",
            state_hash="q3:w2:s1",
            source="policy",
        ),
        policy_version="v12",
        forecast=Forecast(
            horizon_minutes=60,
            predicted_volume=500.0 + number % 7,
            confidence=0.8,
            generated_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            model_version="v3",
            method="ensemble",
        ),
        latency_us=80.0,
        decided_at=AT + number / 1000,
        task_type="processing",
        risk_band="medium",
        state=_state(number),
        justification=words,
        rollout_percentage=50,
    )


def outcome(number: int) -> RewardedOutcome:
    """What came of the decision of that number."""
    ended = Outcome(
        decision_id=f"{number:032x}",
        ticket_id=f"ticket-{number}",
        actual_duration_ms=5000.0 + number % 100,
        sla_met=number % 10 != 0,
        state_before=_state(number),
        state_after=_state(number + 1),
        finished_at=AT + number / 1000 + 5,
    )
    return RewardedOutcome(outcome=ended, reward=0.2, executed_action=Action.INCREASE_WORKER_POOL, applied=True)


def record(number: int) -> Decision | RewardedOutcome:
    """Decisions at even numbers, each followed by its outcome."""
    return outcome(number // 2) if number % 2 else decision(number // 2)


def _state(number: int) -> SchedulingState:
    return SchedulingState(
        queue_depth=float(number % 300),
        active_workers=20.0,
        avg_task_duration_ms=5000.0,
        sla_compliance_rate=0.97,
        predicted_load_1h=500.0 + number % 7,
        predicted_load_6h=700.0,
        resource_cpu_avg=0.5,
        resource_memory_avg=0.4,
        features={"arrivals_last_hour": float(number % 500)},
    )


def memory_mb() -> tuple[float, float]:
    """This process now, and at its peak, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
