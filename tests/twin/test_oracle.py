from __future__ import annotations

import itertools
import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.twin.controllers import StaticController
from nhm_sched_plugin.twin.oracle import oracle
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace


def cheapest(trace: Trace, startup_s: float) -> float:
    """By trying every assignment of workers that became free to later arrivals."""
    arrivals, count = [float(arrival) for arrival in trace.arrivals], len(trace)
    ends = [arrival + float(duration) for arrival, duration in zip(trace.arrivals, trace.durations, strict=True)]
    best = math.inf
    for chosen in itertools.product([None, *range(count)], repeat=count):
        used = [end for end in chosen if end is not None]
        if len(set(used)) < len(used):
            continue
        gaps = [arrival - ends[end] for arrival, end in zip(arrivals, chosen, strict=True) if end is not None]
        if all(gap >= 0 for gap in gaps):
            best = min(best, sum(gaps) + startup_s * (count - len(gaps)))
    return best + sum(min(end, trace.end) - arrival for arrival, end in zip(arrivals, ends, strict=True))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=5),
    st.integers(0, 15),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_cheaper(tickets: list[tuple[int, int]], startup_s: int) -> None:
    trace = Trace([float(at) for at, _ in tickets], [float(took) for _, took in tickets], start=0.0, end=60.0)
    found = oracle(trace, startup_s)
    assert found.worker_seconds == pytest.approx(cheapest(trace, startup_s))
    assert found.worker_seconds == pytest.approx(found.busy_seconds + found.idle_seconds + found.boots * startup_s)


def test_by_hand() -> None:
    # One worker waits 5 s for the second ticket; the third comes too late and gets a new one.
    trace = Trace([100.0, 115.0, 200.0], [10.0, 10.0, 50.0], start=0.0, end=3600.0)
    found = oracle(trace, 20.0)
    assert (found.boots, found.idle_seconds, found.busy_seconds) == (2, 5.0, 70.0)
    assert found.worker_seconds == 115.0
    assert found.finished == 3
    assert found.workers == [pytest.approx(115 / 3600)]
    assert oracle(trace, 1000.0).boots == 1, "an hour's wait is worth it"
    assert oracle(trace, 0.0).worker_seconds == 70.0, "workers that start at once are paid for their work alone"


def test_time_outside_the_trace() -> None:
    found = oracle(Trace([5.0, 3590.0, 7000.0], [10.0, 20.0, 1000.0], start=0.0, end=7200.0), 60.0)
    assert found.busy_seconds == 10 + 20 + 200, "what is done after the end is not paid for, as in every run"
    assert found.finished == 2
    assert found.worker_seconds == 230 + 3 * 60
    assert sum(found.workers) * 3600 == pytest.approx(found.worker_seconds - 55), "the first boot began before"
    nothing = oracle(Trace([], [], start=0.0, end=7200.0), 60.0)
    assert (nothing.worker_seconds, nothing.boots, nothing.workers) == (0.0, 0, [0.0, 0.0])
    with pytest.raises(ValueError, match="startup_s is -1"):
        oracle(Trace([1.0], [1.0]), -1.0)


def test_no_fixed_pool_that_serves_at_once_is_cheaper_and_it_is_quick() -> None:
    draw, now, arrivals = random.Random(3), 0.0, []
    for _ in range(300_000):
        now += draw.expovariate(0.5)
        arrivals.append(now)
    trace = Trace(arrivals, [draw.expovariate(1 / 100) for _ in arrivals], start=0.0, end=now + 1)
    oracle(trace.slice(0.0, 3600.0), 120.0)  # what is imported on first use does not count
    began = time.process_time()
    found = oracle(trace, 120.0)
    assert time.process_time() - began < 1.0
    small = trace.slice(0.0, 20 * 3600.0)
    run = simulate(Pool(small, workers=90, startup_s=120.0, sla_wait_s=60.0), StaticController(90), tick_s=3600.0)
    assert max(run.waits) == 0.0
    assert oracle(small, 120.0).worker_seconds < run.worker_seconds
    assert found.worker_seconds > trace.load * (trace.end - trace.start) * 0.99
