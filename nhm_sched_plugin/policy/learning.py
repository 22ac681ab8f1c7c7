"""The policy: starts from the capacity planner, leaves it where the Q-table has evidence, and says how sure it is.

Q-learning as specified, off-policy - it learns from what was *executed*, the rules' actions too:

    Q(s,a) += learning_rate * (reward + discount_factor * max_a' Q(s',a') - Q(s,a))

`recommend` reads immutable cells from a dict and takes no lock; `learn`, `refresh` and `save` belong in the background.
See docs/policy.md for what the confidence is and is not.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from nhm_sched_plugin.decision.guards import POOL_ACTIONS
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.files import file_lock, set_aside, stamp
from nhm_sched_plugin.forks import renew_after_fork
from nhm_sched_plugin.policy.confidence import MIN_VISITS, UNSEEN, confidence, inferior, preferred, value
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.planner import Candidate, Plan, Planner, explain
from nhm_sched_plugin.policy.qtable import NO_TRIALS, Cell, QTable
from nhm_sched_plugin.policy.situations import Said, Situations
from nhm_sched_plugin.policy.steps import Steps, arm_of
from nhm_sched_plugin.settings import LimitSettings, Settings
from nhm_sched_plugin.types import Experience, Forecast, Health, Recommendation, SchedulingState, Ticket

__all__ = ["Baseline", "QPolicy", "arm_of"]

_log = logging.getLogger(__name__)
Baseline = Callable[[Ticket | None, SchedulingState, Forecast | None], Recommendation]
"""What the fallback would do here: the measure of every confidence."""

_REMEMBERED_IDS: Final = 20_000
_NOTHING: Final[dict[str, Cell]] = {}
_MOST_PENDING: Final = 20_000


class QPolicy:
    """Implements the Policy protocol over a Q-table file (`settings.q_table_path`) that several processes may share.

    What is in memory is the file plus what was learned since; `save` replays the latter on the file's newest content.
    An unusable file does not stop the host: the policy starts empty (every confidence <= 0.5), `health` says so, and
    the file is set aside as `q_table.json.corrupt-<n>` before a new one is written. `autosave=False` saves only when
    asked, for pre-training.
    """

    def __init__(
        self,
        settings: Settings,
        baseline: Baseline,
        now: Callable[[], float] = time.time,
        *,
        last_change: Callable[[], float | None] = lambda: None,
        on_calibration: Callable[[DemandModel], None] = lambda _: None,
        path: Path | None = None,
        planner_path: Path | None = None,
        autosave: bool = True,
    ) -> None:
        tuning = settings.ml.scheduling
        self._learning_rate = tuning.learning_rate
        self._epsilon, self._interval = tuning.epsilon, tuning.update_interval
        self._deviate = tuning.deviate
        self._random = random.Random(tuning.seed)
        self._baseline, self._now, self._autosave = baseline, now, autosave
        self._last_change, self._on_calibration = last_change, on_calibration
        self.planner = Planner(settings, planner_path)
        if self.planner.model is not None:
            on_calibration(self.planner.model)
        # Pre-training does not save by itself: its rewards are simulated.
        self.steps = Steps(self.planner, self._learning_rate, tuning.discount_factor, live=autosave)
        self.path = path or settings.q_table_path
        self.version = QTable().version
        self.explores = True
        """Whether the caller ever asks `explore`: where it does not, every propensity is 1."""
        self._situations = Situations(self.planner)
        self._lock = threading.Lock()
        self._forked = self._handed_over = False
        renew_after_fork(self)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._pending: list[Experience] = []
        self._ignored = 0
        self._learned_at: float | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._problem = ""
        self._corrupt = False
        self.table = QTable()
        try:
            self.refresh()
        except ModelError as error:
            _log.error("%s. Until then the policy starts without experience.", error)

    def use(self, limits: LimitSettings) -> None:
        """Recommend within these from now on."""
        self.planner.use(limits)
        self._situations = Situations(self.planner)

    def after_fork(self) -> None:
        """What was learned and not saved yet is the parent's to save; the child saves its own, on top of the file."""
        self._lock = threading.Lock()
        self._pending = []
        self._forked = True

    @property
    def epsilon(self) -> float:
        """The exploration rate, for the metric."""
        return self._epsilon

    # On the hot path.

    def recommend(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None
    ) -> Recommendation | None:
        """The best known action and P(it is at least as good as the baseline's). Never explores, takes no lock.

        `propensity` is 1 - epsilon when `explore` has something else to offer, else 1 (also without `explores`); where
        exploration is off for one decision alone, the caller records 1. What is asked again and again, and nothing has
        changed for, is answered with the very same object.
        """
        return self._answer(ticket, state, forecast)[0]

    def explore(
        self,
        ticket: Ticket | None,
        state: SchedulingState,
        forecast: Forecast | None,
        admissible: Callable[[Recommendation], bool],
    ) -> Recommendation | None:
        """With probability epsilon one of the k admissible other actions (propensity epsilon / k), else None.

        What the trials have shown to be worse than the plan is not tried on the real pool again.
        """
        if self._random.random() >= self._epsilon:
            return None
        greedy, plan, candidates, base = self._answer(ticket, state, forecast)
        row = self.table.rows.get(greedy.state_hash, _NOTHING)
        planned = self.planner.planned
        others = [
            self._recommendation(greedy.state_hash, row, plan, candidate, base, own=candidate is candidates[0])
            for candidate in candidates
            if candidate.action is not greedy.action
            and not inferior(
                self.table,
                greedy.state_hash,
                arm_of(candidate.action, candidate.parameters, planned(plan, candidate.action)),
            )
        ]
        allowed = [other for other in others if admissible(other)]
        if not allowed:
            return None
        chosen = allowed[self._random.randrange(len(allowed))]
        return msgspec.structs.replace(chosen, is_exploration=True, propensity=self._epsilon / len(allowed))

    def _answer(
        self, ticket: Ticket | None, state: SchedulingState, forecast: Forecast | None
    ) -> tuple[Recommendation, Plan, list[Candidate], Recommendation]:
        situation = self._situations.of(state, forecast)
        plan, candidates = situation.plan, situation.candidates
        last_change = self._last_change()
        if last_change is not None:
            candidates = self.planner.resting(candidates, self._now(), last_change)
        base = self._baseline(ticket, state, forecast)
        table, version, said = self.table, self.version, situation.said
        # Read before anything is made of them: what changes meanwhile is noticed the next time.
        trials, row = table.trials, table.rows.get(situation.key, _NOTHING)
        if (
            said is not None
            and candidates is situation.candidates
            and said.table is table
            and said.row is row
            and said.trials == trials
            and said.version == version
            and (said.base is base or said.base == base)
        ):
            return said.recommendation, plan, candidates, base
        made = self._made(situation.key, row, plan, candidates, base)
        if candidates is situation.candidates:
            situation.said = Said(base, table, trials, row, version, made)
        return made, plan, candidates, base

    def _made(
        self, key: str, row: Mapping[str, Cell], plan: Plan, candidates: list[Candidate], base: Recommendation
    ) -> Recommendation:
        if plan.need is None:
            # Without metrics there is no plan: the rules know best.
            chosen = Candidate(base.action, dict(base.parameters))
        else:
            chosen = self._choose(row, plan, candidates, base) if row and self._deviate else candidates[0]
        alternatives = len(candidates) > 1 or candidates[0].action is not chosen.action
        propensity = 1.0 - self._epsilon if alternatives and self.explores else 1.0
        own = chosen is candidates[0]
        return self._recommendation(key, row, plan, chosen, base, propensity, own=own)

    def _choose(
        self, row: Mapping[str, Cell], plan: Plan, candidates: list[Candidate], base: Recommendation
    ) -> Candidate:
        """The planner's action; another candidate or the rules' where the evidence is for it."""
        planned = self.planner.planned
        base_arm = arm_of(base.action, base.parameters, planned(plan, base.action))
        arms = [arm_of(each.action, each.parameters, planned(plan, each.action)) for each in candidates]
        best = preferred(row, arms, base_arm)
        return Candidate(base.action, dict(base.parameters)) if best is None else candidates[best]

    def _recommendation(
        self,
        key: str,
        row: Mapping[str, Cell],
        plan: Plan,
        chosen: Candidate,
        base: Recommendation,
        propensity: float = 1.0,
        *,
        own: bool,
    ) -> Recommendation:
        parameters: Mapping[str, int | float | str] = chosen.parameters
        improvement: float | None = None
        if _same(chosen, base):
            # The rules' own action cannot be worse. Weights and strategies are theirs: nothing here tells two apart.
            parameters = {**parameters, **base.parameters}
            sure = 1.0 if sum([cell.visits for cell in row.values()]) >= MIN_VISITS else UNSEEN
            improvement = 0.0
        elif not row:
            sure = UNSEEN
        else:
            planned = self.planner.planned
            arm = arm_of(chosen.action, parameters, planned(plan, chosen.action))
            base_arm = arm_of(base.action, base.parameters, planned(plan, base.action))
            mine, rules = row.get(arm), row.get(base_arm)
            sure = confidence(self.table, key, arm, base_arm, planned=own)
            if mine is not None and rules is not None and mine.visits and rules.visits:
                improvement = value(mine, self._learning_rate) - value(rules, self._learning_rate)
        return Recommendation(
            action=chosen.action,
            parameters=parameters,
            confidence=sure,
            justification=explain(plan, chosen.action, parameters),
            expected_improvement=improvement,
            risk_score=1.0 - sure,
            propensity=propensity,
            policy_version=self.version,
            state_hash=key,
            source="policy",
        )

    # In the background.

    def learn(self, experience: Experience) -> None:
        """Update from one executed step. The same `decision_id` again, or a reward that is no number, changes nothing.

        A `next_state` of None ends the episode: the target is the reward alone.
        """
        with self._lock:
            if not math.isfinite(experience.reward) or experience.decision_id in self._seen:
                self._ignored += 1
                return
            self._seen[experience.decision_id] = None
            if len(self._seen) > _REMEMBERED_IDS:
                self._seen.popitem(last=False)
            self.steps.apply(self.table, experience)
            self._learned_at = self._now()
            if not self._autosave or self._handed_over:
                return
            self._pending.append(experience)
            if len(self._pending) % self._interval == 0:
                try:
                    self._save()
                except ModelError as error:
                    _log.error("%s", error)
                    # Still in memory's table; after this much only a takeover of another's file would forget them.
                    del self._pending[: max(0, len(self._pending) - _MOST_PENDING)]

    def refresh(self) -> None:
        """Take over the file when another process (or `q-table reset`) wrote it; keeps what was learned since.

        Raises `ModelError` when the file is unusable; the table in memory then stays.
        """
        before = self.planner.model
        self.planner.refresh()
        if self.planner.model is not before:
            self._situations = Situations(self.planner)
            if self.planner.model is not None:
                self._on_calibration(self.planner.model)
        if self._handed_over:
            return
        with self._lock:
            found = stamp(self.path)
            if found is None or found == self._stamp:
                return
            try:
                self._take_over()
            except ModelError as error:
                self._problem, self._corrupt, self._stamp = str(error), True, found
                raise

    def _take_over(self) -> None:
        found = stamp(self.path)
        self._rebuild(QTable.load(self.path))
        self._stamp, self._problem, self._corrupt = found, "", False

    def _rebuild(self, table: QTable) -> None:
        """This table, with what this process has learned since on top."""
        for experience in self._pending:
            self.steps.apply(table, experience)
        self.table, self._forked = table, False
        self.version = table.version

    def save(self) -> None:
        """Make everything learned so far durable. Raises `ModelError` when the file cannot be written."""
        with self._lock:
            self._save()

    def hand_over(self) -> None:
        """From now on somebody else sees to table and file (`take`, `steps.apply`): `refresh` only asks the planner.

        Nothing must wait to be saved.
        """
        self._handed_over = True

    def take(self, table: QTable) -> None:
        """Serve from this table, which whoever it was handed over to brings up to date."""
        self.table, self.version = table, table.version
        self._problem, self._corrupt = "", False

    def _save(self) -> None:
        if self._handed_over:
            return
        try:
            with file_lock(self.path):
                if stamp(self.path) not in (None, self._stamp) or self._corrupt or (self._forked and self._autosave):
                    self._merge_or_set_aside()
                self.table.save(self.path)
                self._stamp = stamp(self.path)
        except OSError as error:
            self._problem = f"{self.path}: cannot be written ({error.strerror or error}); free space or fix permissions"
            raise ModelError(self._problem) from None
        self._pending.clear()
        self._problem = ""
        self.version = self.table.version

    def _merge_or_set_aside(self) -> None:
        """Another process wrote: learn our steps on top of its table. What it left is unusable: keep it beside."""
        if not self._autosave:
            # Pre-training keeps no list of its (many) steps, so its table goes in whole and the other stays beside.
            if self._corrupt:
                _log.error("%s. It is kept as %s.", self._problem, set_aside(self.path))
                self._corrupt = False
                return
            aside = set_aside(self.path, "superseded")
            _log.warning("%s changed during pre-training; what was there is kept as %s.", self.path, aside)
            return
        try:
            self._take_over()
        except FileNotFoundError:
            if self._forked:
                self._rebuild(QTable())
        except ModelError as error:
            aside = set_aside(self.path)
            _log.error("%s. It is kept as %s.", error, aside)
        self._corrupt = False

    def health(self) -> Health:
        """Not ok while the Q-table cannot be read or written, or the calibration cannot be used."""
        table, problem = self.table, "; ".join(filter(None, (self._problem, self.planner.problem)))
        detail = f"{len(table)} states, {table.updates} updates, {len(self._pending)} not saved yet"
        if self._learned_at is not None:
            detail += f", last learned {max(0.0, self._now() - self._learned_at):.0f} s ago"
        if self._ignored:
            detail += f", {self._ignored} ignored (repeated or without a reward)"
        if not table.overall:
            detail += f", {NO_TRIALS}"
        detail += ", planner calibrated" if self.planner.model is not None else ", planner not calibrated"
        return Health(component="policy", ok=not problem, detail=f"{problem}; {detail}" if problem else detail)


def _same(chosen: Candidate, base: Recommendation) -> bool:
    """Whether the two would be executed alike."""
    if chosen.action is not base.action:
        return False
    return chosen.action not in POOL_ACTIONS or (
        chosen.parameters.get("target_workers") == base.parameters.get("target_workers")
    )
