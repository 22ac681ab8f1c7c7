"""What the five RPCs answer, with models and before them, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from nhm_sched_plugin import Action, Recommendation
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.wire import convert
from nhm_sched_plugin.wire.snapshots import etag, unpack_policy

BUSY = {"queue_depth": 150, "active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.95}
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def refused(call: Callable[..., Any], request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=60)
    return error.value.code(), error.value.details()


# -- with models


@pytest.fixture
def with_models(kit: Any, serving: Any, tmp_path: Path) -> Any:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    return serving().ready()


def test_a_forecast_comes_from_the_table(with_models: Any) -> None:
    answer = with_models.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=180))
    assert answer.predicted_volume == 500
    assert answer.forecast_horizon_minutes == 180
    assert len(answer.hours) == 3
    assert answer.total_volume == pytest.approx(1500)
    assert (answer.method, answer.model_version) == ("seasonal_mean", "v1")
    assert answer.confidence > 0.1


def test_the_same_question_gets_the_same_answer_and_a_new_table_another(
    kit: Any, with_models: Any, tmp_path: Path
) -> None:
    ask = pb.ForecastRequest(horizon_minutes=60)
    assert with_models.stub.GetLoadForecast(ask) == with_models.stub.GetLoadForecast(ask)
    kit.write_forecast(tmp_path / "agent", volume=70.0)
    kit.wait_for(lambda: with_models.stub.GetLoadForecast(ask).predicted_volume == 70, 60)


def test_an_unknown_slice_is_answered_from_everything_scaled_by_its_share(with_models: Any) -> None:
    answer = with_models.stub.GetLoadForecast(
        pb.ForecastRequest(horizon_minutes=60, task_type="never seen", risk_band="high")
    )
    everything = with_models.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60))
    assert 0 < answer.mean_volume < 0.05 * everything.mean_volume
    assert answer.confidence < everything.confidence


def test_the_bottleneck_is_that_of_the_pool_shown_last(with_models: Any) -> None:
    ask = pb.ForecastRequest(horizon_minutes=60)
    assert with_models.stub.GetLoadForecast(ask).bottleneck_probability == 0
    for workers, probability in ((1, 1.0), (1000, 0.0)):
        with_models.stub.GetSchedulingRecommendation(pb.StateRequest(**{**BUSY, "active_workers": workers}))
        assert with_models.stub.GetLoadForecast(ask).bottleneck_probability == pytest.approx(probability, abs=0.05)


def test_a_recommendation_comes_from_the_policy(with_models: Any) -> None:
    answer = with_models.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY, task_type="processing"))
    recommendation = convert.recommendation_of(answer)
    assert recommendation.action is Action.INCREASE_WORKER_POOL
    assert recommendation.parameters["target_workers"] > 10
    assert answer.policy_version == "q4-untrained"
    assert answer.state_hash.startswith("u")
    assert answer.propensity == 1.0, "the agent never explores"
    assert answer.justification
    labels = {"action": "INCREASE_WORKER_POOL", "source": "policy"}
    assert with_models.counted("nhm_sched_agent_recommendations_total", **labels) == 1


def test_every_recommendation_has_an_id_of_its_own(with_models: Any) -> None:
    ids = {with_models.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY)).decision_id for _ in range(20)}
    assert len(ids) == 20


def test_seven_tenths_stay_seven_tenths(kit: Any, serving: Any) -> None:
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(), kit.FixedPolicy(kit.sure(0.7)))}).ready()
    answer = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY))
    assert answer.confidence != 0.7, "single precision on the wire"
    assert convert.recommendation_of(answer).confidence == 0.7


# -- before there are models


def test_without_models_the_rules_recommend_at_no_more_than_even_confidence(serving: Any) -> None:
    agent = serving().ready()
    answer = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY))
    assert answer.action == "INCREASE_WORKER_POOL"
    assert int(answer.parameters["target_workers"]) > 10
    assert answer.confidence == 0.5
    assert "no models yet" in answer.justification
    assert answer.state_hash
    labels = {"action": "INCREASE_WORKER_POOL", "source": "rules"}
    assert agent.counted("nhm_sched_agent_recommendations_total", **labels) == 1


def test_without_models_the_last_hour_goes_on(serving: Any) -> None:
    agent = serving().ready()
    nothing = agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60))
    assert (nothing.method, nothing.mean_volume, nothing.confidence) == ("mean", 0.0, 0.0)
    for task_type in ("a", "a", "a", "b"):
        agent.stub.GetSchedulingRecommendation(pb.StateRequest(task_type=task_type))
    everything = agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=120))
    assert (everything.method, everything.mean_volume) == ("mean", 4.0)
    assert everything.total_volume == pytest.approx(8.0)
    assert 0 < round(everything.confidence, 6) <= 0.1
    levels = [one.value for one in everything.quantiles]
    assert levels == sorted(levels)
    assert levels[2] == pytest.approx(4 * math.log(2)), "the median of an exponential distribution"
    for task_type, share in (("a", 0.75), ("b", 0.25), ("unknown", 0.01)):
        slice_ = agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60, task_type=task_type))
        assert slice_.mean_volume == pytest.approx(4 * share)


def test_without_arrivals_a_callers_own_forecast_is_what_is_known(serving: Any) -> None:
    agent = serving().ready()
    agent.stub.GetSchedulingRecommendation(pb.StateRequest(predicted_load_1h=360))
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60)).mean_volume == 360


def test_what_a_caller_counts_itself_is_not_counted_again(serving: Any) -> None:
    agent = serving().ready()
    counting = {"arrivals_15s": 3.0, "arrivals_last_hour": 700.0}
    agent.stub.GetSchedulingRecommendation(pb.StateRequest(task_type="a", features=counting))
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60)).mean_volume == 0


# -- parts of others


@pytest.mark.parametrize("answer", ["raises", "nothing"])
def test_a_policy_that_fails_falls_back_to_the_rules(kit: Any, serving: Any, answer: str) -> None:
    policy = kit.FixedPolicy(RuntimeError("somebody else's mistake"))
    if answer == "nothing":
        policy.recommend = lambda ticket, state, forecast: None
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(), policy)}).ready()
    for _ in range(3):
        said = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY))
        assert (said.action, said.confidence) == ("INCREASE_WORKER_POOL", 0.5)
        assert "policy" in said.justification
    assert agent.handled("GetSchedulingRecommendation") == 3


def test_a_forecaster_that_fails_leaves_the_mean(kit: Any, serving: Any) -> None:
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(RuntimeError("no")), kit.FixedPolicy())}).ready()
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60)).method == "mean"


def test_parts_that_cannot_be_made_leave_the_rules(kit: Any, serving: Any) -> None:
    def raising() -> Any:
        raise RuntimeError("cannot be made")

    plugins = {"broken": kit.plugin(make_forecaster=raising, make_policy=raising)}
    agent = serving(plugins=plugins).ready()
    assert agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY)).confidence == 0.5
    code, details = refused(
        agent.stub.RecordActionOutcome,
        pb.OutcomeRequest(state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.1),
    )
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "no policy" in details


def test_what_is_outside_the_limits_is_not_recommended(kit: Any, serving: Any) -> None:
    huge = Recommendation(
        action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 900}, confidence=0.99, source="policy"
    )
    agent = serving(
        {"limits": {"max_workers": 20}}, {"parts": kit.Parts(kit.FixedForecaster(), kit.FixedPolicy(huge))}
    ).ready()
    said = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY))
    assert int(said.parameters["target_workers"]) <= 20
    assert said.confidence == 0.5
    assert "max_workers" in said.justification


# -- outcomes


def told(decision_id: str = "", **given: Any) -> Any:
    known = {"state": pb.StateRequest(**BUSY), "action": "INCREASE_WORKER_POOL", "reward": 0.5}
    return pb.OutcomeRequest(**{**known, "decision_id": decision_id, **given})


def test_an_outcome_is_learned_from_once(with_models: Any) -> None:
    first = with_models.stub.RecordActionOutcome(told("d1"))
    assert (first.accepted, first.updates) == (True, 1)
    assert first.q_value > 0
    again = with_models.stub.RecordActionOutcome(told("d1", reward=-1.0))
    assert (again.accepted, again.updates, again.q_value) == (False, 1, first.q_value)
    for expected in (2, 3):
        anonymous = with_models.stub.RecordActionOutcome(told())
        assert (anonymous.accepted, anonymous.updates) == (True, expected)


def test_what_came_of_an_advice_is_learned_in_the_state_that_it_was_given_in(
    serving: Any, kit: Any, tmp_path: Path
) -> None:
    """Also for a client that sends what it measures and no predicted loads: the agent fills them in both times."""
    kit.write_forecast(tmp_path / "agent", volume=900.0)
    agent = serving({"ml": {"scheduling": {"update_interval": 10}}}).ready()
    measured = {"active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.4}
    advised = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**measured)).state_hash
    for number in range(10):
        agent.stub.RecordActionOutcome(told(f"d{number}", state=pb.StateRequest(**measured)))
    found = kit.wait_for(lambda: agent.stub.GetPolicySnapshot(pb.SnapshotRequest()).content, 60)
    assert list(QTable.parse(unpack_policy(found)[0], "it").rows) == [advised]


def test_outcomes_that_come_while_the_models_are_loaded_wait_for_them(serving: Any) -> None:
    agent = serving()
    assert agent.stub.RecordActionOutcome(told("early"), timeout=60).accepted


def test_many_outcomes_at_once_are_all_counted(with_models: Any) -> None:
    calls = [with_models.stub.RecordActionOutcome.future(told(f"d{number}"), timeout=60) for number in range(100)]
    answers = [call.result() for call in calls]
    assert all(answer.accepted for answer in answers)
    assert sorted(answer.updates for answer in answers) == list(range(1, 101))


def test_a_disk_that_takes_no_outcome_is_told_and_then_it_is_taken(serving: Any, tmp_path: Path, kit: Any) -> None:
    """Nothing can be made where a file lies."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "ledger").write_text("in the way")
    agent = serving().ready()
    code, details = refused(agent.stub.RecordActionOutcome, told("d1"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "could not be written" in details
    (tmp_path / "agent" / "ledger").unlink()

    def taken() -> bool:
        try:
            return bool(agent.stub.RecordActionOutcome(told("d1"), timeout=60).accepted)
        except grpc.RpcError:
            return False

    kit.wait_for(taken, 60)


# -- snapshots


def test_snapshots_are_the_files_and_an_etag_spares_the_content(kit: Any, with_models: Any, tmp_path: Path) -> None:
    found = with_models.stub.GetForecastSnapshot(pb.SnapshotRequest())
    assert found.content == (tmp_path / "agent" / "snapshots" / "forecast.json").read_bytes()
    assert found.etag == etag(found.content)
    assert found.version > 0
    assert found.timestamp > 0
    same = with_models.stub.GetForecastSnapshot(pb.SnapshotRequest(etag=found.etag))
    assert (same.not_modified, same.content, same.version) == (True, b"", found.version)
    kit.write_forecast(tmp_path / "agent", volume=70.0)

    def renewed() -> Any:
        answer = with_models.stub.GetForecastSnapshot(pb.SnapshotRequest(etag=found.etag))
        return None if answer.not_modified else answer

    newer = kit.wait_for(renewed, 60)
    assert newer.version >= found.version
    assert newer.content == (tmp_path / "agent" / "snapshots" / "forecast.json").read_bytes()


def test_a_policy_snapshot_holds_what_was_learned(serving: Any, kit: Any) -> None:
    agent = serving({"ml": {"scheduling": {"update_interval": 10}}}).ready()
    assert agent.stub.GetPolicySnapshot(pb.SnapshotRequest()) == pb.SnapshotResponse(), "nothing to give yet"
    for number in range(20):
        agent.stub.RecordActionOutcome(told(f"d{number}"))
    found = kit.wait_for(lambda: agent.stub.GetPolicySnapshot(pb.SnapshotRequest()).content, 60)
    q_table, planner = unpack_policy(found)
    assert QTable.parse(q_table, "snapshot").updates >= 10
    assert planner is None


def test_the_tables_of_a_part_that_is_not_used_are_not_handed_out(kit: Any, serving: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "agent")
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(), kit.FixedPolicy())}).ready()
    assert agent.stub.GetForecastSnapshot(pb.SnapshotRequest()) == pb.SnapshotResponse()


