"""A user's own policy in a replay, MODULE:FACTORY: found, made, and asked; what goes wrong in it says whose it is."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final

from nhm_sched_plugin.twin.rivals import Scene
from nhm_sched_plugin.twin.simulator import Controller, Order
from nhm_sched_plugin.twin.traces import TraceError
from nhm_sched_plugin.types import SchedulingState

__all__ = ["Own", "factory"]

_PARTS: Final = ("watches_tickets", "on_arrival", "on_finished", "on_tick")


def factory(name: str) -> Callable[[Scene], Controller]:
    """The function that MODULE:FACTORY names. Raises `TraceError`."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # an installed command looks for a user's module beside the user, not beside itself
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise TraceError(f"policy {name!r}: {module} has no {attribute!r}") from None
    except Exception as error:
        raise TraceError(f"policy {name!r}: cannot import {module!r} ({_told(error)})") from error
    if not callable(found):
        raise TraceError(f"policy {name!r}: {attribute} is no function that takes a Scene and makes a Controller")
    made: Callable[[Scene], Controller] = found
    return made


def _told(error: Exception) -> str:
    """What and where in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


class Own:
    """A controller of the user's own: whatever goes wrong in it says whose it is. Raises `TraceError`."""

    def __init__(self, name: str, scene: Scene) -> None:
        self.name = name
        try:
            self._made = factory(name)(scene)
        except TraceError:
            raise
        except Exception as error:
            raise TraceError(f"policy {name!r} cannot be made ({_told(error)})") from error
        missing = [part for part in _PARTS if not hasattr(self._made, part)]
        if missing:
            raise TraceError(f"policy {name!r} made a {type(self._made).__name__} without {', '.join(missing)}")
        self.watches_tickets = bool(self._made.watches_tickets)

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None:
        self._asked("on_arrival", index, state, now)

    def on_finished(self, index: int, wait_s: float, now: float) -> None:
        self._asked("on_finished", index, wait_s, now)

    def on_tick(self, state: SchedulingState, now: float) -> int | Order | None:
        target = self._asked("on_tick", state, now)
        workers = target.workers if isinstance(target, Order) else target
        if workers is not None and not hasattr(type(workers), "__index__"):
            when = f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
            raise TraceError(
                f"policy {self.name!r} asked for {workers!r} workers at {when}; a whole number or None is needed"
            )
        found: int | Order | None = target
        return found

    def _asked(self, part: str, *given: Any) -> Any:
        try:
            return getattr(self._made, part)(*given)
        except Exception as error:
            raise TraceError(f"policy {self.name!r} failed ({_told(error)})") from error
