"""TLS and mTLS between both ends, on real sockets, and the renewal of every file under running calls."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from nhm_sched_plugin.agent.access import METHODS, credentials
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings_agent import AgentSettings, OptimizerSettings
from nhm_sched_plugin.wire.credentials import ClientCredentials
from tests.agent.guarded import (
    DEADLINE_S,
    FORBIDDEN,
    NOBODY,
    OK,
    RECORD,
    UNREACHABLE,
    Authority,
    Serve,
    Steady,
    ask,
    connected,
    reflect,
    status,
    write,
)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


def served(address: str) -> bytes:
    """The certificate that the agent shows to a new connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True) or b""


def test_tls_is_for_those_who_trust_the_authority(authority: Authority, stranger: Authority, serve: Serve) -> None:
    address = serve(**authority.pair())
    assert ask(address, tls_ca_file=authority.file) is OK
    assert ask(address, tls_ca_file=stranger.file) is UNREACHABLE
    assert ask(address, tls=True) is UNREACHABLE  # the system trusts no authority of ours
    assert ask(address) is UNREACHABLE  # plain text


def test_the_name_in_the_certificate_counts_unless_another_is_expected(authority: Authority, serve: Serve) -> None:
    address = serve(**authority.pair("agent.example"))
    assert ask(address, tls_ca_file=authority.file) is UNREACHABLE
    assert ask(address, tls_ca_file=authority.file, tls_server_name="agent.example") is OK


def test_an_expired_certificate_is_renewed_without_a_restart(authority: Authority, serve: Serve) -> None:
    address = serve(**authority.pair(expired=True))
    assert ask(address, tls_ca_file=authority.file) is UNREACHABLE
    authority.pair()
    assert ask(address, tls_ca_file=authority.file) is OK


def test_certificates_rotate_under_running_calls(
    authority: Authority, stranger: Authority, serve: Serve, caplog: pytest.LogCaptureFixture
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


def test_mtls_lets_in_whom_the_authority_vouches_for(authority: Authority, stranger: Authority, serve: Serve) -> None:
    address = serve(**authority.pair(), tls_client_ca_file=authority.file)
    trust = {"tls_ca_file": authority.file}
    known = {**trust, **authority.pair("host-1.example")}
    assert {ask(address, method, **known) for method in METHODS} == {OK}
    assert reflect(address, **known) is FORBIDDEN  # admin takes a token
    assert ask(address, **trust) is UNREACHABLE
    assert ask(address, **trust, **stranger.pair("host-1.example")) is UNREACHABLE
    assert ask(address, **trust, **authority.pair("host-2.example", expired=True)) is UNREACHABLE


def test_with_mtls_and_tokens_both_are_needed(tmp_path: Path, authority: Authority, serve: Serve) -> None:
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


def test_the_authority_of_the_callers_rotates(authority: Authority, stranger: Authority, serve: Serve) -> None:
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


def test_a_client_takes_over_its_renewed_certificate(authority: Authority, stranger: Authority, serve: Serve) -> None:
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
