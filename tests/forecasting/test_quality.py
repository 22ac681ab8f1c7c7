"""The report names rule and place; the treatments touch glitches only, and say what they touched."""

from __future__ import annotations

import datetime as dt

import msgspec
import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.forecasting.models.base import Timeline
from nhm_sched_plugin.forecasting.quality import RULES, QualityReport, read_rows, reference, runs, validate
from nhm_sched_plugin.forecasting.series import hours
from nhm_sched_plugin.forecasting.treatment import glitches, impute, interpolate, without_glitches

WEEKS = 12


def load(hours_: int = WEEKS * 168, *, level: float = 200.0, seed: int = 3, start: str = "2025-01-06") -> pd.Series:
    """Busy days, quiet nights, quieter weekends, and the noise of counts that come in bursts."""
    index = pd.date_range(start, periods=hours_, freq="h")
    day = 1.0 + 0.8 * np.sin((index.hour.to_numpy() - 8) * np.pi / 12)
    shape = day * np.where(index.day_of_week < 5, 1.0, 0.5)
    draw = np.random.default_rng(seed)
    return pd.Series(draw.poisson(level * shape * draw.gamma(80, 1 / 80, hours_)).astype(float), index=index)


def failing(report: QualityReport, rule: str) -> None:
    """That one rule fails, no other, and the report says so in each of its ways."""
    assert (report.ok, report.failed) == (False, [rule])
    assert report.finding(rule).count > 0  # type: ignore[arg-type]
    assert report.finding(rule).text  # type: ignore[arg-type]


# The report


@pytest.mark.parametrize(
    "history",
    [
        load(),
        load(1),
        load(99),
        load(100),
        load() * 0,
        load() * 0 + 7,
        load(24 * 30, level=2),
        load(336).sample(frac=1.0),
    ],
    ids=["usual", "1 row", "99 rows", "100 rows", "all zero", "constant", "sparse", "unsorted"],
)
def test_sound_histories_pass_every_rule(history: pd.Series) -> None:
    report = validate(history)
    assert report.ok, [finding.text for finding in report.findings if finding.failed]
    assert tuple(finding.rule for finding in report.findings) == RULES
    assert (report.rows, report.hours, report.missing) == (len(history), len(history), 0)


def test_no_rows() -> None:
    report = validate(load(0))
    failing(report, "fields")
    assert [one.rule for one in report.findings if not one.checked] == ["gaps", "outliers"]
    assert (report.rows, report.hours, report.first) == (0, 0, None)


@pytest.mark.parametrize(("hole", "ok"), [(1, True), (23, True), (24, False), (25, False)])
def test_gaps(hole: int, ok: bool) -> None:
    known = load()
    known = known.drop(known.index[400 : 400 + hole]).drop(known.index[50:53])
    report = validate(known)
    assert report.ok is ok
    worst = report.finding("gaps").examples[0]
    assert (worst.at, worst.hours) == (load().index[400].isoformat(), hole) or hole == 1
    assert report.missing == hole + 3
    if not ok:
        failing(report, "gaps")
        assert report.finding("gaps").count == 1, "the gap of 3 h does not fail"


def test_two_long_gaps_the_longest_first() -> None:
    known = load()
    report = validate(known.drop(known.index[100:130]).drop(known.index[500:600]))
    assert [example.hours for example in report.finding("gaps").examples] == [100, 30]


def test_an_outlier_is_named_with_its_median() -> None:
    known = load()
    known.iloc[[300, 900]] = [9000, 20000]
    report = validate(known)
    failing(report, "outliers")
    first, second = report.finding("outliers").examples
    assert (first.at, first.value) == (known.index[900].isoformat(), 20000)
    assert (second.at, second.value) == (known.index[300].isoformat(), 9000)
    same_hour = known[known.index.hour == known.index[300].hour]
    assert second.expected == pytest.approx(max(same_hour.median(), known.median()), rel=0.5)


