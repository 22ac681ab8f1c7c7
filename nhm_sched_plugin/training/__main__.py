"""`python -m nhm_sched_plugin.training [--horizon 60] [--task-type processing] [--risk-band medium]`.

Exit code 0: everything trained, or nothing to do; 1: something failed or was interrupted; 2: wrong usage or settings.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from nhm_sched_plugin.errors import ConfigError, NhmSchedError
from nhm_sched_plugin.settings import Settings, load_settings

if TYPE_CHECKING:
    from nhm_sched_plugin.training.pipeline import TrainingReport

__all__ = ["INTERRUPTED", "main", "not_needed", "show"]

INTERRUPTED = "interrupted; what is trained so far is kept, and the same command goes on from there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as asked on the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(options.config)
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's own output
        return 2
    try:
        report = _train(settings, options)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)  # noqa: T201 - the command's own output
        return 1
    except NhmSchedError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the command's own output
        return 1
    if options.json:
        print(msgspec.json.encode(report).decode())  # noqa: T201 - the command's own output
    else:
        show(report)
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nhm_sched_plugin.training",
        description="Fit the load forecasters, register them and publish the forecast table.",
    )
    add = parser.add_argument
    add("--horizon", type=int, action="append", metavar="MINUTES", help="repeatable; default: all")
    add("--task-type", help="train only this slice")
    add("--risk-band", help="train only this slice")
    add("--keep", type=int, metavar="N", help="train only the N busiest slices besides the global one")
    add("--jobs", type=_at_least_one, default=2, metavar="N", help="worker processes (default 2)")
    add("--engine", choices=("loky", "dask"), default="loky", help="processes here, or a Dask cluster")
    add("--scheduler", metavar="ADDRESS", help="of the Dask cluster: tcp://HOST:8786")
    add("--fresh", action="store_true", help="forget what an interrupted training had finished")
    add("--if-needed", action="store_true", help="only without a table, when the model is old, or when a host asks")
    add("--max-age-days", type=float, default=7.0, metavar="DAYS", help="for --if-needed (default 7)")
    add("--config", metavar="FILE", help="settings; default: built-in values and NHM_SCHED_*")
    add("--json", action="store_true", help="print the report as JSON")
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is outside what is possible: 1 or more")
    return number


def _train(settings: Settings, options: argparse.Namespace) -> TrainingReport:
    from nhm_sched_plugin.training.due import why_now
    from nhm_sched_plugin.training.pipeline import train
    from nhm_sched_plugin.training.progress import told

    reason = why_now(settings, time.time(), options.max_age_days) if options.if_needed else ""
    if reason is None:
        return not_needed(settings)
    if reason and not options.json:
        print(f"training: {reason}", file=sys.stderr)  # noqa: T201 - the command's own output
    with told(quiet=options.json) as progress:
        report = train(
            settings,
            horizons=options.horizon,
            task_type=options.task_type,
            risk_band=options.risk_band,
            keep=options.keep,
            jobs=options.jobs,
            engine=options.engine,
            scheduler=options.scheduler,
            fresh=options.fresh,
            progress=progress,
        )
    return msgspec.structs.replace(report, reason=reason)


def not_needed(settings: Settings) -> TrainingReport:
    """What `--if-needed` answers when there is nothing to do."""
    from nhm_sched_plugin.training.pipeline import TrainingReport

    return TrainingReport(
        rows=[],
        table=str(settings.forecast_table_path),
        seconds=0.0,
        reason="not needed: the models are young enough, and no host asked for a training",
    )


def show(report: TrainingReport) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not report.rows:
        console.print(report.reason, soft_wrap=True)
        return
    kept = f", {report.resumed} slices kept from before" if report.resumed else ""
    table = Table(title=f"Trained in {report.seconds:.0f} s{kept} (errors in percent)", padding=(0, 0))
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
