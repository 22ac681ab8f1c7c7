"""The built-in guard: limits, cooldown, and the rule that workers are never removed on a forecast alone.

`Limits.check` says no to a recommendation; `Limits.restrain` brings a rule's pool action inside the same limits,
because behind the fallback there is nobody left to ask. A check costs about a microsecond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.types import Action, Recommendation, SchedulingState, Ticket, Veto

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import LimitSettings

__all__ = ["POOL_ACTIONS", "Limits"]

POOL_ACTIONS: Final = frozenset(
    {Action.INCREASE_WORKER_POOL, Action.DECREASE_WORKER_POOL, Action.PREEMPTIVE_SCALING},
)
"""The actions that change the number of workers; each carries `target_workers` as an int."""
# Reading a member off an Enum class costs 0.1 us; these names cost nothing.
_INCREASE: Final = Action.INCREASE_WORKER_POOL
_DECREASE: Final = Action.DECREASE_WORKER_POOL


class Limits:
    """What no recommendation may exceed: `min_workers`, `max_workers`, `max_step`, `cooldown_s`."""

    __slots__ = ("cooldown_s", "max_step", "max_workers", "min_workers")

    def __init__(self, settings: LimitSettings) -> None:
        self.min_workers = settings.min_workers
        self.max_workers = settings.max_workers
        self.max_step = settings.max_step
        self.cooldown_s = settings.cooldown_s

    def check(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        recommendation: Recommendation,
        now: float,
        last_pool_action_at: float | None,
    ) -> Veto | None:
        """A veto with its reason in plain words, or None when nothing speaks against it.

        `now` and `last_pool_action_at` (of the last *applied* pool action, None when there was none) are Unix seconds.
        Guards by name: `active_workers` (the pool's size is unknown), `parameters` (no integer `target_workers`),
        `direction`, `limits`, `max_step`, `measurements`, `backlog`, `cooldown`. What does not touch the pool passes as
        long as anything at all is measured.
        """
        if recommendation.action not in POOL_ACTIONS:
            return _BLIND if _blind(state) else None
        active = known(state.active_workers)
        if active is None:
            return Veto(guard="active_workers", reason="the number of active workers is unknown")
        target = recommendation.parameters.get("target_workers")
        if type(target) is not int:
            return Veto(guard="parameters", reason=f"target_workers is {target!r}; a pool action needs an integer")
        if known(target) is None:  # Python refuses to print, and records cannot hold, what has thousands of digits
            return Veto(guard="parameters", reason="target_workers is larger than any number of workers")
        if recommendation.action == _DECREASE:
            return self._check_removal(state, active, target, now, last_pool_action_at)
        return self._check_addition(recommendation.action, active, target)

    def restrain(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        recommendation: Recommendation,
        now: float,
        last_pool_action_at: float | None,
    ) -> Recommendation:
        """The recommendation with `target_workers` moved inside the limits, or NO_ACTION where a guard still says no.

        For rules: they know the load but not the limits. What is already fine comes back unchanged (the same object).
        """
        if recommendation.action not in POOL_ACTIONS:
            return recommendation
        active, target = known(state.active_workers), recommendation.parameters.get("target_workers")
        if active is not None and type(target) is int and known(target) is not None:
            allowed = self._nearest_allowed(recommendation.action, active, target)
            if allowed != target:
                if (allowed >= active) if allowed > target else (allowed <= active):
                    return _kept(recommendation, f"Kept as it is: the limits leave no room for {target} workers.")
                because = f"{recommendation.justification} The limits allow {allowed} of {target} workers."
                recommendation = msgspec.structs.replace(
                    recommendation,
                    parameters={**recommendation.parameters, "target_workers": allowed},
                    justification=because.strip(),
                )
        veto = self.check(ticket, state, recommendation, now, last_pool_action_at)
        return recommendation if veto is None else _kept(recommendation, f"Kept as it is: {veto.reason}.")

    def _nearest_allowed(self, action: Action, active: float, target: int) -> int:
        step = self.max_step
        if action == _DECREASE:
            floor = self.min_workers if step is None else max(self.min_workers, int(-(-active // 1)) - step)
            return max(target, floor)
        ceiling = self.max_workers if step is None else min(self.max_workers, int(active) + step)
        return min(target, ceiling)

    def _check_addition(self, action: Action, active: float, target: int) -> Veto | None:
        # Preemptive scaling may find enough workers already there; an increase that adds nothing is a mistake.
        if target < active or (target == active and action == _INCREASE):
            return _wrong_direction(action, active, target)
        if target > self.max_workers and target > active:
            return Veto(
                guard="limits", reason=f"target_workers {target} is above limits.max_workers {self.max_workers}"
            )
        return self._check_step(active, target)

    def _check_removal(
        self, state: SchedulingState, active: float, target: int, now: float, last_pool_action_at: float | None
    ) -> Veto | None:
        if target >= active:
            return _wrong_direction(_DECREASE, active, target)
        if target < self.min_workers:
            return Veto(
                guard="limits", reason=f"target_workers {target} is below limits.min_workers {self.min_workers}"
            )
        too_far = self._check_step(active, target)
        if too_far is not None:
            return too_far
        queue = known(state.queue_depth)
        if queue is None and known(state.resource_cpu_avg) is None:
            return Veto(
                guard="measurements",
                reason="neither queue_depth nor resource_cpu_avg is known; workers are not removed on a forecast alone",
            )
        # While a ticket waits every worker is busy, so there is none to spare. Averages below one ticket are noise.
        if queue is not None and queue >= 1:
            return Veto(guard="backlog", reason=f"{queue:g} tickets wait; workers are removed only when none does")
        # The distance either way: after the clock was set back far, a stamp in the future must not block for hours.
        # "Not at least" instead of "less than": a clock that says NaN blocks.
        if last_pool_action_at is not None and not abs(now - last_pool_action_at) >= self.cooldown_s:
            elapsed = max(0.0, now - last_pool_action_at)
            return Veto(
                guard="cooldown",
                reason=f"the pool changed {elapsed:.0f} s ago; no removal within limits.cooldown_s {self.cooldown_s:g}",
            )
        return None

    def _check_step(self, active: float, target: int) -> Veto | None:
        if self.max_step is None or abs(target - active) <= self.max_step:
            return None
        return Veto(
            guard="max_step",
            reason=f"target_workers {target} is {abs(target - active):g} away from {active:g};"
            f" limits.max_step is {self.max_step}",
        )


_BLIND: Final = Veto(guard="measurements", reason="nothing is measured; without metrics the rules decide")


def _blind(state: SchedulingState) -> bool:
    return (
        known(state.queue_depth) is None
        and known(state.active_workers) is None
        and known(state.resource_cpu_avg) is None
        and known(state.avg_task_duration_ms) is None
        and known(state.sla_compliance_rate) is None
        and known(state.resource_memory_avg) is None
    )


def _wrong_direction(action: Action, active: float, target: int) -> Veto:
    return Veto(guard="direction", reason=f"{action} to target_workers {target} with {active:g} active")


def _kept(recommendation: Recommendation, because: str) -> Recommendation:
    justification = f"{recommendation.justification} {because}".strip()
    return msgspec.structs.replace(recommendation, action=Action.NO_ACTION, parameters={}, justification=justification)
