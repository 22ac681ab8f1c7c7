"""Tickets arrive at a real host with a real table, on a simulated clock: what its forecasts make of it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import SchedulerHost, SchedulingState, Ticket
from nhm_sched_plugin.advice.arrivals import KEPT_HOURS, ArrivalCounter
from nhm_sched_plugin.forecasting.intervals import LEVELS, bottleneck_probability
from nhm_sched_plugin.forecasting.live import MAX_TASK_TYPES, MIN_HOURS, LiveForecast, read_retrain_request
from nhm_sched_plugin.forecasting.table import ForecastTable, SliceForecast, write_table

START = 1_800_000_000 // 3600 * 3600.0
HOUR = 3600.0
FACTORS = (0.75, 0.85, 1.0, 1.15, 1.25)
POOL = SchedulingState(active_workers=2, avg_task_duration_ms=60_000, resource_cpu_avg=0.5, resource_memory_avg=0.25)
"""Capacity 120 tickets an hour."""


def row(volume: float, share: float = 1.0, trained_at: float = START, first_hour: float = START) -> SliceForecast:
    mean = [volume] * 400
    return SliceForecast(
        first_hour=first_hour,
        mean=mean,
        quantiles={str(level): [m * f for m in mean] for level, f in zip(LEVELS, FACTORS, strict=True)},
        samples=5000,
        trained_at=trained_at,
        method="ridge",
        share=share,
        cpu_core_hours_per_ticket=0.5,
        memory_gib_hours_per_ticket=2.0,
    )


class World:
    """A host whose clock stands still until tickets arrive."""

    def __init__(self, folder: Path, config: dict[str, Any] | None = None) -> None:
        self.now, self.folder = START, folder
        self.publish(100.0)
        base = {"data_dir": str(folder), "metrics": {"enabled": False}, "recording": {"enabled": False}}
        self.host = SchedulerHost.from_config({**base, **(config or {})}, clock=lambda: self.now)

    def publish(self, volume: float, *, types: dict[str, float] | None = None, trained_at: float = START) -> None:
        """A new table from now on."""
        slices = {"": row(volume, trained_at=trained_at, first_hour=self.now)}
        slices |= {name: row(volume * part, part, trained_at, self.now) for name, part in (types or {}).items()}
        made = ForecastTable(generated_at=self.now, origin=self.now, model_version="1", method="ridge", slices=slices)
        write_table(self.folder / "snapshots" / "forecast.json", made)

    def pass_hours(self, hours: float, tickets: float, task_type: Callable[[int], str | None] = lambda i: None) -> None:
        """So many tickets an hour, evenly; the background looks every quarter."""
        end = self.now + hours * HOUR
        for quarter in range(round(hours * 4)):
            begin = end - hours * HOUR + quarter * HOUR / 4
            for i in range(round(tickets * (quarter + 1) / 4) - round(tickets * quarter / 4)):
                self.now = begin + (i + 0.5) * HOUR / 4 / max(tickets / 4 + 1, 1)
                self.host.decide(Ticket(ticket_id=str(i), task_type=task_type(i)), POOL)
            self.now = begin + HOUR / 4
            self.host.refresh()

    def forecast(self, horizon: int = 60, task_type: str | None = None) -> Any:
        return self.host._plugin.forecaster.forecast(horizon, self.now, task_type)  # type: ignore[union-attr]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.host.metrics.registry.get_sample_value(name, labels)

    @property
    def told(self) -> str:
        return next(part.detail for part in self.host.health() if part.component == "forecaster")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(config: dict[str, Any] | None = None) -> World:
        made.append(World(tmp_path / str(len(made)), config))
        return made[-1]

    yield make
    for one in made:
        one.host.close(1.0)


@pytest.mark.parametrize(("factor", "kind"), [(2.0, "level ×2"), (0.5, "level ×0.5")])
def test_a_level_shift_is_noticed_within_two_hours(world: Any, factor: float, kind: str) -> None:
    here = world()
    here.pass_hours(12, 100)
    before = here.forecast(360)
    assert before.live_factor == pytest.approx(1, abs=0.01)
    assert before.predicted_volume == pytest.approx(100, rel=0.01)
    here.pass_hours(2, 100 * factor)
    after = here.forecast(60)
    assert after.predicted_volume == pytest.approx(100 * factor, rel=0.15)
    assert after.live_factor == pytest.approx(factor, rel=0.15)
    assert after.confidence < before.confidence
    assert kind in here.told.replace("×1.9", "×2").replace("×0.51", "×0.5").replace("×0.52", "×0.5")
    assert all(part.ok for part in here.host.health() if part.component == "forecaster")
    further = here.forecast(1440)
    assert abs(further.live_factor - 1) < abs(after.live_factor - 1)  # it decays with the hour ahead
    here.pass_hours(3, 100)
    assert here.forecast().predicted_volume == pytest.approx(100, rel=0.1)
    assert "level" not in here.told


def test_one_wild_hour_moves_little(world: Any) -> None:
    here = world()
    here.pass_hours(12, 100)
    here.pass_hours(1, 400)
    assert 1.0 < here.forecast().live_factor < 1.25


def test_an_outage_is_noticed_and_ends(world: Any) -> None:
    here = world()
    here.pass_hours(8, 100)
    here.pass_hours(2, 0)
    out = here.forecast(60)
    assert "outage" in here.told
    assert out.predicted_volume < 70
    assert out.points[0].quantiles[0.1] == 0.0  # it may go on
    assert out.points[0].quantiles[0.975] > 90  # or end any minute
    assert here.forecast(360).predicted_volume > out.predicted_volume
    here.pass_hours(1, 100)
    assert "outage" not in here.told
    assert here.forecast().predicted_volume == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("tickets", [10, 30])
def test_a_host_that_sees_a_part_of_the_tickets_sees_no_outage(world: Any, tickets: int) -> None:
    here = world()
    for _ in range(24):
        here.pass_hours(1, tickets)
        assert here.forecast().predicted_volume == pytest.approx(100, rel=0.12)
    assert here.host._plugin._defaults.live.slices[""].share == pytest.approx(tickets / 100, rel=0.05)


def test_a_shift_of_a_part_is_one_of_the_whole(world: Any) -> None:
    here = world()
    here.pass_hours(12, 30)
    here.pass_hours(3, 75)
    assert here.forecast().predicted_volume == pytest.approx(250, rel=0.25)  # of all hosts together


def test_nothing_is_corrected_before_the_share_is_known(world: Any) -> None:
    here = world()
    here.pass_hours(MIN_HOURS - 1, 300)
    assert here.forecast().live_factor == 1.0
    assert here.host._plugin._defaults.live.slices[""].share is None
    quiet = world()
    quiet.pass_hours(30, 2)  # too few tickets to know anything of a share
    assert quiet.forecast().live_factor == 1.0


def test_a_host_that_is_told_to_see_everything_needs_no_warm_up(world: Any) -> None:
    here = world({"ml": {"forecasting": {"live": "whole"}}})
    here.pass_hours(2, 200)
    assert here.forecast().predicted_volume > 180
    off = world({"ml": {"forecasting": {"live": "off"}}})
    off.pass_hours(10, 200)
    assert off.forecast().predicted_volume == 100.0


def test_a_counter_that_starts_within_the_hour_leaves_that_hour_out(world: Any) -> None:
    here = world({"ml": {"forecasting": {"live": "whole"}}})
    here.now += 1800
    here.pass_hours(0.5, 100)
    here.pass_hours(1, 100)
    assert here.forecast().live_factor == pytest.approx(1, abs=0.03)


def test_task_types_are_followed_by_themselves(world: Any) -> None:
    here = world()
    here.publish(100.0, types={"a": 0.5, "b": 0.5})
    here.host.refresh()
    here.pass_hours(12, 100, lambda i: "ab"[i % 2])
    here.pass_hours(3, 200, lambda i: "b" if i % 4 == 0 else "a")  # a: three times as many, b: as many
    assert here.forecast(60, "a").live_factor == pytest.approx(3, rel=0.2)
    assert here.forecast(60, "b").live_factor == pytest.approx(1, abs=0.1)
    assert here.forecast(60).live_factor == pytest.approx(2, rel=0.2)


def test_a_new_table_knows_better(world: Any) -> None:
    here = world()
    here.pass_hours(10, 100)
    here.pass_hours(3, 200)
    assert here.forecast().predicted_volume > 170
    here.publish(200.0)
    here.pass_hours(3, 200)
    assert here.forecast().predicted_volume == pytest.approx(200, rel=0.05)
    assert here.forecast().live_factor == pytest.approx(1, abs=0.05)


def test_a_shift_that_new_tables_do_not_know_is_the_share(world: Any) -> None:
    """Half of the tickets go to another host from now on; the tables are made from everybody's."""
    here = world()
    here.pass_hours(10, 100)
    here.pass_hours(4, 50)
    assert here.forecast().predicted_volume < 60
    here.publish(100.0)
    here.pass_hours(12, 50)
    assert here.host._plugin._defaults.live.slices[""].share == pytest.approx(0.5, rel=0.1)
    assert here.forecast().predicted_volume == pytest.approx(100, rel=0.1)


