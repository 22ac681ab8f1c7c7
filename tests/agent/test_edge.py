"""An agent that asks another one: it answers from that one's tables and passes outcomes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

PATIENCE_S = 120.0
BUSY = {"queue_depth": 150, "active_workers": 10, "avg_task_duration_ms": 60_000, "resource_cpu_avg": 0.95}


def test_an_edge_answers_from_the_first_ones_tables_and_passes_outcomes_on(
    kit: Any, serving: Any, tmp_path: Path
) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    first = serving({"ml": {"scheduling": {"update_interval": 10}}}).ready()
    edge = serving(
        {"data_dir": str(tmp_path / "edge"), "optimizer": {"endpoint": first.address, "mirror_interval_s": 0.1}}
    ).ready()
    ask = pb.ForecastRequest(horizon_minutes=60)
    kit.wait_for(lambda: edge.stub.GetLoadForecast(ask, timeout=PATIENCE_S).mean_volume == 500, PATIENCE_S)
    said = edge.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
    assert said.policy_version == "q2-untrained"
    whole = first.stub.GetForecastSnapshot(pb.SnapshotRequest())

    def handed_on() -> bool:
        return edge.stub.GetForecastSnapshot(pb.SnapshotRequest(), timeout=PATIENCE_S).etag == whole.etag

    kit.wait_for(handed_on, PATIENCE_S)
    for number in range(20):
        outcome = pb.OutcomeRequest(
            state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.5, decision_id=f"d{number}"
        )
        assert edge.stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted
        assert not edge.stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted, "once, at the edge too"
    kit.wait_for(lambda: first.handled("RecordActionOutcome") >= 20, PATIENCE_S)

    def learned() -> bool:
        request = pb.StateRequest(**BUSY)
        version = edge.stub.GetSchedulingRecommendation(request, timeout=PATIENCE_S).policy_version
        return bool(version.startswith("q2-") and version != "q2-untrained")

    kit.wait_for(learned, PATIENCE_S)


def test_an_edge_whose_first_agent_is_away_has_the_rules(serving: Any, tmp_path: Path) -> None:
    edge = serving({"optimizer": {"endpoint": "127.0.0.1:1"}}).ready()
    said = edge.stub.GetSchedulingRecommendation(pb.StateRequest(**BUSY), timeout=PATIENCE_S)
    assert (said.action, said.confidence) == ("INCREASE_WORKER_POOL", 0.5)
    outcome = pb.OutcomeRequest(state=pb.StateRequest(**BUSY), action="NO_ACTION", reward=0.5, decision_id="d1")
    assert edge.stub.RecordActionOutcome(outcome, timeout=PATIENCE_S).accepted, "it waits on disk"


def test_the_command_says_that_it_is_an_edge(command: Any) -> None:
    edge = command(NHM_SCHED_OPTIMIZER__ENDPOINT="127.0.0.1:1, 127.0.0.1:2")
    assert edge.process.stdout.readline().startswith("an edge of 127.0.0.1:1, 127.0.0.1:2: ")
