"""Raises in every hook."""

from __future__ import annotations

from typing import Any

from nhm_sched_plugin import hookimpl


class BoomError(Exception):
    pass


def _boom(*_: Any) -> None:
    raise BoomError("boom")


@hookimpl
def nhm_sched_startup(config, host):
    _boom()


@hookimpl
def nhm_sched_decide(ticket, state):
    _boom()


@hookimpl
def nhm_sched_decision_applied(decision, applied, error):
    _boom()


@hookimpl
def nhm_sched_task_finished(outcome):
    _boom()


@hookimpl
def nhm_sched_health():
    _boom()


@hookimpl
def nhm_sched_shutdown(grace_s):
    _boom()


@hookimpl
def nhm_sched_make_forecaster(settings):
    _boom()


@hookimpl
def nhm_sched_make_policy(settings):
    _boom()


@hookimpl
def nhm_sched_make_sinks(settings):
    _boom()


@hookimpl
def nhm_sched_collect_state(ticket):
    _boom()


@hookimpl
def nhm_sched_recommend(ticket, state, forecast):
    _boom()


@hookimpl
def nhm_sched_guard(ticket, state, recommendation):
    _boom()


@hookimpl
def nhm_sched_fallback(ticket, state, reason):
    _boom()


@hookimpl
def nhm_sched_reward(before, after):
    _boom()


@hookimpl
def nhm_sched_actuate(decision):
    _boom()


@hookimpl
def nhm_sched_after_decision(record):
    _boom()


@hookimpl
def nhm_sched_after_outcome(record, reward):
    _boom()


@hookimpl
def nhm_sched_on_error(hook_name, plugin_name, error):
    _boom()
