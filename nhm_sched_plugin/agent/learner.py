"""Learning from outcomes in every process of an agent alike: each is written down first, then learned in its turn."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence

from nhm_sched_plugin.advice.protocols import Policy
from nhm_sched_plugin.agent.agreed_table import AgreedTable, Recorded, Told
from nhm_sched_plugin.agent.ledger import Ledger
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.words import count
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Experience, Health

__all__ = ["Learner", "Recorded"]


class Learner:
    """Records outcomes and lets the policy learn from them. Thread-safe; a forked child begins with the file anew.

    The policy is the built-in one (`QPolicy`, whose table and file this takes charge of), or somebody else's, which
    gets `learn` for each outcome that this process was the first to record, and `save` when that is due; after a crash
    `learn` again for what was not saved.
    Making one raises nothing: what cannot be opened is reported, and tried again by whatever needs it.
    """

    def __init__(
        self, settings: Settings, policy: Policy, faults: Faults, clock: Callable[[], float] = time.time
    ) -> None:
        self.ledger = Ledger(settings.ledger_path, settings.agent.ledger_keep_days, clock)
        self._interval, self._faults = settings.ml.scheduling.update_interval, faults
        self._keeper: AgreedTable | _Stranger = (
            AgreedTable(self.ledger, policy) if isinstance(policy, QPolicy) else _Stranger(self.ledger, policy, faults)
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
            if self._keeper.replaced:
                self._attempt(self._keeper.settle)
            try:
                return self._keeper.learn(entries)
            except Exception as error:  # noqa: BLE001 - they are recorded; `follow` learns what this could not
                self._went_wrong(error)
                return [self._keeper.told(entry) for entry in entries]

    def follow(self) -> None:
        """Apply what other processes recorded, and save the table when that is due. Raises nothing."""
        self._attempt(self._follow, self._interval)

    def close(self) -> None:
        """Save what is not in the file yet, and close the ledger. Raises nothing."""
        self._attempt(self._follow, 1)
        self.ledger.close()

    def health(self) -> Health:
        """Not ok while the ledger or the table cannot be read or written."""
        told = [self._problem] if self._problem else []
        told.append(f"{count(self._keeper.waiting, 'outcome')} in {self.ledger.path} and not in the saved table yet")
        if self.ledger.damaged:
            told.append(f"{count(self.ledger.damaged, 'damaged ledger')} set aside beside it")
        return Health(component="learner", ok=not self._problem, detail="; ".join(told))

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
            self._went_wrong(error)
        else:
            self._problem = ""

    def _went_wrong(self, error: Exception) -> None:
        self._problem = str(error)
        self._faults.report("learner", error)


class _Stranger:
    """Somebody else's policy, or one that hands on to another agent: it keeps what it learns in its own way.

    What it has not saved yet stays in the ledger, and is learned again by whatever process begins next.
    """

    replaced = False

    def __init__(self, ledger: Ledger, policy: Policy, faults: Faults) -> None:
        self._ledger, self._policy, self._faults = ledger, policy, faults
        self._unsaved: list[int] = []
        self._seq = 0
        self.ready = False

    @property
    def waiting(self) -> int:
        return len(self._unsaved)

    def begin(self) -> None:
        """In a forked child: the rest is the parent's to save."""
        self._unsaved = []

    def settle(self) -> None:
        if self.ready:
            return
        saved = self._ledger.saved()  # of the built-in policy, before this one came
        self._seq = max(self._seq, 0 if saved is None else saved.seq)  # further, where reading has failed on the way
        while rows := self._ledger.after(self._seq):
            for seq, experience in rows:
                self._learn(seq, experience)
        self.ready = True

    def catch_up(self) -> None: ...

    @staticmethod
    def settled(experience: Experience) -> Experience:
        return experience

    def due(self, interval: int) -> bool:
        return self.waiting >= interval

    def learn(self, entries: Sequence[Told]) -> list[Recorded]:
        for entry in entries if self.ready else ():  # else `settle` comes to them in their turn
            if entry.fresh:
                self._learn(entry.seq, entry.experience)
        return [self.told(entry) for entry in entries]

    def told(self, entry: Told) -> Recorded:
        return Recorded(entry.fresh, self._seq, 0.0)

    def _learn(self, seq: int, experience: Experience) -> None:
        self._seq = max(self._seq, seq)
        self._unsaved.append(seq)
        try:
            self._policy.learn(experience)
        except Exception as error:  # noqa: BLE001 - it is recorded all the same
            self._faults.report("policy", error)

    def saving(self) -> Callable[[], None]:
        return functools.partial(self._save, list(self._unsaved))

    def _save(self, learned: list[int]) -> None:
        self._policy.save()
        self._ledger.learned(learned)
        del self._unsaved[: len(learned)]
