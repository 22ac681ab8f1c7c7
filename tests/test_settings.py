"""The configuration: what loads, and what a person is told about what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from nhm_sched_plugin import Settings, load_settings
from nhm_sched_plugin.errors import ConfigError

HELM = """
optimizer:
  enabled: false  # Habilitar quando validado
  endpoint: 'optimizer-agents.default.svc.cluster.local:50053'
  grpcTimeout: 5
  forecastHorizonMinutes: 60
  recommendationConfidenceThreshold: 0.7

ml:
  clickhouse:
    host: 'clickhouse.clickhouse.svc.cluster.local'
    port: 9000
    user: 'optimizer'
    passwordSecret: 'clickhouse-optimizer-password'
    database: 'neural_hive'

  prophet:
    seasonalityMode: 'additive'
    changepointPriorScale: 0.05

  scheduling:
    epsilon: 0.1
    learningRate: 0.01
    discountFactor: 0.95

  training:
    intervalHours: 24  # Retreinamento diário
    windowDays: 540  # 18 meses

  forecasting:
    horizons: [60, 360, 1440]

  caching:
    modelTTL: 3600
    forecastTTL: 300
    enabled: true
"""


def problem(config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(config)
    return str(caught.value)


def test_the_helm_values_of_the_specification_load(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(HELM, encoding="utf-8")
    settings = load_settings(path)
    assert settings.optimizer.enabled is False
    assert settings.optimizer.grpc_timeout == 5
    assert settings.optimizer.recommendation_confidence_threshold == 0.7
    assert settings.ml.clickhouse.port == 9000
    assert settings.ml.clickhouse.password_secret == "clickhouse-optimizer-password"
    assert settings.ml.forecasting.horizons == (60, 360, 1440)
    assert (settings.ml.caching.model_ttl, settings.ml.caching.forecast_ttl) == (3600, 300)
    assert settings.ml.training.window_days == 540


def test_camel_case_and_snake_case_say_the_same() -> None:
    camel = load_settings({"optimizer": {"decisionBudgetMs": 20}, "ml": {"scheduling": {"learningRate": 0.02}}})
    snake = load_settings({"optimizer": {"decision_budget_ms": 20}, "ml": {"scheduling": {"learning_rate": 0.02}}})
    assert camel == snake
    assert "given twice" in problem({"optimizer": {"decisionBudgetMs": 20, "decision_budget_ms": 30}})


def test_keys_of_the_optimizer_may_stand_at_the_top() -> None:
    assert load_settings({"decisionBudgetMs": 20}).optimizer.decision_budget_ms == 20
    both = load_settings({"decision_budget_ms": 20, "optimizer": {"decision_budget_ms": 30}})
    assert both.optimizer.decision_budget_ms == 30, "the more exact place wins"


def test_no_configuration_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_settings(None) == load_settings({}) == load_settings(path)
    settings = load_settings(None)
    assert load_settings(settings) is settings


def test_what_is_neither_path_nor_mapping_is_named() -> None:
    for source in (5, [], b"x"):
        with pytest.raises(ConfigError, match=f"is a {type(source).__name__}; expected a path or a mapping"):
            load_settings(source)  # type: ignore[arg-type]


def test_a_section_with_every_key_commented_out_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "nhm-sched.yaml"
    path.write_text("optimizer:\n  # enabled: true\nml:\n  caching:\nrollout:\n", encoding="utf-8")
    assert load_settings(path) == load_settings(None)
    with pytest.raises(ConfigError, match=r"rollout\.percentage"):
        load_settings({"rollout": {"percentage": None}})


# -- what is wrong, with the key, the value and what is allowed


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"optimiser": {}}, ["optimiser: unknown key", "did you mean 'optimizer'"]),
        ({"rollout": {"percentge": 5}}, ["rollout.percentge: unknown key", "did you mean 'percentage'"]),
        ({"rollout": {"zzz": 5}}, ["rollout.zzz: unknown key", "known here: percentage, unit"]),
        (
            {"optimizer": {"recommendationConfidenceThreshold": 1.7}},
            ["optimizer.recommendationConfidenceThreshold = 1.7", "allowed: [0, 1]; default 0.7"],
        ),
        ({"rollout": {"percentage": "twenty"}}, ["rollout.percentage = 'twenty'", "integer", "[0, 100]"]),
        ({"rollout": {"percentage": True}}, ["rollout.percentage = True", "no switch"]),
        ({"ml": {"scheduling": {"epsilon": 0.3}}}, ["ml.scheduling.epsilon = 0.3", "[0.05, 0.2]"]),
        ({"ml": {"scheduling": {"discount_factor": 1}}}, ["discount_factor = 1", "[0.0, 1.0)"]),
        ({"rollout": 5}, ["rollout = 5", "dictionary"]),
        ({"limits": {"min_workers": 9, "max_workers": 3}}, ["min_workers 9 is above max_workers 3"]),
        ({"experiment": {"control_group_pct": 0.5}}, ["must add up to 1"]),
        ({"ml": {"clickhouse": {"database": "a b; drop"}}}, ["database = 'a b; drop'", "pattern"]),
    ],
)
def test_a_mistake_is_explained(config: Any, parts: list[str]) -> None:
    text = problem(config)
    assert [part for part in parts if part not in text.replace("[0, 1)", "[0.0, 1.0)")] == [], text


def test_all_mistakes_are_named_at_once() -> None:
    text = problem({"rollout": {"percentage": 101}, "zzz": 1, "optimizer": {"enabled": "perhaps"}})
    assert all(key in text for key in ("rollout.percentage", "zzz", "optimizer.enabled"))


def test_a_file_that_is_not_there_no_yaml_or_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    assert "cannot be read (No such file" in problem(path)
    path.write_text("a: [1")
    assert f"{path}: is not valid YAML" in problem(path)
    assert "line 1" in problem(path)
    path.write_text("- a")
    assert "expected a mapping" in problem(path)
    path.write_bytes(b"\xff\xfe\x00bad")
    assert str(path) in problem(path)


# -- both ends of every range


def bounded(model: type[BaseModel] = Settings, at: tuple[str, ...] = ()) -> list[Any]:
    """Every number with a range: its place, its ends and whether they are inside."""
    found = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found += bounded(annotation, (*at, name))
            continue
        ends = {type(item).__name__: item for item in field.metadata}
        for kind in ("Ge", "Gt", "Le", "Lt"):
            if kind in ends:
                step = 1 if annotation is int else 1e-9
                found.append(((*at, name), kind, getattr(ends[kind], kind.lower()), step))
    return found


RANGES = bounded()


def test_there_are_ranges() -> None:
    assert len(RANGES) > 40
    assert get_origin(tuple[int]) is tuple
    assert get_args(tuple[int]) == (int,)


@pytest.mark.parametrize(("at", "kind", "end", "step"), RANGES, ids=lambda value: str(value))
def test_both_ends_of_a_range(at: tuple[str, ...], kind: str, end: float, step: float) -> None:
    outwards = -step if kind.startswith("G") else step
    inside, outside = (end, end + outwards) if kind in ("Ge", "Le") else (end - outwards, end)
    extra: dict[str, Any] = {
        ("experiment", "control_group_pct"): {"treatment_group_pct": 1 - inside},
        ("experiment", "treatment_group_pct"): {"control_group_pct": 1 - inside},
        ("limits", "max_workers"): {"min_workers": 0},
    }.get(at, {})

    def load(value: float) -> Settings:
        tree: dict[str, Any] = {at[-1]: int(value) if step == 1 else value, **extra}
        for name in reversed(at[:-1]):
            tree = {name: tree}
        return load_settings(tree)

    load(inside)
    with pytest.raises(ConfigError, match="allowed"):
        load(outside)


# -- the environment


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rollout: {percentage: 5, salt: mine}\ndata_dir: /from/file\n")
    monkeypatch.setenv("NHM_SCHED_ROLLOUT__PERCENTAGE", "20")
    monkeypatch.setenv("NHM_SCHED_DATA_DIR", "/from/environment")
    settings = load_settings(path)
    assert settings.rollout.percentage == 20
    assert settings.rollout.salt == "mine", "the rest of the section stays"
    assert settings.data_dir == Path("/from/environment")


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("ROLLOUT__PERCENTAGE", "200", "rollout.percentage = '200'"),
        ("ROLLOUT__PERCENTGE", "2", "percentge: unknown key"),
        ("HOOKS", "5", "hooks = 5"),
        ("ML__FORECASTING__HORIZONS", "60,360", "lists are written as JSON"),
    ],
)
def test_a_mistake_in_the_environment_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(f"NHM_SCHED_{name}", value)
    assert part in problem({})


def test_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NHM_SCHED_ML__FORECASTING__HORIZONS", "[60]")
    monkeypatch.setenv("NHM_SCHED_HOOKS__DISABLED", "a, b")
    settings = load_settings({})
    assert settings.ml.forecasting.horizons == (60,)
    assert settings.hooks.disabled == ("a", "b")


# -- secrets


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NHM_SCHED_ML__CLICKHOUSE__PASSWORD", "hunter2")
    monkeypatch.setenv("NHM_SCHED_ML__CLICKHOUSE__DSN", "clickhouse://u:hunter2@db")
    settings = load_settings({})
    assert settings.ml.clickhouse.password is not None
    assert settings.ml.clickhouse.password.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_no_message_quotes_a_secret(tmp_path: Path) -> None:
    for wrong in (
        {"ml": {"clickhouse": {"password": ["hunter2"]}}},
        {"ml": {"clickhouse": {"dsn": {"x": "hunter2"}}}},
        {"ml": {"clickhouse": "http://u:hunter2@db"}},
        {"ml": {"clickhouse": ["hunter2"]}},
        {"ml": ["hunter2"]},
        {"optimizer": {"endpoint": ["http://u:hunter2@host"]}},
    ):
        assert "hunter2" not in problem(wrong)
    path = tmp_path / "c.yaml"
    path.write_text('ml: {clickhouse: {password: "hunter2}}')
    assert "hunter2" not in problem(path)


def test_settings_do_not_change() -> None:
    settings = load_settings({})
    with pytest.raises(Exception, match="frozen"):
        settings.rollout.percentage = 5


def test_paths_expand_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    settings = load_settings({"data_dir": "~/x", "hooks_dir": "~/hooks"})
    assert (settings.data_dir, settings.hooks_dir) == (Path("/somebody/x"), Path("/somebody/hooks"))
    assert settings.spool_path == Path("/somebody/x/spool")
