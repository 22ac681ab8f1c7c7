"""Pre-training: the policy tries its actions on simulated pools before it advises a real one.

Episodes are random windows of a trace under random load (0.5 to 2 times), started with a random number of workers. At
each control tick the executed action is the planner's (40 %), the rules' (30 %) or any candidate (30 %), so that both
sides of every confidence get evidence. What is learned with is the real thing: state key, reward, Q-table and rule book
are the live path's own. The forecast is a seasonal mean of the trace, not its future.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.decision.reward import reward
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.controllers import RulesController, obeyed
from nhm_sched_plugin.twin.forecasts import SeasonalGuess
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.types import Action, Experience, Forecast, SchedulingState

__all__ = ["LearnReport", "pretrain"]

_EPISODE_S: Final = 12 * 3600.0
_PLANNER, _RULES = 0.4, 0.3
_LOADS: Final = (0.5, 2.0)


class LearnReport(msgspec.Struct, kw_only=True):
    """What pre-training did."""

    decisions: int
    episodes: int
    states: int
    updates: int
    """Of the Q-table, over its life."""
    reward_mean: float
    elapsed_s: float
    decisions_per_s: float
    actions: dict[str, int]
    path: str


def pretrain(
    settings: Settings,
    trace: Trace,
    *,
    decisions: int = 20_000,
    tick_s: float = 60.0,
    seed: int = 0,
    path: Path | None = None,
    progress: Callable[[float], Any] | None = None,
) -> LearnReport:
    """Learn from `decisions` simulated control decisions and save the Q-table (`settings.q_table_path` or `path`).

    An existing table is continued. `progress` gets the share done, in [0, 1]. Raises `TraceError` for a trace without
    tickets, `ModelError` when the table cannot be saved.
    """
    if not len(trace):
        raise TraceError(f"{trace.name}: no tickets to learn from")
    began, draw = time.perf_counter(), random.Random(seed)
    rules = RulesController(settings)
    policy = QPolicy(settings, rules.rules, path=path, autosave=False)
    guess = SeasonalGuess(trace)
    learner = _Learner(policy, rules, guess, settings, draw, tick_s)
    episodes = 0
    while learner.made < decisions:
        window = min(_EPISODE_S, trace.end - trace.start, (decisions - learner.made) * tick_s)
        start = draw.uniform(trace.start, trace.end - window)
        factor = math.exp(draw.uniform(math.log(_LOADS[0]), math.log(_LOADS[1])))
        episode = trace.slice(start, start + window).scaled(factor, draw.randrange(2**31))
        learner.begin(factor, episodes)
        erlangs = factor * guess.rate(start) * trace.service_mean_s / 3600
        workers = max(settings.limits.min_workers, math.ceil(erlangs * draw.uniform(0.3, 2.0)), 1)
        pool = Pool(
            episode,
            workers=min(workers, settings.limits.max_workers),
            startup_s=settings.planner.startup_s,
            sla_wait_s=settings.planner.sla_wait_s,
            service_s=trace.service_mean_s,
        )
        simulate(pool, learner, tick_s=tick_s)
        episodes += 1
        if progress is not None:
            progress(min(learner.made / decisions, 1.0))
    policy.save()
    elapsed = time.perf_counter() - began
    return LearnReport(
        decisions=learner.made,
        episodes=episodes,
        states=len(policy.table),
        updates=policy.table.updates,
        reward_mean=learner.reward_sum / max(learner.learned, 1),
        elapsed_s=elapsed,
        decisions_per_s=learner.made / elapsed,
        actions=dict(learner.actions),
        path=str(policy.path),
    )


class _Learner:
    """A controller that explores on purpose and feeds the policy `lead_s` later."""

    name = "learner"
    watches_tickets = False

    def __init__(
        self,
        policy: QPolicy,
        rules: RulesController,
        guess: SeasonalGuess,
        settings: Settings,
        draw: random.Random,
        tick_s: float,
    ) -> None:
        self._policy, self._rules, self._guess, self._draw = policy, rules, guess, draw
        self._lead_s = lead_s(settings.planner.startup_s, tick_s)
        self._cooldown_s = settings.limits.cooldown_s
        self._open: deque[tuple[float, Experience]] = deque()
        self.made = self.learned = 0
        self.reward_sum = 0.0
        self.actions: Counter[str] = Counter()

    def begin(self, factor: float, episode: int) -> None:
        """A new episode: nothing of the last one is still open, nobody has just scaled."""
        self._factor, self._episode = factor, episode
        self._open.clear()
        self._rules.last_pool_action_at = None

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        forecast = self._guess.forecast(now, self._factor)
        full = SchedulingState(
            queue_depth=state.queue_depth,
            active_workers=state.active_workers,
            avg_task_duration_ms=state.avg_task_duration_ms,
            sla_compliance_rate=state.sla_compliance_rate,
            predicted_load_1h=forecast.predicted_volume,
            predicted_load_6h=self._factor * self._guess.rate(now, 6),
            resource_cpu_avg=state.resource_cpu_avg,
            features=state.features,
        )
        while self._open and self._open[0][0] <= now:
            self._learn(self._open.popleft()[1], full)
        action, parameters = self._chosen(full, forecast, now)
        self.actions[action.value] += 1
        step = Experience(
            decision_id=f"{self._episode}-{now:.0f}",
            state=full,
            action=action,
            reward=0.0,
            parameters=parameters,
        )
        self._open.append((now + self._lead_s, step))
        self.made += 1
        target = obeyed(action, parameters, full)
        if target is not None:
            self._rules.last_pool_action_at = now
        return target

    def _chosen(
        self, state: SchedulingState, forecast: Forecast, now: float
    ) -> tuple[Action, Mapping[str, int | float | str]]:
        self._rules.now = now
        planner = self._policy.planner
        die = self._draw.random()
        if _PLANNER <= die < _PLANNER + _RULES:
            rules = self._rules.rules(None, state, forecast)
            return rules.action, rules.parameters
        candidates = planner.candidates(planner.plan(state, forecast), state)
        last = self._rules.last_pool_action_at
        if last is not None and now - last < self._cooldown_s:
            # The guard would veto a removal so soon after a change; learn what will be executed.
            candidates = [c for c in candidates if c.action is not Action.DECREASE_WORKER_POOL]
        chosen = candidates[0 if die < _PLANNER else self._draw.randrange(len(candidates))]
        return chosen.action, chosen.parameters

    def _learn(self, step: Experience, after: SchedulingState) -> None:
        earned = reward(step.state, after)
        self.reward_sum += earned
        self.learned += 1
        self._policy.learn(msgspec.structs.replace(step, reward=earned, next_state=after))


def lead_s(startup_s: float, tick_s: float) -> float:
    """When a decision's effect is measured: the first control tick at which its workers have run for a tick."""
    return (math.ceil(startup_s / tick_s) + 1) * tick_s