# -- what a caller may not send

WRONG_STATES = [
    *(
        (name, {name: value})
        for name in ("queue_depth", "active_workers", "avg_task_duration_ms", "predicted_load_1h", "predicted_load_6h")
        for value in (math.nan, -1.0, math.inf, 1e16)
    ),
    *(
        (name, {name: value})
        for name in ("sla_compliance_rate", "resource_cpu_avg", "resource_memory_avg")
        for value in (math.nan, -0.1, 1.4)
    ),
    ("task_type", {"task_type": "x" * 257}),
    ("risk_band", {"risk_band": "x" * 257}),
    ("features", {"features": {"load": math.nan}}),
    ("features", {"features": {"load": 1e16}}),
    ("features", {"features": {"x" * 257: 1.0}}),
    ("features", {"features": {str(number): 1.0 for number in range(65)}}),
]
WRONG_FORECASTS = [
    *(("horizon_minutes", {"horizon_minutes": value}) for value in (0, -1, 10_081, -(2**31))),
    ("task_type", {"horizon_minutes": 60, "task_type": "x" * 257}),
    ("risk_band", {"horizon_minutes": 60, "risk_band": "x" * 257}),
]
WRONG_OUTCOMES = [
    ("state", {"state": None}),
    ("action", {"action": ""}),
    ("action", {"action": "SELL_EVERYTHING"}),
    *(("reward", {"reward": value}) for value in (math.nan, 1.1, -1.1, math.inf)),
    ("state.queue_depth", {"state": pb.StateRequest(queue_depth=-1)}),
    ("next_state.sla_compliance_rate", {"next_state": pb.StateRequest(sla_compliance_rate=1.4)}),
    ("decision_id", {"decision_id": "x" * 257}),
    ("rejection_reason", {"rejection_reason": "x" * 2001}),
    ("arm", {"arm": "leg"}),
    ("parameters", {"parameters": {str(number): "1" for number in range(65)}}),
    ("parameters", {"parameters": {"target_workers": "x" * 257}}),
]


