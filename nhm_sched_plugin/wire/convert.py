"""Between the wire's messages and our own types. The messages have been checked (`check`): nothing here raises.

Unset is None on our side, never zero. Parameters are decimal text on the wire: an `int` comes back as an `int`.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import (
    STATE_FIELDS,
    Action,
    Experience,
    Forecast,
    ForecastPoint,
    Recommendation,
    SchedulingState,
    Ticket,
)

__all__ = [
    "experience_of",
    "forecast_of",
    "forecast_response",
    "outcome_request",
    "recommendation_bytes",
    "recommendation_of",
    "recommendation_response",
    "state_of",
    "state_request",
    "ticket_of",
]

_INT32: Final = 2**31 - 1
_TOO_LARGE: Final = 1 << 63
"""What no record can hold; it stays text."""

# States


def state_request(state: SchedulingState, task_type: str | None = None, risk_band: str | None = None) -> Any:
    """A `StateRequest`. Features that are no finite numbers do not exist in a state, so all of them go."""
    given = {name: value for name in STATE_FIELDS if (value := getattr(state, name)) is not None}
    return pb.StateRequest(**given, task_type=task_type, risk_band=risk_band, features=dict(state.features))


def state_of(request: Any) -> SchedulingState:
    """The state in a `StateRequest`."""
    given = {name: getattr(request, name) for name in STATE_FIELDS if request.HasField(name)}
    return SchedulingState(**given, features=dict(request.features))


def ticket_of(request: Any) -> Ticket | None:
    """What a `StateRequest` is about: a ticket of some type, or None for the whole pool."""
    if not request.task_type and not request.risk_band:
        return None
    return Ticket(ticket_id="", task_type=request.task_type or None, risk_band=request.risk_band or None)


# Forecasts


def forecast_response(forecast: Forecast) -> Any:
    """A `ForecastResponse`."""
    points = forecast.points
    peak = max(points, key=lambda point: point.mean, default=None)
    return pb.ForecastResponse(
        predicted_volume=min(round(forecast.predicted_volume), _INT32),
        confidence=forecast.confidence,
        forecast_horizon_minutes=forecast.horizon_minutes,
        resource_demand_cpu=forecast.resource_demand_cpu,
        resource_demand_memory=forecast.resource_demand_memory,
        bottleneck_probability=forecast.bottleneck_probability,
        timestamp=_millis(forecast.generated_at),
        mean_volume=forecast.predicted_volume,
        total_volume=_total(forecast),
        peak_volume=peak.mean if peak is not None else forecast.predicted_volume,
        peak_timestamp=_millis(peak.timestamp) if peak is not None else 0,
        quantiles=_quantiles(points[-1].quantiles) if points else (),
        hours=[
            pb.ForecastHour(timestamp=_millis(point.timestamp), mean=point.mean, quantiles=_quantiles(point.quantiles))
            for point in points
        ],
        model_version=forecast.model_version,
        method=forecast.method,
    )


def forecast_of(response: Any) -> Forecast:
    """The forecast in a `ForecastResponse`. An agent that knows only the first specification sends no hours."""
    extended = bool(response.hours)
    return Forecast(
        horizon_minutes=response.forecast_horizon_minutes,
        predicted_volume=response.mean_volume if extended else float(response.predicted_volume),
        confidence=rounded(response.confidence),
        bottleneck_probability=rounded(response.bottleneck_probability),
        points=tuple(
            ForecastPoint(_moment(hour.timestamp), hour.mean, {one.level: one.value for one in hour.quantiles})
            for hour in response.hours
        ),
        generated_at=_moment(response.timestamp),
        resource_demand_cpu=response.resource_demand_cpu or None,
        resource_demand_memory=response.resource_demand_memory or None,
        model_version=response.model_version,
        method=response.method,
    )


# Recommendations


def recommendation_bytes(recommendation: Recommendation, decision_id: str, now: float) -> bytes:
    """A `RecommendationResponse`, serialised; `now` in Unix seconds.

    In pieces, of which most have been made before: messages whose bytes follow each other are read as one.
    """
    told = recommendation.parameters
    texts = (*told, *told.values())
    try:
        parameters = _parameters(*texts)
    except TypeError:  # what cannot be hashed, of somebody else's policy
        parameters = _parameters.__wrapped__(*texts)
    rest = _judgement(
        recommendation.action,
        recommendation.confidence,
        recommendation.expected_improvement,
        recommendation.risk_score,
        recommendation.is_exploration,
        recommendation.policy_version,
        recommendation.state_hash,
        recommendation.propensity,
    )
    own: bytes = pb.RecommendationResponse(
        justification=recommendation.justification, decision_id=decision_id, timestamp=int(now * 1000)
    ).SerializeToString()
    return rest + parameters + own


@lru_cache(maxsize=1024, typed=True)
def _parameters(*told: Any) -> bytes:
    """The names, then the values."""
    half = len(told) // 2
    texts = dict(zip(told[:half], map(str, told[half:]), strict=True))
    found: bytes = pb.RecommendationResponse(parameters=texts).SerializeToString()
    return found


@lru_cache(maxsize=1024)
def _judgement(
    action: str,
    confidence: float,
    expected_improvement: float | None,
    risk_score: float | None,
    is_exploration: bool,
    policy_version: str,
    state_hash: str,
    propensity: float,
) -> bytes:
    found: bytes = pb.RecommendationResponse(
        action=action,
        confidence=confidence,
        expected_improvement=expected_improvement,
        risk_score=risk_score,
        is_exploration=is_exploration,
        policy_version=policy_version,
        state_hash=state_hash,
        propensity=propensity,
    ).SerializeToString()
    return found


def recommendation_response(recommendation: Recommendation, decision_id: str = "", now: float = 0.0) -> Any:
    """A `RecommendationResponse`; `now` in Unix seconds."""
    return pb.RecommendationResponse(
        action=recommendation.action,
        confidence=recommendation.confidence,
        parameters={name: str(value) for name, value in recommendation.parameters.items()},
        justification=recommendation.justification,
        expected_improvement=recommendation.expected_improvement,
        risk_score=recommendation.risk_score,
        is_exploration=recommendation.is_exploration,
        decision_id=decision_id,
        policy_version=recommendation.policy_version,
        state_hash=recommendation.state_hash,
        timestamp=int(now * 1000),
        propensity=recommendation.propensity,
    )


def recommendation_of(response: Any) -> Recommendation:
    """The recommendation in a `RecommendationResponse`. Raises ValueError for an action that we do not know."""
    return Recommendation(
        action=Action(response.action),
        parameters=parameters_of(response.parameters),
        confidence=rounded(response.confidence),
        justification=response.justification,
        expected_improvement=_optional(response, "expected_improvement"),
        risk_score=_optional(response, "risk_score"),
        is_exploration=response.is_exploration,
        propensity=response.propensity or 1.0,
        policy_version=response.policy_version,
        state_hash=response.state_hash,
        source="policy",
    )


# Outcomes


def outcome_request(
    experience: Experience, *, applied: bool | None = None, rejection_reason: str = "", arm: str = ""
) -> Any:
    """An `OutcomeRequest`."""
    after = experience.next_state
    request: Any = pb.OutcomeRequest(
        state=state_request(experience.state),
        action=experience.action,
        reward=experience.reward,
        next_state=None if after is None else state_request(after),
        decision_id=experience.decision_id,
        rejection_reason=rejection_reason,
        arm=arm,
        parameters={name: str(value) for name, value in experience.parameters.items()},
    )
    if applied is not None:
        request.applied = applied
    return request


def experience_of(request: Any, decision_id: str) -> Experience:
    """What an `OutcomeRequest` teaches. An action that was not applied left things as they were."""
    rejected = request.HasField("applied") and not request.applied
    return Experience(
        decision_id=decision_id,
        state=state_of(request.state),
        action=Action.NO_ACTION if rejected else Action(request.action),
        reward=request.reward,
        next_state=state_of(request.next_state) if request.HasField("next_state") else None,
        parameters={} if rejected else parameters_of(request.parameters),
    )


def parameters_of(texts: Mapping[str, str]) -> dict[str, int | float | str]:
    """Decimal text as numbers: whole ones as `int`; what is no number stays text."""
    return {name: _number(text) for name, text in texts.items()}


def rounded(single: float) -> float:
    """Single precision turns 0.7 into 0.69999999; six digits are what was meant."""
    return round(single, 6)


def _number(text: str) -> int | float | str:
    try:
        whole = int(text)
    except ValueError:
        pass
    else:
        return whole if abs(whole) < _TOO_LARGE else text
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _total(forecast: Forecast) -> float:
    """Tickets up to the horizon, which may lie within the last hour."""
    points = forecast.points
    if not points:
        return forecast.predicted_volume * forecast.horizon_minutes / 60
    last = forecast.horizon_minutes / 60 - (len(points) - 1)
    return sum(point.mean for point in points) - points[-1].mean * (1.0 - min(max(last, 0.0), 1.0))


def _optional(message: Any, field: str) -> float | None:
    return rounded(getattr(message, field)) if message.HasField(field) else None


def _quantiles(levels: Mapping[float, float]) -> list[Any]:
    return [pb.Quantile(level=level, value=value) for level, value in levels.items()]


def _millis(moment: dt.datetime) -> int:
    return int(moment.timestamp() * 1000)


def _moment(millis: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(millis / 1000, dt.UTC)
