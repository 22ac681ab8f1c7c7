"""Who is let in, on real sockets: tokens and scopes, the reach of an agent, and what is told of it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nhm_sched_plugin.agent.access import METHODS, Authoriser, credentials, described
from nhm_sched_plugin.agent.logs import AgentLog
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.pb import optimizer_agent_pb2
from nhm_sched_plugin.settings_agent import AgentSettings, OptimizerSettings
from nhm_sched_plugin.wire.credentials import ClientCredentials
from tests.agent.guarded import (
    DEADLINE_S,
    FORBIDDEN,
    FORECAST,
    NOBODY,
    OK,
    RECORD,
    UNREACHABLE,
    Authority,
    Serve,
    Steady,
    ask,
    becomes,
    connected,
    reflect,
    status,
    write,
)

ANYWHERE = "0.0.0.0"  # noqa: S104 - that this is guarded is what is tested


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
    serve: Serve,
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


def test_health_needs_no_token(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "tokens").write_text("s3cret")
    with grpc.insecure_channel(serve(token_file=tmp_path / "tokens")) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_what_is_no_method_of_ours_needs_admin() -> None:
    agent = AgentSettings(tls_cert_file="c", tls_key_file="k", tls_client_ca_file="a")
    refusal = Authoriser(agent).refusal("/OptimizerAgent/Renamed", (), {"x509_pem_cert": [b"..."]})
    assert refusal is not None
    assert refusal[0] is FORBIDDEN


def test_mtls_takes_nobodys_word_for_the_certificate() -> None:
    agent = AgentSettings(tls_cert_file="c", tls_key_file="k", tls_client_ca_file="a")
    refusal = Authoriser(agent).refusal(FORECAST, [("x509_pem_cert", "...")], {"transport_security_type": [b"ssl"]})
    assert refusal is not None
    assert refusal[0] is NOBODY


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bearer",
        "Bearer ",
        "Basic czNjcmV0",
        "s3cret",
        "Bearer s3cret extra",
        "Bearer \udcff\ud800",
        b"Bearer s3cret",
    ],
)
def test_only_a_bearer_token_will_do(tmp_path: Path, header: str | bytes) -> None:
    (tmp_path / "tokens").write_text("s3cret")
    authoriser = Authoriser(AgentSettings(token_file=tmp_path / "tokens"))
    assert authoriser.refusal(FORECAST, [("authorization", "bearer s3cret")], {}) is None
    refusal = authoriser.refusal(FORECAST, [("user-agent", "x"), ("authorization", header)], {})
    assert refusal is not None
    assert refusal[0] is NOBODY
    assert "s3cret" not in refusal[1]


def test_without_tokens_and_certificates_everything_is_open_on_loopback(serve: Serve) -> None:
    address = serve()
    assert {ask(address, method) for method in METHODS} == {OK}
    assert reflect(address) is OK


def test_tokens_work_over_a_unix_socket(tmp_path: Path, serve: Serve) -> None:
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


def test_tokens_rotate_under_running_calls(tmp_path: Path, serve: Serve) -> None:
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
    assert becomes(NOBODY, lambda: ask(address, token_file=mine))


def test_a_token_file_that_is_gone_lets_nobody_in_until_it_is_back(tmp_path: Path, serve: Serve) -> None:
    accepted, mine = write(tmp_path / "accepted", "s3cret"), write(tmp_path / "mine", "s3cret")
    address = serve(token_file=accepted)
    assert ask(address, token_file=mine) is OK
    accepted.unlink()
    assert becomes(UNREACHABLE, lambda: ask(address, token_file=mine))  # the agent's trouble, not the caller's
    write(accepted, "s3cret")
    assert ask(address, token_file=mine) is OK


def test_a_line_that_was_spoilt_later_is_left_out(
    tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    accepted, mine = write(tmp_path / "accepted", "s3cret"), write(tmp_path / "mine", "s3cret")
    address = serve(token_file=accepted)
    write(accepted, "s3cret raed\nother")
    assert ask(address, token_file=mine) is NOBODY
    write(mine, "other")
    assert ask(address, token_file=mine) is OK
    assert "line 1 names an unknown scope" in caplog.text
    assert "s3cret" not in caplog.text


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
def test_no_secret_is_told(tmp_path: Path, serve: Serve, log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
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
