"""The business calendar: hours, midnight, holidays, daylight saving, wrong settings."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

OFFICE = "open = 09:00:00\nclose = 18:00:00\n"


def ask(dropin, moment):
    dropin.module.clock = dt.datetime.fromisoformat(moment).timestamp
    (features,) = dropin.hook.nhm_sched_collect_state(ticket=None)
    return features


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-11-23T08:30:00Z", {"is_business_hour": 0, "is_holiday": 0, "hours_to_open": 0.5}),  # a Monday
        ("2026-11-23T09:00:00Z", {"is_business_hour": 1, "is_holiday": 0, "hours_to_close": 9}),
        ("2026-11-23T17:59:59Z", {"is_business_hour": 1, "is_holiday": 0, "hours_to_close": pytest.approx(1 / 60)}),
        ("2026-11-23T18:00:00Z", {"is_business_hour": 0, "is_holiday": 0, "hours_to_open": 15}),
        ("2026-11-27T19:00:00Z", {"is_business_hour": 0, "is_holiday": 0, "hours_to_open": 62}),  # Friday to Monday
    ],
)
def test_office_hours(load, moment, expected):
    assert ask(load("business_calendar", OFFICE), moment) == expected


def test_holidays_are_shut_and_said(load):
    text = OFFICE + 'holidays = [2026-11-24]\nyearly_holidays = ["12-25", "02-29"]'
    dropin = load("business_calendar", text)
    assert ask(dropin, "2026-11-24T10:00:00Z") == {"is_business_hour": 0, "is_holiday": 1, "hours_to_open": 23}
    assert ask(dropin, "2026-11-23T19:00:00Z") == {"is_business_hour": 0, "is_holiday": 0, "hours_to_open": 38}
    for year in (2026, 2031):
        assert ask(dropin, f"{year}-12-25T10:00:00Z")["is_holiday"] == 1
    assert ask(dropin, "2028-02-29T10:00:00Z")["is_holiday"] == 1


def test_a_night_shift_belongs_to_the_day_it_begins(load):
    text = 'days = ["fri"]\nopen = 22:00:00\nclose = 06:00:00\nholidays = [2026-12-04]'
    dropin = load("business_calendar", text)
    assert ask(dropin, "2026-11-27T22:00:00Z")["hours_to_close"] == 8
    assert ask(dropin, "2026-11-28T05:00:00Z")["hours_to_close"] == 1
    assert ask(dropin, "2026-11-27T05:00:00Z")["is_business_hour"] == 0
    assert ask(dropin, "2026-12-05T05:00:00Z")["is_business_hour"] == 0  # it would have begun on the holiday


def test_local_time_and_the_night_the_clocks_change(load):
    dropin = load("business_calendar", 'timezone = "Europe/Paris"\n' + OFFICE)
    assert ask(dropin, "2026-01-15T08:00:00Z")["is_business_hour"] == 1
    assert ask(dropin, "2026-07-15T07:00:00Z")["is_business_hour"] == 1
    assert ask(dropin, "2026-01-15T07:30:00Z")["hours_to_open"] == 0.5
    # From Friday 18:00 to Monday 09:00 it is 63 hours, but 62 when the clocks go forward in between (29 March 2026).
    assert ask(dropin, "2026-03-20T17:00:00Z")["hours_to_open"] == 63
    assert ask(dropin, "2026-03-27T17:00:00Z")["hours_to_open"] == 62


def test_no_opening_in_sight_is_not_a_number(load):
    dropin = load("business_calendar", OFFICE + "days = []")
    assert ask(dropin, "2026-11-23T10:00:00Z") == {"is_business_hour": 0, "is_holiday": 0}


def test_as_shipped_it_works(load):
    dropin = load("business_calendar", None)
    assert ask(dropin, "2026-11-23T10:00:00Z")["is_business_hour"] == 1
    assert ask(dropin, "2027-01-01T10:00:00Z")["is_holiday"] == 1


@pytest.fixture
def paris(load):
    return load("business_calendar", 'timezone = "Europe/Paris"\n' + OFFICE + 'yearly_holidays = ["05-01"]')


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(now=st.integers(1_600_000_000, 2_000_000_000))
def test_the_hours_announced_are_the_hours_that_come(paris, now):
    calendar = paris.module.calendar
    features = calendar.features(now)
    assert ("hours_to_close" in features) is (features["is_business_hour"] == 1)
    key = "hours_to_close" if features["is_business_hour"] else "hours_to_open"
    turn = now // 60 * 60 + features[key] * 3600
    assert calendar.features(turn - 30)["is_business_hour"] == features["is_business_hour"]
    assert calendar.features(turn)["is_business_hour"] != features["is_business_hour"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("open = 09:00:00", "close = None: expected a time of day"),
        ('open = "9"\nclose = 18:00:00', "open = '9'"),
        (OFFICE + 'days = ["monday"]', "days = 'monday': expected some of mon"),
        (OFFICE + 'days = "mon"', "days = 'mon': expected a list"),
        (OFFICE + 'holidays = ["2026-12-25"]', "holidays = '2026-12-25': expected dates"),
        (OFFICE + "holidays = [2026-12-25T00:00:00Z]", "expected dates"),
        (OFFICE + 'yearly_holidays = ["25-12"]', "yearly_holidays = '25-12'"),
        (OFFICE + "yearly_holidays = [1]", "yearly_holidays = 1"),
        (OFFICE + 'timezone = "Brazil"', "timezone = 'Brazil'"),
        (OFFICE + "hours = 3", "unknown key 'hours'; known here: close, days"),
    ],
)
def test_wrong_settings_are_told(load, text, told):
    with pytest.raises(ValueError, match=r"business_calendar\.toml") as caught:
        load("business_calendar", text)
    assert told in str(caught.value)
