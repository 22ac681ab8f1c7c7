"""The recorded decisions as arrays: what was advised, what was done, and how likely either was.

What is evaluated is the plugin *at 100 %*: its advice where it was asked, sure enough and not vetoed, and the rules
everywhere else, exploration included, as the policy was at each moment (it learns). So:

* A decision whose advice was refused (too little load, too unsure, vetoed, ...) would be the same in every arm.
* In shadow and control the rules' action was executed. If the advice was the same, the policy's probability of it is
  the recorded one (1 - epsilon, or 1 without alternatives); if not, 0. Strictly it is epsilon / k where the policy
  could have explored its way to the rules' action, but k is not recorded there: an error of at most epsilon.
* In treatment the policy's action was executed, with the recorded probability. The rules' action is not recorded; a
  confidence of exactly 1 means that it was the same (docs/policy.md), anything less that it was another.
* Where the arm was drawn, whether it made a difference has to be told by the same sign in both arms, or the weights of
  the two do not add up to one decision: by that confidence, also where the rules' action is recorded. Unless what is
  recorded contradicts it (advice that is not the built-in policy's may always say 1): then every arm made a difference.

Elsewhere, and for people, two actions are the same when they lead to the same number of workers, to within 5 %; other
actions go by their name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.experiment.arms import Observed
from nhm_sched_plugin.experiment.bootstrap import Bools, Floats, Ints, clusters
from nhm_sched_plugin.experiment.ope import Log
from nhm_sched_plugin.policy.state_key import state_key
from nhm_sched_plugin.types import Action, Arm, Reason, SchedulingState

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.settings import Settings

__all__ = ["FOLLOWABLE", "Decided", "decided", "observed", "sample"]

FOLLOWABLE: Final = (Reason.APPLIED, Reason.SHADOW, Reason.NOT_IN_ROLLOUT, Reason.CONTROL_GROUP)
"""Of decisions whose advice is followed at 100 %."""
SAME: Final = 0.05
"""Targets closer than this (relative) are the same."""
SURE: Final = 1.0 - 1e-9
"""A confidence of 1."""
_CONTRADICTED: Final = 0.05
"""Share of the recorded pairs of actions with a confidence of 1 that may differ: rules read what the policy did not."""
_EDGES: Final = (-0.2, -SAME, SAME, 0.2, 0.5)
_CHANGES: Final = (
    "20 % fewer workers or less",
    "5 to 20 % fewer workers",
    "as many workers",
    "5 to 20 % more workers",
    "20 to 50 % more workers",
    "half as many workers more, or beyond",
)
_STATE: Final = (
    "queue_depth",
    "active_workers",
    "avg_task_duration_ms",
    "sla_compliance_rate",
    "predicted_load_1h",
    "predicted_load_6h",
    "resource_cpu_avg",
)
_DAY_S: Final = 86_400.0
Texts = NDArray[Any]


@dataclass(frozen=True)
class Decided:
    """Decisions as arrays of one length, by host and time."""

    host: Ints
    at: Floats
    """Unix seconds."""
    arm: Texts
    reason: Texts
    action: Texts
    advised: Texts
    """Empty: nobody was asked."""
    confidence: Floats
    followable: Bools
    same: Bools
    """Policy and rules would do the same, more or less (also where the advice would not be followed)."""
    alike: Bools
    """The arm makes no difference, as far as both arms can tell."""
    by_rules: Bools
    """The rules' action was executed."""
    explored: Bools
    apart: Floats
    """Workers that the advice would have more than the rules; NaN where not known."""
    propensity: Floats
    """The policy's probability of its own action."""
    percentage: Floats
    """rollout.percentage then."""
    chance: Floats
    """Of treatment."""
    unit: Ints
    """What the arm was drawn for, numbered."""
    state: Texts
    """State keys."""
    done: Texts
    """What the executed action does to the pool, in words."""
    wanted: Texts
    """What the advised one would."""
    reward: Floats
    sla: Floats
    workers: Floats
    """Active when the outcome was seen."""

    def __len__(self) -> int:
        return len(self.at)

    def where(self, mask: Bools) -> Decided:
        """Those for which the mask holds."""
        return Decided(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})

    @property
    def differs(self) -> Bools:
        """At 100 % something else would be done here than the rules do."""
        found: Bools = self.followable & ~self.alike
        return found