@pytest.mark.parametrize(("field", "given"), WRONG_STATES)
def test_a_state_that_cannot_be_is_refused_with_the_fields_name(asked: Any, field: str, given: dict[str, Any]) -> None:
    code, details = refused(asked.stub.GetSchedulingRecommendation, pb.StateRequest(**given))
    assert code is INVALID
    assert details.startswith(f"{field}: ")


@pytest.mark.parametrize(("field", "given"), WRONG_FORECASTS)
def test_a_forecast_that_cannot_be_made_is_refused(asked: Any, field: str, given: dict[str, Any]) -> None:
    code, details = refused(asked.stub.GetLoadForecast, pb.ForecastRequest(**given))
    assert code is INVALID
    assert details.startswith(f"{field}: ")


@pytest.mark.parametrize(("field", "given"), WRONG_OUTCOMES)
def test_an_outcome_that_cannot_be_is_refused(asked: Any, field: str, given: dict[str, Any]) -> None:
    code, details = refused(asked.stub.RecordActionOutcome, told(**{"decision_id": "d", **given}))
    assert code is INVALID
    assert details.startswith(f"{field}: ")


@pytest.mark.parametrize("method", ["GetPolicySnapshot", "GetForecastSnapshot"])
def test_an_etag_that_is_none_is_refused(asked: Any, method: str) -> None:
    code, details = refused(getattr(asked.stub, method), pb.SnapshotRequest(etag="x" * 257))
    assert (code, details.split(":")[0]) == (INVALID, "etag")


