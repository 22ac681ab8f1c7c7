from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis

from nhm_sched_plugin.errors import ModelError, RegistryError
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import NewVersion, model_name


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"))


def test_names() -> None:
    assert model_name(60) == "load_predictor_60m"
    assert model_name(60, "processing") == "load_predictor_60m__processing"
    assert model_name(60, "processing", "medium") == "load_predictor_60m__processing__medium"
    assert model_name(60, None, "high") == "load_predictor_60m__any__high"
    assert len({model_name(60, *pair) for pair in (("a__b", None), ("a", "b"), ("a/b", None), ("a b", None))}) == 4


def test_versions_aliases_and_states(registry: Registry) -> None:
    name = model_name(60, "processing", "medium")
    first = registry.save(name, {"a": [1, None, "ü"]}, {"mape": 12.5, "bad": float("nan")}, {"slice": "x"})
    second = registry.save(name, {"a": 2})
    assert (first, second) == ("1", "2")
    registry.alias(name, first, "staging")
    assert registry.load(name) == registry.load(name, "1") == {"a": [1, None, "ü"]}
    assert registry.load(name, "2") == {"a": 2}
    found = registry.find(name)
    assert found is not None
    assert (found.version, found.metrics, found.tags["slice"]) == ("1", {"mape": 12.5}, "x")
    registry.alias(name, second, "staging")
    assert registry.load(name) == {"a": 2}
    assert [(row.version, row.aliases) for row in registry.list() if row.name == name] == [
        ("1", []),
        ("2", ["staging"]),
    ]
    newest = registry.latest(name)
    assert newest is not None
    assert newest.version == "2"
    assert registry.find(name, "production") is None


def test_another_process_sees_the_same(registry: Registry) -> None:
    registry.save("scheduling_policy", {"q": {}})
    again = Registry(registry._folder)
    assert again.load("scheduling_policy", "1") == {"q": {}}


def test_wrong_names_say_what_there_is(registry: Registry) -> None:
    registry.save("load_predictor_360m", {})
    with pytest.raises(RegistryError, match=r"load_predictor_360m"):
        registry.load("load_predictor_99m")
    with pytest.raises(RegistryError, match="it has 1"):
        registry.load("load_predictor_360m", "7")
    with pytest.raises(RegistryError, match="staging, production"):
        registry.alias("load_predictor_360m", "1", "prod")
    with pytest.raises(RegistryError, match="not usable"):
        registry.save("a b", {})


def test_a_changed_artefact_is_noticed(registry: Registry) -> None:
    registry.save("load_predictor_1440m", {"a": 12345})
    (file,) = [f for f in Path(registry._folder).rglob("state.json") if "12345" in f.read_text()]
    file.write_text(file.read_text().replace("12345", "54321"))
    with pytest.raises(ModelError, match="digest"):
        registry.load("load_predictor_1440m", "1")
    file.unlink()
    with pytest.raises(ModelError, match="train it anew"):
        registry.load("load_predictor_1440m", "1")


def test_an_unusable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database")
    with pytest.raises(RegistryError, match="cannot be opened"):
        Registry(tmp_path).open()


def many(count: int) -> list[NewVersion]:
    """The horizons of a slice share a state."""
    return [
        NewVersion(
            name=model_name(horizon, f"t{i}"),
            state=json.dumps({"slice": i}).encode(),
            metrics={"mape": 10.0 + i, "bad": float("nan")},
            tags={"slice": f"t{i}"},
            alias="staging" if i else "",
        )
        for i in range(count)
        for horizon in (60, 360)
    ]


def test_many_at_once_are_what_one_by_one_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nhm_sched_plugin.training import registry as module

    found = []
    for name, enough in (("bulk", 2), ("single", 10_000)):
        monkeypatch.setattr(module, "_MANY", enough)
        made = Registry(tmp_path / name)
        assert made.save_all(many(6)) == ["1"] * 12
        assert made.save_all(many(3), made.heads()) == ["2"] * 6
        rows = [(row.name, row.version, row.aliases, row.metrics, row.tags) for row in made.list()]
        heads = {name: (head.newest.version, head.aliases, head.served()) for name, head in made.heads().items()}
        found.append((rows, heads))
        assert made.load("load_predictor_360m__t2") == {"slice": 2}
        assert made.save("load_predictor_360m__t2", {"x": 1}) == "3"  # and MLflow itself goes on from there
        assert made.load("load_predictor_360m__t2", "2") == {"slice": 2}
    assert found[0] == found[1]
    assert found[0][1]["load_predictor_60m__t1"] == ("2", {"staging": "2"}, "2")
    assert len(list((tmp_path / "bulk").rglob("*.json"))) == 6 + 3 + 1


def test_where_bulk_cannot_be_done_mlflow_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nhm_sched_plugin.training import registry as module

    def broken(*_: object) -> None:
        raise AttributeError("another MLflow")

    monkeypatch.setattr(module, "add_versions", broken)
    registry = Registry(tmp_path)
    assert registry.save_all(many(6)) == ["1"] * 12
    assert registry.find("load_predictor_60m__t3").version == "1"  # type: ignore[union-attr]


def test_states_of_a_registry_elsewhere_are_cached_by_their_digest(
    tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that is asked over MLflow, and Redis: what one machine has read another finds there."""
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artefacts
    place, prefix = f"redis://127.0.0.1:{redis_server.port}", uuid.uuid4().hex

    def registry_of(machine: str, **caching: Any) -> Registry:
        tree = {"training": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}, "caching": caching}
        return Registry.of(load_settings({"data_dir": str(tmp_path / machine), "ml": tree}))

    shared = {"redis_url": place, "key_prefix": prefix}
    first, second = registry_of("a", **shared), registry_of("b", **shared)
    name = model_name(60)
    version = first.save(name, {"a": 1})
    first.alias(name, version, "staging")
    (artifact,) = (path for path in tmp_path.glob("mlruns/**/state.json"))
    assert first.load(name) == {"a": 1}
    (key,) = redis.Redis.from_url(place).keys(f"{prefix}:model:*")
    raw = artifact.read_bytes()
    artifact.unlink()
    assert second.load(name) == {"a": 1}, "from Redis"
    for other in (registry_of("c"), registry_of("d", enabled=False)):
        with pytest.raises(ModelError, match="cannot read its state"):
            other.load(name)
    redis.Redis.from_url(place).set(key, b'{"a": 2}')
    with pytest.raises(ModelError, match="cannot read its state"):
        second.load(name)  # not what it should be, so it is not used
    artifact.write_bytes(raw)
    assert second.load(name) == {"a": 1}
    assert redis.Redis.from_url(place).get(key) == raw, "mended"
