"""The agent's addresses: a channel and a breaker for each, and which one is asked next.

Nothing here is made before it is used: not gRPC's import, not a channel. A forked child makes its own.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nhm_sched_plugin.advice.remote.breaker import Breaker, Permit
from nhm_sched_plugin.advice.remote.status import SERVICE
from nhm_sched_plugin.errors import AgentUnavailableError, ConfigError
from nhm_sched_plugin.forks import renew_after_fork

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.settings_agent import OptimizerSettings
    from nhm_sched_plugin.wire.credentials import ClientCredentials

__all__ = ["Chosen", "Endpoint", "Endpoints", "require_grpc"]

LARGEST_ANSWER: Final = 256 * 1024 * 1024
"""Bytes; a forecast table with thousands of slices comes near a tenth of it."""
_OPTIONS: Final = (
    # One of its own for every channel: a child must not find its parent's connections.
    ("grpc.use_local_subchannel_pool", 1),
    # A name may stand for several agents.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # gRPC waits up to two minutes before it connects again; an agent that returns is to be found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),  # in spite of its name: what one attempt to connect may take
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A peer that vanished without a word; nothing is sent while no call is under way.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
)


class Endpoint:
    """One address. `breaker` says whether it may be asked; `method` gives the call itself."""

    def __init__(self, address: str, credentials: ClientCredentials, *, asynchronous: bool) -> None:
        self.address, self._credentials, self._asynchronous = address, credentials, asynchronous
        self.breaker = Breaker()
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """What the parent opened is left alone: closing it here would disturb the parent."""
        if (channel := getattr(self, "_channel", None)) is not None:
            _parents_own.append(channel)
        self._lock = threading.Lock()
        self._channel: Any = None
        self._made_with: Any = None
        self._methods: dict[str, Any] = {}

    def method(self, name: str) -> Any:
        """The RPC as gRPC's own multi-callable, from message to bytes.

        Raises `ConfigError` for certificates that cannot be used.
        """
        found = self._methods.get(name)
        if found is not None and not self._credentials.changed(self._made_with):
            return found
        with self._lock:
            if self._channel is None or self._credentials.changed(self._made_with):
                self._open()
            if name not in self._methods:
                from nhm_sched_plugin.wire.methods import METHODS

                # Answers are read by `parsed`: gRPC would log a traceback for each that cannot be read.
                serialize = METHODS[name].request.SerializeToString
                self._methods[name] = self._channel.unary_unary(f"/{SERVICE}/{name}", serialize)
            return self._methods[name]

    def _open(self) -> None:
        import grpc

        library: Any = grpc
        if self._asynchronous:
            import grpc.aio

            library = grpc.aio
        made_with = self._credentials.channel_credentials()
        options = [*_OPTIONS, *self._credentials.channel_options()]
        target = self.address if self.address.startswith("unix:") else f"dns:///{self.address}"
        # The one before closes itself once the calls that it carries are over and nobody holds it.
        if made_with is None:
            self._channel = library.insecure_channel(target, options=options)
        else:
            self._channel = library.secure_channel(target, made_with, options=options)
        self._made_with, self._methods = made_with, {}

    def release(self) -> Any:
        """The channel, for whoever closes it; the next call makes another."""
        with self._lock:
            channel, self._channel, self._methods = self._channel, None, {}
            return channel


_parents_own: Final[list[Any]] = []
"""Channels of the process that this one was forked from: kept, since gRPC closes a channel that nobody refers to."""


class Chosen(NamedTuple):
    """An address with the leave to make one call; see `Breaker`."""

    endpoint: Endpoint
    permit: Permit


class Endpoints:
    """Those of `optimizer.endpoint`, in turn.

    Raises `ConfigError` where the settings contradict themselves or the extra `grpc` is not installed.
    """

    def __init__(self, optimizer: OptimizerSettings, metrics: Metrics, *, asynchronous: bool = False) -> None:
        require_grpc()
        from nhm_sched_plugin.wire.credentials import ClientCredentials

        self.credentials = ClientCredentials(optimizer)
        self.all = tuple(
            Endpoint(address, self.credentials, asynchronous=asynchronous) for address in optimizer.endpoint or ()
        )
        self._turn = itertools.count()
        metrics.before_reading(lambda: self._publish(metrics))

    def _publish(self, metrics: Metrics) -> None:
        for endpoint in self.all:
            metrics.child("breaker_open", endpoint.address).set(not endpoint.breaker.closed)

    def ready(self) -> Chosen | None:
        """The next one that has answered and still does: for a decision, which tries nothing out."""
        count = len(self.all)
        first = next(self._turn)
        for step in range(count):
            endpoint = self.all[(first + step) % count]
            if endpoint.breaker.closed:
                return Chosen(endpoint, "call")
        return None

    def next(self, tried: Collection[Endpoint] = ()) -> Chosen | None:
        """The next one that may be called: those that are to be tried out come first.

        A second attempt (`tried`: those of the earlier ones) goes to another address, or to one that is still well.
        """
        count = len(self.all)
        first = next(self._turn)
        order = [self.all[(first + step) % count] for step in range(count)]
        order.sort(key=lambda one: (one in tried, one.breaker.closed))
        for endpoint in order:
            if endpoint in tried and not endpoint.breaker.closed:
                continue
            permit = endpoint.breaker.permit()
            if permit is not None:
                return Chosen(endpoint, permit)
        return None

    def wait_s(self) -> float:
        """Seconds until one of them may be called."""
        return min(endpoint.breaker.wait_s() for endpoint in self.all)

    def nobody(self) -> AgentUnavailableError:
        """What there is to say when none of them may be called."""
        return AgentUnavailableError("breaker_open", f"not asked for now: {self.state()}")

    def state(self) -> str:
        """For people: `10.0.0.1:50053 closed, 10.0.0.2:50053 open`."""
        return ", ".join(f"{endpoint.address} {endpoint.breaker.state}" for endpoint in self.all)


def require_grpc() -> None:
    """Raises `ConfigError` without the extra; found out without importing it: that takes a tenth of a second."""
    from importlib.util import find_spec

    missing = [name for name in ("grpc", "google.protobuf", "tenacity") if not _found(find_spec, name)]
    if missing:
        raise ConfigError(
            [f"optimizer.endpoint needs {', '.join(missing)}: pip install 'nhm-sched-plugin[grpc]', or unset it"]
        )


def _found(find_spec: Any, name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of `google`
        return False
