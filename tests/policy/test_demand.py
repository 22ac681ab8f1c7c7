from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from calibrations import calibration
from hypothesis import given
from hypothesis import strategies as st

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.policy.crowds import AHEAD
from nhm_sched_plugin.policy.demand import ARRIVED, COEFFICIENTS, WINDOWS_S, DemandModel, expected, needed
from nhm_sched_plugin.policy.planner import Planner, explain
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.types import Action, SchedulingState

NOTHING = [0.0] * len(COEFFICIENTS)
COUNTS = st.floats(0, 1e6)


def only(**weights: float) -> list[float]:
    return [weights.get(name, 0.0) for name in COEFFICIENTS]


def test_each_term_by_hand() -> None:
    def need(**weights: float) -> float:
        return needed(16.0, 4, 10, 12, 20, 60, 225, 100.0, 20.0, 0.0, 1.0, only(**weights))

    assert need() == 16
    assert need(constant=2.5) == 18.5
    assert need(in_system=0.5) == need(in_system=-0.5) == 24
    assert need(root_in_system=1) == 20
    assert need(trend_15s=1) == pytest.approx(16 + 4 - 2.4), "16 in the system at 100 s each: 2.4 in 15 s sustain them"
    assert need(trend_60s=1) == pytest.approx(16 + 10 - 9.6)
    assert need(root_60s=1) == pytest.approx(16 + math.sqrt(10))
    assert need(root_3600s=1) == 16 + 15
    assert need(rise=0.5) == need(rise=-0.5) == 18
    assert need(constant=-9) == 16, "never fewer than are in the system"
    assert need(crowd=2, constant=-9) == 16, "no crowd is ahead"
    ahead = needed(16.0, 4, 10, 12, 20, 60, 225, 100.0, 20.0, 30.0, 1.0, only(crowd=-2, constant=9))
    assert ahead == 225 * 100 / 3600 + 60, "beyond the pace of the hour, which is less than what is in the system"
    assert needed(16.0, 4, 10, 12, 20, 60, 225, 100.0, 20.0, 4.0, 1.0, only(crowd=2, constant=9)) == 25, "enough"
    assert expected(16.0, 225, 60.0, 100.0) == pytest.approx(10.6)
    assert need(surge_60s=1) == 16, "ten are no surprise where 9.6 are expected"
    crowd = needed(16.0, 4, 100, 12, 20, 60, 225, 100.0, 20.0, 0.0, 1.0, only(surge_60s=1))
    assert crowd == pytest.approx(16 + 100 - 9.6 - 3 * math.sqrt(10.6))


@given(st.floats(0, 1e5), st.floats(1, 1e4), st.lists(st.floats(-5, 5), min_size=5, max_size=5))
def test_in_a_steady_state_trends_add_nothing_at_any_volume(
    in_system: float, service_s: float, trends: list[float]
) -> None:
    steady = [window / service_s * in_system for window in WINDOWS_S]
    weights = dict(zip(COEFFICIENTS[3:8], trends, strict=True))
    need = needed(in_system, *steady, service_s, math.nan, 0.0, 1.0, only(**weights, surge_60s=1, surge_120s=1))  # type: ignore[call-arg]
    assert need == pytest.approx(in_system, abs=1e-6 * (1 + in_system))


@given(COUNTS, st.lists(COUNTS, min_size=6, max_size=6), st.floats(1e-3, 1e5), COUNTS)
def test_always_a_number_and_never_below_what_is_there(
    in_system: float, counts: list[float], service_s: float, offered: float
) -> None:
    features = dict(zip(ARRIVED, counts, strict=True))
    need = calibration().needed(in_system, features, service_s, offered)
    assert math.isfinite(need)
    assert need >= in_system
    assert math.isfinite(calibration().needed(in_system, {}, service_s, None))


def test_missing_counts_are_those_of_a_steady_state() -> None:
    steady = {name: window / 300 * 40 for name, window in ARRIVED.items()}
    assert calibration().needed(40, {}, 300.0, None) == pytest.approx(calibration().needed(40, steady, 300.0, None))


