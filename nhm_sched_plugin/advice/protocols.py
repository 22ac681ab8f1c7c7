"""The three exchangeable parts. The pipeline knows these Protocols and nothing of what is behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, runtime_checkable

from nhm_sched_plugin.types import (
    Decision,
    Experience,
    Forecast,
    Health,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
    Ticket,
)

__all__ = ["PARTS", "Forecaster", "Policy", "Sink", "health_of"]


@runtime_checkable
class Forecaster(Protocol):
    """Answers from memory, in microseconds; a background thread calls `refresh`."""

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None:
        """The load from `now` (Unix seconds) to the horizon, or None when nothing is known (yet)."""

    def refresh(self) -> None:
        """Read a newer snapshot if there is one. In the background; may raise, the old one then stays."""

    def health(self) -> Health: ...


@runtime_checkable
class Policy(Protocol):
    """Answers from memory, in microseconds; learns and saves in the background."""

    @property
    def version(self) -> str:
        """Tells one state of learning from the next."""

    def recommend(self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast) -> Recommendation | None:
        """The best known action and how sure that is; None when nothing is known. Never explores."""

    def explore(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        forecast: Forecast,
        admissible: Callable[[Recommendation], bool],
    ) -> Recommendation | None:
        """With probability epsilon another admissible action (flagged), else None. Treatment arm only."""

    def learn(self, experience: Experience) -> None:
        """Update from one step; idempotent on `decision_id`. In the background."""

    def refresh(self) -> None:
        """Take over a newer snapshot if there is one. In the background."""

    def save(self) -> None:
        """Make everything learned so far durable."""

    def health(self) -> Health: ...


@runtime_checkable
class Sink(Protocol):
    """Takes records in batches, in the background. The spool is always the first."""

    name: str

    def write(self, records: Sequence[Decision | RewardedOutcome]) -> None:
        """Make the batch durable. May raise: the batch is offered again later."""

    def close(self) -> None: ...


PARTS: Final = {"nhm_sched_make_forecaster": Forecaster, "nhm_sched_make_policy": Policy}
"""What each factory hook has to make."""


def health_of(name: str, part: Forecaster | Policy | None) -> Health:
    """What the part says of itself; of None, that the rules answer in its place. Raises nothing."""
    if part is None:
        return Health(component=name, ok=False, detail="rules only")
    try:
        return part.health()
    except Exception as error:  # noqa: BLE001 - also somebody else's part
        return Health(component=name, ok=False, detail=f"cannot tell: {error}")
