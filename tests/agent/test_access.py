"""Both ends on real sockets: the agent's credentials and authoriser behind a gRPC server, the client's in front."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import io
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from nhm_sched_plugin.agent.access import METHODS, Authoriser, credentials, described
from nhm_sched_plugin.agent.logs import AgentLog, refused
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.pb import optimizer_agent_pb2
from nhm_sched_plugin.settings_agent import AgentSettings, OptimizerSettings
from nhm_sched_plugin.wire.credentials import ClientCredentials

DEADLINE_S = 30.0
ANYWHERE = "0.0.0.0"  # noqa: S104 - that this is guarded is what is tested
FORECAST, RECORD = "/OptimizerAgent/GetLoadForecast", "/OptimizerAgent/RecordActionOutcome"
OK, NOBODY, FORBIDDEN = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
UNREACHABLE = grpc.StatusCode.UNAVAILABLE


class Gate(grpc.aio.ServerInterceptor):
    """Asks the authoriser before each call, as the agent does."""

    def __init__(self, agent: AgentSettings) -> None:
        self.authoriser = Authoriser(agent)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def checked(context: Any) -> None:
            refusal = self.authoriser.refusal(details.method, details.invocation_metadata, context.auth_context())
            if refusal is not None:
                refused(details.method, refusal[0], context.peer(), refusal[1])
                await context.abort(*refusal)

        async def unary(request: Any, context: Any) -> Any:
            await checked(context)
            answer = handler.unary_unary(request, context)
            return await answer if asyncio.iscoroutine(answer) else answer

        async def stream(requests: Any, context: Any) -> Any:
            await checked(context)
            async for answer in handler.stream_stream(requests, context):
                yield answer

        made = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(unary, *made)
        return grpc.stream_stream_rpc_method_handler(stream, *made)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def serve(loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., str]]:
    """Starts an agent with these settings and answers the address to ask it at."""
    servers: list[grpc.aio.Server] = []

    async def start(agent: AgentSettings, address: str) -> int:
        async def echo(request: bytes, context: Any) -> bytes:
            return request

        server = grpc.aio.server(interceptors=[Gate(agent)])
        handlers = {name.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(echo) for name in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("OptimizerAgent", handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        reflection.enable_server_reflection(("OptimizerAgent", reflection.SERVICE_NAME), server)
        listen_with = credentials(agent)
        port = (
            server.add_secure_port(address, listen_with)
            if listen_with is not None
            else server.add_insecure_port(address)
        )
        del listen_with
        gc.collect()  # the server has to keep what it listens with
        await server.start()
        servers.append(server)
        return int(port)

    def run(address: str = "127.0.0.1:0", **keys: Any) -> str:
        started = asyncio.run_coroutine_threadsafe(start(AgentSettings(**keys), address), loop)
        port = started.result(DEADLINE_S)
        return address if address.startswith("unix:") else f"localhost:{port}"

    yield run
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(DEADLINE_S)


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


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


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


def reflect(address: str, **keys: Any) -> grpc.StatusCode:
    client = ClientCredentials(OptimizerSettings(endpoint=address, **keys))
    with connected(address, client) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        try:
            answers = list(stub.ServerReflectionInfo(iter([request]), timeout=30, metadata=client.call_metadata()))
        except grpc.RpcError as error:
            return error.code()
        assert len(answers[0].list_services_response.service) == 2
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


# -- tokens and scopes


TOKENS = """
# who may do what
both-1
reader   read          # a dashboard
writer   write
boss     admin
reader-2 read,write
"""


def test_every_method_has_its_scope() -> None:
    service = optimizer_agent_pb2.DESCRIPTOR.services_by_name["OptimizerAgent"]
    assert set(METHODS) == {f"/OptimizerAgent/{method.name}" for method in service.methods}


@pytest.mark.parametrize(
    ("token", "read", "write", "admin"),
    [
        (None, NOBODY, NOBODY, NOBODY),
        ("wrong", NOBODY, NOBODY, NOBODY),
        ("both-", NOBODY, NOBODY, NOBODY),
        ("#", NOBODY, NOBODY, NOBODY),
        ("both-1", OK, OK, FORBIDDEN),
        ("reader-2", OK, OK, FORBIDDEN),
        ("reader", OK, FORBIDDEN, FORBIDDEN),
        ("writer", FORBIDDEN, OK, FORBIDDEN),
        ("boss", OK, OK, OK),
    ],
)
def test_a_token_gives_its_scopes(
    tmp_path: Path,
    serve: Callable[..., str],
    token: str | None,
    read: grpc.StatusCode,
    write: grpc.StatusCode,
    admin: grpc.StatusCode,
) -> None:
    (tmp_path / "tokens").write_text(TOKENS)
    address = serve(token_file=tmp_path / "tokens")
    keys: dict[str, Any] = {}
    if token is not None:
        (tmp_path / "token").write_text(f"# mine\n{token} read\n" if token != "#" else "x")
        keys["token_file"] = tmp_path / "token"
    expected = {method: write if method == RECORD else read for method in METHODS}
    assert {method: ask(address, method, **keys) for method in METHODS} == expected
    assert reflect(address, **keys) is admin


def test_health_needs_no_token(tmp_path: Path, serve: Callable[..., str]) -> None:
    (tmp_path / "tokens").write_text("s3cret")
    with grpc.insecure_channel(serve(token_file=tmp_path / "tokens")) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_what_is_no_method_of_ours_needs_admin() -> None:
    agent = AgentSettings(tls_cert_file="c", tls_key_file="k", tls_client_ca_file="a")
    refusal = Authoriser(agent).refusal("/OptimizerAgent/Renamed", (), {"x509_pem_cert": [b"..."]})
    assert refusal is not None
    assert refusal[0] is FORBIDDEN


@pytest.mark.parametrize(
    "header",
    ["", "bearer", "Bearer ", "Basic czNjcmV0", "s3cret", "Bearer s3cret extra", "Bearer \udcff", b"Bearer s3cret"],
)
def test_only_a_bearer_token_will_do(tmp_path: Path, header: str | bytes) -> None:
    (tmp_path / "tokens").write_text("s3cret")
    authoriser = Authoriser(AgentSettings(token_file=tmp_path / "tokens"))
    assert authoriser.refusal(FORECAST, [("authorization", "bearer s3cret")], {}) is None
    refusal = authoriser.refusal(FORECAST, [("user-agent", "x"), ("authorization", header)], {})
    assert refusal is not None
    assert refusal[0] is NOBODY
    assert "s3cret" not in refusal[1]


def test_without_tokens_and_certificates_everything_is_open_on_loopback(serve: Callable[..., str]) -> None:
    address = serve()
    assert {ask(address, method) for method in METHODS} == {OK}
    assert reflect(address) is OK


def test_tokens_work_over_a_unix_socket(tmp_path: Path, serve: Callable[..., str]) -> None:
    (tmp_path / "tokens").write_text("s3cret")
    place = f"unix:{tmp_path}/agent.sock"
    address = serve(place, host=place, token_file=tmp_path / "tokens")
    assert ask(address, token_file=tmp_path / "tokens") is OK
    assert ask(address) is NOBODY


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        ("# nothing\n\n", "is empty"),
        ("# one\ns3cret read,wirte", "line 2 names an unknown scope.*read, write or admin"),
        ("s3cret read, write execute", "line 1 names an unknown scope"),
    ],
)
def test_a_useless_token_file_stops_the_start(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ConfigError, match=rf"agent\.token_file = .*{problem}") as raised:
        Authoriser(AgentSettings(token_file=tmp_path / "tokens"))
    assert "s3cret" not in str(raised.value)


def test_tokens_rotate_under_running_calls(tmp_path: Path, serve: Callable[..., str]) -> None:
    accepted, mine = write(tmp_path / "accepted", "old"), write(tmp_path / "mine", "old")
    address = serve(token_file=accepted)
    client = ClientCredentials(OptimizerSettings(endpoint=address, token_file=mine))
    with connected(address, client) as channel, Steady(lambda: status(channel, client)) as calls:
        calls.pass_calls()
        write(accepted, "old\nnew\n")
        write(mine, "new")
        calls.pass_calls()
        write(accepted, "new")
        calls.pass_calls()
    assert calls.failures == []
    write(mine, "old")
    assert ask(address, token_file=mine) is NOBODY


def test_a_token_file_that_is_gone_lets_nobody_in_until_it_is_back(tmp_path: Path, serve: Callable[..., str]) -> None:
    accepted, mine = write(tmp_path / "accepted", "s3cret"), write(tmp_path / "mine", "s3cret")
    address = serve(token_file=accepted)
    assert ask(address, token_file=mine) is OK
    accepted.unlink()
    assert ask(address, token_file=mine) is UNREACHABLE  # the agent's trouble, not the caller's
    write(accepted, "s3cret")
    assert ask(address, token_file=mine) is OK


def test_a_line_that_was_spoilt_later_is_left_out(
    tmp_path: Path, serve: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    accepted, mine = write(tmp_path / "accepted", "s3cret"), write(tmp_path / "mine", "s3cret")
    address = serve(token_file=accepted)
    write(accepted, "s3cret raed\nother")
    assert ask(address, token_file=mine) is NOBODY
    write(mine, "other")
    assert ask(address, token_file=mine) is OK
    assert "line 1 names an unknown scope" in caplog.text
    assert "s3cret" not in caplog.text


# -- certificates


def served(address: str) -> bytes:
    """The certificate that the agent shows to a new connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True) or b""


