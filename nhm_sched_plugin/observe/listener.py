"""The `/metrics` and `/healthz` listener: a few daemon threads in the host's process that can never hold it up.

* Loopback by default. Another address needs a bearer token *and* TLS, or the explicit `metrics.allow_insecure`.
* The token and the certificate are read again when their files change, so both can be rotated without a restart.
* Every connection has a deadline and there are only so many of them: a client that dribbles bytes loses its place.
* Nothing is ever written to stderr; a refused request is counted by cause and logged once per cause.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import socketserver
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from nhm_sched_plugin.addresses import address_of, refuse_exposure, resolved
from nhm_sched_plugin.credentials import Certificate, Tokens
from nhm_sched_plugin.errors import ConfigError

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.settings import MetricsSettings
    from nhm_sched_plugin.types import Health

__all__ = ["MetricsListener"]

log = logging.getLogger(__name__)

_CONNECTION_S: Final = 10.0
"""A connection ends after this long, whatever the client does."""
_MAX_CONNECTIONS: Final = 32
_POLL_S: Final = 0.1

Respond = Callable[[str, list[tuple[str, str]]], Any]


class MetricsListener:
    """Serves one `Metrics` registry and one health check until it is closed.

    `start()` raises `ConfigError` when the settings would expose the metrics unprotected or name unusable files, and
    `OSError` (with the address in its text) when the address cannot be bound. It does not touch the host otherwise.
    """

    def __init__(
        self,
        metrics: Metrics,
        settings: MetricsSettings,
        health: Callable[[], list[Health]],
        *,
        connection_s: float = _CONNECTION_S,
    ) -> None:
        self._metrics = metrics
        self._settings = settings
        self._health = health
        self._connection_s = connection_s
        self._prometheus = make_wsgi_app(metrics.registry)
        self._tokens: Tokens | None = None
        self._server: _Server | None = None
        self._pid = 0
        self._logged: set[str] = set()

    def start(self) -> int:
        """Listen in the background and return the bound port; a second call returns the same port."""
        if self._server is not None and self._pid == os.getpid():
            return self._server.server_port
        settings = self._settings
        family, where = resolved("metrics", settings.host, settings.port)[0]
        address = family, (str(where[0]), int(where[1]))
        _refuse_exposure(settings, where[0])
        self._tokens = Tokens(settings.token_file, "metrics") if settings.token_file else None
        tls = _tls(settings)
        try:
            server = _Server(address, tls, self._connection_s, self._refused)
        except OSError as error:
            raise OSError(
                error.errno,
                f"metrics listener: cannot listen on {address_of(settings.host, settings.port)} "
                f"({error.strerror or error}); set metrics.port to a free one (0 takes any), "
                "or metrics.enabled to false",
            ) from None
        server.set_app(self._answer)
        self._server, self._pid = server, os.getpid()
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": _POLL_S}, name="nhm-sched-metrics", daemon=True
        ).start()
        log.info(
            "metrics on %s://%s/metrics", "https" if tls else "http", address_of(settings.host, server.server_port)
        )
        return server.server_port

    def close(self) -> None:
        """Stop listening and cut what is still connected. Safe to call twice, and when never started."""
        server, self._server = self._server, None
        if server is not None and self._pid == os.getpid():  # a forked child has no thread that `shutdown` could stop
            server.shutdown()
            server.server_close()
            server.cut(before=float("inf"))

    def _answer(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        try:
            return self._route(environ, respond)
        except Exception:
            self._metrics.child("component_errors", "metrics_listener").inc()
            if self._first_time("answer"):
                log.exception("metrics listener: a request could not be answered (further ones are only counted)")
            return _text(respond, HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics could not be collected; see the log")

    def _route(self, environ: dict[str, Any], respond: Respond) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path not in ("/metrics", "/healthz"):
            return _text(respond, HTTPStatus.NOT_FOUND, "here are /metrics and /healthz")
        if environ.get("REQUEST_METHOD") != "GET":
            return _text(respond, HTTPStatus.METHOD_NOT_ALLOWED, "use GET", ("Allow", "GET"))
        cause = self._tokens.refusal(environ.get("HTTP_AUTHORIZATION", "")) if self._tokens else None
        if path == "/healthz":
            return self._healthz(respond, details=cause is None)
        if cause is not None:
            self._refused(cause)
            return _text(
                respond,
                HTTPStatus.UNAUTHORIZED,
                "a bearer token is needed: Authorization: Bearer <the content of metrics.token_file>",
                ("WWW-Authenticate", 'Bearer realm="nhm-sched metrics"'),
            )
        body: Iterable[bytes] = self._prometheus(environ, respond)
        return body

    def _healthz(self, respond: Respond, *, details: bool) -> Iterable[bytes]:
        """Probes of an orchestrator carry no token: they get the verdict, and only a known caller the details."""
        try:
            components = self._health()
        except Exception as error:
            self._metrics.child("component_errors", "health").inc()
            if self._first_time("health"):
                log.exception("metrics listener: the health check failed (further failures are only counted)")
            verdict: dict[str, Any] = {"ok": False}
            parts = [{"component": "health", "ok": False, "detail": type(error).__name__}]
        else:
            verdict = {"ok": all(part.ok for part in components)}
            parts = [{"component": part.component, "ok": part.ok, "detail": part.detail} for part in components]
        if details:
            verdict["components"] = parts
        status = HTTPStatus.OK if verdict["ok"] else HTTPStatus.SERVICE_UNAVAILABLE
        body = json.dumps(verdict, indent=1).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        respond(_status(status), [*headers, ("Cache-Control", "no-store")])
        return [body]

    def _refused(self, cause: str) -> None:
        self._metrics.child("refused", cause).inc()
        if self._first_time(cause):
            log.info("metrics listener: refused a request (%s); further ones of this cause are only counted", cause)

    def _first_time(self, cause: str) -> bool:
        if cause in self._logged:
            return False
        self._logged.add(cause)
        return True


class _Handler(WSGIRequestHandler):
    """One request a connection, and not a word on stderr."""

    server_version, sys_version = "nhm-sched", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; refusals are counted."""

    def get_stderr(self) -> TextIO:
        return io.StringIO()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection, within a deadline and a maximum number.

    TLS is negotiated in the connection's own thread: on the listening socket one silent client would stop them all.
    """

    daemon_threads = True
    request_queue_size = 2 * _MAX_CONNECTIONS  # what is over the maximum is told so, instead of waiting for the kernel
    allow_reuse_port = False  # a second listener on the port is an error that must be seen, not half of the scrapes

    def __init__(
        self,
        address: tuple[socket.AddressFamily, tuple[str, int]],
        tls: Certificate | None,
        connection_s: float,
        refused: Callable[[str], None],
    ) -> None:
        self.address_family, where = address
        self._tls, self._connection_s, self._refused = tls, connection_s, refused
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(where, _Handler)
        _servers.add(self)

    def server_bind(self) -> None:
        # Not HTTPServer's: that one asks the name service for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            free = len(self._open) < _MAX_CONNECTIONS
            if free:
                self._open[request] = time.monotonic() + self._connection_s
        if free:
            super().process_request(request, client_address)
        else:
            self._refused("too_many_connections")
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(self._connection_s)
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        try:
            # `dup`: a TLS socket takes the descriptor over, and `cut` must be able to reach it from another thread.
            secured = self._tls.context().wrap_socket(request.dup(), server_side=True)
        except (ssl.SSLError, OSError):
            self._refused("tls_handshake")
            return
        with secured:
            super().finish_request(secured, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self.cut(before=time.monotonic())

    def cut(self, before: float) -> None:
        """Hang up on every connection whose deadline is before that moment (of the monotonic clock)."""
        with self._lock:
            late = [connection for connection, deadline in self._open.items() if deadline < before]
        for connection in late:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it ended by itself

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke off; the parent class would print a traceback."""
        log.debug("metrics listener: a connection broke off", exc_info=True)


