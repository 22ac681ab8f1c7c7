"""Answers garbage in every hook: wrong types, features that are no numbers, a confidence of 7."""

from __future__ import annotations

import math

from nhm_sched_plugin import Action, Recommendation, Veto, hookimpl

SURE = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 12}, confidence=7)


@hookimpl
def nhm_sched_startup(config, host):
    return 1


@hookimpl
def nhm_sched_decide(ticket, state):
    return "INCREASE_WORKER_POOL"


@hookimpl
def nhm_sched_decision_applied(decision, applied, error):
    return object()


@hookimpl
def nhm_sched_task_finished(outcome):
    return [1]


@hookimpl
def nhm_sched_health():
    return [True]


@hookimpl
def nhm_sched_shutdown(grace_s):
    return "later"


@hookimpl
def nhm_sched_make_forecaster(settings):
    return 42


@hookimpl
def nhm_sched_make_policy(settings):
    return "policy"


@hookimpl
def nhm_sched_make_sinks(settings):
    return [object(), None]


@hookimpl
def nhm_sched_collect_state(ticket):
    return {"load": math.nan, 3: 4}


@hookimpl
def nhm_sched_recommend(ticket, state, forecast):
    return SURE


@hookimpl
def nhm_sched_guard(ticket, state, recommendation):
    return "no"


@hookimpl
def nhm_sched_fallback(ticket, state, reason):
    return Recommendation(action="JUMP", parameters=[1], confidence=None)


@hookimpl
def nhm_sched_reward(before, after):
    return math.nan


@hookimpl
def nhm_sched_actuate(decision):
    return "done"


@hookimpl
def nhm_sched_after_decision(record):
    return 1


@hookimpl
def nhm_sched_after_outcome(record, reward):
    return Veto(guard=1, reason=2)


@hookimpl
def nhm_sched_on_error(hook_name, plugin_name, error):
    return error
