"""What is known ahead moves the forecast: own holidays and regressors, at the fit and later."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.forecasting import LoadForecaster
from nhm_sched_plugin.forecasting.covariate_files import KnownAhead
from nhm_sched_plugin.forecasting.evaluation import own_methods, roll_out
from nhm_sched_plugin.forecasting.series import HistoryError

HOURS = 1500


def flags(count: int, tz: str | None = None) -> pd.DataFrame:
    """A campaign on three days in ten."""
    index = pd.date_range("2025-01-06", periods=count, freq="h", tz=tz)
    days = np.random.default_rng(5).random(count // 24 + 1) < 0.3
    return pd.DataFrame({"campaign": days[np.arange(count) // 24].astype(float)}, index=index)


def load(campaign: pd.DataFrame, lift: float = 1.0) -> pd.Series:
    """A campaign adds `lift` times the usual."""
    index = pd.DatetimeIndex(campaign.index)
    level = 80 * (1 + 0.5 * np.sin((index.hour - 8) / 24 * 2 * np.pi)) * (1 + lift * campaign["campaign"].to_numpy())
    return pd.Series(np.random.default_rng(1).poisson(level), index=index, dtype=float)


def planned(value: float, count: int = HOURS) -> pd.DataFrame:
    """The past as it was, and for the three days to come that value."""
    whole = flags(count + 72)
    whole.iloc[count:] = value
    return whole


def total(forecaster: LoadForecaster) -> float:
    return float(forecaster.evaluate(24)[0].sum())


@pytest.fixture(scope="module")
def state() -> str:
    history = load(flags(HOURS))
    fitted = LoadForecaster.fit(history, country=None, shortlist=("ridge",), regressors=planned(0.0))
    return json.dumps(fitted.to_state())


@pytest.fixture
def fitted(state: str) -> LoadForecaster:
    return LoadForecaster.from_state(json.loads(state))


def test_the_forecast_follows_a_campaign_to_come(fitted: LoadForecaster) -> None:
    quiet = total(fitted)
    last = load(flags(HOURS)).iloc[-2:]
    assert total(fitted.update(last, regressors=planned(1.0))) > 1.3 * quiet
    assert total(fitted.inform(planned(0.0))) == pytest.approx(quiet, rel=1e-5)


def test_an_hour_without_a_value_counts_as_average(fitted: LoadForecaster) -> None:
    quiet, busy = total(fitted.inform(planned(0.0))), total(fitted.inform(planned(1.0)))
    unknown = total(fitted.inform(planned(np.nan)))
    assert quiet < unknown < busy
    assert total(fitted.inform(flags(HOURS))) == unknown


def test_newer_values_stand_from_their_first_hour_on(fitted: LoadForecaster) -> None:
    quiet = total(fitted)
    ahead = planned(1.0).iloc[HOURS:]
    busy = total(fitted.inform(ahead))
    assert busy > 1.3 * quiet
    # a campaign after the last day that is asked for changes nothing, and what was planned before it stays
    assert total(fitted.inform(ahead.iloc[24:])) == busy


def test_new_values_are_scaled_as_those_of_the_fit(fitted: LoadForecaster) -> None:
    """A file that holds nothing but campaigns still means campaigns, not the average."""
    only = planned(1.0).iloc[HOURS:]
    both = total(fitted.inform(planned(1.0)))
    assert total(fitted.inform(only)) == both


def test_refit_learns_from_newer_regressors(fitted: LoadForecaster) -> None:
    count = HOURS + 24 * 7
    weaker = fitted.refit(load(flags(count), lift=0.0), regressors=planned(1.0, count))
    calm = total(weaker)
    assert weaker.origin == pd.Timestamp("2025-01-06") + pd.Timedelta(hours=count)
    assert calm < 0.7 * total(fitted.inform(planned(1.0)))  # campaigns did nothing in that history


def test_the_state_keeps_all_that_newer_values_need(state: str, fitted: LoadForecaster) -> None:
    again = LoadForecaster.from_state(json.loads(json.dumps(fitted.to_state())))
    assert again.regressors == ("campaign",)
    np.testing.assert_allclose(again.evaluate(72)[0], fitted.evaluate(72)[0], rtol=1e-6)
    np.testing.assert_allclose(
        again.inform(planned(1.0)).evaluate(72)[0], fitted.inform(planned(1.0)).evaluate(72)[0], rtol=1e-6
    )
    fitted.inform(planned(1.0, HOURS).reindex(pd.date_range("2025-01-06", periods=50_000, freq="h"), fill_value=0.0))
    assert len(json.dumps(fitted.to_state()["covariates"])) < 2 * len(json.dumps(json.loads(state)["covariates"]))


def test_a_column_less_is_an_error_and_one_more_is_ignored(fitted: LoadForecaster) -> None:
    more = planned(1.0).assign(price=3.0)
    assert total(fitted.inform(more)) == total(fitted.inform(planned(1.0)))
    with pytest.raises(HistoryError, match="'campaign', which the forecaster was fitted with"):
        fitted.inform(more[["price"]])
    plain = LoadForecaster.fit(load(flags(50)), country=None)
    with pytest.raises(HistoryError, match="fitted without regressors"):
        plain.update(load(flags(60)), regressors=flags(60))


def test_time_zones_have_to_be_of_one_kind(fitted: LoadForecaster) -> None:
    with pytest.raises(HistoryError, match="time zone UTC, the history has None"):
        fitted.update(load(flags(HOURS)).iloc[-2:], regressors=flags(HOURS, "UTC"))
    with pytest.raises(HistoryError, match="time zone None, the history has UTC"):
        LoadForecaster.fit(load(flags(400, "UTC")), regressors=flags(400))


@pytest.mark.parametrize(
    ("regressors", "words"),
    [
        (flags(400).iloc[:0], "no value in the hours"),
        (flags(400)[[]], "no column"),
        (flags(400).shift(freq="900D"), "no value in the hours"),
        (flags(400).assign(price="dear"), "no numbers"),
        (pd.concat([flags(400), flags(400)], axis=1), "given twice"),
        (flags(400).reset_index(drop=True), "DatetimeIndex"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(regressors: pd.DataFrame, words: str) -> None:
    with pytest.raises(HistoryError, match=words):
        LoadForecaster.fit(load(flags(400)), country=None, regressors=regressors)


def test_regressors_meet_the_hours_of_a_half_hour_zone() -> None:
    """Stamps in UTC for a history whose hours begin at half past."""
    history = load(flags(HOURS, "Asia/Kolkata"))
    known = planned(1.0).tz_localize("Asia/Kolkata").tz_convert("UTC")
    busy = LoadForecaster.fit(history, country=None, shortlist=("ridge",), regressors=known)
    quiet = planned(0.0).tz_localize("Asia/Kolkata").tz_convert("UTC")
    assert total(busy) > 1.3 * total(busy.inform(quiet))


def test_the_backtest_knows_what_is_known_ahead() -> None:
    known, ahead = load(flags(1000)), KnownAhead(regressors=flags(1000))

    def error(about: KnownAhead | None) -> float:
        methods = [
            one for one in own_methods(known.iloc[:750], (1440,), None, refits=1, ahead=about) if one.name == "ridge"
        ]
        rolled = roll_out(known, methods, 24, origins=20)
        return float(np.abs(rolled.methods["ridge"].mean - rolled.actual).mean())

    assert error(ahead) < 0.8 * error(None)


def test_own_holidays_are_in_the_fit() -> None:
    closed = [dt.date(2025, 1, 8) + dt.timedelta(days=day) for day in (0, 9, 22, 31, 44, 57, 66, 75, 82)]
    index = pd.date_range("2025-01-06", "2025-03-30 23:00", freq="h")
    level = np.where(np.isin(index.date, closed), 10.0, 100.0)
    history = pd.Series(np.random.default_rng(2).poisson(level), index=index, dtype=float)
    names = dict.fromkeys([*closed, dt.date(2025, 3, 31)], "Closed")
    known = LoadForecaster.fit(history, country=None, shortlist=("ridge",), holidays=names)
    plain = LoadForecaster.fit(history, country=None, shortlist=("ridge",))
    assert known.holidays == names
    assert total(known) < 0.7 * total(plain)
