"""The capacity planner: how many workers the pool needs, and which actions make sense now.

Once calibrated (`nhm-sched learn` writes `settings.planner_path`), the need is that of `policy.demand`: what is in the
system and came lately, what the forecast expects, and as much room as late tickets and idle workers are worth, measured
in the twin. Until then, and where the host measures too little for it, it comes from queueing theory:

Offered load a = forecast rate x mean service time, at the 0.7 quantile of the forecast - the newsvendor's choice when
a missing worker costs 2.3 times an idle one - and never less than what is busy now: forecasts miss bursts. Workers for
it: the fewest with P(wait > SLA) <= 5 % (see `queueing`). On top, the backlog that will be left when a new worker can
start, spread over the tickets an extra worker can start within the SLA wait:

    backlog = max(0, queue + (mean load - workers) x start-up / service time)
    extra   = backlog / (1 + SLA wait / service time)

Scale-in is never justified by a forecast alone: its target is at least the workers busy now plus the tickets waiting.
Uncalibrated it takes at most a tenth of the pool at a time, because the next burst often comes right after the last,
and waits while recent tickets miss their SLA; calibration has weighed both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import stamp
from nhm_sched_plugin.policy.arms import AMPLE, LEAN
from nhm_sched_plugin.policy.crowds import AHEAD
from nhm_sched_plugin.policy.demand import ARRIVED, DemandModel
from nhm_sched_plugin.policy.queueing import workers_for
from nhm_sched_plugin.policy.state_key import SLA_TARGET
from nhm_sched_plugin.settings import LimitSettings, Settings
from nhm_sched_plugin.types import Action, Forecast, ForecastPoint, SchedulingState

__all__ = ["Candidate", "Plan", "Planner", "explain"]

_log = logging.getLogger(__name__)
LEVEL: Final = 0.7
_Z70: Final = 0.5244  # the standard normal's 0.7 quantile
_Z90: Final = 1.2816
SHRINK: Final = 0.1
"""Most of the pool that one decision removes."""
_MOST: Final = 1e12  # a rate, count or duration (ms) beyond this is no measurement
_LEAST_MS: Final = 1e-3
_DEAD_BAND: Final = 0.05
"""Shrinking by less than this share of the pool is not worth an action."""

# Reading a member off an Enum class costs 0.2 us; these names cost nothing.
_INCREASE: Final = Action.INCREASE_WORKER_POOL
_DECREASE: Final = Action.DECREASE_WORKER_POOL
_PREEMPTIVE: Final = Action.PREEMPTIVE_SCALING
_WEIGHTS: Final = Action.ADJUST_PRIORITY_WEIGHTS
_BALANCE: Final = Action.LOAD_BALANCING_RECONFIG
_NO_ACTION: Final = Action.NO_ACTION
_MOST_RATES: Final = 512
_STARTING: Final = "starting_workers"
_FEATURES: Final = (*ARRIVED, AHEAD, _STARTING)
"""What a calibrated plan reads of them."""


class Plan(msgspec.Struct, frozen=True, gc=False):
    """What the pool needs. Workers are whole numbers within `limits`; None: cannot be told from what is known."""

    active: int | None
    need: int | None
    """Workers for the load at the lead time and the backlog."""
    keep: int | None
    """What a scale-in may go down to: the need, and at least busy workers plus tickets waiting."""
    peak: int | None
    """Workers for the highest load in sight (up to six hours)."""
    load: float
    """Offered load in Erlangs, upper quantile."""
    extra: int
    """Workers for the backlog, part of `need`."""
    queue: float
    basis: str
    """`calibrated`, `forecast` or `measured` (busy workers)."""
    in_system: int | None = None
    """Busy workers and waiting tickets; None: not measured."""
    ordered: int | None = None
    """Active workers and those that start up."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An action that makes sense in the state, with its parameters."""

    action: Action
    parameters: dict[str, int | float | str]


