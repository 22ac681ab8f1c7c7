"""The twin as a Gymnasium environment, for agents of your own: `nhm_sched/WorkerPool-v0`.

An episode is a window of a trace, a step is a control tick. The agent sees what a scheduler can measure (`OBSERVATION`)
and says how many workers there should be.

    import gymnasium
    from nhm_sched_plugin.twin.gym_env import ID, register

    register()
    env = gymnasium.make(ID, trace=trace)

Needs the extra `gym`. https://gymnasium.farama.org/api/env/
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from nhm_sched_plugin.decision.reward import reward as contract_reward
from nhm_sched_plugin.twin import layout
from nhm_sched_plugin.twin.simulator import STARTING, Pool
from nhm_sched_plugin.twin.traces import Trace, TraceError
from nhm_sched_plugin.types import SchedulingState

__all__ = ["CHANGES", "ID", "OBSERVATION", "WorkerPoolEnv", "observation", "register", "target_of"]

ID: Final = "nhm_sched/WorkerPool-v0"
CHANGES: Final = (0.8, 0.9, 1.0, 1.1, 1.25, 1.5)
"""What the actions make of the number of workers ordered; 1.0 holds."""
_DAY: Final = 86_400.0

OBSERVATION: Final[Mapping[str, tuple[float, float]]] = {
    "queue_depth": (0, math.inf),
    "active_workers": (0, math.inf),
    "starting_workers": (0, math.inf),
    "arrivals": (0, math.inf),  # since the last tick
    "service_s": (0, math.inf),  # running mean
    "service_known": (0, 1),
    "sla_compliance_rate": (0, 1),
    "sla_known": (0, 1),
    "utilisation": (0, 1),
    "utilisation_known": (0, 1),
    "day_sin": (-1, 1),
    "day_cos": (-1, 1),
    "week_sin": (-1, 1),
    "week_cos": (-1, 1),
}
"""The elements of an observation in their order, with their range. What is not known is 0, and so is its `_known`."""


def observation(state: SchedulingState, arrivals: int, now: float) -> NDArray[np.float32]:
    """The float32 vector of a state; `arrivals` since the last tick, `now` in Unix seconds (UTC)."""
    day, week = (2 * math.pi * (now % period) / period for period in (_DAY, 7 * _DAY))
    duration_ms = state.avg_task_duration_ms
    values = [
        state.queue_depth or 0.0,
        state.active_workers or 0.0,
        state.features[STARTING],
        arrivals,
        *_explicit(None if duration_ms is None else duration_ms / 1000),
        *_explicit(state.sla_compliance_rate),
        *_explicit(state.resource_cpu_avg),
        math.sin(day),
        math.cos(day),
        math.sin(week),
        math.cos(week),
    ]
    return np.array(values, np.float32)


def _explicit(value: float | None) -> tuple[float, float]:
    return (0.0, 0.0) if value is None else (value, 1.0)


def target_of(factor: float, ordered: int) -> int:
    """The number of workers that a change makes of `ordered`: at least one more or less, unless it holds."""
    if factor > 1:
        return max(math.ceil(factor * ordered), ordered + 1)
    return min(math.floor(factor * ordered), ordered - 1) if factor < 1 else ordered


_POOL: Final = frozenset({"sla_window_s", "service_s", "classes", "capacity", "mtbf_s", "startup_cv", "seed"})


class WorkerPoolEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """A pool of workers that the agent scales.

    Actions: by default `Discrete`, one for each of `changes`; with `actions="workers"` a `Box` of one float32, the
    number of workers to have, rounded. Either way `min_workers` and `max_workers` hold.

    Reward of a step: by default the contract's (`decision.reward`), from the state `lead_s` ago to the one now, and 0
    until there is one, since workers ordered now need a start-up to matter. With `reward="cost"` minus the price of the
    workers in the step, minus `late_penalty` for each ticket that missed its SLA in it.

    Episodes are truncated at the end of the window and never terminate: queues go on. `info` has the figures since the
    episode's begin: `sla` (share in time, 1 before any), `worker_hours`, `cost`, `met`, `missed`, `finished`,
    `turned_away`, `failures`; and `workers` (ordered) and `time` (Unix seconds).

    `reset` draws the window and the first number of workers; `options={"start": ..., "workers": ...}` sets them.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as the base class has it

    def __init__(
        self,
        trace: Trace,
        *,
        window_s: float = 12 * 3600.0,
        tick_s: float = 60.0,
        startup_s: float = 120.0,
        sla_wait_s: float = 60.0,
        min_workers: int = 0,
        max_workers: int = 1000,
        actions: str = "changes",
        changes: Sequence[float] = CHANGES,
        reward: str = "contract",
        lead_s: float | None = None,
        price_per_hour: float = 1.0,
        late_penalty: float = 0.1,
        **pool: Any,
    ) -> None:
        """`lead_s` defaults to the start-up and one tick, in whole ticks. `pool`: more of `simulator.Pool`'s arguments.

        Raises `ValueError` for values out of range, `TraceError` (one of them) for a trace without tickets.
        """
        if not len(trace):
            raise TraceError(f"{trace.name}: no tickets to simulate")
        for name, value in (("window_s", window_s), ("tick_s", tick_s)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be above 0 s")
        if not 0 <= startup_s < math.inf:
            raise ValueError(f"startup_s is {startup_s}; it must be a number of seconds, 0 or more")
        if unknown := sorted(pool.keys() - _POOL):
            known = ", ".join(sorted(_POOL))
            raise ValueError(f"no argument {', '.join(unknown)}; of the pool these can be given: {known}")
        if lead_s is not None and not 0 <= lead_s < math.inf:
            raise ValueError(f"lead_s is {lead_s}; it must be a number of seconds, 0 or more")
        if not 0 <= late_penalty < math.inf:
            raise ValueError(f"late_penalty is {late_penalty}; it must be a number, 0 or more")
        if int(min_workers) != min_workers or int(max_workers) != max_workers:
            raise ValueError(f"min_workers is {min_workers} and max_workers {max_workers}; whole numbers are needed")
        if not 0 <= min_workers < max_workers:
            raise ValueError(f"min_workers is {min_workers} and max_workers {max_workers}; one must be below the other")
        if not changes or not all(0 <= change < math.inf for change in changes):
            raise ValueError(f"changes are {tuple(changes)}; factors of the workers ordered are needed, 0 or more")
        self.trace, self.tick_s = trace, tick_s
        self.window_s = min(window_s, trace.end - trace.start)
        self.min_workers, self.max_workers = min_workers, max_workers
        self.changes = tuple(changes)
        self.late_penalty = late_penalty
        lead_s = (math.ceil(startup_s / tick_s) + 1) * tick_s if lead_s is None else lead_s
        self._lead = max(math.ceil(lead_s / tick_s), 1)
        self._by_cost = _one_of("reward", reward, ("contract", "cost")) == "cost"
        self._options = pool | {"startup_s": startup_s, "sla_wait_s": sla_wait_s, "price_per_hour": price_per_hour}
        low, high = (np.array([bounds[end] for bounds in OBSERVATION.values()], np.float32) for end in (0, 1))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space: spaces.Space[Any] = (
            spaces.Discrete(len(self.changes))
            if _one_of("actions", actions, ("changes", "workers")) == "changes"
            else spaces.Box(float(min_workers), float(max_workers), (1,), np.float32)
        )
        self._pool: Pool | None = None

    @property
    def pool(self) -> Pool:
        """The simulated pool. Raises `RuntimeError` before the first `reset`."""
        if self._pool is None:
            raise RuntimeError("call reset() before anything else")
        return self._pool

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        draw, given, trace = self.np_random, options or {}, self.trace
        start = draw.uniform(trace.start, trace.end - self.window_s)
        workers = math.ceil(trace.load * draw.uniform(0.5, 1.5))
        if unknown := sorted(given.keys() - {"start", "workers"}):
            raise ValueError(f"no option {', '.join(unknown)}; known: start, workers")
        asked = given.get("workers")
        if asked is not None and (int(asked) != asked or not 0 <= asked <= self.max_workers):
            raise ValueError(f"workers is {asked}; a whole number from 0 to {self.max_workers} is needed")
        start, workers = float(given.get("start", start)), workers if asked is None else int(asked)
        if not trace.start <= start < trace.end:
            raise ValueError(f"start is {start}; the trace goes from {trace.start} to {trace.end}")
        self._pool = Pool(
            trace.slice(start, min(start + self.window_s, trace.end)),
            workers=min(max(workers, self.min_workers), self.max_workers),
            **{"seed": int(draw.integers(2**31))} | self._options,
        )
        state = self._pool.state()
        self._before: deque[SchedulingState] = deque([state], maxlen=self._lead)
        self._arrived = 0
        return observation(state, 0, start), self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Takes the action and runs to the next tick."""
        pool = self.pool
        pool.scale_to(min(max(self._target(action), self.min_workers), self.max_workers))
        cost, missed = pool.cost, pool.missed
        pool.advance(pool.now + self.tick_s)
        state = pool.state()
        if self._by_cost:
            earned = cost - pool.cost - self.late_penalty * (pool.missed - missed)
        else:
            earned = contract_reward(self._before[0], state) if len(self._before) == self._lead else 0.0
        self._before.append(state)
        arrived = pool.sim.n.item(layout.COMING)
        seen = observation(state, arrived - self._arrived, pool.now)
        self._arrived = arrived
        return seen, float(earned), False, pool.now >= pool.trace.end, self._info()

    def _target(self, action: Any) -> int:
        if isinstance(self.action_space, spaces.Box):
            action = np.asarray(action, np.float32)  # of doubles and lists only the values count
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        if isinstance(self.action_space, spaces.Discrete):
            return target_of(self.changes[int(action)], self.pool.ordered)
        return round(float(action[0]))

    def _info(self) -> dict[str, Any]:
        pool = self.pool
        met, missed = pool.met, pool.missed
        return {
            "sla": met / (met + missed) if met + missed else 1.0,
            "worker_hours": pool.worker_seconds / 3600,
            "cost": pool.cost,
            "met": met,
            "missed": missed,
            "finished": pool.finished,
            "turned_away": pool.turned_away,
            "failures": pool.failures,
            "workers": pool.ordered,
            "time": pool.now,
        }


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")
    return value


def register() -> None:
    """Makes `gymnasium.make(ID, trace=...)` work. May be called again."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=f"{__name__}:WorkerPoolEnv")
