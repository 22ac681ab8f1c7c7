"""Practice: episodes with the real rule book and the real planner, and trials at random ticks.

Two fifths of the episodes are the planner's and two fifths the rules', so that states are those that either leads to;
in the rest anything is executed. All of it is learned from, the rules' actions too.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from nhm_sched_plugin.decision.reward import reward
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.learning import QPolicy, arm_of
from nhm_sched_plugin.policy.planner import Plan
from nhm_sched_plugin.policy.qtable import PLANNED, RULES
from nhm_sched_plugin.policy.state_key import state_key
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.twin.checkpoint import Checkpoint, Progress
from nhm_sched_plugin.twin.controllers import RulesController, obeyed
from nhm_sched_plugin.twin.daily import DailySavings, day_s
from nhm_sched_plugin.twin.gated import complete
from nhm_sched_plugin.twin.simulator import Pool, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.twin.trials import Move, Trials, pool_of, window_s
from nhm_sched_plugin.twin.windows import Window, Windows
from nhm_sched_plugin.types import Experience, SchedulingState

__all__ = ["lead_s", "practise"]

VARIED: Final = 0.35
"""Share of the episodes on variations of the trace. What was saved over the rules is not counted there, since
confidence is to be true of days as they come; but a crowd is when it matters most which arm is taken, and some
histories have none."""
_PLANNERS, _RULES = 0.4, 0.4
TRIALS_EVERY_S: Final = 60.0
"""Simulated time between two trials, on average,"""
RARE: Final = 40
"""but every tick of the trace itself in a state with fewer trials of the plan than this: crowds are rare, and over
before a minute has told much."""


def lead_s(startup_s: float, tick_s: float) -> float:
    """When a decision's effect is measured: the first control tick at which its workers have run for a tick."""
    return (math.ceil(startup_s / tick_s) + 1) * tick_s


def practise(
    settings: Settings,
    trace: Trace,
    model: DemandModel,
    policy: QPolicy,
    rules: RulesController,
    done: Progress,
    decisions: int,
    tick_s: float,
    seed: int,
    checkpoint: Checkpoint,
    told: Callable[[], None],
) -> None:
    """Episodes until so many decisions are made in all; what they teach goes into `policy.table`."""
    windows, length_s = Windows(settings, trace, seed, VARIED), window_s(settings.planner.startup_s, tick_s)
    learner = _Learner(settings, model, policy, rules, done, tick_s, trace)
    while done.made < decisions:
        draw = random.Random(f"practice {seed} {done.episodes}")
        window = windows.draw(draw, min(length_s, (decisions - done.made) * tick_s))
        pool = pool_of(window, settings)
        learner.begin(pool, window, draw)
        simulate(pool, learner, tick_s=tick_s)
        done.episodes += 1
        checkpoint.keep(done, lambda: policy.table)
        told()
    learner.tell()


class _Learner:
    """A controller that explores on purpose, feeds the policy `lead_s` later, and tries actions in between."""

    name, watches_tickets = "learner", False

    def __init__(
        self,
        settings: Settings,
        model: DemandModel,
        policy: QPolicy,
        rules: RulesController,
        done: Progress,
        tick_s: float,
        trace: Trace,
    ) -> None:
        self._policy, self._rules, self._done = policy, rules, done
        self._trials = Trials(settings, model, tick_s)
        self._daily = DailySavings(done.savings, day_s(trace.end - trace.start, self._trials.horizon_s))
        self._lead_s = lead_s(settings.planner.startup_s, tick_s)
        self._cooldown_s, self._share = settings.limits.cooldown_s, tick_s / TRIALS_EVERY_S
        self._open: deque[tuple[float, Experience]] = deque()

    def begin(self, pool: Pool, window: Window, draw: random.Random) -> None:
        """A new episode: nothing of the last one is still open, nobody has just scaled."""
        self._window, self._draw, die = window, draw, draw.random()
        self._who = "planner" if die < _PLANNERS else "rules" if die < _PLANNERS + _RULES else "anybody"
        self._trials.begin(pool, window)
        self._open.clear()
        self._rules.last_pool_action_at = None

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...

    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...

    def on_tick(self, state: SchedulingState, now: float) -> int | None:
        full, forecast = complete(state, self._window, now)
        while self._open and self._open[0][0] <= now:
            self._learn(self._open.popleft()[1], full)
        self._rules.now = now
        base = self._rules.rules(None, full, forecast)
        rules = Move(base.action, base.parameters)
        plan = self._policy.planner.plan(full, forecast)
        planner, last = self._policy.planner, self._rules.last_pool_action_at
        offered = planner.resting(planner.candidates(plan, full), now, last)
        moves = [Move(each.action, each.parameters) for each in offered]
        if self._trials.possible(now):
            key, due = state_key(full), self._draw.random() < self._share
            if due or self._rare(key):
                self._try(key, plan, moves, rules, now)
        chosen = self._chosen(moves, rules)
        planned = self._policy.planner.planned(plan, chosen.action)
        parameters = dict(chosen.parameters)
        if planned is not None and "target_workers" in parameters:
            parameters["planned_workers"] = planned
        done = self._done
        done.actions[chosen.action.value] = done.actions.get(chosen.action.value, 0) + 1
        step = Experience(
            decision_id=f"{done.episodes}-{now:.0f}",
            state=full,
            action=chosen.action,
            reward=0.0,
            parameters=parameters,
        )
        self._open.append((now + self._lead_s, step))
        done.made += 1
        target = obeyed(chosen.action, chosen.parameters, full)
        if target is not None:
            self._rules.last_pool_action_at = now
        return target

    def _chosen(self, moves: list[Move], rules: Move) -> Move:
        if self._who == "rules":
            return rules
        if self._who == "planner":
            return moves[0]
        return ([*moves, rules])[self._draw.randrange(len(moves) + 1)]

    def tell(self) -> None:
        """What was saved over the rules, into the table."""
        self._daily.tell(self._policy.table)

    def _rare(self, state: str) -> bool:
        return self._window.own and self._daily.count(state) < RARE

    def _try(self, state: str, plan: Plan, moves: list[Move], rules: Move, now: float) -> None:
        """Every action from this very moment; what each cost against the rules' and the planner's."""
        planned, table = self._policy.planner.planned, self._policy.table
        last = self._rules.last_pool_action_at
        losses, theirs = self._trials.losses(moves, last), self._trials.rules_loss(last)
        worth_s, seen = self._trials.worth_s, set[tuple[str, bool]]()
        for at, (move, loss) in enumerate(zip(moves, losses, strict=True)):
            arm = arm_of(move.action, move.parameters, planned(plan, move.action))
            if (arm, at == 0) in seen:
                continue
            seen.add((arm, at == 0))
            if self._window.own and not move.like(rules):
                self._daily.add(state, arm if at else PLANNED + arm, now, (theirs - loss) / worth_s)
            if at:
                table.tried(state, arm, (losses[0] - loss) / worth_s)
        arm = arm_of(rules.action, rules.parameters, planned(plan, rules.action))
        table.tried(state, RULES + arm, (losses[0] - theirs) / worth_s)
        self._done.trials += 1

    def _learn(self, step: Experience, after: SchedulingState) -> None:
        earned = reward(step.state, after)
        self._done.reward_sum += earned
        self._done.rewards += 1
        self._policy.learn(msgspec.structs.replace(step, reward=earned, next_state=after))
