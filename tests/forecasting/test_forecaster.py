from __future__ import annotations

import datetime as dt
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import ModelError, NhmSchedError
from nhm_sched_plugin.forecasting import LoadForecaster
from nhm_sched_plugin.forecasting.backtest import Backtest, Fold, mape, plan_folds, roll, wape
from nhm_sched_plugin.forecasting.evaluation import evaluate
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.judge import candidates
from nhm_sched_plugin.forecasting.models.frozen_prophet import FrozenProphet, _holiday_frame
from nhm_sched_plugin.forecasting.selection import choose, plan
from nhm_sched_plugin.forecasting.series import HistoryError, holiday_dates, hours, join
from nhm_sched_plugin.settings import ProphetSettings


def load(count: int, start: str = "2025-01-06", tz: str | None = None, seed: int = 1, level: float = 60.0) -> pd.Series:
    """Poisson counts with a daily and a weekly cycle."""
    index = pd.date_range(start, periods=count, freq="h", tz=tz)
    shape = (1 + 0.7 * np.sin((index.hour - 8) / 24 * 2 * np.pi)) * np.where(index.day_of_week < 5, 1.0, 0.5)
    return pd.Series(np.random.default_rng(seed).poisson(level * shape), index=index, dtype=float)


@pytest.fixture(scope="module")
def fitted() -> LoadForecaster:
    return LoadForecaster.fit(load(1300))


def well_formed(forecaster: LoadForecaster, horizon: int) -> None:
    forecast = forecaster.predict(horizon)
    assert forecast.horizon_minutes == horizon
    assert len(forecast.points) == math.ceil(horizon / 60)
    assert forecast.predicted_volume == forecast.points[-1].mean
    assert 0 <= forecast.confidence <= 1
    assert forecast.bottleneck_probability is not None
    assert 0 <= forecast.bottleneck_probability <= 1
    for point in forecast.points:
        assert tuple(point.quantiles) == LEVELS
        values = list(point.quantiles.values())
        assert values == sorted(values)
        assert values[0] >= 0
        assert point.mean >= 0
        assert all(math.isfinite(value) for value in (*values, point.mean))
    steps = {b.timestamp - a.timestamp for a, b in zip(forecast.points, forecast.points[1:], strict=False)}
    assert steps <= {dt.timedelta(hours=1)}


@pytest.mark.parametrize("horizon", [1, 60, 61, 150, 360, 1440, 10_080])
def test_any_horizon(fitted: LoadForecaster, horizon: int) -> None:
    well_formed(fitted, horizon)


def test_points_follow_the_history(fitted: LoadForecaster) -> None:
    points = fitted.predict(120).points
    assert points[0].timestamp == load(1300).index[-1].to_pydatetime() + dt.timedelta(hours=1)
    assert points[0].timestamp.tzinfo is None
    zoned = LoadForecaster.fit(load(50, tz="America/Sao_Paulo")).predict(60).points[0].timestamp
    assert zoned.utcoffset() == dt.timedelta(hours=-3)
    assert zoned == (load(50, tz="America/Sao_Paulo").index[-1] + pd.Timedelta(hours=1)).to_pydatetime()


def test_it_forecasts_what_was_put_in(fitted: LoadForecaster) -> None:
    whole = load(1300 + 168, level=60.0)
    forecast = fitted.predict(10_080)
    error = np.abs(np.array([point.mean for point in forecast.points]) - whole.to_numpy()[1300:]).sum()
    assert error / whole.to_numpy()[1300:].sum() < 0.2
    inside = [
        point.quantiles[0.1] <= value <= point.quantiles[0.9]
        for point, value in zip(forecast.points, whole.to_numpy()[1300:], strict=True)
    ]
    assert 0.65 <= np.mean(inside) <= 0.95


def test_update_moves_the_origin_without_a_refit(fitted: LoadForecaster) -> None:
    moved = LoadForecaster.from_state(fitted.to_state())
    recent = load(1310).iloc[1280:]
    moved.update(recent)
    assert moved.trained_at == fitted.trained_at
    assert moved.predict(60).points[0].timestamp == recent.index[-1].to_pydatetime() + dt.timedelta(hours=1)
    assert moved.update(load(1300).iloc[-30:]).origin == recent.index[-1] + pd.Timedelta(hours=1)  # never back
    with pytest.raises(HistoryError, match="time zone"):
        moved.update(recent.tz_localize("UTC"))


