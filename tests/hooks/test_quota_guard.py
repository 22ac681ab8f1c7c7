"""The quota guard: the hour's growth, the day's worker-hours, midnight, threads, wrong settings."""

from __future__ import annotations

import datetime as dt
import threading

import pytest

from nhm_sched_plugin.types import Action, Decision, Recommendation, SchedulingState

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC).timestamp()


def observe(dropin, at, workers):
    state = None if workers is None else SchedulingState(active_workers=workers)
    dropin.hook.nhm_sched_after_decision(record=Decision(decision_id="d", decided_at=at, state=state))


def ask(dropin, at, workers, target=None, action=Action.INCREASE_WORKER_POOL):
    dropin.module.clock = lambda: at
    parameters = {} if target is None else {"target_workers": target}
    return dropin.hook.nhm_sched_guard(
        ticket=None,
        state=SchedulingState(active_workers=workers),
        recommendation=Recommendation(action=action, parameters=parameters),
    )


def test_growth_within_the_quota_passes_and_beyond_it_does_not(load):
    dropin = load("quota_guard", "max_workers_added_per_hour = 10")
    observe(dropin, NOON, 10)
    assert not ask(dropin, NOON, 10, 20)
    (veto,) = ask(dropin, NOON, 10, 21)
    assert (veto.guard, "0 workers joined" in veto.reason, "11 more" in veto.reason) == ("quota_guard", True, True)


def test_what_joined_counts_for_an_hour(load):
    dropin = load("quota_guard", "max_workers_added_per_hour = 10")
    observe(dropin, NOON, 10)
    observe(dropin, NOON + 60, 16)
    assert ask(dropin, NOON + 120, 16, 21)
    assert not ask(dropin, NOON + 120, 16, 20)
    assert ask(dropin, NOON + 60 + 3599, 16, 21)
    assert not ask(dropin, NOON + 60 + 3600, 16, 21)


def test_growing_and_shrinking_in_turn_uses_the_quota_up(load):
    dropin = load("quota_guard", "max_workers_added_per_hour = 10")
    for step, workers in enumerate([10, 14, 10, 14, 10]):
        observe(dropin, NOON + step, workers)
    assert not ask(dropin, NOON + 10, 10, 12)
    assert ask(dropin, NOON + 10, 10, 13)


def test_a_target_asked_for_again_while_workers_start_is_not_counted_twice(load):
    dropin = load("quota_guard", "max_workers_added_per_hour = 10")
    observe(dropin, NOON, 10)
    for second in range(5):
        assert not ask(dropin, NOON + second, 10, 20)


@pytest.mark.parametrize("action", [Action.DECREASE_WORKER_POOL, Action.NO_ACTION, Action.ADJUST_PRIORITY_WEIGHTS])
def test_only_growth_is_vetoed(load, action):
    dropin = load("quota_guard", "max_workers_added_per_hour = 0\nworker_hours_per_day = 0")
    assert not ask(dropin, NOON, 10, 11, action)
    assert ask(dropin, NOON, 10, 11, Action.PREEMPTIVE_SCALING)
    assert ask(dropin, NOON, 10, None, Action.INCREASE_WORKER_POOL)


def test_without_metrics_it_has_nothing_to_say(load):
    dropin = load("quota_guard", "max_workers_added_per_hour = 0")
    observe(dropin, NOON, None)
    observe(dropin, NOON, float("nan"))
    assert ask(dropin, NOON, None, 11) == []
    assert dropin.module.ledger.added(NOON) == 0


def test_the_days_budget_counts_time_times_workers(load):
    dropin = load("quota_guard", "worker_hours_per_day = 100")
    observe(dropin, NOON, 10)
    observe(dropin, NOON + 6 * 3600, 20)
    assert dropin.module.ledger.worker_hours(NOON + 7 * 3600) == pytest.approx(6 * 10 + 20)
    assert not ask(dropin, NOON + 7 * 3600, 20, 20)
    (veto,) = ask(dropin, NOON + 7 * 3600, 20, 21)
    assert "80.0 worker-hours used today" in veto.reason


@pytest.mark.parametrize(("zone", "midnight_utc"), [("UTC", 24), ("America/Sao_Paulo", 27)])
def test_the_day_ends_at_midnight_of_the_time_zone(load, zone, midnight_utc):
    dropin = load("quota_guard", f'worker_hours_per_day = 100\ntimezone = "{zone}"')
    midnight = NOON + (midnight_utc - 12) * 3600
    observe(dropin, NOON, 6)
    assert ask(dropin, midnight - 1, 6, 60)
    assert dropin.module.ledger.worker_hours(midnight + 3600) == pytest.approx(6)
    # The same when the pool is seen again only after midnight: what came before belongs to yesterday.
    observe(dropin, midnight + 1800, 6)
    assert dropin.module.ledger.worker_hours(midnight + 3600) == pytest.approx(6)
    assert not ask(dropin, midnight + 3600, 6, 60)


def test_records_that_overtake_each_other_do_no_harm(load):
    dropin = load("quota_guard", "worker_hours_per_day = 100")
    observe(dropin, NOON + 10, 10)
    observe(dropin, NOON, 500)
    observe(dropin, NOON + 3610, 10)
    assert 0 <= dropin.module.ledger.worker_hours(NOON + 3610) <= 510


def test_threads_may_share_it(load):
    dropin = load("quota_guard", "max_workers_added_per_hour = 1000000")
    ledger = dropin.module.ledger

    def work():
        for second in range(500):
            ledger.observe(NOON, second % 2)
            ledger.added(NOON + 1)
            ledger.worker_hours(NOON + 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 250 <= ledger.added(NOON + 1) <= 1000


def test_as_shipped_nothing_is_vetoed(load):
    assert ask(load("quota_guard", None), NOON, 1, 100_000) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_workers_added_per_hour = -1", "max_workers_added_per_hour = -1: expected a number"),
        ("max_workers_added_per_hour = true", "= True"),
        ('worker_hours_per_day = "480"', "worker_hours_per_day = '480'"),
        ("worker_hours_per_day = nan", "= nan"),
        ('timezone = "Nowhere"', "timezone = 'Nowhere'"),
        ("max_workers_per_hour = 3", "unknown key 'max_workers_per_hour'; known here: max_workers_added_per_hour"),
    ],
)
def test_wrong_settings_are_told(load, text, told):
    with pytest.raises(ValueError, match=r"quota_guard\.toml") as caught:
        load("quota_guard", text)
    assert told in str(caught.value)
