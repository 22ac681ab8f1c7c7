"""A made-up but plausible run: two weeks of flights, four rollout phases, three ways of deciding."""

from __future__ import annotations

import datetime as dt
import math
import random

import pytest

from nhm_sched_plugin.observe.report_data import (
    DecisionCount,
    Example,
    HorizonError,
    HourLoad,
    Phase,
    PolicyResult,
    ReportData,
    RewardSample,
)
from nhm_sched_plugin.types import (
    Action,
    Arm,
    Decision,
    Forecast,
    ForecastPoint,
    Outcome,
    Reason,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
    Source,
    Veto,
)

START = dt.datetime(2013, 12, 17, tzinfo=dt.UTC).timestamp()
HOURS = 14 * 24


def _volume(hour: int) -> float:
    day, of_day = divmod(hour, 24)
    weekend = 0.82 if (day + 1) % 7 in (5, 6) else 1.0
    holiday = 0.7 if day == 8 else 1.0
    return weekend * holiday * max(0.0, 62 * math.exp(-(((of_day - 13) / 6.5) ** 4)) + 9 * math.sin(of_day / 3))


def _load(draw: random.Random) -> list[HourLoad]:
    hours = []
    for hour in range(HOURS):
        expected = _volume(hour)
        spread = 2 + 0.12 * expected
        actual = max(0, round(draw.gauss(expected, 0.08 * expected + 1)))
        hours.append(
            HourLoad(
                epoch=START + 3600 * hour,
                actual=actual,
                forecast=expected,
                low=max(0.0, expected - spread),
                high=expected + spread,
            )
        )
    return hours


def _policies(load: list[HourLoad]) -> list[PolicyResult]:
    def timeline(pool: object) -> list[tuple[float, float, float, float]]:
        assert callable(pool)
        return [
            (hour.epoch + 300 * tick, (hour.actual or 0) / 12, pool(index), max(0.0, (hour.actual or 0) - 60))
            for index, hour in enumerate(load)
            for tick in range(12)
        ]

    def came(index: int) -> float:
        return load[max(0, min(index, HOURS - 1))].actual or 0

    rows = (
        ("plugin", 97.3, 3121.5, 41, "", lambda index: math.ceil(max(came(index), came(index + 1)) / 4.6) + 2),
        ("rules", 94.1, 3388.2, 96, "", lambda index: math.ceil(came(index - 1) / 4.2) + 2),
        ("static", 99.2, 5712.0, 0, "17 workers, always", lambda index: 17),
    )
    return [
        PolicyResult(
            name=name,
            sla_pct=sla,
            worker_hours=hours,
            wait_p50_s=0,
            wait_p95_s=48.0 if name != "rules" else 71.0,
            wait_p99_s=130.0,
            scale_events=events,
            reward_mean=0.012 if name == "plugin" else None,
            timeline=timeline(pool),
            note=note,
        )
        for name, sla, hours, events, note, pool in rows
    ]


