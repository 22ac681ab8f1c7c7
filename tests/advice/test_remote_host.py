"""A host with a remote agent that is well, away, hanging, mad or lying: decisions in time, for the right reason."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Outcome, Reason, SchedulerHost, SchedulingState, Source, load_settings
from nhm_sched_plugin.advice.remote.outbox import Outbox
from nhm_sched_plugin.errors import AgentUnavailableError, ConfigError, NhmSchedError
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from tests.advice.conftest import learn, remote
from tests.advice.scripted import ANSWER, ScriptedAgent, free_port

Ask = Callable[..., SchedulerHost]
BUDGET_S = 0.4
"""Of `kit.start`."""
AFTER = SchedulingState(sla_compliance_rate=0.95)


def mirror(host: SchedulerHost) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in host.settings.mirror_path.glob("*.json")}


def in_time(host: SchedulerHost, kit: Any, times: int = 50) -> list[Any]:
    """Decisions, none of which took more than the budget."""
    found, slowest = [], 0.0
    for _ in range(times):
        began = time.perf_counter()
        found.append(host.decide(kit.TICKET, kit.BUSY))
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < BUDGET_S
    return found


def mirrored(host: SchedulerHost, kit: Any) -> None:
    host.decide(kit.TICKET, kit.BUSY)
    kit.wait_for(lambda: remote(host).mirror.fresh, 20)


def test_a_well_agent_is_mirrored_and_not_asked_on_the_hot_path(
    agent: ScriptedAgent, folder: Path, ask: Ask, kit: Any
) -> None:
    host = ask(agent.address)
    mirrored(host, kit)
    asked = agent.count("GetLoadForecast"), agent.count("GetSchedulingRecommendation")
    decisions = in_time(host, kit)
    assert asked == (agent.count("GetLoadForecast"), agent.count("GetSchedulingRecommendation"))
    last = decisions[-1]
    assert last.forecast.predicted_volume == 500
    assert last.recommendation.policy_version == "q4-3"
    assert mirror(host)["forecast.json"] == (folder / "snapshots" / "forecast.json").read_bytes()
    assert [part.ok for part in host.health() if part.component in ("forecaster", "policy")] == [True, True]


def test_what_the_agent_has_learned_comes_to_the_host(agent: ScriptedAgent, folder: Path, ask: Ask, kit: Any) -> None:
    host = ask(agent.address)
    mirrored(host, kit)
    learn(folder, 12)
    kit.write_forecast(folder, volume=900.0)
    kit.wait_for(lambda: host.decide(None, kit.BUSY).policy_version == "q4-12", 20)
    kit.wait_for(lambda: host.decide(None, kit.BUSY).forecast.predicted_volume == 900, 20)
    taken = "nhm_sched_mirror_takeovers_total"
    assert kit.counted(host, taken, table="policy", status="success") == 2
    assert kit.counted(host, taken, table="forecast", status="success") == 2


def test_a_table_that_has_not_changed_is_not_sent_again(
    agent: ScriptedAgent, folder: Path, ask: Ask, kit: Any, tmp_path: Path
) -> None:
    """Not even to a host that starts with the files of an earlier one."""
    first = ask(agent.address)
    mirrored(first, kit)
    first.close()
    before = {path: path.stat().st_mtime_ns for path in first.settings.mirror_path.glob("*.json")}
    again = ask(agent.address)
    asked = agent.count("GetForecastSnapshot")
    again.decide(kit.TICKET, kit.BUSY)
    kit.wait_for(lambda: agent.count("GetForecastSnapshot") >= asked + 3, 20)
    assert before == {path: path.stat().st_mtime_ns for path in again.settings.mirror_path.glob("*.json")}
    assert kit.counted(again, "nhm_sched_mirror_takeovers_total", table="forecast", status="success") == 0


def test_the_start_waits_for_nobody(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    agent.mode = "hang"
    host = ask(agent.address)
    decisions = in_time(host, kit)
    assert {one.reason for one in decisions} == {Reason.OPTIMIZER_UNAVAILABLE}
    assert {one.source for one in decisions} == {Source.FALLBACK}
    kit.wait_for(lambda: agent.asked, 20)
    agent.mode = "healthy"
    agent.stop()
    agent.start()
    kit.wait_for(lambda: host.decide(None, kit.BUSY).forecast, 20)


@pytest.mark.parametrize(
    "mode", ["hang", "garbage", "nonsense", "bad_snapshot", "wrong_digest", "unavailable", "full", "dead"]
)
def test_a_fresh_mirror_carries_the_host_through_anything(
    agent: ScriptedAgent, folder: Path, ask: Ask, kit: Any, mode: str
) -> None:
    host = ask(agent.address)
    mirrored(host, kit)
    before = mirror(host)
    if mode == "dead":
        agent.stop()
    agent.mode = mode
    learn(folder, 50)  # so that there is something new to get wrong
    kit.write_forecast(folder, volume=700.0)
    if mode in ("nonsense", "dead"):
        kit.wait_for(lambda: mode == "nonsense" or remote(host)._caller.endpoints.ready() is None, 20)
    else:
        asked = len(agent.asked)
        kit.wait_for(lambda: len(agent.asked) > asked, 20)
    decisions = in_time(host, kit)
    assert all(one.forecast and one.recommendation for one in decisions)
    if mode != "nonsense":  # its tables are good
        assert mirror(host) == before
    agent.mode = "healthy"
    if mode in ("dead", "hang"):
        agent.stop()
        agent.start()
    kit.wait_for(lambda: host.decide(None, kit.BUSY).policy_version == "q4-50", 20)


@pytest.mark.parametrize("mode", ["hang", "garbage", "nonsense", "unavailable", "full", "dead"])
def test_without_a_fresh_mirror_it_is_the_rules_until_the_agent_is_back(
    agent: ScriptedAgent, ask: Ask, kit: Any, mode: str
) -> None:
    host = ask(agent.address, mirror_max_age_s=1.0)
    mirrored(host, kit)
    # As if snapshots were not to be had from this agent, so that its other answers are asked for.
    if mode == "nonsense":
        agent.mode = "bad_snapshot"
        learn(agent.folder, 9)
        kit.wait_for(lambda: not remote(host).mirror.fresh, 20)
    if mode == "dead":
        agent.stop()
    agent.mode = mode
    if mode == "nonsense":
        remote(host)._mirroring.close(5)  # its tables would be good again
    kit.wait_for(lambda: not remote(host).mirror.fresh, 20)
    decisions = in_time(host, kit)
    assert {one.reason for one in decisions} == {Reason.OPTIMIZER_UNAVAILABLE}
    assert kit.counted(host, "optimizer_unavailable_total", reason="optimizer_unavailable") >= 50
    assert kit.counted(host, "nhm_sched_component_errors_total", component="policy") == 0
    assert not any(part.ok for part in host.health() if part.component in ("forecaster", "policy"))
    if mode == "nonsense":
        return
    agent.mode = "healthy"
    if mode in ("dead", "hang"):
        agent.stop()
        agent.start()
    kit.wait_for(lambda: host.decide(None, kit.BUSY).reason is not Reason.OPTIMIZER_UNAVAILABLE, 20)


def test_a_stale_mirror_means_one_question_for_each_decision(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address, mirror_max_age_s=1.0)
    mirrored(host, kit)
    agent.mode = "bad_snapshot"
    learn(agent.folder, 9)
    kit.wait_for(lambda: not remote(host).mirror.fresh, 20)
    decision = kit.wait_for(lambda: (found := host.decide(kit.TICKET, kit.BUSY)).reason is Reason.APPLIED and found, 20)
    assert (decision.action, decision.parameters) == (ANSWER.action, ANSWER.parameters)
    assert decision.confidence == 0.8
    assert decision.propensity == 1.0
    assert decision.forecast.predicted_volume == 500
    asked = agent.count("GetSchedulingRecommendation"), agent.count("GetLoadForecast")
    in_time(host, kit, 10)
    assert agent.count("GetSchedulingRecommendation") >= asked[0] + 5
    assert agent.count("GetLoadForecast") <= asked[1] + 4, "a forecast is asked for once a minute and horizon"


def test_an_agent_without_tables_is_asked(agent: ScriptedAgent, folder: Path, ask: Ask, kit: Any) -> None:
    (folder / "snapshots" / "q_table.json").unlink()
    agent.mode = "no_tables"
    host = ask(agent.address)
    mirrored(host, kit)
    decision = kit.wait_for(lambda: (found := host.decide(kit.TICKET, kit.BUSY)).forecast and found, 20)
    assert decision.forecast.predicted_volume == 500
    assert agent.count("GetLoadForecast") >= 1
    assert not mirror(host)


def test_of_two_addresses_the_dead_one_does_not_matter(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    dead = f"127.0.0.1:{free_port()}"
    host = ask(dead, agent.address)
    mirrored(host, kit)
    decisions = in_time(host, kit)
    assert all(one.forecast for one in decisions)
    host.finished(Outcome(decision_id=decisions[0].decision_id, state_after=AFTER))
    kit.wait_for(lambda: [one.decision_id for one in agent.taken] == [decisions[0].decision_id], 20)
    assert kit.counted(host, "nhm_sched_agent_breaker_open", address=dead) == 1
    assert kit.counted(host, "nhm_sched_agent_breaker_open", address=agent.address) == 0


def test_flapping_costs_no_decision_its_time(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address, mirror_max_age_s=1.0)
    mirrored(host, kit)
    reasons = set()
    for _ in range(4):
        agent.stop()
        reasons |= {one.reason for one in in_time(host, kit, 200)}
        agent.start()
        reasons |= {one.reason for one in in_time(host, kit, 200)}
    assert Reason.INTERNAL_ERROR not in reasons
    kit.wait_for(lambda: remote(host).mirror.age_s() < 0.5, 20)


def test_calls_are_counted_by_code(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address)
    mirrored(host, kit)

    def calls(method: str, code: str) -> float:
        return kit.counted(
            host,
            "grpc_client_handled_total",
            grpc_type="unary",
            grpc_service="OptimizerAgent",
            grpc_method=method,
            grpc_code=code,
        )

    assert calls("GetPolicySnapshot", "OK") >= 1
    agent.mode = "full"
    kit.wait_for(lambda: calls("GetPolicySnapshot", "ResourceExhausted") >= 1, 20)
    assert 0 <= kit.counted(host, "nhm_sched_mirror_age_seconds") < 60


def test_another_budget_holds_for_calls_too(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address)
    mirrored(host, kit)
    longer = host.settings.optimizer.model_copy(update={"decision_budget_ms": 2.5 * BUDGET_S * 1000})
    host._plugin._reconfigure(host.settings.model_copy(update={"optimizer": longer}))
    agent.mode = "hang"
    began = time.perf_counter()
    with pytest.raises(AgentUnavailableError, match="DEADLINE_EXCEEDED"):
        remote(host).ask("GetLoadForecast", lambda: pb.ForecastRequest(horizon_minutes=60))
    assert time.perf_counter() - began > BUDGET_S


@pytest.mark.parametrize(
    "wrong",
    [
        {"recording": {"hash_fields": ["ticket_id"], "hash_key_file": "none"}},
        {"metrics": {"enabled": True, "port": 0, "token_file": "none"}},
    ],
)
def test_a_start_that_fails_leaves_no_thread_and_no_lock(
    agent: ScriptedAgent, kit: Any, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    def threads() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name.startswith("nhm-sched")}

    before = threads()
    data = tmp_path / "host"
    with pytest.raises(ConfigError):
        kit.start({"data_dir": str(data), "optimizer": {"endpoint": agent.address}, **wrong}, built_in=True)
    kit.wait_for(lambda: threads() <= before)
    outbox = Outbox(data / "outbox", 1 << 20)
    assert outbox.take_turn()
    outbox.close()


def test_a_token_in_plain_text_is_a_wrong_setting(tmp_path: Path, ask: Ask) -> None:
    (tmp_path / "token").write_text("secret")
    with pytest.raises(ConfigError, match=r"optimizer\.token_file"):
        ask("agent.example:50053", token_file=str(tmp_path / "token"))


def test_grpc_is_imported_by_nobody_who_asks_no_agent(tmp_path: Path) -> None:
    code = (
        "import sys; from nhm_sched_plugin import SchedulerHost\n"
        "import nhm_sched_plugin.advice.client\n"
        f"config = {{'data_dir': {str(tmp_path)!r}, 'metrics': {{'enabled': False}}}}\n"
        "with SchedulerHost.from_config(config) as host: host.decide(None, {'queue_depth': 1})\n"
        "heavy = 'grpc', 'tenacity', 'nhm_sched_plugin.pb.optimizer_agent_pb2'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_one_clear_message(tmp_path: Path) -> None:
    code = (
        "import importlib.util as util; real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'grpc' else real(name, *rest)\n"
        "from nhm_sched_plugin import OptimizerGRPCClient\n"
        "OptimizerGRPCClient({'endpoint': '127.0.0.1:50053'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert "optimizer.endpoint needs grpc: pip install 'nhm-sched-plugin[grpc]'" in last


def test_doctor_tells_how_it_stands_with_the_agent(agent: ScriptedAgent, ask: Ask, kit: Any, tmp_path: Path) -> None:
    from nhm_sched_plugin.advice.remote.survey import survey

    before = load_settings({"data_dir": str(tmp_path / "none"), "endpoint": agent.address})
    assert survey(before) == f"{agent.address}: answers; nothing mirrored yet; no outcomes wait"
    assert not (tmp_path / "none").exists()
    host = ask(agent.address)
    mirrored(host, kit)
    decision = host.decide(None, kit.BUSY)
    host.finished(Outcome(decision_id=decision.decision_id, state_after=AFTER))
    kit.wait_for(lambda: agent.taken, 20)
    line = kit.wait_for(lambda: "0 outcomes wait" in (found := survey(host.settings)) and found, 20)
    assert line.startswith(f"{agent.address}: answers; mirror confirmed")
    agent.stop()
    with pytest.raises(NhmSchedError, match=f"{agent.address}: .*UNAVAILABLE"):
        survey(host.settings)