@pytest.mark.parametrize("count", [-1.0, -1e308, 1e13, 1e308, math.inf, math.nan])
def test_what_is_no_count_is_that_of_a_steady_state(count: float) -> None:
    """A host's own features may hold anything."""
    broken = dict.fromkeys((*ARRIVED, AHEAD), count)
    assert calibration().needed(40, broken, 300.0, None) == calibration().needed(40, {}, 300.0, None)


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "snapshots" / "planner.json"
    calibration().save(path)
    assert DemandModel.load(path) == calibration()
    with pytest.raises(FileNotFoundError):
        DemandModel.load(tmp_path / "none.json")
    plain = msgspec.to_builtins(calibration())
    del plain["crowds"], plain["version"]
    path.write_bytes(msgspec.json.encode({**plain, "coefficients": plain["coefficients"][:-1]}))
    assert DemandModel.load(path).coefficients == (*calibration().coefficients[:-1], 0.0), "version 1 knew no crowds"
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"planner\.json: is not a calibrated planner .*run `nhm-sched learn` again"):
        DemandModel.load(path)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(calibration(), coefficients=(1.0, 2.0))))
    with pytest.raises(ModelError, match="holds 2 coefficients"):
        DemandModel.load(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        calibration().save(tmp_path / "file" / "planner.json")


def planner(tmp_path: Path, **changed: Any) -> Planner:
    settings = load_settings({"data_dir": tmp_path})
    calibration(**changed).save(settings.planner_path)
    return Planner(settings)


def pool(**fields: Any) -> SchedulingState:
    values = {"queue_depth": 0.0, "active_workers": 50.0, "avg_task_duration_ms": 300_000.0, "resource_cpu_avg": 0.8}
    return SchedulingState(**{**values, **fields})


def test_the_planner_serves_its_calibration(tmp_path: Path) -> None:
    calm = planner(tmp_path)
    plan = calm.plan(pool())
    assert plan.basis == "calibrated"
    assert (plan.in_system, plan.ordered, plan.active) == (40, 50, 50)
    assert plan.need == math.ceil(calibration().needed(40, {}, 300.0, None))
    burst = pool(features={**dict.fromkeys(ARRIVED, 40.0), "starting_workers": 5.0})
    more = calm.plan(burst)
    assert more.need is not None
    assert more.need > 2 * plan.need  # type: ignore[operator]
    assert more.ordered == 55
    first = calm.candidates(more, burst)[0]
    assert first.action is Action.INCREASE_WORKER_POOL
    assert first.parameters == {"target_workers": more.need, "planned_workers": more.need}
    assert f"{more.need}, 50 are active" in explain(more, first.action, first.parameters)


def test_candidates_lie_around_the_plan(tmp_path: Path) -> None:
    calm = planner(tmp_path)
    idle = pool(active_workers=200.0, resource_cpu_avg=0.2)
    plan = calm.plan(idle)
    found = calm.candidates(plan, idle)
    assert [candidate.action for candidate in found] == [*[Action.DECREASE_WORKER_POOL] * 3, Action.NO_ACTION]
    targets = [int(candidate.parameters["target_workers"]) for candidate in found[:3]]
    assert targets[0] == plan.need
    assert targets[2] < targets[0] < targets[1]
    waiting = pool(active_workers=200.0, resource_cpu_avg=0.2, queue_depth=1.0)
    assert calm.candidates(calm.plan(waiting), waiting)[0].action is Action.NO_ACTION, "nobody leaves while one waits"
    starting = pool(features={"starting_workers": 100.0})
    assert [c.action for c in calm.candidates(calm.plan(starting), starting)] == [Action.NO_ACTION], "they are coming"


def test_without_measurements_there_is_no_calibrated_plan(tmp_path: Path) -> None:
    blind = planner(tmp_path)
    for missing in ("queue_depth", "active_workers", "avg_task_duration_ms", "resource_cpu_avg"):
        assert blind.plan(pool(**{missing: None})).basis != "calibrated", missing


def test_a_calibration_for_another_pool_or_a_broken_one_is_left_out_and_said(tmp_path: Path) -> None:
    other = planner(tmp_path, startup_s=600.0)
    assert other.model is None
    assert "was made for planner.startup_s = 600" in other.problem
    assert "nhm-sched learn --recalibrate" in other.problem
    calibration().save(other.path)
    other.refresh()
    assert (other.model, other.problem) == (calibration(), "")
    other.path.write_text("broken")
    other.refresh()
    assert other.model is None
    assert "is not a calibrated planner" in other.problem
    other.path.unlink()
    other.refresh()
    assert (other.model, other.problem) == (None, "")
