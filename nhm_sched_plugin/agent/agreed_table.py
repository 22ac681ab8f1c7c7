"""The Q-table that the processes of an agent agree on.

It is always the same function of a file and of the ledger's order, to the last bit, whoever recorded what: everything
after the file is applied to it. The file says up to where it contains the ledger (`qtable.Mark`), and the ledger knows
how the file looks that its processes wrote last (`Saved`). Another file there was written by somebody else - `q-table
reset`, `learn`, a promotion, a cache, or one of us who was killed before it could say so. One process takes it over,
the others follow it:

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
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from nhm_sched_plugin.agent.ledger import Ledger, Saved
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, set_aside, stamp
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import Mark, QTable
from nhm_sched_plugin.types import Experience

__all__ = ["AgreedTable", "Recorded", "Told"]

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


class Told(NamedTuple):
    """An outcome with what the ledger said of it."""

    experience: Experience
    seq: int
    fresh: bool


class AgreedTable:
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
        self._inode, self._id = self._ledger.inode, ""

    @property
    def ready(self) -> bool:
        return self._epoch != _NOWHERE

    @property
    def replaced(self) -> bool:
        """Whether the ledger's file is another one than that which the table came from."""
        return self._ledger.inode != self._inode

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
        return [done[entry.seq] if entry.fresh and entry.seq in done else self.told(entry) for entry in entries]

    def told(self, entry: Told) -> Recorded:
        """With the numbers as they are now."""
        table = self._policy.table
        return Recorded(entry.fresh, table.updates, self._steps.q_value(table, entry.experience))

    def catch_up(self, done: dict[int, Recorded] | None = None) -> None:
        """Apply what is in the ledger and not in the table."""
        settled = _NOWHERE
        while self.ready and (rows := self._ledger.after(self._seq)):
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
        if self.replaced:
            saved = self._rescue(saved)
            found = stamp(self._path)
        if saved is None and found is None:
            if not self.ready:
                self._use(QTable(), 0, _FIRST)
        elif saved is None or found != saved.stamp:
            self._take_over()
        elif self._epoch == saved.epoch:
            self._saved, self._gone = saved.seq, False
        elif not self._load(saved):
            self._take_over()

    def _rescue(self, saved: Saved | None) -> Saved | None:
        """The ledger was damaged and replaced, and what could not be saved of it is in the memory of some processes.

        Save the table of the first one that notices; the others begin with that.
        """
        ledger, seq, epoch = self._id, self._seq, self._epoch
        self.begin()
        if epoch == _NOWHERE:
            return saved
        with file_lock(self._path):
            saved, found = self._ledger.saved(), stamp(self._path)
            if saved is None or (saved.epoch == epoch and saved.stamp == found):
                # Under another id all that is in it was recorded since, and `learn` has not been asked for it yet.
                contained = seq if self._ledger.id == ledger else self._ledger.dropped()
                self._write(self._policy.table.copy(), contained, epoch + 1)
            return self._ledger.saved()

    def _use(self, table: QTable, seq: int, epoch: int) -> None:
        self._policy.take(table)
        self._seq = self._saved = seq
        self._epoch, self._gone = epoch, False
        self._id = self._ledger.id

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
                if saved is None and not self.ready:
                    self._use(QTable(), 0, _FIRST)
                    return
                if ours:
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
