"""The Q-table: per state and arm the learned value, how often it was tried, and how much its outcomes spread.

An *arm* is an action, or an action with a `+` or `-` when it was executed with a target above or below the capacity
planner's (see `arms`). `rules:` before an arm stands for what the rules did there. One JSON file holds it: versioned,
with a SHA-256 digest, written atomically. Of files of older versions all is read but what trials saved over the rules:
they did not say how sure that is by days as they come. A file that an agent keeps says up to where it contains the
agent's ledger of outcomes (`Mark`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, read_file, replace_file, set_aside

__all__ = ["NO_TRIALS", "PLANNED", "RULES", "UNTRIED", "Cell", "Mark", "QTable", "Saving", "reset"]

FORMAT: Final = "nhm-sched-q-table"
VERSION: Final = 4
_READ: Final = {1: 4, 2: 14, 3: 14, 4: 14}
"""Numbers of a cell, by version of the file."""
RULES: Final = "rules:"
"""Before an arm: what the rules' own action saved over the planner's,"""
PLANNED: Final = "plan:"
"""and what the planner's own saved over the rules'. To keep the pool as planned is not to keep it against the plan."""


NO_TRIALS: Final = "no trials: confidence is at most 0.5 (nhm-sched learn makes them, of a day of history or more)"
"""What to say of a table without any, for people."""


class Cell(msgspec.Struct, frozen=True, gc=False):
    """What is known about one arm in one state. Immutable, so that readers need no lock."""

    q: float
    """The Q-value of the update rule, from 0."""
    visits: int
    mean: float
    """Running mean of the TD targets (Welford)."""
    m2: float
    """Sum of squared deviations of the TD targets from their mean (Welford)."""
    trials: int = 0
    """What it saved in the twin over the rules' action, as `Saving` says it: in so many trials,"""
    over: float = 0.0
    """on average,"""
    days: float = 0.0
    """on so many days,"""
    odds: float = 0.0
    """and how sure it is that the mean is not below 0."""
    pairs: int = 0
    """How often the twin tried it against the planner's own arm,"""
    gain: float = 0.0
    """what it saved over that on average, in the same shares,"""
    gain_m2: float = 0.0
    """and the sum of squared deviations from that (Welford)."""
    live: int = 0
    """Rewards from the real pool: their number,"""
    live_mean: float = 0.0
    """mean,"""
    live_m2: float = 0.0
    """and sum of squared deviations (Welford)."""


class Saving(NamedTuple):
    """What trials say that an action saved over another, tried from the very same moments of simulated days.

    Trials of a day are alike: the same crowd comes in all of them. So days are what is counted, not trials.
    """

    trials: int = 0
    mean: float = 0.0
    """In shares of what the history's tickets take on average in that time (`trials.Trials.worth_s`)."""
    days: float = 0.0
    """On how many days, as if each had had as many trials: (sum n)^2 / sum n^2 (Kish 1965)."""
    odds: float = 0.0
    """P(the mean is not below 0), by a bootstrap of days (`twin.daily`); of all states, in one that was not tried."""


class Mark(NamedTuple):
    """What a table contains of an agent's ledger of outcomes."""

    ledger: str
    """The ledger's id: numbers of different ledgers have nothing to do with each other."""
    seq: int
    """Everything up to this number, and nothing after it."""


