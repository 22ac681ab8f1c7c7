"""What the agent tells on stderr: one line an event, as text or as JSON (`agent.log_format`).

* Nothing that serves calls ever waits for stderr: lines are queued, a thread writes them. What it cannot take is
  counted and told when it can again.
* What callers send cannot forge or break lines: it is quoted, and control characters are escaped.
* No token and no request is ever logged; should a library quote a bearer token, it is blotted out.

The formatters are the standard library's; a logging library would bring a second way to log into a process whose
other modules use the standard one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import re
import sys
import threading
from datetime import UTC, datetime
from textwrap import indent
from typing import Any, Final, TextIO

from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.settings_agent import AgentSettings

__all__ = ["AgentLog", "refused"]

FIELDS: Final = ("method", "code", "peer", "decision_id", "field")
"""Of a line about a call; empty ones are left out."""

_WAITING: Final = 10_000
"""Lines that may wait for a stderr that takes none."""
_CLOSING_S: Final = 2.0
_LONGEST: Final = 300
"""Characters of one field: the method is whatever the caller has made up."""
_BEARER: Final = re.compile(r"(?i)\b(bearer)(\s+|%20)[^\s'\",;)\]}]+")
_PLAIN: Final = re.compile(r"[^\s\"=]+")

calls = logging.getLogger("nhm_sched_plugin.agent.calls")


def refused(method: str, code: Any, peer: str, why: str, decision_id: str = "", field: str = "") -> None:
    """One line for a call that was refused. `code`: a `grpc.StatusCode` or its name; `why`: what the caller is told."""
    if calls.isEnabledFor(logging.WARNING):
        values = (method, getattr(code, "name", code), peer, decision_id, field)
        fields = {name: value[:_LONGEST] for name, value in zip(FIELDS, values, strict=True) if value}
        # Not `calls.warning`: it would search the stack for the line that logs, which takes longest and is always this.
        calls.handle(calls.makeRecord(calls.name, logging.WARNING, __file__, 0, why, (), None, "refused", fields))


class AgentLog:
    """Everything that this process logs, on stderr, until it is closed. Make one in each process."""

    def __init__(self, agent: AgentSettings, stream: TextIO | None = None) -> None:
        self._handler = _Handler(stream or sys.stderr)
        self._handler.setFormatter(_Json() if agent.log_format == "json" else _Text())
        self._package = logging.getLogger("nhm_sched_plugin")
        self._level_before = self._package.level
        self._package.setLevel(logging.INFO)
        logging.getLogger().addHandler(self._handler)

    def close(self) -> None:
        """Write what is waiting, within two seconds, and stop. Safe to call twice."""
        logging.getLogger().removeHandler(self._handler)
        self._package.setLevel(self._level_before)
        self._handler.close()

    def __enter__(self) -> AgentLog:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class _Handler(logging.Handler):
    """Formats and writes in a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        # Each counter has one writer: `emit`, which is called under the handler's lock, or the thread.
        self._dropped = self._failed = self._told = 0
        self._queue: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="nhm-sched-agent-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        super().close()
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_CLOSING_S)
            except queue.Full:
                return  # stderr takes nothing; the thread is a daemon and ends with the process
            self._thread.join(_CLOSING_S)

    def _write_all(self) -> None:
        while (record := self._queue.get()) is not None:
            self._failed += not self._written(record)
            self._tell_lost()
            if self._queue.empty():
                self._flush()
        self._tell_lost()
        self._flush()

    def _tell_lost(self) -> None:
        lost = self._dropped + self._failed - self._told
        if lost:
            told = logging.LogRecord(calls.name, logging.WARNING, __file__, 0, "%d lines lost", (lost,), None)
            self._told += lost * self._written(told)

    def _written(self, record: logging.LogRecord) -> bool:
        try:
            self._stream.write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - a closed pipe, or somebody's arguments that cannot be formatted
            return False
        return True

    def _flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            self._stream.flush()


class _Text(logging.Formatter):
    """`2026-11-26T14:05:09.123Z WARNING a token is needed method=/Service/Method code=UNAUTHENTICATED peer=...`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_quoted(str(value))}" for name, value in _fields(record))
        line = f"{_time(record)} {record.levelname} {_one_line(record.getMessage())} {fields}".rstrip()
        if record.exc_info:
            line += "\n" + indent(
                self.formatException(record.exc_info), "    "
            )  # nothing in it looks like a line of ours
        return _blotted(line)


class _Json(logging.Formatter):
    """The same as an object a line, with the keys time, level, logger, message and `FIELDS`; `error`: a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **dict(_fields(record)),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({key: _blotted(str(value)) for key, value in line.items()})


def _fields(record: logging.LogRecord) -> list[tuple[str, Any]]:
    return [(name, value) for name in FIELDS if (value := record.__dict__.get(name))]


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(value: str) -> str:
    return value if value.isprintable() and _PLAIN.fullmatch(value) else json.dumps(value)


def _one_line(text: str) -> str:
    return text if text.isprintable() else "".join(part if part.isprintable() else repr(part)[1:-1] for part in text)


def _blotted(text: str) -> str:
    return _BEARER.sub(r"\1 ***", text)
