"""Several processes on one port: the kernel deals connections out to them (SO_REUSEPORT); this parent keeps them alive.

Children are spawned, not forked: what grpc starts survives no fork. One that dies is started again, after a pause that
grows while it keeps dying; a parent that dies takes its children along.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Final, NamedTuple

from nhm_sched_plugin.agent.ports import reserved
from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.settings import Settings

__all__ = ["Listening", "run"]

logger = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5
"""Before a dead child is started again; doubled each time,"""
_LONGEST_PAUSE_S: Final = 30.0
"""up to this,"""
_SETTLED_S: Final = 60.0
"""and forgotten once it has lived for so long."""
_KILLED_AFTER_S: Final = 15.0
"""Beyond `agent.grace_s`: a child that has not ended by then is killed."""


class Listening(NamedTuple):
    """Where an agent listens."""

    port: int
    metrics_ports: tuple[int | None, ...]
    """One for each process; None: its numbers are not shown."""


class _Child:
    """One worker, in all its lives."""

    def __init__(self, settings: Settings, number: int) -> None:
        self._settings, self._number = settings, number
        self.process: Any = None
        self.said: Connection | None = None
        self.started: tuple[int, int | None] | None = None
        self.problem: Exception | None = None
        self._began = self.due = 0.0
        self._pause_s = _PAUSE_S

    def start(self) -> None:
        spawning = multiprocessing.get_context("spawn")
        self.said, says = spawning.Pipe(duplex=False)
        self.process = spawning.Process(
            target=_work, args=(self._settings, says), name=f"nhm-sched-agent-{self._number}"
        )
        self.process.start()
        says.close()
        self._began = time.monotonic()

    def listen(self) -> None:
        """Take in what it says: where it listens, or what keeps it from that."""
        assert self.said is not None  # noqa: S101 - it has been started
        try:
            kind, told = self.said.recv()
        except (EOFError, OSError):
            self.said.close()
            self.said = None
            return
        if kind == "started":
            self.started = told
        else:
            self.problem = ConfigError(*told) if kind == "misconfigured" else NhmSchedError(told)

    def buried(self) -> str:
        """Says how the process ended, and when the next begins."""
        self.process.join()
        if self.said is not None:
            while self.said is not None and self.said.poll():
                self.listen()
            if self.said is not None:
                self.said.close()
                self.said = None
        code, now = self.process.exitcode, time.monotonic()
        if now - self._began >= _SETTLED_S:
            self._pause_s = _PAUSE_S
        self.due = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.process = None
        if self.problem is not None:
            return f"could not start: {self.problem}"
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def run(settings: Settings, started: Callable[[Listening], None] = lambda listening: None) -> None:
    """Have `agent.workers` processes listen until SIGTERM or SIGINT. `started` hears when all of them do.

    Raises `ConfigError`, or OSError for an address that cannot be bound; what keeps the first ones from starting is
    raised as well.
    """
    agent = settings.agent
    if agent.host.startswith("unix:"):
        raise ConfigError([f"agent.workers = {agent.workers}: a Unix socket cannot be shared; set it to 1"])
    with reserved(agent.host, agent.port, shared=True) as holder, _signals() as signalled:
        port = holder.getsockname()[1]
        children = [_Child(_of_child(settings, port, number), number) for number in range(agent.workers)]
        try:
            for child in children:
                child.start()
            _supervise(children, signalled, lambda: started(_listening(port, children)))
        finally:
            _end(children, agent.grace_s + _KILLED_AFTER_S)


def _supervise(children: list[_Child], signalled: socket.socket, started: Callable[[], None]) -> None:
    everybody_up = False
    while True:
        running = [child for child in children if child.process is not None]
        waiting: list[Any] = [signalled, *(child.process.sentinel for child in running)]
        waiting += [child.said for child in running if child.said is not None]
        dead = [child for child in children if child.process is None]
        pause = min((child.due for child in dead), default=None)
        ready = wait(waiting, None if pause is None else max(pause - time.monotonic(), 0.0))
        if signalled in ready:
            return
        for child in running:
            if child.said is not None and child.said in ready:
                child.listen()
        for child in running:
            if child.process.sentinel in ready:
                how = child.buried()
                if not everybody_up:
                    raise child.problem or OSError(f"an agent process {how}")
                logger.error("an agent process %s; another is started", how)
        for child in dead:
            if time.monotonic() >= child.due:
                child.problem = None
                child.start()
        if not everybody_up and all(child.started is not None for child in children):
            everybody_up = True
            started()


def _listening(port: int, children: list[_Child]) -> Listening:
    return Listening(port, tuple(child.started[1] for child in children if child.started is not None))


def _of_child(settings: Settings, port: int, number: int) -> Settings:
    """One metrics port for each process, counted up from `metrics.port`."""
    metrics = settings.metrics
    if metrics.port:
        metrics = metrics.model_copy(update={"port": metrics.port + number})
    return settings.model_copy(update={"agent": settings.agent.model_copy(update={"port": port}), "metrics": metrics})


def _end(children: list[_Child], patience_s: float) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    until = time.monotonic() + patience_s
    for process in running:
        process.join(max(until - time.monotonic(), 0.0))
        if process.is_alive():
            logger.error("an agent process did not end within %g s and is killed", patience_s)
            process.kill()
            process.join()


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that can be read once SIGTERM or SIGINT has come."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _confess(says: Connection, kind: str, told: object) -> None:
    """Tell the parent what keeps this process from serving, and end it."""
    with contextlib.suppress(OSError):
        says.send((kind, told))
    sys.exit(1)


def _work(settings: Settings, says: Connection) -> None:
    """A child: says where it listens, and serves until it is told to stop or its parent is gone."""
    from nhm_sched_plugin.agent.logs import AgentLog
    from nhm_sched_plugin.agent.server import AgentServer, serve

    def started(server: AgentServer) -> None:
        says.send(("started", (server.port, server.metrics_port)))
        says.close()

    parent = multiprocessing.parent_process()
    until = None if parent is None else int(parent.sentinel)
    with AgentLog(settings.agent):
        try:
            asyncio.run(serve(settings, shared=True, until=until, started=started))
        except ConfigError as error:
            _confess(says, "misconfigured", (error.problems, error.source))
        except (NhmSchedError, OSError) as error:
            _confess(says, "failed", str(error))
