"""The optimizer agent as a server: `async with AgentServer(settings) as agent:` listens until the block ends.

It answers at once, from the rules and the last hour; health says SERVING for `OptimizerAgent` when the models are in or
known to be absent. On the way out health says NOT_SERVING first, then calls that have begun get `agent.grace_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self

import grpc

from nhm_sched_plugin.addresses import address_of
from nhm_sched_plugin.agent.access import Authoriser, credentials
from nhm_sched_plugin.agent.advisor import Advisor
from nhm_sched_plugin.agent.health import SERVICE as HEALTH
from nhm_sched_plugin.agent.health import HealthService
from nhm_sched_plugin.agent.interceptors import Calls
from nhm_sched_plugin.agent.learner import Learner
from nhm_sched_plugin.agent.outcomes import Outcomes
from nhm_sched_plugin.agent.ports import refuse_own_endpoint
from nhm_sched_plugin.agent.reflection import reflection
from nhm_sched_plugin.agent.service import SERVICE, OptimizerService
from nhm_sched_plugin.agent.tables import Table, forecast_table, policy_table
from nhm_sched_plugin.agent.tracing import Tracing
from nhm_sched_plugin.background import Worker
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.extension import Found, is_third_party
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.listener import MetricsListener
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import AgentSettings, Settings
from nhm_sched_plugin.types import Health

__all__ = ["AgentServer", "serve"]

logger = logging.getLogger(__name__)

REFRESH_S: Final = 0.5
"""How often files (tables, rule book, what other processes learned) are looked at."""
_STREAMS_A_CONNECTION: Final = 1024
"""Calls that one connection may have under way; further ones wait at the caller's end."""
_WATCHERS_S: Final = 0.5
"""What watchers get to hear that the end has come."""
_CLOSING_S: Final = 5.0
_TURN_S: Final = 0.0005
"""For so long a thread in the background keeps the interpreter while a call waits for it."""


