"""What came of a simulation, overall and by class of tickets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nhm_sched_plugin.twin import engine
from nhm_sched_plugin.twin.layout import ARRIVED, ENDED, LATE, MET, STARTED, TURNED_AWAY

if TYPE_CHECKING:
    from nhm_sched_plugin.twin.layout import Floats
    from nhm_sched_plugin.twin.simulator import Pool

__all__ = ["ClassRun", "Hour", "Run", "Waits", "run_of"]


class Hour(NamedTuple):
    """One hour of a run, for plots."""

    start: float
    arrivals: int
    workers: float
    """Mean number of workers paid for."""
    queue: float
    """Mean number of tickets waiting at control ticks."""


class Waits(NamedTuple):
    """Seconds; percentiles are nearest ranks. All 0 without tickets."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, waits: Floats) -> Waits:
        """Those of tickets that were turned away (NaN) do not count."""
        waits = waits[~np.isnan(waits)]
        if not len(waits):
            return cls()
        ranks = [max(math.ceil(share * len(waits)), 1) - 1 for share in (0.5, 0.95, 0.99)]
        return cls(float(waits.mean()), *(float(wait) for wait in np.partition(waits, ranks)[ranks]))


class ClassRun(NamedTuple):
    """What happened to one class of tickets; see `Run`."""

    name: str
    tickets: int
    met: int
    missed: int
    finished: int
    turned_away: int
    waits: Waits

    @property
    def sla(self) -> float:
        """Share in time of the tickets that it is known of, in [0, 1]; 1 without any."""
        return _share(self.met, self.missed)


class Run(NamedTuple):
    """What happened. A ticket has met or missed its SLA, was turned away, or still had time when the trace ended."""

    waits: Floats
    """Seconds each ticket waited for its first start, in order of arrival; those that never started waited until the
    end. NaN: turned away."""
    met: int
    """Tickets that started in time."""
    missed: int
    """Tickets that started late, or were late and still waiting at the end."""
    finished: int
    worker_seconds: float
    changes: int
    """Control ticks at which the number of workers ordered changed."""
    hours: list[Hour]
    ticks: int
    turned_away: int = 0
    """Tickets that found the system full; they count neither as met nor as missed."""
    failures: int = 0
    """Workers that failed."""
    cost: float = 0.0
    """Worker-hours at the pool's `price_per_hour`."""
    classes: tuple[ClassRun, ...] = ()

    @property
    def sla(self) -> float:
        """Share in time of the tickets that it is known of, in [0, 1]; 1 without any."""
        return _share(self.met, self.missed)


def _share(met: int, missed: int) -> float:
    return met / (met + missed) if met + missed else 1.0


def run_of(pool: Pool, **told: Any) -> Run:
    """The pool's run so far; `told` is what only its driver knows."""
    engine.observe(pool.sim)
    waits, by_class = pool.waits, []
    for at, (kind, row) in enumerate(zip(pool.classes, pool.sim.tally.tolist(), strict=True)):
        by_class.append(
            ClassRun(
                name=kind.name,
                tickets=row[ARRIVED],
                met=row[MET],
                missed=row[STARTED] - row[MET] + row[LATE],
                finished=row[ENDED],
                turned_away=row[TURNED_AWAY],
                waits=Waits.of(waits if len(pool.classes) == 1 else waits[pool.sim.classes == at]),
            )
        )
    return Run(
        waits=waits,
        met=pool.met,
        missed=pool.missed,
        finished=pool.finished,
        worker_seconds=pool.worker_seconds,
        turned_away=pool.turned_away,
        failures=pool.failures,
        cost=pool.cost,
        classes=tuple(by_class),
        **told,
    )
