"""What happens to every call around its answer: admission, counting, and errors that a caller understands.

Handlers take and give bytes and raise `Refusal` for anything but success. They are wrapped once, when the server is
made, not at each call: the wrapping of an `aio.ServerInterceptor` would be made anew for every single one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, Literal, NamedTuple

import grpc

from nhm_sched_plugin.agent.access import Authoriser
from nhm_sched_plugin.agent.logs import refused
from nhm_sched_plugin.observe.tally import Counts

__all__ = ["Calls", "Method", "Refusal"]

logger = logging.getLogger(__name__)

_UNKNOWN: Final = "unknown"
"""Label of a method that is not served: what a caller wrote never becomes a label."""
_MOST_WAITING: Final = 10_000
"""Counted calls that wait for `Counts.settle`, should whoever does that now and then be held up."""
_MOST_DETAILS: Final = 1000
"""Characters; they travel in a header."""

Kind = Literal["unary", "server_stream", "bidi_stream"]


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """The answer is an error. `field` and `decision_id` are for the log."""

    def __init__(self, code: grpc.StatusCode, details: str, *, field: str = "", decision_id: str = "") -> None:
        super().__init__(details)
        self.code, self.details, self.field, self.decision_id = code, details[:_MOST_DETAILS], field, decision_id


class Method(NamedTuple):
    """One RPC. `answer(request, context)`: for a unary one the bytes, or what to await for them.

    Else an asynchronous generator.
    """

    service: str
    name: str
    answer: Callable[[Any, Any], Any]
    kind: Kind = "unary"
    limited: bool = True
    """Of a unary one: whether it counts against the calls at once. Health checks do not: busy is not dead.

    Streams (those who watch health, reflection) are counted by themselves, up to the same number, without exception.
    """


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
    """Every RPC of the server, wrapped. Lives on one event loop.

    Args:
        at_once: unary calls under way, and streams open, beyond which further ones are answered RESOURCE_EXHAUSTED.
        authoriser: None lets everybody in.
    """

    def __init__(
        self, methods: Iterable[Method], counts: Counts, at_once: int, authoriser: Authoriser | None = None
    ) -> None:
        self._at_once = at_once
        # Metadata and certificate are only looked up where somebody asks for them: it takes longer than to answer.
        self._authoriser = None if authoriser is None or authoriser.open else authoriser
        self._counts = counts
        self._under_way = 0
        self._streams: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._handlers: dict[str, Any] = {}
        for method in methods:
            path = f"/{method.service}/{method.name}"
            self._handlers[path] = self._handler(method, path)

    def service(self, handler_call_details: Any) -> Any:
        """The wrapped handler of the method that is called (for grpc)."""
        path = handler_call_details.method
        found = self._handlers.get(path)
        if found is None:
            # A stream, so that a caller is refused before it has sent anything.
            call = self._stream(Method(_UNKNOWN, _UNKNOWN, _not_served, "bidi_stream"), path)
            found = grpc.stream_stream_rpc_method_handler(call)
        return found

    async def end_streams(self, patience_s: float) -> None:
        """Hang up on whoever listens and does not go within `patience_s`: nobody holds up the end of the server."""
        self._closing = True
        if self._streams:
            await asyncio.wait(self._streams, timeout=patience_s)
        for task in self._streams:
            task.cancel()

    def _handler(self, method: Method, path: str) -> Any:
        if method.kind == "unary":
            return grpc.unary_unary_rpc_method_handler(self._unary(method, path))
        if method.kind == "server_stream":
            return grpc.unary_stream_rpc_method_handler(self._stream(method, path))
        return grpc.stream_stream_rpc_method_handler(self._stream(method, path))

    def _unary(self, method: Method, path: str) -> Callable[[bytes, Any], Any]:
        answer, limited = method.answer, method.limited
        count = _Count(self._counts, method)

        async def call(request: bytes, context: Any) -> bytes:
            began = time.perf_counter()
            count.started()
            self._under_way += limited
            try:
                if limited and self._under_way > self._at_once:
                    raise Refusal(*_FULL)
                self._admit(path, context)
                found = answer(request, context)
                if type(found) is not bytes:
                    found = await found
            except asyncio.CancelledError:
                count.handled(_why_cancelled(context), began)
                raise
            except Exception as error:  # noqa: BLE001 - no caller ever sees UNKNOWN
                await self._refuse(error, path, context, context.peer(), count, began)
                raise AssertionError("a refusal ends the call") from None
            finally:
                self._under_way -= limited
            count.answered(began)
            return found  # type: ignore[no-any-return]

        return call

    def _stream(self, method: Method, path: str) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        answer = method.answer
        count = _Count(self._counts, method)

        async def call(request: Any, context: Any) -> AsyncIterator[bytes]:
            began = time.perf_counter()
            peer = context.peer()  # gRPC cannot tell any more when the other end has left (it crashes)
            count.started()
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - grpc runs every call in one
            self._streams.add(task)
            try:
                if len(self._streams) > self._at_once:
                    raise Refusal(*_FULL)
                self._admit(path, context)
                async for part in answer(request, context):
                    yield part
                count.answered(began)
            except (asyncio.CancelledError, GeneratorExit):
                if not self._closing:
                    count.handled(_why_cancelled(context), began)
                    raise
                await self._refuse(Refusal(*_CLOSING), path, context, peer, count, began)
            except Exception as error:  # noqa: BLE001 - no caller ever sees UNKNOWN
                await self._refuse(error, path, context, peer, count, began)
            finally:
                self._streams.discard(task)

        return call

    async def _refuse(self, error: Exception, path: str, context: Any, peer: str, count: _Count, began: float) -> None:
        """Count, log and answer; raises what ends the call."""
        refusal = _refusal(error, path)
        count.handled(refusal.code, began)
        refused(path, refusal.code, peer, refusal.details, refusal.decision_id, refusal.field)
        await context.abort(refusal.code, refusal.details)

    def _admit(self, path: str, context: Any) -> None:
        """Raises `Refusal` for who may not call, and for what nobody waits for any more."""
        left = context.time_remaining()
        if left is not None and left <= 0:
            raise Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline had passed before the call was begun")
        if self._authoriser is not None:
            refused = self._authoriser.refusal(path, context.invocation_metadata(), context.auth_context())
            if refused is not None:
                raise Refusal(*refused)


class _Count:
    """The metrics of one method."""

    def __init__(self, counts: Counts, method: Method) -> None:
        self._counts, self._labels = counts, (method.kind, method.service, method.name)
        begun = ("rpc_started", *self._labels)
        counts.show(begun)
        self.started = functools.partial(counts.count, begun)
        self._ended: dict[str, deque[float]] = {}
        self._answered = self._seconds("OK")

    def answered(self, began: float) -> None:
        """The call that began then (`perf_counter`) ends now, with an answer."""
        answered = self._answered
        answered.append(time.perf_counter() - began)
        if len(answered) > _MOST_WAITING:
            self._counts.settle()

    def handled(self, code: grpc.StatusCode, began: float) -> None:
        """The same for any other end."""
        seconds = self._seconds(_go_name(code))
        seconds.append(time.perf_counter() - began)
        if len(seconds) > _MOST_WAITING:
            self._counts.settle()

    def _seconds(self, code: str) -> deque[float]:
        found = self._ended.get(code)
        if found is None:
            found = self._counts.observed(("rpc_seconds", *self._labels), ("rpc_handled", *self._labels, code))
            self._ended[code] = found
        return found


def _go_name(code: grpc.StatusCode) -> str:
    """As Go's `codes.Code` prints it, for dashboards made for go-grpc-prometheus."""
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return "".join(word.capitalize() for word in str(code.name).split("_"))


def _why_cancelled(context: Any) -> grpc.StatusCode:
    left = context.time_remaining()
    return grpc.StatusCode.DEADLINE_EXCEEDED if left is not None and left <= 0 else grpc.StatusCode.CANCELLED


def _refusal(error: Exception, path: str) -> Refusal:
    if isinstance(error, Refusal):
        return error
    logger.error("%s failed", path, exc_info=error)
    return Refusal(grpc.StatusCode.UNAVAILABLE, "the agent could not answer; its log says why")


_FULL: Final = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls at once (agent.max_concurrent_rpcs); try again")
_CLOSING: Final = (grpc.StatusCode.UNAVAILABLE, "the agent is shutting down")


async def _not_served(requests: Any, context: Any) -> AsyncIterator[bytes]:
    raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "no such method here; the service is /OptimizerAgent")
    yield b""
