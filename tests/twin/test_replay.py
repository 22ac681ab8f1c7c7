from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.twin import Trace, pretrain
from nhm_sched_plugin.twin.forecasts import HourlyGuess, RollingForecasts, SeasonalGuess
from nhm_sched_plugin.twin.replay import replay
from nhm_sched_plugin.twin.summary import report_data

DAY = 86_400.0
START = 1_700_006_400.0  # a full hour, midnight UTC


def daily(days: int, mean_per_hour: float = 40.0, seed: int = 5) -> Trace:
    """Poisson arrivals with a day curve from 20 % to 180 % of the mean; exponential service of 120 s."""
    draw, arrivals = random.Random(seed), []
    for minute in range(days * 1440):
        rate = mean_per_hour / 60 * (1 - 0.8 * math.cos(2 * math.pi * minute / 1440))
        chance = draw.random()
        while chance < rate:
            arrivals.append(START + 60 * minute + draw.uniform(0, 60))
            chance += 1 - draw.random() * 0.5
    return Trace(
        arrivals, [draw.expovariate(1 / 120) for _ in arrivals], name="daily", start=START, end=START + days * DAY
    )


def settings(tmp_path: Path) -> Settings:
    return load_settings({"data_dir": tmp_path, "limits": {"max_workers": 40}, "ml": {"scheduling": {"seed": 1}}})


