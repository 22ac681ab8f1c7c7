from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.decision.reward import calculate_reward
from nhm_sched_plugin.observe import words
from nhm_sched_plugin.observe.story import chapters, facts, tell, why
from nhm_sched_plugin.types import (
    Action,
    Arm,
    Decision,
    Forecast,
    ForecastPoint,
    Outcome,
    Reason,
    Recommendation,
    RewardedOutcome,
    SchedulingState,
    Source,
    Veto,
)

BEFORE = SchedulingState(
    queue_depth=12,
    active_workers=10,
    avg_task_duration_ms=420_000,
    sla_compliance_rate=0.88,
    predicted_load_1h=84,
    resource_cpu_avg=0.91,
)
AFTER = SchedulingState(
    queue_depth=0, active_workers=14, avg_task_duration_ms=420_000, sla_compliance_rate=0.93, resource_cpu_avg=0.74
)
HOUR = dt.datetime(2013, 12, 24, 17, tzinfo=dt.UTC)
FORECAST = Forecast(
    horizon_minutes=60,
    predicted_volume=84.2,
    confidence=0.81,
    bottleneck_probability=0.34,
    points=(ForecastPoint(HOUR, 84.2, {0.025: 60.0, 0.1: 70.0, 0.5: 84.0, 0.9: 98.4, 0.975: 110.0}),),
    generated_at=HOUR,
    method="seasonal_mean",
    model_version="3",
)
ADVICE = Recommendation(
    action=Action.INCREASE_WORKER_POOL,
    parameters={"target_workers": 14},
    confidence=0.83,
    justification="The forecast needs 13 workers.",
    expected_improvement=0.042,
    source="policy",
    policy_version="q-12",
)
FOLLOWED = Decision(
    decision_id="d1",
    ticket_id="UA1545",
    action=ADVICE.action,
    parameters=ADVICE.parameters,
    source=Source.POLICY,
    reason=Reason.APPLIED,
    confidence=0.83,
    arm=Arm.TREATMENT,
    recommendation=ADVICE,
    forecast=FORECAST,
    latency_us=31,
    decided_at=1387904700,
    task_type="EWR",
    risk_band="medium",
    state=BEFORE,
    rollout_percentage=50,
    policy_version="q-12",
)
CAME = RewardedOutcome(
    outcome=Outcome(
        decision_id="d1",
        ticket_id="UA1545",
        actual_duration_ms=431_000,
        sla_met=True,
        state_before=BEFORE,
        state_after=AFTER,
        finished_at=1387905200,
    ),
    reward=calculate_reward(BEFORE, AFTER),
    executed_action=ADVICE.action,
    applied=True,
)


def test_the_story_of_advice_that_was_followed() -> None:
    rule = Recommendation(action=Action.NO_ACTION, confidence=1, justification="The queue is short.", source="steady")
    assert tell(FOLLOWED, CAME, rule=rule) == [
        "Asked: on Tue 24 December 2013, 17:05:00 UTC the host asked what to do for ticket UA1545 (type EWR, "
        "risk medium). The answer took 31 microseconds.",
        "State: 12 tickets waiting; 10 workers active; a ticket takes 7 minutes on average; "
        "88 % of recent tickets met their SLA; CPU 91 % busy.",
        "Forecast: 84 tickets expected in the hour that ends 60 minutes ahead, most likely (8 in 10) between 70 and "
        "98; sureness 0.81 of 1, by the seasonal mean model. Chance that this is more than the pool can do: 34 %.",
        "Volume gate: open, because 84 tickets are more than 69 (80 % of the 86 that the pool can do in an hour).",
        "Advice: the policy advised to add workers: from 10 to 14, because the forecast needs 13 workers. "
        "Confidence 0.83: the chance that this is at least as good as what the rules would do. "
        "Rewards so far were 0.042 higher over time than for what the rules would do. They are of different moments; "
        "the confidence goes by trials in the simulator that start from the same one.",
        "Confidence gate: passed, because 0.83 reaches the 0.70 that is asked for.",
        "Guards: no objection.",
        "Rules: without the policy they would have said (rule “steady”): keep things as they are, "
        "because the queue is short.",
        "Rollout: treatment: the policy decides for 50 % of the units, and this is one of them.",
        "Decision: add workers: from 10 to 14, as the learned policy said. The advice was followed: sure enough "
        "(0.83 of 1), no guard objected, and the rollout includes it.",
        "Outcome: the ticket was done in 7.18 minutes and met its SLA. Before → after: SLA met 88 % → 93 %, "
        "waiting tickets 12 → 0, workers 10 → 14, CPU busy 91 % → 74 %.",
        "Reward: +0.131 on a scale from -1 to +1 (better than before): SLA +0.167, throughput +0.042, "
        "use of resources -0.037, cost -0.040.",
    ]


