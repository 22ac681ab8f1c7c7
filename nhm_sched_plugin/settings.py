"""The configuration: one tree, checked on load, from a YAML file or a mapping plus `NHM_SCHED_*` variables.

Keys may be written as in the specification's Helm values (camelCase) or in snake_case. Environment variables win over
the file; `__` separates levels: `NHM_SCHED_ROLLOUT__PERCENTAGE=20`. The keys of the `optimizer` tree may also stand
at the top level (`decision_budget_ms: 20`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.settings_agent import AgentSettings, OptimizerSettings, names
from nhm_sched_plugin.settings_ml import (
    ClickHouseSettings,
    ExpandedPath,
    Fraction,
    MlSettings,
    ProphetSettings,
    TlsTree,
    Tree,
)
from nhm_sched_plugin.settings_problems import explain

__all__ = ["AgentSettings", "ClickHouseSettings", "ProphetSettings", "Settings", "bundled", "load_settings", "reloaded"]

HOT_SECTIONS: Final = ("rollout", "experiment", "limits", "fallback")
"""What a running host takes over when the configuration file changes,"""
HOT_OPTIMIZER: Final = (
    "enabled",
    "forecast_horizon_minutes",
    "recommendation_confidence_threshold",
    "forecast_volume_threshold",
    "decision_budget_ms",
)
"""and of the section `optimizer` these keys. The rest, such as the agent's address, needs a restart."""


def bundled(kind: Literal["hooks", "fallback"]) -> Path:
    """The folder of drop-in hooks or rule books that ships with the package: in the wheel, else in the checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "bundled_files" / kind
    return shipped if shipped.is_dir() else package.parent / kind


class RolloutSettings(Tree):
    """Which decisions follow the policy. Hot-reloaded."""

    percentage: Annotated[int, Field(ge=0, le=100)] = 0
    """0 is shadow mode: the policy is asked and recorded, the rules are applied."""
    unit: Literal["ticket", "task_type", "switchback"] = "ticket"
    """What is assigned to an arm as a whole; `switchback` assigns blocks of time, right for pool-wide actions."""
    salt: str = "nhm_sched"
    """Another salt draws the units anew."""
    block_minutes: Annotated[int, Field(ge=1, le=10_080)] = 60
    """Length of a switchback block; control ticks always go by it."""


class ExperimentSettings(Tree):
    """A/B test among the units inside the rollout."""

    enabled: bool = False
    """Whether the test runs."""
    control_group_pct: Fraction = 0.2
    """Share of the units inside the rollout that get the rules instead."""
    treatment_group_pct: Fraction = 0.8
    """The rest; both add up to 1."""
    min_samples: Annotated[int, Field(ge=2)] = 1000
    """Outcomes in each group before a comparison counts (`nhm-sched shadow report`, `nhm-sched experiment result`)."""
    confidence_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """How sure a comparison has to be: the level of its intervals and of the test that may be looked at daily."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> ExperimentSettings:
        if abs(self.control_group_pct + self.treatment_group_pct - 1) > 1e-9:
            raise ValueError("control_group_pct and treatment_group_pct must add up to 1")
        return self


class LimitSettings(Tree):
    """The built-in guard: what no recommendation may exceed."""

    min_workers: Annotated[int, Field(ge=0)] = 1
    """No recommendation goes below."""
    max_workers: Annotated[int, Field(ge=1)] = 1000
    """No recommendation goes above."""
    max_step: Annotated[int, Field(ge=1)] | None = None
    """Most workers added or removed by one decision; unset: no limit."""
    cooldown_s: Annotated[float, Field(ge=0)] = 60.0
    """After an applied pool action, no removal of workers for this long."""

    @model_validator(mode="after")
    def _ordered(self) -> LimitSettings:
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers {self.min_workers} is above max_workers {self.max_workers}")
        return self


class PlannerSettings(Tree):
    """The capacity planner behind `target_workers`."""

    startup_s: Annotated[float, Field(ge=0)] = 120.0
    """How long a new worker takes until it can start a ticket."""
    sla_wait_s: Annotated[float, Field(gt=0)] = 60.0
    """A ticket meets its SLA when it starts within this time."""
    late_cost: Annotated[float, Field(gt=0, le=1000)] = 25.0
    """What a late ticket costs, in tickets' worth of work: calibration weighs it against idle workers."""


class FallbackSettings(Tree):
    rule_book: str = "default"
    """Name of a bundled rule book (`default`, `conservative`) or a path to your own YAML. Hot-reloaded."""


