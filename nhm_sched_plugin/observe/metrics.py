"""Every metric, once: the table below is what `/metrics` shows and what docs/metrics.md lists.

A name stands here only if something sets it. Labels are of low cardinality: never a ticket or a decision id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

__all__ = ["METRICS", "Metric", "Metrics"]


class Metric(NamedTuple):
    attribute: str
    kind: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] | None = None


_LATENCY_S = (10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 1e-3, 5e-3, 25e-3, 50e-3, 100e-3, 500e-3)
_RPC_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0, 10.0)

METRICS: Final = (
    # What was forecast.
    Metric("predictions", Counter, "optimizer_load_predictions_total", ("horizon", "task_type", "status"), "Forecasts served"),
    Metric("mape", Gauge, "optimizer_load_forecast_accuracy_mape", ("horizon", "task_type"), "Backtest MAPE of the served model, percent"),
    Metric("volume", Gauge, "optimizer_load_forecast_volume", ("horizon", "task_type"), "Tickets expected in the hour at the horizon"),
    Metric("demand", Gauge, "optimizer_resource_demand_forecast", ("resource", "task_type"), "CPU cores or memory GiB expected in the hour at the horizon"),
    Metric("bottleneck", Gauge, "optimizer_load_bottleneck_predicted", ("severity", "task_type", "horizon"), "1 while a bottleneck of that severity is predicted"),
    Metric("saturation", Gauge, "optimizer_resource_saturation_forecast", ("horizon", "resource"), "Load in the hour at the horizon over what there is; from 1 on it does not fit"),
    Metric("live_factor", Gauge, "nhm_sched_live_factor", ("slice",), "What the tickets of the last hours do to the forecast of the next hour; 1: nothing"),
    Metric("live_mape", Gauge, "nhm_sched_live_mape", ("slice",), "MAPE of the forecast table on the last 24 completed hours, percent"),
    Metric("drift", Gauge, "nhm_sched_model_drift", ("slice",), "Drift statistic over its limit; at 1 a retrain is asked for"),
    # What was decided.
    Metric("decisions", Counter, "nhm_sched_decisions_total", ("action", "source", "arm"), "Decisions handed to the host"),
    Metric("optimizations", Counter, "optimizer_scheduling_optimizations_applied_total", ("action", "status"), "Recommendations: accepted, rejected or shadow"),
    Metric("latency", Histogram, "nhm_sched_decision_latency_seconds", (), "Time in decide()", _LATENCY_S),
    Metric("unavailable", Counter, "optimizer_unavailable_total", ("reason",), "Decisions made without the optimizer, by cause"),
    Metric("rollout", Gauge, "nhm_sched_rollout_percentage", (), "Share of units that follow the policy; 0 is shadow mode"),
    # What came of it.
    Metric("average_reward", Gauge, "optimizer_scheduling_policy_average_reward", (), "Share of the reward's gap between rules and a clairvoyant oracle that the policy closed on days held out from pre-training"),
    Metric("raw_reward", Gauge, "optimizer_scheduling_policy_raw_reward", (), "Mean reward of the last 1000 outcomes"),
    Metric("sla_before", Gauge, "optimizer_sla_compliance_before_optimization", (), "Mean SLA compliance at decision time, last 1000 outcomes of the treatment arm"),
    Metric("sla_after", Gauge, "optimizer_sla_compliance_after_optimization", (), "Mean SLA compliance at outcome time, last 1000 outcomes of the treatment arm"),
    # What was learned and loaded.
    Metric("q_table_size", Gauge, "optimizer_q_table_size", (), "States in the Q-table"),
    Metric("epsilon", Gauge, "optimizer_epsilon_value", (), "Exploration rate"),
    Metric("model_loads", Counter, "optimizer_ml_model_loads_total", ("status",), "Snapshots loaded"),
    Metric("training_samples", Gauge, "optimizer_ml_training_samples_count", ("model_type",), "Hours the served model was trained on"),
    Metric("last_training", Gauge, "optimizer_ml_model_last_training_timestamp", ("model_type",), "When the served model was trained, Unix seconds"),
    # What was cached.
    Metric("cache_requests", Counter, "optimizer_cache_requests_total", ("cache_type",), "Questions to a cache: model, forecast or q_table"),
    Metric("cache_hits", Counter, "optimizer_cache_hits_total", ("cache_type",), "Those that it had an answer to"),
    Metric("cache_failures", Counter, "nhm_sched_cache_failures_total", ("reason",), "Failures of Redis, by reason; values that nobody can use"),
    # What an agent was asked.
    Metric("rpc_started", Counter, "grpc_server_started_total", ("grpc_type", "grpc_service", "grpc_method"), "Calls begun"),
    Metric("rpc_handled", Counter, "grpc_server_handled_total", ("grpc_type", "grpc_service", "grpc_method", "grpc_code"), "Calls ended, by code (`OK`, `InvalidArgument`, ...)"),
    Metric("rpc_seconds", Histogram, "grpc_server_handling_seconds", ("grpc_type", "grpc_service", "grpc_method"), "Time in the agent, for unary calls from the whole request to the answer", _RPC_S),
    Metric("advised", Counter, "nhm_sched_agent_recommendations_total", ("action", "source"), "Recommendations of an agent, by who chose: policy or rules"),
    # What an agent was asked by this host.
    Metric("agent_calls", Counter, "grpc_client_handled_total", ("grpc_type", "grpc_service", "grpc_method", "grpc_code"), "Calls to the optimizer agent, by code (`OK`, `Unavailable`, ...)"),
    Metric("breaker_open", Gauge, "nhm_sched_agent_breaker_open", ("address",), "1 while the agent at that address is not asked: it did not answer"),
    Metric("mirror_age", Gauge, "nhm_sched_mirror_age_seconds", (), "Since the agent last said that this host's copy of its tables is the current one"),
    Metric("mirror_takeovers", Counter, "nhm_sched_mirror_takeovers_total", ("table", "status"), "Tables (policy or forecast) that came from the agent: success or refused"),
    Metric("outbox_waiting", Gauge, "nhm_sched_outbox_waiting", (), "Outcomes on disk that the agent does not have yet"),
    Metric("outcomes_sent", Counter, "nhm_sched_outcomes_sent_total", ("status",), "Outcomes for the agent: delivered, refused by it, unwritable (never sent), or dropped (no room left on disk or in memory)"),
    # What happened to the records, and what broke.
    Metric("records", Counter, "nhm_sched_records_total", ("state",), "Records: queued, spooled, stored or dropped"),
    Metric("drops", Counter, "nhm_sched_records_dropped_total", ("cause",), "Records dropped, by cause: queue_full, spool_full, disk, sink, closed, shutdown or background"),
    Metric("spool_waiting", Gauge, "nhm_sched_spool_records", (), "Records that wait in the spool for delivery; set by whoever drains"),
    Metric("spool_age", Gauge, "nhm_sched_spool_oldest_seconds", (), "Age of the oldest of them; set by whoever drains"),
    Metric("spool_bytes", Gauge, "nhm_sched_spool_bytes", (), "What the spool takes on disk; set by whoever drains"),
    Metric("quarantined", Gauge, "nhm_sched_spool_quarantined", (), "Records in quarantine; set by whoever drains"),
    Metric("drain_failures", Counter, "nhm_sched_drain_failures_total", ("cause",), "Deliveries that failed and are tried again: unreachable, access, disk, schema, spool or other"),
    Metric("queries", Counter, "optimizer_clickhouse_queries_total", (), "Statements to the database, inserts included; of whoever drains"),
    Metric("query_errors", Counter, "optimizer_clickhouse_query_errors_total", (), "Those that failed"),
    Metric("hook_errors", Counter, "nhm_sched_hook_errors_total", ("hook", "plugin"), "Hooks that raised, overslept or answered garbage"),
    Metric("component_errors", Counter, "nhm_sched_component_errors_total", ("component",), "Failures inside the plugin, by component"),
    Metric("refused", Counter, "nhm_sched_listener_refused_total", ("cause",), "Requests that the /metrics listener refused, by cause"),
)


class Metrics:
    """One set of metrics in a registry of its own, so that several hosts can live in one process.

    Each row of `METRICS` is an attribute; labelled ones are read through `child`, which caches.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._metrics: dict[str, Any] = {}
        self._before = _Before()
        self.registry.register(self._before)  # the first to be asked
        for metric in METRICS:
            options: dict[str, Any] = {"buckets": metric.buckets} if metric.buckets else {}
            self._metrics[metric.attribute] = metric.kind(
                metric.name, metric.help, metric.labels, registry=self.registry, **options
            )

    def before_reading(self, settle: Callable[[], None]) -> None:
        """Have `settle` called before each reading of the registry, for what is counted later than it happens."""
        self._before.tasks.append(settle)

    def child(self, attribute: str, *labels: str) -> Any:
        """The metric of that row with these label values; cached, so cheap on the hot path."""
        key = (attribute, labels)
        found = self._children.get(key)
        if found is None:
            metric = self._metrics[attribute]
            found = self._children[key] = metric.labels(*labels) if labels else metric
        return found


class _Before(Collector):
    """Has no metrics of its own; its turn to be collected is the moment to bring the others up to date."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        for task in self.tasks:
            task()
        return []
