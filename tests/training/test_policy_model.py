"""The learned policy in a real registry: registered, held to its criteria, published to hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from calibrations import calibration

from nhm_sched_plugin.errors import ModelError, RegistryError
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.training.policy_model import POLICY, register_policy
from nhm_sched_plugin.training.promotion import approve, missing_criteria, promote
from nhm_sched_plugin.training.registry import Registry
from nhm_sched_plugin.training.versions import ModelVersion


def made(folder: Path, updates: int = 4, cost: float = 1.2, **planner: float) -> Settings:
    """Settings whose files hold that many updates."""
    settings = load_settings({"data_dir": folder, "planner": {"startup_s": 120, "sla_wait_s": 60, **planner}})
    table = QTable()
    for _ in range(updates):
        table.update("u2-b0-s1-t1", "NO_ACTION", 1.0, 0.1)
    table.gap = 0.625
    table.save(settings.q_table_path)
    asked = settings.planner
    calibration(cost=cost, late_cost=10.0, startup_s=asked.startup_s, sla_wait_s=asked.sla_wait_s).save(
        settings.planner_path
    )
    return settings


def test_a_policy_is_registered_held_to_the_criteria_and_published(tmp_path: Path) -> None:
    settings = made(tmp_path)
    with pytest.raises(RegistryError, match="no version"):
        promote(settings, POLICY, "1")
    assert register_policy(settings, decisions=1000, seed=7, ece=0.03) == "1"
    found = Registry.of(settings).find(POLICY)
    assert found is not None
    assert found.metrics == {
        "planner_sla": 0.99, "planner_cost": 1.2, "states": 1.0, "updates": 4.0, "ece": 0.03, "gap_closed": 0.625,
    }  # fmt: skip
    wanted = {"decisions": "1000", "seed": "7", "startup_s": "120", "sla_wait_s": "60", "late_cost": "10"}
    assert wanted.items() <= found.tags.items()
    first = settings.q_table_path.read_bytes(), settings.planner_path.read_bytes()

    with pytest.raises(RegistryError, match=r"production: 4\. nobody approved it"):
        promote(settings, POLICY, "1")
    approve(settings, POLICY, "1", "ana")
    host = QPolicy(settings, None)  # type: ignore[arg-type]
    assert promote(settings, POLICY, "1").notes == [], "the same files are there already"

    # A host has learned since, and a calibration has been made anew.
    table = QTable.load(settings.q_table_path)
    for _ in range(3):
        table.update("u2-b0-s1-t1", "NO_ACTION", 1.0, 0.1, live_reward=1.0)
    table.save(settings.q_table_path)
    calibration(cost=1.5).save(settings.planner_path)
    host.refresh()
    assert host.table.updates == 7
    learned = settings.q_table_path.read_bytes()
    promoted = promote(settings, POLICY, "1")
    assert promoted.aliases == ["production", "staging"]
    assert (settings.q_table_path.read_bytes(), settings.planner_path.read_bytes()) == first
    aside = settings.q_table_path.with_name("q_table.json.superseded-1")
    assert aside.read_bytes() == learned
    assert f"kept as {aside}, with what it learned from 3 rewards of the real pool." in promoted.notes[1]
    assert "planner.json.superseded-1" in promoted.notes[0]
    host.refresh()
    assert host.table.updates == 4
    assert host.planner.model == calibration(late_cost=10.0)

    # The next one needs everything.
    made(tmp_path, updates=9, cost=1.3)
    assert register_policy(settings, decisions=1000, seed=8, ece=0.09) == "2"
    with pytest.raises(RegistryError, match="cannot go") as caught:
        promote(settings, POLICY, "2")
    assert [line[0] for line in str(caught.value).split("production: ")[1].split("; ")] == list("12234")
    assert Registry.of(settings).find(POLICY, "production") == Registry.of(settings).find(POLICY, "1")


def test_what_is_damaged_or_for_another_pool_changes_nothing(tmp_path: Path) -> None:
    settings = made(tmp_path)
    registry = Registry.of(settings)
    for number, part in (("1", "q_table"), ("2", "planner")):
        register_policy(settings, decisions=1, seed=0, ece=0.01)
        approve(settings, POLICY, number, "ana")
        registry.tag(POLICY, number, f"{part}_sha256", "0" * 64)
    made(tmp_path, updates=5, startup_s=600)
    register_policy(settings, decisions=1, seed=0, ece=0.01)
    approve(settings, POLICY, "3", "ana")
    made(tmp_path, updates=6, cost=1.3)
    before = {path.name: path.read_bytes() for path in settings.q_table_path.parent.iterdir()}
    for number, told in (
        ("1", "its q_table does not match its digest"),
        ("2", "its planner does not match its digest"),
        ("3", "made for startup_s 600 and sla_wait_s 60, but planner has 120 and 60"),
    ):
        with pytest.raises(ModelError, match=told):
            promote(settings, POLICY, number)
    assert {path.name: path.read_bytes() for path in settings.q_table_path.parent.iterdir()} == before
    assert registry.find(POLICY, "production") is None


def test_nothing_or_something_broken_is_not_registered(tmp_path: Path) -> None:
    settings = load_settings({"data_dir": tmp_path})
    with pytest.raises(ModelError, match=r"q_table\.json: cannot be read .*nhm-sched learn"):
        register_policy(settings, decisions=1, seed=0)
    made(tmp_path)
    settings.planner_path.write_bytes(b"\xff{")
    with pytest.raises(ModelError, match=r"planner\.json: is not a calibrated planner"):
        register_policy(settings, decisions=1, seed=0)
    assert not Registry.of(settings).exists()


def test_the_policys_criteria_one_by_one() -> None:
    tags = {"startup_s": "120", "sla_wait_s": "60", "late_cost": "10", "limits": "{}"}
    good = {"approved_by": "ana", "experiment_p_value": "0.01"}

    def version(number: str, *, about: dict[str, str], **metrics: float) -> ModelVersion:
        figures = {"planner_sla": 0.99, "planner_cost": 1.2, **metrics}
        return ModelVersion(
            name=POLICY, version=number, created_at=0.0, aliases=[], metrics=figures, tags={**tags, **about}
        )

    def missing(current: Any = None, about: dict[str, str] = good, **metrics: float) -> list[str]:
        return [line[0] for line in missing_criteria(version("2", about=about, **metrics), current, 25.0)]

    rival = version("1", about={}, ece=0.05)
    assert missing(ece=0.08) == []
    assert missing(ece=0.081) == ["1"]
    assert missing() == ["1"]
    assert missing(about={}, ece=0.01) == ["4"]
    assert missing(rival, ece=0.05) == []
    assert missing(rival, ece=0.06) == ["2"]
    assert missing(rival, ece=0.05, planner_cost=1.21) == ["2"]
    assert missing(rival, ece=0.05, planner_cost=1.25, planner_sla=0.996) == [], "fewer late tickets are worth it"
    assert missing(rival, {"approved_by": "ana"}, ece=0.05) == ["3"]
    # Made for something else: not compared, so a person has to say so.
    other = {"startup_s": "600"}
    assert missing(rival, {**good, **other}, ece=0.07, planner_cost=3.0) == []
    assert missing(rival, other, ece=0.07) == ["2", "3", "4"]
