"""Decisions are counted off the hot path, and nobody who reads the registry can tell."""

from __future__ import annotations

from prometheus_client import generate_latest

from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.observe.tally import Noted, Tally


def test_a_reading_of_the_registry_counts_what_was_noted() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    for _ in range(3):
        tally.note(
            Noted("NO_ACTION", "fallback", "shadow", 1e-4, 60, "served", None, "INCREASE_WORKER_POOL", "rejected")
        )
    tally.note(Noted("NO_ACTION", "fallback", "shadow", 1e-4, 60, "unavailable", "forecast_unavailable"))
    labels = {"action": "NO_ACTION", "source": "fallback", "arm": "shadow"}
    assert metrics.registry.get_sample_value("nhm_sched_decisions_total", labels) == 4
    page = generate_latest(metrics.registry).decode()
    assert 'optimizer_unavailable_total{reason="forecast_unavailable"} 1.0' in page
    assert (
        'optimizer_scheduling_optimizations_applied_total{action="INCREASE_WORKER_POOL",status="rejected"} 3.0' in page
    )
    assert 'optimizer_load_predictions_total{horizon="60",status="served",task_type="all"} 3.0' in page
    assert "nhm_sched_decision_latency_seconds_count 4.0" in page


def test_nothing_is_counted_twice() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    tally.note(Noted("NO_ACTION", "fallback", "shadow", 1e-4, 60, "served"))
    tally.settle()
    generate_latest(metrics.registry)
    assert metrics.registry.get_sample_value("nhm_sched_decision_latency_seconds_count") == 1


def test_a_forked_child_leaves_the_parents_notes_to_the_parent() -> None:
    metrics = Metrics()
    tally = Tally(metrics)
    tally.note(Noted("NO_ACTION", "fallback", "shadow", 1e-4, 60, "served"))
    tally.after_fork()
    assert metrics.registry.get_sample_value("nhm_sched_decision_latency_seconds_count") == 0
