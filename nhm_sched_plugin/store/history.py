"""What forecasters, capacity planners and replays ask about tickets of the past."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.store.schema import FEATURES
from nhm_sched_plugin.store.statements import Statements, utc, where

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.store.series import Hours, SystemHours

__all__ = ["History", "TicketUsage"]

Slice = tuple[str | None, str | None]
"""Task type and risk band; None: all of them."""
_VOLUME: Final = "ticket_volume_hourly"
_SLICES: Final = 50
"""About so many slices a query: their counts by hour are a few hundred thousand rows."""
_HOUR: Final = "intDiv(toUnixTimestamp(hour), 3600)"


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


class History(Statements):
    """Questions about tickets that have arrived. All of them read the views `tickets` and `hours_alive`."""

    def slices(self) -> list[tuple[str, str, int]]:
        """(task type, risk band, tickets) of everything in `execution_logs`, busiest first."""
        sql = (
            f"SELECT task_type, risk_band, count() AS n FROM {self._t('tickets')} "  # noqa: S608
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
        """Tickets per hour: idle hours are 0, outages NaN (`store.series` says how they are told apart).

        A Series on an hourly UTC DatetimeIndex from the slice's first ticket to the last sign of life of anything,
        within [since, until) cut to whole hours (so pass the running hour as `until` to leave it out). Empty Series:
        no such tickets. Naive datetimes are UTC.
        """
        return self.hourly_volumes([(task_type, risk_band)], since, until)[0]

    def hourly_volumes(
        self, slices: Sequence[Slice], since: dt.datetime | None = None, until: dt.datetime | None = None
    ) -> list[pd.Series[float]]:
        """`hourly_volume` of each of these slices, in their order, with one query for many task types at a time."""
        system = self._system_hours()
        result: dict[Slice, pd.Series[float]] = {}
        for chunk in _chunks(slices):
            for slice_, hours, counts in self._counts(chunk):
                result[slice_] = self._filled(system, hours, counts, since, until)
        return [result[slice_] for slice_ in slices]

    def _filled(
        self, system: SystemHours, hours: Hours, counts: Hours, since: dt.datetime | None, until: dt.datetime | None
    ) -> pd.Series[float]:
        import pandas as pd

        if len(hours):
            return system.series(hours, counts, _hour(since), _hour(until))
        nothing: pd.Series[float] = pd.Series(0.0, index=pd.DatetimeIndex([], tz="UTC"), name="volume")
        return nothing

    def _system_hours(self) -> SystemHours:
        from nhm_sched_plugin.store.series import SystemHours

        hour, busy, watched = self._whole_numbers(
            f"SELECT {_HOUR} AS at, tickets > 0 AS busy, telemetry + snapshots > 0 AS watched "  # noqa: S608
            f"FROM {self._t('hours_alive')}",
            ("at", "busy", "watched"),
        )
        return SystemHours(hour[busy > 0], hour[watched > 0])

    def _counts(self, slices: Sequence[Slice]) -> Iterator[tuple[Slice, Hours, Hours]]:
        """Hours with tickets and how many, of each slice: all of the same few task types, or all without one."""
        import numpy as np

        types = sorted({kind for kind, _ in slices if kind is not None})
        bands = sorted({band for _, band in slices if band is not None})
        only = "WHERE has({types:Array(String)}, task_type)" if types else ""
        kind_of, band_of, hour, count = self._whole_numbers(
            "SELECT indexOf({types:Array(String)}, task_type) AS kind, "  # noqa: S608
            f"indexOf({{bands:Array(String)}}, risk_band) AS band, {_HOUR} AS at, {FEATURES[_VOLUME]} AS n "
            f"FROM {self._t('tickets')} {only} GROUP BY kind, band, hour",
            ("kind", "band", "at", "n"),
            {"types": types, "bands": bands},
        )
        for kind, band in slices:
            mine = np.ones(len(hour), dtype=bool)
            if kind is not None:
                mine &= kind_of == types.index(kind) + 1
            if band is not None:
                mine &= band_of == bands.index(band) + 1
            at, place = np.unique(hour[mine], return_inverse=True)
            yield (kind, band), at, np.bincount(place, weights=count[mine], minlength=len(at)).astype(np.int64)

    def _whole_numbers(self, sql: str, columns: Sequence[str], parameters: dict[str, Any] | None = None) -> list[Hours]:
        import numpy as np

        frame = self.frame(sql, parameters, name="hourly_volume")
        if frame.empty:
            return [np.zeros(0, dtype=np.int64) for _ in columns]
        return [frame[name].to_numpy(dtype=np.int64) for name in columns]

    def features(
        self,
        task_type: str | None = None,
        risk_band: str | None = None,
        since: dt.datetime | None = None,
        until: dt.datetime | None = None,
    ) -> pd.DataFrame:
        """The features of a slice by hour, on the index of `hourly_volume`: what `features_hourly` has, and more.

        `ticket_volume_hourly` (0 where idle, NaN in an outage), `avg_duration_by_type` (ms), `sla_compliance_rate`
        (0 to 1), `resource_cpu_p95` (cores), `queue_depth_avg` (of the whole system, also in idle hours). NaN: not
        known, which in an hour without tickets is everything but volume and queue.
        """
        import pandas as pd

        volume = self.hourly_volume(task_type, risk_band, since, until).rename(_VOLUME)
        condition, parameters = where(task_type, risk_band)
        others = [name for name in FEATURES if name != _VOLUME]
        sql = ", ".join(f"{FEATURES[name]}" for name in others)
        found = self.rows(
            f"SELECT {_HOUR} AS at, {sql} FROM {self._t('tickets')} {condition} GROUP BY hour",  # noqa: S608
            parameters,
            name="features",
        )
        queue = self.rows(
            f"SELECT {_HOUR}, queue_depth_avg FROM {self._t('hours_alive')} WHERE snapshots > 0",  # noqa: S608
            name="features",
        )

        def placed(rows: list[tuple[Any, ...]], names: list[str]) -> pd.DataFrame:
            stamps = pd.to_datetime([int(row[0]) * 3600 for row in rows], unit="s", utc=True)
            values = pd.DataFrame([row[1:] for row in rows], index=stamps, columns=pd.Index(names), dtype=float)
            return values.reindex(volume.index)

        return pd.concat([volume, placed(found, others), placed(queue, ["queue_depth_avg"])], axis=1)

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

        condition, parameters = where(task_type, risk_band, since, until)
        frame = self.frame(
            "SELECT toUnixTimestamp(timestamp) AS t, ticket_id, task_type, risk_band, "  # noqa: S608
            f"actual_duration_ms, sla_met FROM {self._t('tickets')} {condition} "
            "ORDER BY timestamp, ticket_id",
            parameters,
            name="execution_logs",
        )
        columns = ["timestamp", "ticket_id", "task_type", "risk_band", "actual_duration_ms", "sla_met"]
        if frame.empty:
            return pd.DataFrame({name: [] for name in columns})
        frame.insert(0, "timestamp", pd.to_datetime(frame.pop("t").astype("int64"), unit="s", utc=True))
        frame["actual_duration_ms"] = frame["actual_duration_ms"].astype(float)
        frame["sla_met"] = frame["sla_met"].astype("boolean")
        return frame[columns]

    def per_ticket_usage(self, *, by_slice: bool = True) -> list[TicketUsage]:
        """What a ticket takes on average, by task type and risk band or, without `by_slice`, in all (one entry).

        A duration, CPU or memory of 0 in `execution_logs` means "not known" and is left out of the averages.
        """
        keys = "task_type, risk_band" if by_slice else "NULL, NULL"
        tail = "GROUP BY task_type, risk_band ORDER BY count() DESC, task_type, risk_band" if by_slice else ""
        rows = self.rows(
            f"SELECT {keys}, count(), {FEATURES['avg_duration_by_type']}, avg(resource_cpu), avg(resource_memory), "  # noqa: S608
            "avg(resource_cpu * actual_duration_ms) / 3600e3, avg(resource_memory * actual_duration_ms) / 3600e3 "
            f"FROM {self._t('tickets')} {tail}",
            name="per_ticket_usage",
        )
        names = TicketUsage.__struct_fields__
        return [TicketUsage(**dict(zip(names, row, strict=True))) for row in rows if row[2]]


def _hour(moment: dt.datetime | None) -> int | None:
    return None if moment is None else int(utc(moment).timestamp() // 3600)


def _chunks(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """Slices of the same task types together, so that no query counts what another one has counted."""
    by_kind: dict[str | None, list[Slice]] = {}
    for slice_ in dict.fromkeys(slices):
        by_kind.setdefault(slice_[0], []).append(slice_)
    for slice_ in by_kind.pop(None, []):
        yield [slice_]
    chunk: list[Slice] = []
    for some in by_kind.values():
        chunk += some
        if len(chunk) >= _SLICES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