def test_drift_asks_for_a_retrain_once(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    here = world()
    path = here.host.settings.retrain_path
    here.publish(25.0)
    here.host.refresh()
    here.pass_hours(24, 25)
    assert not path.exists()
    drifted = here.metric("nhm_sched_model_drift", slice="all")
    assert drifted is not None
    assert drifted < 0.5
    with caplog.at_level(logging.WARNING):
        here.pass_hours(75, 40)
    request = json.loads(path.read_text())
    assert request["slice"] == ""
    assert "above" in request["reason"] or "larger" in request["reason"]
    assert START < request["requested_at"] <= here.now
    assert request["statistic"] >= 12
    assert here.metric("nhm_sched_model_drift", slice="all") >= 1
    assert sum("retrain asked for" in line for line in caplog.messages) == 1
    assert "retrain asked for" in here.told
    assert all(part.ok for part in here.host.health() if part.component == "forecaster")
    assert read_retrain_request(path) is not None
    here.publish(40.0, trained_at=here.now)
    here.host.refresh()
    here.pass_hours(1, 40)
    assert "retrain" not in here.told
    assert here.metric("nhm_sched_model_drift", slice="all") < 0.5


def test_a_request_that_was_taken_away_is_answered(world: Any) -> None:
    """Who trained and kept the incumbent removes the file; the host does not ask again at once."""
    here = world({"ml": {"forecasting": {"live": "whole"}}})
    here.publish(25.0)
    here.host.refresh()
    here.pass_hours(75, 40)
    path = here.host.settings.retrain_path
    path.unlink()
    here.pass_hours(3, 40)
    assert not path.exists()
    assert "retrain" not in here.told


def test_a_folder_that_cannot_be_written_is_reported_and_forecasts_go_on(world: Any) -> None:
    here = world({"ml": {"forecasting": {"live": "whole"}}})
    here.publish(25.0)
    here.host.refresh()
    here.host.settings.retrain_path.mkdir()  # a folder stands where the file should
    here.pass_hours(75, 40)
    assert here.metric("nhm_sched_component_errors_total", component="live forecast") >= 1
    assert here.forecast().live_factor > 1.3


def test_the_bottleneck_is_in_the_recorded_forecast_and_in_the_metrics(world: Any) -> None:
    here = world()
    decision = here.host.decide(None, POOL)
    assert decision.forecast.bottleneck_probability == pytest.approx(
        bottleneck_probability(decision.forecast.points[-1].quantiles, 120.0)
    )
    for workers in (0, 1, 1.6, 2.05, 3, 1000):
        state = SchedulingState(active_workers=workers, avg_task_duration_ms=60_000)
        forecast = here.host.decide(None, state).forecast
        assert forecast.bottleneck_probability == pytest.approx(
            bottleneck_probability(forecast.points[-1].quantiles, workers * 60.0)
        )
        assert forecast.points is decision.forecast.points
    assert here.host.decide(None, SchedulingState(active_workers=2)).forecast.bottleneck_probability is None
    here.host.decide(
        None,
        SchedulingState(
            **{**{f: getattr(POOL, f) for f in ("avg_task_duration_ms", "resource_cpu_avg")}, "active_workers": 1}
        ),
    )
    here.host.refresh()
    labels = {"task_type": "all", "horizon": "60"}
    assert here.metric("optimizer_load_bottleneck_predicted", severity="critical", **labels) == 1
    assert here.metric("optimizer_load_bottleneck_predicted", severity="warning", **labels) == 0
    assert here.metric("optimizer_resource_saturation_forecast", horizon="60", resource="workers") == pytest.approx(
        100 / 60
    )
    assert here.metric("optimizer_resource_saturation_forecast", horizon="60", resource="cpu") == pytest.approx(0.5)
    # Core-hours per hour are cores: 100 tickets an hour at half a core-hour each.
    assert here.metric("optimizer_resource_demand_forecast", resource="cpu", task_type="all") == pytest.approx(50)
    assert here.metric("optimizer_resource_demand_forecast", resource="memory", task_type="all") == pytest.approx(200)


# -- the counter


def count(counter: ArrivalCounter, start: float, hours: int, each: int) -> float:
    for hour in range(hours):
        for i in range(each):
            counter.observe(start + hour * HOUR + i * HOUR / each, f"t{i % 2}")
    return start + hours * HOUR


def test_completed_hours_are_counted_in_all_and_by_type() -> None:
    counter = ArrivalCounter()
    now = count(counter, START, 3, 10)
    hours, running, silent = counter.hours(now + 60)
    assert [hour.total for hour in hours] == [10, 10, 10]
    assert [hour.start for hour in hours] == [START, START + HOUR, START + 2 * HOUR]
    assert hours[0].by_type == {"t0": 5, "t1": 5}
    assert (running.start, running.total) == (now, 0)  # type: ignore[union-attr]
    assert silent == pytest.approx(0.1 + 60 / HOUR)


def test_memory_is_bounded() -> None:
    counter = ArrivalCounter()
    for hour in range(3 * KEPT_HOURS):
        for i in range(2 * MAX_TASK_TYPES):
            counter.observe(START + hour * HOUR, f"type {i}")
    hours, _, _ = counter.hours(START + 3 * KEPT_HOURS * HOUR)
    assert len(hours) == KEPT_HOURS
    assert all(len(hour.by_type) == MAX_TASK_TYPES and hour.total == 2 * MAX_TASK_TYPES for hour in hours)


def test_an_hour_begun_in_its_middle_is_unknown() -> None:
    counter = ArrivalCounter()
    counter.observe(START + 1800)
    assert counter.hours(START + 2000)[1].total is None  # type: ignore[union-attr]
    assert [hour.total for hour in counter.hours(START + HOUR)[0]] == [None]


def test_idle_hours_are_zero_but_those_of_a_process_that_stood_still_are_unknown() -> None:
    counter = ArrivalCounter()
    now = count(counter, START, 1, 4)
    counter.hours(now + HOUR)
    counter.hours(now + 3 * HOUR)
    assert [hour.total for hour in counter.hours(now + 3 * HOUR)[0]] == [4, 0, 0, 0]
    counter.hours(now + 8 * HOUR)  # nobody looked for five hours
    assert [hour.total for hour in counter.hours(now + 8 * HOUR)[0]] == [4, 0, 0, 0, None, None, None, None, None]
    assert counter.hours(now + 9 * HOUR)[0][-1].total is None


@pytest.mark.parametrize("back", [600.0, 7 * HOUR])
def test_a_clock_set_back_makes_the_hour_unknown_and_counting_goes_on(back: float) -> None:
    counter = ArrivalCounter()
    now = count(counter, START, 3, 6)
    counter.observe(now + 1200)
    counter.observe(now + 1200 - back)
    later = count(counter, now + HOUR, 2, 6) if back < HOUR else count(counter, now - 6 * HOUR, 2, 6)
    hours, _, _ = counter.hours(later)
    assert [hour.total for hour in hours][-3:] == [None, 6, 6]
    assert all(a.start < b.start for a, b in pairwise(hours))


def test_a_forked_child_counts_its_own(world: Any) -> None:
    here = world()
    here.pass_hours(8, 100)
    assert here.host._plugin._defaults.live.slices[""].share == 1.0
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # it sees half of the tickets from now on; its parent's hours say nothing of that
        answer = b"failed"
        try:
            here.pass_hours(4, 50)
            early = here.forecast().live_factor
            here.pass_hours(4, 50)
            share = here.host._plugin._defaults.live.slices[""].share
            answer = json.dumps([early, here.forecast().live_factor, share]).encode()
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        early, late, share = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert early == 1.0
    assert late == pytest.approx(1.0, abs=0.05)
    assert share == pytest.approx(0.5, rel=0.05)


def test_a_damaged_request_is_none(tmp_path: Path) -> None:
    path = tmp_path / "retrain.json"
    assert read_retrain_request(path) is None
    for text in ("", "[]", "{}", '{"requested_at": "soon", "slice": "", "reason": "", "statistic": 1}'):
        path.write_text(text)
        assert read_retrain_request(path) is None


def test_without_a_global_forecast_nothing_is_followed() -> None:
    table = ForecastTable(generated_at=START, origin=START, model_version="", method="", slices={"a": row(10.0)})
    assert LiveForecast().update(START + HOUR, table, [], None, 0.0) == {}