class Planner:
    """Computes `Plan`s from `settings.planner`, `settings.limits` and the calibration. Safe in any thread.

    `refresh`, in the background, takes over a newer calibration. One that cannot be read, or that was made for another
    start-up time or SLA wait than the settings have, is left out: `problem` says why.
    """

    def __init__(self, settings: Settings, path: Path | None = None) -> None:
        self.path = path or settings.planner_path
        self.model: DemandModel | None = None
        self.problem = ""
        self._stamp: tuple[int, int, int] | None = None
        self.startup_s = settings.planner.startup_s
        self.wait_s = settings.planner.sla_wait_s
        self.use(settings.limits)
        # The hours that begin before a worker ordered now can start.
        self._lead_points = 1 + math.ceil(self.startup_s / 3600)
        # By identity; the forecast is kept beside its rates, so its id cannot be taken by another.
        self._known_rates: dict[int, tuple[tuple[ForecastPoint, ...], tuple[float | None, float | None]]] = {}
        self.refresh()

    def use(self, limits: LimitSettings) -> None:
        """Plan within these from now on."""
        self._low, self._high, self._cooldown_s = limits.min_workers, limits.max_workers, limits.cooldown_s
        self._step = limits.max_step if limits.max_step is not None else limits.max_workers

    def refresh(self) -> None:
        """Take over the calibration when its file is new. Never raises."""
        found = stamp(self.path)
        if found == self._stamp:
            return
        self._stamp, self.model, self.problem = found, None, ""
        try:
            model = DemandModel.load(self.path)
        except FileNotFoundError:
            return
        except ModelError as error:
            self.problem = str(error)
        else:
            made_for, asked = (model.startup_s, model.sla_wait_s), (self.startup_s, self.wait_s)
            if made_for == asked:
                self.model = model
                return
            self.problem = (
                f"{self.path}: was made for planner.startup_s = {made_for[0]:g} and sla_wait_s = {made_for[1]:g}, but"
                f" they are {asked[0]:g} and {asked[1]:g}; run `nhm-sched learn --recalibrate`"
            )
        _log.error("%s. Until then the planner is not calibrated.", self.problem)

    def features_of(self, state: SchedulingState) -> tuple[float | None, ...]:
        """What of the state's features the plan depends on."""
        return () if self.model is None else tuple(map(state.features.get, _FEATURES))

    def plan(self, state: SchedulingState, forecast: Forecast | None = None) -> Plan:
        """What the pool needs in this state. Never raises on absent or non-finite fields."""
        workers, waiting, cpu = state.active_workers, state.queue_depth, state.resource_cpu_avg
        queue_known = waiting is not None and 0 <= waiting < _MOST
        queue = waiting if waiting is not None and queue_known else 0.0
        if workers is None or not 0 <= workers < _MOST:
            return Plan(None, None, None, None, 0.0, 0, queue, "nothing")
        active = int(workers)
        busy = None if cpu is None or not 0 <= cpu < _MOST else math.ceil((cpu if cpu < 1 else 1.0) * active - 1e-9)
        duration = state.avg_task_duration_ms
        service_s = duration / 1000 if duration is not None and _LEAST_MS <= duration < _MOST else 0.0
        mean, upper, peak = self._rates(state, forecast)
        if self.model is not None and busy is not None and queue_known and service_s:
            return self._calibrated(self.model, state, active, busy + math.ceil(queue), queue, service_s, mean)
        if service_s and upper is not None and mean is not None:
            load, mean_load, basis = upper * service_s / 3600, mean * service_s / 3600, "forecast"
            if busy is not None and busy > load:
                load, basis = float(busy), "measured"
        elif busy is not None:
            load = mean_load = float(busy)
            basis = "measured"
        else:
            return Plan(active, None, None, None, 0.0, 0, queue, "nothing")
        if not service_s:
            # Without a service time the SLA wait has no scale: take tickets that last as long as the wait.
            service_s = self.wait_s
        waits = self.wait_s / service_s
        backlog = queue + (mean_load - active) * self.startup_s / service_s
        extra = math.ceil(backlog / (1 + waits) - 1e-9) if backlog > 0 else 0
        steady = workers_for(load, waits)
        need = self._clip(steady + extra, active)
        keep = ahead = None
        if busy is not None and queue_known and need < active:
            floor = max(need, busy + math.ceil(queue), active - max(1, int(SHRINK * active)))
            keep = need if need == floor else self._clip(floor, active)
        if peak is not None:
            ahead = need if peak == upper else self._clip(workers_for(peak * service_s / 3600, waits), active)
        return Plan(active, need, keep, ahead, load, extra, queue, basis)

    def _calibrated(
        self,
        model: DemandModel,
        state: SchedulingState,
        active: int,
        in_system: int,
        queue: float,
        service_s: float,
        rate: float | None,
    ) -> Plan:
        features = state.features
        counted = features if _FEATURES[0] in features else {}  # else nobody shows the plugin the tickets
        offered = None if rate is None else rate * service_s / 3600
        need = self._clip(math.ceil(model.needed(in_system, counted, service_s, offered) - 1e-9), active)
        starting = _known(features.get(_STARTING)) or 0.0
        return Plan(
            active, need, need, None, float(in_system), max(need - in_system, 0), queue, "calibrated", in_system,
            active + int(starting),
        )  # fmt: skip

    def candidates(self, plan: Plan, state: SchedulingState, headroom: float = 1.0) -> list[Candidate]:
        """The actions that make sense, the planner's own choice first; `headroom` scales its calibrated room."""
        active, need, keep = plan.active, plan.need, plan.keep
        if active is None or need is None:
            return [Candidate(_NO_ACTION, {})]
        if plan.in_system is not None:
            found = self._around(plan, need, plan.in_system, active, headroom)
        else:
            found = [Candidate(_NO_ACTION, {})]
            if need > active:
                found.insert(0, _pool(_INCREASE, need, need))
            elif keep is not None and not plan.queue and active - keep > _DEAD_BAND * active and _met(state):
                found.insert(0, _pool(_DECREASE, keep, keep))
            if plan.peak is not None and plan.peak > max(active, need):
                found.append(_pool(_PREEMPTIVE, plan.peak, plan.peak))
        if plan.queue >= active:
            # More than a worker-round waits: which tickets go first now matters.
            found.append(Candidate(_WEIGHTS, dict(BACKLOG_WEIGHTS)))
            cpu = _known(state.resource_cpu_avg)
            if cpu is not None and cpu < 0.5:
                found.append(Candidate(_BALANCE, {"strategy": "least_loaded"}))
        return found

    def resting(self, candidates: list[Candidate], now: float, last_change: float | None) -> list[Candidate]:
        """Without removals while the guard's cooldown refuses them; the planner's own is then to keep the pool.

        `now` and `last_change` (of the last applied pool action, None: there was none) are Unix seconds.
        """
        if last_change is None or abs(now - last_change) >= self._cooldown_s:
            return candidates
        if all(each.action is not _DECREASE for each in candidates):
            return candidates
        kept = [each for each in candidates if each.action is not _DECREASE]
        keep = Candidate(_NO_ACTION, {})
        return kept if candidates[0].action is not _DECREASE else [keep, *(each for each in kept if each != keep)]

    def _around(self, plan: Plan, need: int, in_system: int, active: int, headroom: float) -> list[Candidate]:
        """The planned number of workers, one with more room, one with less, and leaving it; each as an action."""
        ordered = active if plan.ordered is None else plan.ordered
        room, found = need - in_system, []
        for share in (headroom, AMPLE, LEAN):
            target = need if share == 1.0 else self._clip(math.ceil(in_system + share * room), active)
            if target > ordered:
                ahead = target > need and not plan.queue
                found.append(_pool(_PREEMPTIVE if ahead else _INCREASE, target, need))
            elif target < active and plan.queue < 1:
                found.append(_pool(_DECREASE, target, need))
            else:
                found.append(Candidate(_NO_ACTION, {}))
        found.append(Candidate(_NO_ACTION, {}))
        return [candidate for place, candidate in enumerate(found) if candidate not in found[:place]]

    def planned(self, plan: Plan, action: Action) -> int | None:
        """The planner's own target for a pool action, also when the action is no candidate."""
        if plan.in_system is not None:
            return plan.need
        if action is _INCREASE:
            return plan.need
        if action is _DECREASE:
            return plan.keep
        return plan.peak if action is _PREEMPTIVE else None

    def _clip(self, workers: int, active: int) -> int:
        # The step last: towards the limits, but not in one go.
        if workers > self._high:
            workers = self._high
        elif workers < self._low:
            workers = self._low
        if workers > active + self._step:
            return active + self._step
        return workers if workers >= active - self._step else active - self._step

    def _rates(
        self, state: SchedulingState, forecast: Forecast | None
    ) -> tuple[float | None, float | None, float | None]:
        """Tickets/h at the lead time (mean, upper quantile) and at the highest hour in sight (upper quantile)."""
        mean = upper = None
        if forecast is not None:
            mean, upper = self._forecast_rates(forecast)
        if upper is None:
            mean = _known(state.predicted_load_1h)
            upper = None if mean is None else _poisson_upper(mean)
        later = _known(state.predicted_load_6h)
        if later is None:
            return mean, upper, upper
        peak = _poisson_upper(later)
        return mean, upper, peak if upper is None or peak > upper else upper

    def _forecast_rates(self, forecast: Forecast) -> tuple[float | None, float | None]:
        """Mean and upper quantile of the highest hour that begins within the lead time; kept per forecast."""
        points = forecast.points  # the same for every pool that the forecast is completed for
        known = self._known_rates.get(id(points))
        if points and known is not None and known[0] is points:
            return known[1]
        mean = upper = None
        for point in points[: self._lead_points]:
            if not 0 <= point.mean < _MOST:
                continue
            ninety = _known(point.quantiles.get(0.9))
            # The quantile as of a normal through mean and 0.9 quantile, and never less spread than counts have.
            wide = 0.0 if ninety is None else (ninety - point.mean) * _Z70 / _Z90
            high = max(point.mean + wide, _poisson_upper(point.mean))
            if upper is None or high > upper:
                mean, upper = point.mean, high
        if upper is None and 0 <= forecast.predicted_volume < _MOST:
            mean, upper = forecast.predicted_volume, _poisson_upper(forecast.predicted_volume)
        if len(self._known_rates) >= _MOST_RATES:
            self._known_rates.clear()
        if points:
            self._known_rates[id(points)] = (points, (mean, upper))
        return mean, upper


