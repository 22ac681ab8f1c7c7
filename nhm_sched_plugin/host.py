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
import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from nhm_sched_plugin.background import Pool
from nhm_sched_plugin.extension import Found, HookManager, deadline, discover, is_disabled
from nhm_sched_plugin.given import as_outcome, as_state, as_ticket
from nhm_sched_plugin.hookspecs import SchedulerSpecs
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.pipeline import last_resort
from nhm_sched_plugin.plugin import SchedulerPlugin
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.types import Decision, Health, Outcome, SchedulingState, Ticket

__all__ = ["SchedulerHost"]

logger = logging.getLogger(__name__)

OWN_NAME: Final = "nhm-sched-plugin"
ASYNC_THREADS: Final = 4


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
        # Each plugin is loaded once: what its two kinds of hooks share - a module's variables - is one and the same.
        given = [Found(name, "given to the host", plugin) for name, plugin in (plugins or {}).items()]
        found = [one for one in given if not is_disabled(settings.hooks, one.name)]
        found += discover(settings.hooks, settings.hooks_dir)
        self._plugin = SchedulerPlugin(found)
        self._hooks = HookManager(SchedulerSpecs, settings.hooks, self.faults)
        self._hook: Any = self._hooks.hook
        self._pool = Pool(ASYNC_THREADS, "nhm-sched-async", wait_in_line=True)
        self._closed = False
        self._hooks.add_builtin(self._plugin, OWN_NAME)
        self._hook.nhm_sched_startup.call_historic(kwargs={"config": settings, "host": self})
        self._add_third_parties(found)
        atexit.register(_close_at_exit, weakref.ref(self))

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

    def _add_third_parties(self, found: Iterable[Found]) -> None:
        """After the plugin's own start, which has checked them all: what it refused is refused here without a word."""
        self._hooks.on_error = self._plugin.observers.hook_failed
        problems = self._plugin.hooks.problems
        for one in found:
            if one.name not in problems:
                self._hooks.add(one)
        problems.update(self._hooks.problems)

    def decide(self, ticket: Ticket | None, state: SchedulingState | Mapping[str, Any] | None = None) -> Decision:
        """What to do for this ticket, or for the pool when `ticket` is None. Always a valid decision, in time."""
        try:
            # Nobody but the plugin answers this hook, and it bounds itself.
            decision = self._hooks.call.nhm_sched_decide(ticket=as_ticket(ticket), state=as_state(state))
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
        try:
            done, problem = bool(applied), None if error is None else str(error) or type(error).__name__
        except Exception as unusable:  # noqa: BLE001 - an exception whose own text fails, say
            done, problem = False, f"{type(error).__name__} ({type(unusable).__name__} when asked for its text)"
        self._observe("nhm_sched_decision_applied", decision=decision, applied=done, error=problem)

    def finished(self, outcome: Outcome | Mapping[str, Any]) -> None:
        """Report the end of a ticket (or of a control interval): where the reward comes from."""
        try:
            plain = as_outcome(outcome, self._unusable)
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
            return
        if self._closed:
            self._lost("an outcome")
        self._observe("nhm_sched_task_finished", outcome=plain)

    def health(self) -> list[Health]:
        """Every component's readiness."""
        answers: list[list[Health]] = self._observe("nhm_sched_health") or []
        return [health for answer in answers for health in answer]

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was decided so far is learned from and on disk; False when that takes longer."""
        try:
            return self._plugin.flush(timeout_s)
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
            return False

    def refresh(self) -> None:
        """Look at changed files (configuration, rule book, snapshots) now instead of within a second.

        For simulations, whose clock runs faster than the background thread's. No file may be half written.
        """
        try:
            self._plugin.refresh(complete=True)
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)

    def close(self, grace_s: float = 10.0) -> None:
        """Flush and stop, within about `grace_s` seconds. Safe to call twice; later decisions are the last resort."""
        if not self._closed:
            self._closed = True
            # Third parties come first and share half of the time; the plugin's own flush has the rest.
            self._observe("nhm_sched_shutdown", grace_s / 2, grace_s=grace_s)
            self._hooks.close()
            self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _observe(self, hook_name: str, seconds: float | None = None, **arguments: Any) -> Any:
        try:
            with deadline(self._budget_s() if seconds is None else seconds):
                return getattr(self._hook, hook_name)(**arguments)
        except Exception as error:  # noqa: BLE001 - the host comes first
            self._swallow(error)
            return None

    def _lost(self, what: str) -> None:
        if self.settings.recording.enabled:
            self.metrics.child("records", "dropped").inc()
            self.metrics.child("drops", "closed").inc()
            self.faults.report("recorder", f"{what} came after the host was closed and is not recorded")

    def _unusable(self, name: str) -> None:
        self.faults.report("outcome", f"the host's {name} is unusable and counts as unknown")

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
        decision = last_resort(ticket, now)
        if self._closed:
            self._lost("a decision")
        try:
            self._plugin.note(decision)
        except Exception as error:  # noqa: BLE001 - the decision goes out all the same
            self._swallow(error)
        return decision


def _close_at_exit(reference: weakref.ref[SchedulerHost]) -> None:
    """What was decided but not yet written is written, also when nobody closed the host."""
    host = reference()
    if host is not None:
        host.close()
