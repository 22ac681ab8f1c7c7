"""A wrapper of the old kind."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl(hookwrapper=True)
def nhm_sched_recommend(ticket):
    yield
