"""The circuit breaker on a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from nhm_sched_plugin.advice.remote.breaker import FAILURES, LONGEST_PAUSE_S, Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def closed(clock: Clock, draw: float = 0.0) -> Breaker:
    breaker = Breaker(clock, lambda: draw)
    assert breaker.permit() == "probe"
    breaker.succeeded()
    return breaker


def opened(clock: Clock, draw: float = 0.0) -> Breaker:
    breaker = closed(clock, draw)
    breaker.failed("call", at_once=True)
    return breaker


def test_an_address_that_has_not_answered_yet_is_tried_out_first(clock: Clock) -> None:
    breaker = Breaker(clock)
    assert not breaker.closed
    assert breaker.permit() == "probe"
    breaker.succeeded()
    assert breaker.closed
    assert breaker.permit() == "call"


def test_several_failures_in_a_row_open_it(clock: Clock) -> None:
    breaker = closed(clock)
    for _ in range(FAILURES - 1):
        breaker.failed("call")
    breaker.succeeded()  # the row is broken
    for _ in range(FAILURES - 1):
        breaker.failed("call")
        assert breaker.closed
    breaker.failed("call")
    assert not breaker.closed
    assert breaker.permit() is None


def test_a_decision_held_up_opens_it_at_once(clock: Clock) -> None:
    assert opened(clock).permit() is None


def test_one_probe_after_the_pause_and_the_others_wait(clock: Clock) -> None:
    breaker = opened(clock)
    assert 0 < breaker.wait_s() <= LONGEST_PAUSE_S
    clock.now += breaker.wait_s()
    assert breaker.state == "half_open"
    together = threading.Barrier(8)
    permits = []

    def ask() -> None:
        together.wait()
        permits.append(breaker.permit())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(permits, key=str) == [None] * 7 + ["probe"]
    breaker.succeeded()
    assert breaker.permit() == "call"


@pytest.mark.parametrize("draw", [0.0, 0.999])
def test_the_pause_grows_with_jitter_and_has_an_end(clock: Clock, draw: float) -> None:
    breaker = opened(clock, draw)
    pauses = []
    for _ in range(10):
        pauses.append(breaker.wait_s())
        clock.now += pauses[-1]
        assert breaker.permit() == "probe"
        breaker.failed("probe")
    assert pauses[0] < pauses[1] < pauses[2]
    assert pauses[-1] == pauses[-2] == pytest.approx(LONGEST_PAUSE_S * (0.5 + 0.5 * draw))
    clock.now += breaker.wait_s()
    assert breaker.permit() == "probe"
    breaker.succeeded()
    breaker.failed("call", at_once=True)
    assert breaker.wait_s() == pytest.approx(pauses[0]), "the next time it starts small again"


def test_calls_sent_before_it_opened_do_not_lengthen_the_pause(clock: Clock) -> None:
    breaker = opened(clock)
    before = breaker.wait_s()
    for _ in range(20):
        breaker.failed("call")
    assert breaker.wait_s() == before


def test_a_late_answer_closes_it(clock: Clock) -> None:
    breaker = opened(clock)
    breaker.succeeded()
    assert breaker.closed


def test_a_probe_that_tells_nothing_leaves_the_turn_to_another(clock: Clock) -> None:
    breaker = Breaker(clock)
    assert breaker.permit() == "probe"
    assert breaker.permit() is None
    breaker.undecided("probe")
    assert breaker.permit() == "probe"


def test_a_probe_that_nobody_reports_on_does_not_block_for_ever(clock: Clock) -> None:
    breaker = Breaker(clock)
    assert breaker.permit() == "probe"
    clock.now += 3600
    assert breaker.permit() == "probe"
