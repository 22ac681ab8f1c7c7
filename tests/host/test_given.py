"""What hosts really give: mappings, NumPy scalars, numbers as names, NaN. All of it reaches the database."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState, Ticket, calculate_reward
from nhm_sched_plugin.given import as_outcome
from nhm_sched_plugin.store.rows import outcome_row
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import RewardedOutcome

WHEN = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def plain(outcome: Any) -> tuple[Outcome, list[str]]:
    unusable: list[str] = []
    return as_outcome(outcome, unusable.append), unusable


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"ticket_id": 7, "worker_id": 3}, {"ticket_id": "7", "worker_id": "3"}),
        ({"actual_duration_ms": np.int64(5), "sla_met": np.bool_(True)}, {"actual_duration_ms": 5.0, "sla_met": True}),
        ({"sla_met": 0, "resource_cpu": Decimal("0.5")}, {"sla_met": False, "resource_cpu": 0.5}),
        ({"finished_at": WHEN}, {"finished_at": WHEN.timestamp()}),
        ({"state_after": {"queue_depth": 3}}, {"state_after": SchedulingState(queue_depth=3.0)}),
        (
            {"state_after": SchedulingState(queue_depth=np.int64(3), features={"a": np.float32(1), "b": np.nan})},
            {"state_after": SchedulingState(queue_depth=3.0, features={"a": 1.0})},
        ),
    ],
)
def test_values_of_other_types_are_made_plain(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found, unusable = plain(Outcome(decision_id="d", **given))
    assert {name: getattr(found, name) for name in expected} == expected
    assert all(type(getattr(found, name)) is type(value) for name, value in expected.items())
    assert unusable == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actual_duration_ms", float("nan")),
        ("actual_duration_ms", float("inf")),
        ("actual_duration_ms", -5.5),
        ("actual_duration_ms", "5000"),
        ("resource_memory", float("nan")),
        ("sla_met", "yes"),
        ("sla_met", np.zeros(3)),
        ("finished_at", float("nan")),
        ("finished_at", 1.8e12),  # milliseconds
        ("state_after", "busy"),
    ],
)
def test_a_value_that_is_none_of_its_kind_counts_as_unknown(name: str, value: Any) -> None:
    found, unusable = plain(Outcome(decision_id="d", **{name: value}))
    assert getattr(found, name) is None
    assert unusable == [name]


def test_a_plain_outcome_is_handed_on_as_it_is() -> None:
    outcome = Outcome(decision_id="d", ticket_id="t", actual_duration_ms=5.0, sla_met=True, finished_at=1.0,
                      state_before=SchedulingState(queue_depth=1.0), state_after=SchedulingState())  # fmt: skip
    assert plain(outcome)[0] is outcome


def test_no_outcome_is_lost_to_its_types(tmp_path: Path) -> None:
    settings = {"data_dir": str(tmp_path), "metrics": {"enabled": False}}
    with SchedulerHost.from_config(settings, clock=lambda: 1000.0) as host:
        ids = [host.decide(Ticket(ticket_id=str(i)), SchedulingState(sla_compliance_rate=0.8)).decision_id
               for i in range(4)]  # fmt: skip
        after = {"sla_compliance_rate": np.float32(0.9)}
        host.finished(Outcome(decision_id=ids[0], ticket_id=0, sla_met=np.bool_(True), state_after=after))  # type: ignore[arg-type]
        host.finished({"decision_id": ids[1], "finished_at": float("nan"), "note": "not ours"})
        host.finished(Outcome(decision_id=ids[2], status=None, sla_met=1))  # type: ignore[arg-type]
        host.finished(Outcome(decision_id=ids[3], actual_duration_ms=float("nan")))
        for nothing in (None, "x", {"ticket_id": "t"}):
            host.finished(nothing)  # type: ignore[arg-type]
        assert host.flush()
    spool = Spool(tmp_path / "spool")
    try:
        records = [item.record for batch in spool.batches(100) for item in batch.records]
        assert spool.quarantined_count() == 0
    finally:
        spool.close()
    ends = {record.outcome.decision_id: record for record in records if isinstance(record, RewardedOutcome)}
    assert list(ends) == ids
    first, second, third, fourth = (ends[one] for one in ids)
    assert first.reward == pytest.approx(0.4 * 0.5)
    assert second.outcome.finished_at == 1000.0
    assert (third.outcome.status, third.outcome.sla_met) == ("unknown", True)
    assert fourth.outcome.actual_duration_ms is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_a_hook_or_an_older_spool_brings_spoils_no_mean(value: float) -> None:
    """Such outcomes do not come through the host's door."""
    outcome = Outcome(decision_id="d", actual_duration_ms=value, resource_cpu=value, resource_memory=value)
    row = outcome_row(RewardedOutcome(outcome=outcome, reward=None), 1000.0)
    assert not any(each == value or each != each for each in row if type(each) is float)
    kept = msgspec.structs.replace(outcome, actual_duration_ms=7.5)
    assert 7.5 in outcome_row(RewardedOutcome(outcome=kept, reward=None), 1000.0)


def test_a_databases_decimals_are_numbers() -> None:
    before, after = {"sla_compliance_rate": Decimal("0.8")}, {"sla_compliance_rate": Decimal("0.9")}
    assert calculate_reward(before, after) == pytest.approx(0.2)


def test_what_comes_after_the_end_is_counted(tmp_path: Path) -> None:
    host = SchedulerHost.from_config({"data_dir": str(tmp_path), "metrics": {"enabled": False}})
    host.close()
    decision = host.decide(Ticket(ticket_id="t"), SchedulingState())
    host.finished(Outcome(decision_id=decision.decision_id))
    counted = host.metrics.registry.get_sample_value
    assert counted("nhm_sched_records_dropped_total", {"cause": "closed"}) == 2
    assert counted("nhm_sched_records_total", {"state": "dropped"}) == 2
