"""The agent's tables as files in this host: the very files that training writes, kept up to date by a thread.

The agent is asked by etag, so that a table that has not changed costs a few bytes. What comes is read as its readers
read it, digests checked, before it replaces a file: garbage never does. When the agent has last confirmed the copy is
the modification time of the file `confirmed`, so that the processes of a host share the asking, and a restarted one
knows how old its copy is.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nhm_sched_plugin.advice.remote.calls import Caller
from nhm_sched_plugin.errors import AgentUnavailableError, ModelError
from nhm_sched_plugin.files import replace_file, stamp
from nhm_sched_plugin.forecasting.table import parse_table
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.settings import Settings

__all__ = ["Mirror"]

_log = logging.getLogger(__name__)
Stamp = tuple[int, int, int] | None
MARK: Final = "confirmed"
"""The file whose modification time is the last confirmation."""
_SHARED: Final = 0.9
"""Of the interval: another process that has asked within this much of it has asked for us as well."""
_CLOCK_WRONG_S: Final = 60.0
"""A confirmation further in the future than that says that the clock was set back: nobody knows its age."""
_SOON_S: Final = 0.05


class _Table(NamedTuple):
    name: str
    rpc: str
    paths: tuple[Path, ...]
    """The files, the one that readers look at first at the head."""


class Mirror:
    """`fresh` is for the hot path; `look` for the one thread that keeps the files up to date.

    Args:
        on_new: called after files were replaced, here or by another process.
    """

    def __init__(
        self, settings: Settings, caller: Caller, metrics: Metrics, faults: Faults, on_new: Callable[[], None]
    ) -> None:
        optimizer = settings.optimizer
        self.forecast_path = settings.served_forecast_path
        self.q_table_path = settings.served_q_table_path
        self.planner_path = settings.served_planner_path
        self._mark = settings.mirror_path / MARK
        self._interval_s, self._most_age_s = optimizer.mirror_interval_s, optimizer.mirror_max_age_s
        self._caller, self._metrics, self._faults, self._on_new = caller, metrics, faults, on_new
        self._tables = (
            _Table("policy", "GetPolicySnapshot", (self.q_table_path, self.planner_path)),
            _Table("forecast", "GetForecastSnapshot", (self.forecast_path,)),
        )
        self._known: dict[str, tuple[list[Stamp], str]] = {}
        self._seen = [stamp(path) for path in self._paths()]
        self._marked = stamp(self._mark)
        self._confirmed_at = -math.inf if self._marked is None else time.monotonic() - self._age_of_mark()
        self._silent = False
        self.looked = False
        """Whether the first look is over: before that a table may be on its way, and a question would be in vain."""
        self.after_fork()
        renew_after_fork(self)
        metrics.before_reading(lambda: metrics.child("mirror_age").set(self.age_s()))

    def after_fork(self) -> None:
        self._looking = threading.Lock()

    @property
    def fresh(self) -> bool:
        """Whether the agent has confirmed the tables within `mirror_max_age_s`, to any process of the host."""
        return time.monotonic() - self._confirmed_at < self._most_age_s

    def age_s(self) -> float:
        """Seconds since then; infinite when it never has."""
        return time.monotonic() - self._confirmed_at

    def look(self) -> float:
        """Ask the agent, unless another process just has; returns the seconds until the next look is due."""
        with self._looking:
            try:
                return self._look()
            finally:
                self.looked = True

    def _look(self) -> float:
        self._notice()
        left = self._interval_s * _SHARED - self.age_s()
        if left > 0:
            return left + self._interval_s * (1 - _SHARED)
        try:
            for table in self._tables:
                self._ask_for(table)
        except (AgentUnavailableError, ModelError, OSError) as error:
            self._silent = True
            if getattr(error, "reason", "") != "CANCELLED":  # by ourselves
                self._faults.report("optimizer agent", str(error))
            return min(self._interval_s, max(self._caller.endpoints.wait_s(), _SOON_S))
        finally:
            self._notice()
        self._confirm()
        return self._interval_s

    def _confirm(self) -> None:
        if self._silent:
            _log.info("the optimizer agent answers again")
            self._silent = False
        self.looked = True  # before it is fresh: nobody is to hear that it has yet to be asked for
        self._confirmed_at = time.monotonic()
        try:
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
            self._marked = stamp(self._mark)
        except OSError as error:  # only the other processes miss it
            self._faults.report("optimizer agent", error)

    def _notice(self) -> None:
        """What other processes of the host have done since the last look."""
        marked = stamp(self._mark)
        if marked is not None and marked != self._marked:
            # It came between two looks. The clock's word on when is taken only where it is not absurd.
            self._confirmed_at = max(self._confirmed_at, time.monotonic() - min(self._age_of_mark(), self._interval_s))
            self._marked = marked
        seen = [stamp(path) for path in self._paths()]
        if seen != self._seen:
            self._seen = seen
            self._on_new()

    def _age_of_mark(self) -> float:
        """By the clock, the only one that outlives a process."""
        try:
            age = time.time() - self._mark.stat().st_mtime
        except OSError:
            return math.inf
        return max(age, 0.0) if age > -_CLOCK_WRONG_S else math.inf

    def _paths(self) -> tuple[Path, ...]:
        return self.q_table_path, self.planner_path, self.forecast_path

    def _ask_for(self, table: _Table) -> None:
        """Raises `AgentUnavailableError`, `ModelError` for what cannot be used, OSError where none can be written."""
        from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

        answer = self._caller.call(table.rpc, pb.SnapshotRequest(etag=self._etag(table)))
        if answer.not_modified or not answer.content:
            return  # an agent without a table has none to give; a copy of an earlier one is better than nothing
        try:
            self._take_over(table, answer.content, answer.etag)
        except ModelError as error:
            self._metrics.child("mirror_takeovers", table.name, "refused").inc()
            raise ModelError(f"the agent's {table.name} table is not taken over: {error}") from None
        self._metrics.child("mirror_takeovers", table.name, "success").inc()
        self._known[table.name] = ([stamp(path) for path in table.paths], answer.etag)

    def _etag(self, table: _Table) -> str:
        """Of what the files hold now: the agent's own name for it, or what it would be called; "" for no files."""
        from nhm_sched_plugin.wire.snapshots import etag, pack_policy

        stamps = [stamp(path) for path in table.paths]
        known = self._known.get(table.name)
        if known is not None and known[0] == stamps:
            return known[1]
        if stamps[0] is None:
            return ""
        contents = [
            None if found is None else path.read_bytes() for path, found in zip(table.paths, stamps, strict=True)
        ]
        first = contents[0] or b""
        tag = etag(first if table.name == "forecast" else pack_policy(first, contents[1]))
        self._known[table.name] = (stamps, tag)
        return tag

    def _take_over(self, table: _Table, content: bytes, etag: str) -> None:
        from nhm_sched_plugin.wire.snapshots import unpack_policy

        if hashlib.sha256(content).hexdigest() != etag:
            raise ModelError("it does not match its etag (damaged on its way)")
        if table.name == "forecast":
            parse_table(content, self.forecast_path.name)
            replace_file(self.forecast_path, content)
            return
        q_table, planner = unpack_policy(content)
        QTable.parse(q_table, self.q_table_path.name)
        if planner is not None:
            DemandModel.parse(planner, self.planner_path.name)
            replace_file(self.planner_path, planner)
        replace_file(self.q_table_path, q_table)
        if planner is None:
            self.planner_path.unlink(missing_ok=True)
