"""A coroutine."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl
async def nhm_sched_guard(recommendation):
    return None
