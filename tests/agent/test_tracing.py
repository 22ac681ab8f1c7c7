"""Spans of a real gRPC server, exported to a real collector: an HTTP server that takes OTLP."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider

from nhm_sched_plugin.agent.tracing import Tracing
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings_agent import AgentSettings, OptimizerSettings
from nhm_sched_plugin.wire.credentials import ClientCredentials

DEADLINE_S = 30.0
RECOMMEND = "/OptimizerAgent/GetSchedulingRecommendation"
ON = AgentSettings(tracing=True)
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.raw = b""
        self.answering = threading.Event()
        self.answering.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                outer.take(body)
                outer.answering.wait()
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.services.add(named["service.name"])
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def close(self) -> None:
        self.answering.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    yield collector
    collector.close()


@asynccontextmanager
async def served(tracing: Tracing, answer: Callable[[bytes, Any], Any]) -> Any:
    server = grpc.aio.server(interceptors=tracing.interceptors)
    handlers = {"GetSchedulingRecommendation": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("OptimizerAgent", handlers),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield channel
        finally:
            await server.stop(None)


def run(tracing: Tracing, answer: Callable[[bytes, Any], Any], *calls: tuple[tuple[str, str], ...]) -> list[Any]:
    """The answers or status codes of calls with this metadata, one after the other; then the tracing is closed."""

    async def all_of_them() -> list[Any]:
        ends: list[Any] = []
        async with served(tracing, answer) as channel:
            for metadata in calls:
                try:
                    ends.append(await channel.unary_unary(RECOMMEND)(b"x", metadata=metadata, timeout=DEADLINE_S))
                except grpc.aio.AioRpcError as error:
                    ends.append(error.code())
            probe = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
            assert (await probe).status == health_pb2.HealthCheckResponse.SERVING
        return ends

    try:
        return asyncio.run(all_of_them())
    finally:
        tracing.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


async def echo(request: bytes, context: Any) -> bytes:
    return request


def test_a_call_is_a_span_within_the_callers_trace(collector: Collector) -> None:
    tracing = Tracing(ON)

    async def recommend(request: bytes, context: Any) -> bytes:
        tracing.annotate(decision_id="d-1", action="INCREASE_WORKER_POOL", confidence=0.75)
        return request

    caller = ClientCredentials(OptimizerSettings(endpoint="localhost:50053"))
    with TracerProvider(shutdown_on_exit=False).get_tracer("host").start_as_current_span("tick") as tick:
        metadata = caller.call_metadata()
    assert run(tracing, recommend, metadata, (*metadata, ("authorization", "Bearer s3cret"))) == [b"x", b"x"]

    span, second = collector.spans
    parent = tick.get_span_context()
    assert int.from_bytes(span.trace_id) == int.from_bytes(second.trace_id) == parent.trace_id
    assert int.from_bytes(span.parent_span_id) == parent.span_id
    assert (span.name, span.kind) == (RECOMMEND.removeprefix("/"), span.SPAN_KIND_SERVER)
    assert attributes(span) == {
        "rpc.system": "grpc",
        "rpc.service": "OptimizerAgent",
        "rpc.method": "GetSchedulingRecommendation",
        "rpc.grpc.status_code": 0,
        "nhm_sched.decision_id": "d-1",
        "nhm_sched.action": "INCREASE_WORKER_POOL",
        "nhm_sched.confidence": 0.75,
    }
    assert collector.services == {"nhm-sched-agent"}
    assert b"s3cret" not in collector.raw


def test_calls_at_the_same_time_do_not_mix(collector: Collector) -> None:
    tracing = Tracing(ON)
    together = 20

    async def all_at_once() -> None:
        arrived = 0
        everybody = asyncio.Event()

        async def recommend(request: bytes, context: Any) -> bytes:
            nonlocal arrived
            arrived += 1
            if arrived == together:
                everybody.set()
            await everybody.wait()
            tracing.annotate(decision_id=request.decode(), action="NO_ACTION", confidence=0.5)
            return request

        async with served(tracing, recommend) as channel:
            ask = channel.unary_unary(RECOMMEND)
            traces = [(("traceparent", f"00-{number:032x}-{number:016x}-01"),) for number in range(1, together + 1)]
            calls = [ask(b"d-%d" % number, metadata=md, timeout=DEADLINE_S) for number, md in enumerate(traces, 1)]
            await asyncio.gather(*calls)

    asyncio.run(all_at_once())
    tracing.close()
    found = {int.from_bytes(span.trace_id): attributes(span)["nhm_sched.decision_id"] for span in collector.spans}
    assert found == {number: f"d-{number}" for number in range(1, together + 1)}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_refused_call_keeps_its_code_and_only_our_faults_are_errors(
    collector: Collector, code: grpc.StatusCode
) -> None:
    async def refuse(request: bytes, context: Any) -> bytes:
        await context.abort(code, "no")
        return b""

    assert run(Tracing(ON), refuse, ()) == [code]
    (span,) = collector.spans
    assert CODES[attributes(span)["rpc.grpc.status_code"]] is code
    ours = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
    assert span.status.code == (span.status.STATUS_CODE_ERROR if code.name in ours else span.status.STATUS_CODE_UNSET)
    assert not span.events


def test_a_fault_of_the_handler_is_an_error(collector: Collector) -> None:
    async def fail(request: bytes, context: Any) -> bytes:
        raise RuntimeError("s3cret")

    assert run(Tracing(ON), fail, ()) == [grpc.StatusCode.UNKNOWN]
    (span,) = collector.spans
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.UNKNOWN.value[0]
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert b"s3cret" not in collector.raw


@pytest.mark.parametrize(
    "metadata",
    [
        (("traceparent", "~~ff-zz"),),
        (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),),
        (("traceparent", "x" * 4000), ("tracestate", "=,=," * 500)),
        (("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("tracestate", "a=b," * 500)),
        (("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"), ("tracestate", "a=b,A@,=" * 50)),
        (("traceparent", "a"), ("traceparent", "b"), ("traceparent-bin", b"\xff")),
        (("baggage", "a=%ZZ;;,=" * 100),),
    ],
)
def test_garbage_from_the_caller_changes_nothing(
    collector: Collector, caplog: pytest.LogCaptureFixture, metadata: tuple[tuple[str, Any], ...]
) -> None:
    assert run(Tracing(ON), echo, metadata) == [b"x"]
    assert len(collector.spans) == 1
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


def test_methods_that_are_not_ours_have_no_spans(collector: Collector) -> None:
    tracing = Tracing(ON)

    async def call_all() -> set[grpc.StatusCode]:
        codes = set()
        async with served(tracing, echo) as channel:
            for method in ("/OptimizerAgent/Other", "/Other/GetSchedulingRecommendation", "/x", "/"):
                try:
                    await channel.unary_unary(method)(b"x", timeout=DEADLINE_S)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code())
        return codes

    assert asyncio.run(call_all()) == {grpc.StatusCode.UNIMPLEMENTED}
    tracing.close()
    assert collector.spans == []


def test_sampling_and_names_come_from_the_environment(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-agent")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    sampled = ("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    assert run(Tracing(ON), echo, (), (sampled,), ()) == [b"x"] * 3
    assert len(collector.spans) == 1
    assert collector.services == {"my-agent"}


@pytest.mark.parametrize(("exporter", "exported"), [("none", 0), ("otlp", 1), ("otlp_proto_http,none", 1), ("", 1)])
def test_the_exporter_comes_from_the_environment(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, exporter: str, exported: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    assert run(Tracing(ON), echo, ()) == [b"x"]
    assert len(collector.spans) == exported


@pytest.mark.parametrize(
    ("variable", "value", "missing"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/json"),
    ],
)
def test_an_exporter_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, missing: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"agent\.tracing.*'{missing}'.*OTEL_TRACES_EXPORTER.*console, none, otlp"):
        Tracing(ON)


def test_a_collector_that_never_answers_holds_nothing_up(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(10 * DEADLINE_S))
    collector.answering.clear()
    tracing = Tracing(ON)
    closed = threading.Event()

    def work() -> None:
        assert run(tracing, echo, (), ()) == [b"x", b"x"]
        closed.set()

    threading.Thread(target=work, daemon=True).start()
    assert closed.wait(DEADLINE_S)


def test_a_provider_of_the_process_is_used_and_left_open() -> None:
    """In a process of its own: the global provider can be set only once."""
    code = (
        "import asyncio, sys\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import SimpleSpanProcessor\n"
        "from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter\n"
        "from nhm_sched_plugin.agent.tracing import Tracing\n"
        "from nhm_sched_plugin.settings_agent import AgentSettings\n"
        "exporter = InMemorySpanExporter()\n"
        "provider = TracerProvider()\n"
        "provider.add_span_processor(SimpleSpanProcessor(exporter))\n"
        "trace.set_tracer_provider(provider)\n"
        "tracing = Tracing(AgentSettings(tracing=True))\n"
        "with provider.get_tracer('mine').start_as_current_span('outer'):\n"
        "    tracing.annotate(decision_id='d-1', action='NO_ACTION', confidence=0.5)\n"
        "tracing.close()\n"
        "provider.get_tracer('mine').start_span('later').end()\n"
        "outer, later = exporter.get_finished_spans()\n"
        "assert outer.attributes['nhm_sched.decision_id'] == 'd-1', outer.attributes\n"
        "assert later.name == 'later'\n"
        "assert len(tracing.interceptors) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_nothing_is_imported_and_nothing_done_when_it_is_off() -> None:
    code = (
        "import sys\n"
        "from nhm_sched_plugin.agent.tracing import Tracing\n"
        "from nhm_sched_plugin.settings_agent import AgentSettings\n"
        "tracing = Tracing(AgentSettings())\n"
        "tracing.annotate(decision_id='d', action='NO_ACTION', confidence=0.5)\n"
        "tracing.close()\n"
        "assert tracing.interceptors == []\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


def test_without_the_extra_the_fix_is_told() -> None:
    code = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from nhm_sched_plugin.agent.tracing import Tracing\n"
        "from nhm_sched_plugin.settings_agent import AgentSettings\n"
        "try:\n"
        "    Tracing(AgentSettings(tracing=True))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True).stdout
    assert told.startswith("ConfigError")
    assert "pip install 'nhm-sched-plugin[otel]'" in told
