"""The simulator against closed forms: what queueing theory says exactly, on long random traces."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nhm_sched_plugin.policy.queueing import erlang_c, wait_exceeds
from nhm_sched_plugin.twin import layout
from nhm_sched_plugin.twin.labels import Labels
from nhm_sched_plugin.twin.simulator import Pool, TicketClass
from nhm_sched_plugin.twin.traces import Trace

SERVICE_S = 100.0


def poisson(load: float, tickets: int, seed: int = 1, share: float = 0.0, service_s: float = SERVICE_S) -> Trace:
    """M/M arrivals of `load` Erlangs, `share` of them in the risk band "high", the others "low"."""
    draw = np.random.default_rng(seed)
    bands = Labels((draw.random(tickets) < share).astype(np.int32), ("low", "high"))
    arrivals = np.cumsum(draw.exponential(service_s / load, tickets))
    return Trace(arrivals, draw.exponential(service_s, tickets), risk_bands=bands, start=0.0)


def ran(trace: Trace, workers: int, **options: object) -> Pool:
    pool = Pool(trace, workers=workers, startup_s=0.0, sla_wait_s=60.0, **options)  # type: ignore[arg-type]
    pool.advance(trace.end)
    return pool


def agrees(sample: np.ndarray, expected: float, batches: int = 40) -> None:
    """Within four standard errors, taken from the means of long stretches: neighbouring waits are alike."""
    means = sample.reshape(batches, -1).mean(axis=1)
    error = means.std(ddof=1) / math.sqrt(batches)
    assert abs(means.mean() - expected) < 4 * error + 1e-12
    assert error < 0.15 * expected + 1e-4, "the sample says something"


@pytest.mark.parametrize(("workers", "load"), [(1, 0.7), (4, 3.0), (30, 26.0)])
def test_m_m_c(workers: int, load: float) -> None:
    """Erlang (1917): P(wait), its mean, and its distribution."""
    trace = poisson(load, 400_000)
    pool = ran(trace, workers)
    waited = erlang_c(workers, load)
    agrees(pool.waits > 1e-9, waited)
    agrees(pool.waits, waited * SERVICE_S / (workers - load))
    for over in (30.0, 60.0, 150.0):
        expected = wait_exceeds(workers, load, over / SERVICE_S)
        if expected > 0.005:  # rarer ones say nothing
            agrees(pool.waits > over, expected)
    assert pool.sim.t[layout.BUSY_S] / trace.end == pytest.approx(load, rel=0.01)


@pytest.mark.parametrize(("workers", "load", "capacity"), [(3, 2.5, 6), (5, 8.0, 5), (1, 0.9, 10)])
def test_m_m_c_k(workers: int, load: float, capacity: int) -> None:
    """Stationary probabilities of the birth-death process: p(n) ~ load^n / (n! or c! c^(n-c))."""
    trace = poisson(load, 300_000)
    pool = ran(trace, workers, capacity=capacity)
    odds = [1.0]
    for number in range(1, capacity + 1):
        odds.append(odds[-1] * load / min(number, workers))
    chances = [chance / sum(odds) for chance in odds]
    inside = sum(number * chance for number, chance in enumerate(chances))
    assert pool.turned_away / len(trace) == pytest.approx(chances[-1], rel=0.03)
    t = pool.sim.t
    assert (t[layout.QUEUE_S] + t[layout.BUSY_S]) / trace.end == pytest.approx(inside, rel=0.02)
    # Little's law for those who were let in.
    entered = (len(trace) - pool.turned_away) / trace.end
    busy = inside - sum((number - workers) * chance for number, chance in enumerate(chances) if number > workers)
    assert entered * SERVICE_S == pytest.approx(busy, rel=0.02)
    assert np.isnan(pool.waits).sum() == pool.turned_away


@pytest.mark.parametrize("weight", [1.0, 2.0, 8.0])
def test_accumulating_priorities(weight: float) -> None:
    """Kleinrock (1964), M/M/1 with two classes of weights 1 and w, r = 1 - 1/w: with W = W0 / (1 - rho),
    W_low = W / (1 - rho_high r) and W_high = W - rho_low W_low r."""
    rho, share = 0.8, 0.3
    pool = ran(
        poisson(rho, 700_000, share=share),
        1,
        classes=(TicketClass("risky", weight=weight, risk_band="high"), TicketClass("other")),
    )
    fifo = rho * SERVICE_S / (1 - rho)
    ratio = 1 - 1 / weight
    low = fifo / (1 - share * rho * ratio)
    high = fifo - (1 - share) * rho * low * ratio
    for kind, expected in ((0, high), (1, low)):
        waits = pool.waits[pool.sim.classes == kind]
        agrees(waits[: len(waits) // 40 * 40], expected)


def test_a_low_priority_waits_longer_under_overload_but_does_not_starve() -> None:
    classes = (TicketClass("risky", weight=8.0, risk_band="high"), TicketClass("other"))
    trace = poisson(6.0, 40_000, share=0.5)
    pool = ran(trace, 5, classes=classes)
    started = np.isfinite(pool.sim.started)
    high, low = (np.flatnonzero(started & (pool.sim.classes == kind)) for kind in (0, 1))
    assert pool.waits[low].max() > 2 * pool.waits[high].max()
    last = trace.end / 2  # the backlog grows for ever; still low tickets start all the time
    gaps = np.diff(np.sort(pool.sim.started[low][pool.sim.started[low] > last]))
    assert len(gaps) > 1000
    assert gaps.max() < 5000


def test_equal_weights_are_first_come_first_served() -> None:
    trace = poisson(4.5, 20_000, share=0.4)
    classes = (TicketClass("risky", risk_band="high"), TicketClass("other"))
    assert ran(trace, 5, classes=classes).waits.tolist() == ran(trace, 5).waits.tolist()


def test_littles_law_holds_on_every_path() -> None:
    """The integral of the queue is the sum of the waits, and that of the running tickets the sum of their work."""
    pool = ran(poisson(4.5, 50_000), 5)
    assert pool.sim.t[layout.QUEUE_S] == pytest.approx(pool.waits.sum(), rel=1e-9)
    ends = np.minimum(pool.sim.started + pool.sim.durations, pool.trace.end)
    assert pool.sim.t[layout.BUSY_S] == pytest.approx(np.nansum(ends - pool.sim.started), rel=1e-9)


def test_failing_workers_start_tickets_anew() -> None:
    """With failures at rate f, a ticket of length d holds workers for (exp(f d) - 1) / f on average."""
    mtbf_s, duration_s = 400.0, 200.0
    trace = Trace(np.zeros(30_000), np.full(30_000, duration_s), start=0.0, end=3e6)
    pool = Pool(trace, workers=10, startup_s=0.0, sla_wait_s=60.0, mtbf_s=mtbf_s, seed=3)
    now = 0.0
    while pool.finished < len(trace):
        pool.advance(now := now + 25.0)
        pool.scale_to(10)
    held = mtbf_s * math.expm1(duration_s / mtbf_s)
    assert pool.started == len(trace), "each started once in the books, however often it ran"
    assert pool.sim.t[layout.BUSY_S] / len(trace) == pytest.approx(held, rel=0.02)
    assert pool.failures == pytest.approx(pool.worker_seconds / mtbf_s, rel=0.03)


def test_start_up_times_spread_around_their_mean() -> None:
    pool = Pool(Trace([], [], start=0.0, end=1e6), workers=0, startup_s=120.0, sla_wait_s=60.0, startup_cv=0.5)
    pool.scale_to(20_000)
    ready = pool.sim.ready[: pool.sim.n[layout.ORDERS]]
    assert len(ready) == pool.starting == 20_000
    assert ready.mean() == pytest.approx(120.0, rel=0.02)
    assert ready.std() / ready.mean() == pytest.approx(0.5, rel=0.05)
    assert np.log(ready).std() == pytest.approx(math.sqrt(math.log(1.25)), rel=0.02), "lognormal"
    pool.advance(np.median(ready))
    assert pool.idle == pytest.approx(10_000, abs=1)
