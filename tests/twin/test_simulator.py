from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.policy.queueing import erlang_c, wait_exceeds
from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.controllers import StaticController, instructed, obeyed, static_workers
from nhm_sched_plugin.twin.simulator import STARTING, Order, Pool, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import Action, SchedulingState


def poisson(load: float, tickets: int, service_s: float = 100.0, seed: int = 1) -> Trace:
    """M/M arrivals of `load` Erlangs."""
    draw, now, arrivals = random.Random(seed), 0.0, []
    for _ in range(tickets):
        now += draw.expovariate(load / service_s)
        arrivals.append(now)
    return Trace(arrivals, [draw.expovariate(1 / service_s) for _ in range(tickets)])


class Script:
    """Asks for the given number of workers at the given ticks, and notes the states it saw."""

    name, watches_tickets = "script", True

    def __init__(self, targets: dict[int, int]) -> None:
        self.targets, self.states = targets, []
        self.finished: list[tuple[int, float, float]] = []
        self.arrived: list[int] = []

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None:
        self.arrived.append(index)

    def on_finished(self, index: int, wait_s: float, now: float) -> None:
        self.finished.append((index, wait_s, now))

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        self.states.append(state)
        return self.targets.get(len(self.states) - 1)


def pool(trace: Trace, workers: int, startup_s: float = 120.0) -> Pool:
    return Pool(trace, workers=workers, startup_s=startup_s, sla_wait_s=60.0)


@pytest.mark.parametrize(("workers", "load"), [(3, 2.0), (10, 8.0)])
def test_agrees_with_the_closed_form_of_m_m_c(workers: int, load: float) -> None:
    run = simulate(pool(poisson(load, 60_000), workers), StaticController(workers), tick_s=3600)
    waited = sum(wait > 1e-9 for wait in run.waits) / len(run.waits)
    late = sum(wait > 60 for wait in run.waits) / len(run.waits)
    # Waits come in busy periods, so 60,000 tickets carry about 2 % of sampling error.
    assert waited == pytest.approx(erlang_c(workers, load), rel=0.06)
    assert late == pytest.approx(wait_exceeds(workers, load, 0.6), rel=0.1)
    assert statistics.fmean(run.waits) == pytest.approx(erlang_c(workers, load) * 100 / (workers - load), rel=0.1)
    assert run.missed == pytest.approx(late * len(run.waits), abs=2)


def test_a_ticket_waits_for_a_worker_that_starts_up() -> None:
    trace = Trace([10.0], [30.0], start=0.0, end=600.0)
    script = Script({0: 1})
    run = simulate(pool(trace, 0), script, tick_s=60)
    assert run.waits.tolist() == [110.0], "ordered at 0, ready at 120"
    assert script.finished == [(0, 110.0, 150.0)]
    assert script.arrived == [0]
    assert (run.met, run.missed, run.finished, run.changes) == (0, 1, 1, 1)
    assert run.worker_seconds == 600.0, "paid from the order"
    seen = [(s.queue_depth, s.active_workers, s.features[STARTING]) for s in script.states[:4]]
    assert seen == [(0, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 0)]
    assert script.states[2].resource_cpu_avg == 1.0
    assert script.states[3].resource_cpu_avg == 0.0
    assert script.states[3].avg_task_duration_ms == 30_000


def test_removed_workers_finish_their_ticket_and_cost_until_then() -> None:
    trace = Trace([0.0, 0.0], [100.0, 500.0], start=0.0, end=600.0)
    run = simulate(pool(trace, 2), Script({1: 0}), tick_s=60)
    assert run.finished == 2
    assert run.worker_seconds == 600.0, "100 + 500"
    kept = simulate(pool(trace, 2), Script({1: 0, 2: 1}), tick_s=60)
    assert kept.worker_seconds == 700.0, "one stays after all, without a new start-up: 100 + 600"


def test_removing_cancels_orders_first_then_idle_workers() -> None:
    trace = Trace([0.0], [1000.0], start=0.0, end=600.0)
    run = simulate(pool(trace, 3), Script({0: 5, 1: 4, 2: 1}), tick_s=60)
    # 3 all along until 120, then 1; of the two ordered at 0 one is cancelled at 60, one at 120 as it gets ready.
    assert run.worker_seconds == 3 * 120 + 480 + 60 + 120


def test_never_started_tickets_count_once_they_are_late() -> None:
    trace = Trace([0.0, 500.0, 590.0], [1e6, 5.0, 5.0], start=0.0, end=600.0)
    run = simulate(pool(trace, 1), StaticController(1), tick_s=60)
    assert (run.met, run.missed) == (1, 1), "the last one still had time"
    assert run.waits.tolist() == [0.0, 100.0, 10.0]