def decided(frame: pd.DataFrame, settings: Settings, *, ticks: bool) -> Decided:
    """Arrays from the frame of `store.questions.decision_log`."""
    frame = frame.sort_values(["host", "at"], kind="stable")

    def numbers(name: str) -> Floats:
        return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)

    def texts(name: str) -> Texts:
        return frame[name].to_numpy(dtype=object)

    at, active = numbers("at"), np.maximum(numbers("active_workers"), 1.0)
    action, advised, arm, reason = texts("action"), texts("advised"), texts("arm"), texts("reason")
    executed, wanted = _workers(action, numbers("target"), active), _workers(advised, numbers("advised_target"), active)
    by_rules = reason != Reason.APPLIED
    confidence = numbers("confidence")
    close = np.abs(wanted - executed) <= SAME * np.maximum(executed, 1.0)
    same = np.where(np.isfinite(executed) & np.isfinite(wanted), close, action == advised)
    same = np.where(by_rules, same, confidence >= SURE)
    chance = _chance(numbers("rollout_percentage"), at, reason, settings)
    followable = np.isin(reason, FOLLOWABLE) & (advised != "")
    return Decided(
        host=_numbered(texts("host")),
        at=at,
        arm=arm,
        reason=reason,
        action=action,
        advised=advised,
        confidence=confidence,
        followable=followable,
        same=same.astype(bool),
        alike=_alike(same.astype(bool), confidence, followable & by_rules, chance),
        by_rules=by_rules,
        explored=numbers("is_exploration") > 0,
        apart=np.where(by_rules, wanted - executed, np.nan),
        propensity=np.where(by_rules, np.nan_to_num(numbers("advised_propensity"), nan=1.0), numbers("propensity")),
        percentage=numbers("rollout_percentage"),
        chance=chance,
        unit=_units(frame, at, chance, settings, ticks),
        state=_keys(frame),
        done=_words(action, executed, active),
        wanted=_words(advised, wanted, active),
        reward=numbers("reward"),
        sla=numbers("sla"),
        workers=numbers("workers"),
    )


def _alike(same: Bools, confidence: Floats, recorded: Bools, chance: Floats) -> Bools:
    drawn, sure = chance > 0, confidence >= SURE
    shown = same[recorded & drawn & sure]
    believed = not len(shown) or float(np.mean(~shown)) <= _CONTRADICTED
    found: Bools = np.where(drawn, sure & believed, same)
    return found


def _workers(action: Texts, target: Floats, active: Floats) -> Floats:
    """Workers that an action leads to; NaN for one that is not about the pool."""
    pool = np.isin(action, [str(name) for name in POOL_ACTIONS])
    return np.where(pool, target, np.where(action == Action.NO_ACTION, active, np.nan))


def _words(action: Texts, workers: Floats, active: Floats) -> Texts:
    change = np.array(_CHANGES, dtype=object)[np.searchsorted(_EDGES, np.nan_to_num(workers / active - 1.0))]
    return np.where(np.isfinite(workers), change, action)


def _chance(percentage: Floats, at: Floats, reason: Texts, settings: Settings) -> Floats:
    """On days with a control group inside the rollout, treatment is that much rarer. Its share is not recorded."""
    day = at // _DAY_S
    tested = np.isin(day, np.unique(day[reason == Reason.CONTROL_GROUP]))
    return percentage / 100 * np.where(tested, settings.experiment.treatment_group_pct, 1.0)