def _counts() -> list[DecisionCount]:
    def row(phase: str, action: str, source: str, arm: str, reason: str, count: int) -> DecisionCount:
        return DecisionCount(phase=phase, action=action, source=source, arm=arm, reason=reason, count=count)

    counts = [
        row("shadow", "NO_ACTION", "fallback", "shadow", "shadow", 1520),
        row("shadow", "INCREASE_WORKER_POOL", "fallback", "shadow", "shadow", 210),
        row("shadow", "NO_ACTION", "fallback", "shadow", "below_volume_threshold", 1330),
    ]
    for phase, inside in (("20 %", 0.2), ("50 %", 0.5), ("100 %", 1.0)):
        asked = 1700
        followed = round(asked * inside * 0.71)
        counts += [
            row(phase, "NO_ACTION", "fallback", "control", "not_in_rollout", round(asked * (1 - inside))),
            row(phase, "PREEMPTIVE_SCALING", "policy", "treatment", "applied", followed // 3),
            row(phase, "DECREASE_WORKER_POOL", "policy", "treatment", "applied", followed // 4),
            row(phase, "NO_ACTION", "policy", "treatment", "applied", followed - followed // 3 - followed // 4),
            row(
                phase, "NO_ACTION", "fallback", "treatment", "confidence_below_threshold", round(asked * inside * 0.22)
            ),
            row(phase, "NO_ACTION", "fallback", "treatment", "vetoed", round(asked * inside * 0.07)),
            row(phase, "NO_ACTION", "fallback", "treatment", "below_volume_threshold", 1402),
        ]
    return [count for count in counts if count.count]


def _examples() -> list[Example]:
    now = START + 10 * 86_400 + 17 * 3600 + 300
    hour = dt.datetime.fromtimestamp(now - 300, dt.UTC)
    forecast = Forecast(
        horizon_minutes=60,
        predicted_volume=84.2,
        confidence=0.81,
        bottleneck_probability=0.34,
        points=(ForecastPoint(hour, 84.2, {0.1: 70.0, 0.5: 84.0, 0.9: 98.4}),),
        generated_at=hour,
        method="prophet",
    )
    before = SchedulingState(
        queue_depth=12, active_workers=10, avg_task_duration_ms=420_000, sla_compliance_rate=0.88, resource_cpu_avg=0.91
    )
    after = SchedulingState(
        queue_depth=0, active_workers=14, avg_task_duration_ms=420_000, sla_compliance_rate=0.93, resource_cpu_avg=0.74
    )
    advice = Recommendation(
        action=Action.INCREASE_WORKER_POOL,
        parameters={"target_workers": 14},
        confidence=0.83,
        justification="The forecast needs 13 workers and 12 tickets wait.",
        source="policy",
    )
    followed = Decision(
        decision_id="0193d8c1a7f07d2a",
        ticket_id="UA1545<script>alert(1)</script>",
        action=advice.action,
        parameters=advice.parameters,
        source=Source.POLICY,
        reason=Reason.APPLIED,
        confidence=0.83,
        arm=Arm.TREATMENT,
        recommendation=advice,
        forecast=forecast,
        latency_us=31,
        decided_at=now,
        task_type="EWR",
        state=before,
        rollout_percentage=50,
    )
    outcome = Outcome(
        decision_id=followed.decision_id,
        actual_duration_ms=431_000,
        sla_met=True,
        state_before=before,
        state_after=after,
    )
    vetoed = Decision(
        decision_id="0193d8c1a7f07d2b",
        source=Source.FALLBACK,
        reason=Reason.VETOED,
        confidence=0.78,
        arm=Arm.TREATMENT,
        recommendation=Recommendation(
            action=Action.DECREASE_WORKER_POOL,
            parameters={"target_workers": 6},
            confidence=0.78,
            justification="Fewer flights are planned.",
        ),
        forecast=forecast,
        decided_at=now + 7200,
        state=before,
        vetoes=(Veto(guard="backlog", reason="12 tickets wait; workers are removed only when none does"),),
        justification="Nothing calls for a change.",
        rollout_percentage=50,
    )
    return [
        Example(
            decision=followed,
            outcome=RewardedOutcome(outcome=outcome, reward=0.130842, applied=True),
            title="Advice that was followed",
        ),
        Example(decision=vetoed, title="Advice that a guard stopped"),
    ]


@pytest.fixture(scope="session")
def sample() -> ReportData:
    """Never change it in a test: copy it with `msgspec.structs.replace`."""
    draw = random.Random(7)
    load = _load(draw)
    names = ("shadow", "20 %", "50 %", "100 %")
    quarter = HOURS * 3600 / 4
    phases = [
        Phase(name=name, start=START + index * quarter, end=START + (index + 1) * quarter, percentage=percentage)
        for index, (name, percentage) in enumerate(zip(names, (0, 20, 50, 100), strict=True))
    ]
    rewards = []
    for index in range(4000):
        epoch = START + HOURS * 3600 * index / 4000
        phase = phases[min(3, int((epoch - START) // quarter))]
        inside = draw.random() < (phase.percentage or 0) / 100
        arm = "shadow" if phase.percentage == 0 else "treatment" if inside else "control"
        rewards.append(RewardSample(epoch=epoch, arm=arm, reward=draw.gauss(0.02 if arm == "treatment" else 0, 0.15)))
    return ReportData(
        title="Two weeks of flights, scheduled",
        subtitle="Every departure of the last two weeks of 2013 is a ticket: 12,345 of them, in simulated time.",
        done=[
            "Read 336,776 departures of 2013 into the records database.",
            "Trained forecasters for 1, 6 and 24 hours ahead on all but the last two weeks.",
            "Let the policy practise in simulation, then replayed the last two weeks: shadow, 20 %, 50 %, 100 %.",
        ],
        tickets=12_345,
        load=load,
        phases=phases,
        horizon_errors=[
            HorizonError(
                horizon_minutes=minutes, mape_pct=mape, wape_pct=wape, naive_wape_pct=13.9, method="prophet", hours=312
            )
            for minutes, mape, wape in ((60, 14.2, 8.4), (360, 17.9, 10.6), (1440, 21.3, 12.25))
        ],
        policies=_policies(load),
        sla_wait_s=60,
        decision_counts=_counts(),
        rewards=rewards,
        confidences=[min(1.0, max(0.0, draw.betavariate(6, 2.2))) for _ in range(5000)],
        examples=_examples(),
        environment={"nhm-sched-plugin": "0.1.0", "Python": "3.11.7", "Machine": "2 cores, Linux"},
        command="nhm-sched demo --report report.html",
        next_commands=[("nhm-sched explain 0193d8c1a7f07d2a", "Tell one decision's story")],
        generated_at=START + 20 * 86_400,
        duration_s=171.3,
        report_path="demo-output/report.html",
    )