@pytest.mark.parametrize(
    ("gain", "source", "told"),
    [
        (-0.01, "policy", "Rewards so far were 0.010 lower over time than for what the rules would do."),
        (0.0, "policy", "Rewards so far tell no difference to what the rules would do."),
        (-0.01, "mine", "Expected gain in reward over time: -0.010."),
    ],
)
def test_a_gain_that_does_not_fit_the_confidence_is_explained(gain: float, source: str, told: str) -> None:
    advice = msgspec.structs.replace(ADVICE, confidence=0.99, expected_improvement=gain, source=source)
    (text,) = (line for line in tell(msgspec.structs.replace(FOLLOWED, recommendation=advice)) if "Advice" in line)
    assert told in text
    assert "Confidence 0.99" in text


def test_the_story_of_a_control_tick_in_shadow_with_nothing_reported_yet() -> None:
    rules = msgspec.structs.replace(
        FOLLOWED,
        ticket_id=None,
        task_type=None,
        risk_band=None,
        latency_us=0,
        action=Action.NO_ACTION,
        parameters={},
        source=Source.FALLBACK,
        reason=Reason.SHADOW,
        arm=Arm.SHADOW,
        rollout_percentage=0,
        justification="Nothing calls for a change.",
        recommendation=msgspec.structs.replace(ADVICE, justification="", expected_improvement=None),
    )
    told = tell(rules)
    assert told[0] == (
        "Asked: on Tue 24 December 2013, 17:05:00 UTC the host asked what to do for the worker pool "
        "(a regular check, no single ticket)."
    )
    assert told[-4:] == [
        "Rules: they say: keep things as they are, because nothing calls for a change.",
        "Rollout: shadow, because the policy decides for 0 % of the units; its advice is only written down.",
        "Decision: keep things as they are, as the rules said. The rollout stands at 0 % (shadow mode), so the advice "
        "was written down and not followed.",
        "Outcome: nothing has been reported yet.",
    ]


def test_the_story_of_light_load_and_of_a_veto() -> None:
    light = msgspec.structs.replace(
        FOLLOWED,
        reason=Reason.BELOW_VOLUME_THRESHOLD,
        source=Source.FALLBACK,
        recommendation=None,
        confidence=None,
        forecast=msgspec.structs.replace(FORECAST, predicted_volume=4.25, points=()),
        state=msgspec.structs.replace(BEFORE, queue_depth=0),
    )
    told = "\n".join(tell(light, volume_threshold=20))
    assert (
        "Volume gate: closed, because 4.25 tickets are not more than 20 (as configured) and no backlog waits." in told
    )
    assert (
        "The load ahead was light (4.25 tickets expected, the policy is asked above 20), so it was not asked." in told
    )
    assert "Advice:" not in told
    assert "Guards:" not in told
    vetoed = msgspec.structs.replace(
        FOLLOWED, reason=Reason.VETOED, vetoes=(Veto(guard="cooldown", reason="the pool changed 12 s ago"),)
    )
    told = "\n".join(tell(vetoed))
    assert "Guards: objected. cooldown: the pool changed 12 s ago." in told
    assert "The advice was not followed because a guard objected (“cooldown”)." in told


def test_a_backlog_that_opens_the_gate_is_told() -> None:
    calm = msgspec.structs.replace(FORECAST, predicted_volume=12)
    decision = msgspec.structs.replace(FOLLOWED, forecast=calm)
    assert (
        "Volume gate: open: 12 tickets are not more than 69 (80 % of the 86 that the pool can do in an hour), "
        "but 12 tickets wait for 10 workers, and a backlog above one ticket a worker opens it too."
    ) in tell(decision)


