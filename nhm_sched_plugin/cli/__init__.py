"""The `nhm-sched` command. Thin: every command reads its options, calls one function of a room and shows the answer.

Exit codes: 0 good, 1 failed, 2 wrong usage (options or configuration).
"""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Entry point of `nhm-sched`."""
    try:
        from nhm_sched_plugin.cli.commands import run
    except ModuleNotFoundError as missing:  # the host installs without the command line
        sys.exit(
            f"nhm-sched needs the command-line extra ({missing.name} is missing): pip install 'nhm-sched-plugin[cli]'"
        )
    run()
