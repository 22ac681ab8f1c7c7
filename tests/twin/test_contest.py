"""Several policies on several seeds, end to end on small made loads."""

from __future__ import annotations

import importlib
import json
import random
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest

from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.twin.bench import Bench, Rules
from nhm_sched_plugin.twin.classes import TicketClass
from nhm_sched_plugin.twin.contest import interval, standings
from nhm_sched_plugin.twin.loads import LOADS, Load, load
from nhm_sched_plugin.twin.replay import replay
from nhm_sched_plugin.twin.results import PolicyResult, SeedResult
from nhm_sched_plugin.twin.summary import report_data
from nhm_sched_plugin.twin.traces import Trace

DAY = 86_400.0
DOCS = Path(__file__).parents[2] / "docs" / "rivals.md"


def busy(seed: int, days: int = 3) -> Trace:
    """Forty tickets an hour, and now and then thirty more at once."""
    draw = random.Random(seed)
    arrivals = [draw.uniform(0, days * DAY) for _ in range(960 * days)]
    for _ in range(6 * days):
        begins = draw.uniform(0, days * DAY - 600)
        arrivals += [begins + draw.uniform(0, 120) for _ in range(30)]
    return Trace(arrivals, [draw.expovariate(1 / 150) for _ in arrivals], name="busy", start=0.0, end=days * DAY)


BUSY = Load("busy", "", busy, cut=2 * DAY)


def test_a_replay_does_not_depend_on_the_machine(tmp_path: Path) -> None:
    """Decisions may take what they take: with the user's budget a busy machine would let the rules decide."""
    train, test = busy(0).split(0.7)
    settings = load_settings({"data_dir": tmp_path / "users", "optimizer": {"decision_budget_ms": 1}})
    bench = Bench(settings, train, test, tmp_path, Rules(60.0, 120.0, 60.0, 0.95, 0), 0)
    assert bench.settings.optimizer.decision_budget_ms == 10_000
    assert settings.optimizer.decision_budget_ms == 1


def test_several_seeds_are_compared_in_pairs(tmp_path: Path) -> None:
    names = ("rules", "hpa", "keda", "oracle")
    told: list[tuple[str, float]] = []
    report = replay(
        BUSY,
        names,
        {"data_dir": tmp_path},
        tick_s=60.0,
        seeds=3,
        frontier_seeds=2,
        sla_target=0.9,
        progress=lambda what, share: told.append((what, share)),
    )
    assert (report.start, report.end, report.reference) == (2 * DAY, 3 * DAY, "rules")
    assert [found.policy for found in report.tuned] == ["hpa", "keda"]
    assert [result.seed for result in report.seeds] == [0, 1, 2]
    assert len({result.oracle_hours for result in report.seeds}) == 3, "each seed has tickets of its own"
    assert [len(result.frontiers) for result in report.seeds] == [2, 2, 0]
    assert [rival.policy for rival in report.frontiers] == ["hpa", "keda"]
    rules, hpa, _, oracle = report.policies
    singles = [{policy.name: policy for policy in result.policies} for result in report.seeds]
    assert hpa.sla == pytest.approx(sum(single["hpa"].sla for single in singles) / 3)
    assert rules.differences == {}
    difference = hpa.differences["sla"]
    assert difference == interval([single["hpa"].sla - single["rules"].sla for single in singles])
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low <= difference.mean <= difference.high
    assert hpa.cost == pytest.approx(
        sum(
            single["hpa"].worker_hours / result.oracle_hours
            for single, result in zip(singles, report.seeds, strict=True)
        )
        / 3
    )
    assert (oracle.cost, oracle.sla, oracle.wait_p99_s) == (1.0, 1.0, 0.0)
    assert oracle.gap_closed is not None
    assert oracle.gap_closed.mean == pytest.approx(1.0)
    assert rules.gap_closed is not None
    assert rules.gap_closed.mean == 0.0
    assert hpa.equal_sla is not None
    assert hpa.equal_sla.low is not None
    assert len(oracle.hours) == 24
    assert any(what.startswith("tune") for what, _ in told)
    assert any(what.startswith("3/3 ") for what, _ in told)
    assert msgspec.json.decode(json.dumps(report.to_dict()), type=type(report)) == report
    assert list(tmp_path.iterdir()) == []
    data = report_data(report)
    assert data.seeds == 3
    assert data.policies[1].differences["sla_pct"].mean == pytest.approx(100 * difference.mean)
    assert data.frontiers[0].points[0][0] < data.frontiers[0].points[-1][0]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    options = {"tick_s": 60.0, "seeds": 2, "frontier_seeds": 1}
    # What is made by a function of the package is found by other processes; one of a test's module is not everywhere.
    small = Load("smooth", "", partial(_part, LOADS["smooth"].make))
    alone, shared = (
        replay(small, ("keda", "headroom"), {"data_dir": tmp_path}, jobs=jobs, **options) for jobs in (1, 2)
    )
    assert [(p.sla, p.worker_hours) for p in alone.policies] == [(p.sla, p.worker_hours) for p in shared.policies]
    assert alone.tuned == shared.tuned
    assert alone.frontiers == shared.frontiers


