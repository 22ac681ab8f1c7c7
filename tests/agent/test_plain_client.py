"""A client built from the printed interface and the agreed numbers alone, where this package cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
from specified import AGREED

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.pb import optimizer_agent_pb2_grpc as services

PATIENCE_S = 120.0
CLIENT = """
import json, sys
folder, libraries, address = sys.argv[1:]
sys.path[:0] = [libraries, folder]
try:
    import nhm_sched_plugin
except ModuleNotFoundError:
    pass
else:
    sys.exit("the package can be imported")
import grpc
from grpc_tools import protoc
made = [f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
assert protoc.main(["protoc", *made, "client.proto"]) == 0
import client_pb2 as pb, client_pb2_grpc
state = pb.StateRequest(queue_depth=150, active_workers=10, avg_task_duration_ms=60000, resource_cpu_avg=0.95)
with grpc.insecure_channel(address) as channel:
    agent = client_pb2_grpc.OptimizerAgentStub(channel)
    forecast = agent.GetLoadForecast(pb.ForecastRequest(horizon_minutes=60), timeout=60, wait_for_ready=True)
    said = agent.GetSchedulingRecommendation(state, timeout=60)
    outcome = pb.OutcomeRequest(state=state, action=said.action, reward=0.5, decision_id=said.decision_id, applied=True)
    told = [agent.RecordActionOutcome(outcome, timeout=60) for _ in range(2)]
    try:
        agent.GetLoadForecast(pb.ForecastRequest(horizon_minutes=-1), timeout=60)
    except grpc.RpcError as error:
        refused = [error.code().name, error.details()]
print(json.dumps({
    "forecast": [forecast.predicted_volume, forecast.forecast_horizon_minutes, forecast.timestamp],
    "said": [said.action, dict(said.parameters), said.policy_version, said.decision_id],
    "told": [[each.accepted, each.updates] for each in told],
    "refused": refused,
}))
"""
LIBRARIES = ("grpc", "grpc_tools", "google", "typing_extensions.py")


def test_the_printed_interface_is_enough(kit: Any, command: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    agent = command()
    with grpc.insecure_channel(agent.address) as channel:
        stub = services.OptimizerAgentStub(channel)
        ask = pb.ForecastRequest(horizon_minutes=60)
        kit.wait_for(lambda: stub.GetLoadForecast(ask, timeout=PATIENCE_S).mean_volume == 500, PATIENCE_S)
    folder, libraries = tmp_path / "client", tmp_path / "libraries"
    folder.mkdir()
    libraries.mkdir()
    for name in LIBRARIES:
        (libraries / name).symlink_to(Path(grpc.__file__).parents[1] / name)
    (folder / "client.proto").write_text(AGREED)
    # Isolated: no variables, no current folder, no site-packages; of them the libraries above, nothing of ours.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CLIENT, str(folder), str(libraries), agent.address],
        capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    volume, horizon, timestamp = found["forecast"]
    assert (volume, horizon) == (500, 60)
    assert timestamp > 1_700_000_000_000
    action, parameters, version, decision_id = found["said"]
    assert (action, version) == ("INCREASE_WORKER_POOL", "q4-untrained")
    assert int(parameters["target_workers"]) > 10
    assert decision_id
    assert found["told"] == [[True, 1], [False, 1]], "a decision counts once"
    code, details = found["refused"]
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("horizon_minutes")
