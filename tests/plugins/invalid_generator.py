"""A generator: calling it does nothing."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl
def nhm_sched_after_decision(record):
    yield record
