"""A well-behaved drop-in: every hook that a third party may implement, each counted in `calls`."""

from __future__ import annotations

from nhm_sched_plugin import Health, hookimpl

calls: list[str] = []
errors: list[tuple[str, str, str]] = []


@hookimpl
def nhm_sched_startup(config, host):
    calls.append("startup")


@hookimpl
def nhm_sched_decision_applied(decision, applied, error):
    calls.append("decision_applied")


@hookimpl
def nhm_sched_task_finished(outcome):
    calls.append("task_finished")


@hookimpl
def nhm_sched_health():
    calls.append("health")
    return [Health(component="good", ok=True)]


@hookimpl
def nhm_sched_shutdown(grace_s):
    calls.append("shutdown")


@hookimpl
def nhm_sched_make_forecaster(settings):
    calls.append("make_forecaster")


@hookimpl
def nhm_sched_make_policy(settings):
    calls.append("make_policy")


@hookimpl
def nhm_sched_make_sinks(settings):
    calls.append("make_sinks")
    return []


@hookimpl
def nhm_sched_collect_state(ticket):
    calls.append("collect_state")
    return {"good": 1}


@hookimpl
def nhm_sched_recommend(ticket, state, forecast):
    calls.append("recommend")


@hookimpl
def nhm_sched_guard(ticket, state, recommendation):
    calls.append("guard")


@hookimpl
def nhm_sched_fallback(ticket, state, reason):
    calls.append("fallback")


@hookimpl
def nhm_sched_reward(before, after):
    calls.append("reward")


@hookimpl
def nhm_sched_actuate(decision):
    calls.append("actuate")


@hookimpl
def nhm_sched_after_decision(record):
    calls.append("after_decision")


@hookimpl
def nhm_sched_after_outcome(record, reward):
    calls.append("after_outcome")


@hookimpl
def nhm_sched_on_error(hook_name, plugin_name, error):
    errors.append((hook_name, plugin_name, str(error)))
