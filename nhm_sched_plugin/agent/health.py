"""The standard health service: whether the process lives (`""`), and whether models are in (`"OptimizerAgent"`).

Not grpc_health's own asyncio servicer: it forgets all watchers of a service as soon as one of them leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from nhm_sched_plugin.agent.interceptors import Method, Refusal
from nhm_sched_plugin.agent.messages import parsed

__all__ = ["SERVICE", "HealthService"]

SERVICE: Final = "grpc.health.v1.Health"
_RESPONSE: Final = health_pb2.HealthCheckResponse


class HealthService:
    """Lives on one event loop. Every service named in `statuses` is known; True is SERVING."""

    def __init__(self, statuses: dict[str, bool]) -> None:
        self._statuses = dict(statuses)
        self._changed = asyncio.Event()
        self._closing = False

    def methods(self) -> list[Method]:
        return [
            Method(SERVICE, "Check", self.check, limited=False),
            Method(SERVICE, "Watch", self.watch, "server_stream"),
        ]

    def set(self, service: str, serving: bool) -> None:
        """Tell everybody who watches. Without effect once `close` was called."""
        if not self._closing:
            self._statuses[service] = serving
            self._tell()

    def close(self) -> None:
        """Nothing is served any more: watchers hear it, and their streams end."""
        self._statuses = dict.fromkeys(self._statuses, False)
        self._closing = True
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def check(self, request: bytes, context: Any) -> bytes:
        service = parsed(health_pb2.HealthCheckRequest, request).service
        if service not in self._statuses:
            known = ", ".join(repr(name) for name in self._statuses)
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no such service here; known are {known}", field="service")
        return self._status(service)

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        service = parsed(health_pb2.HealthCheckRequest, request).service
        last = b""
        while True:
            # All at once: it may change again while the caller is being told.
            changed, closing, status = self._changed, self._closing, self._status(service)
            if status != last:
                last = status
                yield status
            if closing:
                return
            await changed.wait()

    def _status(self, service: str) -> bytes:
        serving = self._statuses.get(service)
        if serving is None:
            status = _RESPONSE.SERVICE_UNKNOWN
        else:
            status = _RESPONSE.SERVING if serving else _RESPONSE.NOT_SERVING
        answer: bytes = _RESPONSE(status=status).SerializeToString()
        return answer
