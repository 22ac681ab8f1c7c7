"""What a caller may send: the edges of every range, and the name of the field in every refusal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import STATE_FIELDS, Action, Arm
from nhm_sched_plugin.wire.check import (
    InvalidFieldError,
    check_forecast_request,
    check_outcome_request,
    check_snapshot_request,
    check_state_request,
)
from nhm_sched_plugin.wire.limits import MOST_ENTRIES, MOST_NAME, MOST_TEXT

SHARES = ("sla_compliance_rate", "resource_cpu_avg", "resource_memory_avg")
STATE = pb.StateRequest(queue_depth=3, active_workers=2)


def problem(check: Any, request: Any) -> InvalidFieldError:
    with pytest.raises(InvalidFieldError) as error:
        check(request)
    assert str(error.value).startswith(f"{error.value.field}: ")
    return error.value


@pytest.mark.parametrize("horizon", [1, 59, 60, 10_080])
def test_horizons_within_a_week_are_taken(horizon: int) -> None:
    check_forecast_request(pb.ForecastRequest(horizon_minutes=horizon, task_type="x" * MOST_NAME))


@pytest.mark.parametrize("horizon", [0, -1, 10_081, 2**31 - 1, -(2**31)])
def test_other_horizons_are_not(horizon: int) -> None:
    found = problem(check_forecast_request, pb.ForecastRequest(horizon_minutes=horizon))
    assert found.field == "horizon_minutes"
    assert str(horizon) in str(found)


def test_an_empty_state_says_nothing_and_is_fine() -> None:
    check_state_request(pb.StateRequest())


@pytest.mark.parametrize("field", STATE_FIELDS)
def test_the_edges_of_every_state_field(field: str) -> None:
    most = 1.0 if field in SHARES else 1e15
    for good in (0.0, -0.0, most, most / 2):
        check_state_request(pb.StateRequest(**{field: good}))
    for bad in (math.nan, math.inf, -math.inf, -1e-9, math.nextafter(most, math.inf)):
        assert problem(check_state_request, pb.StateRequest(**{field: bad})).field == field


def test_features_are_finite_numbers_and_not_many() -> None:
    check_state_request(pb.StateRequest(features={f"f{number}": -1e15 for number in range(MOST_ENTRIES)}))
    for features in (
        {"load": math.nan},
        {"load": math.inf},
        {"load": 1e300},
        {"x" * (MOST_NAME + 1): 1.0},
        {f"f{number}": 1.0 for number in range(MOST_ENTRIES + 1)},
    ):
        assert problem(check_state_request, pb.StateRequest(features=features)).field == "features"


@pytest.mark.parametrize("field", ["task_type", "risk_band"])
def test_names_are_short(field: str) -> None:
    assert problem(check_state_request, pb.StateRequest(**{field: "é" * (MOST_NAME + 1)})).field == field
    assert problem(check_forecast_request, pb.ForecastRequest(horizon_minutes=60, **{field: "x" * 257})).field == field


def outcome(**given: Any) -> Any:
    return pb.OutcomeRequest(**{"state": STATE, "action": "NO_ACTION", "reward": 0.0, **given})


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("arm", ["", *Arm])
def test_every_action_and_arm_is_known(action: str, arm: str) -> None:
    check_outcome_request(outcome(action=action, arm=arm, reward=-1.0, rejection_reason="x" * MOST_TEXT))


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("state", {"state": None}),
        ("state.active_workers", {"state": pb.StateRequest(active_workers=-1)}),
        ("state.task_type", {"state": pb.StateRequest(task_type="x" * 257)}),
        ("state.features", {"state": pb.StateRequest(features={"a": math.nan})}),
        ("next_state.queue_depth", {"next_state": pb.StateRequest(queue_depth=math.nan)}),
        ("action", {"action": ""}),
        ("action", {"action": "no_action"}),
        ("action", {"action": "x" * 100_000}),
        ("reward", {"reward": math.nan}),
        ("reward", {"reward": 1.0000001}),
        ("reward", {"reward": -math.inf}),
        ("decision_id", {"decision_id": "x" * 257}),
        ("rejection_reason", {"rejection_reason": "x" * 2001}),
        ("arm", {"arm": "Treatment"}),
        ("parameters", {"parameters": {"x" * 257: "1"}}),
        ("parameters", {"parameters": {"target_workers": "1" * 257}}),
        ("parameters", {"parameters": {str(number): "1" for number in range(65)}}),
    ],
)
def test_outcomes_that_cannot_be(field: str, given: dict[str, Any]) -> None:
    found = problem(check_outcome_request, outcome(**given))
    assert found.field == field
    assert len(str(found)) < 1000, "what the caller sent is not sent back in full"


def test_etags_are_short() -> None:
    check_snapshot_request(pb.SnapshotRequest(etag="0" * 64))
    assert problem(check_snapshot_request, pb.SnapshotRequest(etag="0" * 257)).field == "etag"