def test_an_outcome_that_was_not_applied_and_a_reward_of_another_formula_are_told() -> None:
    failed = msgspec.structs.replace(
        CAME,
        applied=False,
        error="quota exceeded.",
        reward=0.5,
        outcome=msgspec.structs.replace(CAME.outcome, status="failed", sla_met=False),
    )
    told = tell(FOLLOWED, failed)
    assert told[-2].startswith(
        "Outcome: the ticket failed in 7.18 minutes and missed its SLA. The host did not carry the decision out: "
        "quota exceeded. Before → after:"
    )
    assert told[-1] == (
        "Reward: +0.500 on a scale from -1 to +1 (better than before), from a reward hook "
        "(the built-in formula gives +0.131)."
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained_in_plain_words(reason: Reason) -> None:
    told = why(facts(msgspec.structs.replace(FOLLOWED, reason=reason)))
    assert len(told) > 20
    assert "recorded as" not in told
    assert str(reason) not in told or reason in {"applied", "disabled", "shadow"}
    assert words.REASONS[reason].endswith(".")


def test_the_reasons_carry_their_numbers() -> None:
    def told(**changes: Any) -> str:
        return why(facts(msgspec.structs.replace(FOLLOWED, **changes), confidence_threshold=0.9))

    assert "confidence 0.83, asked for is 0.90" in told(reason=Reason.CONFIDENCE_BELOW_THRESHOLD)
    assert "decides for 50 % of the units" in told(reason=Reason.NOT_IN_ROLLOUT)
    assert "52 milliseconds had passed" in told(reason=Reason.BUDGET_EXCEEDED, latency_us=52_000)


@pytest.mark.parametrize("code", [*Action, *Source, *Arm, *Reason])
def test_every_code_has_words(code: str) -> None:
    tables: list[Any] = [words.ACTIONS, words.SOURCES, words.ARMS, words.REASONS]
    assert any(code in table and table[code] for table in tables)


def test_a_recorded_mapping_tells_the_same_story() -> None:
    """Nested builtins, JSON text in columns, datetimes: whatever the database gives back."""
    nested: dict[str, Any] = msgspec.to_builtins(FOLLOWED, str_keys=True)
    texts = {
        **nested,
        "decided_at": dt.datetime(2013, 12, 24, 17, 5),
        "state": json.dumps(nested["state"]),
        "forecast": json.dumps(nested["forecast"]),
        "recommendation": json.dumps(nested["recommendation"]),
        "parameters": json.dumps(nested["parameters"]),
        "vetoes": "[]",
        "is_exploration": 0,
        "some_other_column": "ignored",
        "outcome": json.dumps(msgspec.to_builtins(CAME)),
    }
    assert tell(nested, msgspec.to_builtins(CAME)) == tell(FOLLOWED, CAME)
    assert tell(texts) == tell(FOLLOWED, CAME)


def test_reward_and_report_of_the_host_may_stand_beside_the_outcome() -> None:
    """As `Store.decision` gives them."""
    stored: dict[str, Any] = msgspec.to_builtins(FOLLOWED)
    rewarded: dict[str, Any] = msgspec.to_builtins(CAME)
    beside = {name: rewarded[name] for name in ("reward", "applied", "executed_action", "error")}
    recorded = {**stored, **beside, "outcome": rewarded["outcome"], "recorded_at": HOUR}
    assert tell(recorded) == tell(FOLLOWED, CAME)
    unfinished = {**recorded, "outcome": None, "reward": None, "applied": None, "executed_action": None}
    assert tell(unfinished) == tell(FOLLOWED)


def test_a_flat_mapping_with_empty_columns_is_understood() -> None:
    flat: dict[str, Any] = {
        "decision_id": "d2",
        "ticket_id": "t",
        "action": "NO_ACTION",
        "source": "default",
        "reason": "internal_error",
        "arm": "shadow",
        "confidence": None,
        "propensity": None,
        "recommendation": "",
        "forecast": "",
        "vetoes": "",
        "parameters": None,
        "queue_depth": 3.0,
        "active_workers": None,
        "outcome": {"status": "success", "sla_met": 1, "reward": 0.25, "finished_at": HOUR},
    }
    told = "\n".join(tell(flat))
    assert "State: 3 tickets waiting." in told
    assert "Forecast: there was none." in told
    assert "as the last resort in code said" in told
    assert "met its SLA" in told
    assert "Reward: +0.250" in told


def test_a_mapping_that_is_no_decision_names_the_field() -> None:
    with pytest.raises(ValueError, match="decision_id"):
        facts({"ticket_id": "t"})
    with pytest.raises(ValueError, match=r"\$\.action"):
        facts({"decision_id": "d", "action": "DANCE"})


def test_facts_are_json_and_hold_the_numbers() -> None:
    known = json.loads(json.dumps(facts(FOLLOWED, CAME)))
    assert known["volume_gate"]["threshold"] == pytest.approx(0.8 * 10 * 3600e3 / 420_000)
    assert known["volume_gate"]["opened"] is True
    assert known["decided_at_utc"] == "2013-12-24T17:05:00+00:00"
    assert known["recommendation"]["parameters"] == {"target_workers": 14}
    assert [part["name"] for part in known["outcome"]["components"]] == ["sla", "throughput", "efficiency", "cost"]
    total = sum(part["contribution"] for part in known["outcome"]["components"])
    assert total == pytest.approx(known["outcome"]["reward"], abs=1e-9)


numbers = st.none() | st.floats(min_value=0, max_value=1e9)


@settings(max_examples=60, deadline=None)
@given(
    state=st.builds(
        SchedulingState, **dict.fromkeys(("queue_depth", "active_workers", "avg_task_duration_ms"), numbers)
    ),
    reason=st.sampled_from(list(Reason)),
    arm=st.sampled_from(list(Arm)),
    source=st.sampled_from(list(Source)),
    advice=st.none() | st.just(ADVICE),
    forecast=st.none() | st.just(FORECAST),
    text=st.text(max_size=20),
)
def test_any_decision_has_a_story(
    state: SchedulingState,
    reason: Reason,
    arm: Arm,
    source: Source,
    advice: Recommendation | None,
    forecast: Forecast | None,
    text: str,
) -> None:
    decision = Decision(
        decision_id="d",
        state=state,
        reason=reason,
        arm=arm,
        source=source,
        recommendation=advice,
        forecast=forecast,
        justification=text,
        ticket_id=text or None,
    )
    told = chapters(facts(decision))
    assert [chapter.title for chapter in told][:1] == ["Asked"]
    assert all("None" not in chapter.text.replace(text, "") and "nan" not in chapter.text.split() for chapter in told)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.4, "1,234"), (-0.0, "0"), (12.54, "12.5"), (0.0833, "0.0833"), (1e-6, "0.000001"), (999.6, "1,000")],
)
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    assert words.number(value) == text


