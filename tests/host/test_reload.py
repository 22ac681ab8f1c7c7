"""Configuration and rule book change under a running host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Action, Arm, Reason
from nhm_sched_plugin.settings import HOT_OPTIMIZER
from nhm_sched_plugin.settings_agent import OptimizerSettings

WITHIN_S = 5.0


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Writes a whole configuration file; `write(percentage)`."""
    path = tmp_path / "nhm-sched.yaml"

    def write(percentage: Any, more: str = "", to: Path = path) -> Path:
        to.write_text(
            f"data_dir: {tmp_path}/data\nmetrics: {{enabled: false}}\ndecision_budget_ms: 400\n"
            f"rollout: {{percentage: {percentage}}}\n{more}"
        )
        return to

    return write


def percentage(kit: Any, host: Any) -> float:
    return kit.counted(host, "nhm_sched_rollout_percentage")


def reload_errors(kit: Any, host: Any) -> float:
    return kit.counted(host, "nhm_sched_component_errors_total", component="reload")


def test_the_percentage_is_taken_over_from_the_file(kit: Any, config: Any) -> None:
    host = kit.start(config(0))
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.SHADOW
    config(100)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED, WITHIN_S)
    kit.wait_for(lambda: percentage(kit, host) == 100, WITHIN_S)
    config(0)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).arm is Arm.SHADOW, WITHIN_S)


def test_new_limits_reach_the_policy_too(kit: Any, config: Any) -> None:
    """Its target would otherwise stay under the old roof until the next start."""
    host = kit.start(config(0, "limits: {max_workers: 12, max_step: 200}\n"), built_in=True)

    def target() -> int:
        said = host._plugin.policy.recommend(kit.TICKET, kit.BUSY, None)
        return int(said.parameters["target_workers"])

    assert target() == 12
    config(0, "limits: {max_workers: 200, max_step: 200}\n")
    kit.wait_for(lambda: target() > 12, WITHIN_S)


def test_the_percentage_is_taken_over_from_a_mounted_config_map(kit: Any, config: Any, tmp_path: Path) -> None:
    """The kubelet writes a new folder and swaps the link `..data` in one step; the file's own link stays."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(number: int, value: Any) -> None:
        folder = mount / f"..2026_01_0{number}"
        folder.mkdir()
        config(value, to=folder / "config.yaml")
        (mount / "..new").symlink_to(folder.name)
        os.replace(mount / "..new", mount / "..data")

    publish(1, 0)
    (mount / "config.yaml").symlink_to("..data/config.yaml")
    host = kit.start(mount / "config.yaml")
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.SHADOW
    publish(2, 100)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED, WITHIN_S)


@pytest.mark.parametrize("bad", ["200", "lots", "[1", "yes", "50}\nrolout: {percentage: 1"])
def test_an_invalid_new_value_keeps_the_old_one_and_counts(kit: Any, config: Any, bad: str) -> None:
    host = kit.start(config(100))
    config(bad)
    kit.wait_for(lambda: reload_errors(kit, host) == 1, WITHIN_S)
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED
    config(0)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).arm is Arm.SHADOW, WITHIN_S)
    assert reload_errors(kit, host) == 1


def test_a_file_caught_while_it_is_being_written_is_left_alone(kit: Any, config: Any) -> None:
    """An empty file is a valid configuration, all defaults: it must not count before it has settled."""
    path = config(100)
    host = kit.start(path)
    until = kit.time.monotonic() + 2.5
    while kit.time.monotonic() < until:
        path.write_text("")
        kit.time.sleep(0.05)
        config(100, f"# {kit.time.monotonic()}\n")
        kit.time.sleep(0.05)
        assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED


def test_a_file_that_vanishes_keeps_what_was_loaded(kit: Any, config: Any) -> None:
    path = config(100)
    host = kit.start(path)
    path.unlink()
    kit.time.sleep(2.2)
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED
    config(0)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).arm is Arm.SHADOW, WITHIN_S)


def test_what_needs_a_restart_stays_and_the_rest_is_taken_over(kit: Any, config: Any, tmp_path: Path) -> None:
    host = kit.start(config(0))
    config(100, f"recording: {{enabled: false}}\nlimits: {{max_workers: 11}}\nhooks_dir: {tmp_path}\n")
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).reason is Reason.VETOED, WITHIN_S)
    assert host._plugin.settings.recording.enabled is True
    assert host._plugin.settings.hooks_dir is None


COLD = {
    "endpoint": "127.0.0.1:9",
    "grpc_timeout": 1,
    "mirror_interval_s": 2,
    "mirror_max_age_s": 9,
    "outbox_max_mb": 1,
    "token_file": "token",
    "tls": True,
    "tls_ca_file": "ca.pem",
    "tls_cert_file": "cert.pem",
    "tls_key_file": "key.pem",
    "tls_server_name": "agent",
}


def test_how_the_agent_is_reached_needs_a_restart_and_is_named(
    kit: Any, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert {*COLD, *HOT_OPTIMIZER} == set(OptimizerSettings.model_fields), "a new key: does a running host follow it?"
    caplog.set_level("INFO", "nhm_sched_plugin")
    host = kit.start(config(0))
    before = host._plugin.settings.optimizer
    hot = {"recommendation_confidence_threshold": 0.95, "forecast_volume_threshold": 7, "forecast_horizon_minutes": 120}
    config(100, f"optimizer: {json.dumps(COLD | hot)}\nrecording: {{enabled: false}}\n")
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).reason is Reason.CONFIDENCE_BELOW_THRESHOLD, WITHIN_S)
    said = next(one.getMessage() for one in caplog.records if "configuration reloaded" in one.getMessage())
    named = said.partition("restart for changes in: ")[2].split(", ")
    assert named == ["recording", *(f"optimizer.{name}" for name in before.model_dump() if name in COLD)]
    assert host._plugin.settings.optimizer == before.model_copy(update=hot)


BOOK = """
version: 1
name: mine
rules:
  - name: always
    when: queue_depth >= 0.0
    action: {action}
    because: "changed"
