"""`nhm-sched demo`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from nhm_sched_plugin.cli.app import JsonOption, app, between
from nhm_sched_plugin.cli.show import out, show, steps


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for state and report.")] = Path("demo-output"),
    days: Annotated[int, typer.Option(callback=between(4, 60), help="Length of the replayed end of the year.")] = 14,
    as_json: JsonOption = False,
) -> None:
    """The whole loop on a year of real flights: ingest, train, learn, decide, record, report."""
    from nhm_sched_plugin.demo.loop import run
    from nhm_sched_plugin.observe.summary import print_summary, summary_json

    with steps() as step:
        data = run(output, step, days=days, program=_program())
    show(summary_json(data), as_json, lambda: print_summary(data, out))


def _program() -> str:
    """How the user can call this command again: by its name, or by its path where that is not on the search path."""
    return "nhm-sched" if shutil.which("nhm-sched") else min(sys.argv[0], os.path.relpath(sys.argv[0]), key=len)
