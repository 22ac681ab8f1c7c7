"""A wrapper."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl


@hookimpl(wrapper=True)
def nhm_sched_recommend(ticket):
    return (yield)