def test_a_peak_of_every_week_and_a_busy_night_are_no_outliers() -> None:
    known = load()
    known[(known.index.day_of_week == 0) & (known.index.hour == 9)] *= 40
    night = known[known.index.hour == 2].index
    known[night] = 2.0
    known[night[10]] = 60.0
    assert validate(known).ok
    known[night[11]] = 20_000
    failing(validate(known), "outliers")


def test_mostly_idle_hours_are_measured_against_the_busy_ones() -> None:
    known = load() * 0
    known.iloc[::10] = 4
    assert validate(known).ok
    assert reference(known).min() == 4
    known.iloc[7] = 40
    failing(validate(known), "outliers")
    assert reference(load(0)).empty


@pytest.mark.parametrize(
    ("change", "rule", "row"),
    [
        (-4, "values", 8),
        (float("inf"), "values", 8),
        ("seven", "types", 8),
    ],
)
def test_a_count_that_is_none(change: object, rule: str, row: int) -> None:
    known = load(500).astype(object)
    known.iloc[7] = change
    report = validate(known)
    failing(report, rule)
    (example,) = report.finding(rule).examples  # type: ignore[arg-type]
    assert (example.row, example.field, example.at) == (row, "volume", "2025-01-06T07:00:00")
    assert report.missing == 1, "the other rows are checked all the same"


def test_a_missing_timestamp_and_rows_of_another_numbering() -> None:
    known = load(100)
    nameless = known.set_axis([*known.index[:5], pd.NaT, *known.index[6:]])
    report = validate(nameless, rows=list(range(1001, 1101)), count=120)
    failing(report, "fields")
    assert report.finding("fields").examples[0].row == 1006
    assert report.rows == 120


def test_duplicates_fail_where_they_differ() -> None:
    known = load(400)
    same = validate(pd.concat([known, known.iloc[:3]]))
    assert same.ok
    assert same.finding("duplicates").count == 3
    report = validate(pd.concat([known, known.iloc[:3] + np.array([1, 5, 2])]))
    failing(report, "duplicates")
    assert [example.row for example in report.finding("duplicates").examples] == [402, 403, 401], "the worst first"


def test_the_doubled_hour_of_local_clocks_is_a_duplicate() -> None:
    zoned = load(24 * 20, start="2024-10-25").tz_localize("UTC").tz_convert("America/New_York")
    assert validate(zoned).ok
    report = validate(zoned.tz_localize(None))
    failing(report, "duplicates")
    assert report.finding("duplicates").examples[0].at == "2024-11-03T01:00:00"
    assert "zone" in report.finding("duplicates").text


@pytest.mark.parametrize("freq", ["D", "2h"])
def test_spacing(freq: str) -> None:
    report = validate(pd.Series(1.0, index=pd.date_range("2025", periods=200, freq=freq)))
    failing(report, "spacing")
    assert "coarser" in report.finding("spacing").text


@pytest.mark.parametrize("index", [range(10), [f"2025-01-0{n}" for n in range(1, 10)] + ["x"]])
def test_an_index_of_something_else(index: object) -> None:
    failing(validate(pd.Series(1.0, index=index)), "types")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("values", "rule"), [([-1.0] * 9, "values"), (["x"] * 9, "types"), ([None] * 9, "fields"), ([10**400] * 9, "types")]
)
def test_not_a_single_count(values: list[object], rule: str) -> None:
    failing(validate(pd.Series(values, index=load(9).index, dtype=object)), rule)


def test_finer_counts_are_checked_by_the_hour() -> None:
    fine = pd.Series(5.0, index=pd.date_range("2025-01-01", periods=12 * 24 * 30, freq="5min"))
    assert validate(fine).ok
    report = validate(fine.drop(fine.index[1000 : 1000 + 12 * 30]))
    failing(report, "gaps")
    assert report.rows == 12 * 24 * 30 - 360


def test_the_report_is_json_and_comes_back() -> None:
    known = load()
    known.iloc[5] = 1e6
    report = validate(known.drop(known.index[100:150]))
    assert msgspec.json.decode(msgspec.json.encode(report), type=QualityReport) == report
    assert b'"ok":false' in msgspec.json.encode(report)


