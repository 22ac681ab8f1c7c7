"""The agent's port before grpc has it: whether it is free, who may share it, and that it is not the one that it asks.

Imports nothing of grpc.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Any, Final

from nhm_sched_plugin.addresses import address_of, resolved
from nhm_sched_plugin.background import Pool
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.settings_agent import AgentSettings

__all__ = ["PortTakenError", "free_socket", "refuse_own_endpoint", "reserved"]

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

_ANSWERS_WITHIN_S: Final = 2.0


class PortTakenError(OSError):
    """The address cannot be listened on."""


def reserved(host: str, port: int, *, shared: bool) -> socket.socket:
    """A bound socket that does not listen: it holds the address until it is closed. `port` 0 takes any free one.

    `shared`: the processes that are started next may bind the same one (SO_REUSEPORT), and nobody else's had it before.
    Raises `PortTakenError`, or `ConfigError` for what is no address of this machine.
    """
    family, where = resolved("agent", host, port)[0]
    if shared and port:
        _bound(family, where, shared=False).close()  # the kernel would let us share the port of another agent
    return _bound(family, where, shared=shared)


def free_socket(host: str) -> None:
    """Whether `unix:/path/to/socket` can be listened on: grpc would take the path away from another agent.

    Raises `PortTakenError`. What a killed agent has left behind is no obstacle.
    """
    path = host.removeprefix("unix:")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        problem = f"cannot listen on {host}: {folder} is no folder that can be written; agent.host names the socket"
        raise PortTakenError(errno.EACCES, problem)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(_ANSWERS_WITHIN_S)
        try:
            caller.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise PortTakenError(error.errno, f"cannot listen on {host}: {error.strerror or error}") from None
    raise PortTakenError(errno.EADDRINUSE, f"cannot listen on {host}: another process does; agent.host names another")


def refuse_own_endpoint(settings: Settings) -> None:
    """Raises `ConfigError` when one of `optimizer.endpoint` is where this agent listens: it would ask itself.

    What it cannot see is a name in front of itself, such as a load balancer's.
    """
    agent = settings.agent
    where = f"agent.host = {agent.host!r}"
    if not agent.host.startswith("unix:"):
        where += f", agent.port = {agent.port}"
    problems = [
        f"optimizer.endpoint = {address!r}: is where this agent itself listens ({where}), and it would ask itself; "
        "unset it for the agent (an empty NHM_SCHED_OPTIMIZER__ENDPOINT does), or name the agent that it is to mirror"
        for address in settings.optimizer.endpoint or ()
        if _is_own(address, agent)
    ]
    if problems:
        raise ConfigError(problems)


def _is_own(endpoint: str, agent: AgentSettings) -> bool:
    if endpoint.startswith("unix:") or agent.host.startswith("unix:"):
        return endpoint[:5] == agent.host[:5] == "unix:" and _path(endpoint) == _path(agent.host)
    host, _, port = endpoint.rpartition(":")
    if int(port) != agent.port:
        return False
    asked = _looked_up(host.strip("[]"))
    listens = [_ip(where) for _, where in resolved("agent", agent.host, agent.port)]
    if any(ip.is_unspecified for ip in listens):
        return any(map(_is_ours, asked))
    return any(_reached(ip) in listens for ip in asked)


def _looked_up(name: str) -> list[_Ip]:
    """None for a name that means nothing here, or not yet: no name server holds up the start."""
    looking = Pool(1, "nhm-sched-lookup")
    try:
        found = looking.submit(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM).result(_ANSWERS_WITHIN_S)
    except (OSError, UnicodeError):
        return []
    finally:
        looking.close()
    return [_ip(where) for *_, where in found]


def _ip(where: tuple[Any, ...]) -> _Ip:
    ip = ipaddress.ip_address(where[0])
    return (ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip


def _reached(ip: _Ip) -> _Ip:
    """0.0.0.0 and :: lead a caller to its own machine's loopback."""
    return ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1") if ip.is_unspecified else ip


def _is_ours(ip: _Ip) -> bool:
    """Whether it is an address of this machine: only those can be bound."""
    try:
        with socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as own:
            own.bind((str(ip), 0))
    except OSError:
        return False
    return True


def _path(unix: str) -> str:
    return os.path.realpath(unix.removeprefix("unix:").removeprefix("//"))


def _bound(family: socket.AddressFamily, where: tuple[Any, ...], *, shared: bool) -> socket.socket:
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        holder.bind(where)
    except OSError as error:
        holder.close()
        fix = "agent.port or --port names another; 0 takes any free one" if error.errno == errno.EADDRINUSE else ""
        why = f"({error.strerror or os.strerror(error.errno or 0)}){'; ' if fix else ''}{fix}"
        raise PortTakenError(error.errno, f"cannot listen on {address_of(where[0], where[1])} {why}") from None
    return holder