def test_where_both_know_an_hour_the_newer_count_stands() -> None:
    old, recent = hours(load(48)), hours(load(60, seed=2).iloc[40:])
    merged = join(old, recent)
    assert merged.iloc[:40].tolist() == old.iloc[:40].tolist()
    assert merged.iloc[40:].tolist() == recent.tolist()
    assert join(old, recent.iloc[15:]).isna().sum() == 7  # hours that nobody counted are missing, not zero


def test_update_across_an_outage(fitted: LoadForecaster) -> None:
    moved = LoadForecaster.from_state(fitted.to_state())
    moved.update(load(1300 + 60).iloc[-10:])
    well_formed(moved, 1440)


def test_state_is_json_and_gives_the_same_forecasts(fitted: LoadForecaster) -> None:
    text = json.dumps(fitted.to_state(), allow_nan=False)
    assert len(text) < 150_000
    again = LoadForecaster.from_state(json.loads(text))
    for horizon in (60, 1440, 10_080):
        one, two = fitted.predict(horizon), again.predict(horizon)
        assert one.predicted_volume == pytest.approx(two.predicted_volume, rel=1e-5)
        assert one.confidence == pytest.approx(two.confidence, rel=1e-4)
        assert [point.timestamp for point in one.points] == [point.timestamp for point in two.points]
    state = json.loads(text)
    with pytest.raises(ModelError, match="version"):
        LoadForecaster.from_state(state | {"version": 9})
    with pytest.raises(ModelError, match="damaged"):
        LoadForecaster.from_state({key: value for key, value in state.items() if key != "bands"})


def test_zoned_state_keeps_its_zone() -> None:
    forecaster = LoadForecaster.fit(load(60, tz="Europe/Berlin", start="2025-03-28"))
    again = LoadForecaster.from_state(json.loads(json.dumps(forecaster.to_state())))
    assert again.predict(60).points[0].timestamp == forecaster.predict(60).points[0].timestamp
    assert again.predict(60).points[0].timestamp.utcoffset() == dt.timedelta(hours=2)


@pytest.mark.parametrize("count", [1, 2, 23, 99])
def test_short_history_is_a_seasonal_mean_at_low_confidence(count: int) -> None:
    forecaster = LoadForecaster.fit(load(count))
    assert [band.method for band in forecaster.bands] == ["seasonal_mean"]
    for horizon in (60, 1440, 10_080):
        well_formed(forecaster, horizon)
        assert forecaster.predict(horizon).confidence < 0.32


@pytest.mark.parametrize("count", [100, 169, 500])
def test_medium_history_weighs_arima_against_the_baselines(count: int) -> None:
    forecaster = LoadForecaster.fit(load(count))
    assert "arima" in forecaster.errors
    assert "prophet" not in forecaster.errors
    best = min(error["60"][1] for name, error in forecaster.errors.items() if name != "served")
    assert forecaster.errors["served"]["60"][1] <= best * 1.3
    well_formed(forecaster, 1440)


@pytest.mark.parametrize("count", [50, 400, 1000])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_and_empty_traffic(count: int, value: float) -> None:
    index = pd.date_range("2025-01-06", periods=count, freq="h")
    forecaster = LoadForecaster.fit(pd.Series(value, index=index))
    well_formed(forecaster, 1440)
    assert forecaster.predict(60).predicted_volume == pytest.approx(value, abs=0.2)


def test_long_history_weighs_prophet_and_keeps_what_is_better(fitted: LoadForecaster) -> None:
    assert "prophet" in fitted.errors
    assert fitted.failures == {}
    for horizon in ("60", "360", "1440"):
        assert fitted.errors["served"][horizon][1] <= fitted.errors["prophet"][horizon][1] * 1.05


def test_when_prophet_fails_arima_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FrozenProphet, past: object) -> FrozenProphet:
        raise RuntimeError("no Stan here")

    monkeypatch.setattr(FrozenProphet, "fit", broken)
    forecaster = LoadForecaster.fit(load(1000))
    assert "no Stan here" in forecaster.failures["prophet"]
    assert "arima" in forecaster.errors
    well_formed(forecaster, 60)