def _part(make: partial[Trace], seed: int) -> Trace:
    trace = make(seed)
    return trace.slice(trace.start, trace.start + DAY / 8)


def test_tickets_that_are_not_drawn_are_not_replayed_again(tmp_path: Path) -> None:
    report = replay(busy(1), ("keda", "static"), {"data_dir": tmp_path}, tick_s=300.0, seeds=3, train_fraction=2 / 3)
    first = report.seeds[0].policies
    assert all(result.policies == first for result in report.seeds), "the very same, with the time that it took"
    assert report.policies[1].differences["cost"].low == report.policies[1].differences["cost"].high
    assert any("nothing about these tickets is drawn" in note for note in report.notes)


def test_a_policy_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    (tmp_path / "my_policies.py").write_text(example[1] + "\nnumber = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_policies", raising=False)
    report = replay(BUSY, ("my_policies:make", "headroom"), {"data_dir": tmp_path / "data"}, tick_s=300.0)
    assert report.reference == "my_policies:make"
    assert report.policies[0].name == "my_policies:make"
    assert report.policies[0].sla != report.policies[1].sla
    for name, told in (
        ("my_policies:nothing", "my_policies has no 'nothing'"),
        ("my_policies:number", "number is no function that takes a Scene"),
        ("no_such_module:make", "cannot import 'no_such_module'"),
    ):
        with pytest.raises(ValueError, match=told):
            replay(BUSY, (name,))
    for body, told in (
        ("1 / 0", "'theirs:make': cannot import 'theirs' (ZeroDivisionError: division by zero, theirs.py:"),
        ("def make(scene): return None", "'theirs:make' made a NoneType without watches_tickets, on_arrival"),
        ("def make(): ...", "'theirs:make' cannot be made (TypeError: make() takes 0"),
        ("def make(scene): return Raw(float('nan'))", "'theirs:make' asked for nan workers at 1970-01-03"),
        ("def make(scene): return Raw(3.7)", "'theirs:make' asked for 3.7 workers at 1970-01-03"),
        ("def make(scene): return Raw('8')", "'theirs:make' asked for '8' workers at 1970-01-03"),
        ("def make(scene): return Mine('mine', scene)", "'theirs:make' failed (KeyError: 'mood', theirs.py:15)"),
        ("def make(scene): return Vague('mine', scene)", "'theirs:make' failed (TypeError: 'float' object"),
    ):
        (tmp_path / "theirs.py").write_text(THEIRS + body + "\n")
        monkeypatch.delitem(sys.modules, "theirs", raising=False)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # of a file as long, made in the same second
        importlib.invalidate_caches()
        with pytest.raises(ValueError, match=re.escape(told)):
            replay(BUSY, ("theirs:make",), {"data_dir": tmp_path / "data"}, tick_s=300.0)


THEIRS = """
from nhm_sched_plugin.twin.rivals.base import Autoscaler

class Raw:
    name, watches_tickets = "raw", False
    def __init__(self, answer):
        self.answer = answer
    def on_arrival(self, *_): ...
    def on_finished(self, *_): ...
    def on_tick(self, state, now):
        return self.answer

class Mine(Autoscaler):
    def desired(self, state, now):
        return state.features["mood"]

class Vague(Autoscaler):
    def desired(self, state, now):
        return 3.7

"""


