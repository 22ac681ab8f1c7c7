"""Who may talk to the agent, and what each caller may do.

* **Reach**: loopback and Unix sockets are open. Another address needs TLS and callers who prove who they are, by a
  bearer token or a certificate (mTLS), or the explicit `agent.allow_insecure`.
* **Certificates** are read again for each new connection when their files have changed. Connections that stand stay.
* **Scopes**: advice needs `read`, outcomes `write`, everything else (reflection) `admin`, which includes both. With
  `agent.token_file` they are those of the caller's token, whatever certificate it has; with mTLS alone they are read
  and write; without either everything is open. Health is open to all who can connect: probes have no token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import grpc

from nhm_sched_plugin.addresses import refuse_exposure, resolved
from nhm_sched_plugin.credentials import ADMIN, READ, WRITE, PemFiles, TokenError, Tokens
from nhm_sched_plugin.settings_agent import AgentSettings

__all__ = ["METHODS", "Authoriser", "credentials", "described", "refuse_open_agent"]

_OPEN: Final = "/grpc.health.v1.Health/"
METHODS: Final = {
    "/OptimizerAgent/GetLoadForecast": READ,
    "/OptimizerAgent/GetSchedulingRecommendation": READ,
    "/OptimizerAgent/GetPolicySnapshot": READ,
    "/OptimizerAgent/GetForecastSnapshot": READ,
    "/OptimizerAgent/RecordActionOutcome": WRITE,
}
"""The agent's methods as on the wire, with the scope that each needs; what is not among them needs `admin`."""
_OF_A_CERTIFICATE: Final = frozenset((READ, WRITE))
_LOOK_EVERY_S: Final = 0.25
"""So long a revoked token is still good: a look at the file takes longer than all the rest of the check."""
_PROVEN: Final = "x509_pem_cert"
"""What gRPC tells of a connection whose other end has shown a certificate."""

_TOKEN_PROBLEMS: Final = {
    "no_token": (grpc.StatusCode.UNAUTHENTICATED, "a token is needed: send the metadata 'authorization: Bearer TOKEN'"),
    "wrong_token": (grpc.StatusCode.UNAUTHENTICATED, "this token is not among those of agent.token_file"),
    # Not the caller's mistake: it should try again, here or at another agent.
    "token_file_unreadable": (grpc.StatusCode.UNAVAILABLE, "agent.token_file cannot be read; nobody is let in"),
}


class Authoriser:
    """Says no to calls. Costs microseconds, so it can be asked on the event loop. Raises `ConfigError` when made."""

    def __init__(self, agent: AgentSettings) -> None:
        self._tokens = None if agent.token_file is None else Tokens(agent.token_file, "agent", _LOOK_EVERY_S)
        self._mutual = agent.tls_client_ca_file is not None

    @property
    def open(self) -> bool:
        """Everybody may do everything, so that there is nothing to ask."""
        return self._tokens is None and not self._mutual

    def refusal(
        self, method: str, metadata: Iterable[tuple[str, Any]], auth_context: Mapping[str, Iterable[bytes]]
    ) -> tuple[grpc.StatusCode, str] | None:
        """The status for a call that is not let through, or None.

        `method`: as on the wire, `/Service/Method`; `metadata` and `auth_context`: of the servicer context.
        """
        tokens = self._tokens
        if self.open or method.startswith(_OPEN):
            return None
        needed = METHODS.get(method, ADMIN)
        if tokens is None:
            if _PROVEN not in auth_context:
                return grpc.StatusCode.UNAUTHENTICATED, "a client certificate is needed"
            if needed in _OF_A_CERTIFICATE:
                return None
            problem = f"needs the scope {needed}: a certificate gives read and write, agent.token_file can give it"
            return grpc.StatusCode.PERMISSION_DENIED, problem
        header = next((value for key, value in metadata if key == "authorization"), "")
        try:
            scopes = tokens.scopes(header if isinstance(header, str) else "")
        except TokenError as error:
            return _TOKEN_PROBLEMS[error.cause]
        if needed in scopes or ADMIN in scopes:
            return None
        return (
            grpc.StatusCode.PERMISSION_DENIED,
            f"needs the scope {needed}; this token has {', '.join(sorted(scopes))}",
        )


def credentials(agent: AgentSettings) -> grpc.ServerCredentials | None:
    """What to listen with: None is plain text. They take over renewed certificates by themselves.

    Raises `ConfigError` when the files cannot be used, or when the address would leave the agent open to the network.
    """
    refuse_open_agent(agent)
    if agent.tls_cert_file is None:
        return None
    keys = ("tls_cert_file", "tls_key_file", "tls_client_ca_file")
    paths: list[Path | None] = [getattr(agent, key) for key in keys]
    named = ", ".join(f"agent.{key} = {str(path)!r}" for key, path in zip(keys, paths, strict=True) if path is not None)
    files = PemFiles(named, *paths)

    def configuration() -> grpc.ServerCertificateConfiguration:
        pem = files.current()
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)

    # gRPC calls `configuration` in a thread of its own at the beginning of each connection.
    return grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=agent.tls_client_ca_file is not None
    )


def refuse_open_agent(agent: AgentSettings) -> None:
    """Raises `ConfigError` when `agent.host` is not loopback and the agent is not protected."""
    if agent.host.startswith("unix:"):
        return
    missing = [] if agent.tls_cert_file else ["agent.tls_cert_file with agent.tls_key_file"]
    if not (agent.token_file or agent.tls_client_ca_file):
        missing.append("agent.token_file or agent.tls_client_ca_file")
    refuse_exposure(
        "agent",
        agent.host,
        [where[0] for _, where in resolved("agent", agent.host, agent.port)] if missing else [],
        missing,
        what="let the network ask the agent and teach it",
        allow_insecure=agent.allow_insecure,
    )


def described(agent: AgentSettings) -> str:
    """How the agent is protected, in words for a person."""
    secured = "mTLS" if agent.tls_client_ca_file else "TLS"
    transport = secured if agent.tls_cert_file else "plain text"
    return f"{transport}, {'bearer tokens' if agent.token_file else 'no tokens'}"
