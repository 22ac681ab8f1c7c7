"""Learning from outcomes in every process of an agent alike: each is written down first, then learned in its turn.

What the processes agree on is the ledger's order, and the Q-table file that everything after it is applied to. So a
process's table is always the same function of the two, to the last bit, whoever recorded what. The file says up to
where it contains the ledger (`qtable.Mark`), and the ledger knows how the file looks that its processes wrote last
(`Saved`). Another file there was written by somebody else - `q-table reset`, `learn`, a promotion, a cache, or one of
us who was killed before it could say so. One process takes it over, the others follow it:

* It carries a mark of this ledger, and everything recorded after that is still there: what it lacks is applied to it.
  So a table that `learn` made meanwhile loses nothing, and a reset forgets exactly what came before it.
* Otherwise it counts from now on: nothing that was recorded earlier is applied to it.
* But to the first table that a ledger meets, everything is.

A table that cannot be read is set aside; the one in memory takes its place, else a new one with all that can still be
learned from.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nhm_sched_plugin.advice.protocols import Policy
from nhm_sched_plugin.agent.ledger import Ledger, Saved
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, set_aside, stamp
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import Mark, QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Experience, Health

__all__ = ["Learner", "Recorded"]

_log = logging.getLogger(__name__)
_NOWHERE: Final = -1
"""Epoch of a process that has no table yet,"""
_FIRST: Final = 0
"""and of one whose table was never a file."""


class Recorded(NamedTuple):
    """What became of an outcome."""

    accepted: bool
    """False: it was recorded before, and changed nothing now."""
    updates: int
    """How many updates the table has seen."""
    q_value: float
    """Of its state and action, with it; of one that was not accepted, as it is now."""


class Learner:
    """Records outcomes and lets the policy learn from them. Thread-safe; a forked child begins with the file anew.

    The policy is the built-in one (`QPolicy`, whose table and file this takes charge of), or somebody else's, which
    gets `learn` once for each outcome that this process was the first to record, and `save` when that is due.
    Making one raises nothing: what cannot be opened is reported, and tried again by whatever needs it.
    """

    def __init__(
        self, settings: Settings, policy: Policy, faults: Faults, clock: Callable[[], float] = time.time
    ) -> None:
        self.ledger = Ledger(settings.ledger_path, settings.agent.ledger_keep_days, clock)
        self._interval, self._faults = settings.ml.scheduling.update_interval, faults
        self._keeper: _Tables | _Stranger = (
            _Tables(self.ledger, policy) if isinstance(policy, QPolicy) else _Stranger(self.ledger, policy, faults)
        )
        self._problem = ""
        self.after_fork()
        renew_after_fork(self)
        self.follow()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._keeper.begin()

    def record(self, experiences: Sequence[Experience]) -> list[Recorded]:
        """Write the outcomes down, then learn from those that are new; blocks until they are on the disk.

        Raises `LedgerError`: nothing was recorded, and whoever sent them should send them again.
        """
        with self._lock:
            if not self._keeper.ready:
                self._attempt(self._keeper.settle)
            settled = [self._keeper.settled(experience) for experience in experiences]
            entries = [Told(each, *told) for each, told in zip(settled, self.ledger.append(settled), strict=True)]
            return self._keeper.learn(entries)

    def follow(self) -> None:
        """Apply what other processes recorded, and save the table when that is due. Raises nothing."""
        self._attempt(self._follow, self._interval)

    def close(self) -> None:
        """Save what is not in the file yet, and close the ledger. Raises nothing."""
        self._attempt(self._follow, 1)
        self.ledger.close()

    def health(self) -> Health:
        """Not ok while the ledger or the table cannot be read or written."""
        detail = f"{self._keeper.waiting} outcomes in {self.ledger.path} and not in the saved table yet"
        return Health(
            component="learner", ok=not self._problem, detail=f"{self._problem}; {detail}" if self._problem else detail
        )

    def _follow(self, interval: int) -> None:
        with self._lock:
            self._keeper.settle()
            self._keeper.catch_up()
            save = self._keeper.saving() if self._keeper.due(interval) else None
        if save is not None:
            save()  # without the lock: recording goes on meanwhile

    def _attempt(self, task: Callable[..., None], *arguments: int) -> None:
        try:
            task(*arguments)
        except Exception as error:  # noqa: BLE001 - somebody else's policy too; recording must go on
            self._problem = str(error)
            self._faults.report("learner", error)
        else:
            self._problem = ""


class Told(NamedTuple):
    """An outcome with what the ledger said of it."""

    experience: Experience
    seq: int
    fresh: bool


class _Tables:
    """The built-in policy's table: a file that was agreed on, and the ledger after it.

    The caller holds the learner's lock. Locks are taken in this order: the learner's, the file's.
    """

    def __init__(self, ledger: Ledger, policy: QPolicy) -> None:
        self._ledger, self._policy = ledger, policy
        self._path, self._steps, self.settled = policy.path, policy.steps, policy.steps.settled
        policy.hand_over()
        self.begin()

    def begin(self) -> None:
        """Without an agreed table: the next `settle` finds one, until then the policy's own learns."""
        self._epoch, self._seq, self._saved, self._gone = _NOWHERE, 0, 0, False
        self._inode = self._ledger.inode

    @property
    def ready(self) -> bool:
        return self._epoch != _NOWHERE

    @property
    def waiting(self) -> int:
        """Outcomes that the saved table does not contain."""
        return max(0, self._seq - self._saved)

    def due(self, interval: int) -> bool:
        return self._gone or self.waiting >= interval

    def learn(self, entries: Sequence[Told]) -> list[Recorded]:
        """In the ledger's order, what others recorded before as well."""
        fresh = [(entry.seq, entry.experience) for entry in entries if entry.fresh]
        done: dict[int, Recorded] = {}
        if not self.ready or (fresh and fresh[0][0] == self._seq + 1):
            self._apply(fresh, done)
        elif fresh:
            self.catch_up(done)
        return [self._told(entry, done) for entry in entries]

    def _told(self, entry: Told, done: dict[int, Recorded]) -> Recorded:
        if entry.fresh and entry.seq in done:
            return done[entry.seq]
        table = self._policy.table
        return Recorded(entry.fresh, table.updates, self._steps.q_value(table, entry.experience))

    def catch_up(self, done: dict[int, Recorded] | None = None) -> None:
        """Apply what is in the ledger and not in the table."""
        settled = _NOWHERE
        while rows := self._ledger.after(self._seq):
            if self._seq != settled and rows[0][0] > self._seq + 1 and self._ledger.dropped() > self._seq:
                # Stopped for so long that what is missing here is only in the table that others saved. (Or lost, with
                # a damaged ledger: then it is not in that table either, and we go on without it.)
                self._epoch = _NOWHERE
                self.settle()
                settled = self._seq
            else:
                self._apply(rows, {} if done is None else done)

    def _apply(self, rows: Sequence[tuple[int, Experience]], done: dict[int, Recorded]) -> None:
        table = self._policy.table
        for seq, experience in rows:
            if self.ready:
                self._seq = seq
            q_value = self._step(table, experience)
            if q_value is not None:
                done[seq] = Recorded(True, table.updates, q_value)

    def _step(self, table: QTable, experience: Experience) -> float | None:
        """The new Q-value; None for an outcome that teaches nothing, in no process."""
        if not math.isfinite(experience.reward):
            return None
        try:
            return self._steps.apply(table, experience)
        except Exception as error:  # noqa: BLE001 - what comes after it must be learned all the same
            _log.error("outcome of %s cannot be learned from: %s", experience.decision_id, error)
            return None

    def settle(self) -> None:
        """See to it that the table in memory is the agreed one. Raises `ModelError`, `LedgerError`, `OSError`."""
        saved, found = self._ledger.saved(), stamp(self._path)
        if self._ledger.inode != self._inode:
            # Damaged and replaced: what could not be saved of it is in the memory of one process and not of another.
            self.begin()
        if saved is None and found is None:
            if not self.ready:
                self._use(QTable(), 0, _FIRST)
        elif saved is None or found != saved.stamp:
            self._take_over()
        elif self._epoch == saved.epoch:
            self._saved, self._gone = saved.seq, False
        elif not self._load(saved):
            self._take_over()

    def _use(self, table: QTable, seq: int, epoch: int) -> None:
        self._policy.take(table)
        self._seq = self._saved = seq
        self._epoch, self._gone = epoch, False

    def _load(self, saved: Saved) -> bool:
        """Take the agreed file; False if it is not what it should be."""
        try:
            table = QTable.load(self._path)
        except (FileNotFoundError, ModelError):
            return False
        if table.mark is None or table.mark.ledger != self._ledger.id:
            return False
        self._use(table, table.mark.seq, saved.epoch)  # its own number: it may be a newer file than `saved` tells of
        return True

    def _take_over(self) -> None:
        """Agree on the table that somebody else wrote (see the top), unless another process was faster."""
        with file_lock(self._path):
            saved, found = self._ledger.saved(), stamp(self._path)
            if saved is not None and found == saved.stamp and self._load(saved):
                return
            ours = self.ready and self._epoch == (_FIRST if saved is None else saved.epoch)
            try:
                table = QTable.load(self._path)
                base = self._base(table.mark, saved)
            except FileNotFoundError:
                if ours or saved is None:
                    self._gone = True
                    return
                table, base = QTable(), self._ledger.last()  # somebody moved it away, to start anew
            except ModelError as error:
                _log.error("%s. It is kept as %s.", error, set_aside(self._path))
                if ours:
                    self._gone = True
                    return
                table, base = QTable(), 0
            seq = self._catch_up(table, base)
            epoch = (_FIRST if saved is None else saved.epoch) + 1
            self._write(table, seq, epoch)
        self._use(table, seq, epoch)

    def _base(self, mark: Mark | None, saved: Saved | None) -> int:
        """The outcome after which the ledger is applied to a table that somebody else wrote."""
        here = self._ledger.last()
        if mark is not None and mark.ledger == self._ledger.id:
            missing = self._ledger.dropped() - mark.seq
            if missing <= 0:
                return mark.seq
            _log.warning(
                "%s was made from a table of %d outcomes ago, and %d of these can no longer be learned from: it counts"
                " from now on.", self._path, here - mark.seq, missing,
            )  # fmt: skip
            return here
        return 0 if saved is None else here

    def _catch_up(self, table: QTable, seq: int) -> int:
        while rows := self._ledger.after(seq):
            for _, experience in rows:
                self._step(table, experience)
            seq = rows[-1][0]
        return seq

    def saving(self) -> Callable[[], None]:
        """What saves the table as it is now, and needs no lock."""
        return functools.partial(self._save, self._policy.table.copy(), self._seq, self._epoch)

    def _save(self, table: QTable, seq: int, epoch: int) -> None:
        """Unless another process has saved more, or somebody else another table."""
        with file_lock(self._path):
            saved, found = self._ledger.saved(), stamp(self._path)
            if epoch != (_FIRST if saved is None else saved.epoch):
                return
            if found is not None and (saved is None or found != saved.stamp or saved.seq >= seq):
                return
            self._write(table, seq, epoch)
        self._saved, self._gone = seq, False
        self._policy.version = table.version

    def _write(self, table: QTable, seq: int, epoch: int) -> None:
        table.mark = Mark(self._ledger.id, seq)
        try:
            table.save(self._path)
        except OSError as error:
            problem = f"{self._path}: cannot be written ({error.strerror or error}); free space or fix permissions"
            raise ModelError(problem) from None
        found = stamp(self._path)
        assert found is not None  # noqa: S101 - under the lock
        self._ledger.note(Saved(epoch, seq, found))


