"""All commands on one application, in the order that `nhm-sched --help` shows."""

from __future__ import annotations

import sys
from typing import NoReturn

# isort: off - this is the order of the help page
from nhm_sched_plugin.cli import (
    checks,  # noqa: F401
    demo,  # noqa: F401
    forecasts,  # noqa: F401
    policy,  # noqa: F401
    records,  # noqa: F401
)

# isort: on
from nhm_sched_plugin.cli.app import app
from nhm_sched_plugin.cli.show import log_to_terminal

__all__ = ["app", "run"]


def run() -> NoReturn:
    """Do what the command line asks and exit."""
    log_to_terminal()
    app()
    sys.exit(0)
