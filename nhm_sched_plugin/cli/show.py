"""Results and progress on the terminal: for a person, or as JSON for a script."""

from __future__ import annotations

import datetime as dt
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

__all__ = [
    "Update",
    "as_json",
    "counting",
    "err",
    "log_elsewhere",
    "log_to_terminal",
    "out",
    "plain",
    "progress",
    "record",
    "show",
    "steps",
    "table",
    "text",
]

_ENDLESS = 100_000  # characters: as wide as a table wants to be

out = Console()
err = Console(stderr=True)


class Update(Protocol):
    """Moves a progress bar; `what` renames it."""

    def __call__(self, done: float, total: float | None = None, what: str | None = None) -> None: ...


class _Lines(logging.Handler):
    """Log lines above a running progress bar instead of across it, one line each: tracebacks are for hosts' logs."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        err.print(text, markup=False, highlight=False, soft_wrap=True)


def log_to_terminal() -> None:
    """Warnings and errors of all rooms, on the error stream."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Lines()])
    for library in ("prophet", "cmdstanpy", "mlflow", "alembic"):  # advice to programmers, not to our users
        logging.getLogger(library).setLevel(logging.ERROR)


def log_elsewhere() -> None:
    """Take `log_to_terminal` back: a server has a log of its own."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Lines)]:
        root.removeHandler(handler)


def as_json(value: Any, indent: int = 2) -> str:
    """Valid JSON in every case: structs as objects, paths and times as text, what is not finite as null.

    `indent` 0: all on one line.
    """
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=indent).decode() + "\n" * bool(indent)


def plain(value: Any) -> Any:
    """Structs, named tuples and paths as what tables can show."""
    return msgspec.to_builtins(value, enc_hook=str)


def show(value: Any, json_wanted: bool, text: Callable[[], None]) -> None:
    """One result, for a script or for a person."""
    if json_wanted:
        sys.stdout.write(as_json(value))
    else:
        text()


def table(rows: Sequence[Mapping[str, Any]], empty: str = "", title: str | None = None) -> None:
    """Rows of the same keys, numbers to the right."""
    if not rows:
        out.print(empty, markup=False, soft_wrap=True)
        return
    if title:
        out.print(title, style="bold", markup=False, soft_wrap=True)
    shown = Table(show_edge=False, pad_edge=False)
    for name, value in rows[0].items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        shown.add_column(name.replace("_", " "), overflow="fold", justify="right" if number else "left")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    if not out.is_terminal or _needs(shown).minimum <= out.width:  # cells wrap between words
        _whole(shown)
    else:  # not even one word a line has room: like psql's expanded tables, a block of lines for each row
        for index, row in enumerate(rows):
            if index:
                out.print()
            record(row)


def record(values: Mapping[str, Any]) -> None:
    """One thing with many facts, a line each."""
    shown = Table(show_header=False, show_edge=False, pad_edge=False, box=None)
    shown.add_column(style="dim")
    shown.add_column(overflow="fold")
    for name, value in values.items():
        shown.add_row(name.replace("_", " "), _cell(value))
    _whole(shown)


def _whole(shown: Table) -> None:
    """On a terminal as wide as that; in a pipe, where grep wants whole lines, as wide as the table."""
    console = out if out.is_terminal else Console(file=out.file, width=max(_needs(shown).maximum, 1))
    console.print(shown, markup=False)


def _needs(shown: Table) -> Measurement:
    return Measurement.get(out, out.options.update(width=_ENDLESS), shown)


def text(value: Any) -> str:
    """A value as a person reads it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(part)}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(value: Any) -> Any:
    from rich.text import Text

    return Text(text(value))  # names are shown as they are, never read as markup


def moment(epoch: float) -> str:
    return f"{dt.datetime.fromtimestamp(epoch, dt.UTC):%Y-%m-%d %H:%M} UTC"


def _columns(last: ProgressColumn) -> tuple[ProgressColumn, ...]:
    # 80 columns hold a title of 40 letters beside its bar.
    title = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=40))
    return title, BarColumn(bar_width=20), TaskProgressColumn(), last


def _bars(last: ProgressColumn, transient: bool) -> Progress:
    # On the error stream, so that `--json` stays clean; nothing at all where nobody watches.
    return Progress(*_columns(last), console=err, transient=transient, disable=not err.is_terminal)


@contextmanager
def progress(what: str) -> Iterator[Update]:
    """A progress bar that goes away when it is done."""
    with _bars(TimeRemainingColumn(), transient=True) as bar:
        yield _mover(bar, bar.add_task(what, total=None))


@contextmanager
def counting(what: str) -> Iterator[tuple[Update, Callable[[int, int], None]]]:
    """The same for a stream of rows: with their number, how many a second, and the time that is left.

    Yields what moves the bar, and what is told (rows good, rows bad) so far.
    """
    speed = TextColumn("{task.fields[rows]:,} rows, {task.fields[speed]:,}/s")
    columns = (*_columns(speed), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None, rows=0, speed=0)
        begun = time.monotonic()

        def count(good: int, bad: int) -> None:
            seconds = max(time.monotonic() - begun, 1e-3)
            bar.update(task, rows=good + bad, speed=int((good + bad) / seconds))

        yield _mover(bar, task), count


def _mover(bars: Progress, task: TaskID) -> Update:
    def update(done: float, total: float | None = None, what: str | None = None) -> None:
        bars.update(task, completed=done, total=total, description=what)  # None leaves a description as it is

    return update


@contextmanager
def steps() -> Iterator[Callable[[str], AbstractContextManager[Update]]]:
    """A list of steps that stay on the screen, each with its bar and its time."""
    with _bars(TimeElapsedColumn(), transient=False) as bars:

        @contextmanager
        def step(title: str) -> Iterator[Update]:
            task = bars.add_task(title, total=None)
            yield _mover(bars, task)
            bars.update(task, completed=1, total=1)
            bars.stop_task(task)

        yield step


def written(path: Path | None, text: str) -> None:
    """Write a result to a file, where one is asked for."""
    if path is not None:
        path.write_text(text, encoding="utf-8")
