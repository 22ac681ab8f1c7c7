"""The decision flow: every reason code, every threshold, the order of the calls, the budget."""

from __future__ import annotations

import asyncio
import math
import struct
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nhm_sched_plugin import (
    Action,
    Arm,
    Decision,
    ForecastPoint,
    Outcome,
    Reason,
    Recommendation,
    SchedulingState,
    Source,
    Ticket,
    Veto,
)
from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.store.frames import decode, encode

SLACK_S = 1.5
"""What a busy machine may add to a budget; far less than the hooks sleep."""


def as_float32(value: float) -> float:
    """What arrives when a float32 was sent."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


# -- every reason

EXPERIMENT = {"enabled": True, "control_group_pct": 1.0, "treatment_group_pct": 0.0}
REACHED: dict[Reason, dict[str, Any]] = {
    Reason.APPLIED: {},
    Reason.BELOW_VOLUME_THRESHOLD: {"volume": 480.0},
    Reason.CONFIDENCE_BELOW_THRESHOLD: {"confidence": 0.699},
    Reason.VETOED: {"guard": lambda recommendation: Veto(guard="g", reason="no")},
    Reason.SHADOW: {"config": {"rollout": {"percentage": 0}}},
    Reason.NOT_IN_ROLLOUT: {"config": {"rollout": {"percentage": 1}}},
    Reason.CONTROL_GROUP: {"config": {"experiment": EXPERIMENT}},
    Reason.FORECAST_UNAVAILABLE: {"volume": RuntimeError("down")},
    Reason.OPTIMIZER_UNAVAILABLE: {"policy": RuntimeError("down")},
    Reason.BUDGET_EXCEEDED: {
        "config": {"decision_budget_ms": 30},
        "recommend": lambda ticket, state, forecast: time.sleep(0.3),
    },
    Reason.DISABLED: {"config": {"optimizer": {"enabled": False}}},
    Reason.INVALID_STATE: {"state": ["no", "state"]},
    Reason.INTERNAL_ERROR: {"closed": True},
}


def test_there_is_a_way_to_every_reason() -> None:
    assert set(REACHED) == set(Reason)


@pytest.mark.parametrize("reason", list(REACHED), ids=str)
def test_reason(kit: Any, reason: Reason) -> None:
    how = REACHED[reason]
    hooks = {name: how[name] for name in ("guard", "recommend") if name in how}
    answer = how["policy"] if "policy" in how else kit.sure(how.get("confidence", 0.9))
    host = kit.start(
        how.get("config"),
        plugins={"mine": kit.plugin(**hooks)} if hooks else {},
        forecaster=kit.FixedForecaster(how.get("volume", 500.0)),
        policy=kit.FixedPolicy(answer),
    )
    if how.get("closed"):
        host.close()
    decision = host.decide(kit.TICKET, how.get("state", kit.BUSY))
    assert decision.reason is reason
    followed = reason is Reason.APPLIED
    assert (decision.source is Source.POLICY) == followed
    assert decision.propensity == 1.0
    if followed:
        assert decision.parameters == {"target_workers": 12}
    asked = reason in {
        Reason.APPLIED, Reason.CONFIDENCE_BELOW_THRESHOLD, Reason.VETOED, Reason.SHADOW,
        Reason.NOT_IN_ROLLOUT, Reason.CONTROL_GROUP,
    }  # fmt: skip
    assert (decision.recommendation is not None) == asked, "what the policy said is kept, also when not followed"
    assert decision.confidence == (decision.recommendation.confidence if decision.recommendation else None)


def test_the_arms(kit: Any) -> None:
    for config, arm in [
        ({"rollout": {"percentage": 0}}, Arm.SHADOW),
        ({"rollout": {"percentage": 1}}, Arm.CONTROL),
        ({"experiment": EXPERIMENT}, Arm.CONTROL),
        ({}, Arm.TREATMENT),
    ]:
        decision = kit.start(config).decide(kit.TICKET, kit.BUSY)
        assert decision.arm is arm
        assert decision.rollout_percentage == config.get("rollout", {"percentage": 100})["percentage"]


# -- the thresholds of the contract


def test_the_volume_threshold_is_eighty_percent_of_capacity(kit: Any) -> None:
    quiet = msgspec.structs.replace(kit.BUSY, queue_depth=0)
    for volume, asked in [(480.0, False), (480.1, True)]:
        policy = kit.FixedPolicy()
        decision = kit.start(forecaster=kit.FixedForecaster(volume), policy=policy).decide(None, quiet)
        assert (decision.reason is Reason.APPLIED) == asked


@pytest.mark.parametrize(("queue", "asked"), [(10, False), (11, True)])
def test_a_backlog_above_one_worker_round_opens_the_gate(kit: Any, queue: int, asked: bool) -> None:
    state = msgspec.structs.replace(kit.BUSY, queue_depth=queue)
    decision = kit.start(forecaster=kit.FixedForecaster(1.0)).decide(kit.TICKET, state)
    assert (decision.reason is Reason.APPLIED) == asked


def test_a_configured_volume_threshold_wins(kit: Any) -> None:
    host = kit.start({"forecast_volume_threshold": 501})
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.BELOW_VOLUME_THRESHOLD


@pytest.mark.parametrize(
    ("confidence", "followed"),
    [(0.7, True), (as_float32(0.7), True), (0.69999999, True), (0.699999, False), (0.699, False)],
)
def test_the_confidence_gate_rounds_to_six_digits(kit: Any, confidence: float, followed: bool) -> None:
    decision = kit.start(policy=kit.FixedPolicy(kit.sure(confidence))).decide(kit.TICKET, kit.BUSY)
    assert (decision.reason is Reason.APPLIED) == followed
    assert decision.confidence == confidence


def test_a_longer_horizon_does_not_pass_for_the_next_hour(kit: Any) -> None:
    class Rising(kit.FixedForecaster):  # type: ignore[name-defined, misc]
        def forecast(self, *arguments: Any) -> Any:
            flat = super().forecast(*arguments)
            hours = (ForecastPoint(flat.generated_at, 300.0, {}), ForecastPoint(flat.generated_at, 500.0, {}))
            return msgspec.structs.replace(flat, points=hours)

    decision = kit.start({"forecast_horizon_minutes": 120}, forecaster=Rising(500.0)).decide(kit.TICKET, kit.BUSY)
    assert decision.forecast.predicted_volume == 500.0
    assert decision.state.predicted_load_1h == 300.0


def test_the_forecast_is_for_the_configured_horizon_and_fills_in_the_predicted_loads(kit: Any) -> None:
    forecaster = kit.FixedForecaster(500.0)
    host = kit.start({"forecast_horizon_minutes": 120}, forecaster=forecaster)
    forecaster.asked.clear()
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert {120, 360} <= set(forecaster.asked), "the gauges ask beside it, for the trained horizons"
    assert decision.forecast.horizon_minutes == 120
    assert (decision.state.predicted_load_1h, decision.state.predicted_load_6h) == (500.0, 500.0)
    given_by_host = msgspec.structs.replace(kit.BUSY, predicted_load_1h=1.0, predicted_load_6h=2.0)
    state = host.decide(kit.TICKET, given_by_host).state
    assert (state.predicted_load_1h, state.predicted_load_6h) == (1.0, 2.0)


BOOK = """
version: 1
name: by forecast
description: what only the forecast tells
rules:
  - name: sure
    when: known.forecast_confidence && forecast_confidence > 0.5 && predicted_volume > 400.0
    action: INCREASE_WORKER_POOL
    parameters: {target_workers: 42}
    because: "{predicted_volume:.0f} expected"
