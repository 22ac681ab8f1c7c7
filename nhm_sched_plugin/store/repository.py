"""The records: every question to the database and every insert, in one class.

`statements` is the ground below it, `history` the questions that forecasters ask.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from nhm_sched_plugin.store.history import History
from nhm_sched_plugin.store.rows import DECISION_COLUMNS, OUTCOME_COLUMNS, decision_row, outcome_row
from nhm_sched_plugin.store.statements import RejectedRowsError, where
from nhm_sched_plugin.types import Decision, RewardedOutcome

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Store"]

_Record = TypeVar("_Record", Decision, RewardedOutcome)
_IDS = 1000  # a server over HTTP takes parameters in the address, which must not grow without bound


class Store(History):
    """An open records database. Make it with `open_store(settings)`; every method raises only `StoreError`
    (`RejectedRowsError` is one).

    Args:
        client: an open clickhouse-connect client.
        database: name of the database.
        observer: called as (name of the statement, success, seconds) after every statement.
    """

    # Records in

    def insert_decisions(self, decisions: Sequence[tuple[Decision, float]]) -> None:
        """Decisions with the time each was recorded (Unix seconds). Inserting one again changes nothing."""
        self.insert_rows("scheduling_decisions_raw", DECISION_COLUMNS, _fitted(decision_row, decisions))

    def insert_outcomes(self, outcomes: Sequence[tuple[RewardedOutcome, float]]) -> None:
        """Outcomes with the time each was recorded; before or after their decisions. Again changes nothing."""
        self.insert_rows("scheduling_outcomes", OUTCOME_COLUMNS, _fitted(outcome_row, outcomes))

    def log_finished(self, decision_ids: Sequence[str]) -> None:
        """Write tickets that have ended into `execution_logs`: those of these decisions whose outcome is stored.

        One row a decision, stamped with the time of the decision (the ticket's arrival); again changes nothing.
        Control ticks are no tickets.
        """
        for start in range(0, len(decision_ids), _IDS):
            self._log_finished(decision_ids[start : start + _IDS])

    def _log_finished(self, decision_ids: Sequence[str]) -> None:
        logs = self._t("execution_logs")
        self.command(
            f"INSERT INTO {logs} (timestamp, ticket_id, task_type, risk_band, actual_duration_ms, status, worker_id, "  # noqa: S608
            "resource_cpu, resource_memory, sla_met, queue_depth_at_start, decision_id) "
            "SELECT toDateTime(decided_at), assumeNotNull(ticket_id), ifNull(task_type, 'default'), "
            "ifNull(risk_band, ''), if(actual_duration_ms IS NULL OR isNaN(actual_duration_ms), 0, "
            "toUInt32(least(greatest(actual_duration_ms, 1), 4294967295))), assumeNotNull(status), "
            "ifNull(worker_id, ''), ifNull(resource_cpu, 0), ifNull(resource_memory, 0), sla_met, queue_depth, "
            f"decision_id FROM {self._t('scheduling_decisions')} WHERE decision_id IN {{ids:Array(String)}} "
            "AND status IS NOT NULL AND status != 'tick' AND ticket_id IS NOT NULL AND decision_id NOT IN ("
            f"SELECT decision_id FROM {logs} WHERE decision_id IN {{ids:Array(String)}} AND timestamp IN ("
            f"SELECT toDateTime(decided_at) FROM {self._t('scheduling_decisions_raw')} "
            "WHERE decision_id IN {ids:Array(String)}))",
            {"ids": list(decision_ids)},
            name="log_finished",
        )

    def insert_execution_logs(self, frame: pd.DataFrame) -> None:
        """Finished tickets: a DataFrame with columns of `execution_logs`; those that are absent get their defaults."""
        self.insert_frame("execution_logs", frame)

    def insert_telemetry(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Samples: `timestamp` (datetime), `service`, `metric_name`, `metric_value`, `labels`, `kept`."""
        self._insert_mappings("telemetry_metrics", rows, {"labels": {}, "kept": 0})

    def insert_queue_snapshots(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Looks at the queue: `timestamp` (datetime), `queue_depth`, and any other column of `queue_snapshots`."""
        self._insert_mappings("queue_snapshots", rows, {"queue": "", "kept": 0})

    def insert_forecasts(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Forecast points, one a row, by the columns of `forecasts`; `quantiles` maps level (as text) to tickets."""
        defaults = {"task_type": "", "risk_band": "", "quantiles": {}, "method": "", "model_version": "", "kept": 0}
        self._insert_mappings("forecasts", rows, defaults)

    def _insert_mappings(self, table: str, rows: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        columns = sorted({key for row in rows for key in row} | set(defaults)) if rows else []
        self.insert_rows(table, columns, [[row.get(key, defaults.get(key)) for key in columns] for row in rows])

    # Questions about decisions

    def decision(self, decision_id: str) -> dict[str, Any] | None:
        """Everything known of one decision, None when there is none of that id.

        The fields of `Decision` (nested ones as mappings), `recorded_at`, and what came of it: `outcome` (the fields
        of `Outcome`, None so far), `reward`, `applied`, `executed_action`, `error`.
        """
        raw = self.dicts(
            f"SELECT record, recommendation, forecast, state, recorded_at FROM {self._t('scheduling_decisions_raw')} "  # noqa: S608
            "FINAL WHERE decision_id = {id:String}",
            {"id": decision_id},
            name="decision",
        )
        if not raw:
            return None
        story: dict[str, Any] = msgspec.json.decode(raw[0]["record"])
        for part in ("recommendation", "forecast", "state"):
            story[part] = _decoded(raw[0][part])
        story["recorded_at"] = raw[0]["recorded_at"]
        story.update(outcome=None, reward=None, applied=None, executed_action=None, error=None)
        ends = self.dicts(
            f"SELECT * EXCEPT (version, kept, stored_at) FROM {self._t('scheduling_outcomes')} FINAL "  # noqa: S608
            "WHERE decision_id = {id:String}",
            {"id": decision_id},
            name="decision",
        )
        for end in ends:
            for part in ("reward", "applied", "executed_action", "error"):
                story[part] = end.pop(part)
            story["applied"] = None if story["applied"] is None else bool(story["applied"])
            end["sla_met"] = None if end["sla_met"] is None else bool(end["sla_met"])
            end["state_before"], end["state_after"] = _decoded(end["state_before"]), _decoded(end["state_after"])
            story["outcome"] = end
        return story

    def decision_ids(self, limit: int = 20) -> list[str]:
        """The newest decisions' ids, newest first."""
        sql = (
            f"SELECT decision_id FROM {self._t('scheduling_decisions_raw')} FINAL "  # noqa: S608
            "ORDER BY decided_at DESC LIMIT {limit:UInt32}"
        )
        return [str(row[0]) for row in self.rows(sql, {"limit": limit})]

    def decision_summary(
        self, since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[dict[str, Any]]:
        """Decisions counted by `action`, `source`, `arm` and `reason` (and `decisions`), most frequent first."""
        condition, parameters = where(None, None, since, until, column="decided_at")
        return self.dicts(
            "SELECT action, source, arm, reason, count() AS decisions "  # noqa: S608
            f"FROM {self._t('scheduling_decisions_raw')} FINAL {condition} "
            "GROUP BY action, source, arm, reason ORDER BY decisions DESC, action, source, arm, reason",
            parameters,
            name="decision_summary",
        )

    def counts(self) -> dict[str, int]:
        """Rows in each table of the database."""
        rows = self.rows(
            "SELECT name, coalesce(total_rows, 0) FROM system.tables WHERE database = {database:String} "
            "AND engine LIKE '%MergeTree' ORDER BY name",
            {"database": self.database},
        )
        return {str(name): int(count) for name, count in rows}


def _fitted(
    build: Callable[[_Record, float], tuple[Any, ...]], items: Sequence[tuple[_Record, float]]
) -> list[tuple[Any, ...]]:
    try:
        return [build(*item) for item in items]
    except ValueError as error:
        raise RejectedRowsError(str(error)) from error


def _decoded(text: str) -> Any:
    return msgspec.json.decode(text) if text else None
