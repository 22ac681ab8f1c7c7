"""No hook at all."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl

assert hookimpl


def helper():
    return None
