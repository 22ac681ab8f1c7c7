"""The agent's port before grpc has it: whether it is free, and who may share it. Imports nothing of grpc."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from nhm_sched_plugin.errors import ConfigError

__all__ = ["PortTakenError", "free_socket", "reserved"]


_ANSWERS_WITHIN_S: Final = 2.0


class PortTakenError(OSError):
    """The address cannot be listened on."""


def reserved(host: str, port: int, *, shared: bool) -> socket.socket:
    """A bound socket that does not listen: it holds the address until it is closed. `port` 0 takes any free one.

    `shared`: the processes that are started next may bind the same one (SO_REUSEPORT), and nobody else's had it before.
    Raises `PortTakenError`, or `ConfigError` for what is no address of this machine.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        problem = f"is no address of this machine ({error}); 127.0.0.1 is the default"
        raise ConfigError([f"agent.host = {host!r}: {problem}"]) from None
    family, _, _, _, where = found[0]
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


def _bound(family: socket.AddressFamily, where: tuple[object, ...], *, shared: bool) -> socket.socket:
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        holder.bind(where)
    except OSError as error:
        holder.close()
        host, port = where[0], where[1]
        fix = "agent.port or --port names another; 0 takes any free one" if error.errno == errno.EADDRINUSE else ""
        why = f"({error.strerror or os.strerror(error.errno or 0)}){'; ' if fix else ''}{fix}"
        raise PortTakenError(error.errno, f"cannot listen on {host}:{port} {why}") from None
    return holder
