"""Bytes from the wire as messages; what cannot be read is the caller's mistake."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from nhm_sched_plugin.agent.interceptors import Refusal

__all__ = ["parsed"]


def parsed(kind: Any, raw: bytes) -> Any:
    """The message. Raises `Refusal` with INVALID_ARGUMENT."""
    try:
        return kind.FromString(raw)
    except (DecodeError, ValueError):
        details = f"the request cannot be decoded as a {kind.DESCRIPTOR.name} (protobuf, text in UTF-8)"
        raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, details) from None
