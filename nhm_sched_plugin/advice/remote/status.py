"""What the outcome of a call means: for the breaker, for a retry, for whoever asked."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import AgentUnavailableError

if TYPE_CHECKING:
    from nhm_sched_plugin.advice.remote.endpoints import Chosen
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.settings_agent import OptimizerSettings

__all__ = ["RETRIED", "SERVICE", "ended", "explained", "failed", "parsed"]

SERVICE: Final = "OptimizerAgent"
RETRIED: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"})
"""Codes that say: not now. Every RPC may be repeated, an outcome too, since the agent counts each decision once."""
_ILL: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN", "DATA_LOSS"})
"""Codes of an address that is not well. With any other the agent there has answered: what it thinks of the caller."""

_TOO_LONG: Final = "message larger than max"


def ended(
    metrics: Metrics, chosen: Chosen, method: str, code: str, *, at_once: bool = False, well: bool = False
) -> None:
    """Count a call, and tell the breaker how it went.

    Args:
        code: the gRPC status' name.
        at_once: one failure is enough to open.
        well: the agent has answered, whatever the code says.
    """
    metrics.child("agent_calls", "unary", SERVICE, method, _as_written(code)).inc()
    breaker = chosen.endpoint.breaker
    if code == "CANCELLED":  # by ourselves
        breaker.undecided(chosen.permit)
    elif code in _ILL and not well:
        breaker.failed(chosen.permit, at_once=at_once)
    else:
        breaker.succeeded()


def failed(
    metrics: Metrics, chosen: Chosen, method: str, error: Any, *, at_once: bool = False
) -> AgentUnavailableError:
    """What a caller gets for an `RpcError`; ends the call as above.

    The details name the field that the agent complains about.
    """
    code, details = error.code().name, error.details() or "no details"
    # gRPC has one code for "too many calls" and for "too long a message"; the second is no sign of an agent in need.
    too_long = _TOO_LONG in details
    ended(metrics, chosen, method, code, at_once=at_once, well=too_long)
    return AgentUnavailableError("too_long" if too_long else code, f"{chosen.endpoint.address} says: {details}")


def explained(error: AgentUnavailableError, optimizer: OptimizerSettings) -> str:
    """For a person who has asked: what was said, and what to look at."""
    said = error.details.rstrip(". ")
    if error.reason == "UNAVAILABLE":
        advice = _unreachable(said, optimizer)
    elif error.reason == "DEADLINE_EXCEEDED":
        advice = f"it had {optimizer.grpc_timeout:g} s (optimizer.grpc_timeout)"
    else:
        advice = _ADVICE.get(error.reason, "")
    return f"{error.reason}: {said}" + (f"; {advice}" if advice else "")


def _unreachable(said: str, optimizer: OptimizerSettings) -> str:
    if "Hostname" in said:
        return "optimizer.tls_server_name can name the host that its certificate is for"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return "optimizer.tls_ca_file names the authority that signed its certificate"
    if "refused" in said or "unreachable" in said:
        return "does `nhm-sched serve` run there?"
    if optimizer.secure:
        return "does it speak TLS, and does it ask for a certificate (optimizer.tls_cert_file)?"
    return "does it speak TLS (optimizer.tls, optimizer.tls_ca_file)?"


_ADVICE: Final = {
    "too_long": "agent.max_message_bytes there says how long a message may be",
    "UNAUTHENTICATED": "optimizer.token_file names the file with the token",
    "UNIMPLEMENTED": "something else than an optimizer agent listens there",
    "garbage": "something else than an optimizer agent listens there",
}


def parsed(metrics: Metrics, chosen: Chosen, method: str, raw: bytes, *, at_once: bool = False) -> Any:
    """The message in an answer; ends the call as above. Raises `AgentUnavailableError` for bytes that are none."""
    from google.protobuf.message import DecodeError

    from nhm_sched_plugin.wire.methods import METHODS

    try:
        answer = METHODS[method].answer.FromString(raw)
    except DecodeError as error:
        ended(metrics, chosen, method, "DATA_LOSS", at_once=at_once)
        raise AgentUnavailableError("garbage", f"{chosen.endpoint.address} answered {method}: {error}") from None
    ended(metrics, chosen, method, "OK")
    return answer


@functools.cache
def _as_written(code: str) -> str:
    """`DEADLINE_EXCEEDED` as `DeadlineExceeded`, the way of go-grpc-prometheus."""
    return "OK" if code == "OK" else "".join(word.title() for word in code.split("_"))
