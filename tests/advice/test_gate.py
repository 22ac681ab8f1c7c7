"""Forks and gRPC: nobody is inside while the process forks, and a child that was forked in spite of that keeps out."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nhm_sched_plugin import Reason, SchedulerHost
from nhm_sched_plugin.advice.remote import gate
from nhm_sched_plugin.errors import AgentUnavailableError
from tests.advice.conftest import remote
from tests.advice.scripted import ScriptedAgent

Ask = Callable[..., SchedulerHost]


class Call:
    """A call that ends when it is cancelled."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def cancel(self) -> None:
        self.over.set()


def in_child(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


@contextlib.contextmanager
def somebody_stuck() -> Iterator[None]:
    """A thread inside that cannot be called out."""
    entered, leave = threading.Event(), threading.Event()

    def stubborn() -> None:
        with gate.inside():
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=stubborn)
    thread.start()
    assert entered.wait(10)
    try:
        yield
    finally:
        leave.set()
        thread.join()


def usable() -> bool:
    try:
        with gate.inside():
            return True
    except AgentUnavailableError:
        return False


def test_a_fork_calls_the_threads_out_and_lets_them_in_again() -> None:
    call, entered, ended = Call(), threading.Event(), threading.Event()

    def work() -> None:
        with gate.inside(), gate.cancellable(call):
            entered.set()
            call.over.wait(30)
        with gate.inside():
            ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(10)
    assert in_child(usable)
    assert ended.wait(10), "after the fork the parent's threads go on"
    thread.join()


def test_a_call_that_begins_during_a_fork_is_cancelled_at_once() -> None:
    gate._before_fork()
    try:
        call = Call()
        with gate.cancellable(call):
            assert call.over.is_set()
    finally:
        gate._after_fork_in_parent()
    assert usable()


def test_a_child_forked_in_the_middle_of_a_call_leaves_grpc_alone() -> None:
    began = time.monotonic()
    with somebody_stuck():
        assert in_child(lambda: not usable() and in_child(lambda: not usable())), "nor do its own children use it"
        assert time.monotonic() - began < 20
    assert usable()
    assert in_child(usable)


def test_such_a_child_decides_from_the_mirror(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address)
    host.decide(None, kit.BUSY)
    kit.wait_for(lambda: remote(host).mirror.fresh, 20)

    def decides() -> bool:
        decision = host.decide(None, kit.BUSY)
        return decision.forecast is not None and decision.reason is not Reason.OPTIMIZER_UNAVAILABLE

    with somebody_stuck():
        assert in_child(decides)


def test_the_gate_waits_for_nobody_who_is_not_there() -> None:
    began = time.monotonic()
    gate._before_fork()
    gate._after_fork_in_parent()
    assert time.monotonic() - began < 0.4
    with pytest.raises(RuntimeError), gate.inside():
        raise RuntimeError("whatever happens inside")
    gate._before_fork()
    gate._after_fork_in_parent()
    assert gate._gate.threads == 0
