"""The maintenance window: weekly and single windows, midnight, time zones, wrong settings."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.types import Action, Recommendation, SchedulingState, Ticket

WEEKEND_NIGHT = """
[[window]]
name = "upgrade"
days = ["sat"]
from = 23:00:00
to = 02:00:00
"""


def ask(dropin, moment, action=Action.INCREASE_WORKER_POOL):
    dropin.module.clock = dt.datetime.fromisoformat(moment).timestamp
    return dropin.hook.nhm_sched_guard(
        ticket=Ticket(ticket_id="t"), state=SchedulingState(), recommendation=Recommendation(action=action)
    )


@pytest.mark.parametrize(
    ("moment", "closed"),
    [
        ("2026-11-28T22:59:59Z", False),  # a Saturday
        ("2026-11-28T23:00:00Z", True),
        ("2026-11-29T00:30:00Z", True),  # past midnight it is still Saturday's window
        ("2026-11-29T01:59:59Z", True),
        ("2026-11-29T02:00:00Z", False),
        ("2026-11-29T23:30:00Z", False),  # Sunday's night is not in the list
        ("2026-11-28T01:00:00Z", False),  # nor is Friday's
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_opens_on(load, moment, closed):
    vetoes = ask(load("maintenance_window", WEEKEND_NIGHT), moment)
    assert bool(vetoes) is closed
    if closed:
        assert vetoes[0].guard == "maintenance_window"
        assert "upgrade" in vetoes[0].reason


@pytest.mark.parametrize("action", Action)
def test_only_changes_of_the_pool_are_vetoed(load, action):
    vetoed = bool(ask(load("maintenance_window", WEEKEND_NIGHT), "2026-11-28T23:30:00Z", action))
    assert vetoed is (action in {"INCREASE_WORKER_POOL", "DECREASE_WORKER_POOL", "PREEMPTIVE_SCALING"})


def test_as_shipped_nothing_is_vetoed(load):
    dropin = load("maintenance_window", None)
    assert dropin.module.windows == []
    assert ask(dropin, "2026-11-28T23:30:00Z") == []


def test_a_single_window_ends_before_its_end(load):
    dropin = load("maintenance_window", "[[window]]\nstart = 2026-11-27T00:00:00Z\nend = 2026-11-30T00:00:00-03:00")
    assert not ask(dropin, "2026-11-26T23:59:59Z")
    assert ask(dropin, "2026-11-27T00:00:00Z")
    assert ask(dropin, "2026-11-30T02:59:59Z")
    assert not ask(dropin, "2026-11-30T03:00:00Z")


def test_times_are_those_of_the_time_zone(load):
    text = 'timezone = "America/Sao_Paulo"\n[[window]]\nfrom = 01:00:00\nto = 02:00:00\n'
    text += "[[window]]\nstart = 2026-12-24T12:00:00\nend = 2026-12-24T13:00:00"
    dropin = load("maintenance_window", text)
    assert not ask(dropin, "2026-11-28T01:30:00Z")
    assert ask(dropin, "2026-11-28T04:30:00Z")
    assert ask(dropin, "2026-12-24T15:00:00Z")
    assert not ask(dropin, "2026-12-24T12:30:00Z")


def test_daylight_saving_moves_a_local_window_and_not_one_in_utc(load):
    text = "[[window]]\nfrom = 20:00:00\nto = 21:00:00\n"
    utc, local = load("maintenance_window", text), load("maintenance_window", 'timezone = "Europe/Paris"\n' + text)
    for moment, in_utc, in_paris in [
        ("2026-01-15T20:30:00Z", True, False),
        ("2026-01-15T19:30:00Z", False, True),
        ("2026-07-15T20:30:00Z", True, False),
        ("2026-07-15T18:30:00Z", False, True),
    ]:
        assert bool(ask(utc, moment)) is in_utc
        assert bool(ask(local, moment)) is in_paris


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opens=st.times(), closes=st.times(), now=st.datetimes(dt.datetime(2020, 1, 1), dt.datetime(2040, 1, 1)))
def test_a_daily_window_and_its_complement_never_agree(load_once, opens, closes, now):
    weekly = load_once.module.Weekly
    if opens == closes:
        assert weekly("all day", frozenset(range(7)), opens, closes).is_open(now)
        return
    inside = weekly("in", frozenset(range(7)), opens, closes).is_open(now)
    assert inside is not weekly("out", frozenset(range(7)), closes, opens).is_open(now)


@pytest.fixture
def load_once(load):
    return load("maintenance_window", "")


def test_the_clock_is_the_hosts(load):
    dropin = load("maintenance_window", WEEKEND_NIGHT)

    class Host:
        clock = staticmethod(dt.datetime(2026, 11, 28, 23, 30, tzinfo=dt.UTC).timestamp)

    dropin.module.nhm_sched_startup(Host())
    assert dropin.hook.nhm_sched_guard(
        ticket=None, state=SchedulingState(), recommendation=Recommendation(action=Action.DECREASE_WORKER_POOL)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('timezone = "Mars/Olympus"', "timezone = 'Mars/Olympus': not a time zone"),
        ("timezone = 3", "timezone = 3"),
        ("window = 1", "window = 1: write each window under"),
        ('[[window]]\nfrom = "23:00"\nto = 02:00:00', "window 1: from = '23:00': expected a time of day"),
        ("[[window]]\nfrom = 23:00:00", "window 1: to = None"),
        ('[[window]]\nfrom = 01:00:00\nto = 02:00:00\ndays = ["funday"]', "days = ['funday']: expected a list of mon"),
        ("[[window]]\nfrom = 01:00:00\nto = 02:00:00\ndays = []", "days = []"),
        ("[[window]]\nfrom = 01:00:00\nto = 02:00:00\nuntil = 3", "window 1: unknown key 'until'"),
        ("[[window]]\nstart = 2026-11-27T00:00:00Z", "window 1: end = None"),
        ("[[window]]\nstart = 2026-11-27T00:00:00Z\nend = 2026-11-26T00:00:00Z", "is not after start"),
        ("[[window]]\nstart = 2026-11-27\nend = 2026-11-28", "expected a date and time"),
    ],
)
def test_wrong_settings_are_told(load, text, told):
    with pytest.raises(ValueError, match=r"maintenance_window\.toml") as caught:
        load("maintenance_window", text)
    assert told in str(caught.value)
