"""The generated code is up to date, and the wire format is what older and independent clients speak."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc
from specified import PRINTED

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import STATE_FIELDS

CHECKOUT = Path(__file__).resolve().parents[2]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_proto", CHECKOUT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def specified(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pool.DescriptorPool:
    folder = tmp_path_factory.mktemp("specified")
    (folder / "client.proto").write_text(PRINTED)
    compiled = folder / "client.bin"
    assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={compiled}", "client.proto"]) == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file:
        pool.Add(file)
    return pool


def message_class(pool: descriptor_pool.DescriptorPool, name: str) -> type:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    generator = load_generator()
    generator.generate(tmp_path)
    committed = CHECKOUT / "nhm_sched_plugin" / "pb"
    assert {path.name for path in committed.iterdir() if path.is_file()} == {*generator.NAMES, "__init__.py"}
    for name in generator.NAMES:
        assert (committed / name).read_bytes() == (tmp_path / name).read_bytes(), f"{name}: run `make proto`"


def test_a_specified_client_reads_what_this_server_writes(specified: descriptor_pool.DescriptorPool) -> None:
    ours = pb.ForecastResponse(
        predicted_volume=125,
        confidence=0.7,
        forecast_horizon_minutes=60,
        resource_demand_cpu=12.5,
        resource_demand_memory=30.25,
        bottleneck_probability=0.375,
        timestamp=1_767_225_600_000,
        mean_volume=125.4,
        total_volume=125.4,
        quantiles=[pb.Quantile(level=0.9, value=150.0)],
        method="prophet",
    )
    theirs = message_class(specified, "ForecastResponse").FromString(ours.SerializeToString())
    for field in ("predicted_volume", "forecast_horizon_minutes", "timestamp", "confidence", "resource_demand_cpu"):
        assert getattr(theirs, field) == getattr(ours, field)
    # An intermediary that knows only the specification hands the rest on unharmed.
    assert pb.ForecastResponse.FromString(theirs.SerializeToString()) == ours


@pytest.mark.parametrize("name", ["ForecastRequest", "ForecastResponse"])
def test_specified_messages_have_the_same_bytes_here(specified: descriptor_pool.DescriptorPool, name: str) -> None:
    values = {
        "horizon_minutes": 360, "task_type": "processing", "risk_band": "medium",
        "predicted_volume": -1, "confidence": 0.7, "forecast_horizon_minutes": 1440, "resource_demand_cpu": 1.5,
        "resource_demand_memory": 2.5, "bottleneck_probability": 0.9, "timestamp": 2**53 + 1,
    }  # fmt: skip
    theirs = message_class(specified, name)()
    for field in theirs.DESCRIPTOR.fields:
        setattr(theirs, field.name, values[field.name])
    ours = getattr(pb, name)(**{field.name: values[field.name] for field in theirs.DESCRIPTOR.fields})
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def test_the_service_has_no_package_and_the_specified_methods(specified: descriptor_pool.DescriptorPool) -> None:
    service = pb.DESCRIPTOR.services_by_name["OptimizerAgent"]
    assert service.full_name == "OptimizerAgent"
    methods = {method.name: (method.input_type.full_name, method.output_type.full_name) for method in service.methods}
    for method in specified.FindServiceByName("OptimizerAgent").methods:
        assert methods[method.name] == (method.input_type.full_name, method.output_type.full_name)
    assert set(methods) == {
        "GetLoadForecast",
        "GetSchedulingRecommendation",
        "RecordActionOutcome",
        "GetPolicySnapshot",
        "GetForecastSnapshot",
    }


def test_state_fields_are_numbered_in_the_order_of_the_specification() -> None:
    fields = pb.StateRequest.DESCRIPTOR.fields_by_number
    assert [fields[number].name for number in range(1, 12)] == [*STATE_FIELDS, "task_type", "risk_band", "features"]
    assert all(fields[number].has_presence for number in range(1, 9))
    assert not pb.StateRequest(active_workers=10).HasField("queue_depth")
    assert pb.StateRequest(queue_depth=0).HasField("queue_depth")


PINNED = {
    "RecommendationResponse": [
        "action", "confidence", "parameters", "justification", "expected_improvement", "risk_score", "is_exploration",
        "decision_id", "policy_version", "state_hash", "timestamp", "propensity",
    ],
    "OutcomeRequest": [
        "state", "action", "reward", "next_state", "decision_id", "applied", "rejection_reason", "arm",
        "parameters",
    ],
    "OutcomeResponse": ["accepted", "updates", "q_value"],
}  # fmt: skip


@pytest.mark.parametrize("message", PINNED)
def test_pinned_field_numbers(message: str) -> None:
    fields = getattr(pb, message).DESCRIPTOR.fields_by_number
    assert [fields[number].name for number in sorted(fields)] == PINNED[message]
    assert sorted(fields) == list(range(1, len(fields) + 1))


def test_confidence_is_single_precision_and_the_action_text() -> None:
    fields = pb.RecommendationResponse.DESCRIPTOR.fields_by_name
    assert fields["confidence"].type == FieldDescriptor.TYPE_FLOAT
    assert fields["action"].type == FieldDescriptor.TYPE_STRING
    entry = fields["parameters"].message_type
    assert entry.GetOptions().map_entry
    assert entry.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING
    assert round(pb.RecommendationResponse(confidence=0.7).confidence, 6) == 0.7


def test_next_state_can_be_absent() -> None:
    outcome = pb.OutcomeRequest(state=pb.StateRequest(queue_depth=3), action="NO_ACTION", reward=0.25)
    assert not outcome.HasField("next_state")
    assert not outcome.HasField("applied")