class RecordingSettings(Tree):
    enabled: bool = True
    """False: nothing is written down, so nothing can be explained or learned from later."""
    flush_ms: Annotated[int, Field(ge=1, le=60_000)] = 100
    """How often what was decided is written to the spool."""
    durability: Literal["batch", "sync"] = "batch"
    """`sync` makes `decide()` and `finished()` wait until the record is on disk (within the budget)."""
    queue_size: Annotated[int, Field(ge=100)] = 100_000
    """Records that may wait in memory while the disk refuses, and a quarter of it more for outcomes; what comes then is
    dropped and counted by cause."""
    spool_max_mb: Annotated[int, Field(ge=1)] = 1024
    """Most the spool may take on disk; the last sixteenth is for outcomes alone."""
    drain: Literal["off", "thread"] = "off"
    """`thread`: the host itself delivers to the ClickHouse server; `off`: `nhm-sched drain` does."""
    drain_batch: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    """Records an insert. Whoever drains all the time delivers as soon as so many wait."""
    drain_max_age_s: Annotated[float, Field(gt=0, le=3600)] = 5.0
    """... or when the first of them has waited for so long."""
    hash_fields: Annotated[tuple[Literal["ticket_id", "worker_id"], ...], NoDecode, BeforeValidator(names)] = ()
    """Fields that are written down as keyed hashes only, from the spool on: `ticket_id`, `worker_id`, or both."""
    hash_key_file: ExpandedPath | None = None
    """File with the key of these hashes, 16 bytes or more; the same on all hosts, so that their records join."""

    @model_validator(mode="after")
    def _keyed(self) -> RecordingSettings:
        if self.hash_fields and self.hash_key_file is None:
            raise ValueError("hash_fields needs hash_key_file; make one with: head -c 32 /dev/urandom > FILE")
        return self


class HooksSettings(Tree):
    disabled: Annotated[tuple[str, ...], NoDecode, BeforeValidator(names)] = ()
    """Plugin names not to load; `all` switches every third-party plugin and drop-in off. Also as text: `a,b`."""
    trace: bool = False
    """Log every hook call with its arguments' types, its result and its time."""
    max_strikes: Annotated[int, Field(ge=1)] = 5
    """Errors in a row after which a plugin is removed."""
    pool_size: Annotated[int, Field(ge=1, le=64)] = 8
    """Threads in which third-party hooks run, so that a sleeping one cannot hold the host."""


class MetricsSettings(TlsTree):
    enabled: bool = True
    """Whether `/metrics` and `/healthz` are served."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """0 takes any free port."""
    token_file: ExpandedPath | None = None
    """Ask for this bearer token."""
    tls_cert_file: ExpandedPath | None = None
    """PEM file; with `tls_key_file` the listener speaks TLS."""
    tls_key_file: ExpandedPath | None = None
    """PEM file."""
    allow_insecure: bool = False
    """Listen beyond loopback without token and TLS: only where the network itself is closed (a mesh, a sidecar)."""


class Settings(BaseSettings):
    """The whole tree. Build it with `load_settings`, which explains what is wrong with a bad one."""

    model_config = SettingsConfigDict(
        env_prefix="NHM_SCHED_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    data_dir: ExpandedPath = Path("~/.local/share/nhm-sched").expanduser()
    """Embedded database, registry, spool and snapshots."""
    hooks_dir: ExpandedPath | None = None
    """Folder of drop-in hook files."""
    optimizer: OptimizerSettings = OptimizerSettings()
    agent: AgentSettings = AgentSettings()
    ml: MlSettings = MlSettings()
    rollout: RolloutSettings = RolloutSettings()
    experiment: ExperimentSettings = ExperimentSettings()
    limits: LimitSettings = LimitSettings()
    planner: PlannerSettings = PlannerSettings()
    fallback: FallbackSettings = FallbackSettings()
    recording: RecordingSettings = RecordingSettings()
    hooks: HooksSettings = HooksSettings()
    metrics: MetricsSettings = MetricsSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="after")
    def _no_engine_in_the_host(self) -> Settings:
        clickhouse = self.ml.clickhouse
        if self.recording.drain == "thread" and clickhouse.embedded:
            raise ValueError(
                "recording.drain = 'thread': the embedded database must not be opened in a host, which may fork; "
                "set ml.clickhouse.dsn to a server, or leave it at 'off' and run `nhm-sched drain --follow`"
            )
        return self

    # Where each room keeps its state: one place that knows the layout of `data_dir`.

    @property
    def clickhouse_path(self) -> Path:
        return self.data_dir / "clickhouse"

    @property
    def registry_path(self) -> Path:
        return self.data_dir / "registry"

    @property
    def spool_path(self) -> Path:
        return self.data_dir / "spool"

    @property
    def forecast_table_path(self) -> Path:
        """The forecast snapshot that hosts serve from."""
        return self.data_dir / "snapshots" / "forecast.json"

    @property
    def retrain_path(self) -> Path:
        """Where a host whose forecast has drifted asks for a retrain."""
        return self.forecast_table_path.with_name("retrain.json")

    @property
    def mirror_path(self) -> Path:
        """What a host has of a remote agent's tables."""
        return self.data_dir / "mirror"

    @property
    def served_forecast_path(self) -> Path:
        """The forecast table that a host with these settings serves from: its own or the mirrored one."""
        mirrored = self.mirror_path / self.forecast_table_path.name
        return self.forecast_table_path if self.optimizer.endpoint is None else mirrored

    @property
    def served_q_table_path(self) -> Path:
        """The Q-table likewise."""
        return self.q_table_path if self.optimizer.endpoint is None else self.mirror_path / self.q_table_path.name

    @property
    def served_planner_path(self) -> Path:
        """The calibrated planner likewise."""
        return self.planner_path if self.optimizer.endpoint is None else self.mirror_path / self.planner_path.name

    @property
    def outbox_path(self) -> Path:
        """Outcomes on their way to a remote agent."""
        return self.data_dir / "outbox"

    @property
    def ledger_path(self) -> Path:
        """Outcomes that an agent has been told of: what its Q-table was learned from."""
        return self.data_dir / "ledger"

    @property
    def planner_path(self) -> Path:
        """The calibrated planner."""
        return self.data_dir / "snapshots" / "planner.json"

    @property
    def q_table_path(self) -> Path:
        return self.data_dir / "snapshots" / "q_table.json"


