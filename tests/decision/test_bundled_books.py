"""The books that ship: what they do, that they hold still in a steady state, and that their schema is up to date."""

from __future__ import annotations

import datetime as dt
import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.decision.guards import Limits
from nhm_sched_plugin.decision.rulebook import RuleBook, resolve_rule_book
from nhm_sched_plugin.decision.rulebook_model import json_schema
from nhm_sched_plugin.settings import LimitSettings, bundled
from nhm_sched_plugin.types import Action, Forecast, Recommendation, SchedulingState

NAMES = ("default", "conservative")
STEADY = {
    "queue_depth": 0.0,
    "active_workers": 10.0,
    "avg_task_duration_ms": 60_000.0,  # ten workers do 600 tickets an hour
    "sla_compliance_rate": 0.99,
    "resource_cpu_avg": 0.65,
}


@pytest.fixture(scope="module", params=NAMES)
def book(request: pytest.FixtureRequest) -> RuleBook:
    return RuleBook.load(resolve_rule_book(request.param))


@pytest.fixture(scope="module")
def default() -> RuleBook:
    return RuleBook.load(resolve_rule_book("default"))


@pytest.fixture(scope="module")
def conservative() -> RuleBook:
    return RuleBook.load(resolve_rule_book("conservative"))


def ask(book: RuleBook, volume: float | None = 350.0, **changes: Any) -> Recommendation:
    state = SchedulingState(**{**STEADY, **changes})
    load = None
    if volume is not None:
        now = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
        load = Forecast(horizon_minutes=60, predicted_volume=volume, confidence=0.8, generated_at=now)
    return book.evaluate(None, state, load, "below_volume_threshold", 1.0e9)


def target(answer: Recommendation) -> Any:
    return answer.parameters["target_workers"]


def test_every_bundled_book_is_listed_here() -> None:
    assert {file.stem for file in bundled("fallback").glob("*.yaml")} == set(NAMES)


