"""An argument that the hook does not have."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl
def nhm_sched_guard(recomendation):
    return None
