"""Tells the hooks that only watch (and `nhm_sched_actuate`) what happened, in a thread of its own.

They may take their time: records and learning do not wait for them. Past a bounded queue some are not told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nhm_sched_plugin.background import Worker
from nhm_sched_plugin.extension import HookManager, deadline
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.types import Action, Decision, Outcome

__all__ = ["OBSERVER_TIMEOUT_S", "Observers"]

OBSERVER_TIMEOUT_S: Final = 1.0
MOST_OBSERVATIONS: Final = 10_000
"""Waiting for slow observers; beyond it they miss some."""
MOST_ERRORS: Final = 200
"""Of those, errors: each holds its traceback, and thousands would slow down the host's garbage collection."""


class Observers:
    """One per plugin. `applied(decision, applied, error)` hears what became of an `nhm_sched_actuate`."""

    def __init__(
        self, hooks: HookManager, faults: Faults, applied: Callable[[Decision, bool, str | None], None]
    ) -> None:
        self._hook: Any = hooks.hook
        self._faults, self._applied = faults, applied
        self._worker = Worker("nhm-sched-observers", faults.report, MOST_OBSERVATIONS)

    def decided(self, decision: Decision) -> None:
        """To `nhm_sched_actuate` and `nhm_sched_after_decision`."""
        if self._anybody("nhm_sched_after_decision") or self._anybody("nhm_sched_actuate"):
            self._submit("after_decision", self._tell_decision, decision)

    def finished(self, outcome: Outcome, reward: float | None) -> None:
        """To `nhm_sched_after_outcome`."""
        if self._anybody("nhm_sched_after_outcome"):
            self._submit("after_outcome", self._tell_outcome, outcome, reward)

    def hook_failed(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        """To `nhm_sched_on_error`."""
        if not self._anybody("nhm_sched_on_error"):
            return
        if self._worker.waiting() > MOST_ERRORS:
            self._faults.report("observers", "hooks fail faster than they are told about it: some were not told")
            return
        self._submit("on_error", self._tell_error, hook_name, plugin_name, error)

    def flush(self, timeout_s: float) -> bool:
        """Wait until they know everything so far; False when that took too long."""
        return self._worker.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Tell what is waiting, as far as the time allows, and end the thread."""
        self._worker.close(timeout_s)

    def _anybody(self, hook_name: str) -> bool:
        return bool(getattr(self._hook, hook_name).get_hookimpls())

    def _submit(self, what: str, task: Callable[..., None], *args: Any) -> None:
        if not self._worker.submit(what, task, *args):
            self._faults.report("observers", "hooks that observe are too slow: some were not told")

    def _tell_decision(self, decision: Decision) -> None:
        if decision.action is not Action.NO_ACTION and self._anybody("nhm_sched_actuate"):
            self._actuate(decision)
        with deadline(OBSERVER_TIMEOUT_S):
            self._hook.nhm_sched_after_decision(record=decision)

    def _actuate(self, decision: Decision) -> None:
        try:
            with deadline(OBSERVER_TIMEOUT_S):
                carried_out = self._hook.nhm_sched_actuate(decision=decision)
        except Exception as error:  # noqa: BLE001 - reported, not applied
            self._applied(decision, False, str(error))
            return
        if carried_out:
            self._applied(decision, True, None)

    def _tell_outcome(self, outcome: Outcome, reward: float | None) -> None:
        with deadline(OBSERVER_TIMEOUT_S):
            self._hook.nhm_sched_after_outcome(record=outcome, reward=reward)

    def _tell_error(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        with deadline(OBSERVER_TIMEOUT_S):
            self._hook.nhm_sched_on_error(hook_name=hook_name, plugin_name=plugin_name, error=error)
