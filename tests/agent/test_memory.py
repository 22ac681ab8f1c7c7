"""What is answered from memory is what would be answered without it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.agent.advisor import Advisor
from nhm_sched_plugin.agent.service import OptimizerService
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.settings import LimitSettings, load_settings
from nhm_sched_plugin.types import Action, Experience, Recommendation, SchedulingState, Ticket
from nhm_sched_plugin.wire import convert
from nhm_sched_plugin.wire.check import check_state_request
from tests.calibrations import calibration

NOW = 1_700_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def advisor(folder: Path, clock: Clock) -> Advisor:
    """Its live counts are left alone: whether a correction is due depends on a thread's timing."""
    metrics = Metrics()
    made = Advisor(load_settings({"data_dir": str(folder)}), metrics, Faults(metrics), clock, ())
    made.open()
    return made


def forgetful(one: Advisor) -> None:
    """As if it had never been asked anything."""
    policy: Any = one.policy
    policy.use(LimitSettings())
    book = one._defaults.rule_book
    book._answers.clear()
    book._memo = None
    one._defaults._last = None


def states(draw: random.Random, count: int) -> list[SchedulingState]:
    """Of a few values each, with gaps and zeros, so that some come again, whole or in part."""

    def some(*values: float | None) -> float | None:
        return draw.choice(values)

    return [
        SchedulingState(
            queue_depth=some(None, 0.0, 5.0, 60.0, 400.0),
            active_workers=some(None, 0.0, 1.0, 8.0, 40.0),
            avg_task_duration_ms=some(None, 0.0, 60_000.0, 300_000.0),
            sla_compliance_rate=some(None, 0.8, 0.99),
            predicted_load_1h=some(None, None, 0.0, 900.0),
            predicted_load_6h=some(None, None, 2000.0),
            resource_cpu_avg=some(None, 0.2, 0.9),
            resource_memory_avg=some(None, 0.5, 0.97),
            features={"arrivals_60s": 7.0} if draw.random() < 0.2 else {},
        )
        for _ in range(count)
    ]


def experience(draw: random.Random, number: int, state: SchedulingState) -> Experience:
    action = draw.choice(list(Action))
    parameters = {"target_workers": draw.randrange(1, 50)} if action.endswith(("POOL", "SCALING")) else {}
    return Experience(
        decision_id=f"d{number}", state=state, action=action, reward=draw.uniform(-1, 1), parameters=parameters
    )


@pytest.mark.parametrize("calibrated", [False, True])
def test_remembered_recommendations_are_those_that_would_be_made(kit: Any, tmp_path: Path, calibrated: bool) -> None:
    for name in ("remembering", "plain"):  # each learns and saves by itself
        kit.write_forecast(tmp_path / name, volume=500.0)
        if calibrated:
            calibration().save(tmp_path / name / "snapshots" / "planner.json")
    draw, clock = random.Random(7), Clock()
    remembering, plain = advisor(tmp_path / "remembering", clock), advisor(tmp_path / "plain", clock)
    policies: list[Any] = [remembering.policy, plain.policy]
    assert (policies[0].planner.model is not None) is calibrated
    asked, hits = states(draw, 80), 0
    last: dict[int, Recommendation] = {}
    for number in range(3000):
        if number % 50 == 0:
            clock.now += 31.0  # another forecast, every other time
        if number % 7 == 0:
            learned = experience(draw, number, draw.choice(asked))
            for policy in policies:
                policy.learn(learned)
        which = draw.randrange(len(asked))
        ticket = draw.choice([None, Ticket(ticket_id="", task_type="processing")])
        forgetful(plain)
        mine, its = remembering.recommend(ticket, asked[which]), plain.recommend(ticket, asked[which])
        assert mine == its, (number, asked[which])
        hits += last.get(which) is mine
        last[which] = mine
    assert calibrated or hits > 100, "or nothing was remembered at all"


def test_the_bytes_of_an_answer_are_one_message(kit: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path, volume=500.0)
    clock, draw = Clock(), random.Random(3)
    made: Any = advisor(tmp_path, clock)
    service = OptimizerService(made, *[None] * 3, 1, _Untraced(), clock)  # type: ignore[arg-type] # is not asked
    ids = set()
    for state in states(draw, 50) * 3:
        raw = service.recommendation(convert.state_request(state).SerializeToString(), None)
        assert type(raw) is bytes
        found = pb.RecommendationResponse.FromString(raw)
        said = made.recommend(None, state)
        assert found == convert.recommendation_response(said, found.decision_id, NOW)
        ids.add(found.decision_id)
    assert len(ids) == 150
    service.close()


def test_forecasts_are_kept_up_to_a_number_of_hours(kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nhm_sched_plugin.agent.service._MOST_HOURS", 100)
    clock = Clock()
    made: Any = advisor(tmp_path, clock)
    service = OptimizerService(made, *[None] * 3, 1, _Untraced(), clock)  # type: ignore[arg-type] # is not asked

    def ask(**fields: Any) -> None:
        asyncio.run(service.forecast(pb.ForecastRequest(**fields).SerializeToString(), None))

    for _ in range(50):
        clock.now += 60.0  # another forecast in the old one's place
        ask(horizon_minutes=1440)
        ask(horizon_minutes=60)
    assert len(service._answers) == 2
    made.forecaster = kit.FixedForecaster()  # which says nothing of the hours
    for number in range(1000):
        ask(horizon_minutes=60, task_type=str(number))
    assert len(service._answers) <= 100
    service.close()


class _Untraced:
    def annotate(self, **said: Any) -> None:
        pass


def test_a_state_is_read_as_its_fields_say() -> None:
    for state in states(random.Random(5), 2000):
        request = pb.StateRequest.FromString(convert.state_request(state, "processing", "low").SerializeToString())
        assert SchedulingState(**check_state_request(request)) == convert.state_of(request) == state