BACKLOG_WEIGHTS: Final = {"critical": 8.0, "high": 4.0, "medium": 2.0, "low": 1.0}
"""Weight per risk band while a backlog exists: each band twice the next, so that none is ever starved."""


def explain(plan: Plan, action: Action, parameters: Mapping[str, int | float | str]) -> str:
    """One plain sentence for `Recommendation.justification`."""
    active = plan.active
    if active is None:
        return "The number of workers is unknown."
    waiting = f", {plan.queue:.0f} waiting" if plan.queue else ""
    if plan.basis == "calibrated":
        room = f"{plan.in_system} tickets are in the system{waiting}"
        if action is _NO_ACTION:
            return f"{room}; the pool of {active} is what the coming minutes need ({plan.need})."
        if action in POOL_ACTIONS:
            target = parameters.get("target_workers")
            planned = "" if target == plan.need else f" (planned: {plan.need})"
            return (
                f"{room}; with room for what comes until a new worker starts: {target}{planned}, {active} are active."
            )
    if action in POOL_ACTIONS:
        target = parameters.get("target_workers")
        if action is _PREEMPTIVE:
            return f"The load in sight needs {target} workers; {active} are active."
        why = "expected" if plan.basis == "forecast" else "measured"
        backlog = f" incl. {plan.extra} for the backlog" if plan.extra else ""
        return f"{plan.load:.1f} workers' worth of load {why}{waiting}: {target} workers{backlog}, {active} are active."
    if action is _WEIGHTS:
        return f"{plan.queue:.0f} tickets wait for {active} workers: urgent ones first until the backlog is gone."
    if action is _BALANCE:
        return f"{plan.queue:.0f} tickets wait while the workers are less than half busy: spread them better."
    return f"{active} workers fit {plan.load:.1f} workers' worth of load{waiting}."


def _pool(action: Action, target: int, planned: int) -> Candidate:
    return Candidate(action, {"target_workers": target, "planned_workers": planned})


def _met(state: SchedulingState) -> bool:
    """Recent tickets met their SLA, as far as is known."""
    sla = _known(state.sla_compliance_rate)
    return sla is None or sla >= SLA_TARGET


def _known(value: float | None) -> float | None:
    """The value, or None when it is absent, NaN, negative or absurdly large."""
    return value if value is not None and 0 <= value < _MOST else None


def _poisson_upper(mean: float) -> float:
    """The 0.7 quantile of Poisson counts, normal approximation: the least spread that counts can have."""
    return mean + _Z70 * math.sqrt(mean)
