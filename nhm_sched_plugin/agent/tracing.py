"""OpenTelemetry spans of the agent's calls, children of the caller's: `agent.tracing`, extra `otel`.

Where they go and how many of them is said by the `OTEL_*` environment variables
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/); a provider that the process has set
up already is used as it is. Without `agent.tracing` nothing of OpenTelemetry is imported.

OpenTelemetry's own instrumentation of gRPC (0.66b2) was tried and left: it notes every refused call as two exceptions
with their tracebacks, answers UNKNOWN where a method's name has no second slash, and reads `baggage`, where any caller
can have it log dozens of lines.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any, Final

import grpc

from nhm_sched_plugin.agent.access import METHODS
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings_agent import AgentSettings

__all__ = ["Tracing"]

_CLOSING_S: Final = 3.0
_EXPORTERS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
"""By OTEL_EXPORTER_OTLP_PROTOCOL: names in the entry-point group that OpenTelemetry's exporters register in."""
_OURS: Final = frozenset(
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
)
"""The codes that make a server's span an error: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/."""


class Tracing:
    """The spans of one process, from its making to `close`. Raises `ConfigError` when they cannot be made."""

    def __init__(self, agent: AgentSettings) -> None:
        self.interceptors: list[grpc.aio.ServerInterceptor] = []
        """For `grpc.aio.server`, before all others, so that a refused call has a span, too."""
        self._provider: Any = None
        self._current_span: Callable[[], Any] | None = None
        if not agent.tracing:
            return
        try:
            from opentelemetry import trace

            provider = trace.get_tracer_provider()
            if isinstance(provider, trace.ProxyTracerProvider):
                provider = self._provider = _provider()
        except ImportError as error:
            raise ConfigError(
                [f"agent.tracing = True: needs {error.name}: pip install 'nhm-sched-plugin[otel]', or set it to false"]
            ) from None
        # It warns of everything that is odd in a caller's headers, many lines for one call.
        logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
        self._current_span = trace.get_current_span
        self.interceptors.append(_Spans(provider.get_tracer("nhm_sched_plugin.agent"), _propagator()))

    def annotate(self, *, decision_id: str, action: str, confidence: float) -> None:
        """Say in the span of the current call what was recommended. Next to nothing when tracing is off."""
        if self._current_span is not None:
            span = self._current_span()
            if span.is_recording():
                span.set_attributes(
                    {
                        "nhm_sched.decision_id": decision_id,
                        "nhm_sched.action": action,
                        "nhm_sched.confidence": confidence,
                    }
                )

    def close(self) -> None:
        """Export what is waiting, within three seconds: a collector that is away does not hold the shutdown up."""
        provider, self._provider = self._provider, None
        if provider is not None:
            exporting = threading.Thread(target=provider.shutdown, name="nhm-sched-agent-spans", daemon=True)
            exporting.start()
            exporting.join(_CLOSING_S)


class _Spans(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """One span for each call of the agent's own methods; probes and reflection would only drown them."""

    def __init__(self, tracer: Any, propagator: Any) -> None:
        from opentelemetry.trace import SpanKind

        self._tracer, self._propagator, self._kind = tracer, propagator, SpanKind.SERVER
        self._wrapped: dict[str, tuple[grpc.RpcMethodHandler, grpc.RpcMethodHandler]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> grpc.RpcMethodHandler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.unary_unary is None or method not in METHODS:
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = handler, self._traced(method, handler)
        return known[1]

    def _traced(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        inner = handler.unary_unary
        name = method.removeprefix("/")
        service, _, short = name.partition("/")
        known = frozenset(self._propagator.fields)
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": short}

        async def call(request: Any, context: Any) -> Any:
            headers = {key: value for key, value in context.invocation_metadata() if key in known}
            caller = self._propagator.extract(headers)
            with self._tracer.start_as_current_span(
                name, caller, self._kind, attributes, record_exception=False, set_status_on_exception=False
            ) as span:
                try:
                    answer = await inner(request, context)
                except BaseException as error:
                    _note(span, _code(context, error))
                    raise
                _note(span, _code(context))
                return answer

        return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)


def _code(context: Any, error: BaseException | None = None) -> int:
    code = context.code()
    number = int(code.value[0] if isinstance(code, grpc.StatusCode) else code or 0)
    if number == 0 and error is not None:  # not an abort, which sets the code
        cancelled = isinstance(error, asyncio.CancelledError)
        number = (grpc.StatusCode.CANCELLED if cancelled else grpc.StatusCode.UNKNOWN).value[0]
    return number


def _note(span: Any, code: int) -> None:
    span.set_attribute("rpc.grpc.status_code", code)
    if code in _OURS:
        from opentelemetry.trace import StatusCode

        span.set_status(StatusCode.ERROR)


def _propagator() -> Any:
    """As OTEL_PROPAGATORS says; else the trace alone, without the baggage that OpenTelemetry would read, too."""
    from opentelemetry import propagate
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return propagate.get_global_textmap() if os.environ.get("OTEL_PROPAGATORS") else TraceContextTextMapPropagator()


def _provider() -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "nhm-sched-agent"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        if name.strip() not in ("none", ""):
            provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip())))
    return provider


def _exporter(name: str) -> Any:
    if name == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        protocol = next((value for key in variables if (value := os.environ.get(key))), "http/protobuf")
        name = _EXPORTERS.get(protocol, protocol)
    registered = metadata.entry_points(group="opentelemetry_traces_exporter")
    found = next((entry for entry in registered if entry.name == name), None)
    if found is None:
        known = ", ".join(sorted({"none", "otlp", *(entry.name for entry in registered)}))
        raise ConfigError(
            [f"agent.tracing = True: no exporter {name!r} is installed for OTEL_TRACES_EXPORTER; there are {known}"]
        )
    return found.load()()
