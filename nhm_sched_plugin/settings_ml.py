"""The settings of the `ml` section: where the records live, how models are trained, what is forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = [
    "CachingSettings",
    "ClickHouseSettings",
    "ExpandedPath",
    "Fraction",
    "MlSettings",
    "ProphetSettings",
    "RetentionSettings",
    "TlsTree",
    "Tree",
    "checked_redis_url",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
ExpandedPath = Annotated[Path, AfterValidator(lambda path: path.expanduser())]


class Tree(BaseModel):
    """A section: unknown keys are refused, and it cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, and true would pass for 1."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected no switch (true, false, yes, no, on, off)")
        return value


class TlsTree(Tree):
    """A section with `tls_cert_file` and `tls_key_file`: both or neither."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (getattr(self, "tls_cert_file", None) is None) != (getattr(self, "tls_key_file", None) is None):
            raise ValueError("tls_cert_file and tls_key_file belong together; set both or neither")
        return self


Days = Annotated[int, Field(ge=1, le=36_500)]


class RetentionSettings(Tree):
    """Days after which the database deletes a row, by table; null keeps it for ever. Applied by `nhm-sched init`."""

    execution_logs: Days | None = 540
    """Counted from the ticket's arrival."""
    telemetry_metrics: Days | None = 365
    """Counted from the sample."""
    queue_snapshots: Days | None = 180
    """Counted from the look at the queue."""
    scheduling_decisions: Days | None = 365
    """Decisions and their outcomes, counted from the moment of storing."""
    forecasts: Days | None = 365
    """Counted from the moment of storing."""

    def by_table(self) -> dict[str, int | None]:
        """As the tables are called: a decision and its outcome are in two."""
        days: dict[str, int | None] = self.model_dump()
        days["scheduling_decisions_raw"] = days["scheduling_outcomes"] = days.pop("scheduling_decisions")
        return days


class ClickHouseSettings(Tree):
    """Where the records live."""

    dsn: SecretStr | None = None
    """`chdb:///path`, `clickhouse://`, `http://` or `https://`. Wins over host and port."""
    host: str | None = None
    """Unset: the embedded engine under `data_dir`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8123
    """Of the HTTP interface: 8123, or 8443 with TLS. 9000 is the native port, which is not spoken here."""
    user: str = "default"
    """Who the records are written as."""
    password: SecretStr | None = None
    """From the environment (`NHM_SCHED_ML__CLICKHOUSE__PASSWORD`), not from here; better `password_file`."""
    password_file: ExpandedPath | None = None
    """File that holds the password and nothing else."""
    password_secret: str | None = None
    """Name of the Kubernetes secret that the chart mounts; not read here."""
    secure: bool = False
    """TLS to the server."""
    database: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "neural_hive"
    """Made by `nhm-sched init`."""
    cluster: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")] | None = None
    """Name of a ClickHouse cluster: `init` makes replicated tables on all of its servers. Unset: one server."""
    retention_days: RetentionSettings = RetentionSettings()

    @property
    def embedded(self) -> bool:
        """Whether the records live in the embedded engine, which one process at a time may open."""
        if self.dsn is not None:
            return self.dsn.get_secret_value().lower().startswith("chdb:")
        return self.host is None


class ProphetSettings(Tree):
    seasonality_mode: Literal["additive", "multiplicative"] = "additive"
    """Whether the seasons add to the trend or scale it."""
    changepoint_prior_scale: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05
    """How freely the trend may bend."""
    seasonality_prior_scale: Annotated[float, Field(ge=0.01, le=10)] = 10.0
    """How strong the seasons may be."""


class SchedulingSettings(Tree):
    """Q-learning, with the specification's tuning ranges."""

    epsilon: Annotated[float, Field(ge=0.05, le=0.2)] = 0.1
    """Share of decisions that try another action; treatment arm only."""
    learning_rate: Annotated[float, Field(ge=0.001, le=0.1)] = 0.01
    """How far one outcome moves a value."""
    discount_factor: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Weight of the next state against the reward now."""
    update_interval: Annotated[int, Field(ge=1)] = 100
    """Save the Q-table after this many updates."""
    deviate: bool = False
    """Leave the planner's action for another where the trials are sure that it saves more (`docs/policy.md`)."""
    seed: int | None = None
    """Of the exploration draws; set it to repeat a run."""


