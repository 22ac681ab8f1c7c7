"""Questions that a person asks of the records; each has a view in SQL and a command."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.store.schema.views import ARM_MEASURES, BOTTLENECK_QUEUE
from nhm_sched_plugin.store.statements import utc

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["arms", "bottlenecks", "days_ago", "decisions", "miss_causes", "misses"]

_DECIDED: Final = (
    "decided_at, decision_id, ticket_id, task_type, risk_band, action, parameters, source, reason, arm, confidence, "
    "recommended_action, forecast_volume, queue_depth, active_workers"
)
_CAME_OF_IT: Final = ("status", "sla_met", "actual_duration_ms", "reward", "applied")
_IDS: Final = 500


def days_ago(days: float) -> dt.datetime:
    """That long before now, UTC."""
    return dt.datetime.now(dt.UTC) - dt.timedelta(days=days)


def decisions(
    store: Store,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    ticket: str | None = None,
    missed: bool = False,
    limit: int = 20,
    **codes: str | None,
) -> list[dict[str, Any]]:
    """The newest decisions with what came of them, newest first; `sla_met` and `applied` None: not known (yet).

    Args:
        store: an initialised store.
        since: made at or after.
        until: made before.
        ticket: only those of this ticket.
        missed: only those whose ticket missed its SLA.
        limit: most of them.
        codes: `action`, `arm`, `reason`, `source`, `task_type` or `risk_band`, to be equal to.
    """
    conditions, parameters = _between("decided_at", since, until)
    for name, value in {**codes, "ticket_id": ticket}.items():
        if value is not None:
            conditions.append(f"{name} = {{{name}:String}}")
            parameters[name] = value
    if missed:
        conditions.append(
            f"decision_id IN (SELECT decision_id FROM {store.database}.scheduling_outcomes FINAL WHERE sla_met = 0)"  # noqa: S608
        )
    found = store.dicts(
        f"SELECT {_DECIDED} FROM {store.database}.scheduling_decisions_raw FINAL WHERE {' AND '.join(conditions)} "  # noqa: S608
        "ORDER BY decided_at DESC, decision_id DESC LIMIT {limit:UInt32}",
        {**parameters, "limit": limit},
        name="decisions",
    )
    # Of these few the outcomes are found by their key; the view would read all of them.
    ends = _outcomes(store, [row["decision_id"] for row in found])
    return [
        {**row, "parameters": _told(row["parameters"]), **ends.get(row["decision_id"], dict.fromkeys(_CAME_OF_IT))}
        for row in found
    ]


def _told(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The number of workers as one: the column holds texts."""
    target = parameters.get("target_workers", "")
    return {**parameters, "target_workers": int(target)} if target.isdecimal() else dict(parameters)


def _outcomes(store: Store, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for start in range(0, len(ids), _IDS):
        for row in store.dicts(
            f"SELECT decision_id, {', '.join(_CAME_OF_IT)} FROM {store.database}.scheduling_outcomes FINAL "  # noqa: S608
            "WHERE decision_id IN {ids:Array(String)}",
            {"ids": list(ids[start : start + _IDS])},
            name="decisions",
        ):
            end = {name: row[name] for name in _CAME_OF_IT}
            for name in ("sla_met", "applied"):
                end[name] = None if end[name] is None else bool(end[name])
            result[row["decision_id"]] = end
    return result


def arms(store: Store, *, since: dt.datetime | None = None, until: dt.datetime | None = None) -> list[dict[str, Any]]:
    """Control, treatment and shadow side by side: the measures of the view `arm_comparison` over the whole time."""
    conditions, parameters = _between("decided_at", since, until)
    measures = ", ".join(f"{sql} AS {name}" for name, sql in ARM_MEASURES.items())
    return store.dicts(
        f"SELECT arm, {measures} FROM {store.database}.scheduling_decisions WHERE {' AND '.join(conditions)} "  # noqa: S608
        "GROUP BY arm ORDER BY arm",
        parameters,
        name="arms",
    )


def bottlenecks(
    store: Store,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    queue_depth: float = BOTTLENECK_QUEUE,
    limit: int = 10,
) -> list[dict[str, Any]]:
    """The specification's bottleneck query: hours whose queue was deeper than that on average, worst first."""
    conditions, parameters = _between("hour", since, until)
    return store.dicts(
        f"SELECT * FROM {store.database}.bottlenecks WHERE {' AND '.join(conditions)} "  # noqa: S608
        "AND avg_queue_depth > {queue:Float64} ORDER BY sla_miss_rate DESC, hour DESC LIMIT {limit:UInt32}",
        {**parameters, "queue": queue_depth, "limit": limit},
        name="bottlenecks",
    )


def miss_causes(
    store: Store, *, since: dt.datetime | None = None, until: dt.datetime | None = None, limit: int = 20
) -> list[dict[str, Any]]:
    """Why SLAs were missed, by cause and slice, what cost most time first.

    `missed` tickets, their `share` of all missed, and of those the mean duration, the usual one of their slice and the
    mean depth of the queue that they met; `hours` is what they took together.
    """
    conditions, parameters = _between("timestamp", since, until)
    return store.dicts(
        "SELECT cause, task_type, risk_band, count() AS missed, missed / sum(missed) OVER () AS share, "  # noqa: S608
        "avg(actual_duration_ms) AS mean_duration_ms, any(usual_ms) AS usual_duration_ms, "
        "avg(queue_depth_at_start) AS mean_queue_depth, sum(actual_duration_ms) / 3600e3 AS hours "
        f"FROM {store.database}.sla_misses WHERE {' AND '.join(conditions)} GROUP BY cause, task_type, risk_band "
        "ORDER BY hours DESC NULLS LAST, missed DESC, cause, task_type, risk_band LIMIT {limit:UInt32}",
        {**parameters, "limit": limit},
        name="miss_causes",
    )


def misses(
    store: Store, *, since: dt.datetime | None = None, until: dt.datetime | None = None, limit: int = 20
) -> list[dict[str, Any]]:
    """The slowest tickets that missed their SLA, with the cause, as in the view `sla_misses`."""
    conditions, parameters = _between("timestamp", since, until)
    return store.dicts(
        f"SELECT * FROM {store.database}.sla_misses WHERE {' AND '.join(conditions)} "  # noqa: S608
        "ORDER BY actual_duration_ms DESC NULLS LAST, timestamp, ticket_id LIMIT {limit:UInt32}",
        {**parameters, "limit": limit},
        name="misses",
    )


def _between(column: str, since: dt.datetime | None, until: dt.datetime | None) -> tuple[list[str], dict[str, Any]]:
    """Conditions (never none) and their parameters. The column stands alone, so that keys and partitions are used."""
    conditions, parameters = ["1"], {}
    for name, sign, moment in (("since", ">=", since), ("until", "<", until)):
        if moment is not None:
            conditions.append(f"{column} {sign} fromUnixTimestamp64Micro({{{name}:Int64}}, 'UTC')")
            parameters[name] = round(utc(moment).timestamp() * 1e6)
    return conditions, parameters
