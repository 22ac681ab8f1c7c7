"""`python -m nhm_sched_plugin.training [--horizon 60] [--task-type processing] [--risk-band medium]`.

Exit code 0: everything trained; 1: something failed; 2: wrong usage or settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.settings import load_settings

if TYPE_CHECKING:
    from nhm_sched_plugin.training.pipeline import TrainingReport

__all__ = ["main", "show"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as asked on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nhm_sched_plugin.training",
        description="Fit the load forecasters, register them and publish the forecast table.",
    )
    parser.add_argument("--horizon", type=int, action="append", metavar="MINUTES", help="repeatable; default: all")
    parser.add_argument("--task-type", help="train only this slice")
    parser.add_argument("--risk-band", help="train only this slice")
    parser.add_argument("--keep", type=int, metavar="N", help="train only the N busiest slices besides the global one")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--config", metavar="FILE", help="settings; default: built-in values and NHM_SCHED_*")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's own output
        return 2
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from nhm_sched_plugin.training.pipeline import train

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=Console(stderr=True), disable=options.json) as bar:
            task = bar.add_task("training", total=None)
            report = train(
                settings,
                horizons=options.horizon,
                task_type=options.task_type,
                risk_band=options.risk_band,
                keep=options.keep,
                jobs=options.jobs,
                progress=lambda done, total, what: bar.update(
                    task, completed=done, total=total, description=f"trained {what}"
                ),
            )
    except NhmSchedError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's own output
        return 1
    if options.json:
        print(msgspec.json.encode(report).decode())  # noqa: T201 - the command's own output
    else:
        show(report)
    return 1 if report.failed else 0


def show(report: TrainingReport) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"Trained in {report.seconds:.0f} s (errors in percent)", padding=(0, 0))
    table.add_column("model", overflow="fold", min_width=18)
    for heading in ("hours", "method", "MAPE", "WAPE", "version", "status"):
        number = heading in {"hours", "MAPE", "WAPE", "version"}
        table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in report.rows:
        errors = ["-" if value is None else f"{value:.1f}" for value in (row.mape, row.wape)]
        status = f"{row.status}: {row.error}" if row.error else row.status
        table.add_row(row.name, str(row.samples), row.method, *errors, row.version, status)
    console.print(table)
    if report.table:
        console.print(f"forecast table: {report.table}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
