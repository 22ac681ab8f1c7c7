"""A keyword-only argument."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl
def nhm_sched_guard(*, recommendation):
    return None