def test_units_in_words() -> None:
    assert [words.duration(s) for s in (2.5e-4, 0.8, 45, 150, 7300, 1_209_600)] == [
        "250 microseconds",
        "800 milliseconds",
        "45 seconds",
        "2.5 minutes",
        "2.03 hours",
        "14 days",
    ]
    assert (words.count(1, "ticket"), words.count(2, "ticket"), words.quantity(None, "s")) == (
        "1 ticket",
        "2 tickets",
        "unknown",
    )
    assert (words.percent(0.9996), words.percent(1), words.percent(0.0001), words.percent(0)) == (
        "99.96 %",
        "100 %",
        "0.01 %",
        "0 %",
    )


def test_what_the_plugin_counted_is_told_in_words() -> None:
    features = {
        "arrivals_last_hour": 37.0, "arrivals_15s": 0.0, "arrivals_300s": 4.0,
        "crowd_ahead": 0.0, "starting_workers": 3.0, "mine": 2.5,
    }  # fmt: skip

    def told(features: dict[str, float]) -> str:
        decided = msgspec.structs.replace(FOLLOWED, state=msgspec.structs.replace(BEFORE, features=features))
        return next(chapter.text for chapter in chapters(facts(decided)) if chapter.title == "State")

    text = told(features)
    assert "tickets that came in the last 15 seconds, 5 minutes, 60 minutes: 0, 4, 37" in text
    assert "3 workers starting" in text
    assert "mine 2.5" in text
    assert "crowd" not in text
    assert "arrivals_" not in text
    assert "about now 12 more than usual came on days before" in told({"crowd_ahead": 12.0})
