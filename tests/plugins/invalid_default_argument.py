"""An argument with a default."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl
def nhm_sched_guard(recommendation, ticket=None):
    return None