class AgentServer:
    """One process of the agent. Raises `ConfigError` or `RuleBookError` for settings that a person has to mend.

    Args:
        plugins: third parties that were found already; None to look for them.
        shared: the port belongs to several processes (SO_REUSEPORT).
        opened: called in the background once the models are in, or known to be absent.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        plugins: Iterable[Found] | None = None,
        shared: bool = False,
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        refuse_own_endpoint(settings)
        self.settings, self._clock, self._shared, self._opened = settings, clock, shared, opened
        self.metrics = Metrics()
        self.faults = Faults(self.metrics)
        self.advisor = Advisor(settings, self.metrics, self.faults, clock, plugins)
        self._learner: Learner | None = None
        self._tables: list[Table] = []
        self._credentials = credentials(settings.agent)
        self._authoriser = Authoriser(settings.agent)
        self._tracing = Tracing(settings.agent)
        self._worker = Worker("nhm-sched-agent", self.faults.report)
        self._worker.every(REFRESH_S, "refresh", self._refresh)
        self._listener: MetricsListener | None = None
        self.port = 0
        """Where it listens, once it does."""
        self.metrics_port: int | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises OSError when the address cannot be bound."""
        agent = self.settings.agent
        self._loop = asyncio.get_running_loop()
        self._health = HealthService({"": True, SERVICE: False})
        self._outcomes = Outcomes(self.faults)
        # An agent that asks another one hands on what it has from there.
        self._policy_table = policy_table(self.settings.served_q_table_path, self.settings.served_planner_path)
        self._forecast_table = forecast_table(self.settings.served_forecast_path)
        self._service = OptimizerService(
            self.advisor,
            self._outcomes,
            self._policy_table,
            self._forecast_table,
            self.settings.hooks.pool_size,
            self._tracing,
            self._clock,
        )
        methods = [*self._service.methods(), *self._health.methods()]
        if agent.reflection:
            methods += reflection((SERVICE, HEALTH))
        self._calls = Calls(methods, self.advisor.counts, agent.max_concurrent_rpcs, self._authoriser)
        self._server = grpc.aio.server(
            interceptors=self._tracing.interceptors, options=_options(agent, shared=self._shared)
        )
        self._server.add_generic_rpc_handlers((self._calls,))
        self.port = self._bind(agent)
        await self._server.start()
        self._listen()
        self._worker.submit("open", self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain(self.settings.agent.grace_s)

    async def drain(self, grace_s: float) -> None:
        """Take no new calls, finish those that have begun, write down what was learned."""
        self._health.close()
        await self._calls.end_streams(_WATCHERS_S)
        await self._server.stop(grace_s)
        self._service.close()
        await self._outcomes.close()
        await asyncio.to_thread(self._close)

    def _bind(self, agent: AgentSettings) -> int:
        address = address_of(agent.host, agent.port)
        try:
            if self._credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, self._credentials))
        except RuntimeError:
            raise OSError(
                f"cannot listen on {address}: the port is taken, or the address is not this machine's"
            ) from None

    def _listen(self) -> None:
        if not self.settings.metrics.enabled:
            return
        listener = MetricsListener(self.metrics, self.settings.metrics, self.health)
        try:
            self.metrics_port = listener.start()
            self._listener = listener
        except OSError as error:
            told = error.strerror or str(error)  # it says everything: no traceback
            self.faults.report("metrics listener", told.removeprefix("metrics listener: "))

    def health(self) -> list[Health]:
        """Part by part, for `/healthz`."""
        learner = [] if self._learner is None else [self._learner.health()]
        return [*self.advisor.health(), *learner]

    # In the background

    def _open(self) -> None:
        self.advisor.open()
        policy = self.advisor.policy
        if policy is not None:
            self._learner = Learner(self.settings, policy, self.faults, self._clock)
        # The file that a third party's part does not use is not handed out.
        for part, table in ((policy, self._policy_table), (self.advisor.forecaster, self._forecast_table)):
            if part is not None and not is_third_party(part):
                self._tables.append(table)
        self._refresh()
        self._opened()
        self._tell(self._outcomes.use, self._learner)
        self._tell(self._health.set, SERVICE, True)

    def _refresh(self) -> None:
        if self._learner is not None:
            self._learner.follow()
        self.advisor.refresh()
        for table in self._tables:
            try:
                table.refresh()
            except (OSError, ModelError) as error:
                self.faults.report("snapshots", error)

    def _tell(self, task: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended before the models were in
            self._loop.call_soon_threadsafe(task, *args)

    def _close(self) -> None:
        self._worker.close(_CLOSING_S)
        if self._learner is not None:
            self._learner.close()
        self.advisor.close(_CLOSING_S)
        if self._listener is not None:
            self._listener.close()
        self._tracing.close()


async def serve(
    settings: Settings,
    *,
    shared: bool = False,
    until: int | None = None,
    started: Callable[[AgentServer], None] = lambda server: None,
) -> None:
    """Listen until SIGTERM or SIGINT, then drain. `started` hears when it listens.

    `until`: also until this file descriptor can be read.
    """
    # `started` says it.
    logging.getLogger("nhm_sched_plugin.observe.listener").setLevel(logging.WARNING)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if until is not None:
        loop.add_reader(until, stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.setswitchinterval(_TURN_S)
    async with AgentServer(settings, shared=shared, opened=_freeze) as server:
        started(server)
        await stop.wait()
        if until is not None:
            loop.remove_reader(until)
        logger.info("shutting down: calls that have begun get %g s", settings.agent.grace_s)


def _freeze() -> None:
    """What is in memory now stays: the garbage collector need not go over it, 20 ms and more, while calls wait."""
    gc.collect()
    gc.freeze()


def _options(agent: AgentSettings, *, shared: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_receive_message_length", agent.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # snapshots are as large as they are
        ("grpc.max_concurrent_streams", _STREAMS_A_CONNECTION),
        # A caller that has vanished is noticed within two minutes and a half; one that pings twice as often as any
        # sensible one is hung up on.
        ("grpc.keepalive_time_ms", 120_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