def _units(frame: pd.DataFrame, at: Floats, chance: Floats, settings: Settings, ticks: bool) -> Ints:
    if ticks or settings.rollout.unit == "switchback":
        name: Any = at // (60 * settings.rollout.block_minutes)
    else:
        name = _numbered(frame["ticket" if settings.rollout.unit == "ticket" else "task_type"].to_numpy(dtype=object))
    # The percentage may change within a block, and with it the draw.
    return np.unique(np.stack([name, np.round(chance, 6)]), axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def _keys(frame: pd.DataFrame) -> Texts:
    columns = [
        frame[name].to_numpy(dtype=np.float64, na_value=np.nan).tolist() for name in (*_STATE, "forecast_volume")
    ]
    keys = [
        state_key(SchedulingState(**dict(zip(_STATE, row, strict=False))), row[-1])
        for row in zip(*columns, strict=True)
    ]
    return np.array(keys, dtype=object)


def _numbered(values: Texts) -> Ints:
    return np.unique(values.astype(str), return_inverse=True)[1].astype(np.int64)


def sample(found: Decided, settings: Settings, *, ticks: bool, episode_minutes: int | None = None) -> Log:
    """The decisions with rewards, for off-policy evaluation.

    An episode is what one host's control ticks did in `episode_minutes` (default: a block); of tickets, each is one.
    """
    found = found.where(np.isfinite(found.reward))
    block_s = 60.0 * settings.rollout.block_minutes
    length = 60.0 * episode_minutes if episode_minutes else block_s
    name = np.stack([found.host, found.at // length]) if ticks else np.arange(len(found))[None, :]
    changes = (np.diff(name, axis=1) != 0).any(axis=0)
    episode = np.append(0, np.cumsum(changes)).astype(np.int64)[: len(found)]
    first = np.flatnonzero(np.append(True, changes))[: len(found)]
    target = np.where(found.followable, np.where(found.alike | ~found.by_rules, found.propensity, 0.0), 1.0)
    cluster = clusters(found.at[first], max(block_s, length))[episode] if len(found) else episode
    if not ticks and settings.rollout.unit == "task_type":
        cluster = _numbered(found.unit)  # drawn once and for all: as many as there are task types, however long it goes
    labels, codes = np.unique(np.append(found.done, found.wanted).astype(str), return_inverse=True)
    done, wanted = codes[: len(found)].astype(np.int64), codes[len(found) :].astype(np.int64)
    return Log(
        reward=found.reward,
        episode=episode,
        cluster=cluster,
        unit=found.unit,
        chance=found.chance,
        target=target,
        rules=np.where(found.differs & ~found.by_rules, 0.0, 1.0),
        state=_numbered(found.state),
        action=done,
        policy_actions=_policy(found, done, wanted, len(labels)),
        rules_actions=_rules(found, done, len(labels)),
        differs=found.differs,
    )


def _policy(found: Decided, done: Ints, wanted: Ints, actions: int) -> Floats:
    """What the policy would do, as probabilities. What it explores is what it was seen to explore."""
    explored = np.bincount(done[found.explored], minlength=actions).astype(float)
    table = np.zeros((len(found), actions))
    rows = np.arange(len(found))
    greedy = np.where(found.followable & found.by_rules, wanted, done)
    share = np.where(found.followable, found.propensity, 1.0)
    table[rows, greedy] = share
    if explored.sum() > 0:
        table += (1.0 - share)[:, None] * explored / explored.sum()
    else:
        table[rows, greedy] = 1.0
    table[found.explored] = 0.0  # its other choice is not recorded there
    return table


def _rules(found: Decided, done: Ints, actions: int) -> Floats:
    """What the rules would do. Where the arm decided, only control shows it and stands for the treated ones as well."""
    table = np.zeros((len(found), actions))
    known = found.by_rules | ~found.differs
    times = np.where(found.differs, 1.0 / np.maximum(1.0 - found.chance, 1e-3), 1.0)
    table[np.flatnonzero(known), done[known]] = times[known]
    return table


def observed(found: Decided, values: Floats, settings: Settings, *, ticks: bool) -> Observed:
    """What the arms have to be compared by: decisions that could have been in either, with a known value."""
    mask = np.isfinite(values) & (found.chance > 0) & (found.chance < 1)
    block = found.at // (60.0 * settings.rollout.block_minutes)
    if ticks or settings.rollout.unit == "switchback":
        # A block at two percentages is two: each has its own draw.
        block = block + found.chance / 2
    order = np.argsort(found.at[mask], kind="stable")
    return Observed(
        value=values[mask][order],
        treated=(found.arm[mask] == Arm.TREATMENT)[order],
        block=np.unique(block[mask][order], return_inverse=True)[1].astype(np.int64),
        chance=found.chance[mask][order],
    )