METHODS = [
    "/OptimizerAgent/GetLoadForecast",
    "/OptimizerAgent/GetSchedulingRecommendation",
    "/OptimizerAgent/RecordActionOutcome",
    "/OptimizerAgent/GetPolicySnapshot",
    "/OptimizerAgent/GetForecastSnapshot",
    "/grpc.health.v1.Health/Check",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe" + b"\x4a\x02\xff\xfe"])
def test_bytes_that_are_no_message_are_the_callers_mistake(asked: Any, method: str, raw: bytes) -> None:
    """The last has text that is not UTF-8, or a field of another type."""
    call = asked.channel.unary_unary(method)
    if raw[:2] == b"\x0a\x02" and method == "/OptimizerAgent/GetLoadForecast":
        raw = b"\x12\x02\xff\xfe"
    code, details = refused(call, raw)
    assert code is INVALID
    assert "decoded" in details


def test_undecodable_streams_are_the_callers_mistake_too(asked: Any) -> None:
    for method in ("/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
        call = asked.channel.stream_stream(method)
        with pytest.raises(grpc.RpcError) as error:
            list(call(iter([b"\xff\xff\xff"]), timeout=60))
        assert error.value.code() is INVALID


def test_a_message_that_is_too_large_exhausts(asked: Any) -> None:
    code, _ = refused(asked.stub.GetLoadForecast, pb.ForecastRequest(horizon_minutes=60, task_type="x" * 70_000))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_method_that_is_not_there_is_unimplemented(asked: Any) -> None:
    for method in ("/OptimizerAgent/Guess", "/Nobody/Asks", "/x"):
        code, details = refused(asked.channel.unary_unary(method), b"")
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "OptimizerAgent" in details


def test_an_unexpected_failure_of_ours_is_unavailable_and_in_the_log(
    serving: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = serving().ready()

    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    monkeypatch.setattr(agent.server.advisor, "recommend", broken)
    code, details = refused(agent.stub.GetSchedulingRecommendation, pb.StateRequest(**BUSY))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "a bug" not in details
    assert any(record.exc_info and "a bug" in str(record.exc_info[1]) for record in caplog.records)
    assert agent.handled("GetSchedulingRecommendation", "Unavailable") == 1