# Rows of a table


def rows(*pairs: tuple[object, object]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["timestamp", "volume"]).astype("str").where(lambda frame: frame != "None")


def test_texts_become_a_history_or_a_finding_with_its_row() -> None:
    frame = rows(("2025-01-01T00:00", 5), (None, 6), ("yesterday", 7), ("2025-01-01T03:00", "x"), ("20250101T04", None))
    history, numbers, found = read_rows(frame, [1, 2, 3, 4, 5])
    assert numbers == [1, 4, 5]
    assert {one.rule: [example.row for example in one.examples] for one in found} == {"fields": [2], "types": [3]}
    report = validate(history, rows=numbers, found=found, count=5)
    assert report.failed == ["fields", "types"]
    assert [example.row for example in report.finding("types").examples] == [3, 4]


def test_stamps_with_and_without_a_zone_do_not_mix() -> None:
    frame = rows(("2025-01-01T00:00+01:00", 1), ("2025-01-01T01:00:00Z", 2), ("2025-01-01 02:00", 3), ("2025-01-01", 4))
    history, numbers, found = read_rows(frame.iloc[:3], [1, 2, 3])
    assert numbers == [1, 2]
    assert history.index.tolist() == [pd.Timestamp("2024-12-31T23:00Z"), pd.Timestamp("2025-01-01T01:00Z")]
    assert found[0].examples[0].row == 3
    history, numbers, found = read_rows(frame.iloc[1:], [2, 3, 4])
    assert (numbers, history.index.tz) == ([3, 4], None)
    assert found[0].examples[0].row == 2


# Glitches


def test_glitches_are_found_with_what_was_expected() -> None:
    known = load()
    known.iloc[1000] = known.iloc[1000] * 8 + 100
    known.iloc[[700, 701]] = 0
    result = glitches(known)
    assert [glitch.at for glitch in result.found] == [known.index[at].isoformat() for at in (700, 701, 1000)]
    assert (result.left, result.found[0].value) == ("", 0)
    for glitch in result.found:
        typical = load()[pd.Timestamp(glitch.at)]
        assert glitch.expected == pytest.approx(typical, rel=0.5)
        assert glitch.sigmas > 3
    treated, touched = without_glitches(known)
    assert touched == result.found
    assert np.flatnonzero(treated.isna()).tolist() == [700, 701, 1000]
    assert treated.dropna().equals(known[treated.notna()])
    assert not known.isna().any(), "the history itself is left alone"


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_no_glitch(seed: int) -> None:
    assert glitches(load(seed=seed)).found == []
    assert len(glitches(load(level=3, seed=seed)).found) <= 1, "a quiet hour without tickets is chance"


def spare(name: str) -> pd.Series:
    """Histories in which something happened that is no glitch."""
    known = load(52 * 168)
    index = known.index
    if name == "level shift":
        known.iloc[3000:] *= 6
    elif name == "new level at the end":
        known.iloc[-2:] *= 9
    elif name == "three hours of an event":
        known.iloc[3000:3003] *= 9
    elif name == "every week":
        known[(index.day_of_week == 1) & (index.hour == 22)] *= 9
    elif name == "every first of the month":
        known[(index.day == 1) & (index.hour == 10)] *= 9
    elif name == "every quarter of a year":
        known[np.isin(index.strftime("%m-%d"), ["01-07", "04-07", "07-07", "10-06"]) & (index.hour == 10)] *= 9
    elif name == "a weekday at noon, twice in a week":
        known.iloc[[12 + 24 * 30, 12 + 24 * 32]] *= 9
    elif name == "growth":
        known *= np.geomspace(1, 20, len(known))
    elif name == "a day without work":
        known[index.normalize() == pd.Timestamp("2025-05-15")] *= 0.1
    elif name == "spiky by nature":
        draw = np.random.default_rng(1)
        known.iloc[draw.choice(np.arange(24, len(known) - 24), 400, replace=False)] *= 12
    return known.round()


