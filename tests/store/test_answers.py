"""Questions about decisions and missed SLAs, counted by hand."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pandas as pd
import pytest

from nhm_sched_plugin.store import answers
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.types import Action, Arm, Decision, Outcome, Reason, RewardedOutcome, Source

NOON = dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC)


def at(hours: float) -> dt.datetime:
    return NOON + dt.timedelta(hours=hours)


@pytest.fixture
def decided(store: Store) -> Store:
    """Four decisions an hour apart; `d1` missed its SLA, `d3` has no outcome yet."""
    made = [
        ("d0", Arm.TREATMENT, Action.INCREASE_WORKER_POOL, Reason.APPLIED, "t0"),
        ("d1", Arm.TREATMENT, Action.NO_ACTION, Reason.APPLIED, "t1"),
        ("d2", Arm.CONTROL, Action.NO_ACTION, Reason.CONTROL_GROUP, "t2"),
        ("d3", Arm.CONTROL, Action.NO_ACTION, Reason.CONTROL_GROUP, "it's"),
    ]
    store.insert_decisions(
        [
            (
                Decision(
                    decision_id=name, arm=arm, action=action, reason=reason, ticket_id=ticket, task_type="a",
                    source=Source.POLICY, decided_at=at(hour).timestamp(), parameters={"target_workers": 4},
                ),
                1.0,
            )
            for hour, (name, arm, action, reason, ticket) in enumerate(made)
        ]
    )  # fmt: skip
    ends = [("d0", True, 0.5, True), ("d1", False, -0.5, False), ("d2", None, 0.25, None)]
    store.insert_outcomes(
        [
            (RewardedOutcome(outcome=Outcome(decision_id=name, sla_met=met), reward=reward, applied=applied), 2.0)
            for name, met, reward, applied in ends
        ]
    )
    return store


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["d3", "d2", "d1", "d0"]),
        ({"limit": 2}, ["d3", "d2"]),
        ({"since": at(1), "until": at(3)}, ["d2", "d1"]),
        ({"since": at(1).replace(tzinfo=None)}, ["d3", "d2", "d1"]),
        ({"arm": "treatment", "action": "NO_ACTION"}, ["d1"]),
        ({"reason": "control_group"}, ["d3", "d2"]),
        ({"source": "fallback"}, []),
        ({"ticket": "it's"}, ["d3"]),
        ({"missed": True}, ["d1"]),
        ({"missed": True, "arm": "control"}, []),
    ],
)
def test_the_history_of_decisions(decided: Store, asked: dict[str, Any], expected: list[str]) -> None:
    assert [row["decision_id"] for row in answers.decisions(decided, **asked)] == expected


def test_a_decision_comes_with_what_came_of_it(decided: Store) -> None:
    newest, _, missed, first = answers.decisions(decided)
    assert (newest["status"], newest["sla_met"], newest["reward"], newest["applied"]) == (None, None, None, None)
    assert (missed["sla_met"], missed["reward"], missed["applied"]) == (False, -0.5, False)
    assert (first["sla_met"], first["parameters"], first["decided_at"].hour) == (True, {"target_workers": 4}, 12)


def test_arms_side_by_side(decided: Store) -> None:
    control, treatment = answers.arms(decided)
    assert (control["arm"], control["decisions"], control["outcomes"], control["rewarded"]) == ("control", 2, 1, 1)
    assert (control["mean_reward"], control["reward_error"], control["sla_rate"]) == (0.25, None, None)
    assert (treatment["mean_reward"], treatment["sla_rate"], treatment["not_applied"]) == (0.0, 0.5, 1)
    assert treatment["reward_error"] == pytest.approx(0.5)
    assert answers.arms(decided, since=at(100)) == []
    days = decided.dicts(f"SELECT * FROM {decided.database}.arm_comparison ORDER BY arm")  # noqa: S608
    assert [{name: value for name, value in row.items() if name != "day"} for row in days] == [control, treatment]


@pytest.fixture
def late(store: Store) -> Store:
    """Missed SLAs of every cause, and tickets that met theirs to say what is usual."""
    rows = [
        # hour, type, ms, status, met, queue
        *[(0.0, "a", 1000, "success", 1, 10.0)] * 9,
        (0.1, "a", 9000, "success", 0, 10.0),
        (0.2, "a", 1000, "success", 0, 500.0),
        (0.3, "a", 50, "failed", 0, 500.0),
        (1.1, "a", 1000, "success", 0, 10.0),
        (1.2, "b", 0, "success", 0, None),
        (1.3, "b", 0, "success", None, None),
    ]
    frame = pd.DataFrame(
        rows, columns=["hour", "task_type", "actual_duration_ms", "status", "sla_met", "queue_depth_at_start"]
    )
    frame.insert(0, "timestamp", [at(hour) for hour in frame.pop("hour")])
    frame["sla_met"] = frame["sla_met"].astype("UInt8")
    store.insert_execution_logs(frame.assign(ticket_id=[f"t{n}" for n in range(len(frame))], kept=1))
    return store


def test_why_slas_were_missed(late: Store) -> None:
    rows = answers.miss_causes(late)
    assert {row["cause"]: (row["missed"], row["share"]) for row in rows} == {
        "slow ticket": (1, 0.2),
        "deep queue": (1, 0.2),
        "failed": (1, 0.2),
        "other": (1, 0.2),
        "not known": (1, 0.2),
    }
    assert rows[0]["cause"] == "slow ticket"
    assert rows[0]["usual_duration_ms"] == pytest.approx((9 * 1000 + 9000 + 1000 + 50 + 1000) / 13)
    assert rows[0]["hours"] == pytest.approx(9000 / 3600e3)
    assert rows[-1]["cause"] == "not known", "what is not known comes last"
    assert [row["cause"] for row in answers.miss_causes(late, since=at(1), limit=1)] == ["other"]


def test_the_slowest_misses(late: Store) -> None:
    slowest, *_, unknown = answers.misses(late)
    assert (slowest["ticket_id"], slowest["cause"], slowest["actual_duration_ms"]) == ("t9", "slow ticket", 9000)
    assert unknown["actual_duration_ms"] is None
    assert answers.misses(late, until=at(0)) == []


def test_bottlenecks_as_in_the_specification(late: Store) -> None:
    assert answers.bottlenecks(late) == []
    first, second = answers.bottlenecks(late, queue_depth=5)
    assert (first["hour"].hour, first["ticket_volume"], first["avg_queue_depth"]) == (13, 3, 10.0)
    assert first["sla_miss_rate"] == pytest.approx(2 / 3), "as printed: what is not known counts as met"
    assert (first["sla_missed"], first["sla_known"]) == (2, 2)
    assert (second["ticket_volume"], second["max_queue_depth"]) == (12, 500.0)
    printed = late.rows(
        "SELECT toStartOfHour(timestamp) AS hour, count() AS ticket_volume, avg(queue_depth_at_start) AS q, "  # noqa: S608
        f"countIf(sla_met = 0) / count() AS sla_miss_rate FROM {late.database}.execution_logs GROUP BY hour "
        "HAVING q > 5 ORDER BY sla_miss_rate DESC"
    )
    assert [row[1:] for row in printed] == [
        (row["ticket_volume"], row["avg_queue_depth"], row["sla_miss_rate"]) for row in (first, second)
    ]
