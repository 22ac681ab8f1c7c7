"""Every hard history becomes clean hours or a clear error; none becomes a wrong number in silence."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.forecasting.series import HistoryError, hour_of_week, hours, join, stamps


def ramp(count: int, freq: str = "h", start: str = "2025-01-01", tz: str | None = None) -> pd.Series:
    """Counts that differ from row to row, so that a row in the wrong place shows."""
    return pd.Series(np.arange(1.0, count + 1), index=pd.date_range(start, periods=count, freq=freq, tz=tz))


# Length and shape


@pytest.mark.parametrize("count", [1, 2, 99, 100, 1000])
def test_clean_hours_stay_as_they_are(count: int) -> None:
    result = hours(ramp(count))
    assert result.tolist() == ramp(count).tolist()
    assert stamps(result).freqstr == "h"
    assert result.name == "volume"
    assert hours(result).equals(result), "what it made it takes"


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_and_all_zero(value: float) -> None:
    assert hours(ramp(500) * 0 + value).tolist() == [value] * 500


@pytest.mark.parametrize("hole", [1, 2, 3, 23, 24, 25, 200])
def test_a_gap_is_missing_and_moves_nothing(hole: int) -> None:
    known = ramp(400)
    result = hours(known.drop(known.index[100 : 100 + hole]))
    assert result.isna().sum() == hole
    assert result.iloc[100 : 100 + hole].isna().all()
    left = known.drop(known.index[100 : 100 + hole])
    assert list(result.dropna().items()) == list(left.items())


def test_unsorted_rows_with_text_numbers_and_unknown_counts() -> None:
    known = ramp(200)
    shuffled = known.sample(frac=1.0, random_state=2)
    assert hours(shuffled).equals(hours(known))
    texts = known.astype(str).astype(object)
    texts.iloc[50] = None
    assert hours(texts).isna().sum() == 1
    assert hours(texts).iloc[51] == 52


def test_unknown_counts_at_regular_places_are_no_change_of_spacing() -> None:
    known = ramp(400)
    known.iloc[100:200:2] = np.nan
    result = hours(known)
    assert (len(result), result.isna().sum()) == (400, 50)


# Refused


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (ramp(5).where(lambda s: s != 3, -1.0), r"-1 at 2025-01-01 02:00:00; counts cannot be negative"),
        (ramp(5).where(lambda s: s != 3, np.inf), r"infinite count at 2025-01-01 02:00:00"),
        (ramp(5).where(lambda s: s != 3, -np.inf), r"infinite count"),
        (ramp(5) * np.nan, "nothing but missing values"),
        (ramp(0), "empty"),
        (ramp(5).astype(object).where(lambda s: s != 3, "many"), "no numbers"),
        (pd.Series(pd.date_range("2025", periods=5), index=ramp(5).index), "datetime64"),
        (pd.Series(pd.to_timedelta([1, 2], unit="h"), index=ramp(2).index), "timedelta64"),
        (ramp(5).tz_localize("UTC").rename(index=str), "DatetimeIndex"),
        (ramp(5).to_period("h"), "PeriodIndex"),
        (ramp(5).to_frame(), "DataFrame"),
        (pd.Series([1.0, 2.0], index=pd.DatetimeIndex(["1825-01-01", "2025-01-01"])), "over a century"),
        (ramp(150, "D"), "coarser than hourly"),
        (ramp(6, "D"), "coarser than hourly"),
        (ramp(60, "2h"), "coarser than hourly"),
    ],
)
def test_what_holds_no_counts_by_the_hour_is_refused(history: object, words: str) -> None:
    with pytest.raises(HistoryError, match=words):
        hours(history)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ramp(3000, "5min"), ramp(200, "h", "2025-02-01")),
        (ramp(600, "h"), ramp(3000, "5min", "2025-02-01")),
        (ramp(600, "15min"), ramp(600, "5min", "2025-02-01")),
        (ramp(600, "h"), ramp(40, "D", "2025-02-01")),
    ],
)
def test_a_spacing_that_changes_is_refused_with_both_spacings(first: pd.Series, second: pd.Series) -> None:
    with pytest.raises(HistoryError, match=r"spacing of the history changes \(\d+ s from 2025.*, \d+ s from 2025") as e:
        hours(pd.concat([first, second]))
    assert "resample" in str(e.value)


def test_what_the_error_advises_helps() -> None:
    mixed = pd.concat([ramp(3000, "5min"), ramp(200, "h", "2025-02-01")])
    result = hours(mixed.resample("h").sum(min_count=1))
    assert result.iloc[:2].tolist() == [sum(range(1, 13)), sum(range(13, 25))]
    assert result.iloc[-1] == 200


# Finer than an hour


def test_even_rows_are_summed_and_part_hours_are_scaled_or_missing() -> None:
    rows = pd.Series(2.0, index=pd.date_range("2025-01-01 00:20", periods=8 + 12 * 4 + 5, freq="5min"))
    result = hours(rows)
    assert result.iloc[:-1].tolist() == [24.0] * 5, "8 of 12 rows stand for the hour"
    assert np.isnan(result.iloc[-1]), "5 do not"


def test_lost_rows_do_not_make_an_hour_quiet() -> None:
    rows = pd.Series(1.0, index=pd.date_range("2025-01-01", periods=12 * 48, freq="5min"))
    rows = rows.drop(rows.index[12 * 10 + 3 : 12 * 10 + 6]).drop(rows.index[12 * 20 : 12 * 20 + 8])
    result = hours(rows)
    assert result.iloc[10] == 12
    assert np.isnan(result.iloc[20])
    assert result.drop(result.index[20]).tolist() == [12] * 47


def test_uneven_rows_are_summed_as_they_are() -> None:
    draw = np.random.default_rng(1)
    at = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.sort(draw.uniform(0, 100 * 3600, 2000)), unit="s")
    result = hours(pd.Series(1.0, index=at))
    assert result.sum() == 2000
    assert result.iloc[:5].tolist() == [((at >= t) & (at < t + pd.Timedelta("1h"))).sum() for t in result.index[:5]]


def test_hourly_rows_a_moment_early_or_late_keep_their_hours() -> None:
    draw = np.random.default_rng(2)
    known = ramp(300)
    shaken = known.set_axis(known.index + pd.to_timedelta(draw.integers(-60, 61, 300), unit="s"))
    assert hours(shaken).equals(hours(known))
    half = known.set_axis(known.index + pd.Timedelta("30min"))
    assert hours(half).equals(hours(known)), "rows in the middle of an hour are that hour's"


# Duplicates


def test_of_equal_stamps_the_last_known_count_stands_and_a_difference_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = ramp(100)
    with caplog.at_level(logging.WARNING):
        assert hours(pd.concat([known, known.iloc[10:20]])).equals(hours(known))
    assert not caplog.records, "the same count twice is no contradiction"
    unknown = pd.Series([np.nan], index=[known.index[5]])
    assert hours(pd.concat([known, unknown])).equals(hours(known))
    with caplog.at_level(logging.WARNING):
        result = hours(pd.concat([known, known.iloc[10:12] * 5]))
    assert result.iloc[10:12].tolist() == [55, 60]
    (record,) = caplog.records
    assert "2 stamps" in record.getMessage()
    assert "2025-01-01 10:00:00" in record.getMessage()


# Clock changes and time zones


@pytest.mark.parametrize(("start", "day"), [("2025-03-07", "2025-03-09"), ("2025-10-31", "2025-11-02")])
def test_clock_changes_keep_every_hour_apart(start: str, day: str) -> None:
    known = ramp(24 * 5, start=start, tz="America/New_York")
    result = hours(known)
    assert result.tolist() == known.tolist()
    assert (stamps(result).tz_convert("UTC") == stamps(known).tz_convert("UTC")).all()
    on_the_day = stamps(result)[stamps(result).strftime("%F") == day]
    assert len(on_the_day) == (23 if "-03-" in day else 25)


@pytest.mark.parametrize("freq", ["5min", "15min"])
def test_finer_rows_over_a_clock_change(freq: str) -> None:
    per_hour = 12 if freq == "5min" else 4
    result = hours(pd.Series(1.0, pd.date_range("2025-11-01", periods=48 * per_hour, freq=freq, tz="America/New_York")))
    assert result.tolist() == [per_hour] * 48


def test_naive_local_clocks_lose_the_doubled_hour_in_words(caplog: pytest.LogCaptureFixture) -> None:
    local = ramp(24 * 5, start="2025-10-31", tz="America/New_York").tz_localize(None)
    with caplog.at_level(logging.WARNING):
        result = hours(local)
    assert len(result) == 24 * 5 - 1
    assert result.notna().all()
    assert result["2025-11-02 01:00":"2025-11-02 02:00"].tolist() == [51, 52], "the second one of the doubled hour"
    assert "2025-11-02 01:00:00" in caplog.text


def test_naive_local_clocks_have_a_gap_where_an_hour_is_skipped() -> None:
    local = ramp(24 * 5, start="2025-03-07", tz="America/New_York").tz_localize(None)
    result = hours(local)
    assert stamps(result)[result.isna()].tolist() == [pd.Timestamp("2025-03-09 02:00")]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/Sao_Paulo", "Australia/Lord_Howe"])
def test_hours_begin_on_the_clock_of_the_zone(zone: str) -> None:
    known = ramp(24 * 20, start="2025-03-30", tz=zone)
    result = hours(known)
    assert stamps(result)[0] == known.index[0]
    assert result.tolist() == known.tolist()
    assert hour_of_week(stamps(result))[0] == 6 * 24, "Sunday, midnight"


def test_counts_of_another_zone_join_in_the_zone_of_the_history() -> None:
    old = hours(ramp(48, tz="America/Sao_Paulo"))
    recent = hours(ramp(24, start="2025-01-02 15:00", tz="UTC"))
    joined = join(old, recent)
    assert str(stamps(joined).tz) == "America/Sao_Paulo"
    assert joined["2025-01-02 11:00":"2025-01-02 12:00"].tolist() == [36, 1]


def test_half_hours_do_not_join_in_silence() -> None:
    old = hours(ramp(48, tz="Asia/Kolkata"))
    with pytest.raises(HistoryError, match="begin at other minutes"):
        join(old, hours(ramp(24, start="2025-01-03", tz="UTC")))
    with pytest.raises(HistoryError, match="time zone"):
        join(old, hours(ramp(24)))
