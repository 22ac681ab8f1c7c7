"""Where a listener listens: what its `host` stands for, how it is written, and who may listen beyond loopback."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

from nhm_sched_plugin.errors import ConfigError

__all__ = ["Address", "address_of", "is_loopback", "refuse_exposure", "resolved"]

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
"""Family and socket address: host and port first."""


def resolved(section: str, host: str, port: int) -> list[Address]:
    """What `host` stands for when a listener binds it, with brackets or without; "" is every address.

    `section` is the part of the configuration that names it. Raises `ConfigError` for what is no address.
    """
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        problem = f"is no address of this machine ({error}); 127.0.0.1 is the default"
        raise ConfigError([f"{section}.host = {host!r}: {problem}"]) from None
    return [(family, where) for family, _, _, _, where in found]


def address_of(host: str, port: int) -> str:
    """`host:port` with an IPv6 address in brackets; a Unix socket has no port."""
    if host.startswith("unix:"):
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether this IP address, or `localhost`, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


def refuse_exposure(
    section: str, host: str, addresses: Iterable[str], missing: list[str], *, what: str, allow_insecure: bool
) -> None:
    """Raises `ConfigError` when a listener would leave loopback unprotected.

    `addresses`: what `host` stands for; `missing`: the settings that its protection lacks; `what` would happen.
    """
    if not missing or allow_insecure or all(map(is_loopback, addresses)):
        return
    raise ConfigError(
        [
            f"{section}.host = {host!r}: would {what}; set {' and '.join(missing)}, keep 127.0.0.1, or set "
            f"{section}.allow_insecure: true if the network itself is closed"
        ]
    )
