"""Trials: one simulated moment continued with different actions, to see what one saves over another.

At a random control tick the simulation is copied. Each copy executes one action once and is then left to the calibrated
planner for ten start-ups (`horizon_s`), with the same tickets; one copy is left to the rules for as long, since who
does not follow the policy here follows them on. What it costs is what calibration minimises: worker-
seconds, and `planner.late_cost` mean service times for each late ticket. Not the contract's reward: that compares two
moments, so what a late scale-out costs in between does not appear in it, and its SLA term is relative to where it began
and steeper downwards; summed over a horizon it cancels.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.learning import arm_of
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin import layout, lessons
from nhm_sched_plugin.twin.calibrate import limits_of
from nhm_sched_plugin.twin.controllers import RulesController, obeyed
from nhm_sched_plugin.twin.gated import Gated, complete
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.twin.windows import Window, Windows
from nhm_sched_plugin.types import Action, Forecast, Recommendation, SchedulingState

__all__ = ["Bin", "Move", "Reliability", "Trials", "horizon_s", "pool_of", "reliability", "score", "window_s"]

SHORTEST_S: Final = 1200.0
"""How long a trial lasts after a start-up, at least,"""
STARTUPS: Final = 10
"""how many start-ups,"""
LONGEST_S: Final = 4 * 3600.0
"""and at most. The rules begin with what the plan has ordered: what it costs to have none shows only as that goes."""
WARM_S: Final = 1800.0
"""No trial before: the pool is new, and what ran before the window is missing."""
WINDOW_S: Final = 4 * 3600.0
"""Length of an episode with trials; copies of a short one are cheap. At least two trials fit in."""
BINS: Final = 10
ENOUGH: Final = 30
"""Trials of an arm in a state from which on their mean is taken for the truth."""
_SAME: Final = 1e-9
_SHARED: Final = ("arrivals", "durations", "classes", "sla_wait_s")
_EVERY_S: Final = 60.0
"""Between two trials, on average."""


def horizon_s(startup_s: float, tick_s: float) -> float:
    """Length of a trial: ten start-ups, but 20 minutes at least and four hours at most, and one start-up more."""
    return math.ceil((startup_s + min(max(SHORTEST_S, STARTUPS * startup_s), LONGEST_S)) / tick_s) * tick_s


def window_s(startup_s: float, tick_s: float) -> float:
    """Length of an episode with trials."""
    return max(WINDOW_S, WARM_S + 2 * horizon_s(startup_s, tick_s))


class Move(NamedTuple):
    """An action as it would be executed."""

    action: Action
    parameters: Mapping[str, Any]

    @property
    def target(self) -> float:
        """Workers; NaN: the pool stays."""
        target = self.parameters.get("target_workers")
        return float(target) if self.action in POOL_ACTIONS and type(target) is int else math.nan

    def like(self, other: Move) -> bool:
        """Whether both would be executed alike."""
        return self.action is other.action and (self.action not in POOL_ACTIONS or self.target == other.target)


class Trials:
    """Runs trials from moments of one pool."""

    def __init__(self, settings: Settings, model: DemandModel, tick_s: float) -> None:
        self._model, self._tick_s = model, tick_s
        self.horizon_s = horizon_s(settings.planner.startup_s, tick_s)
        self._late_cost, self._startup_s = settings.planner.late_cost, settings.planner.startup_s
        self._limits = limits_of(settings)
        self._weights = np.array(model.coefficients)
        self._rules = RulesController(settings)

    def begin(self, pool: Pool, window: Window) -> None:
        """A new episode."""
        self._pool, self._window = pool, window
        self._offered = np.ascontiguousarray(window.loads(self._startup_s)[:, 2])
        self._copy = _another(pool.sim)
        self._rules_pool = copy.copy(pool)
        self._rules_pool.sim = _another(pool.sim)

    @property
    def worth_s(self) -> float:
        """Worker-seconds that the tickets of the history take, on average, in the length of a trial.

        Savings are told in shares of it, so that a small pool and a large one teach the same. It is one for all
        moments: in shares of what is there at the moment, a crowd that is served in time would count for no more than
        the workers who idle at night.
        """
        return max(self._window.load, 1.0) * self.horizon_s

    def possible(self, now: float) -> bool:
        """Whether a trial from now on would end inside the window, and the pool is warm."""
        trace = self._window.trace
        return now - trace.start >= WARM_S and now + self.horizon_s <= trace.end

    def loss(self, target: float, last_change: float | None) -> float:
        """What it costs to have `target` workers ordered now (NaN: to order nothing): in worker-seconds."""
        sim = self._pool.sim
        if len(self._copy.ready) != len(sim.ready):
            self._copy = _another(sim)
        now = self._pool.now
        return float(
            lessons.trial(
                sim,
                self._copy,
                target,
                -math.inf if last_change is None else last_change,
                now + self.horizon_s,
                self._tick_s,
                self._window.trace.start,
                self._offered,
                self._window.crowds_from(now),
                self._model.dispersion,
                self._weights,
                self._limits,
                self._late_cost * self._window.guess.service_s,
            )
        )

    def rules_loss(self, last_change: float | None) -> float:
        """What it costs to leave the pool to the rules until then, in worker-seconds: as they would go on from here."""
        pool = self._rules_pool
        source = self._pool.sim
        if len(pool.sim.ready) < len(source.ready):
            pool.sim = _another(source)
        else:
            _take(source, pool.sim)
        rules, until = self._rules, self._pool.now + self.horizon_s
        rules.last_pool_action_at = last_change
        paid, late = pool.worker_seconds, pool.missed
        while pool.now < until:
            rules.now = pool.now
            full, forecast = complete(pool.state(), self._window, pool.now)
            answer = rules.rules(None, full, forecast)
            target = obeyed(answer.action, answer.parameters, full)
            if target is not None:
                pool.scale_to(target)
                rules.last_pool_action_at = pool.now
            pool.advance(pool.now + self._tick_s)
        return pool.worker_seconds - paid + self._late_cost * self._window.guess.service_s * (pool.missed - late)

    def losses(self, moves: list[Move], last_change: float | None) -> list[float]:
        """Of each; what is the same to the pool is run once."""
        known: dict[str, float] = {}
        for move in moves:
            name = str(move.target)
            if name not in known:
                known[name] = self.loss(move.target, last_change)
        return [known[str(move.target)] for move in moves]


def _take(source: layout.Sim, into: layout.Sim) -> None:
    """Brings a copy of the same window to the same moment."""
    for name, array in source._asdict().items():
        if name not in _SHARED:
            getattr(into, name)[: len(array)] = array


def _another(sim: layout.Sim) -> layout.Sim:
    """Arrays of its own, but for what no simulation changes."""
    own = {name: array.copy() for name, array in sim._asdict().items()}
    own |= {name: getattr(sim, name) for name in _SHARED}
    return layout.Sim(**own)


def pool_of(window: Window, settings: Settings) -> Pool:
    """The window's pool."""
    planner = settings.planner
    return Pool(
        window.trace,
        workers=window.workers,
        startup_s=planner.startup_s,
        sla_wait_s=planner.sla_wait_s,
        service_s=window.guess.service_s,
    )


