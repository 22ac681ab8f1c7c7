"""The standard reflection service, for tools such as grpcurl: versions 1 and 1alpha, which differ in name only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from nhm_sched_plugin.agent.interceptors import Method
from nhm_sched_plugin.agent.messages import parsed

__all__ = ["reflection"]

SERVICES: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


def reflection(services: Iterable[str]) -> list[Method]:
    """The methods that describe these services."""
    servicer = aio.ReflectionServicer((*services, SERVICES[1]))  # the other has no descriptor of its own

    async def answers(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async def read() -> AsyncIterator[Any]:
            async for raw in requests:
                yield parsed(reflection_pb2.ServerReflectionRequest, raw)

        async for answer in servicer.ServerReflectionInfo(read(), context):
            yield answer.SerializeToString()

    return [Method(service, "ServerReflectionInfo", answers, "bidi_stream") for service in SERVICES]
