"""The views: what other queries, commands and people build on.

"Not known" is defined once, in `tickets`: of a duration, CPU or memory, 0 (the printed columns have no NULL) and what
is no number. Hours are of UTC, whatever zone the server is in.

Views that count by hour cost next to nothing on any number of tickets: the engine keeps their sums in a projection of
`execution_logs`, which it updates with every insert, merge and deletion by itself. It uses one only where the
expressions of a query are those of the projection, so both are made from the same texts here.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ARM_MEASURES", "BOTTLENECK_QUEUE", "FEATURES", "HOURLY", "PROJECTION", "VIEWS"]

BOTTLENECK_QUEUE: Final = 100
"""Average depth of the queue above which the specification calls an hour a bottleneck."""
_SLOW: Final = 2
"""A ticket that took so many times as long as the average one of its slice is slow."""

_HOUR: Final = "toDateTime(intDiv(toUnixTimestamp(timestamp), 3600) * 3600, 'UTC')"
_TICKET: Final = {
    "hour": _HOUR,
    "actual_duration_ms": "nullIf(toFloat64(actual_duration_ms), 0)",
    "resource_cpu": "if(isFinite(resource_cpu) AND resource_cpu > 0, toNullable(resource_cpu), NULL)",
    "resource_memory": "if(isFinite(resource_memory) AND resource_memory > 0, toNullable(resource_memory), NULL)",
}
"""Columns of the view `tickets` that are made from those of `execution_logs`."""

_TICKETS: Final = f"""
CREATE OR REPLACE VIEW {{db}}.tickets AS
SELECT
    timestamp,
    {_TICKET["hour"]} AS hour,
    ticket_id,
    task_type,
    risk_band,
    status,
    worker_id,
    {_TICKET["actual_duration_ms"]} AS actual_duration_ms,
    {_TICKET["resource_cpu"]} AS resource_cpu,
    {_TICKET["resource_memory"]} AS resource_memory,
    sla_met,
    queue_depth_at_start
FROM {{db}}.execution_logs"""  # noqa: S608 - made of constants

FEATURES: Final = {
    "ticket_volume_hourly": "count()",
    "avg_duration_by_type": "avg(actual_duration_ms)",
    "sla_compliance_rate": "avg(sla_met)",
    "resource_cpu_p95": "quantileExactInclusive(0.95)(resource_cpu)",
}
"""The features of the specification that come from tickets, each as SQL over the view `tickets`. What is not known is
left out of an average, and an hour in which nothing is known gives NULL: `sum(sla_met) / count()` would count a ticket
of unknown SLA as missed. The view `features_hourly` is made of these: a change here takes a new migration."""

HOURLY: Final = {
    **FEATURES,
    "sla_known": "count(sla_met)",
    "sla_missed": "countIf(sla_met = 0)",
    "avg_queue_depth": "avg(queue_depth_at_start)",
    "max_queue_depth": "max(queue_depth_at_start)",
}
"""What the projection keeps by hour, task type and risk band; anything else by hour reads every ticket."""


def _over_logs(sql: str) -> str:
    """The same expression over `execution_logs`."""
    for name in ("actual_duration_ms", "resource_cpu"):
        sql = sql.replace(f"({name})", f"({_TICKET[name]})")
    return sql


PROJECTION: Final = (
    "ALTER TABLE {db}.execution_logs ADD PROJECTION IF NOT EXISTS by_hour ("
    f"SELECT {_HOUR}, task_type, risk_band, {', '.join(map(_over_logs, HOURLY.values()))} "
    f"GROUP BY {_HOUR}, task_type, risk_band)"
)

_LIFE: Final = """
CREATE OR REPLACE VIEW {db}.hours_alive AS
SELECT hour, sum(t) AS tickets, sum(m) AS telemetry, sum(q) AS snapshots,
       if(snapshots > 0, toNullable(sum(d) / snapshots), NULL) AS queue_depth_avg
FROM (
    SELECT hour, count() AS t, 0 AS m, 0 AS q, 0. AS d FROM {db}.tickets GROUP BY hour
    UNION ALL
    SELECT toDateTime(intDiv(toUnixTimestamp(timestamp), 3600) * 3600, 'UTC') AS hour, 0, count(), 0, 0.
    FROM {db}.telemetry_metrics GROUP BY hour
    UNION ALL
    SELECT toDateTime(intDiv(toUnixTimestamp(timestamp), 3600) * 3600, 'UTC') AS hour, 0, 0, count(), sum(queue_depth)
    FROM {db}.queue_snapshots GROUP BY hour
)
GROUP BY hour"""


def _level(*keys: str) -> str:
    """Features by hour and these keys. A query each, since GROUPING SETS would not use the projection."""
    names = ", ".join(
        f"toNullable(t.{name}) AS {name}" if name in keys else f"CAST(NULL, 'Nullable(String)') AS {name}"
        for name in ("task_type", "risk_band")
    )
    measures = ", ".join(f"{sql} AS {name}" for name, sql in FEATURES.items())
    by = ", ".join(("hour", *(f"t.{key}" for key in keys)))
    return f"SELECT hour, {names}, {measures} FROM {{db}}.tickets AS t GROUP BY {by}"  # noqa: S608 - constants


_FEATURES: Final = f"""
CREATE OR REPLACE VIEW {{db}}.features_hourly AS
SELECT f.hour AS hour, f.task_type AS task_type, f.risk_band AS risk_band,
       {", ".join(f"f.{name} AS {name}" for name in FEATURES)},
       q.queue_depth_avg AS queue_depth_avg