def test_each_type_by_its_own_wait() -> None:
    made = load("two-types")
    trace = made.make(0)
    short = trace.slice(trace.start, trace.start + DAY)
    limited = made._replace(make=partial(_same, short), cut=trace.start + DAY / 2)
    report = replay(limited, ("keda",), tick_s=60.0)
    by_class = report.policies[0].sla_by_class
    assert set(by_class) == {"fast", "slow"}
    assert min(by_class.values()) <= report.policies[0].sla <= max(by_class.values())
    strict = limited._replace(
        classes=(TicketClass("fast", 0.0, task_type="fast"), TicketClass("slow", 1e9, task_type="slow"))
    )
    by_class = replay(strict, ("keda",), tick_s=60.0).policies[0].sla_by_class
    assert by_class["slow"] == 1.0
    assert by_class["fast"] < 1.0


def _same(trace: Trace, seed: int) -> Trace:
    return trace


def test_made_loads_are_drawn_for_each_seed() -> None:
    for name, made in LOADS.items():
        once, again, other = made.make(1), made.make(1), made.make(2)
        assert list(once.arrivals) == list(again.arrivals), name
        assert list(once.arrivals) != list(other.arrivals), name
        assert made.cut is not None
        assert once.start < made.cut < once.end
        assert 10 < once.load < 200
    with pytest.raises(ValueError, match="no load 'storm'; known: smooth, flash, regime, outage, two-types"):
        load("storm")


def test_a_knob_can_be_given(tmp_path: Path) -> None:
    report = replay(BUSY, ("keda=0.6", "keda=1"), {"data_dir": tmp_path}, tick_s=300.0, frontier_seeds=1)
    assert report.tuned == []
    half, one = report.policies
    assert half.worker_hours > 1.2 * one.worker_hours
    (rival,) = report.frontiers
    assert {point.knob: point.worker_hours for point in rival.points}[0.6] == half.worker_hours
    assert half.equal_sla is None, "there is no other rival to compare with"
    for name, told in (
        ("keda=many", "policy keda=many: could not convert"),
        ("keda=-1", "tickets per worker is -1.0; it must be a number above 0"),
        ("rules=1", "'rules' has no knob; rivals with one: hpa"),
    ):
        with pytest.raises(ValueError, match=told):
            replay(BUSY, (name,))


def test_wrong_numbers() -> None:
    for wrong, told in (({"seeds": 0}, "seeds 0"), ({"jobs": 0}, "jobs 0"), ({"tick_s": 0.0}, "tick_s is 0.0")):
        with pytest.raises(ValueError, match=told):
            replay(BUSY, ("static",), **wrong)
    with pytest.raises(ValueError, match="no policy is named; known: plugin, planner, rules, hpa"):
        replay(BUSY, ())


def test_intervals_are_student_s() -> None:
    # Mean 3, standard deviation sqrt(2.5), t(4) = 2.7764: 3 +- 2.7764 x 1.5811 / sqrt(5).
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.low == pytest.approx(3 - 1.9632, abs=1e-4)
    assert found.high == pytest.approx(3 + 1.9632, abs=1e-4)
    assert interval([2.0]).low is None
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_a_gap_is_told_from_a_day_on() -> None:
    def result(name: str, sla: float, hours: float) -> PolicyResult:
        return PolicyResult(
            name=name, tickets=100, sla=sla, missed=0, worker_hours=hours, wait_mean_s=0, wait_p50_s=0, wait_p95_s=0,
            wait_p99_s=0, scale_events=0, reward_mean=0, decisions=[], reasons={}, hours=[], elapsed_s=0, finished=100,
            busy_hours=50,
        )  # fmt: skip

    policies = [result("plugin", 0.95, 150), result("rules", 0.9, 200), result("oracle", 1.0, 100)]
    seed = SeedResult(seed=0, tickets=100, oracle_hours=100, policies=policies)
    closed = standings([seed], "plugin", hours=24.0)[0].gap_closed
    assert closed is not None
    # SLA and cost half, efficiency 1/3 from 1/4 to 1/2; nobody finishes more.
    assert closed.mean == pytest.approx((0.4 * 0.5 + 0.2 / 3 + 0.1 * 0.5) / 0.7)
    assert standings([seed], "plugin", hours=23.0)[0].gap_closed is None
    alone = msgspec.structs.replace(seed, policies=policies[:2])
    assert standings([alone], "plugin", hours=24.0)[0].gap_closed is None, "without the oracle nobody knows"