def test_frozen_prophet_is_prophet() -> None:
    """The frozen numbers give what `Prophet.predict` gives, seasonality, trend and holidays included."""
    from prophet import Prophet

    days = {
        dt.date(2025, 1, 15): "one",
        dt.date(2025, 2, 10): "two; one",
        dt.date(2025, 3, 3): "two",
        dt.date(2026, 1, 1): "x",
    }
    known = load(1200)
    forecaster = LoadForecaster.fit(known.iloc[:50])
    past = forecaster.timeline(hours(known))
    for mode in ("additive", "multiplicative"):
        frozen = FrozenProphet(mode, 0.05, 10.0, days).fit(past)
        model = Prophet(
            seasonality_mode=mode,
            yearly_seasonality=False,
            weekly_seasonality=True,
            daily_seasonality=True,
            holidays=_holiday_frame(days),
            uncertainty_samples=0,
        )
        model.fit(pd.DataFrame({"ds": known.index, "y": known.to_numpy()}), seed=1)
        ahead = pd.date_range(known.index[-1] + pd.Timedelta(hours=1), periods=400, freq="h")
        wanted = model.predict(pd.DataFrame({"ds": ahead})).yhat.to_numpy()
        assert frozen.predict(past, 400) == pytest.approx(wanted, rel=1e-3, abs=0.05)
        again = FrozenProphet.from_state(json.loads(json.dumps(frozen.to_state())))
        assert again.predict(past, 400) == pytest.approx(frozen.predict(past, 400), rel=1e-4)


def holiday_load(count: int, start: str) -> pd.Series:
    """The usual load, with Brazilian holidays at a fifth of it."""
    known = load(count, start=start)
    days = holiday_dates("BR", range(known.index[0].year, known.index[-1].year + 1))
    known[[stamp.date() in days for stamp in known.index]] *= 0.2
    return known


def test_brazilian_holidays_are_in_the_prophet_fit() -> None:
    """Only the calendar differs between the two fits; the one that has it forecasts the next Christmas lower."""
    known = holiday_load(24 * 374, start="2024-12-16")
    known = known[(known.index < "2025-02-20") | (known.index > "2025-11-10")]
    assert str(known.index[-1]) == "2025-12-24 23:00:00"  # an outage in between keeps the fit short
    past = LoadForecaster.fit(known.iloc[:50]).timeline(hours(known))
    knowing, plain = FrozenProphet(holidays=holiday_dates("BR", range(2024, 2026))).fit(past), FrozenProphet().fit(past)
    day = slice(9, 18)
    assert knowing.predict(past, 24)[day].sum() < 0.6 * plain.predict(past, 24)[day].sum()
    effects = {int(key): value for key, value in knowing.to_state()["effects"].items()}
    assert effects[(dt.date(2025, 12, 25) - dt.date(1970, 1, 1)).days] < -0.05
    assert plain.to_state()["effects"] == {}


def test_a_forecast_dips_on_the_next_holiday() -> None:
    known = holiday_load(24 * 61, start="2025-03-01")  # to the eve of Labour Day; Good Friday and Tiradentes are in it
    assert str(known.index[-1]) == "2025-04-30 23:00:00"
    with_calendar = LoadForecaster.fit(known, country="BR").predict(1440)
    without = LoadForecaster.fit(known, country=None).predict(1440)
    daytime = [sum(forecast.points[hour].mean for hour in range(9, 18)) for forecast in (with_calendar, without)]
    assert daytime[0] < 0.75 * daytime[1]


def test_the_future_cannot_leak() -> None:
    """Whatever comes after an origin, nothing forecast at or before it may change: in the fit and in its backtest."""
    whole = load(1200)
    scrambled = whole.copy()
    scrambled.iloc[1000:] = np.random.default_rng(9).permutation(scrambled.iloc[1000:].to_numpy()) * 17
    one, two = (LoadForecaster.fit(series.iloc[:700]) for series in (whole, scrambled))
    assert one.predict(1440).points == two.predict(1440).points
    makers = candidates(1200, None, {})
    folds = [Fold(900, tuple(range(900, 1001, 20)))]
    rows = [roll(one.timeline(hours(series)), makers, folds).forecasts for series in (whole, scrambled)]
    assert set(rows[0]) == set(makers)
    for name in makers:
        assert np.array_equal(rows[0][name], rows[1][name]), name


def test_settings_reach_prophet() -> None:
    config = ProphetSettings(
        seasonality_mode="multiplicative", changepoint_prior_scale=0.5, seasonality_prior_scale=0.01
    )
    model = candidates(1000, config, {})["prophet"]()
    state = model.to_state()
    assert state["mode"] == "multiplicative"
    assert (state["changepoint_prior_scale"], state["seasonality_prior_scale"]) == (0.5, 0.01)