class QTable:
    """`rows[state_key][arm] -> Cell`. Readers may run beside one writer; writers need a lock of their own."""

    def __init__(
        self, rows: dict[str, dict[str, Cell]] | None = None, updates: int = 0, mark: Mark | None = None
    ) -> None:
        self.rows = rows if rows is not None else {}
        self.updates, self.mark = updates, mark
        self.overall: dict[str, Saving] = {}
        """What each arm, and the plan whatever it asks for (`PLANNED`), saved over the rules in all states."""
        self.gap: float | None = None
        """Share of the reward's gap between rules and oracle that the policy closed on days it had not learned from."""
        self.trials = 0
        """Goes up after each trial that is put down: what was derived from them can be kept until then."""
        self._pooled: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def version(self) -> str:
        """Format version and number of updates: tells one state of learning from the next."""
        return f"q{VERSION}-{self.updates}" if self.updates else f"q{VERSION}-untrained"

    def cell(self, state: str, arm: str) -> Cell | None:
        row = self.rows.get(state)
        return None if row is None else row.get(arm)

    def best(self, state: str) -> float:
        """max_a Q(s, a) over the arms tried there; 0, the initial value, where none was.

        Arms never tried are left out: their 0 would hide that a state is bad once every tried arm is below 0.
        """
        row = self.rows.get(state)
        return max([cell.q for cell in row.values() if cell.visits], default=0.0) if row else 0.0

    def update(
        self, state: str, arm: str, target: float, learning_rate: float, live_reward: float | None = None
    ) -> float:
        """Q(s,a) += lr * (target - Q(s,a)); returns the new value. `target` is r + gamma * max_a' Q(s',a').

        `live_reward` is the reward alone, when it comes from the real pool.
        """
        old = self.cell(state, arm) or UNTRIED
        visits, mean, m2 = _welford(old.visits, old.mean, old.m2, target)
        live = old.live, old.live_mean, old.live_m2
        if live_reward is not None:
            live = _welford(*live, live_reward)
        q = old.q + learning_rate * (target - old.q)
        new = msgspec.structs.replace(
            old, q=q, visits=visits, mean=mean, m2=m2, live=live[0], live_mean=live[1], live_m2=live[2]
        )
        self._put(state, arm, new)
        self.updates += 1
        return q

    def tried(self, state: str, arm: str, gain: float) -> None:
        """A trial in the twin: what the arm saved over the planner's."""
        old = self.cell(state, arm) or UNTRIED
        pairs, mean, m2 = _welford(old.pairs, old.gain, old.gain_m2, gain)
        self._tried(state, arm, msgspec.structs.replace(old, pairs=pairs, gain=mean, gain_m2=m2))

    def saved(self, state: str, arm: str, saving: Saving) -> None:
        """What all trials say that the arm saved over the rules' action there."""
        old = self.cell(state, arm) or UNTRIED
        trials, over, days, odds = saving
        self._tried(state, arm, msgspec.structs.replace(old, trials=trials, over=over, days=days, odds=odds))

    def _tried(self, state: str, arm: str, cell: Cell) -> None:
        self._put(state, arm, cell)
        self._pooled.clear()
        self.trials += 1

    def forget_trials(self) -> None:
        """Before new ones with another planner: what its arms did says nothing of the new one's."""
        for state, row in self.rows.items():
            self.rows[state] = {
                arm: Cell(
                    cell.q, cell.visits, cell.mean, cell.m2,
                    live=cell.live, live_mean=cell.live_mean, live_m2=cell.live_m2,
                )
                for arm, cell in row.items()
                if cell.visits
            }  # fmt: skip
        self.overall, self.gap = {}, None
        self._pooled.clear()
        self.trials += 1

    def pooled(self, arm: str, made: Callable[[list[Cell]], Any]) -> Any:
        """What `made` says of the arm's cells in all states; from memory until there are new trials."""
        found = self._pooled.get(arm)
        if found is None:
            found = self._pooled[arm] = made(self.cells(arm))
        return found

    def cells(self, arm: str) -> list[Cell]:
        """Of the arm, in all states."""
        return [row[arm] for row in list(self.rows.values()) if arm in row]

    def _put(self, state: str, arm: str, cell: Cell) -> None:
        # A new dict, so that no reader ever sees one grow under its loop, and that the same dict says the same.
        self.rows[state] = {**self.rows.get(state, {}), arm: cell}

    def copy(self) -> QTable:
        """As it is now; what is learned later does not change it."""
        made = QTable({state: dict(row) for state, row in self.rows.items()}, self.updates, self.mark)
        made.overall, made.gap = dict(self.overall), self.gap
        return made

    def dump(self) -> bytes:
        """The JSON text of the file, as `_canonical` writes it, but row by row: other threads need not wait for all."""
        ledger = {} if self.mark is None else {"ledger": list(self.mark)}
        overall = {arm: list(saving) for arm, saving in self.overall.items()}
        gap = {} if self.gap is None else {"gap": self.gap}
        before = _canonical({"format": FORMAT, **gap, **ledger, "overall": overall})[1:-1]
        after = _canonical({"updates": self.updates, "version": VERSION})[1:-1]
        rows = []
        for state, row in sorted(self.rows.items()):
            cells = {arm: msgspec.structs.astuple(cell) for arm, cell in row.items()}
            rows.append(_canonical({state: cells})[1:-1])
            time.sleep(0)  # lets go of the interpreter
        body = b'%s,"states":{%s},%s}' % (before, b",".join(rows), after)
        digest = hashlib.sha256(b"{" + body).hexdigest()
        return b'{"digest":"%s",%s\n' % (digest.encode(), body)

    @classmethod
    def parse(cls, raw: bytes, name: str) -> QTable:
        """The table in `raw`. Raises `ModelError` that names `name` and the fix."""
        try:
            tree = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise _unusable(name, f"is not valid JSON ({error})") from None
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            raise _unusable(name, "is not a Q-table")
        version = tree.get("version")
        if type(version) is not int or version not in _READ:
            raise _unusable(name, f"has version {version!r}; this program reads versions 1 to {VERSION}")
        digest = tree.pop("digest", None)
        if digest != _digest(tree):
            raise _unusable(name, "fails its SHA-256 digest (cut short or edited)")
        try:
            rows = {
                str(state): {str(arm): _cell(found, version) for arm, found in row.items()}
                for state, row in tree["states"].items()
            }
            updates = int(tree["updates"])
            mark = _mark(tree.get("ledger"))
            told = tree.get("overall", {}) if version == VERSION else {}
            overall = {str(arm): _saving(found) for arm, found in told.items()}
            gap = None if tree.get("gap") is None else float(tree["gap"])
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise _unusable(name, f"holds a wrong entry ({type(error).__name__}: {error})") from None
        cells = (msgspec.structs.astuple(cell) for row in rows.values() for cell in row.values())
        if not all(math.isfinite(number) for found in (*cells, *overall.values(), (gap or 0.0,)) for number in found):
            raise _unusable(name, "holds a value that is not finite")
        table = cls(rows, updates, mark)
        table.overall, table.gap = overall, gap
        return table

    @classmethod
    def load(cls, path: Path) -> QTable:
        """The table in the file. Raises `FileNotFoundError` when there is none, else `ModelError`."""
        return cls.parse(read_file(path), str(path))

    def save(self, path: Path) -> str:
        """Write the file atomically and durably; returns its digest. Raises `OSError` (disk full, no permission)."""
        raw = self.dump()
        replace_file(path, raw)
        return hashlib.sha256(raw).hexdigest()


