"""Ids of decisions: unique across processes and hosts, and cheap."""

from __future__ import annotations

import itertools
import os
import secrets

__all__ = ["new_id"]

_process_prefix = secrets.token_hex(8)
_counter = itertools.count()


def _after_fork() -> None:
    global _process_prefix
    _process_prefix = secrets.token_hex(8)


os.register_at_fork(after_in_child=_after_fork)


def new_id() -> str:
    """A decision id: 64 random bits per process, then a counter."""
    return f"{_process_prefix}-{next(_counter):x}"
