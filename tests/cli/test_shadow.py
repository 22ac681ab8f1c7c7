"""`shadow report` and `experiment result` on the records of real hosts in simulated time."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Action, Outcome, Recommendation, SchedulerHost, SchedulingState, Ticket
from tests.conftest import FixedForecaster, FixedPolicy, Parts
from tests.observe.test_report import Reader

START = 1_772_409_600.0  # a Monday, 00:00 UTC
TICK_S = 120.0
GAIN = 0.08
"""Of SLA, by what the policy does: 0.4 * GAIN / (1 - 0.8) of reward."""


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


class Thrifty(FixedPolicy):
    """At half the moments it does what the rules do, and knows it; at the others it rebalances the load."""

    def recommend(self, ticket: Any, state: Any, forecast: Any) -> Recommendation | None:
        if state.queue_depth > 1:
            return Recommendation(action=Action.ADJUST_PRIORITY_WEIGHTS, confidence=1.0, policy_version="t1")
        return Recommendation(action=Action.LOAD_BALANCING_RECONFIG, confidence=0.8, policy_version="t1")


def run(
    config: Path, clock: Clock, hours: int, percentage: int, seed: int, tickets: bool = False, unit: str = "switchback"
) -> None:
    """Decisions of a host at one rollout percentage, each with its outcome: control ticks, or tickets."""
    tree = json.loads(config.read_text())
    tree["rollout"] |= {"percentage": percentage, "unit": unit}
    config.write_text(json.dumps(tree))
    draw = random.Random(seed)
    parts = {"parts": Parts(FixedForecaster(400.0), Thrifty())}
    with SchedulerHost.from_config(config, plugins=parts, clock=clock) as host:
        for number in range(int(hours * 3600 / TICK_S)):
            before = SchedulingState(
                queue_depth=draw.choice((0, 2)),
                active_workers=10,
                avg_task_duration_ms=60_000,
                sla_compliance_rate=0.8,
                resource_cpu_avg=0.5,
            )
            ticket = Ticket(ticket_id=f"t{number}", task_type="processing") if tickets else None
            decision = host.decide(ticket, before)
            host.applied(decision)
            gain = GAIN if decision.action is Action.LOAD_BALANCING_RECONFIG else 0.0
            after = SchedulingState(
                queue_depth=1,
                active_workers=10,
                avg_task_duration_ms=60_000,
                sla_compliance_rate=min(1.0, 0.8 + gain + draw.gauss(0, 0.02)),
                resource_cpu_avg=0.5,
            )
            host.finished(
                Outcome(
                    decision_id=decision.decision_id,
                    ticket_id=decision.ticket_id,
                    status="success" if tickets else "tick",
                    sla_met=draw.random() < 0.9 if tickets else None,
                    state_before=before,
                    state_after=after,
                )
            )
            clock.now += TICK_S
        assert host.flush(30)


@pytest.fixture
def config(folder: Path) -> Path:
    path = folder / "nhm-sched.yaml"
    path.write_text(
        json.dumps(
            {
                "decision_budget_ms": 1000,
                "forecast_volume_threshold": 0,
                "rollout": {"unit": "switchback", "block_minutes": 60, "percentage": 0},
                "experiment": {"min_samples": 400},
            }
        )
    )
    return path


def test_from_shadow_to_evidence(nhm: Any, config: Path, folder: Path) -> None:
    clock = Clock()
    run(config, clock, 30, 0, seed=1)
    assert nhm("drain", "-c", config).code == 0

    shadow = nhm("shadow", "report", "-c", config, "--json").json
    assert shadow["decisions"] == shadow["asked"] == shadow["followable"] == shadow["learned_from"] == 900
    assert shadow["verdict"]["answer"] == "ramp"
    assert shadow["verdict"]["percentage"] == 20
    assert shadow["overall"]["same"] == pytest.approx(450, abs=60)
    assert {(pair["rules"], pair["policy"]) for pair in shadow["by_action"]} == {
        ("ADJUST_PRIORITY_WEIGHTS", "ADJUST_PRIORITY_WEIGHTS"),
        ("ADJUST_PRIORITY_WEIGHTS", "LOAD_BALANCING_RECONFIG"),
    }
    # What the policy would do was never done: nothing is claimed, and the reason has its number.
    differences = [one for one in shadow["evaluated"]["estimates"] if one["of"] == "difference"]
    assert all(one["value"] is None for one in differences)
    share = 100 * (900 - shadow["overall"]["same"]) / 900
    assert f"at {share:.1f} % of the decisions" in differences[0]["reason"]
    page = folder / "shadow.html"
    told = nhm("shadow", "report", "-c", config, "--report", page).out
    assert "Ramp: Nothing speaks against a first, small step. Go to 20 %." in told
    assert "the policy learned from 900 outcomes of this time" in told
    assert "NHM_SCHED_ROLLOUT__PERCENTAGE=20" in told

    assert told.count("never possible in this log") == 1  # one reason for three methods is told once
    words = " ".join(" ".join(Reader(page.read_text(encoding="utf-8")).words).replace("\u00a0", " ").split())
    assert "none effective sample size the records cannot answer by weighting" in words
    assert "Nothing to compare: no decision could have been in either arm" in words

    run(config, clock, 72, 50, seed=2)
    assert nhm("drain", "-c", config).code == 0
    ramp = nhm("shadow", "report", "-c", config, "--report", page, "--json").json
    assert (ramp["evaluated_on"], ramp["percentages"]) == ("ramp", [0, 50])
    assert ramp["verdict"]["answer"] == "ramp"
    assert ramp["verdict"]["percentage"] == 100
    expected = 0.4 * GAIN / 0.2 / 2  # it acts at half the moments
    for one in ramp["evaluated"]["estimates"]:
        if one["of"] == "difference" and not one["model_based"]:
            assert one["low"] < expected < one["high"], one
            assert one["low"] > 0, one
    assert ramp["reward"]["difference"] == pytest.approx(expected, abs=0.01)
    assert ramp["reward"]["significant"]
    # Only the last day and a half: the shadow is out of sight.
    assert nhm("shadow", "report", "-c", config, "--since", "36h", "--json").json["percentages"] == [50]

    text = page.read_text(encoding="utf-8")
    reader = Reader(text)
    assert reader.tags["script"] == reader.tags["img"] == reader.tags["link"] == 0
    assert len(reader.ids) == len(set(reader.ids))
    for section in ("verdict", "estimates", "arms", "comparison", "agreement", "confidence", "calibration"):
        assert section in reader.ids
    assert ramp["apart"] == []
    assert "apart" not in reader.ids, "a part without data has no heading either"
    assert "The policy does better than the rules. Go to 100 %." in " ".join(reader.words).replace("\u00a0", " ")

    result = nhm("experiment", "result", "-c", config, "--json").json
    assert result["reward"]["sequential"]["p_value"] < 0.05
    assert result["written"] is None


def test_a_day_that_is_not_over_is_not_enough(nhm: Any, config: Path) -> None:
    run(config, Clock(), 5, 0, seed=1)
    nhm("drain", "-c", config)
    verdict = nhm("shadow", "report", "-c", config, "--json").json["verdict"]
    assert verdict["answer"] == "not enough data"
    assert any("experiment.min_samples asks for 400" in reason for reason in verdict["reasons"])
    assert any("the decisions cover 5.0 hours" in reason for reason in verdict["reasons"])


def test_tickets_are_looked_at_where_no_tick_has_a_reward(nhm: Any, config: Path) -> None:
    run(config, Clock(), 26, 50, seed=4, tickets=True, unit="ticket")
    nhm("drain", "-c", config)
    found = nhm("shadow", "report", "-c", config, "--json").json
    assert (found["ticks"], found["decisions"]) == (False, 780)
    assert found["evaluated"]["policy"]["episodes"] == 780
    assert found["reward"]["shared"]  # both arms are in every block
    assert found["reward"]["difference"] == pytest.approx(0.4 * GAIN / 0.2 / 2, abs=0.03)
    assert found["sla"]["treatment_mean"] == pytest.approx(0.9, abs=0.06)
    assert found["verdict"]["answer"] == "not enough data"
    assert "experiment.min_samples is 400" in found["verdict"]["reasons"][0]


def test_no_records_say_what_to_do(nhm: Any) -> None:
    result = nhm("shadow", "report")
    assert result.code == 1
    assert "the records hold no decisions: let a host run" in result.said
    assert "nhm-sched drain" in result.said
    assert nhm("experiment", "result").code == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("shadow", "report", "--since", "yesterday"), "'yesterday' is no length of time; write it as 90m"),
        (("experiment", "result", "--since", "0d"), "'0d' is no length of time"),
        (("shadow", "report", "--episode-minutes", "0"), "0 is outside what is possible"),
        (("experiment", "result", "load_predictor_60m"), "give NAME and VERSION, or neither"),
        (("shadow", "report", "--report", "none/there.html"), "cannot be written"),
    ],
)
def test_wrong_options(nhm: Any, arguments: tuple[str, ...], told: str) -> None:
    result = nhm(*arguments)
    assert result.code == 2
    assert told in result.said
