"""A hook without its marker."""

from __future__ import annotations

from nhm_sched_plugin import hookimpl

assert hookimpl


def nhm_sched_guard(recommendation):
    return None
