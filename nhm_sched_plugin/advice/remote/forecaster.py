"""The forecaster of a host with a remote agent: its table's mirror, or one question while there is none."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Final

from nhm_sched_plugin.advice.remote.agent import RemoteAgent
from nhm_sched_plugin.errors import AgentUnavailableError
from nhm_sched_plugin.forecasting.table import ForecastTable, SnapshotForecaster
from nhm_sched_plugin.types import Forecast, Health

__all__ = ["RemoteForecaster", "sensible"]

_MOST_ANSWERS: Final = 1024
_KEPT_S: Final = 60.0


class RemoteForecaster:
    """Implements the `Forecaster` protocol. `local` is the forecaster on the mirror's file, live correction included.

    Without a table, or when the agent has not confirmed it for too long, the agent is asked: once a minute for each
    horizon and slice, since a forecast does not depend on the state. `forecast` then raises `AgentUnavailableError`
    when it gives no answer.
    """

    def __init__(
        self,
        agent: RemoteAgent,
        clock: Callable[[], float] = time.time,
        on_load: Callable[[str], None] | None = None,
    ) -> None:
        self._agent, self._mirror, self._clock = agent, agent.mirror, clock
        self.local = SnapshotForecaster(agent.mirror.forecast_path, on_load)
        self._answers: dict[tuple[int, str | None, str | None], tuple[float, Forecast]] = {}
        agent.read_by(self.local.refresh)

    @property
    def table(self) -> ForecastTable | None:
        """The mirrored table, while it is the one that is served."""
        return self.local.table if self._mirror.fresh else None

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None:
        self._agent.go_on()
        if self._mirror.fresh and self.local.table is not None:
            return self.local.forecast(horizon_minutes, now, task_type, risk_band)
        if abs(now - self._clock()) > _KEPT_S:
            return None  # the agent forecasts from now on, whatever moment one may be interested in
        return self._asked(horizon_minutes, now, task_type, risk_band)

    def _asked(self, horizon_minutes: int, now: float, task_type: str | None, risk_band: str | None) -> Forecast:
        asked = horizon_minutes, task_type, risk_band
        known = self._answers.get(asked)
        if known is not None and abs(now - known[0]) < _KEPT_S:
            return known[1]

        def request() -> Any:
            from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

            return pb.ForecastRequest(horizon_minutes=horizon_minutes, task_type=task_type, risk_band=risk_band)

        answer = self._agent.ask("GetLoadForecast", request)
        from nhm_sched_plugin.wire.convert import forecast_of

        try:
            forecast = forecast_of(answer)
        except (ValueError, OverflowError, OSError) as error:  # of a moment that no calendar has
            raise AgentUnavailableError("garbage", f"GetLoadForecast answered nonsense: {error}") from None
        if not sensible(forecast):
            raise AgentUnavailableError("garbage", "GetLoadForecast answered with numbers that cannot be")
        if len(self._answers) >= _MOST_ANSWERS:
            self._answers.clear()
        self._answers[asked] = now, forecast
        return forecast

    def refresh(self) -> None:
        """Raises `ModelError` for a file that cannot be used; the old table then stays."""
        self._agent.go_on()
        self.local.refresh()

    def health(self) -> Health:
        """Ready with a table that the agent has confirmed; what it says without one is no more than a baseline."""
        found, agent = self.local.health(), self._agent.state()
        if self.local.table is None:
            return Health(component="forecaster", ok=False, detail=f"no table yet; {agent}")
        return Health(component="forecaster", ok=found.ok and self._mirror.fresh, detail=f"{found.detail}; {agent}")


def sensible(forecast: Forecast) -> bool:
    """Whether the numbers of an agent's forecast can be true."""
    numbers = [forecast.predicted_volume, *(point.mean for point in forecast.points)]
    numbers += [value for point in forecast.points for value in point.quantiles.values()]
    return all(math.isfinite(number) and number >= 0 for number in numbers) and 0.0 <= forecast.confidence <= 1.0
