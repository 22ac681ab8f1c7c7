from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.observe.listener import MetricsListener
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import MetricsSettings
from nhm_sched_plugin.types import Health

ANYWHERE = "0.0.0.0"  # noqa: S104 - that this is guarded is what is tested
GOOD = [Health(component="forecaster", ok=True, detail="table of 03:00"), Health(component="spool", ok=True)]


@contextmanager
def listening(
    metrics: Metrics | None = None,
    health: Callable[[], list[Health]] = lambda: GOOD,
    connection_s: float = 10,
    **keys: Any,
) -> Iterator[int]:
    listener = MetricsListener(
        metrics or Metrics(), MetricsSettings(**{"port": 0, **keys}), health, connection_s=connection_s
    )
    try:
        yield listener.start()
    finally:
        listener.close()


def get(
    port: int, path: str = "/metrics", method: str = "GET", trust: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    kind = http.client.HTTPConnection if trust is None else http.client.HTTPSConnection
    options = {} if trust is None else {"context": trust}
    connection = kind("localhost" if trust else "127.0.0.1", port, timeout=5, **options)
    try:
        connection.request(method, path, headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def refused(metrics: Metrics, cause: str) -> float | None:
    return metrics.registry.get_sample_value("nhm_sched_listener_refused_total", {"cause": cause})


def test_serves_what_was_counted() -> None:
    metrics = Metrics()
    metrics.child("decisions", "NO_ACTION", "fallback", "shadow").inc(3)
    with listening(metrics) as port:
        status, headers, text = get(port)
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'nhm_sched_decisions_total{action="NO_ACTION",arm="shadow",source="fallback"} 3.0' in text


def test_speaks_openmetrics_when_asked() -> None:
    with listening() as port:
        _, headers, text = get(port, Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metrics", "POST", 405), ("/x", "PUT", 404)]
)
def test_nothing_else_is_served(path: str, method: str, status: int) -> None:
    with listening() as port:
        assert get(port, path, method)[0] == status


def test_health_tells_each_component() -> None:
    with listening() as port:
        status, headers, text = get(port, "/healthz")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(text) == {
        "ok": True,
        "components": [
            {"component": "forecaster", "ok": True, "detail": "table of 03:00"},
            {"component": "spool", "ok": True, "detail": ""},
        ],
    }


def test_health_is_503_when_a_component_is_not_ready() -> None:
    with listening(health=lambda: [*GOOD, Health(component="policy", ok=False, detail="no table")]) as port:
        status, _, text = get(port, "/healthz")
    assert status == 503
    assert json.loads(text)["components"][-1] == {"component": "policy", "ok": False, "detail": "no table"}


def test_a_failing_health_check_is_unhealthy_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics()

    def explode() -> list[Health]:
        raise RuntimeError("secret path /etc/x")

    with listening(metrics, explode) as port:
        status, _, text = get(port, "/healthz")
    assert status == 503
    assert json.loads(text)["ok"] is False
    assert "secret" not in text
    assert metrics.registry.get_sample_value("nhm_sched_component_errors_total", {"component": "health"}) == 1
    assert capfd.readouterr().err == ""


def test_a_failing_collector_answers_500_and_the_listener_goes_on() -> None:
    metrics = Metrics()
    gauge = metrics.child("epsilon")
    gauge.set_function(lambda: 1 / 0)
    with listening(metrics) as port:
        assert get(port)[0] == 500
        gauge.set_function(lambda: 0.1)
        status, _, text = get(port)
    assert status == 200
    assert "optimizer_epsilon_value 0.1" in text
    assert 'nhm_sched_component_errors_total{component="metrics_listener"} 1.0' in text


def test_token_is_demanded_for_metrics_and_for_health_details(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    metrics = Metrics()
    with listening(metrics, token_file=token) as port:
        status, headers, text = get(port)
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="nhm-sched metrics"')
        assert "optimizer" not in text
        assert get(port, Authorization="Bearer s3cre")[0] == 401
        assert get(port, Authorization="Basic s3cret")[0] == 401
        assert get(port, Authorization="Bearer s3cr\u00e9t")[0] == 401
        assert get(port, Authorization="bearer s3cret")[0] == 200
        assert json.loads(get(port, "/healthz")[2]) == {"ok": True}
        assert "components" in json.loads(get(port, "/healthz", Authorization="Bearer s3cret")[2])
    assert (refused(metrics, "no_token"), refused(metrics, "wrong_token")) == (2, 2)


def test_refusals_are_logged_once_a_cause_and_never_with_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    with caplog.at_level(logging.INFO, "nhm_sched_plugin"), listening(token_file=token) as port:
        for _ in range(3):
            get(port, Authorization="Bearer guess")
    lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(lines) == 1
    assert "wrong_token" in lines[0]
    assert "guess" not in caplog.text
    assert "s3cret" not in caplog.text
    assert capfd.readouterr().err == ""


def test_tokens_rotate_without_a_restart(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")

    def rewrite(content: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(content)
        fresh.replace(token)

    with listening(token_file=token) as port:
        assert get(port, Authorization="Bearer old")[0] == 200
        rewrite("new\nold\n")
        assert [get(port, Authorization=f"Bearer {word}")[0] for word in ("old", "new")] == [200, 200]
        rewrite("new\n")
        assert [get(port, Authorization=f"Bearer {word}")[0] for word in ("old", "new")] == [401, 200]
        rewrite("")
        assert [get(port, Authorization=f"Bearer {word}")[0] for word in ("", "new")] == [401, 401]
        token.unlink()
        assert get(port, Authorization="Bearer new")[0] == 401
        rewrite("newest")
        assert get(port, Authorization="Bearer newest")[0] == 200


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write_pair(authority: trustme.CA, folder: Path) -> dict[str, Path]:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = folder / "tls.crt", folder / "tls.key"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    return {"tls_cert_file": cert, "tls_key_file": key}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_with_a_certificate_that_the_client_checks(tmp_path: Path, authority: trustme.CA) -> None:
    with listening(host="localhost", **write_pair(authority, tmp_path)) as port:
        assert get(port, trust=trusting(authority))[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            get(port, trust=ssl.create_default_context())


def test_plain_http_and_silence_on_the_tls_port_block_nobody(tmp_path: Path, authority: trustme.CA) -> None:
    metrics = Metrics()
    with (
        listening(metrics, host="localhost", **write_pair(authority, tmp_path)) as port,
        socket.create_connection(("localhost", port)),
    ):
        with socket.create_connection(("localhost", port), timeout=5) as plain:
            plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b"optimizer" not in plain.recv(1000)
        started = time.monotonic()
        assert get(port, trust=trusting(authority))[0] == 200
        assert time.monotonic() - started < 3
        assert refused(metrics, "tls_handshake") == 1


def test_a_renewed_certificate_is_taken_over_and_a_broken_one_is_not(tmp_path: Path, authority: trustme.CA) -> None:
    def serial(port: int) -> str:
        with (
            socket.create_connection(("localhost", port), timeout=5) as raw,
            trusting(authority).wrap_socket(raw, server_hostname="localhost") as secured,
        ):
            certificate = secured.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    with listening(host="localhost", **write_pair(authority, tmp_path)) as port:
        first = serial(port)
        write_pair(authority, tmp_path)
        second = serial(port)
        (tmp_path / "tls.crt").write_text("half a certificate")
        assert serial(port) == second
        assert first != second


def test_slow_clients_are_cut_off_and_block_nobody() -> None:
    with listening(connection_s=2.0) as port, socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.sendall(b"GET /metr")
        started = time.monotonic()
        assert get(port)[0] == 200
        assert time.monotonic() - started < 1.8
        for _ in range(3):  # a byte now and then restarts the socket's own timeout, not the deadline
            time.sleep(0.5)
            slow.sendall(b"i")
        try:
            rest = slow.recv(1000)
        except ConnectionResetError:
            rest = b""
        assert b"200" not in rest
        assert time.monotonic() - started < 5


def test_too_many_connections_are_turned_away_and_the_listener_recovers() -> None:
    metrics = Metrics()
    with listening(metrics) as port:
        silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(32)]
        try:
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                get(port)
        finally:
            for connection in silent:
                connection.close()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                assert get(port)[0] == 200
                break
            except (http.client.HTTPException, ConnectionError):
                time.sleep(0.05)
        else:
            pytest.fail("the listener did not recover")
    assert refused(metrics, "too_many_connections") >= 1


def test_garbage_is_answered_and_nothing_reaches_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with listening() as port:
        for garbage in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET\r\n\r\n",
            b"GET /metrics HTTP/9.9\r\n\r\n",
            b"\x00" * 70_000,
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                try:
                    client.sendall(garbage)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass
                except OSError:
                    continue
        assert get(port)[0] == 200
    assert capfd.readouterr().err == ""


def test_a_port_in_use_says_which_and_what_to_do() -> None:
    with listening() as port:
        second = MetricsListener(Metrics(), MetricsSettings(port=port), lambda: [])
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}.*in use.*metrics\.port"):
            second.start()
        second.close()
        assert get(port)[0] == 200


def test_start_and_close_may_be_called_twice_and_close_frees_the_port() -> None:
    listener = MetricsListener(Metrics(), MetricsSettings(port=0), lambda: [])
    listener.close()
    port = listener.start()
    assert listener.start() == port
    listener.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        get(port)
    with listening(port=port) as again:
        assert again == port


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"host": ANYWHERE},
            ["metrics.host", "'0.0.0.0'", "metrics.token_file", "metrics.tls_cert_file", "allow_insecure"],
        ),
        ({"host": "::"}, ["metrics.host", "'::'", "127.0.0.1"]),
        ({"host": ""}, ["metrics.host"]),
        ({"host": "no such host"}, ["metrics.host", "'no such host'", "127.0.0.1"]),
        ({"token_file": Path("/nowhere/token")}, ["metrics.token_file", "/nowhere/token", "No such file"]),
        (
            {"tls_cert_file": Path("/nowhere/crt"), "tls_key_file": Path("/nowhere/key")},
            ["metrics.tls_cert_file", "/nowhere/crt", "No such file", "PEM"],
        ),
    ],
)
def test_settings_that_cannot_be_used_name_the_key_the_value_and_the_fix(
    keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught, listening(**keys):
        pass
    for word in words:
        assert word in str(caught.value)


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text(" \n")
    with pytest.raises(ConfigError, match=r"metrics\.token_file.*empty"), listening(token_file=empty):
        pass


def test_comments_and_scopes_in_the_token_file_are_not_tokens(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("# for scrapers\nab#cd read # Prometheus\n")
    with listening(token_file=token) as port:
        assert get(port, Authorization="Bearer ab#cd")[0] == 200
        for wrong in ("ab", "#", "read", "for", "ab#cd read"):
            assert get(port, Authorization=f"Bearer {wrong}")[0] == 401


def test_a_key_with_a_password_is_refused_without_asking_for_it(tmp_path: Path, authority: trustme.CA) -> None:
    leaf = authority.issue_cert("localhost")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    leaf.cert_chain_pems[0].write_to_path(cert)
    plain = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = serialization.BestAvailableEncryption(b"s3cret")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(plain.private_bytes(pem, pkcs8, locked))
    refused = pytest.raises(ConfigError, match=r"metrics\.tls_key_file.*the key has a password")
    with refused, listening(tls_cert_file=cert, tls_key_file=key):
        pass


def test_the_network_is_allowed_with_token_and_tls_or_when_said_explicitly(
    tmp_path: Path, authority: trustme.CA
) -> None:
    token = tmp_path / "token"
    token.write_text("t")
    pair = write_pair(authority, tmp_path)
    with pytest.raises(ConfigError, match=r"metrics\.tls_cert_file"), listening(host=ANYWHERE, token_file=token):
        pass
    with pytest.raises(ConfigError, match=r"metrics\.token_file"), listening(host=ANYWHERE, **pair):
        pass
    with listening(host=ANYWHERE, token_file=token, **pair) as port:
        assert get(port, trust=trusting(authority), Authorization="Bearer t")[0] == 200
    with listening(host=ANYWHERE, allow_insecure=True) as port:
        assert get(port)[0] == 200


def test_a_forked_child_neither_hangs_on_close_nor_keeps_the_port() -> None:
    listener = MetricsListener(Metrics(), MetricsSettings(port=0), lambda: [])
    port = listener.start()
    (told, tell), (read, write) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        os.close(write)
        listener.close()
        os.write(tell, b"closed")
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.close(tell)
    try:
        assert os.read(told, 6) == b"closed"  # a machine may be too busy to have started the child before
        assert get(port)[0] == 200
        listener.close()
        with listening(port=port) as again:  # the child is still alive here
            assert again == port
    finally:
        os.close(write)
        os.close(told)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_the_listener_stays_light() -> None:
    heavy = "{'pandas', 'numpy', 'matplotlib', 'jinja2', 'rich', 'prophet', 'chdb'}"
    rooms = ", ".join(f"nhm_sched_plugin.observe.{name}" for name in ("listener", "story", "metrics"))
    code = f"import sys, {rooms}; print({heavy} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
