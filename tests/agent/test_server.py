"""Around the answers: health, reflection, limits, deadlines, metrics, the log, and the end of a server."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from nhm_sched_plugin import Health
from nhm_sched_plugin.agent.server import AgentServer
from nhm_sched_plugin.errors import ConfigError, RuleBookError
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.settings import load_settings

PATIENCE_S = 120.0
STATUS = health_pb2.HealthCheckResponse
BUSY = {"queue_depth": 150, "active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.95}


class Waiting:
    """A policy that answers when it is let go; the calls that have reached it are counted."""

    version = "waiting"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.begun: queue.Queue[None] = queue.Queue()
        self.go = threading.Event()

    def recommend(self, ticket: Any, state: Any, forecast: Any) -> Any:
        self.begun.put(None)
        assert self.go.wait(PATIENCE_S)
        return self.answer

    def explore(self, ticket: Any, state: Any, forecast: Any, admissible: Any) -> None:
        return None

    def learn(self, experience: Any) -> None: ...

    def refresh(self) -> None: ...

    def save(self) -> None: ...

    def health(self) -> Health:
        return Health(component="policy", ok=True)


@pytest.fixture
def waiting(kit: Any) -> Iterator[Waiting]:
    policy = Waiting(kit.GROW)
    yield policy
    policy.go.set()


def status(agent: Any, service: str) -> int:
    return int(agent.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status)


# -- health


def test_it_answers_at_once_and_is_ready_when_the_models_are_in(kit: Any, serving: Any) -> None:
    loading, loaded = threading.Event(), threading.Event()

    def make_forecaster() -> Any:
        loading.set()
        assert loaded.wait(PATIENCE_S)
        return kit.FixedForecaster()

    agent = serving(
        plugins={"parts": kit.plugin(make_forecaster=make_forecaster, make_policy=lambda: kit.FixedPolicy())}
    )
    assert loading.wait(PATIENCE_S)
    assert status(agent, "") == STATUS.SERVING
    assert status(agent, "OptimizerAgent") == STATUS.NOT_SERVING
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S).method == "mean"
    assert [part.ok for part in agent.server.health()] == [False]
    loaded.set()
    agent.ready()
    assert status(agent, "OptimizerAgent") == STATUS.SERVING
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S).mean_volume == 500
    assert {part.component for part in agent.server.health()} == {"forecaster", "policy", "rules", "learner"}


def test_without_models_it_is_ready_as_soon_as_that_is_known(serving: Any) -> None:
    assert status(serving().ready(), "OptimizerAgent") == STATUS.SERVING


def test_a_service_that_is_not_there_is_not_found(serving: Any) -> None:
    agent = serving()
    with pytest.raises(grpc.RpcError) as error:
        status(agent, "Nobody")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    watched = agent.health.Watch(health_pb2.HealthCheckRequest(service="Nobody"), timeout=PATIENCE_S)
    assert next(watched).status == STATUS.SERVICE_UNKNOWN
    watched.cancel()


def test_every_watcher_hears_of_the_end_though_another_has_left(serving: Any) -> None:
    agent = serving().ready()
    ask = health_pb2.HealthCheckRequest(service="OptimizerAgent")
    leaving = agent.health.Watch(ask)
    assert next(leaving).status == STATUS.SERVING
    heard: queue.Queue[int | None] = queue.Queue()

    def listen() -> None:
        for answer in agent.health.Watch(ask, timeout=PATIENCE_S):
            heard.put(answer.status)
        heard.put(None)  # the stream has ended well

    listening = threading.Thread(target=listen)
    listening.start()
    assert heard.get(timeout=PATIENCE_S) == STATUS.SERVING
    leaving.cancel()
    agent.begin_to_stop()
    assert heard.get(timeout=PATIENCE_S) == STATUS.NOT_SERVING
    assert heard.get(timeout=PATIENCE_S) is None
    listening.join()


# -- reflection


def test_tools_can_ask_for_the_description(serving: Any) -> None:
    agent = serving()
    database = ProtoReflectionDescriptorDatabase(agent.channel)
    assert {"OptimizerAgent", "grpc.health.v1.Health"} <= set(database.get_services())
    file = database.FindFileContainingSymbol("OptimizerAgent")
    methods = {method.name for service in file.service for method in service.method}
    assert "GetSchedulingRecommendation" in methods


def test_reflection_speaks_version_1_too(serving: Any) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    call = serving().channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = call(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]), timeout=PATIENCE_S)
    assert "OptimizerAgent" in {service.name for service in answer.list_services_response.service}


def test_reflection_can_be_switched_off(serving: Any) -> None:
    with pytest.raises(grpc.RpcError) as error:
        ProtoReflectionDescriptorDatabase(serving({"agent": {"reflection": False}}).channel).get_services()
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- limits and deadlines


def test_more_calls_than_allowed_are_refused_and_health_still_answers(kit: Any, serving: Any, waiting: Waiting) -> None:
    agent = serving({"agent": {"max_concurrent_rpcs": 2}}, {"parts": kit.Parts(kit.FixedForecaster(), waiting)}).ready()
    calls = [
        agent.stub.GetSchedulingRecommendation.future(pb.StateRequest(**BUSY), timeout=PATIENCE_S) for _ in range(2)
    ]
    # One of them waits in the policy; the other for the policy, since a plugin is asked one thing at a time.
    waiting.begun.get(timeout=PATIENCE_S)
    labels = {"grpc_type": "unary", "grpc_service": "OptimizerAgent", "grpc_method": "GetSchedulingRecommendation"}
    kit.wait_for(lambda: agent.counted("grpc_server_started_total", **labels) == 2, PATIENCE_S)
    with pytest.raises(grpc.RpcError) as error:
        agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "max_concurrent_rpcs" in error.value.details()
    assert status(agent, "") == STATUS.SERVING
    waiting.go.set()
    assert {call.result().action for call in calls} == {"INCREASE_WORKER_POOL"}
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S).mean_volume == 500


def test_more_streams_than_allowed_are_refused(serving: Any) -> None:
    agent = serving({"agent": {"max_concurrent_rpcs": 2}}).ready()
    ask = health_pb2.HealthCheckRequest(service="")
    open_ones = [agent.health.Watch(ask) for _ in range(2)]
    for one in open_ones:
        next(one)
    with pytest.raises(grpc.RpcError) as error:
        next(agent.health.Watch(ask, timeout=PATIENCE_S))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status(agent, "") == STATUS.SERVING, "and a check is none of them"
    assert agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S).method == "mean"
    for one in open_ones:
        one.cancel()


def test_a_call_whose_deadline_has_passed_is_not_worked_on(kit: Any, serving: Any) -> None:
    agent = serving().ready()
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go.wait(PATIENCE_S)

    agent.loop.call_soon_threadsafe(hold)
    assert held.wait(PATIENCE_S)
    with pytest.raises(grpc.RpcError) as error:
        agent.stub.GetSchedulingRecommendation(pb.StateRequest(task_type="late"), timeout=0.2)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    go.set()
    everything = agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S)
    assert everything.mean_volume == 0, "its ticket was not counted"
    assert agent.handled("GetSchedulingRecommendation") == 0


def test_a_part_that_takes_too_long_leaves_the_rules_time_to_answer(kit: Any, serving: Any, waiting: Waiting) -> None:
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(), waiting)}).ready()
    said = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=3.0)
    assert (said.action, said.confidence) == ("INCREASE_WORKER_POOL", 0.5)
    assert "the policy failed" in said.justification


def test_a_caller_that_hangs_up_is_counted_as_such(kit: Any, serving: Any, waiting: Waiting) -> None:
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(), waiting)}).ready()
    call = agent.stub.GetSchedulingRecommendation.future(pb.StateRequest(**BUSY))
    waiting.begun.get(timeout=PATIENCE_S)
    call.cancel()
    kit.wait_for(lambda: agent.handled("GetSchedulingRecommendation", "Canceled") == 1, PATIENCE_S)


# -- metrics and the log


def test_calls_are_counted_as_go_grpc_prometheus_does(serving: Any) -> None:
    agent = serving().ready()
    agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60))
    with pytest.raises(grpc.RpcError):
        agent.stub.GetLoadForecast(pb.ForecastRequest())
    with pytest.raises(grpc.RpcError):
        agent.channel.unary_unary("/Made/Up")(b"")
    labels = {"grpc_type": "unary", "grpc_service": "OptimizerAgent", "grpc_method": "GetLoadForecast"}
    assert agent.counted("grpc_server_started_total", **labels) == 2
    assert agent.counted("grpc_server_handled_total", grpc_code="OK", **labels) == 1
    assert agent.counted("grpc_server_handled_total", grpc_code="InvalidArgument", **labels) == 1
    assert agent.counted("grpc_server_handling_seconds_count", **labels) == 2
    assert agent.counted("grpc_server_handling_seconds_sum", **labels) > 0
    unknown = {"grpc_type": "bidi_stream", "grpc_service": "unknown", "grpc_method": "unknown"}
    assert agent.counted("grpc_server_handled_total", grpc_code="Unimplemented", **unknown) == 1
    kept = len(agent.server.advisor.counts._observed)
    for number in range(20):
        with pytest.raises(grpc.RpcError):
            agent.channel.unary_unary(f"/Made/Up{number}")(b"")
    assert agent.counted("grpc_server_handled_total", grpc_code="Unimplemented", **unknown) == 21
    assert len(agent.server.advisor.counts._observed) == kept, "nobody can fill the memory with names"
    served = {"horizon": "60", "task_type": "all", "status": "unavailable"}
    assert agent.counted("optimizer_load_predictions_total", **served) == 1


def test_what_callers_make_up_is_no_label(serving: Any) -> None:
    agent = serving().ready()
    for number in range(3):
        agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=61 + number, task_type=f"t{number}"))
    others = {"horizon": "other", "task_type": "other", "status": "unavailable"}
    assert agent.counted("optimizer_load_predictions_total", **others) == 3


def test_each_refused_call_is_one_line(serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    agent = serving().ready()
    wrong = pb.OutcomeRequest(state=pb.StateRequest(), action="x\ny", reward=0.1, decision_id="d-1")
    with caplog.at_level(logging.INFO, "nhm_sched_plugin.agent.calls"):
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                agent.stub.RecordActionOutcome(wrong)
    lines = [record for record in caplog.records if record.name == "nhm_sched_plugin.agent.calls"]
    assert len(lines) == 2
    found: Any = lines[0]
    assert (found.method, found.code) == ("/OptimizerAgent/RecordActionOutcome", "INVALID_ARGUMENT")
    assert (found.field, found.decision_id) == ("action", "d-1")
    assert found.peer.startswith("ipv4:127.0.0.1:")
    assert "\n" not in found.getMessage()


def test_metrics_and_health_have_a_listener(serving: Any) -> None:
    from urllib.request import urlopen

    agent = serving({"metrics": {"port": 0}}).ready()
    address = f"http://127.0.0.1:{agent.server.metrics_port}"
    agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60))
    with urlopen(f"{address}/metrics") as answer:  # noqa: S310
        text = answer.read().decode()
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="GetLoadForecast"' in text
    assert "grpc_server_handling_seconds_bucket" in text


# -- beginning and end


def test_what_a_person_has_to_mend_is_said_before_it_listens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.host"):
        AgentServer(load_settings({"data_dir": str(tmp_path), "agent": {"host": "0.0.0.0"}}))  # noqa: S104
    with pytest.raises(RuleBookError):
        AgentServer(load_settings({"data_dir": str(tmp_path), "fallback": {"rule_book": str(tmp_path / "none.yaml")}}))


def test_a_token_is_asked_for_where_there_are_tokens(serving: Any, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("reading read\n")
    tokens.chmod(0o600)
    agent = serving({"agent": {"token_file": str(tokens)}})
    ask = pb.ForecastRequest(horizon_minutes=60)
    with pytest.raises(grpc.RpcError) as error:
        agent.stub.GetLoadForecast(ask)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    reading = [("authorization", "Bearer reading")]
    assert agent.stub.GetLoadForecast(ask, metadata=reading).method == "mean"
    with pytest.raises(grpc.RpcError) as error:
        agent.stub.RecordActionOutcome(pb.OutcomeRequest(state=pb.StateRequest(), action="NO_ACTION"), metadata=reading)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert agent.handled("RecordActionOutcome", "PermissionDenied") == 1
    assert status(agent, "") == STATUS.SERVING, "probes carry no token"


def test_the_end_waits_for_calls_that_have_begun_and_for_no_stream(kit: Any, serving: Any, waiting: Waiting) -> None:
    agent = serving(plugins={"parts": kit.Parts(kit.FixedForecaster(), waiting)}).ready()
    described = agent.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    never = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"\x3a\x01*"
        never.wait(PATIENCE_S)

    stream = described(requests())
    next(stream)
    watched = agent.health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=PATIENCE_S)
    assert next(watched).status == STATUS.SERVING
    call = agent.stub.GetSchedulingRecommendation.future(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
    waiting.begun.get(timeout=PATIENCE_S)
    agent.begin_to_stop()
    assert next(watched).status == STATUS.NOT_SERVING, "before the port closes"
    with pytest.raises(grpc.RpcError) as error:
        next(stream)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    never.set()
    assert not call.done()
    waiting.go.set()
    assert call.result().action == "INCREASE_WORKER_POOL"


def test_what_was_learned_is_found_again(serving: Any, tmp_path: Path) -> None:
    first = serving().ready()
    state = pb.StateRequest(**BUSY)
    for number in range(5):
        first.stub.RecordActionOutcome(
            pb.OutcomeRequest(state=state, action="NO_ACTION", reward=0.5, decision_id=f"d{number}")
        )
    first.stop()
    second = serving().ready()
    answer = second.stub.RecordActionOutcome(
        pb.OutcomeRequest(state=state, action="NO_ACTION", reward=0.5, decision_id="d5")
    )
    assert answer.updates == 6


def test_two_agents_cannot_have_one_port(serving: Any, kit: Any) -> None:
    port = serving().server.port
    with pytest.raises(OSError, match="cannot listen"):
        serving({"agent": {"port": port}})


def test_a_unix_socket_will_do(serving: Any, tmp_path: Path) -> None:
    serving({"agent": {"host": f"unix:{tmp_path}/agent.sock"}})
    with grpc.insecure_channel(f"unix:{tmp_path}/agent.sock") as channel:
        call: Callable[..., Any] = channel.unary_unary("/OptimizerAgent/GetLoadForecast")
        assert pb.ForecastResponse.FromString(call(b"\x08\x3c", timeout=PATIENCE_S)).method == "mean"
