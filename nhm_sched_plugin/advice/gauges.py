"""What forecaster and policy look like on the dashboards, set about once a second."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Final

from nhm_sched_plugin.advice.protocols import Forecaster, Policy
from nhm_sched_plugin.decision.gate import capacity
from nhm_sched_plugin.errors import AgentUnavailableError
from nhm_sched_plugin.forecasting.intervals import bottleneck_probability
from nhm_sched_plugin.forecasting.live import SliceLive
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.tally import ALL_TASK_TYPES
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Forecast, SchedulingState

__all__ = ["publish", "publish_live"]

SEVERITIES: Final = {"critical": 0.8, "warning": 0.5}
"""Probability of a bottleneck from which on it has that severity."""
_HOUR_MINUTES: Final = 60
_HALF_HOUR_S: Final = 1800.0


def publish(
    metrics: Metrics,
    settings: Settings,
    forecaster: Forecaster | None,
    policy: Policy | None,
    state: SchedulingState | None,
    now: float,
) -> None:
    """Set the gauges of rollout, forecast and policy. `state` is the latest the host showed, for the capacity."""
    metrics.child("rollout").set(settings.rollout.percentage)
    metrics.child("epsilon").set(settings.ml.scheduling.epsilon)
    table = getattr(policy, "table", None)
    if table is not None:
        metrics.child("q_table_size").set(len(table))
        metrics.child("average_reward").set(math.nan if (gap := getattr(table, "gap", None)) is None else gap)
    if forecaster is None:
        return
    _publish_training(metrics, getattr(forecaster, "table", None))
    with contextlib.suppress(AgentUnavailableError):  # counted by who asked it; what is shown grows old meanwhile
        _publish_forecasts(metrics, settings, forecaster, state, now)


def _publish_forecasts(
    metrics: Metrics, settings: Settings, forecaster: Forecaster, state: SchedulingState | None, now: float
) -> None:
    pool = capacity(state) if state is not None else None
    current = forecaster.forecast(_HOUR_MINUTES, now - _HALF_HOUR_S)  # the hour around now
    for horizon in settings.ml.forecasting.horizons:
        forecast = forecaster.forecast(horizon, now)
        if forecast is not None:
            _publish_forecast(metrics, forecast, pool, nearest=horizon == settings.optimizer.forecast_horizon_minutes)
            _publish_saturation(metrics, forecast, pool, state, current)


def _publish_forecast(metrics: Metrics, forecast: Forecast, pool: float | None, *, nearest: bool) -> None:
    horizon = str(forecast.horizon_minutes)
    metrics.child("volume", horizon, ALL_TASK_TYPES).set(forecast.predicted_volume)
    if nearest:
        demand = {"cpu": forecast.resource_demand_cpu, "memory": forecast.resource_demand_memory}
        for resource, amount in demand.items():
            if amount is not None:
                metrics.child("demand", resource, ALL_TASK_TYPES).set(amount)
    if pool is not None and forecast.points:
        probability = bottleneck_probability(forecast.points[-1].quantiles, pool)
        worst = next((name for name, least in SEVERITIES.items() if probability >= least), None)
        for severity in SEVERITIES:
            metrics.child("bottleneck", severity, ALL_TASK_TYPES, horizon).set(severity == worst)


def _publish_saturation(
    metrics: Metrics, forecast: Forecast, pool: float | None, state: SchedulingState | None, current: Forecast | None
) -> None:
    """Load over what there is: tickets over the pool's capacity, and today's utilisation grown as the tickets grow."""
    horizon = str(forecast.horizon_minutes)
    if pool:
        metrics.child("saturation", horizon, "workers").set(forecast.predicted_volume / pool)
    if state is None or current is None or current.predicted_volume <= 0:
        return
    growth = forecast.predicted_volume / current.predicted_volume
    for resource, used in (("cpu", state.resource_cpu_avg), ("memory", state.resource_memory_avg)):
        if used is not None:
            metrics.child("saturation", horizon, resource).set(used * growth)


def publish_live(metrics: Metrics, slices: Mapping[str, SliceLive]) -> None:
    """What the arrivals of this host say about the forecast, by slice key."""
    for key, live in slices.items():
        name = key or ALL_TASK_TYPES
        metrics.child("drift", name).set(live.drift)
        metrics.child("live_factor", name).set(live.correction.factor(1))
        if live.mape is not None:
            metrics.child("live_mape", name).set(live.mape)


def _publish_training(metrics: Metrics, table: Any) -> None:
    """Accuracy and age of the served models; the snapshot carries them, so no registry is asked."""
    for name, entry in getattr(table, "slices", {}).items():
        for horizon, mape in entry.mape.items():
            metrics.child("mape", horizon, name or ALL_TASK_TYPES).set(mape)
        if not name:
            metrics.child("training_samples", "load_predictor").set(entry.samples)
            metrics.child("last_training", "load_predictor").set(entry.trained_at)
