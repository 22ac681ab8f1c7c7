"""The records: every question to the database and every insert, in one class.

Values reach the engine as parameters only; the database's name is checked by the settings.
"""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.rows import DECISION_COLUMNS, OUTCOME_COLUMNS, decision_row, outcome_row
from nhm_sched_plugin.types import Decision, RewardedOutcome

if TYPE_CHECKING:
    import pandas as pd
    from clickhouse_connect.driver.client import Client

__all__ = ["RejectedRowsError", "Store", "TicketUsage"]

_Record = TypeVar("_Record", Decision, RewardedOutcome)
_IDS = 1000  # a server over HTTP takes parameters in the address, which must not grow without bound
_HOUR = "intDiv(toUnixTimestamp(timestamp), 3600)"  # of the epoch, so that no server's time zone moves it


class RejectedRowsError(StoreError):
    """The database is there, but these rows do not fit their table."""


class TicketUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What an average ticket takes. None: not known."""

    task_type: str | None
    risk_band: str | None
    tickets: int
    duration_ms: float | None
    cpu_cores: float | None
    """Cores in use while it runs."""
    memory_gib: float | None
    cpu_core_hours: float | None
    memory_gib_hours: float | None


class Store:
    """An open records database. Make it with `open_store(settings)`; every method raises only `StoreError`
    (`RejectedRowsError` is one).

    Args:
        client: an open clickhouse-connect client.
        database: name of the database.
        observer: called as (name of the statement, success, seconds) after every statement.
    """

    def __init__(
        self, client: Client, database: str, observer: Callable[[str, bool, float], None] | None = None
    ) -> None:
        self.client = client
        self.database = database
        self._observer = observer

    # Statements

    def command(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "command", wait: bool = True
    ) -> Any:
        """Run a statement that returns nothing or one value; with `wait`, mutations are done when it returns."""
        settings = {"mutations_sync": 1} if wait else {}
        return self._observed(name, lambda: self.client.command(sql, dict(parameters or {}), settings=settings))

    def rows(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "query"
    ) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return list(self._observed(name, lambda: self.client.query(sql, dict(parameters or {})).result_rows))

    def dicts(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "query"
    ) -> list[dict[str, Any]]:
        """All rows of a query by column name."""
        result = self._observed(name, lambda: self.client.query(sql, dict(parameters or {})))
        return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]

    def frame(self, sql: str, parameters: Mapping[str, Any] | None = None, *, name: str = "query") -> pd.DataFrame:
        """A query's result as a DataFrame."""
        frame: pd.DataFrame = self._observed(name, lambda: self.client.query_df(sql, dict(parameters or {})))
        return frame

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Insert rows; all of them or, with an error, none. Raises `RejectedRowsError` when the values do not fit."""
        if rows:
            place = f"{self.database}.{table}"
            self._inserted(table, lambda: self.client.insert(place, rows, column_names=list(columns), settings=_once()))

    def insert_frame(self, table: str, frame: pd.DataFrame) -> None:
        """Insert a DataFrame whose columns are named as the table's."""
        if len(frame):
            self._inserted(table, lambda: self.client.insert_df(table, frame, database=self.database, settings=_once()))

    def _inserted(self, table: str, work: Callable[[], object]) -> None:
        from clickhouse_connect.driver.exceptions import DataError

        try:
            self._observed(f"insert {table}", work)
        except StoreError as error:
            # What the client cannot put into a column's type is the rows' fault, anything else the database's.
            if isinstance(error.__cause__, (DataError, TypeError, ValueError, OverflowError, AttributeError)):
                raise RejectedRowsError(str(error)) from error.__cause__
            raise

    def _observed(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = False
        try:
            result = work()
            done = True
            return result
        except StoreError:
            raise
        except Exception as error:  # struct, numpy and urllib3 errors come through the client too
            raise StoreError(f"{name}: {' '.join(str(error).split())[:600] or type(error).__name__}") from error
        finally:
            if self._observer is not None:
                self._observer(name, done, time.perf_counter() - started)

    def _t(self, table: str) -> str:
        return f"{self.database}.{table}"

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

    # Questions about history

    def slices(self) -> list[tuple[str, str, int]]:
        """(task type, risk band, tickets) of everything in `execution_logs`, busiest first."""
        sql = (
            f"SELECT task_type, risk_band, count() AS n FROM {self._t('execution_logs')} "  # noqa: S608
            "GROUP BY task_type, risk_band ORDER BY n DESC, task_type, risk_band"
        )
        return [(str(task_type), str(risk_band), int(count)) for task_type, risk_band, count in self.rows(sql)]

    def hourly_volume(
        self,
        task_type: str | None = None,
        risk_band: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
    ) -> pd.Series[float]:
        """Tickets per hour: idle hours are 0, outages NaN.

        A Series on an hourly UTC DatetimeIndex from the slice's first ticket to the last sign of life of anything,
        within [since, until) cut to whole hours (so pass the running hour as `until` to leave it out). Where
        `telemetry_metrics` or `queue_snapshots` cover the time, an hour without tickets is 0 if either has a row in
        it, else NaN; elsewhere up to 23 silent hours in a row count as idle and longer silence as an outage. Empty
        Series: no such tickets. Naive datetimes are UTC.
        """
        from nhm_sched_plugin.store.series import fill_hours

        where, parameters = _where(task_type, risk_band)
        logs = self._t("execution_logs")
        counts = {
            int(hour): int(count)
            for hour, count in self.rows(
                f"SELECT {_HOUR} AS hour, count() FROM {logs} {where} GROUP BY hour",  # noqa: S608
                parameters,
                name="hourly_volume",
            )
        }
        busy = set(counts) if not parameters else self._hours("execution_logs")
        watched = self._hours("telemetry_metrics") | self._hours("queue_snapshots")
        return fill_hours(counts, busy, watched, _hour(since), _hour(until))

    def _hours(self, table: str) -> set[int]:
        return {int(row[0]) for row in self.rows(f"SELECT DISTINCT {_HOUR} FROM {self._t(table)}")}  # noqa: S608

    def execution_logs(
        self,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
        *,
        task_type: str | None = None,
        risk_band: str | None = None,
    ) -> pd.DataFrame:
        """Tickets of [since, until), oldest first, for a replay.

        Columns: `timestamp` (UTC), `ticket_id`, `task_type`, `risk_band`, `actual_duration_ms` (float, NaN where not
        known), `sla_met` (nullable boolean).
        """
        import pandas as pd

        where, parameters = _where(task_type, risk_band, since, until)
        frame = self.frame(
            "SELECT toUnixTimestamp(timestamp) AS t, ticket_id, task_type, risk_band, "  # noqa: S608
            f"toFloat64(actual_duration_ms) AS actual_duration_ms, sla_met FROM {self._t('execution_logs')} {where} "
            "ORDER BY timestamp, ticket_id",
            parameters,
            name="execution_logs",
        )
        columns = ["timestamp", "ticket_id", "task_type", "risk_band", "actual_duration_ms", "sla_met"]
        if frame.empty:
            return pd.DataFrame({name: [] for name in columns})
        frame.insert(0, "timestamp", pd.to_datetime(frame.pop("t").astype("int64"), unit="s", utc=True))
        frame["actual_duration_ms"] = frame["actual_duration_ms"].where(frame["actual_duration_ms"] > 0)
        frame["sla_met"] = frame["sla_met"].astype("boolean")
        return frame[columns]

    def per_ticket_usage(self, *, by_slice: bool = True) -> list[TicketUsage]:
        """What a ticket takes on average, by task type and risk band or, without `by_slice`, in all (one entry).

        A duration, CPU or memory of 0 in `execution_logs` means "not known" and is left out of the averages.
        """
        keys = "task_type, risk_band" if by_slice else "NULL, NULL"
        tail = "GROUP BY task_type, risk_band ORDER BY count() DESC, task_type, risk_band" if by_slice else ""
        rows = self.rows(
            f"SELECT {keys}, count(), avg(d), avg(c), avg(m), avg(c * d) / 3600e3, avg(m * d) / 3600e3 FROM ("  # noqa: S608
            "SELECT task_type, risk_band, nullIf(toFloat64(actual_duration_ms), 0) AS d, "
            "nullIf(toFloat64(resource_cpu), 0) AS c, nullIf(toFloat64(resource_memory), 0) AS m "
            f"FROM {self._t('execution_logs')}) {tail}",
            name="per_ticket_usage",
        )
        names = TicketUsage.__struct_fields__
        return [TicketUsage(**dict(zip(names, row, strict=True))) for row in rows if row[2]]

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
        where, parameters = _where(None, None, since, until, column="decided_at")
        return self.dicts(
            "SELECT action, source, arm, reason, count() AS decisions "  # noqa: S608
            f"FROM {self._t('scheduling_decisions_raw')} FINAL {where} "
            "GROUP BY action, source, arm, reason ORDER BY decisions DESC, action, source, arm, reason",
            parameters,
            name="decision_summary",
        )

    def reward_summary(
        self, since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[dict[str, Any]]:
        """By `arm`: how many `decisions`, `outcomes`, `rewarded`; `mean_reward`, `sla_rate`, `mean_duration_ms`."""
        where, parameters = _where(None, None, since, until, column="decided_at")
        return self.dicts(
            "SELECT arm, count() AS decisions, count(status) AS outcomes, count(reward) AS rewarded, "  # noqa: S608
            "avg(reward) AS mean_reward, avg(sla_met) AS sla_rate, avg(actual_duration_ms) AS mean_duration_ms "
            f"FROM {self._t('scheduling_decisions')} {where} GROUP BY arm ORDER BY arm",
            parameters,
            name="reward_summary",
        )

    def counts(self) -> dict[str, int]:
        """Rows in each table of the database."""
        rows = self.rows(
            "SELECT name, coalesce(total_rows, 0) FROM system.tables WHERE database = {database:String} "
            "AND engine LIKE '%MergeTree' ORDER BY name",
            {"database": self.database},
        )
        return {str(name): int(count) for name, count in rows}


def _once() -> dict[str, str]:
    """Of one insert: the client sends it again when an answer is lost, and the table then knows it."""
    return {"insert_deduplication_token": uuid.uuid4().hex}


def _fitted(build: Callable[[_Record, float], list[Any]], items: Sequence[tuple[_Record, float]]) -> list[list[Any]]:
    try:
        return [build(*item) for item in items]
    except ValueError as error:
        raise RejectedRowsError(str(error)) from error


def _where(
    task_type: str | None,
    risk_band: str | None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    *,
    column: str = "timestamp",
) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for name, value in (("task_type", task_type), ("risk_band", risk_band)):
        if value is not None:
            conditions.append(f"{name} = {{{name}:String}}")
            parameters[name] = value
    for name, sign, moment in (("since", ">=", since), ("until", "<", until)):
        if moment is not None:
            conditions.append(f"toUnixTimestamp({column}) {sign} {{{name}:Float64}}")
            parameters[name] = _utc(moment).timestamp()
    return ("WHERE " + " AND ".join(conditions) if conditions else ""), parameters


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


def _hour(moment: dt.datetime | None) -> int | None:
    return None if moment is None else int(_utc(moment).timestamp() // 3600)


def _decoded(text: str) -> Any:
    return msgspec.json.decode(text) if text else None