@pytest.mark.parametrize(
    "name",
    [
        "level shift",
        "new level at the end",
        "three hours of an event",
        "every week",
        "every first of the month",
        "every quarter of a year",
        "a weekday at noon, twice in a week",
        "growth",
        "a day without work",
        "spiky by nature",
    ],
)
def test_what_is_no_glitch_stays(name: str) -> None:
    known = spare(name)
    assert glitches(known).found == [], name
    assert without_glitches(known)[0] is known


def test_a_spiky_series_says_why_it_is_left_alone() -> None:
    draw = np.random.default_rng(9)
    known = load()
    places = np.arange(30, len(known) - 30, 59)
    known.iloc[places + draw.integers(-2, 3, len(places))] *= 30
    result = glitches(known)
    assert result.found == []
    assert "are the nature of this series" in result.left


def test_a_holiday_and_the_days_around_it_are_spared() -> None:
    known = load()
    at = 1000
    known.iloc[at] = known.iloc[at] * 9 + 50
    day = known.index[at].date()
    assert len(glitches(known).found) == 1
    for shift in (-1, 0, 1):
        assert glitches(known, [day + dt.timedelta(days=shift)]).found == []
    assert len(glitches(known, [day + dt.timedelta(days=2)]).found) == 1


def test_beside_a_gap_nobody_knows() -> None:
    known = load()
    known.iloc[1000] *= 20
    known.iloc[1001] = np.nan
    assert glitches(known).found == []


def test_too_short_to_tell() -> None:
    known = load(335)
    known.iloc[100] = 1e6
    result = glitches(known)
    assert result.found == []
    assert "335 known hours are too few" in result.left


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_glitches_beside_a_clock_change(zone: str | None) -> None:
    known = load(start="2025-02-03").tz_localize("UTC").tz_convert(zone) if zone else load()
    known.iloc[1200] = known.iloc[1200] * 9 + 100
    treated, touched = without_glitches(hours(known))
    assert len(touched) == 1
    assert np.flatnonzero(treated.isna()).tolist() == [1200]


# Gaps and features


def test_gaps_under_three_hours_are_interpolated() -> None:
    values = np.array([np.nan, 1, np.nan, 3, np.nan, np.nan, 9, np.nan, np.nan, np.nan, 1, np.nan])
    filled = interpolate(values)
    assert filled[[2, 4, 5]].tolist() == [2, 5, 7]
    assert np.flatnonzero(np.isnan(filled)).tolist() == [0, 7, 8, 9, 11]
    assert np.isnan(values[2]), "a new array"
    timeline = Timeline(values, np.arange(12) * 3600, np.zeros(12, dtype=bool))
    assert np.array_equal(timeline.interpolated().values, filled, equal_nan=True), "the models do the same"
    for whole in (np.array([]), np.array([np.nan, np.nan]), np.array([1.0, 2.0])):
        assert np.array_equal(interpolate(whole), whole, equal_nan=True)


def test_other_features_get_the_median_of_their_group() -> None:
    frame = pd.DataFrame(
        {"kind": ["a", "a", "a", "b", "c"], "cpu": [1.0, np.nan, 3.0, 9.0, np.nan], "other": np.nan, "volume": np.nan}
    )
    filled, counts = impute(frame, ["cpu", "other"], by=["kind"])
    assert filled["cpu"].tolist() == [1, 2, 3, 9, 3]
    assert counts == {"cpu": 2, "other": 0}
    assert filled[["other", "volume"]].isna().all(axis=None)
    assert frame["cpu"].isna().sum() == 2
    assert impute(frame, ["cpu"])[0]["cpu"].tolist() == [1, 3, 3, 9, 3]


def test_runs() -> None:
    assert runs(np.array([True, True, False, True])) == [(0, 2), (3, 1)]
    assert runs(np.zeros(0, dtype=bool)) == []
