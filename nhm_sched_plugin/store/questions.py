"""Questions to the records that a report asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["HourlyReward", "confidences", "hourly_rewards", "telling_decision"]


class HourlyReward(NamedTuple):
    """Mean reward of an arm's decisions in the hour that starts at `hour` (Unix seconds)."""

    hour: float
    arm: str
    mean: float
    outcomes: int


def hourly_rewards(store: Store) -> list[HourlyReward]:
    """By hour of the decision and arm, oldest first."""
    sql = (
        "SELECT toUnixTimestamp(toStartOfHour(decided_at)) AS hour, arm, avg(reward), count() "  # noqa: S608
        f"FROM {store.database}.scheduling_decisions WHERE reward IS NOT NULL GROUP BY hour, arm ORDER BY hour, arm"
    )
    return [HourlyReward(float(hour), *rest) for hour, *rest in store.rows(sql, name="hourly_rewards")]


def confidences(store: Store) -> list[float]:
    """Of every recommendation, followed or not."""
    sql = f"SELECT confidence FROM {store.database}.scheduling_decisions WHERE confidence IS NOT NULL"  # noqa: S608
    return [float(row[0]) for row in store.rows(sql, name="confidences")]


def telling_decision(store: Store, reason: str) -> dict[str, Any] | None:
    """A decision with that reason that has a reward, and does something if one of them does; as `Store.decision`."""
    sql = (
        f"SELECT decision_id FROM {store.database}.scheduling_decisions "  # noqa: S608
        "WHERE reason = {reason:String} AND reward IS NOT NULL ORDER BY action = 'NO_ACTION', decided_at LIMIT 1"
    )
    found = store.rows(sql, {"reason": reason}, name="telling_decision")
    return store.decision(str(found[0][0])) if found else None
