# ruff: noqa: S608 - the database is named by the fixtures
from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.store.drain import drain
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.rows import DECISION_COLUMNS, decision_row
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import Action, Decision, Outcome, RewardedOutcome, SchedulingState


def decision(name: str, **changes: Any) -> Decision:
    return Decision(**{"decision_id": name, "action": Action.PREEMPTIVE_SCALING, "decided_at": 1.5e9, **changes})


def outcome(name: str, reward: float | None = 0.25) -> RewardedOutcome:
    return RewardedOutcome(outcome=Outcome(decision_id=name, ticket_id="t"), reward=reward)


def answer(store: Store) -> dict[str, float | None]:
    rows = store.rows(f"SELECT decision_id, action, reward FROM {store.database}.scheduling_decisions")
    assert len(rows) == len({row[0] for row in rows}), "doubled"
    final = store.rows(f"SELECT decision_id, action, reward FROM {store.database}.scheduling_decisions FINAL")
    assert sorted(rows, key=str) == sorted(final, key=str)
    return {name: reward for name, _, reward in rows}


def test_everything_arrives_and_the_spool_is_empty(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([decision(f"d{n}") for n in range(12)])
    spool.append([outcome(f"d{n}", n / 10) for n in range(6)])
    seen: list[tuple[int, int | None]] = []
    result = drain(spool, store, batch=5, progress=lambda done, total: seen.append((done, total)))
    assert (result.delivered, result.decisions, result.outcomes) == (18, 12, 6)
    assert (result.remaining, result.quarantined) == (0, 0)
    assert seen == [(5, 18), (10, 18), (15, 18), (18, 18)]
    assert answer(store) == {f"d{n}": (n / 10 if n < 6 else None) for n in range(12)}
    assert drain(spool, store).delivered == 0


def test_a_crash_between_insert_and_acknowledgement_doubles_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append([decision("a"), outcome("a"), decision("b")])

    def power_cut(batch: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spool, "ack", power_cut)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            drain(spool, store)
    monkeypatch.undo()
    assert spool.pending() == 3
    assert answer(store) == {"a": 0.25, "b": None}
    assert drain(spool, store).remaining == 0
    assert answer(store) == {"a": 0.25, "b": None}
    store.command(f"OPTIMIZE TABLE {store.database}.scheduling_decisions_raw FINAL")
    assert answer(store) == {"a": 0.25, "b": None}


@pytest.mark.parametrize("seed", range(3))
def test_any_order_and_any_repetition_give_the_same_answer(store: Store, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    records: list[Decision | RewardedOutcome] = [decision(f"d{n}") for n in range(20)]
    records += [outcome(f"d{n}", float(n)) for n in range(15)]
    records += draw.choices(records, k=20)
    draw.shuffle(records)
    spool = Spool(tmp_path)
    spool.append(records)
    drain(spool, store, batch=draw.randint(1, 20))
    assert answer(store) == {f"d{n}": (float(n) if n < 15 else None) for n in range(20)}


def test_a_database_that_is_away_loses_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append([decision(str(n)) for n in range(6)])
    insert, calls = store.client.insert, 0

    def flaky(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError("connection refused")
        return insert(*args, **kwargs)

    monkeypatch.setattr(store.client, "insert", flaky)
    with pytest.raises(StoreError, match=r"insert scheduling_decisions_raw: connection refused"):
        drain(spool, store, batch=2)
    assert (spool.pending(), spool.quarantined_count()) == (4, 0)
    monkeypatch.undo()
    assert drain(spool, store).delivered == 4
    assert len(answer(store)) == 6


def test_a_table_that_is_missing_is_not_the_records_fault(bare: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([decision("a"), decision("b")])
    with pytest.raises(StoreError):
        drain(spool, bare)
    assert (spool.pending(), spool.quarantined_count()) == (2, 0)


def test_poison_goes_to_quarantine_with_its_reason_and_blocks_nothing(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(
        [
            decision("a"),
            decision("in the year 9999", decided_at=2.6e11),
            decision("b", vetoes=()),
            decision("text for a number", confidence="high"),
            outcome("a"),
        ]
    )
    result = drain(spool, store)
    assert (result.delivered, result.quarantined, result.remaining) == (3, 2, 0)
    assert answer(store) == {"a": 0.25, "b": None}
    reasons = {item.record_id: item.reason for item in spool.quarantined()}
    assert "decided_at = 260000000000.0" in reasons["in the year 9999"]
    assert "Expected `float | null`, got `str` - at `$.confidence`" in reasons["text for a number"]


def test_a_row_that_only_the_database_client_refuses_is_found_by_halving(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(record: Decision, created: float) -> list[Any]:
        row = list(decision_row(record, created))
        if record.decision_id == "d5":
            row[DECISION_COLUMNS.index("propensity")] = "much"
        return row

    monkeypatch.setattr("nhm_sched_plugin.store.drain.decision_row", careless)
    spool = Spool(tmp_path)
    spool.append([decision(f"d{n}") for n in range(9)])
    result = drain(spool, store)
    assert (result.delivered, result.quarantined) == (8, 1)
    assert set(answer(store)) == {f"d{n}" for n in range(9) if n != 5}
    assert [item.record_id for item in spool.quarantined()] == ["d5"]


def test_ended_tickets_are_logged_once_whichever_half_comes_last(store: Store, tmp_path: Path) -> None:
    now = time.time() - 3600
    spool = Spool(tmp_path)
    state = SchedulingState(queue_depth=7.0)
    made = [
        decision(f"d{n}", ticket_id=f"t{n}", task_type="x", decided_at=now, state=state if n else None)
        for n in range(3)
    ]
    ended = [
        RewardedOutcome(
            outcome=Outcome(decision_id=f"d{n}", ticket_id=f"t{n}", actual_duration_ms=5.4, sla_met=True), reward=None
        )
        for n in range(2)
    ]
    tick = RewardedOutcome(outcome=Outcome(decision_id="tick", status="tick"), reward=0.5)
    for order in ([*made, decision("tick", decided_at=now)], [*ended, tick], ended, made):
        spool.append(order)
        drain(spool, store, log_tickets=True)
    rows = store.rows(
        "SELECT toUnixTimestamp(timestamp), ticket_id, task_type, actual_duration_ms, status, sla_met, "
        f"queue_depth_at_start, decision_id FROM {store.database}.execution_logs ORDER BY ticket_id"
    )
    assert rows == [
        (int(now), "t0", "x", 5, "success", 1, None, "d0"),
        (int(now), "t1", "x", 5, "success", 1, 7.0, "d1"),
    ]
    spool.append([*ended, decision("late", ticket_id="t9", decided_at=now), outcome("late")])
    drain(spool, store, batch=1, log_tickets=True)
    assert store.counts()["execution_logs"] == 3