otherwise:
  action: NO_ACTION
  because: "nothing"
"""


def test_a_rule_book_is_taken_over_and_a_broken_one_is_not(kit: Any, config: Any, tmp_path: Path) -> None:
    book = tmp_path / "book.yaml"
    book.write_text(BOOK.format(action="NO_ACTION"))
    host = kit.start(config(0, f"fallback: {{rule_book: {book}}}\n"))
    assert host.decide(kit.TICKET, kit.BUSY).action is Action.NO_ACTION
    book.write_text(BOOK.format(action="LOAD_BALANCING_RECONFIG"))
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).action is Action.LOAD_BALANCING_RECONFIG, WITHIN_S)
    book.write_text(BOOK.format(action="JUMP"))
    kit.wait_for(lambda: reload_errors(kit, host) == 1, WITHIN_S)
    assert host.decide(kit.TICKET, kit.BUSY).action is Action.LOAD_BALANCING_RECONFIG


def test_another_rule_book_by_its_name(kit: Any, config: Any) -> None:
    host = kit.start(config(0))
    config(0, "fallback: {rule_book: nowhere}\n")
    kit.wait_for(lambda: reload_errors(kit, host) == 1, WITHIN_S)
    config(0, "fallback: {rule_book: conservative}\n")

    def rules() -> str:
        return next(part.detail for part in host.health() if part.component == "rules")

    kit.wait_for(lambda: rules().endswith("conservative.yaml"), WITHIN_S)


def test_a_hook_that_fails_while_starting_does_not_stop_the_reloads(kit: Any, config: Any) -> None:
    def fail(settings: Any) -> None:
        raise RuntimeError("no")

    noisy = kit.plugin(make_sinks=fail, on_error=lambda error: None)
    host = kit.start(config(0), plugins={"noisy": noisy})
    config(100)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED, WITHIN_S)


def test_a_new_forecast_table_is_taken_over(kit: Any, tmp_path: Path) -> None:
    host = kit.start(built_in=True)
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.FORECAST_UNAVAILABLE
    kit.write_forecast(tmp_path / "data", 432.0)
    kit.wait_for(lambda: host.decide(kit.TICKET, kit.BUSY).forecast is not None, WITHIN_S)
    assert host.decide(kit.TICKET, kit.BUSY).state.predicted_load_1h == pytest.approx(432.0)
