"""A plugin that misbehaves at random in everything it does: for the hostile host."""

from __future__ import annotations

import datetime as dt
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from nhm_sched_plugin import Action, Forecast, Health, Recommendation, Veto, hookimpl

BUDGET_MS = 50.0
NOTHING: tuple[Any, ...] = (None,)
"""For hooks whose answer nobody reads: no garbage is possible."""
GROW = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 12}, confidence=0.9)


class Chaos:
    """Decides what a hook does this time, and remembers which failures must show up in the metrics."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calm = False
        self.injected: Counter[str] = Counter()
        self.slept = 0

    def __call__(self, hook: str, answer: Any = None, garbage: tuple[Any, ...] = NOTHING) -> Any:
        dice = 1.0 if self.calm else self.random.random()
        if dice < 0.10:
            self.injected[hook] += 1
            raise self.random.choice([ValueError(f"chaos {dice}"), SystemExit(2), TimeoutError(), RecursionError()])
        if dice < 0.14:
            self.slept += 1
            time.sleep(self.random.uniform(0.2, 4) * BUDGET_MS / 1000)
        elif dice < 0.24 and garbage != NOTHING:
            self.injected[hook] += 1
            return self.random.choice(garbage)
        return answer


def enemy(chaos: Chaos) -> Any:
    """A plugin with every hook that a third party may have; each misbehaves now and then."""
    wrong_type: tuple[Any, ...] = (object(), 7.5, "x")

    class Enemy:
        @hookimpl
        def nhm_sched_make_forecaster(self) -> Any:
            return Forecaster(chaos)

        @hookimpl
        def nhm_sched_make_policy(self) -> Any:
            return Policy(chaos)

        @hookimpl
        def nhm_sched_make_sinks(self) -> Any:
            return [Database(chaos), object()]

        @hookimpl
        def nhm_sched_collect_state(self, ticket: Any) -> Any:
            return chaos("collect_state", {"load": 1.0}, (*wrong_type, {"a": math.nan}, {1: 2}))

        @hookimpl
        def nhm_sched_recommend(self, ticket: Any, state: Any, forecast: Any) -> Any:
            return chaos("recommend", None, (*wrong_type, Recommendation(action="JUMP", confidence=9)))  # type: ignore[arg-type]

        @hookimpl
        def nhm_sched_guard(self, recommendation: Any) -> Any:
            return chaos("guard", None, (*wrong_type, Veto(guard=1, reason=None)))  # type: ignore[arg-type]

        @hookimpl
        def nhm_sched_fallback(self, reason: Any) -> Any:
            return chaos("fallback", None, wrong_type)

        @hookimpl
        def nhm_sched_reward(self, before: Any, after: Any) -> Any:
            return chaos("reward", None, ("x", math.nan, object()))

        @hookimpl
        def nhm_sched_actuate(self, decision: Any) -> Any:
            return chaos("actuate", None, wrong_type)

        @hookimpl
        def nhm_sched_after_decision(self, record: Any) -> None:
            chaos("after_decision", garbage=NOTHING)

        @hookimpl
        def nhm_sched_on_error(self, error: Any) -> None:
            chaos("on_error", garbage=NOTHING)

        @hookimpl
        def nhm_sched_health(self) -> Any:
            return chaos("health", [Health(component="enemy", ok=True)], (object(), [7]))

    return Enemy()


class Forecaster:
    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos

    def forecast(self, horizon_minutes: int, now: float, task_type: Any = None, risk_band: Any = None) -> Any:
        good = Forecast(
            horizon_minutes=horizon_minutes,
            predicted_volume=5000.0,
            confidence=0.8,
            generated_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        )
        return self._chaos("make_forecaster", good, (object(), 7, "x"))

    def refresh(self) -> None:
        self._chaos("make_forecaster", garbage=NOTHING)

    def health(self) -> Health:
        return Health(component="forecaster", ok=True)


class Policy:
    version = "chaos"

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos

    def recommend(self, ticket: Any, state: Any, forecast: Any) -> Any:
        return self._chaos("make_policy", GROW, (object(), 7, "x"))

    def explore(self, ticket: Any, state: Any, forecast: Any, admissible: Callable[[Any], bool]) -> Any:
        return self._chaos("make_policy", None, (object(), 7, "x"))

    def learn(self, experience: Any) -> None:
        self._chaos("make_policy", garbage=NOTHING)

    def refresh(self) -> None: ...

    def save(self) -> None: ...

    def health(self) -> Health:
        return Health(component="policy", ok=True)


class Database:
    """Another sink, whose database is gone now and then."""

    name = "database"

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos

    def write(self, records: Any) -> None:
        if not self._chaos.calm and self._chaos.random.random() < 0.3:
            self._chaos.injected["sink database"] += 1
            raise ConnectionError("the database is gone")

    def close(self) -> None: ...
