"""Asking the agent from a thread: on the hot path once and only where an answer is likely, elsewhere with retries.

Every call has a deadline, passes the breaker of its address, is counted by code, and keeps clear of forks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.advice.remote.endpoints import Chosen, Endpoint, Endpoints
from nhm_sched_plugin.advice.remote.gate import cancellable, inside
from nhm_sched_plugin.advice.remote.status import RETRIED, ended, failed, parsed
from nhm_sched_plugin.errors import AgentUnavailableError, ConfigError

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.settings_agent import OptimizerSettings

__all__ = ["Caller", "allowed", "retry_policy"]

PROBE_S: Final = 1.0
"""What an address gets that is tried out; longer, and the others would wait for a dead one."""
SHORTEST_S: Final = 0.002
"""With less left there is no point in asking."""
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5


class Caller:
    """Thread-safe. Raises `AgentUnavailableError` for whatever is not a good answer; `ConfigError` on construction.

    Args:
        probe_s: what a call to an address gets that has not answered yet, or has failed.
    """

    def __init__(self, optimizer: OptimizerSettings, metrics: Metrics, *, probe_s: float = PROBE_S) -> None:
        self.endpoints = Endpoints(optimizer, metrics)
        self._metrics = metrics
        self._timeout_s, self._probe_s = optimizer.grpc_timeout, probe_s

    def ask(self, method: str, request: Callable[[], Any], timeout_s: float) -> Any:
        """On the hot path: one attempt, at an address whose breaker is closed.

        Costs nothing when there is none; the message (`request` makes it) is not even made then, nor its code imported.
        """
        if timeout_s < SHORTEST_S:
            raise AgentUnavailableError("no_time", "nothing is left of the decision's budget")
        chosen = self.endpoints.ready()
        if chosen is None:
            raise self.endpoints.nobody()
        return self._once(chosen, method, request(), timeout_s, hot=True)

    def call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """In the background: with retries at the next address, within `timeout_s` (`optimizer.grpc_timeout`)."""
        import tenacity

        until = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        tried: list[Endpoint] = []
        last: AgentUnavailableError | None = None
        for attempt in tenacity.Retrying(**retry_policy(until)):
            chosen = self.endpoints.next(tried)
            if chosen is None:
                raise last or self.endpoints.nobody()
            tried.append(chosen.endpoint)
            with attempt:
                try:
                    return self._once(chosen, method, request, allowed(chosen, until, self._probe_s), hot=False)
                except AgentUnavailableError as error:
                    last = error
                    raise
        raise AssertionError("unreachable")  # the last attempt's error is raised above

    def many(self, method: str, requests: Sequence[Any], at_once: int) -> list[Any]:
        """In the background: all of these to one address, `at_once` under way at a time, in this order.

        For each its answer or the `AgentUnavailableError`. After the first that says "not now" no more are sent.
        """
        chosen = self.endpoints.next()
        if chosen is None:
            raise self.endpoints.nobody()
        with inside():
            return self._pipelined(chosen, method, requests, 1 if chosen.permit == "probe" else at_once)

    def _pipelined(self, chosen: Chosen, method: str, requests: Sequence[Any], at_once: int) -> list[Any]:
        call = self._method(chosen, method)
        metadata = self.endpoints.credentials.call_metadata()
        answers: list[Any] = []
        under_way: list[Any] = []
        stopped: AgentUnavailableError | None = None
        for request in requests:
            if stopped is None and len(under_way) == at_once:
                answers.append(self._taken(chosen, method, under_way.pop(0)))
                stopped = _stops(answers[-1])
            if stopped is None:
                timeout_s = allowed(chosen, time.monotonic() + self._timeout_s, self._probe_s)
                under_way.append(call.future(request, timeout=timeout_s, metadata=metadata))
        answers += [self._taken(chosen, method, sent) for sent in under_way]
        stopped = stopped or next(filter(None, map(_stops, answers)), None)
        return answers + [stopped] * (len(requests) - len(answers))

    def _once(self, chosen: Chosen, method: str, request: Any, timeout_s: float, *, hot: bool) -> Any:
        with inside():
            call = self._method(chosen, method)
            metadata = self.endpoints.credentials.call_metadata()
            if hot:
                return self._blocking(chosen, method, call, request, timeout_s, metadata)
            # A probe waits for the connection as well: it ends as soon as the agent is back. The first one does not,
            # since the reason why there is no connection is worth knowing.
            waits = chosen.permit == "probe" and chosen.endpoint.breaker.tried
            sent = call.future(request, timeout=timeout_s, metadata=metadata, wait_for_ready=waits)
            answer = self._taken(chosen, method, sent)
        if isinstance(answer, AgentUnavailableError):
            raise answer
        return answer

    def _blocking(self, chosen: Chosen, method: str, call: Any, request: Any, timeout_s: float, metadata: Any) -> Any:
        """In the caller's own thread: what a future costs on top is half as much again."""
        import grpc

        try:
            raw = call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise failed(self._metrics, chosen, method, error, at_once=True) from None
        return parsed(self._metrics, chosen, method, raw, at_once=True)

    def _taken(self, chosen: Chosen, method: str, sent: Any) -> Any:
        """The answer of a call under way, or the error, which is not raised."""
        import grpc

        try:
            with cancellable(sent):
                raw = sent.result()
            return parsed(self._metrics, chosen, method, raw)
        except grpc.FutureCancelledError:
            ended(self._metrics, chosen, method, "CANCELLED")
            return AgentUnavailableError("CANCELLED", "interrupted by a fork of this process")
        except grpc.RpcError as error:
            return failed(self._metrics, chosen, method, error)
        except AgentUnavailableError as error:
            return error

    def _method(self, chosen: Chosen, method: str) -> Any:
        try:
            return chosen.endpoint.method(method)
        except ConfigError as error:
            chosen.endpoint.breaker.failed(chosen.permit)
            raise AgentUnavailableError("credentials", str(error)) from None

    def close(self) -> None:
        """End every connection, with whatever is still under way."""
        for endpoint in self.endpoints.all:
            channel = endpoint.release()
            if channel is not None:
                channel.close()


def allowed(chosen: Chosen, until: float, probe_s: float = PROBE_S) -> float:
    """Seconds that a call at this address gets."""
    left = max(until - time.monotonic(), SHORTEST_S)
    return min(left, probe_s) if chosen.permit == "probe" else left


def retry_policy(until: float) -> dict[str, Any]:
    """For tenacity: growing, jittered pauses, as long as another attempt can begin before `until` (monotonic)."""
    import tenacity

    def out_of_time(state: tenacity.RetryCallState) -> bool:
        return time.monotonic() + state.upcoming_sleep >= until - SHORTEST_S

    return {
        "retry": tenacity.retry_if_exception(lambda error: getattr(error, "reason", "") in _WORTH_ANOTHER),
        "wait": tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE_S, max=_LONGEST_PAUSE_S),
        "stop": out_of_time,
        "reraise": True,
    }


_WORTH_ANOTHER: Final = RETRIED | {"CANCELLED"}


def _stops(answer: Any) -> AgentUnavailableError | None:
    """Whether this answer says that the next request would fare no better."""
    if isinstance(answer, AgentUnavailableError) and answer.reason not in _ABOUT_ONE_REQUEST:
        return answer
    return None


_ABOUT_ONE_REQUEST: Final = frozenset(
    {"INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INTERNAL", "UNKNOWN", "garbage", "too_long"}
)