def reset(path: Path, mark: Callable[[], Mark | None] = lambda: None) -> Path | None:
    """Start over: keep the old file as `<name>.reset-<n>` (returned; None when there was none), write an empty table.

    Running policies take the empty table over at their next refresh. `mark` tells where the ledger of an agent stands,
    if there is one: what it says up to there is forgotten too.
    """
    with file_lock(path):
        here = mark()
        aside = set_aside(path, "reset") if path.exists() else None
        QTable(mark=here).save(path)
    return aside


def _cell(found: list[float], version: int) -> Cell:
    if len(found) != _READ[version]:
        raise ValueError(f"{len(found)} numbers where {_READ[version]} belong")
    q, visits, mean, m2 = found[:4]
    if version == 1:
        return Cell(float(q), int(visits), float(mean), float(m2))
    trials, over, days, odds, pairs, gain, gain_m2, live, live_mean, live_m2 = found[4:]
    saving = _saving([trials, over, days, odds]) if version == VERSION else Saving()
    if min(visits, m2, pairs, gain_m2, live, live_m2) < 0:
        raise ValueError("a count or a spread below 0")
    return Cell(
        float(q), int(visits), float(mean), float(m2), *saving,
        int(pairs), float(gain), float(gain_m2), int(live), float(live_mean), float(live_m2),
    )  # fmt: skip


def _saving(found: list[float]) -> Saving:
    trials, mean, days, odds = found
    if trials < 0 or not 0 <= odds <= 1 or (trials and days < 1):
        raise ValueError(f"trials {trials}, days {days}, odds {odds}")
    return Saving(int(trials), float(mean), float(days), float(odds))


def _mark(found: Any) -> Mark | None:
    if found is None:
        return None
    ledger, seq = found
    return Mark(str(ledger), int(seq))


def _welford(count: int, mean: float, m2: float, value: float) -> tuple[int, float, float]:
    """Number, mean and sum of squared deviations with one more value (Welford 1962)."""
    delta = value - mean
    mean += delta / (count + 1)
    return count + 1, mean, m2 + delta * (value - mean)


UNTRIED: Final = Cell(0.0, 0, 0.0, 0.0)


def _canonical(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()


def _unusable(name: str, what: str) -> ModelError:
    return ModelError(f"{name}: {what}; restore a copy, or move the file away to start a new Q-table")
