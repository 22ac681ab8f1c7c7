"""Sleeps in every hook, for `SLOW_PLUGIN_S` seconds."""

from __future__ import annotations

import os
import time

from nhm_sched_plugin import hookimpl

SECONDS = float(os.environ.get("SLOW_PLUGIN_S", "0.5"))


@hookimpl
def nhm_sched_startup(config, host):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_decide(ticket, state):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_decision_applied(decision, applied, error):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_task_finished(outcome):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_health():
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_shutdown(grace_s):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_make_forecaster(settings):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_make_policy(settings):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_make_sinks(settings):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_collect_state(ticket):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_recommend(ticket, state, forecast):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_guard(ticket, state, recommendation):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_fallback(ticket, state, reason):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_reward(before, after):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_actuate(decision):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_after_decision(record):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_after_outcome(record, reward):
    time.sleep(SECONDS)


@hookimpl
def nhm_sched_on_error(hook_name, plugin_name, error):
    time.sleep(SECONDS)
