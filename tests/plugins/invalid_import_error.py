"""Imports what is not there."""

from __future__ import annotations

import no_such_library_anywhere

from nhm_sched_plugin import hookimpl


@hookimpl
def nhm_sched_guard(recommendation):
    return no_such_library_anywhere
