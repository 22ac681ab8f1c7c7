"""The policy of a host with a remote agent: its table's mirror, or one question while that is too old."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from nhm_sched_plugin.advice.remote.agent import RemoteAgent
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.errors import AgentUnavailableError
from nhm_sched_plugin.hookchecks import accepted_from_part
from nhm_sched_plugin.policy.learning import Baseline, QPolicy
from nhm_sched_plugin.types import Experience, Forecast, Health, Recommendation, SchedulingState, Ticket
from nhm_sched_plugin.wire.limits import MOST_ENTRIES, MOST_NUMBER, STATE_LIMITS, is_name

if TYPE_CHECKING:
    from nhm_sched_plugin.policy.demand import DemandModel
    from nhm_sched_plugin.policy.qtable import QTable
    from nhm_sched_plugin.settings import LimitSettings, Settings

__all__ = ["RemotePolicy", "sendable"]


class RemotePolicy:
    """Implements the `Policy` protocol. `local` is the policy on the mirror's files; it explores as in any host.

    `learn` puts the experience into the outbox; the agent learns, and the mirror brings back what it has learned.
    `recommend` raises `AgentUnavailableError` when the mirror is too old and the agent gives no answer.
    """

    def __init__(
        self,
        agent: RemoteAgent,
        settings: Settings,
        baseline: Baseline,
        now: Callable[[], float] = time.time,
        *,
        last_change: Callable[[], float | None] = lambda: None,
        on_calibration: Callable[[DemandModel], None] = lambda _: None,
    ) -> None:
        self._agent, self._mirror = agent, agent.mirror
        mirror = agent.mirror
        self.local = QPolicy(
            settings,
            baseline,
            now,
            last_change=last_change,
            on_calibration=on_calibration,
            path=mirror.q_table_path,
            planner_path=mirror.planner_path,
            autosave=False,
        )
        agent.read_by(self.local.refresh)

    def use(self, limits: LimitSettings) -> None:
        """Recommend within these from now on."""
        self.local.use(limits)

    @property
    def version(self) -> str:
        return self.local.version

    @property
    def table(self) -> QTable:
        """The mirrored Q-table."""
        return self.local.table

    def recommend(self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast) -> Recommendation | None:
        self._agent.go_on()
        if self._mirror.fresh:
            return self.local.recommend(ticket, state, forecast)
        return self._asked(ticket, state)

    def _asked(self, ticket: Ticket | None, state: SchedulingState) -> Recommendation:
        def request() -> Any:
            from nhm_sched_plugin.wire.convert import state_request

            about = () if ticket is None else (ticket.task_type, ticket.risk_band)
            return state_request(sendable(state), *(name if is_name(name) else None for name in about))

        answer = self._agent.ask("GetSchedulingRecommendation", request)
        from nhm_sched_plugin.wire.convert import recommendation_of

        try:
            checked: Recommendation = accepted_from_part("recommend", recommendation_of(answer))
        except (ValueError, TypeError, msgspec.ValidationError) as error:
            raise AgentUnavailableError("garbage", f"GetSchedulingRecommendation answered nonsense: {error}") from None
        return checked

    def explore(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        forecast: Forecast,
        admissible: Callable[[Recommendation], bool],
    ) -> Recommendation | None:
        """Only from a mirror that is fresh."""
        return self.local.explore(ticket, state, forecast, admissible) if self._mirror.fresh else None

    def learn(self, experience: Experience) -> None:
        """Have the agent learn it, as soon as it can be reached. Raises `SpoolError` while the disk refuses."""
        after = experience.next_state
        clean = msgspec.structs.replace(
            experience, state=sendable(experience.state), next_state=None if after is None else sendable(after)
        )
        try:
            self._agent.delivery.put(clean)
        finally:
            self._agent.wake_delivery()

    def refresh(self) -> None:
        """Raises `ModelError` for a file that cannot be used; the old table then stays."""
        self._agent.go_on()
        self.local.refresh()

    def save(self) -> None:
        """Have everything on disk that the agent is to learn. Raises `SpoolError`."""
        self._agent.delivery.save()

    def health(self) -> Health:
        found = self.local.health()
        return Health(
            component="policy", ok=found.ok and self._mirror.fresh, detail=f"{found.detail}; {self._agent.state()}"
        )


def sendable(state: SchedulingState) -> SchedulingState:
    """The state as the agent takes it: what it would refuse is not known. Never raises."""
    given: dict[str, Any] = {name: _within(getattr(state, name), 0.0, most) for name, most in STATE_LIMITS.items()}
    features = (
        (name, number)
        for name, value in state.features.items()
        if is_name(name) and (number := _within(value, -MOST_NUMBER, MOST_NUMBER)) is not None
    )
    return SchedulingState(**given, features=dict(islice(features, MOST_ENTRIES)))


def _within(value: Any, least: float, most: float) -> float | None:
    number = known(value)
    return number if number is not None and least <= number <= most else None
