"""Brings the outcomes in the outbox to the agent: in order, several under way at a time, until it has them.

An outcome leaves the outbox when the agent has confirmed it, so after a crash some are sent twice; the agent counts
each decision once. One that the agent refuses as wrong is set aside and holds up nobody; one that cannot even be
written down never gets in. One process of a host delivers; when it ends, another takes over.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.advice.remote.calls import Caller
from nhm_sched_plugin.advice.remote.outbox import Outbox, Waiting, Written, batches, written
from nhm_sched_plugin.errors import AgentUnavailableError, SpoolError
from nhm_sched_plugin.forks import renew_after_fork

if TYPE_CHECKING:
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.types import Experience

__all__ = ["Delivery"]

BATCH: Final = 256
MOST_AT_ONCE: Final = 32
_LOOK_S: Final = 1.0
"""How often an empty outbox is looked at: other processes put in, too."""
_SOON_S: Final = 0.05
_IN_MEMORY: Final = 10_000
"""Outcomes kept while the disk refuses; beyond them the oldest go."""
_WRONG: Final = frozenset({"INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "too_long"})
"""Reasons that say that this outcome will never be taken."""


class Delivery:
    """`put` from any thread, `deliver` from one."""

    def __init__(self, outbox: Outbox, caller: Caller, metrics: Metrics, faults: Faults) -> None:
        self.outbox, self._caller, self._metrics, self._faults = outbox, caller, metrics, faults
        self._at_once = 1
        self._held: deque[Written] = deque(maxlen=_IN_MEMORY)
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """What the disk would not take in the parent is the parent's."""
        self._lock = threading.Lock()
        self._held.clear()
        self._settled = threading.Condition()
        self._came, self._seen_to = 0, -1
        """Outcomes put in here, and how many of them had come when a look last left nothing to do."""

    def put(self, experience: Experience) -> None:
        """Keep it on disk. Raises `SpoolError` while the disk refuses; it is kept in memory then.

        One that cannot be written down is refused: counted, and logged once for each cause.
        """
        try:
            outcome = written(experience, time.time())
        except ValueError as error:
            self._metrics.child("outcomes_sent", "unwritable").inc()
            self._faults.report("outbox", f"an outcome is not sent, since it cannot be written down: {error}")
            return
        with self._lock:
            if len(self._held) == _IN_MEMORY:
                self._metrics.child("outcomes_sent", "dropped").inc()
            self._held.append(outcome)
            self._came += 1
            self._write()

    def save(self) -> None:
        """Write what is only in memory. Raises `SpoolError`."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._held:
            dropped = self.outbox.put(list(self._held))
            self._held.clear()
            if dropped:
                self._metrics.child("outcomes_sent", "dropped").inc(dropped)
                self._faults.report(
                    "outbox",
                    f"{dropped} outcomes were dropped: optimizer.outbox_max_mb is reached in {self.outbox.path}",
                )

    def deliver(self) -> float:
        """Send what waits; returns the seconds until the next look. Raises `SpoolError`."""
        with self._lock:
            came = self._came
            self._write()
        if not self.outbox.take_turn():
            self._settle(came)  # what is on disk is another process' to deliver
            return _LOOK_S
        self._metrics.child("outbox_waiting").set(self.outbox.waiting())
        for batch in batches(self.outbox, BATCH):
            try:
                problem = self._send(batch)
            except AgentUnavailableError as error:
                problem = error
            if problem is not None and problem.reason == "CANCELLED":
                return 0.0  # by a fork of this process; nobody is ill
            if problem is not None:
                self._at_once = max(1, self._at_once // 2)
                self._faults.report("outbox", str(problem))
                return min(max(self._caller.endpoints.wait_s(), _SOON_S), _LOOK_S)
            self._at_once = min(2 * self._at_once, MOST_AT_ONCE)
        self._settle(came)
        return _LOOK_S

    def _settle(self, came: int) -> None:
        with self._settled:
            self._seen_to = came
            self._settled.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing that was put in is left to do for this process; False when that took longer."""
        with self._settled:
            return self._settled.wait_for(lambda: self._seen_to >= self._came, timeout_s)

    def _send(self, batch: Sequence[Waiting]) -> AgentUnavailableError | None:
        """One batch; the error that keeps some of it here, if any. Raises `AgentUnavailableError`."""
        requests, wrong = _requests(batch)
        done: list[int] = []
        problem: AgentUnavailableError | None = None
        try:
            if requests:
                answers = self._caller.many("RecordActionOutcome", [one for _, one in requests], self._at_once)
                for (seq, _), answer in zip(requests, answers, strict=True):
                    if not isinstance(answer, AgentUnavailableError):
                        done.append(seq)
                    elif answer.reason in _WRONG:
                        wrong[seq] = str(answer)
                    else:
                        problem = problem or answer
        finally:
            self._forget(done, wrong)
        return problem

    def _forget(self, done: list[int], wrong: dict[int, str]) -> None:
        self.outbox.done(done)
        self._metrics.child("outcomes_sent", "delivered").inc(len(done))
        if wrong:
            self.outbox.set_aside(wrong)
            self._metrics.child("outcomes_sent", "refused").inc(len(wrong))
            self._faults.report("outbox", f"set aside, not sent: {next(iter(wrong.values()))}")
        self._metrics.child("outbox_waiting").set(self.outbox.waiting())

    def close(self) -> None:
        """Whatever the agent does not have yet waits on disk; what that still refuses is lost, counted and told."""
        try:
            self.save()
        except SpoolError as error:
            with self._lock:
                lost = len(self._held)
                self._held.clear()
            self._metrics.child("outcomes_sent", "dropped").inc(lost)
            self._faults.report("outbox", f"{lost} outcomes are lost, since the host ends: {error}")
        self.outbox.close()


def _requests(batch: Sequence[Waiting]) -> tuple[list[tuple[int, Any]], dict[int, str]]:
    """The messages, and those outcomes that no message can be made of, with the reason."""
    from nhm_sched_plugin.wire.check import check_outcome_request
    from nhm_sched_plugin.wire.convert import outcome_request

    requests: list[tuple[int, Any]] = []
    wrong: dict[int, str] = {}
    for seq, experience in batch:
        try:
            request = outcome_request(experience)
            check_outcome_request(request)
        except (ValueError, TypeError) as error:  # `InvalidFieldError` is one
            wrong[seq] = f"outcome of {experience.decision_id!r}: {error}"
        else:
            requests.append((seq, request))
    return requests, wrong
