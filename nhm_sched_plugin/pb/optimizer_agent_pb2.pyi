from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ForecastRequest(_message.Message):
    __slots__ = ("horizon_minutes", "task_type", "risk_band")
    HORIZON_MINUTES_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    RISK_BAND_FIELD_NUMBER: _ClassVar[int]
    horizon_minutes: int
    task_type: str
    risk_band: str
    def __init__(self, horizon_minutes: _Optional[int] = ..., task_type: _Optional[str] = ..., risk_band: _Optional[str] = ...) -> None: ...

class ForecastResponse(_message.Message):
    __slots__ = ("predicted_volume", "confidence", "forecast_horizon_minutes", "resource_demand_cpu", "resource_demand_memory", "bottleneck_probability", "timestamp", "mean_volume", "total_volume", "peak_volume", "peak_timestamp", "quantiles", "hours", "model_version", "method")
    PREDICTED_VOLUME_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    FORECAST_HORIZON_MINUTES_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_DEMAND_CPU_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_DEMAND_MEMORY_FIELD_NUMBER: _ClassVar[int]
    BOTTLENECK_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    MEAN_VOLUME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_VOLUME_FIELD_NUMBER: _ClassVar[int]
    PEAK_VOLUME_FIELD_NUMBER: _ClassVar[int]
    PEAK_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    predicted_volume: int
    confidence: float
    forecast_horizon_minutes: int
    resource_demand_cpu: float
    resource_demand_memory: float
    bottleneck_probability: float
    timestamp: int
    mean_volume: float
    total_volume: float
    peak_volume: float
    peak_timestamp: int
    quantiles: _containers.RepeatedCompositeFieldContainer[Quantile]
    hours: _containers.RepeatedCompositeFieldContainer[ForecastHour]
    model_version: str
    method: str
    def __init__(self, predicted_volume: _Optional[int] = ..., confidence: _Optional[float] = ..., forecast_horizon_minutes: _Optional[int] = ..., resource_demand_cpu: _Optional[float] = ..., resource_demand_memory: _Optional[float] = ..., bottleneck_probability: _Optional[float] = ..., timestamp: _Optional[int] = ..., mean_volume: _Optional[float] = ..., total_volume: _Optional[float] = ..., peak_volume: _Optional[float] = ..., peak_timestamp: _Optional[int] = ..., quantiles: _Optional[_Iterable[_Union[Quantile, _Mapping]]] = ..., hours: _Optional[_Iterable[_Union[ForecastHour, _Mapping]]] = ..., model_version: _Optional[str] = ..., method: _Optional[str] = ...) -> None: ...

class Quantile(_message.Message):
    __slots__ = ("level", "value")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    level: float
    value: float
    def __init__(self, level: _Optional[float] = ..., value: _Optional[float] = ...) -> None: ...

class ForecastHour(_message.Message):
    __slots__ = ("timestamp", "mean", "quantiles")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    timestamp: int
    mean: float
    quantiles: _containers.RepeatedCompositeFieldContainer[Quantile]
    def __init__(self, timestamp: _Optional[int] = ..., mean: _Optional[float] = ..., quantiles: _Optional[_Iterable[_Union[Quantile, _Mapping]]] = ...) -> None: ...

class StateRequest(_message.Message):
    __slots__ = ("queue_depth", "active_workers", "avg_task_duration_ms", "sla_compliance_rate", "predicted_load_1h", "predicted_load_6h", "resource_cpu_avg", "resource_memory_avg", "task_type", "risk_band", "features")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    QUEUE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_WORKERS_FIELD_NUMBER: _ClassVar[int]
    AVG_TASK_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    SLA_COMPLIANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_LOAD_1H_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_LOAD_6H_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_CPU_AVG_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_MEMORY_AVG_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    RISK_BAND_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    queue_depth: float
    active_workers: float
    avg_task_duration_ms: float
    sla_compliance_rate: float
    predicted_load_1h: float
    predicted_load_6h: float
    resource_cpu_avg: float
    resource_memory_avg: float
    task_type: str
    risk_band: str
    features: _containers.ScalarMap[str, float]
    def __init__(self, queue_depth: _Optional[float] = ..., active_workers: _Optional[float] = ..., avg_task_duration_ms: _Optional[float] = ..., sla_compliance_rate: _Optional[float] = ..., predicted_load_1h: _Optional[float] = ..., predicted_load_6h: _Optional[float] = ..., resource_cpu_avg: _Optional[float] = ..., resource_memory_avg: _Optional[float] = ..., task_type: _Optional[str] = ..., risk_band: _Optional[str] = ..., features: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RecommendationResponse(_message.Message):
    __slots__ = ("action", "confidence", "parameters", "justification", "expected_improvement", "risk_score", "is_exploration", "decision_id", "policy_version", "state_hash", "timestamp", "propensity")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    JUSTIFICATION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_IMPROVEMENT_FIELD_NUMBER: _ClassVar[int]
    RISK_SCORE_FIELD_NUMBER: _ClassVar[int]
    IS_EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_HASH_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    action: str
    confidence: float
    parameters: _containers.ScalarMap[str, str]
    justification: str
    expected_improvement: float
    risk_score: float
    is_exploration: bool
    decision_id: str
    policy_version: str
    state_hash: str
    timestamp: int
    propensity: float
    def __init__(self, action: _Optional[str] = ..., confidence: _Optional[float] = ..., parameters: _Optional[_Mapping[str, str]] = ..., justification: _Optional[str] = ..., expected_improvement: _Optional[float] = ..., risk_score: _Optional[float] = ..., is_exploration: bool = ..., decision_id: _Optional[str] = ..., policy_version: _Optional[str] = ..., state_hash: _Optional[str] = ..., timestamp: _Optional[int] = ..., propensity: _Optional[float] = ...) -> None: ...

class OutcomeRequest(_message.Message):
    __slots__ = ("state", "action", "reward", "next_state", "decision_id", "applied", "rejection_reason", "arm", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    NEXT_STATE_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    REJECTION_REASON_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    state: StateRequest
    action: str
    reward: float
    next_state: StateRequest
    decision_id: str
    applied: bool
    rejection_reason: str
    arm: str
    parameters: _containers.ScalarMap[str, str]
    def __init__(self, state: _Optional[_Union[StateRequest, _Mapping]] = ..., action: _Optional[str] = ..., reward: _Optional[float] = ..., next_state: _Optional[_Union[StateRequest, _Mapping]] = ..., decision_id: _Optional[str] = ..., applied: bool = ..., rejection_reason: _Optional[str] = ..., arm: _Optional[str] = ..., parameters: _Optional[_Mapping[str, str]] = ...) -> None: ...

class OutcomeResponse(_message.Message):
    __slots__ = ("accepted", "updates", "q_value")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    Q_VALUE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    updates: int
    q_value: float
    def __init__(self, accepted: bool = ..., updates: _Optional[int] = ..., q_value: _Optional[float] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("etag",)
    ETAG_FIELD_NUMBER: _ClassVar[int]
    etag: str
    def __init__(self, etag: _Optional[str] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("version", "etag", "not_modified", "content", "timestamp")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    version: int
    etag: str
    not_modified: bool
    content: bytes
    timestamp: int
    def __init__(self, version: _Optional[int] = ..., etag: _Optional[str] = ..., not_modified: bool = ..., content: _Optional[bytes] = ..., timestamp: _Optional[int] = ...) -> None: ...