class TrainingSettings(Tree):
    interval_hours: Annotated[int, Field(ge=1)] = 24
    """How often a chart schedules the training; not read here, see [training](training.md#schedule)."""
    window_days: Annotated[int, Field(ge=1, le=3650)] = 540
    """How much history is trained on."""
    max_mape: Annotated[float, Field(gt=0)] = 25.0
    """Percent; a model at or above it is not promoted."""
    outliers: Literal["drop", "keep"] = "drop"
    """Isolated hours that nothing explains, as [data quality](data-quality.md) defines them: missing, or trained on."""
    tracking_uri: str | None = None
    """MLflow registry; unset: sqlite under `data_dir`."""


class ForecastingSettings(Tree):
    horizons: Annotated[tuple[Annotated[int, Field(ge=60, le=10_080)], ...], Field(min_length=1)] = (60, 360, 1440)
    """Minutes ahead, each with a model of its own."""
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")] | None = "BR"
    """ISO 3166 code of the holidays in the fit; null for none."""
    holidays: ExpandedPath | None = None
    """Your own holidays besides: a CSV file with the columns `date,name`, or a YAML list of such pairs."""
    regressors: ExpandedPath | None = None
    """What drives the load and is known ahead: a CSV file `timestamp,NAME,...`, hourly, past and future hours."""
    live: Literal["auto", "whole", "off"] = "auto"
    """Correct forecasts by the tickets that come: `auto` learns this host's share, `whole`: it sees all; or `off`."""


def checked_redis_url(value: SecretStr) -> SecretStr:
    """Raises ValueError for a URL that cannot work, without quoting it: it may hold a password."""
    try:
        parts = urlsplit(value.get_secret_value())
        _ = parts.port
    except ValueError:
        raise ValueError("is no URL (the port must be a number up to 65535); write redis://host:6379/0") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("expected redis://host:6379/0, rediss://host:6379/0 (TLS) or unix:///path/to/socket")
    if not (parts.path if parts.scheme == "unix" else parts.hostname):
        raise ValueError(f"names no {'socket' if parts.scheme == 'unix' else 'host'}; write redis://host:6379/0")
    return value


RedisUrl = Annotated[SecretStr, AfterValidator(checked_redis_url)]


class CachingSettings(Tree):
    """What is kept for others or for later; see [caching](caching.md). Never the only copy of anything."""

    enabled: bool = True
    """False: nothing is cached, neither in the process nor in Redis."""
    model_ttl: Annotated[int, Field(ge=1)] = 3600
    """Seconds that a cached model lives."""
    forecast_ttl: Annotated[int, Field(ge=1)] = 300
    """Seconds that a cached forecast table lives."""
    q_table_ttl: Annotated[int, Field(ge=1)] = 7200
    """Seconds that a cached Q-table, with its planner, lives. Running hosts renew what they have."""
    redis_url: RedisUrl | None = None
    """`redis://`, `rediss://` (TLS) or `unix://`, from the environment; better `redis_url_file`. Unset: in process."""
    redis_url_file: ExpandedPath | None = None
    """File that holds the URL and nothing else; read again after a failure, so that passwords can change."""
    redis_connect_timeout_s: Annotated[float, Field(gt=0, le=10)] = 0.25
    """Longest wait for a connection."""
    redis_read_timeout_s: Annotated[float, Field(gt=0, le=10)] = 0.25
    """Longest wait for an answer."""
    key_prefix: Annotated[str, Field(min_length=1)] = "nhm_sched"
    """What every key in Redis begins with. Hosts with the same one share their tables: one for each pool."""

    @model_validator(mode="after")
    def _one_url(self) -> CachingSettings:
        if self.redis_url is not None and self.redis_url_file is not None:
            raise ValueError("redis_url and redis_url_file are both set; keep one of them")
        return self

    @property
    def in_redis(self) -> bool:
        """Whether other hosts see what is cached."""
        return self.enabled and (self.redis_url is not None or self.redis_url_file is not None)


class MlSettings(Tree):
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    prophet: ProphetSettings = ProphetSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    training: TrainingSettings = TrainingSettings()
    forecasting: ForecastingSettings = ForecastingSettings()
    caching: CachingSettings = CachingSettings()
