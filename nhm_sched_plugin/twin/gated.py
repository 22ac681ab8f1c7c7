"""The pool as the pipeline would run it: by the recommendation where confidence passes the gate, else by the rules."""

from __future__ import annotations

import msgspec

from nhm_sched_plugin.policy.crowds import AHEAD
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.controllers import RulesController, obeyed
from nhm_sched_plugin.twin.windows import Window
from nhm_sched_plugin.types import Forecast, Recommendation, SchedulingState

__all__ = ["Gated", "complete"]


def complete(state: SchedulingState, window: Window, now: float) -> tuple[SchedulingState, Forecast]:
    """The state with the predicted loads and the crowd ahead, and the forecast."""
    forecast = window.guess.forecast(now)
    full = msgspec.structs.replace(
        state,
        predicted_load_1h=forecast.predicted_volume,
        predicted_load_6h=window.guess.rate(now, 6),
        features={**state.features, AHEAD: float(window.crowds_from(now)[0])},
    )
    return full, forecast


class Gated:
    """A controller; `asked` sees each question and both answers. `gate` is the settings' threshold unless it is given:
    an infinite one leaves all to the rules."""

    name, watches_tickets = "gated", False

    def __init__(self, settings: Settings, table: QTable, model: DemandModel, gate: float | None = None) -> None:
        self.rules = RulesController(settings)
        self.policy = QPolicy(
            settings,
            self.rules.rules,
            now=lambda: self.rules.now,
            last_change=lambda: self.rules.last_pool_action_at,
            autosave=False,
        )
        self.policy.table, self.policy.planner.model = table, model
        self._gate = settings.optimizer.recommendation_confidence_threshold if gate is None else gate

    def enter(self, window: Window) -> None:
        """A new episode: nobody has just scaled."""
        self._window = window
        self.rules.last_pool_action_at = None

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        full, forecast = complete(state, self._window, now)
        self.rules.now = now
        base = self.rules.rules(None, full, forecast)
        said = self.policy.recommend(None, full, forecast)
        self.asked(full, forecast, now, base, said)
        chosen = said if said is not None and said.confidence >= self._gate else base
        target = obeyed(chosen.action, chosen.parameters, full)
        if target is not None:
            self.rules.last_pool_action_at = now
        return target

    def asked(
        self, state: SchedulingState, forecast: Forecast, now: float, base: Recommendation, said: Recommendation | None
    ) -> None:
        """Both answers to one question, before either is executed."""