def test_replay_side_by_side(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    trace = daily(5)
    report = replay(
        trace,
        ("plugin", "rules", "static"),
        settings(tmp_path),
        train_fraction=4 / 5,
        tick_s=120,
        learn_decisions=400,
        progress=lambda what, share: told.append((what, share)),
    )
    assert json.loads(json.dumps(report.to_dict()))["trace"] == "daily"
    assert [result.name for result in report.policies] == ["plugin", "rules", "static"]
    assert report.start == START + 4 * DAY
    need = report.erlangs * 24
    for result in report.policies:
        assert result.tickets == report.tickets > 300
        assert 0.6 < result.sla <= 1.0
        assert result.worker_hours >= need
        assert result.wait_p50_s <= result.wait_p95_s <= result.wait_p99_s
        assert len(result.hours) == 24
        assert sum(hour.arrivals for hour in result.hours) == report.tickets
    plugin, rules, static = report.policies
    assert sum(count.count for count in plugin.decisions) == report.tickets + 720, "a decision per ticket and tick"
    assert {count.arm for count in plugin.decisions} == {"treatment"}
    assert "forecast_unavailable" not in plugin.reasons
    assert "below_volume_threshold" not in plugin.reasons
    (note,) = (note for note in report_data(report).done if "asked at any load" in note)
    assert "since optimizer.forecast_volume_threshold is not set" in note
    assert f"set the key, in tickets an hour; for the {report.first_workers} workers at the beginning it is" in note
    by_reason: dict[str, int] = {}
    for count in plugin.decisions:
        by_reason[count.reason] = by_reason.get(count.reason, 0) + count.count
    assert by_reason == plugin.reasons
    assert sum(count.count for count in rules.decisions) == 720
    shown = report_data(report).decision_counts
    assert sum(count.count for count in shown) == report.tickets + 720, "the summary shows the plugin's"
    assert {count.reason for count in shown} == set(plugin.reasons)
    assert static.scale_events == 0
    assert not static.decisions
    assert static.sla > 0.85
    assert ("plugin", 1.0) in told
    assert list(tmp_path.iterdir()) == [], "nothing of the user's is touched"


def test_a_configured_gate_is_replayed_as_it_is(tmp_path: Path) -> None:
    report = replay(
        daily(3),
        ("plugin",),
        {"data_dir": tmp_path, "optimizer": {"forecast_volume_threshold": 1e6}},
        tick_s=600,
        learn_decisions=0,
    )
    assert report.policies[0].reasons["below_volume_threshold"] > 0.5 * report.tickets
    assert not any("asked at any load" in note for note in report.notes)


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown policy 'magic'; known: plugin, planner, rules, hpa, keda"):
        replay(daily(1), ("magic",), settings(tmp_path))
    with pytest.raises(ValueError, match="both need some"):
        replay(Trace([0.0], [1.0], start=0.0, end=9e4), ("static",), settings(tmp_path))
    with pytest.raises(ValueError, match=r"train_fraction is 1\.5"):
        replay(daily(1), ("static",), settings(tmp_path), train_fraction=1.5)


def test_pretraining_fills_the_table_continues_and_is_reproducible(tmp_path: Path) -> None:
    trace, shares = daily(3), []
    report = pretrain(settings(tmp_path), trace, decisions=1500, progress=shares.append)
    assert report.decisions >= 1500
    assert report.states >= 5
    assert shares[-1] == 1.0
    table = QTable.load(settings(tmp_path).q_table_path)
    assert table.updates == report.updates > 1000
    assert sum(report.actions.values()) == report.decisions
    assert len(report.actions) >= 3, "it tries different actions"
    again = pretrain(settings(tmp_path / "other"), trace, decisions=1500)
    assert QTable.load(Path(again.path)).rows == table.rows
    assert pretrain(settings(tmp_path), trace, decisions=200, seed=2).updates > table.updates
    with pytest.raises(ValueError, match="no tickets"):
        pretrain(settings(tmp_path), Trace([], [], start=0.0, end=DAY))


def test_forecasts_move_with_the_simulated_time_and_never_see_the_future(tmp_path: Path) -> None:
    trace = daily(5)
    train, test = trace.slice(START, START + 4 * DAY), trace.slice(START + 4 * DAY, START + 5 * DAY)

    # Four days are enough to fit, and less than the 100 hours from which ARIMA makes it slow.
    def at_noon(replayed: Trace) -> float:
        forecasts = RollingForecasts(train, replayed, tmp_path / "f.json", horizons=(60,), country=None)
        assert not forecasts.advance(replayed.start + 60)
        assert forecasts.advance(replayed.start + DAY / 2)
        found = forecasts.served.forecast(60, replayed.start + DAY / 2)
        assert found is not None
        return found.predicted_volume

    # Another afternoon must not change what is forecast at noon.
    mornings = [a for a in test.arrivals if a < test.start + DAY / 2]
    quiet = Trace(mornings, [1.0] * len(mornings), start=test.start, end=test.end)
    assert at_noon(test) == at_noon(quiet)
    assert 20 < at_noon(test) < 150


def test_seasonal_guess() -> None:
    guess = SeasonalGuess(daily(10))
    assert guess.rate(START + 12 * 3600) > 2 * guess.rate(START)
    assert guess.rate(START, 12) == guess.rate(START + 12 * 3600)


def test_an_hour_is_guessed_from_the_other_days() -> None:
    """A day with a thousand tickets at noon among days with a hundred: it is not expected on that day itself."""
    noons = np.repeat([START + (day + 0.5) * DAY for day in range(5)], [100, 100, 1000, 100, 100])
    trace = Trace(noons, [1.0] * 1400, start=START, end=START + 5 * DAY)
    guess = HourlyGuess(trace)
    assert [guess.rate(START + day * DAY + 12.5 * 3600) for day in range(5)] == [325, 325, 100, 325, 325]
    assert guess.rate(START + 2 * DAY, 12) == 100
    assert guess.rate(START + 7 * DAY + 12 * 3600) == 280, "the mean of all days for one that is not among them"
    assert guess.highest(START + 11 * 3600, 0.0) == 0
    assert guess.highest(START + 11 * 3600, 600.0) == 325
    forecast = guess.forecast(START + 11.5 * 3600)
    assert forecast.predicted_volume == 325
    assert forecast.points[0].quantiles[0.9] == pytest.approx(3250), "ten times as many as expected were there, too"


def test_with_a_past_only_the_days_before_count() -> None:
    noons = np.repeat([START + (day + 0.5) * DAY for day in range(4)], [100, 200, 300, 400])
    trace = Trace(noons, [2.0] * 200 + [4.0] * 800, start=START, end=START + 4 * DAY)
    past, kept = trace.slice(START, START + 2 * DAY), trace.slice(START + 2 * DAY, trace.end)
    guess = HourlyGuess(kept, past)
    assert [guess.rate(START + day * DAY + 12 * 3600) for day in range(1, 5)] == [100, 150, 200, 250]
    assert guess.rate(START + 12 * 3600) == 300 / 48, "nothing was before: the mean of the past"
    assert guess.service_s == past.service_mean_s < kept.service_mean_s


def test_from_four_weeks_on_it_is_the_hour_of_the_week() -> None:
    """A batch every Monday."""
    mondays = [START + 7 * DAY * week for week in range(5)]
    trace = Trace([at for at in mondays for _ in range(70)], [1.0] * 350, start=START, end=START + 35 * DAY)
    assert HourlyGuess(trace).rate(START + 7 * DAY) == 70
    assert HourlyGuess(trace).rate(START + 8 * DAY) == 0
    assert HourlyGuess(trace.slice(START, START + 21 * DAY)).rate(START + 8 * DAY) == 210 / 20