def load_settings(source: str | os.PathLike[str] | Mapping[str, Any] | Settings | None = None) -> Settings:
    """Settings from a YAML file, a mapping or nothing (defaults), each overridden by `NHM_SCHED_*` variables.

    Raises `ConfigError` that names every wrong key with its value and what is allowed.
    """
    if isinstance(source, Settings):
        return source
    if source is None or isinstance(source, Mapping):
        name, raw = "configuration", dict(source or {})
    elif not isinstance(source, str | os.PathLike):
        raise ConfigError([f"is a {type(source).__name__}; expected a path or a mapping"], "configuration")
    else:
        name = os.fspath(source)
        raw = _read_yaml(Path(name))
    spelling: dict[str, str] = {}
    tree = _without_empty_sections(_snake_keys(raw, spelling), Settings)
    for key in [key for key in tree if key in OptimizerSettings.model_fields]:
        optimizer = tree.setdefault("optimizer", {})
        if not isinstance(optimizer, dict):
            break
        optimizer.setdefault(key, tree.pop(key))
    try:
        return Settings(**tree)
    except ValidationError as error:
        raise ConfigError([explain(problem, spelling, Settings) for problem in error.errors()], name) from None
    except SettingsError as error:
        raise ConfigError([f"NHM_SCHED_* environment variables: {error}; lists are written as JSON"], name) from None


def reloaded(running: Settings, fresh: Settings) -> tuple[Settings, list[str]]:
    """What a running host takes over of fresh settings, and the names of what has changed beyond that."""
    optimizer = running.optimizer.model_copy(update=_of(fresh.optimizer, HOT_OPTIMIZER))
    taken = running.model_copy(update={"optimizer": optimizer, **_of(fresh, HOT_SECTIONS)})
    cold = [name for name in _differing(fresh, taken) if name != "optimizer"]
    return taken, cold + [f"optimizer.{name}" for name in _differing(fresh.optimizer, optimizer)]


def _of(tree: BaseModel, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(tree, name) for name in names}


def _differing(one: BaseModel, other: BaseModel) -> list[str]:
    return [name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot be read ({error.strerror or error})"], str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # Without the line itself, which YAML would quote: it may hold a password.
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise ConfigError([f"is not valid YAML: {what}{where}"], str(path)) from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError([f"holds a {type(raw).__name__}; expected a mapping of settings"], str(path))
    return raw


def _snake_case(key: str) -> str:
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", words).lower()


def _snake_keys(tree: Mapping[Any, Any], spelling: dict[str, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        snake = _snake_case(str(key))
        spelling[snake] = str(key)
        if snake in result:
            raise ConfigError([f"{key}: given twice, in camelCase and in snake_case"])
        result[snake] = _snake_keys(value, spelling) if isinstance(value, Mapping) else value
    return result


def _without_empty_sections(tree: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A section whose keys are all commented out is null in YAML, and means the defaults."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if name in tree and isinstance(section, type) and issubclass(section, BaseModel):
            if tree[name] is None:
                del tree[name]
            elif isinstance(tree[name], dict):
                _without_empty_sections(tree[name], section)
    return tree