otherwise: {action: NO_ACTION, because: nothing}
"""


@pytest.mark.parametrize("reason", [Reason.SHADOW, Reason.BELOW_VOLUME_THRESHOLD, Reason.DISABLED])
def test_the_rule_book_sees_the_forecast_of_its_decision(kit: Any, tmp_path: Path, reason: Reason) -> None:
    book = tmp_path / "book.yaml"
    book.write_text(BOOK)
    how = REACHED[reason]
    config = {**how.get("config", {}), "fallback": {"rule_book": str(book)}}
    forecaster = kit.FixedForecaster(how.get("volume", 500.0))
    host = kit.start(config, forecaster=forecaster)
    state = msgspec.structs.replace(kit.BUSY, queue_depth=0, predicted_load_1h=1.0)
    decision = host.decide(kit.TICKET, state)
    assert decision.reason is reason
    assert decision.parameters == {"target_workers": 42}
    assert decision.justification == f"{decision.forecast.predicted_volume:.0f} expected"
    forecaster.volume = RuntimeError("down")
    assert host.decide(kit.TICKET, state).justification == "nothing", "not that of the decision before"


# -- the order of the calls


def test_the_order_of_one_full_decision(kit: Any) -> None:
    calls: list[str] = []

    class Forecaster(kit.FixedForecaster):  # type: ignore[name-defined, misc]
        def forecast(self, horizon_minutes: int, *args: Any) -> Any:
            calls.append(f"forecast {horizon_minutes}")
            return super().forecast(horizon_minutes, *args)

    class Sink:
        name = "mine"

        def write(self, records: Any) -> None:
            calls.extend(f"record {type(record).__name__}" for record in records)

        def close(self) -> None: ...

    def say(what: str, answer: Any = None) -> Any:
        calls.append(what)
        return answer

    noted = kit.plugin(
        make_sinks=lambda settings: say("make_sinks", [Sink()]),
        collect_state=lambda ticket: say("collect_state"),
        recommend=lambda ticket, state, forecast: say("recommend"),
        guard=lambda recommendation: say("guard", Veto(guard="noted", reason="no")),
        fallback=lambda reason: say(f"fallback {reason}"),
        after_decision=lambda record: say("after_decision"),
        reward=lambda before, after: say("reward"),
        after_outcome=lambda record, reward: say("after_outcome"),
    )
    host = kit.start({"recording": {"flush_ms": 10_000}}, plugins={"noted": noted}, forecaster=Forecaster())
    assert calls[0] == "make_sinks"
    kit.wait_for(lambda: calls.count("forecast 1440") >= 2)  # the gauges of the start and of the background
    calls.clear()
    decision = host.decide(kit.TICKET, kit.BUSY)
    decided = [call for call in calls if call != "after_decision"]
    assert decided == ["forecast 60", "forecast 360", "collect_state", "recommend", "guard", "fallback vetoed"]
    assert host.flush(30)
    assert calls[len(decided) :].count("after_decision") == 1
    assert calls.count("record Decision") == 1
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert host.flush(30)
    rest = [call for call in calls if call in ("reward", "after_outcome", "record RewardedOutcome")]
    assert rest[0] == "reward"
    assert sorted(rest[1:]) == ["after_outcome", "record RewardedOutcome"]


# -- exploration


def test_exploration_is_flagged_and_keeps_its_propensity(kit: Any) -> None:
    policy = kit.FixedPolicy(other=kit.SHIFT)
    decision = kit.start(policy=policy).decide(kit.TICKET, kit.BUSY)
    assert (decision.action, decision.reason) == (Action.LOAD_BALANCING_RECONFIG, Reason.APPLIED)
    assert decision.is_exploration
    assert decision.propensity == 0.1
    assert decision.recommendation.is_exploration


@pytest.mark.parametrize("config", [{"rollout": {"percentage": 0}}, {"rollout": {"percentage": 1}},
                                    {"experiment": EXPERIMENT}])  # fmt: skip
def test_nobody_explores_outside_the_treatment_arm(kit: Any, config: Any) -> None:
    policy = kit.FixedPolicy(other=kit.SHIFT)
    decision = kit.start(config, policy=policy).decide(kit.TICKET, kit.BUSY)
    assert policy.offered == []
    assert not decision.is_exploration
    assert decision.recommendation.action is Action.INCREASE_WORKER_POOL


def test_exploration_passes_the_confidence_gate_and_the_guards(kit: Any) -> None:
    unsure = kit.FixedPolicy(other=msgspec.structs.replace(kit.SHIFT, confidence=0.69))
    decision = kit.start(policy=unsure).decide(kit.TICKET, kit.BUSY)
    assert (unsure.offered, decision.is_exploration) == ([False], False)
    assert decision.action is Action.INCREASE_WORKER_POOL

    def only_growth(recommendation: Recommendation) -> Veto | None:
        grows = recommendation.action is Action.INCREASE_WORKER_POOL
        return None if grows else Veto(guard="only_growth", reason="no")

    guarded = kit.FixedPolicy(other=kit.SHIFT)
    host = kit.start(plugins={"g": kit.plugin(guard=only_growth)}, policy=guarded)
    assert not host.decide(kit.TICKET, kit.BUSY).is_exploration
    assert guarded.offered == [False]


def test_an_exploration_that_fails_leaves_the_recommendation(kit: Any) -> None:
    class Broken(kit.FixedPolicy):  # type: ignore[name-defined, misc]
        def explore(self, *_: Any) -> Any:
            raise RuntimeError("dice are gone")

    decision = kit.start(policy=Broken()).decide(kit.TICKET, kit.BUSY)
    assert (decision.reason, decision.is_exploration) == (Reason.APPLIED, False)


# -- the budget


@pytest.mark.parametrize("hook", ["collect_state", "recommend", "guard", "fallback", "decision_applied"])
def test_the_budget_is_kept_while_a_hook_sleeps(kit: Any, hook: str) -> None:
    slow = {
        "collect_state": lambda ticket: time.sleep(4),
        "recommend": lambda ticket, state, forecast: time.sleep(4),
        "guard": lambda recommendation: time.sleep(4),
        "fallback": lambda reason: time.sleep(4),
        "decision_applied": lambda decision: time.sleep(4),
    }[hook]
    config = {"decision_budget_ms": 50, "rollout": {"percentage": 0 if hook == "fallback" else 100}}
    host = kit.start(config, plugins={"slow": kit.plugin(**{hook: slow})})
    for _ in range(3):
        started = time.monotonic()
        decision = host.decide(kit.TICKET, kit.BUSY)
        host.applied(decision)
        assert time.monotonic() - started < 2 * 0.05 + SLACK_S
        assert isinstance(decision, Decision)
    assert kit.counted(host, "nhm_sched_hook_errors_total", hook=f"nhm_sched_{hook}", plugin="slow") >= 1


def test_a_whole_slow_plugin_is_one_strike_a_second_and_the_host_goes_on(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW_PLUGIN_S", "0.6")
    host = kit.start({"decision_budget_ms": 50, "hooks_dir": kit.drop_ins("slow", "good")})
    until = time.monotonic() + 1.0
    worst = 0.0
    while time.monotonic() < until:
        started = time.monotonic()
        decision = host.decide(kit.TICKET, kit.BUSY)
        worst = max(worst, time.monotonic() - started)
        assert decision.action in Action
    assert worst < 0.05 + SLACK_S


def test_adecide_keeps_the_budget_and_the_event_loop(kit: Any) -> None:
    slow = kit.plugin(collect_state=lambda ticket: time.sleep(4))
    host = kit.start({"decision_budget_ms": 50}, plugins={"slow": slow})

    async def run() -> tuple[Decision, float, float]:
        gaps: list[float] = []

        async def tick() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.005)
                gaps.append(time.monotonic() - before)

        ticking = asyncio.create_task(tick())
        started = time.monotonic()
        decision = await host.adecide(kit.TICKET, kit.BUSY)
        took = time.monotonic() - started
        ticking.cancel()
        return decision, took, max(gaps)

    decision, took, gap = asyncio.run(run())
    assert decision.decision_id
    assert took < 0.05 + SLACK_S
    assert gap < SLACK_S, "the loop was never held"


def test_many_adecide_at_once_all_get_real_answers(kit: Any) -> None:
    host = kit.start({"decision_budget_ms": 2000})

    async def run() -> list[Decision]:
        return await asyncio.gather(*(host.adecide(Ticket(ticket_id=str(i)), kit.BUSY) for i in range(50)))

    decisions = asyncio.run(run())
    assert {decision.reason for decision in decisions} == {Reason.APPLIED}
    assert [decision.ticket_id for decision in decisions] == [str(i) for i in range(50)]


# -- garbage in

GARBAGE = [math.nan, math.inf, -math.inf, -1, "12", "", True, None, [], {}, object(), 1e308, 10**400]


@pytest.mark.parametrize("value", GARBAGE, ids=lambda value: str(type(value).__name__))
def test_an_unusable_field_counts_as_unknown(kit: Any, value: Any) -> None:
    host = kit.start()
    decision = host.decide(kit.TICKET, SchedulingState(queue_depth=value, active_workers=10))
    assert decision.state.queue_depth in (None, 1e308)
    assert decision.state.active_workers == 10
    bad = value is not None and value != 1e308
    assert (kit.counted(host, "nhm_sched_component_errors_total", component="state") > 0) == bad


@pytest.mark.parametrize("share", ["sla_compliance_rate", "resource_cpu_avg", "resource_memory_avg"])
def test_a_share_above_one_counts_as_unknown(kit: Any, share: str) -> None:
    assert getattr(kit.start().decide(None, SchedulingState(**{share: 1.4})).state, share) is None


def test_a_dict_with_unknown_keys_is_a_state_and_nothing_at_all_is_unknown(kit: Any) -> None:
    host = kit.start()
    state = host.decide(kit.TICKET, {"queue_depth": 3, "something_else": 1, 5: 6}).state
    assert state.queue_depth == 3
    assert host.decide(kit.TICKET, None).state.queue_depth is None
    # An unknown capacity opens the gate, and the built-in guard closes it.
    assert [veto.guard for veto in host.decide(kit.TICKET).vetoes] == ["active_workers"]


@pytest.mark.parametrize("features", [None, 5, {"a": math.nan, "b": 1}, {1: 2}, {"a": "x"}])
def test_unusable_features_count_as_unknown(kit: Any, features: Any) -> None:
    host = kit.start()
    decision = host.decide(kit.TICKET, {"active_workers": 3, "features": features})
    assert decision.reason is Reason.APPLIED
    assert set(decision.state.features) <= {*ARRIVED, "crowd_ahead", "b"}
    assert kit.counted(host, "nhm_sched_component_errors_total", component="state") == 1


@pytest.mark.parametrize("ticket", [5, "t1", object(), {"no": "id"}, [1]])
def test_a_ticket_that_is_none_gets_the_last_resort(kit: Any, ticket: Any) -> None:
    host = kit.start()
    decision = host.decide(ticket, kit.BUSY)
    assert (decision.action, decision.source, decision.reason) == (
        Action.NO_ACTION, Source.DEFAULT, Reason.INTERNAL_ERROR,
    )  # fmt: skip
    assert kit.counted(host, "optimizer_unavailable_total", reason="internal_error") == 1
    assert host.flush()
    assert [record.decision_id for record in kit.spooled(host)] == [decision.decision_id]


def test_tickets_in_other_clothes(kit: Any) -> None:
    class Mine:
        ticket_id, task_type, risk_band, priority, attributes = "a", "b", "c", 1, {}

    host = kit.start()
    assert host.decide({"ticket_id": "x"}, kit.BUSY).ticket_id == "x"
    assert host.decide(Mine(), kit.BUSY).task_type == "b"
    assert host.decide(Ticket(ticket_id=5, task_type=7), kit.BUSY).ticket_id == "5"  # type: ignore[arg-type]


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
)


@pytest.fixture
def host_for_anything(kit: Any) -> Any:
    return kit.start({"decision_budget_ms": 5000})


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(st.sampled_from(SchedulingState.__struct_fields__), anything),
    names=st.tuples(anything, anything, anything),
    whole=st.one_of(st.none(), anything),
)
def test_decide_never_raises_and_always_answers(
    host_for_anything: Any, fields: dict[str, Any], names: tuple[Any, Any, Any], whole: Any
) -> None:
    ticket = Ticket(ticket_id=names[0], task_type=names[1], risk_band=names[2])
    for state in (SchedulingState(**fields), fields, whole):
        decision = host_for_anything.decide(ticket, state)
        assert type(decision) is Decision
        assert isinstance(decision.action, Action)
        assert isinstance(decision.reason, Reason)
        assert decision.reason is not Reason.INTERNAL_ERROR
        # It can be recorded and read back as what it was.
        assert decode(encode(decision, 1.0))[0] == decision
