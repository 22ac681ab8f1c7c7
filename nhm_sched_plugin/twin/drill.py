"""Drill: compiled episodes of Q-learning, as many as it takes, into a Q-table."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from nhm_sched_plugin.policy.arms import ARMS
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import Cell, QTable
from nhm_sched_plugin.policy.state_key import KEYS
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin import lessons
from nhm_sched_plugin.twin.calibrate import limits_of
from nhm_sched_plugin.twin.checkpoint import Checkpoint, Progress
from nhm_sched_plugin.twin.practice import lead_s
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.twin.windows import Window, Windows

__all__ = ["Drill", "table_of", "values_of"]

EPISODE_S: Final = 12 * 3600.0
VARIED: Final = 0.5
"""Share of the episodes on variations of the trace."""


def values_of(table: QTable) -> lessons.Values:
    """The table as arrays; what has no place in them is left out."""
    values = lessons.new_values()
    states, arms = ({name: at for at, name in enumerate(names)} for names in (KEYS, ARMS))
    for state, row in table.rows.items():
        for arm, cell in row.items():
            if state in states and arm in arms:
                at = states[state], arms[arm]
                for array, number in zip(values, (cell.q, cell.visits, cell.mean, cell.m2), strict=True):
                    array[at] = number
    return values


def table_of(values: lessons.Values, base: QTable) -> QTable:
    """The arrays as a table; what they do not hold is `base`'s."""
    table = base.copy()
    for at, arm in zip(*(places.tolist() for places in np.nonzero(values.visits)), strict=True):
        q, visits, mean, m2 = (array.item(at, arm) for array in values)
        row = table.rows.setdefault(KEYS[at], {})
        old = row.get(ARMS[arm], Cell(0.0, 0, 0.0, 0.0))
        table.updates += int(visits) - old.visits
        row[ARMS[arm]] = msgspec.structs.replace(old, q=q, visits=int(visits), mean=mean, m2=m2)
    return table


class Drill:
    """Runs episodes; each depends on the seed, its number and the table before it alone."""

    def __init__(self, settings: Settings, trace: Trace, model: DemandModel, tick_s: float, seed: int) -> None:
        self._settings, self._model, self._tick_s, self._seed = settings, model, tick_s, seed
        self._windows = Windows(settings, trace, seed, VARIED)
        self._lead = round(lead_s(settings.planner.startup_s, tick_s) / tick_s)
        self._room = np.zeros((self._lead + 1, 6))
        self._targets, self._found = np.zeros(8), np.zeros(8, np.int64)
        self._limits, self._weights = limits_of(settings), np.array(model.coefficients)

    def run(
        self, table: QTable, done: Progress, decisions: int, checkpoint: Checkpoint, told: Callable[[], None]
    ) -> QTable:
        """Goes on until so many decisions are made in all; `done` is kept up to date. Returns the new table."""
        values = values_of(table)
        while done.drilled < decisions:
            draw = random.Random(f"drill {self._seed} {done.drills}")
            length = min(EPISODE_S, (decisions - done.drilled) * self._tick_s)
            window = self._windows.draw(draw, length)
            ticks = math.ceil((window.trace.end - window.trace.start) / self._tick_s - 1e-9)
            done.reward_sum += self.episode(values, window, draw)
            done.rewards += max(ticks - self._lead, 0)
            done.drilled += ticks
            done.drills += 1
            checkpoint.keep(done, lambda: table_of(values, table))
            told()
        return table_of(values, table)

    def episode(self, values: lessons.Values, window: Window, draw: random.Random) -> float:
        """Learns one window into `values`; the sum of its rewards."""
        tuning, settings = self._settings.ml.scheduling, self._settings
        total = lessons.episode(
            self._windows.sim(window, settings, self._tick_s),
            values,
            np.array([draw.getrandbits(64)], np.uint64),
            self._tick_s,
            self._lead,
            self._room,
            window.loads(settings.planner.startup_s),
            window.crowds,
            self._model.dispersion,
            self._weights,
            self._limits,
            tuning.learning_rate,
            tuning.discount_factor,
            self._targets,
            self._found,
        )
        return float(total)