def test_the_schema_file_is_up_to_date() -> None:
    command = [sys.executable, "-m", "nhm_sched_plugin.decision.rulebook"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    on_disk = (bundled("fallback") / "rulebook.schema.json").read_text(encoding="utf-8")
    assert on_disk == printed, f"run: {' '.join(command[1:])} > fallback/rulebook.schema.json"
    assert json.loads(on_disk) == json_schema()


def test_the_schema_names_every_action_and_refuses_unknown_keys() -> None:
    schema = json_schema()
    assert schema["$defs"]["Action"]["enum"] == [action.value for action in Action]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["RuleModel"]["required"] == ["name", "when", "action"]


def test_a_pool_that_fits_its_load_is_left_alone(book: RuleBook) -> None:
    answer = ask(book)
    assert (answer.action, answer.source) == (Action.NO_ACTION, "otherwise")


def test_a_backlog_adds_workers_that_clear_it(default: RuleBook, conservative: RuleBook) -> None:
    answer = ask(default, queue_depth=100.0)
    assert (answer.action, answer.source) == (Action.INCREASE_WORKER_POOL, "backlog")
    assert target(answer) == 20  # ten stay busy, and 100 minutes of work in ten minutes take ten more
    assert answer.justification.startswith("100 tickets wait for 10 workers")
    assert target(ask(conservative, queue_depth=100.0)) == 30


def test_a_backlog_is_a_wait_and_not_a_count(default: RuleBook) -> None:
    """Eight tickets of five seconds are nothing for ten workers; eight of ten minutes are."""
    assert ask(default, volume=4000.0, queue_depth=8.0, avg_task_duration_ms=5000.0).action == Action.NO_ACTION
    assert ask(default, volume=35.0, queue_depth=8.0, avg_task_duration_ms=600_000.0).source == "backlog"


def test_a_backlog_counts_even_when_little_else_is_known(book: RuleBook) -> None:
    state = SchedulingState(queue_depth=50, active_workers=10)
    answer = book.evaluate(None, state, None, "forecast_unavailable", 1.0e9)
    assert (answer.action, answer.source) == (Action.INCREASE_WORKER_POOL, "backlog-of-unknown-length")
    assert target(answer) > 10


def test_an_empty_pool_with_a_queue_gets_workers(book: RuleBook) -> None:
    answer = ask(book, queue_depth=5.0, active_workers=0.0, resource_cpu_avg=None)
    assert answer.action == Action.INCREASE_WORKER_POOL
    assert target(answer) >= 1


def test_a_forecast_above_capacity_scales_ahead_by_littles_law(default: RuleBook, conservative: RuleBook) -> None:
    answer = ask(default, volume=600.0)
    assert (answer.action, answer.source) == (Action.PREEMPTIVE_SCALING, "forecast-above-capacity")
    assert target(answer) == 13  # 600 tickets of a minute keep 10 workers busy; 10 / 0.8 = 12.5
    assert "13 run them at 80 % utilisation, 10 are there" in answer.justification
    assert ask(default, volume=480.0).action == Action.NO_ACTION  # exactly 80 %
    assert target(ask(conservative, volume=600.0)) == 17


def test_a_saturated_pool_grows_before_a_queue_builds_up(default: RuleBook, conservative: RuleBook) -> None:
    for book, volume in ((default, None), (conservative, None), (conservative, 10.0)):
        answer = ask(book, volume=volume, resource_cpu_avg=0.97)
        assert answer.action == Action.INCREASE_WORKER_POOL
        assert target(answer) >= 12
    assert ask(default, volume=350.0, resource_cpu_avg=0.97).action == Action.NO_ACTION  # a busy minute, by chance


def test_a_low_sla_raises_priority_weights(book: RuleBook) -> None:
    answer = ask(book, sla_compliance_rate=0.9)
    assert (answer.action, answer.source) == (Action.ADJUST_PRIORITY_WEIGHTS, "sla-low")
    assert answer.parameters == {"critical": 4.0, "high": 2.0, "medium": 1.0, "low": 0.5}
    assert "90.0%" in answer.justification


def test_an_idle_pool_shrinks_carefully(default: RuleBook) -> None:
    answer = ask(default, volume=100.0, resource_cpu_avg=0.2, active_workers=50.0)
    assert (answer.action, answer.source, target(answer)) == (Action.DECREASE_WORKER_POOL, "pool-too-large", 45)
    assert target(ask(default, volume=100.0, resource_cpu_avg=0.2)) == 9  # at least one
    # Five expected busy: 5 + 2 sqrt(5) = 9.5 stay, so eleven may become ten, and ten stay ten.
    assert target(ask(default, volume=300.0, resource_cpu_avg=0.2, active_workers=11.0)) == 10
    assert ask(default, volume=300.0, resource_cpu_avg=0.2, active_workers=10.0).action == Action.NO_ACTION


@pytest.mark.parametrize(
    "held",
    [
        {"queue_depth": 2.0, "avg_task_duration_ms": 100.0},  # something waits
        {"resource_cpu_avg": None},  # a forecast alone
        {"resource_cpu_avg": 0.55},  # busy enough
        {"volume": 400.0},  # expected to be busy
        {"active_workers": 1.0, "volume": 0.0},  # the last one
        {"queue_depth": None},
        {"sla_compliance_rate": 0.5},
    ],
)
def test_what_keeps_an_idle_pool_from_shrinking(default: RuleBook, held: dict[str, Any]) -> None:
    assert ask(default, **{"volume": 100.0, "resource_cpu_avg": 0.2}).action == Action.DECREASE_WORKER_POOL
    assert ask(default, **{"volume": 100.0, "resource_cpu_avg": 0.2, **held}).action != Action.DECREASE_WORKER_POOL


def test_without_a_forecast_only_a_clearly_idle_pool_shrinks(default: RuleBook) -> None:
    assert ask(default, volume=None, resource_cpu_avg=0.2).action == Action.NO_ACTION  # two busy of ten: may be chance
    assert ask(default, volume=None, resource_cpu_avg=0.45, active_workers=50.0).action == Action.NO_ACTION
    answer = ask(default, volume=None, resource_cpu_avg=0.2, active_workers=50.0)
    assert (answer.action, answer.source) == (Action.DECREASE_WORKER_POOL, "pool-idle-without-forecast")
    assert target(answer) == 45


def test_the_conservative_book_never_removes_workers(conservative: RuleBook) -> None:
    draw = random.Random(7)
    for _ in range(2000):
        changes = {name: draw.choice([None, 0.0, draw.uniform(0, 1), draw.uniform(0, 1000)]) for name in STEADY}
        answer = ask(conservative, volume=draw.choice([None, draw.uniform(0, 5000)]), **changes)
        assert answer.action != Action.DECREASE_WORKER_POOL
        if "target_workers" in answer.parameters:
            assert target(answer) >= (changes["active_workers"] or 0)


class Pool:
    """A pool in one-second steps: Poisson arrivals, exponential service, two minutes until a new worker starts."""

    STARTUP_S = 120

    def __init__(self, workers: int, per_hour: float, duration_s: float, seed: int) -> None:
        self.draw = random.Random(seed)
        self.workers, self.per_hour, self.duration_s = workers, per_hour, duration_s
        self.starting: list[int] = []
        self.second = self.queue = self.busy = self.busy_seconds = 0

    def minute(self) -> SchedulingState:
        self.busy_seconds = 0
        capacity_seconds = 0
        for _ in range(60):
            self.second += 1
            self.workers += sum(ready <= self.second for ready in self.starting)
            self.starting = [ready for ready in self.starting if ready > self.second]
            self.queue += self.draw.random() < self.per_hour / 3600
            self.busy -= sum(self.draw.random() < 1 / self.duration_s for _ in range(self.busy))
            started = min(self.queue, max(0, self.workers - self.busy))
            self.queue, self.busy = self.queue - started, self.busy + started
            self.busy_seconds += self.busy
            capacity_seconds += self.workers
        return SchedulingState(
            queue_depth=self.queue,
            active_workers=self.workers,
            avg_task_duration_ms=self.duration_s * 1000,
            sla_compliance_rate=0.99,
            resource_cpu_avg=min(1.0, self.busy_seconds / capacity_seconds),
        )

    def apply(self, answer: Recommendation) -> int:
        """+1 when workers were ordered, -1 when some were removed, else 0."""
        if "target_workers" not in answer.parameters:
            return 0
        change = target(answer) - self.workers - len(self.starting)
        if answer.action == Action.DECREASE_WORKER_POOL:
            self.workers = target(answer)
            return -1
        self.starting += [self.second + self.STARTUP_S] * max(0, change)
        return 1 if change > 0 else 0


def run(book: RuleBook, pool: Pool, hours: int, noise: float | None) -> tuple[list[int], list[int]]:
    """Sizes and changes, minute by minute. The forecast is right on average and off by `noise`; None: there is none."""
    limits = Limits(LimitSettings(min_workers=1, max_workers=500))
    sizes, changes = [], []
    last: float | None = None
    load = None
    for minute in range(hours * 60):
        if minute % 60 == 0 and noise is not None:
            volume = pool.per_hour * pool.draw.uniform(1 - noise, 1 + noise)
            generated = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
            load = Forecast(horizon_minutes=60, predicted_volume=volume, confidence=0.8, generated_at=generated)
        state = pool.minute()
        now = float(pool.second)
        answer = limits.restrain(None, state, book.evaluate(None, state, load, "shadow", now), now, last)
        changes.append(pool.apply(answer))
        last = now if changes[-1] else last
        sizes.append(pool.workers)
    return sizes, changes


def reversals(changes: list[int]) -> int:
    """How often workers were ordered right after some were removed, or the reverse."""
    return sum(one != other for one, other in pairwise(change for change in changes if change))


@pytest.mark.parametrize("start", [2, 40])
@pytest.mark.parametrize(("per_hour", "duration_s"), [(480, 60), (1800, 30), (300, 240), (120, 60)])
def test_the_default_book_does_not_flap_in_a_steady_state(
    default: RuleBook, start: int, per_hour: int, duration_s: int
) -> None:
    pool = Pool(start, per_hour, duration_s, seed=start)
    sizes, changes = run(default, pool, hours=14, noise=0.05)
    assert reversals(changes[120:]) <= 2  # in twelve hours of chance
    busy = per_hour / 3600 * duration_s
    assert all(busy < size <= busy / 0.6 + 3 * busy**0.5 for size in sizes[120:]), sizes[120:]
    assert pool.queue < pool.workers


@pytest.mark.parametrize(("per_hour", "duration_s"), [(480, 60), (1800, 30), (300, 240)])
def test_it_hardly_turns_without_a_forecast(default: RuleBook, per_hour: int, duration_s: int) -> None:
    pool = Pool(40, per_hour, duration_s, seed=40)
    sizes, changes = run(default, pool, hours=14, noise=None)
    assert reversals(changes[120:]) <= 6
    assert max(sizes[120:]) <= 45
    assert pool.queue < pool.workers


def test_the_default_book_holds_perfectly_still_without_chance(default: RuleBook) -> None:
    for workers in (9, 10, 11, 12, 13):
        for _ in range(3):
            answer = ask(default, volume=432.0, active_workers=float(workers), resource_cpu_avg=7.2 / workers)
            assert answer.action == Action.NO_ACTION, workers


def test_books_and_schema_are_in_one_place() -> None:
    folder = Path(bundled("fallback"))
    for name in NAMES:
        assert (
            (folder / f"{name}.yaml").read_text().startswith("# yaml-language-server: $schema=./rulebook.schema.json")
        )
