"""Every hook, in one readable file. Start here to extend the scheduler.

A verb asks a question (`decide`, `recommend`, `guard`), `make_` builds an exchangeable part, `after_` and `on_`
observe and cannot change a thing. Hooks are synchronous; take only the arguments you need; give none a default.

    from nhm_sched_plugin import hookimpl, Veto

    @hookimpl
    def nhm_sched_guard(ticket, recommendation):
        if recommendation.action == "DECREASE_WORKER_POOL":
            return Veto(guard="never_shrink", reason="somebody said so")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from nhm_sched_plugin.advice.protocols import Forecaster, Policy, Sink
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.types import (
        Decision,
        Forecast,
        Health,
        Outcome,
        Recommendation,
        SchedulingState,
        Ticket,
        Veto,
    )

__all__ = ["PROJECT", "ExtensionSpecs", "SchedulerSpecs", "hookimpl", "hookspec"]

PROJECT: Final = "nhm_sched"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class SchedulerSpecs:
    """The orchestrator calls, the plugin implements."""

    @hookspec(historic=True)
    def nhm_sched_startup(self, config: Settings, host: Any) -> None:
        """Called once when the host is up; plugins registered later get it as well."""

    @hookspec(firstresult=True)
    def nhm_sched_decide(self, ticket: Ticket | None, state: SchedulingState) -> Decision | None:
        """What to do for this ticket, or for the pool when `ticket` is None (a control tick)."""

    @hookspec
    def nhm_sched_decision_applied(self, decision: Decision, applied: bool, error: str | None) -> None:
        """What the host really did with a decision."""

    @hookspec
    def nhm_sched_task_finished(self, outcome: Outcome) -> None:
        """A ticket ended, or a control interval passed: the source of the reward."""

    @hookspec
    def nhm_sched_health(self) -> list[Health] | None:
        """Is this plugin ready, part by part?"""

    @hookspec
    def nhm_sched_shutdown(self, grace_s: float) -> None:
        """Flush and close within `grace_s` seconds."""


class ExtensionSpecs:
    """The plugin calls, developers implement. The built-ins implement the same hooks, `trylast`."""

    @hookspec(firstresult=True)
    def nhm_sched_make_forecaster(self, settings: Settings) -> Forecaster | None:
        """Build the forecaster, once. Raises: rules only, and an alert."""

    @hookspec(firstresult=True)
    def nhm_sched_make_policy(self, settings: Settings) -> Policy | None:
        """Build the policy, once. Raises: rules only, and an alert."""

    @hookspec
    def nhm_sched_make_sinks(self, settings: Settings) -> list[Sink] | None:
        """Where records go besides the spool, once. Raises: that sink is skipped."""

    @hookspec
    def nhm_sched_collect_state(self, ticket: Ticket | None) -> Mapping[str, float] | None:
        """Features to add to the state; rule conditions read them as `features.NAME`. Raises: they are skipped."""

    @hookspec(firstresult=True)
    def nhm_sched_recommend(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast
    ) -> Recommendation | None:
        """What should be done? None: ask the next plugin, at last the policy. Raises: fallback."""

    @hookspec
    def nhm_sched_guard(
        self, ticket: Ticket | None, state: SchedulingState, recommendation: Recommendation
    ) -> Veto | None:
        """Say no to a recommendation. Any veto wins. Raises: counts as a veto."""

    @hookspec(firstresult=True)
    def nhm_sched_fallback(self, ticket: Ticket | None, state: SchedulingState, reason: str) -> Recommendation | None:
        """What to do when the policy is not followed. None or raises: the next plugin, at last the rule book."""

    @hookspec(firstresult=True)
    def nhm_sched_reward(self, before: SchedulingState, after: SchedulingState) -> float | None:
        """How good was it, in [-1, 1]? Raises: no reward is recorded."""

    @hookspec(firstresult=True)
    def nhm_sched_actuate(self, decision: Decision) -> bool | None:
        """Carry the decision out and answer True. None: the host applies it. Raises: reported, not applied."""

    @hookspec
    def nhm_sched_after_decision(self, record: Decision) -> None:
        """A decision was recorded. In the background; for logs, metrics, notices."""

    @hookspec
    def nhm_sched_after_outcome(self, record: Outcome, reward: float | None) -> None:
        """An outcome was recorded. In the background."""

    @hookspec
    def nhm_sched_on_error(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        """A hook of some plugin failed or overslept. Raises: swallowed."""
