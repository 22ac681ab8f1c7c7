"""SchedulerHost: the orchestrator's end of the plugin.

    with SchedulerHost.from_config("nhm-sched.yaml") as host:
        decision = host.decide(Ticket(ticket_id="t1"), SchedulingState(queue_depth=150, active_workers=10))
        host.applied(decision)
        host.finished(Outcome(decision_id=decision.decision_id, ticket_id="t1", sla_met=True))

No method raises into the orchestrator and none waits past `decision_budget_ms`; only `from_config` raises, and only
for what a person has to mend first: a wrong setting or rule book. A service that is down is not among that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from nhm_sched_plugin.background import Pool
from nhm_sched_plugin.extension import Found, HookManager, deadline, discover
from nhm_sched_plugin.hookspecs import SchedulerSpecs
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.pipeline import last_resort
from nhm_sched_plugin.plugin import SchedulerPlugin
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.types import STATE_FIELDS, Decision, Health, Outcome, SchedulingState, Ticket

__all__ = ["SchedulerHost"]

logger = logging.getLogger(__name__)

ASYNC_THREADS: Final = 4
UNKNOWN_STATE: Final = SchedulingState()


class SchedulerHost:
    """Loads the plugin and everybody's scheduler hooks, and keeps their failures away from the orchestrator.

    `clock` returns Unix seconds and is the only source of time; simulations pass their own. `plugins` are extra plugin
    objects (or modules) by name, treated like any third-party plugin.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        plugins: Mapping[str, Any] | None = None,
        config_path: Path | None = None,
    ) -> None:
        self.settings, self.clock, self.config_path = settings, clock, config_path
        self.metrics = Metrics()
        self.faults = Faults(self.metrics)
        given = [Found(name, "given to the host", plugin) for name, plugin in (plugins or {}).items()]
        self._plugin = SchedulerPlugin(given)
        self._hooks = HookManager(SchedulerSpecs, settings.hooks, self.faults)
        self._hook: Any = self._hooks.hook
        self._pool = Pool(ASYNC_THREADS, "nhm-sched-async")
        self._closed = False
        self._hooks.add_builtin(self._plugin, "nhm-sched-plugin")
        self._add_third_parties(given)
        self._alone = len(self._hook.nhm_sched_decide.get_hookimpls()) == 1
        self._hook.nhm_sched_startup.call_historic(kwargs={"config": settings, "host": self})

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike[str] | Mapping[str, Any] | Settings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        plugins: Mapping[str, Any] | None = None,
    ) -> Self:
        """A running host from a YAML file, a mapping or nothing. Raises `ConfigError` or `RuleBookError` only."""
        path = Path(config) if isinstance(config, str | os.PathLike) else None
        return cls(load_settings(config), clock=clock, plugins=plugins, config_path=path)

    def _add_third_parties(self, given: Iterable[Found]) -> None:
        for found in given:
            self._hooks.add(found)
        for found in discover(self.settings.hooks, self.settings.hooks_dir):
            # A file that cannot be loaded is the extension manager's to report, once.
            if found.problem is None:
                self._hooks.add(found)

    def decide(self, ticket: Ticket | None, state: SchedulingState | Mapping[str, Any] | None = None) -> Decision:
        """What to do for this ticket, or for the pool when `ticket` is None. Always a valid decision, in time."""
        try:
            if self._alone:  # the plugin bounds itself
                decision = self._hook.nhm_sched_decide(ticket=_as_ticket(ticket), state=_as_state(state))
            else:
                with deadline(self._budget_s()):
                    decision = self._hook.nhm_sched_decide(ticket=_as_ticket(ticket), state=_as_state(state))
            if isinstance(decision, Decision):
                return decision
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
        return self._last_resort(ticket)

    async def adecide(
        self, ticket: Ticket | None, state: SchedulingState | Mapping[str, Any] | None = None
    ) -> Decision:
        """As `decide`, without holding the event loop: runs in a bounded pool, under the budget."""
        try:
            future = asyncio.wrap_future(self._pool.submit(self.decide, ticket, state))
            # The budget is kept inside; the margin only covers a thread that does not get to run.
            return await asyncio.wait_for(future, 2 * self._budget_s())
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
            return self._last_resort(ticket)

    def applied(self, decision: Decision, applied: bool = True, error: str | BaseException | None = None) -> None:
        """Report what was really done with a decision."""
        problem = None if error is None else str(error)
        self._observe("nhm_sched_decision_applied", decision=decision, applied=bool(applied), error=problem)

    def finished(self, outcome: Outcome) -> None:
        """Report the end of a ticket (or of a control interval): where the reward comes from."""
        self._observe("nhm_sched_task_finished", outcome=outcome)

    def health(self) -> list[Health]:
        """Every component's readiness."""
        answers = self._observe("nhm_sched_health") or []
        return [health for answer in answers for health in answer]

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was decided so far is learned from and on disk; False when that takes longer."""
        try:
            return self._plugin.flush(timeout_s)
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
            return False

    def close(self, grace_s: float = 10.0) -> None:
        """Flush and stop, within about `grace_s` seconds. Safe to call twice; later decisions are the last resort."""
        if not self._closed:
            self._closed = True
            self._observe("nhm_sched_shutdown", grace_s=grace_s)
            self._hooks.close()
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _observe(self, hook_name: str, **arguments: Any) -> Any:
        try:
            with deadline(self._budget_s()):
                return getattr(self._hook, hook_name)(**arguments)
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
            return None

    def _budget_s(self) -> float:
        return self._plugin.settings.optimizer.decision_budget_ms / 1000

    def _swallow(self, error: BaseException) -> None:
        try:
            self.faults.report("host", error)
        except Exception:  # noqa: BLE001 - not even the reporting of a failure may fail the host
            logger.debug("could not report %r", error)

    def _last_resort(self, ticket: Any) -> Decision:
        try:
            now = self.clock()
        except Exception:  # noqa: BLE001 - a broken clock
            now = time.time()
        return last_resort(ticket, now)


def _as_ticket(ticket: Any) -> Ticket | None:
    if ticket is None or isinstance(ticket, Ticket):
        return ticket
    return msgspec.convert(ticket, Ticket, from_attributes=True)


def _as_state(state: Any) -> SchedulingState:
    """The state as our own type; fields of a mapping that we do not know are left out."""
    if isinstance(state, SchedulingState):
        return state
    if isinstance(state, Mapping):
        return SchedulingState(**{name: state[name] for name in (*STATE_FIELDS, "features") if name in state})
    return UNKNOWN_STATE
