"""Questions to the records that a report asks; those that a person asks are in `answers`."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NamedTuple

from nhm_sched_plugin.store.statements import where

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.store.repository import Store

__all__ = [
    "HourlyReward",
    "confidences",
    "decision_log",
    "hourly_rewards",
    "kinds",
    "last_decision",
    "telling_decision",
]


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


def last_decision(store: Store) -> float | None:
    """When the newest decision was made (Unix seconds); None: there is none."""
    sql = (
        f"SELECT count(), toUnixTimestamp64Micro(max(decided_at)) / 1e6 FROM {store.database}.scheduling_decisions_raw"  # noqa: S608
    )
    count, at = store.rows(sql, name="last_decision")[0]
    return float(at) if count else None


def kinds(store: Store, since: dt.datetime | None = None, until: dt.datetime | None = None) -> list[dict[str, Any]]:
    """Control ticks (`tick` 1) and tickets (0): how many `decisions`, `rewarded`, and not applied (`refused`)."""
    condition, parameters = where(None, None, since, until, column="decided_at")
    return store.dicts(
        "SELECT ticket_id IS NULL AS tick, count() AS decisions, count(reward) AS rewarded, "  # noqa: S608
        f"countIf(applied = 0) AS refused FROM {store.database}.scheduling_decisions {condition} "
        "GROUP BY tick ORDER BY tick DESC",
        parameters,
        name="decision_kinds",
    )


def decision_log(
    store: Store, *, ticks: bool, since: dt.datetime | None = None, until: dt.datetime | None = None, most: int
) -> pd.DataFrame:
    """Control ticks, or tickets, with what was advised, done and reached; oldest first, the newest `most` of them.

    `host` is the part of the id that a process has to itself. `target` and `advised_target` are workers; `sla` is the
    ticket's own, or the compliance after the tick; `workers` those active then.
    """
    condition, parameters = where(None, None, since, until, column="decided_at")
    number = "toFloat64OrNull(parameters['target_workers'])"
    return store.frame(
        "SELECT arrayStringConcat(arrayPopBack(splitByChar('-', decision_id)), '-') AS host, "  # noqa: S608
        "toUnixTimestamp64Micro(decided_at) / 1e6 AS at, ifNull(ticket_id, '') AS ticket, "
        "ifNull(task_type, '') AS task_type, "
        f"action, {number} AS target, arm, reason, confidence, ifNull(recommended_action, '') AS advised, "
        "JSONExtract(recommendation, 'parameters', 'target_workers', 'Nullable(Float64)') AS advised_target, "
        "JSONExtract(recommendation, 'propensity', 'Nullable(Float64)') AS advised_propensity, propensity, "
        "is_exploration, rollout_percentage, policy_version, forecast_volume, queue_depth, active_workers, "
        "avg_task_duration_ms, sla_compliance_rate, predicted_load_1h, predicted_load_6h, resource_cpu_avg, reward, "
        "coalesce(toFloat64(sla_met), JSONExtract(ifNull(state_after, ''), 'sla_compliance_rate', 'Nullable(Float64)'))"
        " AS sla, coalesce(JSONExtract(ifNull(state_after, ''), 'active_workers', 'Nullable(Float64)'), "
        f"active_workers) AS workers FROM {store.database}.scheduling_decisions "
        f"{condition or 'WHERE 1'} AND (ticket_id IS NULL) = {{ticks:UInt8}} "
        "ORDER BY decided_at DESC, decision_id DESC LIMIT {most:UInt64}",
        {**parameters, "ticks": int(ticks), "most": most},
        name="decision_log",
    ).iloc[::-1]
