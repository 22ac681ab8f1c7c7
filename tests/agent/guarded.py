"""The agent's own door with an echo behind it, on real sockets, and what is needed to ask it as anybody."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import trustme
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nhm_sched_plugin.agent.access import METHODS, Authoriser, credentials
from nhm_sched_plugin.agent.health import SERVICE as HEALTH
from nhm_sched_plugin.agent.health import HealthService
from nhm_sched_plugin.agent.interceptors import Calls, Method
from nhm_sched_plugin.agent.reflection import reflection
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.tally import Counts
from nhm_sched_plugin.settings_agent import AgentSettings, OptimizerSettings
from nhm_sched_plugin.wire.credentials import ClientCredentials

DEADLINE_S = 30.0
FORECAST, RECORD = "/OptimizerAgent/GetLoadForecast", "/OptimizerAgent/RecordActionOutcome"
OK, NOBODY, FORBIDDEN = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
UNREACHABLE = grpc.StatusCode.UNAVAILABLE
Serve = Callable[..., str]


class Agents:
    """Agents that echo, with an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._servers: list[grpc.aio.Server] = []

    def serve(self, address: str = "127.0.0.1:0", **keys: Any) -> str:
        """Start one with these `agent` settings; the address to ask it at."""
        starting = asyncio.run_coroutine_threadsafe(self._start(AgentSettings(**keys), address), self._loop)
        port = starting.result(DEADLINE_S)
        return address if address.startswith("unix:") else f"localhost:{port}"

    def close(self) -> None:
        for server in self._servers:
            asyncio.run_coroutine_threadsafe(server.stop(None), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self, agent: AgentSettings, address: str) -> int:
        async def echo(request: bytes, context: Any) -> bytes:
            return request

        methods = [Method("OptimizerAgent", name.rpartition("/")[2], echo) for name in METHODS]
        methods += HealthService({"": True}).methods() + reflection(("OptimizerAgent", HEALTH))
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (Calls(methods, Counts(Metrics()), agent.max_concurrent_rpcs, Authoriser(agent)),)
        )
        listen_with = credentials(agent)
        if listen_with is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, listen_with)
        del listen_with
        gc.collect()  # the server has to keep what it listens with
        await server.start()
        self._servers.append(server)
        return int(port)


@contextmanager
def agents() -> Iterator[Serve]:
    running = Agents()
    try:
        yield running.serve
    finally:
        running.close()


def write(path: Path, content: str | bytes) -> Path:
    """Put in place at once, as whoever renews credentials should."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    fresh.replace(path)
    return path


class Authority:
    """A certificate authority with a folder for what it issues."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self._ca = folder, trustme.CA()
        self.pem = self._ca.cert_pem.bytes()
        self.file = write(folder / "ca.pem", self.pem)

    def issue(self, name: str = "localhost", expired: bool = False) -> tuple[bytes, bytes]:
        """Chain and key."""
        day = dt.timedelta(days=1)
        now = dt.datetime.now(dt.UTC)
        dates = {"not_before": now - 2 * day, "not_after": now - day} if expired else {}
        leaf = self._ca.issue_cert(name, **dates)
        return b"".join(part.bytes() for part in leaf.cert_chain_pems), leaf.private_key_pem.bytes()

    def pair(self, name: str = "localhost", expired: bool = False) -> dict[str, Path]:
        cert, key = self.issue(name, expired)
        return {
            "tls_cert_file": write(self.folder / f"{name}.pem", cert),
            "tls_key_file": write(self.folder / f"{name}.key", key),
        }


@contextmanager
def connected(address: str, client: ClientCredentials) -> Iterator[grpc.Channel]:
    with_what = client.channel_credentials()
    # Every channel its own connection: gRPC would share one among equal channels.
    options = [("grpc.use_local_subchannel_pool", 1), *client.channel_options()]
    channel = grpc.secure_channel(address, with_what, options) if with_what else grpc.insecure_channel(address, options)
    with channel:
        yield channel


def ask(address: str, method: str = FORECAST, **keys: Any) -> grpc.StatusCode:
    """How one call over a connection of its own ends. `keys`: of the asking host's `optimizer` settings."""
    client = ClientCredentials(OptimizerSettings(endpoint=address, **keys))
    with connected(address, client) as channel:
        return status(channel, client, method)


def status(channel: grpc.Channel, client: ClientCredentials, method: str = FORECAST) -> grpc.StatusCode:
    try:
        answer = channel.unary_unary(method)(b"x", timeout=DEADLINE_S, metadata=client.call_metadata())
    except grpc.RpcError as error:
        return error.code()
    assert answer == b"x"
    return OK


def becomes(wanted: grpc.StatusCode, call: Callable[[], grpc.StatusCode]) -> bool:
    """Whether calls come to end so: what was revoked is remembered for a moment."""
    end = time.monotonic() + DEADLINE_S
    while call() is not wanted:
        if time.monotonic() > end:
            return False
    return True


def reflect(address: str, **keys: Any) -> grpc.StatusCode:
    client = ClientCredentials(OptimizerSettings(endpoint=address, **keys))
    with connected(address, client) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        try:
            answers = list(stub.ServerReflectionInfo(iter([request]), timeout=30, metadata=client.call_metadata()))
        except grpc.RpcError as error:
            return error.code()
        assert "OptimizerAgent" in [service.name for service in answers[0].list_services_response.service]
        return OK


class Steady:
    """Calls without a pause in a thread of its own, as long as the block runs; keeps what went wrong."""

    def __init__(self, call: Callable[[], grpc.StatusCode]) -> None:
        self._call = call
        self._stop = False
        self._done = threading.Condition()
        self._calls = 0
        self.failures: list[object] = []

    def __enter__(self) -> Steady:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop = True
        self._thread.join()

    def _run(self) -> None:
        while not self._stop:
            try:
                code = self._call()
            except Exception as error:
                self.failures.append(error)
            else:
                self.failures += [] if code is OK else [code]
            with self._done:
                self._calls += 1
                self._done.notify_all()

    def pass_calls(self, number: int = 3) -> None:
        """Wait until so many calls have begun and ended."""
        with self._done:
            wanted = self._calls + number + 1
            assert self._done.wait_for(lambda: self._calls >= wanted, DEADLINE_S)
