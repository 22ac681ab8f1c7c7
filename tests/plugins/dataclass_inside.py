"""A dataclass in a drop-in looks its module up in `sys.modules`: the loader must have put it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nhm_sched_plugin import Veto, hookimpl


@dataclass
class Window:
    start: int
    end: int
    names: ClassVar[list[str]] = ["night"]


WINDOW = Window(1, 5)


@hookimpl
def nhm_sched_guard(recommendation):
    return Veto(guard=WINDOW.names[0], reason=f"from {WINDOW.start} to {WINDOW.end}")