class Bin(msgspec.Struct, frozen=True):
    """The trials whose confidence is in [low, high)."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean of what was said,"""
    frequency: float
    """and the share of trials in which it came true."""


class Said(NamedTuple):
    """A recommendation that was tried, and what came of it."""

    state: str
    arm: str
    confidence: float
    saved: float
    """Over the rules' action, in the shares of `Saving.mean`."""


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """Does confidence come true?

    It speaks of what an arm saves in a state on average, so it comes true where the mean over the trials of the days
    held out is not below 0. Each trial counts with what came true for its state and arm.
    """

    bins: list[Bin]
    ece: float
    """Expected calibration error: |said - found|, weighted by count, over `BINS` equal bins (Naeini et al. 2015)."""
    brier: float
    """Mean of (said - found)^2 (Brier 1950)."""
    trials: int
    sparse: int
    """Trials in states with fewer than `ENOUGH` of them: their mean says too little to count."""
    same: int
    """Moments at which the policy recommended what the rules do. They are right for certain and count for nothing."""
    followed: float
    """Share of the other moments whose confidence passed the gate at 0.7."""
    followed_won: float
    """Share of those that came true."""


def judged(said: Sequence[Said]) -> tuple[list[float], list[bool]]:
    """Confidence of each trial in a state and arm with `ENOUGH` of them, and whether the mean saving there was >= 0."""
    groups: dict[tuple[str, str], list[Said]] = {}
    for trial in said:
        groups.setdefault((trial.state, trial.arm), []).append(trial)
    told: list[float] = []
    found: list[bool] = []
    for group in groups.values():
        if len(group) >= ENOUGH:
            came_true = math.fsum(trial.saved for trial in group) >= -_SAME * len(group)
            told += [trial.confidence for trial in group]
            found += [came_true] * len(group)
    return told, found


