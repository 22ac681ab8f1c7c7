"""A client built from the printed interface alone, in a process that cannot import this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROTO = """
syntax = "proto3";

service OptimizerAgent {
    rpc GetLoadForecast(ForecastRequest) returns (ForecastResponse);
    rpc GetSchedulingRecommendation(StateRequest) returns (RecommendationResponse);
}

message ForecastRequest {
    int32 horizon_minutes = 1;
    string task_type = 2;
    string risk_band = 3;
}

message ForecastResponse {
    int32 predicted_volume = 1;
    float confidence = 2;
    int32 forecast_horizon_minutes = 3;
    float resource_demand_cpu = 4;
    float resource_demand_memory = 5;
    float bottleneck_probability = 6;
    int64 timestamp = 7;
}

message StateRequest {
    optional double queue_depth = 1;
    optional double active_workers = 2;
    optional double avg_task_duration_ms = 3;
    optional double sla_compliance_rate = 4;
    optional double predicted_load_1h = 5;
    optional double predicted_load_6h = 6;
    optional double resource_cpu_avg = 7;
    optional double resource_memory_avg = 8;
    string task_type = 9;
    string risk_band = 10;
}

message RecommendationResponse {
    string action = 1;
    float confidence = 2;
    map<string, string> parameters = 3;
    string justification = 4;
}
"""
CLIENT = """
import importlib.abc, json, sys
class NotHere(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nhm_sched_plugin":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NotHere())
import grpc
from grpc_tools import protoc
folder, address = sys.argv[1:]
made = [f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
assert protoc.main(["protoc", *made, "client.proto"]) == 0
sys.path.insert(0, folder)
import client_pb2, client_pb2_grpc
with grpc.insecure_channel(address) as channel:
    agent = client_pb2_grpc.OptimizerAgentStub(channel)
    forecast = agent.GetLoadForecast(client_pb2.ForecastRequest(horizon_minutes=60), timeout=60)
    state = dict(queue_depth=150, active_workers=10, avg_task_duration_ms=60000, resource_cpu_avg=0.95)
    said = agent.GetSchedulingRecommendation(client_pb2.StateRequest(**state), timeout=60)
print(json.dumps([forecast.predicted_volume, forecast.forecast_horizon_minutes, said.action, dict(said.parameters)]))
assert not [name for name in sys.modules if name.startswith("nhm_sched_plugin")]
"""


def test_the_printed_interface_is_enough(kit: Any, serving: Any, tmp_path: Path) -> None:
    kit.write_forecast(tmp_path / "agent", volume=500.0)
    agent = serving().ready()
    (tmp_path / "client.proto").write_text(PROTO)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path), agent.address],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    volume, horizon, action, parameters = json.loads(done.stdout)
    assert (volume, horizon, action) == (500, 60, "INCREASE_WORKER_POOL")
    assert int(parameters["target_workers"]) > 10
