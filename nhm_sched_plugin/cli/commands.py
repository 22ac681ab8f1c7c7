"""All commands on one application."""

from __future__ import annotations

import sys
from typing import NoReturn

from nhm_sched_plugin.cli import (  # noqa: F401 - they register themselves
    backtest,
    checks,
    custody,
    delivery,
    demo,
    experiments,
    forecasts,
    ingesting,
    policy,
    q_table,
    quality,
    questions,
    recommending,
    records,
    serve,
)
from nhm_sched_plugin.cli.app import app
from nhm_sched_plugin.cli.show import log_to_terminal

__all__ = ["app", "run"]


def run() -> NoReturn:
    """Do what the command line asks and exit."""
    log_to_terminal()
    app()
    sys.exit(0)
