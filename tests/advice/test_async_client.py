"""`OptimizerGRPCClient`: answers as the specification prints them, None while the agent is away, errors with a name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import OptimizerGRPCClient, SchedulingState, calculate_reward
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.observe.metrics import Metrics
from tests.advice.scripted import ScriptedAgent, free_port

STATE = {"queue_depth": 200, "active_workers": 10, "sla_compliance_rate": 0.85, "predicted_load_1h": 180}
BRISK = {"grpc_timeout": 2.0}


def client(*addresses: str, metrics: Metrics | None = None) -> OptimizerGRPCClient:
    return OptimizerGRPCClient({"optimizer": {"endpoint": list(addresses), **BRISK}}, metrics)


async def until(condition: Callable[[], Awaitable[Any]], timeout_s: float = 20) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := await condition():
            return value
        await asyncio.sleep(0.01)
    pytest.fail(f"not so within {timeout_s} s")


def test_the_examples_of_the_specification(agent: ScriptedAgent) -> None:
    async def main() -> None:
        optimizer = client(agent.address)
        assert await optimizer.initialize()
        forecast = await optimizer.get_load_forecast(horizon_minutes=60, task_type="processing", risk_band="medium")
        assert forecast is not None
        assert isinstance(forecast["predicted_volume"], int)
        assert f"{forecast['confidence']:.2f} {forecast['bottleneck_probability']:.2f}"
        recommendation = await optimizer.get_scheduling_recommendation(STATE)
        assert recommendation is not None
        assert recommendation["confidence"] >= 0.7
        assert int(recommendation["parameters"]["target_workers"]) == 14
        recorded = await optimizer.record_action_outcome(
            state=STATE,
            action=recommendation["action"],
            reward=calculate_reward({"sla_compliance_rate": 0.85}, {"sla_compliance_rate": 0.9}),
        )
        assert recorded == {"accepted": True, "updates": 1, "q_value": 0.5}
        await optimizer.close()

    asyncio.run(main())


def test_every_field_is_there(agent: ScriptedAgent) -> None:
    async def main() -> None:
        async with client(agent.address) as optimizer:
            forecast = await optimizer.get_load_forecast(180)
            assert forecast is not None
            assert (forecast["predicted_volume"], forecast["mean_volume"]) == (500, 500.0)
            assert (forecast["total_volume"], forecast["peak_volume"]) == (1500.0, 500.0)
            assert [hour["mean"] for hour in forecast["hours"]] == [500.0] * 3
            assert list(forecast["quantiles"]) == [0.025, 0.1, 0.5, 0.9, 0.975]
            assert (forecast["forecast_horizon_minutes"], forecast["method"]) == (180, "seasonal_mean")
            said = await optimizer.get_scheduling_recommendation(SchedulingState(queue_depth=3))
            assert said is not None
            assert said["confidence"] == 0.8, "single precision rounded away"
            assert (said["expected_improvement"], said["propensity"]) == (None, 1.0)
            assert said["decision_id"] == "from-the-agent-1"
            await optimizer.record_action_outcome(
                SchedulingState(queue_depth=3),
                "NO_ACTION",
                -0.5,
                {"queue_depth": 2.5},
                decision_id="d1",
                parameters={"target_workers": 3},
                applied=False,
                rejection_reason="no room",
                arm="treatment",
            )
            sent = agent.taken[0]
            assert (sent.decision_id, sent.applied, sent.arm) == ("d1", False, "treatment")
            assert (sent.next_state.queue_depth, dict(sent.parameters)) == (2.5, {"target_workers": "3"})

    asyncio.run(main())


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"queue_depth": -1}, "queue_depth"),
        ({"sla_compliance_rate": 1.4}, "sla_compliance_rate"),
        ({"active_workers": float("nan")}, "active_workers"),
        ({"queue_depth": "many"}, "queue_depth"),
        ({"queue_length": 3}, "queue_length"),
        ({"features": {"a": float("inf")}}, "features"),
        (7, "state"),
    ],
)
def test_a_state_that_cannot_be_names_the_field(state: Any, named: str) -> None:
    async def main() -> None:
        optimizer = client(f"127.0.0.1:{free_port()}")
        with pytest.raises(ValueError, match=named):
            await optimizer.get_scheduling_recommendation(state)
        with pytest.raises(ValueError, match=named):
            await optimizer.record_action_outcome(state, "NO_ACTION", 0.1)

    asyncio.run(main())


def test_other_mistakes_name_the_argument() -> None:
    async def main() -> None:
        optimizer = client(f"127.0.0.1:{free_port()}")
        for horizon in (0, -5, 1 << 40, 1.5):
            with pytest.raises(ValueError, match="horizon_minutes"):
                await optimizer.get_load_forecast(horizon)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="action"):
            await optimizer.record_action_outcome(STATE, "DANCE", 0.1)
        with pytest.raises(ValueError, match="reward"):
            await optimizer.record_action_outcome(STATE, "NO_ACTION", 1.5)
        with pytest.raises(ValueError, match="arm"):
            await optimizer.record_action_outcome(STATE, "NO_ACTION", 0.5, arm="leg")

    asyncio.run(main())


def test_the_agents_own_no_is_the_callers_mistake_too(agent: ScriptedAgent) -> None:
    async def main() -> None:
        agent.refuse = {"d1"}
        async with client(agent.address) as optimizer:
            with pytest.raises(ValueError, match="decision_id: is not welcome"):
                await optimizer.record_action_outcome(STATE, "NO_ACTION", 0.1, decision_id="d1")
            assert await optimizer.initialize(), "and no reason not to ask it again"

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["dead", "hang", "garbage", "unavailable", "full"])
def test_an_agent_that_is_away_is_none_and_found_again(agent: ScriptedAgent, mode: str) -> None:
    async def main() -> None:
        if mode == "dead":
            agent.stop()
        agent.mode = mode
        optimizer = client(agent.address)
        began = time.monotonic()
        assert not await optimizer.initialize(timeout_s=0.5)
        assert time.monotonic() - began < 10
        assert await optimizer.get_load_forecast(60) is None
        assert await optimizer.get_scheduling_recommendation(STATE) is None
        assert await optimizer.record_action_outcome(STATE, "NO_ACTION", 0.1) is None
        agent.mode = "healthy"
        if mode in ("dead", "hang"):
            agent.stop()
            agent.start()
        assert await until(lambda: optimizer.get_load_forecast(60))
        await optimizer.close()

    asyncio.run(main())


def test_retries_do_not_teach_the_same_twice(agent: ScriptedAgent) -> None:
    """Without a decision id the call has one of its own, the same in each attempt: by it the agent counts once."""

    async def main() -> None:
        async with client(agent.address) as optimizer:
            agent.lose = 2
            for _ in range(2):
                assert await optimizer.record_action_outcome(STATE, "NO_ACTION", 0.1)
        ids = [one.decision_id for one in agent.taken]
        assert ids == [ids[0]] * 3 + [ids[3]]
        assert len(set(ids)) == 2
        assert all(ids)

    asyncio.run(main())


def test_a_message_that_is_too_long_is_no_sign_of_an_agent_in_need(folder: Path) -> None:
    async def main() -> None:
        agent = ScriptedAgent(folder, most_bytes=1024).start()
        metrics = Metrics()
        async with client(agent.address, metrics=metrics) as optimizer:
            for _ in range(5):
                state = {**STATE, "features": {f"feature_{number}": 1.0 for number in range(60)}}
                assert await optimizer.get_scheduling_recommendation(state) is None
            assert metrics.registry.get_sample_value("nhm_sched_agent_breaker_open", {"address": agent.address}) == 0
        assert agent.count("GetSchedulingRecommendation") == 0, "gRPC refused them"
        agent.stop()

    asyncio.run(main())


def test_calls_go_round_and_past_the_dead_one(agent: ScriptedAgent, folder: Path) -> None:
    async def main() -> None:
        second = ScriptedAgent(folder).start()
        metrics = Metrics()
        dead = f"127.0.0.1:{free_port()}"
        async with client(dead, agent.address, second.address, metrics=metrics) as optimizer:
            for _ in range(30):
                assert await optimizer.get_scheduling_recommendation(STATE)
        counts = agent.count("GetSchedulingRecommendation"), second.count("GetSchedulingRecommendation")
        assert min(counts) >= 5
        assert sum(counts) == 30
        assert metrics.registry.get_sample_value("nhm_sched_agent_breaker_open", {"address": dead}) == 1
        second.stop()

    asyncio.run(main())


def test_a_cancelled_call_tells_nothing_about_the_agent(agent: ScriptedAgent) -> None:
    async def main() -> None:
        async with client(agent.address) as optimizer:
            agent.mode = "hang"
            for _ in range(5):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(optimizer.get_load_forecast(60), 0.05)
            agent.mode = "healthy"
            assert await optimizer.get_load_forecast(60)

    asyncio.run(main())


def test_one_client_may_live_in_several_loops_one_after_the_other(agent: ScriptedAgent) -> None:
    optimizer = client(agent.address)
    for _ in range(3):
        assert asyncio.run(optimizer.initialize())
        assert asyncio.run(optimizer.get_load_forecast(60))
    asyncio.run(optimizer.close())


def test_without_an_address_there_is_nobody_to_ask() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.endpoint"):
        OptimizerGRPCClient()