_servers: weakref.WeakSet[_Server] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked worker has no listener thread but would keep the port busy after its parent has gone."""
    for server in list(_servers):
        server.socket.close()


os.register_at_fork(after_in_child=_release_in_child)


def _tls(settings: MetricsSettings) -> Certificate | None:
    cert, key = settings.tls_cert_file, settings.tls_key_file
    if cert is None or key is None:
        return None
    try:
        return Certificate(cert, key)
    except OSError as error:
        problem = f"cannot be used ({error.strerror or error}); give a PEM certificate chain and its unencrypted key"
        raise ConfigError(
            [f"metrics.tls_cert_file = {str(cert)!r}, metrics.tls_key_file = {str(key)!r}: {problem}"]
        ) from None


def _refuse_exposure(settings: MetricsSettings, address: str) -> None:
    missing = [] if settings.token_file else ["metrics.token_file"]
    if not settings.tls_cert_file:
        missing.append("metrics.tls_cert_file with metrics.tls_key_file")
    refuse_exposure(
        "metrics",
        settings.host,
        [address],
        missing,
        what="show the metrics to the network",
        allow_insecure=settings.allow_insecure,
    )


def _status(status: HTTPStatus) -> str:
    return f"{status.value} {status.phrase}"


def _text(respond: Respond, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    body = text.encode() + b"\n"
    given = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    respond(_status(status), [*given, *headers])
    return [body]
