"""A real agent process is hurt under load: nothing that hosts report is lost, nothing counts twice, decisions go on.

The faults are those of `python -m benchmarks.agent_faults`, which has many rounds of each.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks._faults import Agent, Reporting, serving, settled, two_hosts, until
from benchmarks.agent_faults import FAULTS, HOUR, Clock
from nhm_sched_plugin.advice.remote.survey import survey
from nhm_sched_plugin.agent.learner import Learner
from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.pb import optimizer_agent_pb2_grpc as services
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.types import Action, Experience, Recommendation, SchedulingState
from tests.agent.guarded import Authority

PATIENCE_S = 120.0
BUSY = {"queue_depth": 150, "active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.95}
ROUNDS = {"certificates": 2, "clock-jumps": 3}
AWAY = {"optimizer_unavailable", "forecast_unavailable", "budget_exceeded"}


def test_an_outcome_too_many_does_not_hide_one_that_is_missing(tmp_path: Path) -> None:
    states = [
        SchedulingState(queue_depth=number, active_workers=10, avg_task_duration_ms=60_000) for number in (0, 500)
    ]
    settings = load_settings({"data_dir": str(tmp_path)})
    policy = QPolicy(settings, lambda *_: Recommendation(action=Action.NO_ACTION))
    told = [
        Experience(decision_id=f"d{number}", state=states[number % 2], action=Action.NO_ACTION, reward=number / 10)
        for number in range(6)
    ]
    learner = Learner(settings, policy, Faults(Metrics()))
    learner.record(told)
    learner.close()
    agent = Agent(tmp_path)
    assert agent.mislearned() == (0, 0)
    for learned, wrong in ((told[:5], (1, 0)), ([*told, told[0]], (0, 1)), ([*told[:5], told[0]], (1, 1))):
        table = QTable()
        for experience in learned:
            policy.steps.apply(table, experience)
        table.save(settings.q_table_path)
        assert agent.mislearned() == wrong


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_and_nothing_counts_twice(fault: str, tmp_path: Path) -> None:
    count = FAULTS[fault](tmp_path, ROUNDS.get(fault, 1))
    assert count.exact, count


def test_an_agent_on_a_full_disk_goes_on_advising_and_says_what_is_wrong(kit: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    outcome = pb.OutcomeRequest(state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.5, decision_id="d1")
    with serving(tmp_path / "agent") as agent, grpc.insecure_channel(agent.address) as channel:
        stub = services.OptimizerAgentStub(channel)
        forecast = pb.ForecastRequest(horizon_minutes=60)
        kit.wait_for(lambda: stub.GetLoadForecast(forecast, timeout=PATIENCE_S).mean_volume == 500, PATIENCE_S)
        with agent.full_disk():
            with pytest.raises(grpc.RpcError) as caught:
                stub.RecordActionOutcome(outcome, timeout=PATIENCE_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "could not be written" in caught.value.details()
            assert stub.GetLoadForecast(forecast, timeout=PATIENCE_S).mean_volume == 500
            said = stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
            assert said.policy_version == "q4-untrained"
        assert stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted, "by itself, as soon as there is room"
        kit.wait_for(lambda: "ledger.sqlite cannot be used" in agent.errors.read_text(), PATIENCE_S)


def test_hosts_keep_deciding_by_the_policy_while_the_agent_is_dead(kit: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "agent", volume=900.0)
    with serving(tmp_path / "agent") as agent, two_hosts(tmp_path, agent.address) as hosts:
        for host in hosts:
            until(lambda host=host: host.reasons.keys() - AWAY)
        agent.kill()
        before = [host.reasons.copy() for host in hosts]
        for host in hosts:
            host.more(50)
        for host, until_then in zip(hosts, before, strict=True):
            assert not (host.reasons - until_then).keys() & AWAY, "from the mirror"
        agent.start()
        assert settled(agent, *hosts).exact


def test_the_agents_clock_jumps_an_hour_either_way(kit: Any, serving: Any, tmp_path: Path) -> None:
    """Forecasts are for another hour then; what was learned, and what counts as known, does not change."""
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    clock = Clock()
    agent = serving(clock=clock).ready()
    host = Reporting(tmp_path / "host", agent.address)
    try:
        for ahead in (0.0, HOUR, -HOUR, 0.0):
            clock.ahead = ahead
            host.more()
            forecast = agent.stub.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=PATIENCE_S)
            assert forecast.mean_volume == 500
            said = agent.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
            assert said.policy_version.startswith("q4-")
        host.stop()
        known = set(agent.server._learner.ledger._file.run(_ids))
        assert known == set(host.sent)
        again = pb.OutcomeRequest(
            state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.5, decision_id=host.sent[0]
        )
        answer = agent.stub.RecordActionOutcome(again, timeout=PATIENCE_S)
        assert (answer.accepted, answer.updates) == (False, len(known))
    finally:
        host.close()


def _ids(connection: Any) -> list[str]:
    return [row[0] for row in connection.execute("SELECT decision_id FROM outcomes")]


def test_an_expired_certificate_is_told_and_renewed_while_all_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "authority")
    files = authority.pair("127.0.0.1", expired=True)
    caplog.set_level(logging.WARNING)
    with serving(tmp_path / "agent", {f"agent__{name}": path for name, path in files.items()}) as agent:
        host = Reporting(tmp_path / "host", agent.address, tls_ca_file=str(authority.file))
        try:
            host.more()
            until(lambda: "certificate has expired" in caplog.text)
            assert not host.reasons.keys() - AWAY
            optimizer = {"endpoint": agent.address, "tls_ca_file": str(authority.file)}
            asked = load_settings({"data_dir": str(tmp_path / "other"), "optimizer": optimizer})
            with pytest.raises(NhmSchedError, match="certificate has expired"):
                survey(asked)
            authority.pair("127.0.0.1")
            assert settled(agent, host).exact
        finally:
            host.close()
