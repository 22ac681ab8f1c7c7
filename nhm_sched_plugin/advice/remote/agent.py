"""A remote agent as a host sees it: the calls, the mirror of its tables, the outbox, and the threads behind them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nhm_sched_plugin.advice.remote.calls import Caller
from nhm_sched_plugin.advice.remote.delivery import Delivery
from nhm_sched_plugin.advice.remote.mirror import Mirror
from nhm_sched_plugin.advice.remote.outbox import Outbox
from nhm_sched_plugin.background import Loop
from nhm_sched_plugin.errors import AgentUnavailableError, ModelError
from nhm_sched_plugin.extension import time_left

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.settings import Settings

__all__ = ["RemoteAgent"]

CALLS_SHARE = 0.6
"""Of a decision's budget may go to one call; the rules need the rest when it is in vain."""
_LAST_DELIVERY_S = 2.0


class RemoteAgent:
    """One for forecaster and policy. Making it reads no file, opens no connection and starts no thread.

    Raises `ConfigError` for settings that contradict themselves, and where the extra `grpc` is missing.
    """

    def __init__(self, settings: Settings, metrics: Metrics, faults: Faults) -> None:
        self._faults = faults
        self.use(settings)
        self.addresses = ", ".join(settings.optimizer.endpoint or ())
        self._caller = Caller(settings.optimizer, metrics)
        self._readers: list[Callable[[], None]] = []
        self.mirror = Mirror(settings, self._caller, metrics, faults, self._read)
        outbox = Outbox(settings.outbox_path, settings.optimizer.outbox_max_mb * 1024 * 1024)
        self.delivery = Delivery(outbox, self._caller, metrics, faults)
        self._mirroring = Loop("nhm-sched-mirror", self.mirror.look, self._failed)
        self._delivering = Loop("nhm-sched-outbox", self.delivery.deliver, self._failed)

    def use(self, settings: Settings) -> None:
        """Take over the budget of decisions: of what is set here, the only thing that may change in a running host."""
        self._budget_s = settings.optimizer.decision_budget_ms / 1000 * CALLS_SHARE

    def read_by(self, refresh: Callable[[], None]) -> None:
        """Have this called, in the mirror's thread, after the files were replaced."""
        self._readers.append(refresh)

    def go_on(self) -> None:
        """Start the threads: at the first use, and in every forked child again. Costs nothing where they run."""
        if not self._mirroring.running:
            self._mirroring.start()
            self._delivering.start()

    def wake_delivery(self) -> None:
        """There is something in the outbox."""
        self.go_on()
        self._delivering.wake()

    def ask(self, method: str, request: Callable[[], Any]) -> Any:
        """A call on the hot path, within what is left of the decision's budget. Raises `AgentUnavailableError`.

        `request` makes the message; it is called when there is somebody to send it to.
        """
        if not self.mirror.looked:
            raise AgentUnavailableError("starting", "its tables have not been asked for yet")
        left = time_left()
        return self._caller.ask(method, request, self._budget_s if left is None else min(left, self._budget_s))

    def state(self) -> str:
        """For people: how old the mirror is, and which addresses answer."""
        age_s = self.mirror.age_s()
        age = "no word from it yet" if age_s == float("inf") else f"confirmed {age_s:.0f} s ago"
        return f"optimizer agent {self._caller.endpoints.state()}, mirror {age}"

    def close(self, timeout_s: float) -> None:
        """End the threads; before that, deliver what waits as long as the agent takes it and the time allows."""
        until = time.monotonic() + min(timeout_s, _LAST_DELIVERY_S)
        self._mirroring.close(0.0)
        if self._delivering.running and self._caller.endpoints.ready() is not None:
            self._delivering.wake()
            self.delivery.wait(max(until - time.monotonic(), 0.0))
        self._delivering.close(0.0)
        self._caller.close()  # ends what hangs
        for loop in (self._mirroring, self._delivering):
            loop.close(max(until - time.monotonic(), 0.1))
        self.delivery.close()

    def _read(self) -> None:
        for refresh in self._readers:
            try:
                refresh()
            except ModelError as error:  # the old table stays
                self._faults.report("optimizer agent", error)

    def _failed(self, what: str, error: BaseException) -> None:
        self._faults.report("outbox" if what == "nhm-sched-outbox" else "optimizer agent", error)
