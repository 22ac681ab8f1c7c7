"""What the commands share: the application, its common options, and errors as one message and an exit code."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nhm_sched_plugin.cli.show import err, out
from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.settings import Settings, load_settings

if TYPE_CHECKING:
    from nhm_sched_plugin.store.repository import Store

__all__ = ["ConfigOption", "JsonOption", "MapOption", "app", "between", "pairs", "records", "settings_of", "writable"]


ORDER = (
    "demo",
    "init",
    "ingest",
    "ingest-profiles",
    "quality",
    "train",
    "forecast",
    "recommend",
    "backtest",
    "models",
    "approve",
    "promote",
    "learn",
    "q-table",
    "replay",
    "serve",
    "drain",
    "quarantine",
    "shadow",
    "experiment",
    "decisions",
    "explain",
    "arms",
    "bottlenecks",
    "misses",
    "export",
    "erase",
    "hooks",
    "doctor",
)
"""Of the help page: as a user meets them."""


class _Commands(TyperGroup):
    """Errors that a person can mend become one message; anything else stays a traceback, since it is our fault."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _say(str(error))
            raise typer.Exit(2) from None
        except NhmSchedError as error:
            _say(str(error))
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("nhm_sched_plugin"):
                raise
            _say(f"{error.name} is not installed; run: pip install 'nhm-sched-plugin[all]'")
        except BrokenPipeError:
            raise
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _say(f"{place}{error.strerror or error}")
        raise typer.Exit(1)


def _say(text: str) -> None:
    err.print("error:", style="bold red", end=" ")
    err.print(text, markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(
    cls=_Commands,
    name="nhm-sched",
    help="Predictive scheduling for workflow orchestrators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="NHM_SCHED_CONFIG", help="YAML file; NHM_SCHED_* variables win over it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MapOption = Annotated[
    list[str] | None,
    typer.Option("--map", "-m", metavar="TARGET=COLUMN", help="A column by another name; repeatable."),
]


def _version(asked: bool) -> None:
    if asked:
        out.print(f"nhm-sched {version('nhm-sched-plugin')}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def settings_of(config: Path | None) -> Settings:
    """The settings that a command works with. Raises `ConfigError`."""
    return load_settings(config)


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping. Raises `BadParameter`."""
    found = {}
    for text in given or []:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise typer.BadParameter(f"{option} {text!r}: write it as NAME=VALUE")
        found[name] = value
    return found


def between(low: float, high: float | None = None) -> Callable[[Any], Any]:
    """A callback that refuses numbers outside the range, naming them."""

    def check(given: Any) -> Any:
        for number in given if isinstance(given, list) else [given]:
            if number is not None and not (low <= number < math.inf and (high is None or number <= high)):
                allowed = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
                raise typer.BadParameter(f"{number} is outside what is possible: {allowed}")
        return given

    return check


def writable(path: Path | None) -> Path | None:
    """Complain about an output file before the work, not after it. Raises `BadParameter`."""
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise typer.BadParameter(f"{path} cannot be written; name a file in a folder that exists and is yours")
    return path


@contextlib.contextmanager
def records(settings: Settings, *, migrate: bool = True) -> Iterator[Store]:
    """The records database, without what its engine prints by itself when it cannot open: the error says it."""
    from nhm_sched_plugin.store.client import open_store

    with contextlib.ExitStack() as stack:
        with _engine_muted():
            store = stack.enter_context(open_store(settings, migrate=migrate))
        yield store


@contextlib.contextmanager
def _engine_muted() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
