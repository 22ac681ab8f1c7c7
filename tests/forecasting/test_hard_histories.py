"""Histories that break forecasts: a sound one at low confidence, or a clear error; never a crash or nonsense."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.forecasting import LoadForecaster
from nhm_sched_plugin.forecasting.series import HistoryError

FEW = ("ridge", "seasonal_mean", "seasonal_naive")
"""Prophet and ARIMA take seconds, and have tests of their own."""


def hourly(count: int, start: str = "2025-01-06", tz: str | None = None) -> pd.Series:
    index = pd.date_range(start, periods=count, freq="h", tz=tz)
    level = 60 * (1 + 0.7 * np.sin((index.hour - 8) / 24 * 2 * np.pi))
    return pd.Series(np.random.default_rng(1).poisson(level), index=index, dtype=float)


def fit(history: pd.Series, shortlist: Sequence[str] | None = FEW) -> LoadForecaster:
    fitted = LoadForecaster.fit(history, country=None, shortlist=shortlist)
    mean, quantiles = fitted.evaluate(168)
    assert np.isfinite(mean).all()
    assert np.isfinite(quantiles).all()
    assert (mean >= 0).all()
    assert (quantiles >= 0).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    for horizon in (60, 360, 1440):
        forecast = fitted.predict(horizon)
        assert 0 <= forecast.confidence <= 1
        assert forecast.bottleneck_probability is not None
        assert 0 <= forecast.bottleneck_probability <= 1
    return fitted


def test_no_samples_are_an_error_that_says_what_to_give() -> None:
    with pytest.raises(HistoryError, match="give at least one hourly count"):
        fit(hourly(0))


@pytest.mark.parametrize(("count", "most"), [(1, 0.5), (99, 0.5), (100, 1.0), (999, 1.0), (1000, 1.0)])
def test_from_one_sample_on_there_is_a_forecast(count: int, most: float) -> None:
    fitted = fit(hourly(count), None if count < 1000 else FEW)
    assert fitted.samples == count
    assert fitted.predict(60).confidence <= most


@pytest.mark.parametrize("count", [1, 99, 100, 999, 1000])
@pytest.mark.parametrize("value", [0.0, 12.0])
def test_always_the_same(count: int, value: float) -> None:
    forecast = fit(pd.Series(value, index=hourly(count).index)).predict(1440)
    assert all(point.mean == pytest.approx(value, abs=0.05) for point in forecast.points)


@pytest.mark.parametrize("count", [100, 999, 1000])
def test_spikes_of_ten_thousand_among_zeros(count: int) -> None:
    spikes = np.where(np.random.default_rng(3).random(count) < 0.01, 10_000.0, 0.0)
    spikes[count // 2] = 10_000.0
    fitted = fit(pd.Series(spikes, index=hourly(count).index))
    mean, quantiles = fitted.evaluate(168)
    assert mean.mean() < 1000  # a hundred an hour came on average
    assert (quantiles[:, 2] < 1000).mean() > 0.9  # but for hours of the week that had a spike
    forecast = fitted.predict(60, capacity=9000.0)
    assert forecast.bottleneck_probability is not None
    assert forecast.bottleneck_probability < 0.1  # one hour in a hundred is not expected,
    if count < 500:
        assert forecast.confidence < 0.5
    else:
        assert forecast.bottleneck_probability > 0  # nor ruled out by those who have seen more than one


@pytest.mark.parametrize("count", [200, 1000])
@pytest.mark.parametrize("hole", [23, 25])
@pytest.mark.parametrize("back", [0.5, 0.95])
def test_a_day_is_missing(count: int, hole: int, back: float) -> None:
    """In the middle, and near the end; an hour without a row is unknown, not empty."""
    history = hourly(count)
    first = min(int(count * back), count - hole - 1)
    fitted = fit(history.drop(history.index[first : first + hole]))
    assert fitted.samples == count - hole
    whole = fit(history).evaluate(24)[0].sum()
    assert fitted.evaluate(24)[0].sum() == pytest.approx(whole, rel=0.25)


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Europe/Berlin", "2025-03-30"),
        ("Europe/Berlin", "2025-10-26"),
        ("America/Sao_Paulo", "2018-02-18"),
        ("America/Sao_Paulo", "2018-11-04"),
        ("Australia/Lord_Howe", "2025-04-06"),
        ("Australia/Lord_Howe", "2025-10-05"),
        ("Asia/Kolkata", "2025-10-05"),
    ],
)
@pytest.mark.parametrize("days_after", [-1, 1])
def test_clocks_that_change(zone: str, change: str, days_after: int) -> None:
    """In the history, and in the hours that are forecast: every hour once, a full day's load on each side."""
    end = (pd.Timestamp(change) + pd.Timedelta(days=days_after)).tz_localize(zone)
    index = pd.date_range(end=end, periods=600, freq="h")
    level = 60 * (1 + 0.7 * np.sin((index.hour - 8) / 24 * 2 * np.pi))
    fitted = fit(pd.Series(np.random.default_rng(1).poisson(level), index=index, dtype=float))
    points = fitted.predict(2880).points
    seconds = [point.timestamp.timestamp() for point in points]
    assert end.timestamp() < seconds[0] <= end.timestamp() + 3600  # Lord Howe moves its clock by half an hour
    assert set(np.diff(seconds)) == {3600.0}
    assert {point.timestamp.utcoffset() for point in points} <= {
        stamp.utcoffset() for stamp in (end, end + pd.Timedelta(days=3))
    }
    day = [point.mean for point in points[:24]]
    assert sum(day) == pytest.approx(24 * 60, rel=0.2)
    busiest = points[int(np.argmax(day))].timestamp
    assert 11 <= busiest.hour <= 17  # 14:00 on the clock of the zone, before and after the change


def spoiled(value: float) -> pd.Series:
    history = hourly(300)
    history.iloc[[5, 150, 299]] = value
    return history


def test_unknown_counts_and_double_stamps_are_sorted_out() -> None:
    assert fit(spoiled(np.nan)).samples == 297
    history = hourly(300)
    twice = fit(pd.concat([history * 3, history]))
    np.testing.assert_allclose(twice.evaluate(24)[0], fit(history).evaluate(24)[0])


@pytest.mark.parametrize(
    ("value", "words"), [(-1.0, "counts cannot be negative"), (math.inf, "infinite"), (-math.inf, "infinite")]
)
def test_what_is_no_count_is_an_error_that_names_the_hour(value: float, words: str) -> None:
    with pytest.raises(HistoryError, match=words) as caught:
        fit(spoiled(value))
    assert "2025-01-06 05:00:00" in str(caught.value)
