"""How it stands with a remote agent, for `nhm-sched doctor`: asks every address once and changes nothing."""

from __future__ import annotations

import sqlite3
import time
from typing import TYPE_CHECKING

from nhm_sched_plugin.advice.remote.calls import Caller
from nhm_sched_plugin.advice.remote.mirror import MARK
from nhm_sched_plugin.advice.remote.status import explained
from nhm_sched_plugin.errors import AgentUnavailableError, NhmSchedError
from nhm_sched_plugin.observe.metrics import Metrics

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["survey"]


def survey(settings: Settings) -> str:
    """One line. Raises `NhmSchedError` with it when an address does not answer, `ConfigError` for wrong settings."""
    found = {address: _answer(settings, address) for address in settings.optimizer.endpoint or ()}
    said = [f"{address}: {problem or 'answers'}" for address, problem in found.items()]
    line = "; ".join([*said, _mirror(settings), _outbox(settings)])
    if any(found.values()):
        raise NhmSchedError(line)
    return line


def _answer(settings: Settings, address: str) -> str:
    """What is wrong with it."""
    from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

    optimizer = settings.optimizer.model_copy(update={"endpoint": (address,)})
    caller = Caller(optimizer, Metrics(), probe_s=optimizer.grpc_timeout)
    try:
        caller.call("GetLoadForecast", pb.ForecastRequest(horizon_minutes=60))
    except AgentUnavailableError as error:
        return explained(error, optimizer)
    finally:
        caller.close()
    return ""


def _mirror(settings: Settings) -> str:
    try:
        age_s = time.time() - (settings.mirror_path / MARK).stat().st_mtime
    except OSError:
        return "nothing mirrored yet"
    return f"mirror confirmed {max(age_s, 0.0):,.0f} s ago"


def _outbox(settings: Settings) -> str:
    file = settings.outbox_path / "spool.sqlite"
    if not file.exists():
        return "no outcomes wait"
    try:
        # Opening it as an outbox would repair it.
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        try:
            waiting, refused = (
                int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - our own names
                for table in ("records", "quarantine")
            )
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"the outbox {file} cannot be read ({error}); the next host sets it aside and saves what is readable"
    return f"{waiting:,} outcomes wait" + (f", {refused:,} were refused" if refused else "")