def test_tls_is_for_those_who_trust_the_authority(
    authority: Authority, stranger: Authority, serve: Callable[..., str]
) -> None:
    address = serve(**authority.pair())
    assert ask(address, tls_ca_file=authority.file) is OK
    assert ask(address, tls_ca_file=stranger.file) is UNREACHABLE
    assert ask(address, tls=True) is UNREACHABLE  # the system trusts no authority of ours
    assert ask(address) is UNREACHABLE  # plain text


def test_the_name_in_the_certificate_counts_unless_another_is_expected(
    authority: Authority, serve: Callable[..., str]
) -> None:
    address = serve(**authority.pair("agent.example"))
    assert ask(address, tls_ca_file=authority.file) is UNREACHABLE
    assert ask(address, tls_ca_file=authority.file, tls_server_name="agent.example") is OK


def test_an_expired_certificate_is_renewed_without_a_restart(authority: Authority, serve: Callable[..., str]) -> None:
    address = serve(**authority.pair(expired=True))
    assert ask(address, tls_ca_file=authority.file) is UNREACHABLE
    authority.pair()
    assert ask(address, tls_ca_file=authority.file) is OK


def test_certificates_rotate_under_running_calls(
    authority: Authority, stranger: Authority, serve: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.pair()
    address = serve(**files)
    trusted = write(authority.folder / "both.pem", authority.pem + stranger.pem)
    client = ClientCredentials(OptimizerSettings(endpoint=address, tls_ca_file=trusted))
    before = served(address)
    with (
        connected(address, client) as channel,
        Steady(lambda: status(channel, client)) as standing,
        Steady(lambda: ask(address, tls_ca_file=trusted)) as fresh,
    ):
        fresh.pass_calls()
        cert, key = stranger.issue()
        files["tls_cert_file"].write_bytes(cert[: len(cert) // 2])  # half of a file
        fresh.pass_calls()
        files["tls_cert_file"].write_bytes(cert)  # half of a pair
        fresh.pass_calls()
        assert served(address) == before
        files["tls_key_file"].write_bytes(key)
        fresh.pass_calls()
        standing.pass_calls()
    assert (standing.failures, fresh.failures) == ([], [])
    assert served(address) != before
    assert ask(address, tls_ca_file=stranger.file) is OK
    assert "the old one stays" in caplog.text
    assert "PRIVATE KEY" not in caplog.text


def test_mtls_lets_in_whom_the_authority_vouches_for(
    authority: Authority, stranger: Authority, serve: Callable[..., str]
) -> None:
    address = serve(**authority.pair(), tls_client_ca_file=authority.file)
    trust = {"tls_ca_file": authority.file}
    known = {**trust, **authority.pair("host-1.example")}
    assert {ask(address, method, **known) for method in METHODS} == {OK}
    assert reflect(address, **known) is FORBIDDEN  # admin takes a token
    assert ask(address, **trust) is UNREACHABLE
    assert ask(address, **trust, **stranger.pair("host-1.example")) is UNREACHABLE
    assert ask(address, **trust, **authority.pair("host-2.example", expired=True)) is UNREACHABLE


def test_with_mtls_and_tokens_both_are_needed(tmp_path: Path, authority: Authority, serve: Callable[..., str]) -> None:
    tokens = write(tmp_path / "tokens", "boss admin\nreader read")
    address = serve(**authority.pair(), tls_client_ca_file=authority.file, token_file=tokens)
    trust = {"tls_ca_file": authority.file}
    known = {**trust, **authority.pair("host-1.example")}
    assert ask(address, **known) is NOBODY
    assert ask(address, **trust, token_file=tokens) is UNREACHABLE
    assert ask(address, **known, token_file=tokens) is OK
    assert reflect(address, **known, token_file=tokens) is OK
    reader = write(tmp_path / "reader", "reader")
    assert ask(address, RECORD, **known, token_file=reader) is FORBIDDEN


def test_the_authority_of_the_callers_rotates(
    authority: Authority, stranger: Authority, serve: Callable[..., str]
) -> None:
    trusted = write(authority.folder / "clients.pem", authority.pem)
    address = serve(**authority.pair(), tls_client_ca_file=trusted)
    newcomer = {"tls_ca_file": authority.file, **stranger.pair("host-1.example")}
    assert ask(address, **newcomer) is UNREACHABLE
    write(trusted, authority.pem + stranger.pem)
    assert ask(address, **newcomer) is OK
    write(trusted, "not PEM at all")
    assert ask(address, **newcomer) is OK  # the last usable set stays
    write(trusted, authority.pem)
    assert ask(address, **newcomer) is UNREACHABLE


def test_a_client_takes_over_its_renewed_certificate(
    authority: Authority, stranger: Authority, serve: Callable[..., str]
) -> None:
    address = serve(**authority.pair(), tls_client_ca_file=stranger.file)
    files = authority.pair("host-1.example")
    client = ClientCredentials(OptimizerSettings(endpoint=address, tls_ca_file=authority.file, **files))
    made_with = client.channel_credentials()
    with connected(address, client) as channel:
        assert status(channel, client) is UNREACHABLE
    assert not client.changed(made_with)
    cert, key = stranger.issue("host-1.example")
    write(files["tls_cert_file"], cert)
    assert not client.changed(made_with)  # the key does not fit yet
    write(files["tls_key_file"], key)
    assert client.changed(made_with)
    with connected(address, client) as channel:
        assert status(channel, client) is OK


@pytest.mark.parametrize("spoilt", ["tls_cert_file", "tls_key_file", "tls_client_ca_file"])
@pytest.mark.parametrize("how", ["missing", "garbage", "empty"])
def test_unusable_files_stop_the_start_and_are_named(authority: Authority, spoilt: str, how: str) -> None:
    files = {**authority.pair(), "tls_client_ca_file": authority.file}
    if how == "missing":
        files[spoilt].unlink()
    else:
        files[spoilt].write_text("garbage" if how == "garbage" else "")
    with pytest.raises(ConfigError, match=rf"agent\.{spoilt} = '{files[spoilt]}'.*cannot be used.*PEM"):
        credentials(AgentSettings(**files))


def test_a_key_with_a_password_is_refused_instead_of_asked_for(authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization

    files = authority.pair()
    key = serialization.load_pem_private_key(files["tls_key_file"].read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"s3cret"),
    )
    files["tls_key_file"].write_bytes(locked)
    with pytest.raises(ConfigError, match=r"agent\.tls_key_file.*password"):
        credentials(AgentSettings(**files))


# -- reach


@pytest.mark.parametrize("host", [ANYWHERE, "::", "", "[::]"])
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ((), ["agent.tls_cert_file", "agent.token_file or agent.tls_client_ca_file"]),
        (("token_file",), ["agent.tls_cert_file"]),
        (("tls_cert_file", "tls_key_file"), ["agent.token_file or agent.tls_client_ca_file"]),
    ],
)
def test_the_network_is_not_let_in_unprotected(host: str, given: tuple[str, ...], missing: list[str]) -> None:
    agent = AgentSettings(host=host, **dict.fromkeys(given, Path("/somewhere")))
    with pytest.raises(ConfigError) as raised:
        credentials(agent)
    for part in (f"agent.host = {host!r}", "agent.allow_insecure", *missing):
        assert part in str(raised.value)
    assert len([key for key in ("agent.tls_cert_file", "agent.token_file") if key in str(raised.value)]) == len(missing)


def test_the_network_is_let_in_when_it_is_protected_or_said_explicitly(tmp_path: Path, authority: Authority) -> None:
    pair = authority.pair()
    assert credentials(AgentSettings(host=ANYWHERE, **pair, token_file=tmp_path / "t")) is not None
    assert credentials(AgentSettings(host=ANYWHERE, **pair, tls_client_ca_file=authority.file)) is not None
    assert credentials(AgentSettings(host=ANYWHERE, allow_insecure=True)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8", "unix:/run/agent.sock"])
def test_loopback_is_open(host: str) -> None:
    assert credentials(AgentSettings(host=host)) is None


def test_a_host_that_is_no_address_is_named() -> None:
    with pytest.raises(ConfigError, match=r"agent\.host = 'no\.such\.host\.invalid': is no address"):
        credentials(AgentSettings(host="no.such.host.invalid"))


def test_the_state_of_the_protection_is_told(tmp_path: Path, authority: Authority) -> None:
    pair = authority.pair()
    assert described(AgentSettings()) == "plain text, no tokens"
    assert described(AgentSettings(**pair, token_file=tmp_path / "t")) == "TLS, bearer tokens"
    assert described(AgentSettings(**pair, tls_client_ca_file=authority.file)) == "mTLS, no tokens"


# -- what is told about it


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_told(
    tmp_path: Path, serve: Callable[..., str], log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = io.StringIO()
    accepted = write(tmp_path / "accepted", "right-s3cret read")
    address = serve(token_file=accepted)
    with AgentLog(AgentSettings(log_format=log_format), out):
        for token in ("wrong-s3cret", "right-s3cret"):
            mine = write(tmp_path / "mine", token)
            ask(address, token_file=mine)
            ask(address, RECORD, token_file=mine)
        ask(address)
    lines = out.getvalue().splitlines()
    assert [sum(name in line for line in lines) for name in ("UNAUTHENTICATED", "PERMISSION_DENIED")] == [3, 1]
    assert len(lines) == 4
    assert all(RECORD in line or FORECAST in line for line in lines)
    assert all("127.0.0.1:" in line or "[::1]:" in line or "%5B::1%5D:" in line for line in lines)
    everything = out.getvalue() + "".join(capfd.readouterr())
    assert "s3cret" not in everything
    assert os.fspath(tmp_path) not in out.getvalue()