class _Stranger:
    """Somebody else's policy: it keeps what it learns in its own way."""

    ready = True

    def __init__(self, ledger: Ledger, policy: Policy, faults: Faults) -> None:
        self._ledger, self._policy, self._faults = ledger, policy, faults
        self.waiting = self._seq = 0

    def begin(self) -> None:
        self.waiting = 0

    def settle(self) -> None: ...

    def catch_up(self) -> None: ...

    @staticmethod
    def settled(experience: Experience) -> Experience:
        return experience

    def due(self, interval: int) -> bool:
        return self.waiting >= interval

    def learn(self, entries: Sequence[Told]) -> list[Recorded]:
        for entry in entries:
            self._seq = max(self._seq, entry.seq)
            if entry.fresh:
                self.waiting += 1
                try:
                    self._policy.learn(entry.experience)
                except Exception as error:  # noqa: BLE001 - it is recorded all the same
                    self._faults.report("policy", error)
        return [Recorded(entry.fresh, self._seq, 0.0) for entry in entries]

    def saving(self) -> Callable[[], None]:
        return functools.partial(self._save, self._seq, self.waiting)

    def _save(self, seq: int, waiting: int) -> None:
        self._policy.save()
        self._ledger.note(Saved(_FIRST, seq, (0, 0, 0)))
        self.waiting -= waiting
