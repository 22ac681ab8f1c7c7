"""There and back: what goes over the wire is what was meant."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin import Action, Forecast, ForecastPoint, Recommendation, SchedulingState
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import STATE_FIELDS, Experience
from nhm_sched_plugin.wire import convert
from nhm_sched_plugin.wire.check import check_outcome_request, check_state_request

NOW = dt.datetime(2026, 11, 26, 14, tzinfo=dt.UTC)
NUMBERS = st.one_of(st.none(), st.floats(0, 1))
STATES = st.builds(
    SchedulingState,
    **dict.fromkeys(STATE_FIELDS, NUMBERS),
    features=st.dictionaries(st.text(max_size=10), st.floats(-1e9, 1e9), max_size=5),
)
PARAMETERS = st.dictionaries(
    st.text(max_size=10),
    st.one_of(st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    max_size=5,
)


def over(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(STATES)
def test_states_come_back_as_they_went(state: SchedulingState) -> None:
    message = over(convert.state_request(state, "processing", None))
    check_state_request(message)
    assert convert.state_of(message) == state
    ticket = convert.ticket_of(message)
    assert ticket is not None
    assert (ticket.task_type, ticket.risk_band) == ("processing", None)


def test_a_state_without_type_and_band_is_about_the_pool() -> None:
    assert convert.ticket_of(convert.state_request(SchedulingState())) is None


def forecast(horizon: int, hours: int, **given: Any) -> Forecast:
    points = tuple(
        ForecastPoint(NOW + dt.timedelta(hours=hour), 10.0 * (hour + 1), {level: 100 * level for level in LEVELS})
        for hour in range(hours)
    )
    known = {"predicted_volume": 12.5, "confidence": 0.7, "generated_at": NOW, "points": points}
    return Forecast(**{"horizon_minutes": horizon, **known, **given})


def test_forecasts_come_back_as_they_went() -> None:
    went = forecast(
        120, 2, bottleneck_probability=0.25, resource_demand_cpu=1.5, resource_demand_memory=3.0, model_version="7",
        method="prophet",
    )  # fmt: skip
    message = over(convert.forecast_response(went))
    assert message.predicted_volume == 12, "rounded; the exact number is in mean_volume"
    assert (message.peak_volume, message.peak_timestamp) == (20.0, int((NOW.timestamp() + 3600) * 1000))
    assert convert.forecast_of(message) == went


@pytest.mark.parametrize(
    ("horizon", "hours", "total"), [(60, 1, 10.0), (120, 2, 30.0), (90, 2, 20.0), (30, 1, 5.0), (61, 2, 10 + 20 / 60)]
)
def test_the_total_ends_at_the_horizon(horizon: int, hours: int, total: float) -> None:
    assert convert.forecast_response(forecast(horizon, hours)).total_volume == pytest.approx(total)


def test_a_forecast_without_hours_has_a_total_too() -> None:
    assert convert.forecast_response(forecast(120, 0)).total_volume == 25.0


def test_an_agent_of_the_first_specification_sends_no_hours() -> None:
    came = convert.forecast_of(pb.ForecastResponse(predicted_volume=125, confidence=0.7, forecast_horizon_minutes=60))
    assert (came.predicted_volume, came.confidence, came.points) == (125.0, 0.7, ())


def test_volumes_beyond_32_bits_do_not_break_the_rounded_one() -> None:
    assert convert.forecast_response(forecast(60, 1, predicted_volume=1e14)).predicted_volume == 2**31 - 1


@given(st.sampled_from(Action), PARAMETERS, st.floats(0, 1))
def test_recommendations_come_back_to_six_digits(action: Action, parameters: dict[str, Any], sure: float) -> None:
    went = Recommendation(
        action=action, parameters=parameters, confidence=sure, justification="why", expected_improvement=None,
        risk_score=0.5, propensity=0.95, policy_version="q2-1", state_hash="u1", source="policy",
    )  # fmt: skip
    came = convert.recommendation_of(over(convert.recommendation_response(went, "d1", 1.5)))
    assert came.confidence == pytest.approx(sure, abs=1e-6)
    assert (came.action, came.parameters, came.expected_improvement) == (action, parameters, None)
    assert {name: type(value) for name, value in came.parameters.items()} == {
        name: type(value) for name, value in parameters.items()
    }
    assert (came.risk_score, came.propensity) == (0.5, 0.95)


NUMBERS = st.sampled_from([1, 1.0, True, 2, 2.0, "1", "1.0", 0.5])


@given(st.sampled_from(Action), st.dictionaries(st.sampled_from("ab"), NUMBERS), st.sampled_from([None, 0.0, 0.25]))
def test_an_answer_in_pieces_is_the_same_message(
    action: Action, parameters: dict[str, Any], improvement: float | None
) -> None:
    """Also where a piece looks like one that has been made before: 1 and 1.0 are not the same text."""
    went = Recommendation(
        action=action, parameters=parameters, confidence=0.7, justification="why", expected_improvement=improvement,
        risk_score=improvement, policy_version="q2-1", state_hash="u1", source="policy",
        is_exploration=True, propensity=0.1,
    )  # fmt: skip
    came = pb.RecommendationResponse.FromString(convert.recommendation_bytes(went, "d1", 1.5))
    assert came == convert.recommendation_response(went, "d1", 1.5)


def test_an_answer_with_what_cannot_be_hashed_is_a_message() -> None:
    odd: dict[str, Any] = {"pools": ["a", "b"]}
    went = Recommendation(action=Action.NO_ACTION, parameters=odd)
    came = pb.RecommendationResponse.FromString(convert.recommendation_bytes(went, "d1", 1.5))
    assert came == convert.recommendation_response(went, "d1", 1.5)


def test_an_unknown_action_is_an_error() -> None:
    with pytest.raises(ValueError, match="SELL"):
        convert.recommendation_of(pb.RecommendationResponse(action="SELL"))


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "least_loaded", "", str(2**63), "9" * 256])
def test_what_is_no_number_that_can_be_kept_stays_text(text: str) -> None:
    assert convert.parameters_of({"x": text}) == {"x": text}


@given(STATES, st.one_of(st.none(), STATES), st.sampled_from(Action), PARAMETERS, st.floats(-1, 1))
def test_outcomes_come_back_as_they_went(
    state: SchedulingState, after: SchedulingState | None, action: Action, parameters: dict[str, Any], reward: float
) -> None:
    went = Experience(
        decision_id="d1", state=state, action=action, reward=reward, next_state=after, parameters=parameters
    )
    message = over(convert.outcome_request(went, applied=True, arm="treatment"))
    check_outcome_request(message)
    assert convert.experience_of(message, "d1") == went


def test_what_was_not_applied_left_things_as_they_were() -> None:
    went = Experience(
        decision_id="d1", state=SchedulingState(queue_depth=1.0), action=Action.INCREASE_WORKER_POOL, reward=0.1,
        parameters={"target_workers": 5},
    )  # fmt: skip
    came = convert.experience_of(over(convert.outcome_request(went, applied=False)), "d1")
    assert (came.action, came.parameters) == (Action.NO_ACTION, {})