FROM (
    {_level()}
    UNION ALL {_level("task_type")}
    UNION ALL {_level("risk_band")}
    UNION ALL {_level("task_type", "risk_band")}
) AS f
LEFT JOIN (SELECT hour, queue_depth_avg FROM {{db}}.hours_alive WHERE snapshots > 0) AS q ON q.hour = f.hour"""  # noqa: S608

# The specification's bottleneck query without its limits, which are the question's: `sla_miss_rate` is as printed there
# and counts what is not known as met; sla_missed / sla_known leaves it out.
_BOTTLENECKS: Final = f"""
CREATE OR REPLACE VIEW {{db}}.bottlenecks AS
SELECT hour, {HOURLY["ticket_volume_hourly"]} AS ticket_volume, {HOURLY["avg_queue_depth"]} AS avg_queue_depth,
       {HOURLY["max_queue_depth"]} AS max_queue_depth, {HOURLY["sla_missed"]} AS sla_missed,
       {HOURLY["sla_known"]} AS sla_known, {HOURLY["sla_missed"]} / {HOURLY["ticket_volume_hourly"]} AS sla_miss_rate
FROM {{db}}.tickets
GROUP BY hour"""  # noqa: S608

_USUAL: Final = f"""
CREATE OR REPLACE VIEW {{db}}.usual_durations AS
SELECT task_type, risk_band, {FEATURES["ticket_volume_hourly"]} AS tickets,
       {FEATURES["avg_duration_by_type"]} AS usual_ms
FROM {{db}}.tickets
GROUP BY task_type, risk_band"""  # noqa: S608

# One row for each ticket that missed its SLA. The first cause that holds is the one that is named.
_MISSES: Final = f"""
CREATE OR REPLACE VIEW {{db}}.sla_misses AS
SELECT
    t.timestamp AS timestamp,
    t.ticket_id AS ticket_id,
    t.task_type AS task_type,
    t.risk_band AS risk_band,
    t.status AS status,
    t.worker_id AS worker_id,
    t.actual_duration_ms AS actual_duration_ms,
    u.usual_ms AS usual_ms,
    t.queue_depth_at_start AS queue_depth_at_start,
    multiIf(
        t.status IN ('failed', 'cancelled'), t.status,
        ifNull(t.queue_depth_at_start > {BOTTLENECK_QUEUE}, 0), 'deep queue',
        ifNull(t.actual_duration_ms > {_SLOW} * u.usual_ms, 0), 'slow ticket',
        t.queue_depth_at_start IS NULL AND t.actual_duration_ms IS NULL, 'not known',
        'other'
    ) AS cause
FROM (SELECT * FROM {{db}}.tickets WHERE sla_met = 0) AS t
LEFT JOIN {{db}}.usual_durations AS u ON u.task_type = t.task_type AND u.risk_band = t.risk_band"""  # noqa: S608

_DECISIONS: Final = """
CREATE OR REPLACE VIEW {db}.scheduling_decisions AS
SELECT
    d.* EXCEPT (record, version, kept, stored_at),
    o.status AS status,
    o.finished_at AS finished_at,
    o.actual_duration_ms AS actual_duration_ms,
    o.sla_met AS sla_met,
    o.reward AS reward,
    o.executed_action AS executed_action,
    o.applied AS applied,
    o.error AS error,
    o.worker_id AS worker_id,
    o.resource_cpu AS resource_cpu,
    o.resource_memory AS resource_memory,
    o.state_before AS state_before,
    o.state_after AS state_after
FROM (SELECT * FROM {db}.scheduling_decisions_raw FINAL) AS d
LEFT JOIN (
    SELECT decision_id, toNullable(status) AS status, finished_at, actual_duration_ms, sla_met, reward, executed_action,
           applied, error, worker_id, resource_cpu, resource_memory, state_before, state_after
    FROM {db}.scheduling_outcomes FINAL
) AS o ON o.decision_id = d.decision_id"""
"""What people query: one row for each decision, whatever was delivered how often and in which order."""

ARM_MEASURES: Final = {
    "decisions": "count()",
    "explored": "sum(is_exploration)",
    "outcomes": "count(status)",
    "rewarded": "count(reward)",
    "mean_reward": "avg(reward)",
    "reward_error": "if(count(reward) > 1, stddevSamp(reward) / sqrt(count(reward)), NULL)",
    "sla_rate": "avg(sla_met)",
    "mean_duration_ms": "avg(actual_duration_ms)",
    "not_applied": "countIf(applied = 0)",
}
"""What arms are compared by, as SQL over `scheduling_decisions`; `reward_error` is the standard error of the mean as if
outcomes were independent, which those of one rush are not: `nhm-sched experiment result` tests by blocks of time."""

_ARMS: Final = f"""
CREATE OR REPLACE VIEW {{db}}.arm_comparison AS
SELECT toDate(decided_at) AS day, arm, {", ".join(f"{sql} AS {name}" for name, sql in ARM_MEASURES.items())}
FROM {{db}}.scheduling_decisions
GROUP BY day, arm"""  # noqa: S608

VIEWS: Final = {
    "scheduling_decisions": _DECISIONS,
    "tickets": _TICKETS,
    "hours_alive": _LIFE,
    "features_hourly": _FEATURES,
    "bottlenecks": _BOTTLENECKS,
    "usual_durations": _USUAL,
    "sla_misses": _MISSES,
    "arm_comparison": _ARMS,
}
"""By name, each after those that it reads; with `{db}` for the database."""