def test_sla_window_counts_what_waits_too_long() -> None:
    trace = Trace([0.0, 30.0, 40.0], [1e6, 5.0, 5.0], start=0.0, end=300.0)
    script = Script({})
    simulate(pool(trace, 1), script, tick_s=60)
    assert [s.sla_compliance_rate for s in script.states[:3]] == [None, 1.0, pytest.approx(1 / 3)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 3000), st.floats(0.5, 2000)), max_size=40),
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.sampled_from([0.0, 45.0, 120.0, 600.0]),
)
def test_books_balance_whatever_is_asked(
    tickets: list[tuple[float, float]], targets: list[int], startup_s: float
) -> None:
    trace = Trace([a for a, _ in tickets], [d for _, d in tickets], start=0.0, end=3600.0)
    at = pool(trace, 2, startup_s)
    script = Script(dict(enumerate(targets)))
    run = simulate(at, script, tick_s=60)
    started = len([wait for wait in run.waits if wait >= 0]) - len(at.queue)
    assert started == at.started == run.finished + len(at.running)
    assert len(script.finished) == run.finished
    assert min(at.idle, at.draining, at.active) >= 0
    assert not (at.queue and at.idle), "nobody waits beside an idle worker"
    work = sum(
        min(trace.durations[i], 3600 - trace.arrivals[i] - run.waits[i]) for i in range(len(trace)) if i not in at.queue
    )
    assert work - 1e-6 <= run.worker_seconds <= 3600 * 12 + 1e-6
    assert sum(hour.workers for hour in run.hours) * 3600 == pytest.approx(run.worker_seconds)
    assert sum(hour.arrivals for hour in run.hours) == len(trace)
    assert [hour.start for hour in run.hours] == [3600.0 * n for n in range(len(run.hours))]


def test_static_pool_is_the_smallest_that_is_enough() -> None:
    trace = poisson(8.0, 5000)
    workers = static_workers(trace, sla_wait_s=60.0)

    def share(count: int) -> float:
        run = simulate(pool(trace, count), StaticController(count), tick_s=3600)
        return run.met / (run.met + run.missed)

    assert share(workers) >= 0.95 > share(workers - 1)


def test_a_static_pool_is_judged_by_each_class_s_own_wait() -> None:
    """Who may wait for an hour needs fewer workers."""
    trace = poisson(8.0, 5000)
    patient = (TicketClass("patient", sla_wait_s=3600.0),)
    assert static_workers(trace, sla_wait_s=60.0, classes=patient) < static_workers(trace, sla_wait_s=60.0)


def test_adding_never_cancels_what_starts_up() -> None:
    state = SchedulingState(active_workers=5, features={STARTING: 4.0})
    assert obeyed(Action.INCREASE_WORKER_POOL, {"target_workers": 7}, state) == 9
    assert obeyed(Action.PREEMPTIVE_SCALING, {"target_workers": 12}, state) == 12
    assert obeyed(Action.DECREASE_WORKER_POOL, {"target_workers": 3}, state) == 3
    assert obeyed(Action.NO_ACTION, {}, state) is None
    assert obeyed(Action.INCREASE_WORKER_POOL, {}, state) is None
    weights = {"critical": 4.0, "low": 0.5}
    assert instructed(Action.ADJUST_PRIORITY_WEIGHTS, weights, state) == Order(None, weights)
    assert instructed(Action.DECREASE_WORKER_POOL, {"target_workers": 3}, state) == 3


def test_states_count_the_arrivals_of_the_last_minutes() -> None:
    trace = Trace([10.0, 100.0, 350.0, 400.0, 401.0], [500.0] * 5, start=0.0, end=4000.0)
    seen: dict[float, tuple[float, ...]] = {}

    class Watching(StaticController):
        def on_tick(self, state: SchedulingState, now: float) -> int | None:
            seen[now] = tuple(state.features[name] for name in ARRIVED)
            return None

    simulate(Pool(trace, workers=2, startup_s=0.0, sla_wait_s=60.0), Watching(2), tick_s=50.0)
    assert list(ARRIVED) == [
        *("arrivals_15s", "arrivals_60s", "arrivals_120s", "arrivals_300s", "arrivals_900s", "arrivals_last_hour")
    ]
    assert seen[400.0] == (0.0, 1.0, 1.0, 1.0, 3.0, 3.0), (
        "100 is just out of the five minutes; a tick comes before an arrival at its moment"
    )
    assert seen[450.0] == (0.0, 2.0, 3.0, 3.0, 5.0, 5.0)
    assert seen[0.0] == (0.0,) * 6
    assert seen[950.0] == (0.0, 0.0, 0.0, 0.0, 4.0, 5.0), "waiting tickets count too; the one of second 10 is out"
    assert seen[3950.0] == (0.0, 0.0, 0.0, 0.0, 0.0, 2.0), "that of second 350 is an hour old"


@settings(max_examples=50, deadline=None)
@given(
    arrivals=st.lists(st.integers(-50, 5000).map(float), max_size=40),
    looks=st.lists(st.integers(0, 5200).map(float), min_size=1, max_size=12),
    capacity=st.sampled_from([None, 1]),
)
def test_however_often_somebody_looks_arrivals_are_counted_right(
    arrivals: list[float], looks: list[float], capacity: int | None
) -> None:
    trace = Trace(arrivals, [70.0] * len(arrivals), start=0.0, end=5200.0)
    watched = Pool(trace, workers=1, startup_s=0.0, sla_wait_s=60.0, capacity=capacity)
    for now in sorted(looks):
        watched.advance(now)
        features = watched.state().features
        for name, span in ARRIVED.items():
            expected = sum(now - span < arrival < now for arrival in arrivals)  # one at `now` itself is still to come
            assert features[name] == expected, (name, now)
