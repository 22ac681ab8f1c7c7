"""The five RPCs: bytes in, bytes out. What a caller may send is checked first; everything else cannot fail for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import msgspec

from nhm_sched_plugin.agent.advisor import Advisor
from nhm_sched_plugin.agent.interceptors import Method, Refusal
from nhm_sched_plugin.agent.messages import parsed
from nhm_sched_plugin.agent.outcomes import Outcomes
from nhm_sched_plugin.agent.tables import Table
from nhm_sched_plugin.agent.tracing import Tracing
from nhm_sched_plugin.background import Pool
from nhm_sched_plugin.extension import deadline
from nhm_sched_plugin.ids import new_id
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.recurring import Recurring
from nhm_sched_plugin.types import Forecast, Recommendation, SchedulingState, Ticket
from nhm_sched_plugin.wire import check, convert
from nhm_sched_plugin.wire.limits import MOST_NAME

__all__ = ["SERVICE", "OptimizerService"]

SERVICE: Final = "OptimizerAgent"
_MOST_HOURS: Final = 8192
"""In the forecasts that are kept as they were made and as they are sent, each some 600 bytes."""
_MOST_REQUESTS: Final = 1024
"""That are kept as they were read,"""
_LONGEST_REQUEST: Final = 512
"""bytes each at most."""
_SLOW_PARTS_S: Final = 5.0
"""What parts that are not ours get for an answer,"""
_SHARE: Final = 0.7
"""and of the caller's deadline; the rest is for the rules, which answer when they oversleep."""


class OptimizerService:
    """Lives on one event loop.

    Args:
        threads: how many answers of parts that may take their time are made at once.
    """

    def __init__(
        self,
        advisor: Advisor,
        outcomes: Outcomes,
        policy_table: Table,
        forecast_table: Table,
        threads: int,
        tracing: Tracing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._advisor, self._outcomes, self._clock = advisor, outcomes, clock
        self._policy_table, self._forecast_table = policy_table, forecast_table
        self._tracing = tracing
        self._threads = Pool(threads, "nhm-sched-advice", wait_in_line=True)
        self._hours = 0
        # Many tickets come between two measurements of a pool: the same bytes.
        self._requests: Recurring[bytes, tuple[Ticket | None, SchedulingState]] = Recurring(_MOST_REQUESTS)
        self._answers: dict[tuple[int, str, str], tuple[Forecast, float | None, bytes]] = {}

    def methods(self) -> list[Method]:
        answers = {
            "GetLoadForecast": self.forecast,
            "GetSchedulingRecommendation": self.recommendation,
            "RecordActionOutcome": self.outcome,
            "GetPolicySnapshot": self.policy_snapshot,
            "GetForecastSnapshot": self.forecast_snapshot,
        }
        return [Method(SERVICE, name, answer) for name, answer in answers.items()]

    def close(self) -> None:
        self._threads.close()

    async def forecast(self, raw: bytes, context: Any) -> bytes:
        request, _ = _checked(pb.ForecastRequest, raw, check.check_forecast_request)
        asked = request.horizon_minutes, request.task_type, request.risk_band
        horizon, task_type, risk_band = asked[0], asked[1] or None, asked[2] or None
        if self._advisor.inline:
            found = self._advisor.forecast(horizon, task_type, risk_band)
        else:
            found = await self._in_thread(context, self._advisor.forecast, horizon, task_type, risk_band)
        pool = self._advisor.pool
        before = self._answers.get(asked)
        if before is not None and before[0] is found and before[1] == pool:
            return before[2]
        answer: bytes = convert.forecast_response(self._advisor.with_bottleneck(found)).SerializeToString()
        self._hours += _hours(found) - (0 if before is None else _hours(before[0]))
        if self._hours > _MOST_HOURS:
            self._answers.clear()
            self._hours = _hours(found)
        self._answers[asked] = found, pool, answer
        return answer

    def recommendation(self, raw: bytes, context: Any) -> bytes | Awaitable[bytes]:
        ticket, state = self._requests.get(raw) or self._read(raw)
        if self._advisor.inline:
            return self._said(self._advisor.recommend(ticket, state))
        return self._said_in_thread(context, ticket, state)

    def _read(self, raw: bytes) -> tuple[Ticket | None, SchedulingState]:
        request, given = _checked(pb.StateRequest, raw, check.check_state_request)
        read = convert.ticket_of(request), SchedulingState(**given)
        if len(raw) <= _LONGEST_REQUEST:
            self._requests.keep(raw, read)
        return read

    async def _said_in_thread(self, context: Any, ticket: Ticket | None, state: SchedulingState) -> bytes:
        return self._said(await self._in_thread(context, self._advisor.recommend, ticket, state))

    def _said(self, said: Recommendation) -> bytes:
        decision_id = new_id()
        self._tracing.annotate(decision_id=decision_id, action=said.action, confidence=said.confidence)
        return convert.recommendation_bytes(said, decision_id, self._clock())

    async def outcome(self, raw: bytes, context: Any) -> bytes:
        request, _ = _checked(pb.OutcomeRequest, raw, check.check_outcome_request)
        # Without an id nobody can tell a repetition: each is an outcome of its own.
        told = convert.experience_of(request, request.decision_id or new_id())
        if self._advisor.inline:
            state = self._advisor.with_loads(told.state)
        else:
            state = await self._in_thread(context, self._advisor.with_loads, told.state)
        recorded = await self._outcomes.record(msgspec.structs.replace(told, state=state))
        answer: bytes = pb.OutcomeResponse(
            accepted=recorded.accepted, updates=recorded.updates, q_value=recorded.q_value
        ).SerializeToString()
        return answer

    async def policy_snapshot(self, raw: bytes, context: Any) -> bytes:
        request, _ = _checked(pb.SnapshotRequest, raw, check.check_snapshot_request)
        return self._policy_table.answer(request.etag)

    async def forecast_snapshot(self, raw: bytes, context: Any) -> bytes:
        request, _ = _checked(pb.SnapshotRequest, raw, check.check_snapshot_request)
        return self._forecast_table.answer(request.etag)

    async def _in_thread(self, context: Any, make: Callable[..., Any], *args: Any) -> Any:
        """The answer of parts that may take their time, within the caller's deadline."""
        left = context.time_remaining()
        seconds = _SLOW_PARTS_S if left is None else min(_SHARE * left, _SLOW_PARTS_S)
        return await asyncio.wrap_future(self._threads.submit(_within, seconds, make, *args))


def _hours(forecast: Forecast) -> int:
    return len(forecast.points) or 1


def _within(seconds: float, make: Callable[..., Any], *args: Any) -> Any:
    with deadline(seconds):
        return make(*args)


def _checked(kind: Any, raw: bytes, checks: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The message, if a caller may send it, and what the check has read of it.

    Raises `Refusal` with INVALID_ARGUMENT and the field's name.
    """
    request = parsed(kind, raw)
    try:
        return request, checks(request)
    except check.InvalidFieldError as error:
        decision_id = getattr(request, "decision_id", "")[:MOST_NAME]
        code = grpc.StatusCode.INVALID_ARGUMENT
        raise Refusal(code, str(error), field=error.field, decision_id=decision_id) from None