def test_capacity_decides_the_bottleneck(fitted: LoadForecaster) -> None:
    tight, roomy = (fitted.predict(60, capacity=c).bottleneck_probability for c in (1.0, 1e6))
    assert tight is not None
    assert roomy is not None
    assert tight > 0.9
    assert roomy < 1e-3


def test_table_row(fitted: LoadForecaster) -> None:
    row = fitted.table(384, share=0.5)
    assert len(row.mean) == 384
    assert row.first_hour == load(1300).index[-1].timestamp() + 3600
    assert row.share == 0.5
    assert set(row.mape) == {"60", "360", "1440"}
    assert row.mean[:24] == pytest.approx([point.mean for point in fitted.predict(1440).points], rel=1e-5)
    with pytest.raises(HistoryError):
        fitted.table(505)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (pd.Series([1.0, 2.0]), "DatetimeIndex"),
        ([1, 2], "Series"),
        (pd.Series([], index=pd.DatetimeIndex([]), dtype=float), "empty"),
        (pd.Series([np.nan], index=pd.date_range("2025", periods=1, freq="h")), "empty"),
        (pd.Series([1.0, -2.0], index=pd.date_range("2025", periods=2, freq="h")), "negative"),
        (pd.Series(["a"], index=pd.date_range("2025", periods=1, freq="h")), "numbers"),
        (pd.Series(1.0, index=pd.date_range("2025", periods=120, freq="D")), "coarser"),
    ],
)
def test_unusable_histories_are_refused_in_words(history: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        LoadForecaster.fit(history)  # type: ignore[arg-type]
    assert isinstance(caught.value, NhmSchedError)


def test_unusable_horizon_and_country() -> None:
    with pytest.raises(ValueError, match="horizon"):
        LoadForecaster.fit(load(30), horizons=(0,))
    with pytest.raises(ValueError, match="horizon"):
        LoadForecaster.fit(load(30)).predict(10_081)
    with pytest.raises(ValueError, match="country"):
        LoadForecaster.fit(load(30), country="XX")


def test_messy_stamps_are_put_in_order() -> None:
    clean = load(300)
    messy = pd.concat([clean, clean.iloc[:50] * 0]).sample(frac=1.0, random_state=3)
    messy = pd.concat([messy[messy.index.isin(clean.index[50:])], clean.iloc[:50] * 5, clean.iloc[:50]])
    messy.iloc[7] = np.nan
    result = hours(messy)
    assert result.index.is_monotonic_increasing
    assert not result.index.has_duplicates
    assert result.iloc[:50].tolist() == clean.iloc[:50].tolist()  # the last duplicate stands
    assert result.isna().sum() == 1


def test_finer_counts_are_summed_and_a_part_hour_is_scaled() -> None:
    index = pd.date_range("2025-01-01", periods=12 * 5 + 9, freq="5min")
    result = hours(pd.Series(2.0, index=index))
    assert result.tolist() == [24.0] * 6
    thin = hours(pd.Series(2.0, index=index[: 12 * 5 + 3]))
    assert np.isnan(thin.iloc[-1])


@pytest.mark.parametrize("hole", [2, 23, 25])
def test_gaps(hole: int) -> None:
    known = load(600)
    well_formed(LoadForecaster.fit(known.drop(known.index[400 : 400 + hole])), 1440)


@pytest.mark.parametrize("zone", ["America/New_York", "UTC"])
def test_clock_changes_keep_hours_apart(zone: str) -> None:
    known = load(24 * 20, start="2024-10-25", tz=zone)
    assert len(hours(known)) == len(known)
    assert hours(known).notna().all()
    well_formed(LoadForecaster.fit(known), 1440)


def test_predicting_needs_no_fitting_library(fitted: LoadForecaster) -> None:
    script = (
        "import json, sys\n"
        "from nhm_sched_plugin.forecasting import LoadForecaster\n"
        "LoadForecaster.from_state(json.load(sys.stdin)).predict(1440)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(fitted.to_state()), capture_output=True, text=True, check=True
    )
    assert not {"prophet", "statsmodels", "mlflow", "holidays", "cmdstanpy"} & set(json.loads(done.stdout))


def test_errors_skip_what_cannot_be_judged() -> None:
    actual, forecast = np.array([0.0, 10.0, np.nan, 20.0]), np.array([5.0, 11.0, 3.0, 16.0])
    assert mape(actual, forecast) == pytest.approx(15.0)
    assert wape(actual, forecast) == pytest.approx(10 / 30 * 100)
    assert math.isnan(mape(actual[:1], forecast[:1]))
    assert math.isnan(wape(actual[:1], forecast[:1]))


@pytest.mark.parametrize("count", [100, 500, 1000, 20_000])
def test_folds_lie_inside_the_history(count: int) -> None:
    folds = plan_folds(count)
    assert all(count / 2 < fold.start <= min(fold.origins) and max(fold.origins) < count for fold in folds)
    hours_of_day = {origin % 24 for fold in folds for origin in fold.origins}
    assert len(hours_of_day) == 24


def test_evaluation_judges_what_was_never_seen() -> None:
    heard: list[float] = []
    rows = evaluate(load(600), horizons=(60, 360), origins=8, refits=2, progress=heard.append)
    assert heard[-1] == 1.0
    served = [row for row in rows if row.method == "served"]
    assert [row.horizon_minutes for row in served] == [60, 360]
    assert all(row.origins == 8 and 0 < row.wape < 60 and row.covers_95 is not None for row in served)
    assert {"arima", "seasonal_mean", "seasonal_naive", "ridge", "ridge_log", "holt_winters"} <= {
        row.method for row in rows
    }
    with pytest.raises(HistoryError, match="too few"):
        evaluate(load(40))


def test_the_mean_stays_inside_its_interval_after_a_level_shift() -> None:
    """A backtest that sees only the drop errs to one side: every count is below its forecast."""
    forecast = np.full((4, 24), 100.0)
    shifted = Backtest(
        actual=np.full((4, 24), 10.0),
        forecasts={"prophet": forecast},
        fold=np.zeros(4, dtype=int),
        age=np.arange(4.0, 0, -1),
    )
    (band,), served = choose(shifted, [24])
    assert served == pytest.approx(forecast)
    (row,) = plan([band], ["prophet"], 1).quantiles(np.array([100.0]))
    low, high = row[LEVELS.index(0.1)], row[LEVELS.index(0.9)]
    assert low == pytest.approx(10.0)
    assert low <= 100.0 <= high


def test_totals_are_calibrated_as_sums(fitted: LoadForecaster) -> None:
    """Hours err together, but not wholly: the total is less uncertain than if they did."""
    mean, quantiles = fitted.total(1440)
    points = fitted.predict(1440).points
    assert mean == pytest.approx(sum(point.mean for point in points))
    assert list(quantiles.values()) == sorted(quantiles.values())
    assert quantiles[0.9] - quantiles[0.1] < sum(p.quantiles[0.9] - p.quantiles[0.1] for p in points)
    again = LoadForecaster.from_state(json.loads(json.dumps(fitted.to_state())))
    assert again.total(1440)[1] == pytest.approx(quantiles, rel=1e-4)
    short = LoadForecaster.fit(load(60))
    assert short.total(360)[1][0.9] == pytest.approx(sum(p.quantiles[0.9] for p in short.predict(360).points))


@pytest.mark.parametrize(("factor", "kind"), [(2.5, "shift_up"), (0.3, "shift_down")])
def test_a_level_shift_is_followed_within_two_hours(fitted: LoadForecaster, factor: float, kind: str) -> None:
    known = load(1300 + 30)
    known.iloc[-6:] *= factor
    usual = LoadForecaster.from_state(fitted.to_state()).update(known.iloc[:-6])
    shifted = LoadForecaster.from_state(fitted.to_state()).update(known.iloc[:-4])
    assert usual.correction.kind == "none"
    assert shifted.correction.kind == kind
    wanted = known.iloc[-4:].to_numpy()
    plain = [point.mean for point in usual.predict(360).points[2:6]]
    moved = [point.mean for point in shifted.predict(240).points]
    assert np.abs(np.array(moved) - wanted).sum() < 0.7 * np.abs(np.array(plain) - wanted).sum()
    again = LoadForecaster.from_state(json.loads(json.dumps(shifted.to_state())))
    assert again.correction.kind == kind


def test_refit_keeps_the_choice_and_learns_the_rest(fitted: LoadForecaster) -> None:
    longer = load(1500)
    again = fitted.refit(longer)
    assert again.bands == fitted.bands
    assert again.samples == 1500
    assert again.origin == pd.Timestamp(longer.index[-1]) + pd.Timedelta(hours=1)
    well_formed(again, 1440)
