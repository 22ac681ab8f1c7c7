"""The settings of the optimizer on both ends: `optimizer` in the host that asks, `agent` in the server that answers."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from nhm_sched_plugin.settings_ml import ExpandedPath, Fraction, TlsTree

__all__ = ["AgentSettings", "OptimizerSettings", "names"]

_ADDRESS: Final = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")


def names(value: Any) -> Any:
    """A list, or text as environment variables hold it: `a, b` or JSON."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):  # `[::1]:50053` is no list
        return json.loads(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def _addresses(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for address in value or ():
        if address.startswith("unix:"):
            continue
        found = _ADDRESS.match(address)
        if found is None and address.count(":") > 1 and not address.startswith("["):
            raise ValueError("expected an IPv6 address in brackets before the port, as in [::1]:50053")
        if found is None or not 1 <= int(found.group(2)) <= 65535:
            raise ValueError("expected host:port (several: a list, or separated by commas) or unix:/path/to/socket")
    return value or None


class OptimizerSettings(TlsTree):
    """When the policy is asked and when its answer is taken."""

    enabled: bool = True
    """False: rules only; every decision says `disabled`."""
    endpoint: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(names), AfterValidator(_addresses)] = None
    """`host:port` of an [optimizer agent](agent.md), or several; unset: forecaster and policy run in this process."""
    grpc_timeout: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Seconds. Bounds background calls; a call on the hot path never gets more than `decision_budget_ms`."""
    mirror_interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    """How often the agent is asked whether its tables have changed."""
    mirror_max_age_s: Annotated[float, Field(ge=1, le=604_800)] = 300.0
    """How long the tables are served without a word from the agent; then it is asked for each decision, or rules."""
    outbox_max_mb: Annotated[int, Field(ge=1, le=10_240)] = 64
    """Most that outcomes may take on disk while the agent is away (about 1500 a MB); then the oldest are dropped."""
    token_file: ExpandedPath | None = None
    """Bearer token for the agent; needs TLS or a loopback address."""
    tls: bool = False
    """TLS to the agent; so does any of the four keys below."""
    tls_ca_file: ExpandedPath | None = None
    """PEM file of the authority that signed the agent's certificate; unset: those that the system trusts."""
    tls_cert_file: ExpandedPath | None = None
    """PEM file of this host's own certificate, for an agent that asks for one (mTLS)."""
    tls_key_file: ExpandedPath | None = None
    """PEM file of its key."""
    tls_server_name: str | None = None
    """Name in the agent's certificate, where that is not the one in `endpoint`."""
    forecast_horizon_minutes: Annotated[int, Field(ge=60, le=1440)] = 60
    """How far ahead the gate looks."""
    recommendation_confidence_threshold: Fraction = 0.7
    """The least confidence of a recommendation that is followed, rounded to six digits."""
    forecast_volume_threshold: Annotated[float, Field(ge=0)] | None = None
    """Tickets in the hour at the horizon above which the policy is asked. Unset: 80 % of the pool's capacity."""
    decision_budget_ms: Annotated[float, Field(ge=1, le=10_000)] = 50.0
    """No call into the plugin holds the host for longer."""

    @property
    def secure(self) -> bool:
        """Whether the agent is spoken to over TLS."""
        return self.tls or any((self.tls_ca_file, self.tls_cert_file, self.tls_server_name))


class AgentSettings(TlsTree):
    """The optimizer agent, `nhm-sched serve`."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback it needs TLS and callers who prove who they are, or `allow_insecure`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 50053
    """0 takes any free port."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that share the port (SO_REUSEPORT)."""
    max_concurrent_rpcs: Annotated[int, Field(ge=1)] = 256
    """Calls at once in each process, and beside them streams; further ones are answered with RESOURCE_EXHAUSTED."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 262_144
    """Of one request; larger ones are answered with RESOURCE_EXHAUSTED."""
    grace_s: Annotated[float, Field(ge=0, le=600)] = 10.0
    """After SIGTERM, calls that have begun get this long."""
    reflection: bool = True
    """Whether tools such as grpcurl may ask for the service's description."""
    token_file: ExpandedPath | None = None
    """Accepted bearer tokens, one a line, each with what it may do: `TOKEN read,write`."""
    tls_cert_file: ExpandedPath | None = None
    """PEM file, the agent's certificate with its chain; read again when it changes."""
    tls_key_file: ExpandedPath | None = None
    """PEM file of its key."""
    tls_client_ca_file: ExpandedPath | None = None
    """PEM file: only callers with a certificate of this authority are let in (mTLS)."""
    allow_insecure: bool = False
    """Listen beyond loopback without TLS or without authentication: only where the network itself is closed."""
    ledger_keep_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """How long the agent knows the outcomes that it has counted: one that is delivered again is not counted again."""
    log_format: Literal["text", "json"] = "text"
    """Of the agent's own log, on stderr."""
    tracing: bool = False
    """OpenTelemetry spans (extra `otel`), exported as the `OTEL_*` environment variables say."""

    @model_validator(mode="after")
    def _needs_tls(self) -> AgentSettings:
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self
