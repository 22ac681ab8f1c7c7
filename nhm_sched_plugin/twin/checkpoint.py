"""Where an interrupted `learn` goes on: the table so far and how much is done, in a file beside the Q-table.

Written every few seconds, atomically, with a digest; a file that is damaged or of another run is as good as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import replace_file
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.twin.daily import Sums

__all__ = ["Checkpoint", "Progress"]

EVERY_S: Final = 2.0


class Progress(msgspec.Struct, kw_only=True):
    """How far it is. Episodes are seeded by their number, so that is all there is to know besides the table."""

    run: str
    """Digest of all that the result depends on."""
    drilled: int = 0
    """Decisions of compiled episodes,"""
    drills: int = 0
    """those episodes,"""
    made: int = 0
    """decisions of the episodes with rules and trials,"""
    episodes: int = 0
    """and these."""
    trials: int = 0
    reward_sum: float = 0.0
    rewards: int = 0
    actions: dict[str, int] = msgspec.field(default_factory=dict)
    savings: Sums = msgspec.field(default_factory=dict)


class Checkpoint:
    """The file `<q_table>.learning`."""

    def __init__(self, table_path: Path, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = table_path.with_name(f"{table_path.name}.learning")
        self._every_s, self._clock = every_s, clock
        self._due = clock() + every_s

    def load(self, run: str) -> tuple[Progress, QTable] | None:
        """What an interrupted run of this digest left; None: nothing usable."""
        try:
            digest, body = self.path.read_bytes().split(b"\n", 1)
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return None
            tree: dict[str, Any] = json.loads(body)
            done = msgspec.convert(tree["progress"], Progress)
            table = QTable.parse(tree["table"].encode(), str(self.path))
        except (OSError, ValueError, KeyError, TypeError, ModelError, msgspec.MsgspecError):
            return None
        return (done, table) if done.run == run else None

    def keep(self, done: Progress, table: Callable[[], QTable], now: bool = False) -> None:
        """Writes the file when it is time. A disk that is full costs the checkpoint, not the run."""
        if not now and self._clock() < self._due:
            return
        tree = {"progress": msgspec.to_builtins(done), "table": table().dump().decode()}
        body = json.dumps(tree).encode()
        with contextlib.suppress(OSError):
            replace_file(self.path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body, durable=False)
        self._due = self._clock() + self._every_s

    def forget(self) -> None:
        """Remove the file; whatever else has its name stays and is in nobody's way."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
