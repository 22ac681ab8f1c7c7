"""Windows of a trace and of its variations, ready to be simulated: where pre-training takes its episodes from."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from nhm_sched_plugin.policy.crowds import SLOT_S
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin import layout
from nhm_sched_plugin.twin.crowds import CrowdsAhead
from nhm_sched_plugin.twin.forecasts import HourlyGuess
from nhm_sched_plugin.twin.scenarios import overlaid, with_daily_crowds, with_flash_crowds
from nhm_sched_plugin.twin.traces import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Window", "Windows"]

_COPIES: Final = 2
_DRAWS: Final = 3
"""Of crowds, which are few and differ much: with one, a single crowd may decide what is learned."""
_NO_CROWDS: Final = np.zeros(1)
_FIRST_POOL: Final = (0.3, 2.0)
"""Times the load expected at the start."""


class Window(NamedTuple):
    """An episode to be: its tickets, what is forecast for them, and the first number of workers."""

    trace: Trace
    guess: HourlyGuess
    workers: int
    crowds: NDArray[np.float64] = _NO_CROWDS
    """The crowd ahead in each slot, from the start's on."""
    own: bool = True
    """Whether it is of the trace itself."""
    load: float = 1.0
    """Erlangs of all that the window is a part of."""

    def crowds_from(self, now: float) -> NDArray[np.float64]:
        """The same from the slot of `now` on."""
        slot = int(now // SLOT_S) - int(self.trace.start // SLOT_S)
        return self.crowds[min(slot, len(self.crowds) - 1) :]

    def loads(self, startup_s: float) -> NDArray[np.float64]:
        """Per hour of the clock from that of the start on: tickets expected in the next hour, six hours later, and
        Erlangs of the highest hour that begins within the lead time."""
        guess, first = self.guess, int(self.trace.start // 3600.0)
        rows = [
            (guess.highest(at, 3600.0), guess.rate(at, 6), guess.highest(at, startup_s) * guess.service_s / 3600.0)
            for at in (3600.0 * hour for hour in range(first, int(self.trace.end // 3600.0) + 1))
        ]
        return np.array(rows, np.float64)


class Windows:
    """Draws windows of the trace itself and, for a `varied` share, of its variations: those that calibration weighs."""

    def __init__(
        self,
        settings: Settings,
        trace: Trace,
        seed: int,
        varied: float,
        past: Trace | None = None,
        crowds: Iterable[tuple[int, float]] = (),
    ) -> None:
        """`past` is the history before a trace that is not learned from, `crowds` those that were seen in it."""
        self._limits = settings.limits
        kinds = [[trace]]
        if varied:
            kinds.append([overlaid(trace, _COPIES)])
            seeds = range(_DRAWS * seed, _DRAWS * (seed + 1))
            kinds += [
                [crowds_of(trace, drawn) for drawn in seeds] for crowds_of in (with_flash_crowds, with_daily_crowds)
            ]
        startup_s = settings.planner.startup_s
        self._kinds = [
            [(each, HourlyGuess(each, past), CrowdsAhead(each, startup_s, crowds)) for each in kind] for kind in kinds
        ]
        self._varied = varied

    def draw(self, draw: random.Random, window_s: float) -> Window:
        """A window of that length, or of the whole trace where that is shorter."""
        kind = draw.randrange(1, len(self._kinds)) if draw.random() < self._varied else 0
        source, guess, crowds = draw.choice(self._kinds[kind])
        window_s = min(window_s, source.end - source.start)
        start = draw.uniform(source.start, source.end - window_s)
        factor = draw.uniform(*_FIRST_POOL)
        return self._window(source, guess, crowds, start, start + window_s, factor, own=kind == 0)

    def last(self, length_s: float) -> Window:
        """The last part of the trace itself, from a pool of the load expected then."""
        source, guess, crowds = self._kinds[0][0]
        return self._window(source, guess, crowds, max(source.start, source.end - length_s), source.end, 1.0, own=True)

    def _window(
        self, source: Trace, guess: HourlyGuess, crowds: CrowdsAhead, start: float, end: float, factor: float, own: bool
    ) -> Window:
        erlangs = guess.rate(start) * guess.service_s / 3600.0
        workers = max(self._limits.min_workers, math.ceil(erlangs * factor), 1)
        known = crowds.between(start, end)
        part, workers = source.slice(start, end), min(workers, self._limits.max_workers)
        return Window(part, guess, workers, known, own, source.load)

    def sim(self, window: Window, settings: Settings, tick_s: float) -> layout.Sim:
        """A simulation of the window, with room for an order at each tick."""
        planner, trace = settings.planner, window.trace
        return layout.new_sim(
            trace.arrivals,
            trace.durations,
            start=trace.start,
            end=trace.end,
            workers=window.workers,
            startup_s=planner.startup_s,
            sla_wait_s=(planner.sla_wait_s,),
            service_s=window.guess.service_s,
            room=math.ceil(planner.startup_s / tick_s) + 8,
        )
