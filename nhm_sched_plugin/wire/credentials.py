"""How a caller proves who it is to the agent, and knows that it speaks to the agent: TLS, a certificate, a token.

All of it comes from files that are looked at again for each call, so that they can be renewed while the host runs. A
gRPC channel keeps the certificates that it was made with: `changed` says when to make a new one.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nhm_sched_plugin.addresses import is_loopback
from nhm_sched_plugin.credentials import Pem, PemFiles, Watched, token_lines
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.settings_agent import OptimizerSettings

if TYPE_CHECKING:
    import grpc

__all__ = ["CallMetadata", "ClientCredentials"]

log = logging.getLogger(__name__)

CallMetadata = tuple[tuple[str, str], ...]

_NONE: Final[CallMetadata] = ()


class ClientCredentials:
    """What the channels and the calls of one process carry. Making it reads no file and needs no gRPC.

    Raises `ConfigError` when a token would cross the network in plain text.
    """

    def __init__(self, optimizer: OptimizerSettings) -> None:
        _refuse_plain_text(optimizer)
        self._secure = optimizer.secure
        self._server_name = optimizer.tls_server_name
        self._token = None if optimizer.token_file is None else _Token(optimizer.token_file)
        keys = ("tls_cert_file", "tls_key_file", "tls_ca_file")
        given = {key: path for key in keys if (path := getattr(optimizer, key)) is not None}
        named = ", ".join(f"optimizer.{key} = {str(path)!r}" for key, path in given.items())
        self._files = PemFiles(named, *map(given.get, keys)) if given else None
        self._made: tuple[Pem | None, grpc.ChannelCredentials] | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        self._made = None  # what gRPC made in the parent stays there

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a new channel: the same object until a file changes; None is plain text.

        Raises `ConfigError` as long as the files have never been usable; later, unusable ones leave the old in use.
        """
        if not self._secure:
            return None
        pem = self._files.current() if self._files else None
        made = self._made
        if made is None or made[0] is not pem:
            import grpc  # here: a host that asks no agent does without

            ca, key, cert = (pem.ca, pem.key, pem.cert) if pem else (None, None, None)
            made = self._made = pem, grpc.ssl_channel_credentials(ca, key, cert)
        return made[1]

    def changed(self, made_with: grpc.ChannelCredentials | None) -> bool:
        """Whether a channel made with these credentials should be made anew. Costs microseconds, raises nothing."""
        try:
            return self.channel_credentials() is not made_with
        except ConfigError:  # there is nothing better to make it with
            return False

    def channel_options(self) -> list[tuple[str, str]]:
        """For every channel: the name that the agent's certificate has to show."""
        return [("grpc.ssl_target_name_override", self._server_name)] if self._secure and self._server_name else []

    def call_metadata(self) -> CallMetadata:
        """For every call: the token, and the trace that the calling thread is in. Raises nothing."""
        token = self._token.metadata() if self._token else _NONE
        return token + trace_metadata() if "opentelemetry.trace" in sys.modules else token


class _Token:
    """The bearer token: the first one of its file."""

    def __init__(self, path: Path) -> None:
        self._file = Watched(path)
        self._path = path
        self._read: tuple[object, CallMetadata] = (None, _NONE)

    def metadata(self) -> CallMetadata:
        try:
            signature = self._file.signature()
            if signature == self._read[0]:
                return self._read[1]
            self._read = signature, _authorization(self._path.read_bytes())
        except (OSError, ValueError) as error:
            # While a renewed token is put into place the old one is the best there is; the agent has the last word.
            problem = getattr(error, "strerror", None) or str(error)
            if self._read[0] != problem:
                log.warning(
                    "optimizer.token_file = %r: %s; the last known token stays in use", str(self._path), problem
                )
            self._read = problem, self._read[1]
        return self._read[1]


def _authorization(content: bytes) -> CallMetadata:
    lines = token_lines(content)
    if not lines:
        raise ValueError("is empty; write the token into it")
    token = lines[0][1]
    if not (token.isascii() and token.isprintable()):
        raise ValueError(f"line {lines[0][0]} is no token; expected visible ASCII characters")
    return (("authorization", f"Bearer {token}"),)


def trace_metadata() -> CallMetadata:
    """`traceparent` and its like, where the host uses OpenTelemetry and the calling thread is inside a span."""
    from opentelemetry import propagate, trace

    if not trace.get_current_span().get_span_context().is_valid:
        return _NONE
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # Of a propagator that was written for HTTP, gRPC takes the rest.
    return tuple((key.lower(), value) for key, value in carrier.items() if value.isascii() and value.isprintable())


def _refuse_plain_text(optimizer: OptimizerSettings) -> None:
    if optimizer.token_file is None or optimizer.secure:
        return
    for address in optimizer.endpoint or ():
        if not address.startswith("unix:") and not is_loopback(address.rpartition(":")[0]):
            raise ConfigError(
                [
                    f"optimizer.token_file = {str(optimizer.token_file)!r}: would be sent to {address} in plain text; "
                    "set optimizer.tls: true (optimizer.tls_ca_file for an authority of your own), or unset it"
                ]
            )
