"""A hook that does not exist (a typing mistake)."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl
def nhm_sched_gaurd(recommendation):
    return None