def score(
    said: Sequence[float], came_true: Sequence[bool], same: int = 0, gate: float = 0.7, sparse: int = 0
) -> Reliability:
    """Calibration of probabilities against what came true."""
    told, found = np.array(said, np.float64), np.array(came_true, np.float64)
    places = np.minimum((told * BINS).astype(int), BINS - 1)
    bins, ece = [], 0.0
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        mean, frequency = (float(told[inside].mean()), float(found[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(place / BINS, (place + 1) / BINS, count, mean, frequency))
        ece += abs(mean - frequency) * count / max(len(told), 1)
    passed = told >= gate
    return Reliability(
        bins=bins,
        ece=ece,
        brier=float(((told - found) ** 2).mean()) if len(told) else 0.0,
        trials=len(told),
        sparse=sparse,
        same=same,
        followed=float(passed.mean()) if len(told) else 0.0,
        followed_won=float(found[passed].mean()) if passed.any() else 0.0,
    )


def reliability(
    settings: Settings,
    table: QTable,
    trace: Trace,
    model: DemandModel,
    *,
    past: Trace | None = None,
    moments: int = 10_000,
    tick_s: float = 15.0,
    seed: int = 0,
    progress: Callable[[float], Any] | None = None,
) -> Reliability:
    """Ask the policy on days that it has not learned from, and try what it says against what the rules do.

    The pool is run as the pipeline would: by the recommendation where confidence passes the gate, else by the rules.
    `trace` should be one that neither `table` nor `model` was made from; `past`, the history before it, is what the
    forecast knows besides the days that are over (None: the other days of the trace). Raises `TraceError` for a trace
    that is too short for a single trial.
    """
    asker = _Asker(settings, table, model, tick_s, seed)
    if trace.end - trace.start < WARM_S + asker.trials.horizon_s + tick_s or not len(trace):
        raise TraceError(
            f"{trace.name}: {trace.end - trace.start:.0f} s with {len(trace)} tickets are too short to try"
        )
    windows = Windows(settings, trace, seed, 0.0, past, model.crowds)
    while asker.moments < moments:
        window = windows.draw(asker.draw, window_s(settings.planner.startup_s, tick_s))
        pool = pool_of(window, settings)
        asker.begin(pool, window)
        simulate(pool, asker, tick_s=tick_s)
        if progress is not None:
            progress(min(asker.moments / moments, 1.0))
    told, found = judged(asker.said)
    gate, sparse = settings.optimizer.recommendation_confidence_threshold, len(asker.said) - len(told)
    return score(told, found, asker.same, gate, sparse)


class _Asker(Gated):
    """Runs the pool by the policy behind its gate, and tries now and then whether its confidence comes true."""

    name = "asker"

    def __init__(self, settings: Settings, table: QTable, model: DemandModel, tick_s: float, seed: int) -> None:
        super().__init__(settings, table, model)
        self.trials = Trials(settings, model, tick_s)
        self.draw = random.Random(f"reliability {seed}")
        self._share = tick_s / _EVERY_S
        self.moments = 0
        self.said: list[Said] = []
        self.same = 0

    def begin(self, pool: Pool, window: Window) -> None:
        self.enter(window)
        self.trials.begin(pool, window)

    def asked(
        self, state: SchedulingState, forecast: Forecast, now: float, base: Recommendation, said: Recommendation | None
    ) -> None:
        if not self.trials.possible(now) or self.draw.random() >= self._share:
            return
        self.moments += 1
        rules = Move(base.action, base.parameters)
        own = rules if said is None else Move(said.action, said.parameters)
        if said is None or own.like(rules):
            self.same += 1
            return
        last = self.rules.last_pool_action_at
        (mine,), theirs = self.trials.losses([own], last), self.trials.rules_loss(last)
        plan = self.policy.planner.plan(state, forecast)
        arm = arm_of(own.action, own.parameters, self.policy.planner.planned(plan, own.action))
        self.said.append(Said(said.state_hash, arm, said.confidence, (theirs - mine) / self.trials.worth_s))
