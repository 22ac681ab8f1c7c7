"""How far a training is: a bar with the time left on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["told"]

_LINE_EVERY_S: Final = 30.0


@contextmanager
def told(*, quiet: bool = False) -> Iterator[Callable[[int, int, str], None]]:
    """What `train` reports its progress to. On the error stream, so that results stay clean."""
    if quiet:
        yield lambda done, total, what: None
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield _Lines().update


def _bar() -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    what = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=40))
    columns = (
        what,
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        (TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=120) as bar:
        task = bar.add_task("Training", total=None)

        def update(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"Trained {name}")

        yield update


class _Lines:
    """One line every half minute, so that a short training says nothing."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def update(self, done: int, total: int, _: str) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S:
            return
        self._last = now
        left = (now - self._began) / max(done, 1) * (total - done)
        print(f"trained {done} of {total} slices, about {_span(left)} left", file=sys.stderr, flush=True)  # noqa: T201


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
