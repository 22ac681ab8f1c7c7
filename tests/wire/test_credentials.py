from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider

from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings_agent import OptimizerSettings
from nhm_sched_plugin.wire.credentials import ClientCredentials


def client(endpoint: str = "agent.example:50053", **keys: Any) -> ClientCredentials:
    return ClientCredentials(OptimizerSettings(endpoint=endpoint, **keys))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def write(path: Path, content: str | bytes) -> Path:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    fresh.replace(path)
    return path


# -- the token


def test_the_first_token_of_the_file_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "token", "# for the agent\n  s3cret  read,write  # mine\nother\n")
    assert client(token_file=path, tls=True).call_metadata() == bearer("s3cret")


def test_no_token_file_no_token() -> None:
    assert client().call_metadata() == ()


def test_a_renewed_token_is_sent_from_the_next_call_on(tmp_path: Path) -> None:
    path = write(tmp_path / "token", "old")
    sender = client(token_file=path, tls=True)
    assert sender.call_metadata() == bearer("old")
    write(path, "newer")
    assert sender.call_metadata() == bearer("newer")


def test_a_token_renewed_within_a_tick_of_the_files_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    sender = client(token_file=path, tls=True)
    assert sender.call_metadata() == bearer("old")
    tick = path.stat().st_mtime_ns
    path.write_text("new")  # the same length and inode
    os.utime(path, ns=(tick, tick))
    end = time.monotonic() + 30
    while sender.call_metadata() != bearer("new"):
        assert time.monotonic() < end


@pytest.mark.parametrize("content", [None, "", "# nothing", "\x00\x01", "tök"])
def test_a_spoilt_token_leaves_the_last_one_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    path = write(tmp_path / "token", "s3cret")
    sender = client(token_file=path, tls=True)
    assert sender.call_metadata() == bearer("s3cret")
    path.unlink() if content is None else write(path, content)
    assert sender.call_metadata() == sender.call_metadata() == bearer("s3cret")
    assert len(caplog.records) == 1
    assert f"optimizer.token_file = '{path}'" in caplog.text
    assert "s3cret" not in caplog.text
    write(path, "fresh")
    assert sender.call_metadata() == bearer("fresh")


def test_a_token_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    sender = client(token_file=tmp_path / "token", tls=True)
    assert sender.call_metadata() == ()
    write(tmp_path / "token", "s3cret")
    assert sender.call_metadata() == bearer("s3cret")


@pytest.mark.parametrize("endpoint", ["10.0.0.7:50053", "agent.example:50053", "localhost:1, agent:2", "[fe80::1]:3"])
def test_no_token_crosses_the_network_in_plain_text(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.token_file = .*in plain text; set optimizer\.tls: true"):
        client(endpoint, token_file=tmp_path / "token")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:50053", "localhost:50053", "[::1]:50053", "unix:/run/agent.sock"])
def test_a_token_may_stay_on_this_machine_in_plain_text(tmp_path: Path, endpoint: str) -> None:
    sender = client(endpoint, token_file=write(tmp_path / "token", "s3cret"))
    assert sender.call_metadata() == bearer("s3cret")
    assert sender.channel_credentials() is None


# -- certificates


def test_plain_text_has_nothing_to_change() -> None:
    sender = client()
    assert sender.channel_credentials() is None
    assert not sender.changed(None)
    assert sender.channel_options() == []


def test_the_expected_name_is_an_option_of_the_channel() -> None:
    assert client(tls_server_name="agent.internal").channel_options() == [
        ("grpc.ssl_target_name_override", "agent.internal")
    ]


def test_credentials_are_made_once_as_long_as_the_files_stay(tmp_path: Path) -> None:
    authority = write(tmp_path / "ca.pem", trustme.CA().cert_pem.bytes())
    sender = client(tls_ca_file=authority)
    made = sender.channel_credentials()
    assert made is sender.channel_credentials()
    assert not sender.changed(made)
    write(authority, authority.read_bytes())  # touched, and says the same
    assert not sender.changed(made)
    write(authority, trustme.CA().cert_pem.bytes())
    assert sender.changed(made)
    assert not sender.changed(sender.channel_credentials())


def test_an_unusable_file_leaves_the_last_set_in_use(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = write(tmp_path / "ca.pem", trustme.CA().cert_pem.bytes())
    sender = client(tls_ca_file=authority)
    made = sender.channel_credentials()
    write(authority, "garbage")
    assert not sender.changed(made)
    authority.unlink()
    assert not sender.changed(made)
    assert sender.channel_credentials() is made
    assert f"optimizer.tls_ca_file = '{authority}'" in caplog.text


def test_files_that_are_not_there_are_named_and_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    sender = client(tls_ca_file=path)
    with pytest.raises(ConfigError, match=rf"optimizer\.tls_ca_file = '{path}'.*No such file"):
        sender.channel_credentials()
    assert not sender.changed(None)
    write(path, trustme.CA().cert_pem.bytes())
    assert sender.channel_credentials() is not None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_makes_its_own() -> None:
    sender = client(tls=True)
    made = sender.channel_credentials()
    child = os.fork()
    if child == 0:
        os._exit(0 if sender.changed(made) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_is_read_and_no_grpc_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nhm_sched_plugin.settings_agent import OptimizerSettings\n"
        "from nhm_sched_plugin.wire.credentials import ClientCredentials\n"
        "sender = ClientCredentials(OptimizerSettings(endpoint='a:1', tls_ca_file='/nowhere', token_file='/nowhere'))\n"
        "assert sender.call_metadata() == ()\n"
        "assert not {'grpc', 'opentelemetry'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


# -- the trace


def test_a_call_within_a_span_carries_the_trace(tmp_path: Path) -> None:
    sender = client(token_file=write(tmp_path / "token", "s3cret"), tls=True)
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("tick") as span:
        metadata = sender.call_metadata()
    ids = span.get_span_context()
    parent = f"00-{trace.format_trace_id(ids.trace_id)}-{trace.format_span_id(ids.span_id)}-{ids.trace_flags:02x}"
    assert metadata == (*bearer("s3cret"), ("traceparent", parent))
    assert sender.call_metadata() == bearer("s3cret")


def test_what_grpc_cannot_carry_stays_here() -> None:
    from opentelemetry import propagate
    from opentelemetry.propagators.textmap import TextMapPropagator

    class OfHttp(TextMapPropagator):
        fields = frozenset(("X-Trace", "X-Odd"))

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            raise NotImplementedError

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            carrier.update({"X-Trace": "1", "X-Odd": "ümlaut\n"})

    before = propagate.get_global_textmap()
    propagate.set_global_textmap(OfHttp())
    try:
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("tick"):
            assert client().call_metadata() == (("x-trace", "1"),)
    finally:
        propagate.set_global_textmap(before)
    token = context.attach(baggage.set_baggage("user", "x"))
    try:
        assert client().call_metadata() == ()  # no span, no trace
    finally:
        context.detach(token)
