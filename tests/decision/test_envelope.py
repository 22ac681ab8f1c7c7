"""The safety envelope that no policy can leave, driven through a real host at full rollout.

A hook that is sure of itself proposes anything at all, in any state, at any time. Whoever decides in the end, what is
handed to the orchestrator keeps to the limits; and the twin, which obeys, lets every worker finish its ticket.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nhm_sched_plugin import Action, Decision, Recommendation, SchedulerHost, SchedulingState, Ticket
from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.settings import LimitSettings
from nhm_sched_plugin.twin import engine
from nhm_sched_plugin.twin.controllers import Clock, PluginController, obeyed
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import STATE_FIELDS, Source

TICKET = Ticket(ticket_id="t", task_type="processing", risk_band="medium")
MEASURED = [name for name in STATE_FIELDS if not name.startswith("predicted")]
BY_RULES = {Source.FALLBACK, Source.DEFAULT}
UNUSABLE = (None, math.nan, math.inf, -3.0, "12", 10**400)

LIMITS = st.builds(
    lambda least, more, step, cooldown: LimitSettings(
        min_workers=least, max_workers=least + more, max_step=step, cooldown_s=cooldown
    ),
    st.integers(1, 20),
    st.integers(0, 60),
    st.none() | st.integers(1, 12),
    st.sampled_from([0.0, 60.0, 300.0]),
)
WILD = [0, -1, 90, 10**9, 2**63, -(2**63) - 1, 10**400, -(10**400), 3.0, math.nan, True, "5", "many", None, [4], b"4"]
ACTIONS = [*Action, *3 * [Action.DECREASE_WORKER_POOL], "DECREASE_WORKER_POOL", "FIRE_EVERYBODY", None]


def any_state(draw: random.Random, limits: LimitSettings) -> dict[str, Any]:
    """Mostly what a host would say, now and then nothing or nonsense."""
    kind = draw.random()
    if kind < 0.05:
        return {}
    odd = UNUSABLE if kind < 0.3 else ()
    inside = draw.randint(limits.min_workers, limits.max_workers)
    return {
        "active_workers": draw.choice([inside, inside, draw.randint(1, 80), draw.uniform(0, 90), *odd]),
        "queue_depth": draw.choice([0, 0, 0, 0.4, 1, 500, None, *odd]),
        "resource_cpu_avg": draw.choice([0.0, 0.3, 1.0, None, *odd]),
        "avg_task_duration_ms": draw.choice([60_000.0, None]),
    }


def any_target(draw: random.Random, active: Any) -> Any:
    near = int(active) if type(active) in (int, float) and 0 < active < 1e9 else 10
    return draw.choice(WILD) if draw.random() < 0.15 else near + draw.randint(-14, 14)


def host_of(kit: Any, folder: Path, limits: LimitSettings, hook: Callable[..., Any], clock: Clock) -> SchedulerHost:
    """At full rollout and asked at any load; the hook is asked before the built-in policy."""
    config = {
        "data_dir": str(folder),
        "limits": limits.model_dump(),
        "rollout": {"percentage": 100},
        "optimizer": {"forecast_volume_threshold": 0, "decision_budget_ms": 5000},
        "recording": {"enabled": False},
        "metrics": {"enabled": False},
    }
    plugins = {"parts": kit.Parts(kit.FixedForecaster(), kit.FixedPolicy()), "hostile": kit.plugin(recommend=hook)}
    return SchedulerHost.from_config(config, plugins=plugins, clock=clock)


def check(decision: Decision, limits: LimitSettings, now: float, changed_at: float | None) -> str:
    """The envelope. What became of it, in a word."""
    state = decision.state
    if all(getattr(state, name) is None for name in MEASURED):
        assert decision.source in BY_RULES
        assert decision.action not in POOL_ACTIONS
        return "blind"
    if decision.action not in POOL_ACTIONS:
        return "kept"
    active, target = state.active_workers, decision.parameters["target_workers"]
    assert active is not None
    assert type(target) is int
    if limits.min_workers <= active <= limits.max_workers:
        assert limits.min_workers <= target <= limits.max_workers
    else:
        assert min(active, limits.min_workers) <= target <= max(active, limits.max_workers), "never further out"
    if limits.max_step is not None:
        assert abs(target - active) <= limits.max_step
    if target >= active:
        return "grown"
    assert decision.action is Action.DECREASE_WORKER_POOL
    assert state.queue_depth is not None or state.resource_cpu_avg is not None, "not on a forecast alone"
    assert state.queue_depth is None or state.queue_depth < 1, "not while a ticket waits"
    assert changed_at is None or abs(now - changed_at) >= limits.cooldown_s
    return "shrunk"


def test_no_policy_leaves_the_envelope(kit: Any, tmp_path: Path) -> None:
    came_of: Counter[tuple[str, Source]] = Counter()

    # Each example starts a host, so one that fails is shown as it is: making it smaller would take minutes.
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(limits=LIMITS, seed=st.integers(0, 2**32))
    def holds(limits: LimitSettings, seed: int) -> None:
        draw = random.Random(seed)
        clock, changed_at, answer = Clock(1e9), None, None
        with host_of(kit, tmp_path, limits, lambda ticket, state, forecast: answer, clock) as host:
            for _ in range(40):
                clock.now += draw.choice([0.0, 1.0, 30.0, 59.0, 61.0, 400.0, -10.0, -5000.0])
                given_state, applied = any_state(draw, limits), draw.random() < 0.7
                parameters = {"target_workers": any_target(draw, given_state.get("active_workers"))}
                answer = Recommendation(action=draw.choice(ACTIONS), parameters=parameters, confidence=1.0)
                decision = host.decide(draw.choice([TICKET, None]), SchedulingState(**given_state))
                came_of[check(decision, limits, clock.now, changed_at), decision.source] += 1
                host.applied(decision, applied=applied)
                if applied and decision.action in POOL_ACTIONS:
                    changed_at = clock.now

    holds()
    followed = {what: count for (what, source), count in came_of.items() if source is Source.CUSTOM}
    assert min(followed.get(what, 0) for what in ("kept", "grown", "shrunk")) > 20, (
        f"too tame to prove anything: {came_of}"
    )


@pytest.mark.parametrize("answer", ["grow", 7, {"action": "DECREASE_WORKER_POOL"}, Action.NO_ACTION, [GeneratorExit]])
def test_what_is_no_recommendation_is_none(kit: Any, tmp_path: Path, answer: Any) -> None:
    clock, limits = Clock(0.0), LimitSettings()
    with host_of(kit, tmp_path, limits, lambda ticket, state, forecast: answer, clock) as host:
        decision = host.decide(None, kit.BUSY)
    assert decision.source in BY_RULES
    assert decision.recommendation is None


def test_a_recommendation_that_changes_when_looked_at_twice(kit: Any, tmp_path: Path) -> None:
    """A subclass may compute its fields: the guards would see one target and the orchestrator another."""
    looks: list[int] = []

    class TwoFaced(Recommendation, frozen=True, kw_only=True):
        @property
        def parameters(self) -> dict[str, int]:  # type: ignore[override]
            looks.append(len(looks))
            return {"target_workers": 8 if len(looks) == 1 else 0}

    two_faced = TwoFaced(action=Action.DECREASE_WORKER_POOL, confidence=1.0)
    with host_of(kit, tmp_path, LimitSettings(), lambda ticket, state, forecast: two_faced, Clock(0.0)) as host:
        decision = host.decide(None, SchedulingState(active_workers=10, queue_depth=0, resource_cpu_avg=0.1))
    assert not (decision.action is Action.DECREASE_WORKER_POOL and decision.parameters["target_workers"] < 1)
    assert looks == []


def test_an_exploration_that_was_refused_is_not_taken(kit: Any) -> None:
    class Stubborn(kit.FixedPolicy):  # type: ignore[misc, name-defined]
        def explore(self, ticket: Any, state: Any, forecast: Any, admissible: Any) -> Any:
            self.offered.append(admissible(self.other))
            return self.other

    nobody = Recommendation(action=Action.DECREASE_WORKER_POOL, parameters={"target_workers": 0}, confidence=1.0)
    policy = Stubborn(other=nobody)
    decision = kit.start(policy=policy).decide(kit.TICKET, kit.BUSY)
    assert policy.offered == [False]
    assert (decision.action, decision.parameters) == (Action.INCREASE_WORKER_POOL, {"target_workers": 12})


@pytest.mark.parametrize("target", [2**63, -(2**64), 10**5000], ids=["64 bits", "65 bits", "unprintable"])
def test_numbers_that_records_cannot_hold_are_garbage(kit: Any, target: int) -> None:
    """Neither the decision nor its record is lost over them."""
    huge = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": target}, confidence=1.0)
    host = kit.start(plugins={"hostile": kit.plugin(recommend=lambda ticket: huge)})
    decision = host.decide(None, kit.BUSY)
    assert decision.source in BY_RULES
    assert decision.recommendation is None
    assert kit.counted(host, "nhm_sched_hook_errors_total", hook="nhm_sched_recommend", plugin="hostile") == 1
    kit.wait_for(lambda: kit.spooled(host))


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_under_a_hostile_policy_stays_inside(kit: Any, tmp_path: Path, seed: int) -> None:
    """The twin obeys every decision, so that states follow from what was decided before."""
    draw, limits = random.Random(seed), LimitSettings(min_workers=3, max_workers=14, max_step=4, cooldown_s=45)
    arrivals = [draw.uniform(0, 3600) for _ in range(250)]
    trace = Trace(arrivals, [draw.expovariate(1 / 90) for _ in arrivals], start=0.0, end=3600.0)
    pool, clock = Pool(trace, workers=6, startup_s=40.0, sla_wait_s=60.0), Clock(0.0)
    sizes: list[int] = []

    def hostile(ticket: Any, state: Any, forecast: Any) -> Recommendation:
        target = draw.choice([0, 1, 10**6, draw.randint(0, 30), pool.active + draw.randint(-5, 5)])
        return Recommendation(
            action=draw.choice(sorted(POOL_ACTIONS)), parameters={"target_workers": target}, confidence=1.0
        )

    class Watched(PluginController):
        def on_tick(self, state: SchedulingState, now: float) -> Any:
            assert limits.min_workers <= pool.ordered <= limits.max_workers
            sizes.append(pool.ordered)
            return super().on_tick(state, now)

    with host_of(kit, tmp_path, limits, hostile, clock) as host:
        controller = Watched(host, trace, clock=clock, lead_s=55.0, sla_wait_s=60.0)
        run = simulate(pool, controller, tick_s=15.0)
    assert len(set(sizes)) > 3, "it did move the pool"
    assert any(source == "custom" and action in POOL_ACTIONS for source, action, *_ in controller.decisions)
    assert run.ticks == len(sizes) == 240


END = 300
TICKETS = st.lists(st.tuples(st.integers(0, END - 1), st.integers(1, 200)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    tickets=TICKETS,
    orders=st.dictionaries(st.integers(0, END - 1), st.integers(0, 12), max_size=30),
    startup_s=st.sampled_from([0.0, 7.0, 60.0]),
)
def test_removed_workers_finish_their_ticket_first(
    tickets: list[tuple[int, int]], orders: dict[int, int], startup_s: float
) -> None:
    """Random removals interrupt nobody, and every second of every worker is paid for. All times are whole seconds."""
    trace = Trace([float(at) for at, _ in tickets], [float(took) for _, took in tickets], start=0.0, end=float(END))
    pool = Pool(trace, workers=8, startup_s=startup_s, sla_wait_s=60.0)
    ended: dict[int, float] = {}
    paid = worked = 0

    def run_to(second: float) -> None:
        while (event := pool.advance(second, watch=True)) != engine.REACHED:
            if event == engine.FINISH:
                ended[pool.ticket] = pool.now

    for second in range(END):
        run_to(second)
        if second in orders:
            running, state = pool.running, pool.state()
            target = obeyed(Action.DECREASE_WORKER_POOL, {"target_workers": orders[second]}, state)
            pool.scale_to(target if target is not None else pool.ordered)
            assert pool.running == running, "an order takes no ticket off a worker"
        run_to(second + 0.5)  # tickets that arrive now have started
        paid += pool.idle + pool.busy + pool.starting
        worked += pool.busy
    run_to(END)
    for ticket, (begun, took) in enumerate(zip(pool.sim.started.tolist(), trace.durations.tolist(), strict=True)):
        if begun + took < END:  # not for NaN, of one that never started
            assert ended.pop(ticket) == begun + took
        worked -= 0 if math.isnan(begun) else min(begun + took, END) - begun
    assert ended == {}
    assert worked == 0
    assert pool.worker_seconds == paid
