"""The asyncio client of the optimizer agent, for orchestrators that ask it themselves.

    client = OptimizerGRPCClient({"optimizer": {"endpoint": "agent:50053"}})
    await client.initialize()
    forecast = await client.get_load_forecast(horizon_minutes=60, task_type="processing")
    if forecast is not None: ...

An agent that is down is no error: the answer is None, and soon again an answer once it is back. What raises is what the
caller has to mend: a ValueError names the argument that cannot be.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from nhm_sched_plugin.advice.remote.calls import allowed, retry_policy
from nhm_sched_plugin.advice.remote.endpoints import Chosen, Endpoint, Endpoints
from nhm_sched_plugin.advice.remote.status import ended, failed, parsed
from nhm_sched_plugin.errors import AgentUnavailableError, ConfigError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.types import STATE_FIELDS, Action, SchedulingState

if TYPE_CHECKING:
    from nhm_sched_plugin.settings_agent import OptimizerSettings

__all__ = ["OptimizerGRPCClient"]

_STATE_KEYS: Final = (*STATE_FIELDS, "task_type", "risk_band", "features")
State = SchedulingState | Mapping[str, Any]


class OptimizerGRPCClient:
    """For one event loop at a time. Several addresses are asked in turn, each behind its own circuit breaker.

    Args:
        config: a YAML file, a mapping, `Settings`, or None for `NHM_SCHED_*` variables alone; `optimizer.endpoint`,
            `grpc_timeout` and the TLS and token files are read from it.
        metrics: where calls are counted (`grpc_client_handled_total`), and failures.

    Raises `ConfigError` for settings that cannot be used, and where the extra `grpc` is not installed.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | Settings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        optimizer: OptimizerSettings = load_settings(config).optimizer
        if optimizer.endpoint is None:
            raise ConfigError(["optimizer.endpoint: is unset; give it the host:port of the optimizer agent"])
        self._metrics = metrics or Metrics()
        self._faults = Faults(self._metrics)
        self._endpoints = Endpoints(optimizer, self._metrics, asynchronous=True)
        self._timeout_s = optimizer.grpc_timeout
        self._loop: asyncio.AbstractEventLoop | None = None

    async def initialize(self, timeout_s: float | None = None) -> bool:
        """Whether the agent answers now; never waits longer than `timeout_s` (`optimizer.grpc_timeout`).

        Nobody has to wait for a True: the calls find the agent by themselves once it is there.
        """
        from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

        return await self._answer("GetLoadForecast", pb.ForecastRequest(horizon_minutes=60), timeout_s) is not None

    async def get_load_forecast(
        self, horizon_minutes: int, task_type: str | None = None, risk_band: str | None = None
    ) -> dict[str, Any] | None:
        """The fields of `ForecastResponse`, or None when the agent gives no answer in time.

        Raises ValueError for a horizon or a name that cannot be.
        """
        from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
        from nhm_sched_plugin.wire.check import check_forecast_request

        request = _made(pb.ForecastRequest, horizon_minutes=horizon_minutes, task_type=task_type, risk_band=risk_band)
        check_forecast_request(request)
        return await self._answer("GetLoadForecast", request)

    async def get_scheduling_recommendation(self, state: State) -> dict[str, Any] | None:
        """The fields of `RecommendationResponse`, `parameters` as numbers, or None when there is no answer in time.

        Args:
            state: the eight fields of `SchedulingState`, those that are known; `task_type`, `risk_band` and
                `features` may stand beside them.

        Raises ValueError that names the field which cannot be.
        """
        from nhm_sched_plugin.wire.check import check_state_request

        request = _state_request("state", state)
        check_state_request(request)
        return await self._answer("GetSchedulingRecommendation", request)

    async def record_action_outcome(
        self,
        state: State,
        action: Action | str,
        reward: float,
        next_state: State | None = None,
        *,
        decision_id: str = "",
        parameters: Mapping[str, int | float | str] | None = None,
        applied: bool | None = None,
        rejection_reason: str = "",
        arm: str = "",
    ) -> dict[str, Any] | None:
        """Have the policy learn what was executed and what came of it; the fields of `OutcomeResponse`, or None.

        After None the same call with the same `decision_id` is safe: the agent counts a decision once. Without one the
        call has an id of its own.

        Raises ValueError that names the argument which cannot be.
        """
        from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
        from nhm_sched_plugin.wire.check import check_outcome_request

        request = _made(
            pb.OutcomeRequest,
            state=_state_request("state", state),
            action=str(action),
            reward=reward,
            next_state=None if next_state is None else _state_request("next_state", next_state),
            decision_id=decision_id or uuid.uuid4().hex,
            applied=applied,
            rejection_reason=rejection_reason,
            arm=str(arm),
            parameters={str(name): str(value) for name, value in (parameters or {}).items()},
        )
        check_outcome_request(request)
        return await self._answer("RecordActionOutcome", request)

    async def close(self) -> None:
        """End the connections; a later call opens new ones."""
        for endpoint in self._endpoints.all:
            channel = endpoint.release()
            if channel is not None:
                await channel.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Asking

    async def _answer(self, method: str, request: Any, timeout_s: float | None = None) -> dict[str, Any] | None:
        from nhm_sched_plugin.wire.plain import plain

        try:
            return plain(await self._call(method, request, self._timeout_s if timeout_s is None else timeout_s))
        except AgentUnavailableError as error:
            if error.reason == "INVALID_ARGUMENT":
                raise ValueError(str(error)) from None
            self._faults.report("optimizer agent", str(error))
            return None

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        """With retries at the next address, within the time. Raises `AgentUnavailableError`."""
        import tenacity

        self._use_this_loop()
        until = time.monotonic() + timeout_s
        tried: list[Endpoint] = []
        last: AgentUnavailableError | None = None
        async for attempt in tenacity.AsyncRetrying(**retry_policy(until)):
            chosen = self._endpoints.next(tried)
            if chosen is None:
                raise last or self._endpoints.nobody()
            tried.append(chosen.endpoint)
            with attempt:
                try:
                    return await self._once(chosen, method, request, allowed(chosen, until))
                except AgentUnavailableError as error:
                    last = error
                    raise
        raise AssertionError("unreachable")  # the last attempt's error is raised above

    async def _once(self, chosen: Chosen, method: str, request: Any, timeout_s: float) -> Any:
        import grpc

        try:
            call = chosen.endpoint.method(method)
            metadata = self._endpoints.credentials.call_metadata()
            raw = await call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise failed(self._metrics, chosen, method, error) from None
        except asyncio.CancelledError:
            ended(self._metrics, chosen, method, "CANCELLED")
            raise
        except ConfigError as error:
            chosen.endpoint.breaker.failed(chosen.permit)
            raise AgentUnavailableError("credentials", str(error)) from None
        return parsed(self._metrics, chosen, method, raw)

    def _use_this_loop(self) -> None:
        """Channels belong to the loop that they were made in."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            for endpoint in self._endpoints.all:
                endpoint.release()
            self._loop = loop


def _made(kind: Any, **fields: Any) -> Any:
    """The message. Raises ValueError with the field's name where a value is not of its type."""
    request = kind()
    for name, value in fields.items():
        if value is None:
            continue
        try:
            request.MergeFrom(kind(**{name: value}))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {value!r} cannot be used ({error})") from None
    return request


def _state_request(argument: str, state: State) -> Any:
    from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

    if isinstance(state, SchedulingState):
        given: dict[str, Any] = {name: getattr(state, name) for name in (*STATE_FIELDS, "features")}
    elif isinstance(state, Mapping):
        given = dict(state)
    else:
        raise ValueError(f"{argument}: is a {type(state).__name__}; expected a mapping or a SchedulingState")
    unknown = [str(name) for name in given if name not in _STATE_KEYS]
    if unknown:
        raise ValueError(f"{argument}.{unknown[0]}: is unknown; expected one of {', '.join(_STATE_KEYS)}")
    return _made(pb.StateRequest, **given)
