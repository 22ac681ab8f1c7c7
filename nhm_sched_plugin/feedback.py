"""What came of the decisions: outcome, reward, learning. All of it in the background."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from nhm_sched_plugin.advice.protocols import Policy
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.extension import HookManager, deadline
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observers import OBSERVER_TIMEOUT_S
from nhm_sched_plugin.types import Action, Arm, Decision, Experience, Outcome, RewardedOutcome, SchedulingState

__all__ = ["Feedback"]

REMEMBERED_DECISIONS: Final = 20_000
"""Decisions whose outcome may still come; older ones are answered from the outcome's own states."""
REMEMBERED_ENDED: Final = 1000
WINDOW: Final = 1000


class _Decided(msgspec.Struct, frozen=True, gc=False):
    action: Action
    parameters: Mapping[str, int | float | str]
    state: SchedulingState | None
    arm: Arm


class Feedback:
    """Joins outcomes to decisions, asks for the reward, records both and lets the policy learn."""

    def __init__(
        self,
        hooks: HookManager,
        policy: Policy | None,
        record: Callable[[RewardedOutcome, threading.Event | None], Any],
        observed: Callable[[Outcome, float | None], Any],
        metrics: Metrics,
        faults: Faults,
    ) -> None:
        self._hook: Any = hooks.hook
        self._policy, self._record, self._observed = policy, record, observed
        self._metrics, self._faults = metrics, faults
        self.after_fork()
        renew_after_fork(self)
        self._decisions: OrderedDict[str, _Decided] = OrderedDict()
        self._done: OrderedDict[str, _Decided] = OrderedDict()
        self._applied: OrderedDict[str, tuple[bool, str | None]] = OrderedDict()
        self._rewards: deque[float] = deque(maxlen=WINDOW)
        self._sla: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def remember(self, decision: Decision) -> None:
        """Keep what an outcome will need of it; not the whole decision, since there are many."""
        decided = _Decided(decision.action, decision.parameters, decision.state, decision.arm)
        with self._lock:
            self._decisions[decision.decision_id] = decided
            if len(self._decisions) > REMEMBERED_DECISIONS:
                self._decisions.popitem(last=False)

    def applied(self, decision_id: str, applied: bool, error: str | None) -> None:
        """What the host did with a decision."""
        with self._lock:
            self._applied[decision_id] = (applied, error)
            if len(self._applied) > REMEMBERED_DECISIONS:
                self._applied.popitem(last=False)

    def _ended(self, decision_id: str) -> _Decided | None:
        """The decision, if it is known; once it has its outcome it is remembered only for a report sent twice."""
        decision = self._decisions.pop(decision_id, None) or self._done.get(decision_id)
        if decision is not None:
            self._done[decision_id] = decision
            if len(self._done) > REMEMBERED_ENDED:
                self._applied.pop(self._done.popitem(last=False)[0], None)
        return decision

    def finished(self, outcome: Outcome, durable: threading.Event | None = None) -> None:
        """Reward, record, learn, tell the observers. `durable` is set once the record is on disk."""
        with self._lock:
            decision = self._ended(outcome.decision_id)
            applied, problem = self._applied.get(outcome.decision_id, (None, None))
        before = outcome.state_before
        if before is None and decision is not None:
            before = decision.state
        reward = self._reward(before, outcome.state_after)
        executed = Action.NO_ACTION if applied is False else decision.action if decision is not None else None
        rewarded = RewardedOutcome(
            outcome=outcome, reward=reward, executed_action=executed, applied=applied, error=problem
        )
        self._record(rewarded, durable)
        if reward is not None and before is not None:
            self._measure(decision, before, outcome.state_after, reward)
            if executed is not None and self._policy is not None:
                self._learn(self._policy, _experience(outcome, before, executed, decision, reward))
        self._observed(outcome, reward)

    def _learn(self, policy: Policy, experience: Experience) -> None:
        try:
            policy.learn(experience)
        except Exception as error:  # noqa: BLE001 - also somebody else's policy; the observers are told all the same
            self._faults.report("policy", error)

    def _reward(self, before: SchedulingState | None, after: SchedulingState | None) -> float | None:
        if before is None or after is None:
            return None
        try:
            with deadline(OBSERVER_TIMEOUT_S):
                reward = known(self._hook.nhm_sched_reward(before=before, after=after))
        except Exception as error:  # noqa: BLE001 - no reward is recorded then
            self._faults.report("reward", error)
            return None
        return None if reward is None else max(-1.0, min(1.0, reward))

    def _measure(
        self, decision: _Decided | None, before: SchedulingState, after: SchedulingState | None, reward: float
    ) -> None:
        self._rewards.append(reward)
        self._metrics.child("raw_reward").set(sum(self._rewards) / len(self._rewards))
        if decision is None or decision.arm is not Arm.TREATMENT or after is None:
            return
        was, now = known(before.sla_compliance_rate), known(after.sla_compliance_rate)
        if was is not None and now is not None:
            self._sla.append((was, now))
            self._metrics.child("sla_before").set(sum(pair[0] for pair in self._sla) / len(self._sla))
            self._metrics.child("sla_after").set(sum(pair[1] for pair in self._sla) / len(self._sla))


def _experience(
    outcome: Outcome, before: SchedulingState, executed: Action, decision: _Decided | None, reward: float
) -> Experience:
    # The decision's own state carries the predicted loads that the policy saw; the host's may not.
    seen = decision.state if decision is not None and decision.state is not None else before
    done = decision is not None and executed is decision.action
    return Experience(
        decision_id=outcome.decision_id,
        state=seen,
        action=executed,
        parameters=decision.parameters if decision is not None and done else {},
        reward=reward,
        next_state=outcome.state_after,
    )
