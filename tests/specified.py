"""The wire format as others write it down, without looking at ours: what clients of the agent are built from."""

from __future__ import annotations

__all__ = ["AGREED", "PRINTED"]

_FORECASTS = """
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
"""

# The interface as the specification prints it, word for word; the two messages that it names without printing them
# are empty here, as a client built from nothing else would have them.
PRINTED = f"""
syntax = "proto3";
message StateRequest {{}}
message RecommendationResponse {{}}

service OptimizerAgent {{
    rpc GetLoadForecast(ForecastRequest) returns (ForecastResponse);
    rpc GetSchedulingRecommendation(StateRequest) returns (RecommendationResponse);
}}
{_FORECASTS}"""

# The same with the agreed numbers of everything that is not printed.
AGREED = f"""
syntax = "proto3";

service OptimizerAgent {{
    rpc GetLoadForecast(ForecastRequest) returns (ForecastResponse);
    rpc GetSchedulingRecommendation(StateRequest) returns (RecommendationResponse);
    rpc RecordActionOutcome(OutcomeRequest) returns (OutcomeResponse);
}}
{_FORECASTS}
message StateRequest {{
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
}}

message RecommendationResponse {{
    string action = 1;
    float confidence = 2;
    map<string, string> parameters = 3;
    string justification = 4;
    float expected_improvement = 5;
    float risk_score = 6;
    bool is_exploration = 7;
    string decision_id = 8;
    string policy_version = 9;
    string state_hash = 10;
    int64 timestamp = 11;
}}

message OutcomeRequest {{
    StateRequest state = 1;
    string action = 2;
    double reward = 3;
    optional StateRequest next_state = 4;
    string decision_id = 5;
    bool applied = 6;
    string rejection_reason = 7;
    string arm = 8;
}}

message OutcomeResponse {{
    bool accepted = 1;
    int64 updates = 2;
    double q_value = 3;
}}
"""
