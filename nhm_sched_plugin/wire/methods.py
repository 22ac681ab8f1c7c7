"""The agent's RPCs by name, with the messages that they take and give."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    request: Any
    answer: Any


METHODS: Final = {
    "GetLoadForecast": Method(pb.ForecastRequest, pb.ForecastResponse),
    "GetSchedulingRecommendation": Method(pb.StateRequest, pb.RecommendationResponse),
    "RecordActionOutcome": Method(pb.OutcomeRequest, pb.OutcomeResponse),
    "GetPolicySnapshot": Method(pb.SnapshotRequest, pb.SnapshotResponse),
    "GetForecastSnapshot": Method(pb.SnapshotRequest, pb.SnapshotResponse),
}
