# ruff: noqa: S608 - the database is named by the fixtures
"""Records that leave: erased everywhere, hashed from the start, exported whole."""

from __future__ import annotations

import csv
import datetime as dt
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow.parquet as pq
import pytest

from nhm_sched_plugin import SchedulerHost
from nhm_sched_plugin.errors import ConfigError, SpoolError, StoreError
from nhm_sched_plugin.pseudonyms import Pseudonyms, pseudonyms
from nhm_sched_plugin.settings import RecordingSettings
from nhm_sched_plugin.store import erase as erasing
from nhm_sched_plugin.store import export as exporting
from nhm_sched_plugin.store.drain import drain
from nhm_sched_plugin.store.erase import erase
from nhm_sched_plugin.store.export import export
from nhm_sched_plugin.store.frames import encode
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.segments import Segments
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import Decision, Outcome, RewardedOutcome

GONE, STAYS = "ticket-of-ada-4711", "ticket-of-bob-0815"
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def decision(name: str, ticket: str) -> Decision:
    return Decision(decision_id=name, ticket_id=ticket, decided_at=NOW.timestamp(), task_type="a")


def outcome(name: str, ticket: str | None) -> RewardedOutcome:
    return RewardedOutcome(outcome=Outcome(decision_id=name, ticket_id=ticket), reward=0.5)


def fill(store: Store, spool: Spool, hidden: Pseudonyms | None = None) -> None:
    """Both tickets in every place; the outcome in the spool says which only by its decision."""
    names = {ticket: hidden.of(ticket) if hidden else ticket for ticket in (GONE, STAYS)}
    for ticket, name in names.items():
        store.insert_decisions([(decision(f"d-{ticket[-4:]}", name), 1.0)])
        store.insert_outcomes([(outcome(f"d-{ticket[-4:]}", name), 1.0)])
        store.insert_execution_logs(pd.DataFrame({"timestamp": [NOW, NOW], "ticket_id": name, "task_type": "a"}))
        sample = {"timestamp": NOW, "service": "s", "metric_name": "m", "metric_value": 1.0, "labels": {"ticket": name}}
        store.insert_telemetry([sample])
        spool.append([outcome(f"s-{ticket[-4:]}", None), decision(f"s-{ticket[-4:]}", name)])
        spool.append([decision(f"q-{ticket[-4:]}", name)])


def test_a_ticket_is_erased_everywhere_and_the_others_stay(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    fill(store, spool)
    for day, ticket in ((1, GONE), (2, STAYS)):
        torn = encode(decision("d", ticket), 1.0)[:-20]
        (tmp_path / "spool" / f"spool-2026010{day}T000000Z.corrupt").write_bytes(b"\0" * 100 + torn + b"\0" * 100)

    counted = erase(store, spool.path, [GONE], dry_run=True)
    places = {place.place: place.found for place in counted}
    table = f"table {store.database}"
    assert places == {
        "spool spool.sqlite": 3,
        "damaged file spool-20260101T000000Z.corrupt": 1,
        f"{table}.scheduling_outcomes": 1,
        f"{table}.scheduling_decisions_raw": 1,
        f"{table}.execution_logs": 2,
        f"{table}.telemetry_metrics": 1,
    }
    assert all((place.removed, place.left) == (0, place.found) for place in counted)
    assert spool.pending() == 6

    done = erase(store, spool.path, [GONE])
    assert {place.place: place.removed for place in done} == places
    assert all(place.left == 0 for place in done)
    assert erase(store, spool.path, [GONE]) == []
    assert len(erase(store, spool.path, [STAYS], dry_run=True)) == 6
    assert (spool.pending(), store.counts()["execution_logs"]) == (3, 2)
    spool.close()
    for file in (tmp_path / "spool").iterdir():
        assert GONE.encode() not in file.read_bytes(), f"{file.name} still has its bytes"


def test_a_hashed_ticket_is_found_by_its_name(store: Store, tmp_path: Path) -> None:
    hidden = Pseudonyms(("ticket_id",), b"k" * 32)
    spool = Spool(tmp_path / "spool")
    fill(store, spool, hidden)
    assert erase(store, spool.path, [GONE]) == []
    done = erase(store, spool.path, [GONE], hidden=hidden)
    assert sum(place.removed for place in done) == 8
    assert all(place.left == 0 for place in done)


def test_names_that_try_to_be_sql_are_only_names(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    fill(store, spool)
    assert erase(store, spool.path, ["' OR 1=1 --", "%", ""], dry_run=False) == []
    assert store.counts()["execution_logs"] == 4


def test_a_record_without_a_decision_does_not_take_all_of_those_along(store: Store, tmp_path: Path) -> None:
    """Ingested history has an empty `decision_id` in every row, and a record in quarantine may have one too."""
    spool = Spool(tmp_path / "spool")
    history = pd.DataFrame({"timestamp": [NOW, NOW, NOW], "ticket_id": ["a", "b", ""], "task_type": "x"})
    store.insert_execution_logs(history)
    store.insert_telemetry(
        [{"timestamp": NOW, "service": "s", "metric_name": "m", "metric_value": 1.0, "labels": {"ticket": ""}}]
    )
    spool.append([decision("", GONE), outcome("", GONE), decision("", STAYS)])
    drain(spool, store)
    assert (spool.pending(), spool.quarantined_count()) == (0, 3)

    (done,) = erase(store, spool.path, [GONE, ""])
    assert (done.place, done.removed, done.left) == ("spool spool.sqlite", 2, 0)
    assert spool.quarantined_count() == 1
    assert (store.counts()["execution_logs"], store.counts()["telemetry_metrics"]) == (3, 1)


def test_nothing_is_drained_while_it_erases(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, host = Spool(tmp_path / "spool"), Spool(tmp_path / "spool")
    spool.append([decision("d", GONE), decision("e", STAYS)])
    tried: list[str] = []

    class Watched(Store):
        def command(self, sql: str, *arguments: Any, **options: Any) -> Any:
            with pytest.raises(SpoolError, match=r"delivers from the spool .*, or erases in it") as refused:
                drain(host, store)
            tried.append(str(refused.value))
            return super().command(sql, *arguments, **options)

    store.insert_decisions([(decision("f", GONE), 1.0)])
    done = erase(Watched(store.client, store.database), spool.path, [GONE])
    assert tried
    assert {place.place for place in done} == {
        "spool spool.sqlite",
        f"table {store.database}.scheduling_decisions_raw",
    }
    assert drain(host, store).delivered == 1
    assert erase(store, spool.path, [GONE], dry_run=True) == []

    monkeypatch.setattr(erasing, "_DRAIN_S", 0.1)
    with host.only_drain(), pytest.raises(SpoolError, match="another process delivers"):
        erase(store, spool.path, [STAYS])
    with host.only_drain():
        assert [place.found for place in erase(store, spool.path, [STAYS], dry_run=True)] == [1]


def test_an_erasure_waits_for_a_drain_that_ends(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([decision("d", GONE)])
    with ThreadPoolExecutor(1) as pool:
        with Spool(spool.path).only_drain():
            done = pool.submit(erase, store, spool.path, [GONE])
            time.sleep(0.3)
            assert not done.done()
        assert [place.removed for place in done.result(60)] == [1]


def test_a_name_that_another_begins_with_is_not_meant(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.append([decision("d1", "a1"), decision("d10", "a10")])
    unwritable = [decision(f"u{ticket}", ticket) for ticket in ("a1", "a10")]
    spool.append([msgspec.structs.replace(each, parameters={"x": object()}) for each in unwritable])
    for ticket in ("a1", "a10"):
        torn = encode(decision(f"t{ticket}", ticket), 1.0)[:-20]
        (spool.path / f"spool-{ticket}.corrupt").write_bytes(torn)
        frame = sqlite3.connect(spool.path / "spool.sqlite", isolation_level=None)
        frame.execute("INSERT INTO quarantine (kind, id, frame, reason, at) VALUES ('', '', ?, 'torn', 0)", (torn,))
        frame.close()
    for name in ("a1", "a10"):
        (spool.path / f"bare-{name}.corrupt").write_bytes(b"\0" * 9 + name.encode() + b"\0" * 9)
    assert (spool.pending(), spool.quarantined_count()) == (2, 4)

    done = erase(store, spool.path, ["a1"])
    assert {place.place: place.removed for place in done} == {
        "spool spool.sqlite": 3,
        "damaged file spool-a1.corrupt": 1,
        "damaged file bare-a1.corrupt": 1,
    }
    assert (spool.pending(), spool.quarantined_count()) == (1, 2)
    assert {file.name for file in spool.path.glob("*.corrupt")} == {"spool-a10.corrupt", "bare-a10.corrupt"}


def test_files_that_were_set_aside_go_with_their_logs(store: Store, tmp_path: Path) -> None:
    """Not yet read ones are read first: they hold records of other tickets too."""
    spool = Spool(tmp_path / "spool")
    spool.append([decision("d", GONE), decision("e", STAYS)])
    spool.close()
    torn = encode(decision("t", GONE), 1.0)[:-20]
    (spool.path / "spool.sqlite").rename(spool.path / "spool-1.unsalvaged")
    (spool.path / "spool-2.corrupt").write_bytes(b"nothing")
    (spool.path / "spool-2.corrupt-wal").write_bytes(torn)
    (spool.path / "spool-3.corrupt-wal").write_bytes(torn)
    (spool.path / "spool-4.unsalvaged-wal").write_bytes(torn)

    done = erase(store, spool.path, [GONE])
    assert {place.place for place in done} == {
        "spool spool.sqlite",
        *(f"damaged file spool-{what}" for what in ("1.corrupt", "2.corrupt", "3.corrupt", "4.unsalvaged")),
    }
    assert all(place.left == 0 for place in done)
    assert spool.pending() == 1
    spool.close()
    names = {file.name for file in spool.path.iterdir()}
    assert names == {"spool.sqlite", "spool.lock", "drain.lock"}
    assert GONE.encode() not in (spool.path / "spool.sqlite").read_bytes()


def test_the_bytes_of_what_was_delivered_long_ago_go_too(store: Store, tmp_path: Path) -> None:
    """A drain only lets go of a record: its bytes stay until something else is written there."""
    host, name = Spool(tmp_path / "spool"), GONE.encode()

    def written() -> bytes:
        return b"".join(file.read_bytes() for file in host.path.glob("spool.sqlite*"))

    host.append([decision(f"d{n}", GONE if n == 7 else STAYS) for n in range(50)])
    drain(host, store)
    host.append([decision(f"e{n}", STAYS) for n in range(5)])
    assert name in written()
    done = erase(store, host.path, [GONE])
    assert [place.place for place in done] == [f"table {store.database}.scheduling_decisions_raw"]
    assert name not in written(), "while the host has the file open"
    host.append([decision("f", STAYS)])
    assert drain(host, store).delivered == 6


def test_a_sealed_file_that_holds_nothing_more_is_gone(store: Store, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for ticket in (GONE, STAYS):
        spool.append([decision(f"d-{ticket}", ticket)])
        Segments(spool.path, time.time).seal()
    assert [place.removed for place in erase(store, spool.path, [GONE])] == [1]
    assert [file.name for file in spool.path.glob("segment-*.sqlite")] == ["segment-00000002.sqlite"]
    assert drain(spool, store).delivered == 1


def test_where_there_is_no_spool_none_is_made(store: Store, tmp_path: Path) -> None:
    store.insert_decisions([(decision("d", GONE), 1.0)])
    assert [place.removed for place in erase(store, tmp_path / "spool", [GONE])] == [1]
    assert not (tmp_path / "spool").exists()


# Hashes


def test_the_same_value_under_the_same_key_gives_the_same_hash() -> None:
    one, other = Pseudonyms(("ticket_id", "worker_id"), b"k" * 32), Pseudonyms(("ticket_id",), b"j" * 32)
    hidden = one(decision("d", GONE))
    ended = one(RewardedOutcome(outcome=Outcome(decision_id="d", ticket_id=GONE, worker_id="w"), reward=None))
    assert isinstance(hidden, Decision)
    assert isinstance(ended, RewardedOutcome)
    assert hidden.ticket_id == ended.outcome.ticket_id == one.of(GONE)
    assert len(one.of(GONE)) == 32
    assert ended.outcome.worker_id == one.of("w")
    assert (hidden.task_type, hidden.decision_id) == ("a", "d")
    assert other.of(GONE) != one.of(GONE) != one.of(STAYS)
    tick = Decision(decision_id="tick")
    assert one(tick) is tick, "what is not there stays not there"


def test_a_key_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    chosen = RecordingSettings(hash_fields=("ticket_id",), hash_key_file=key)
    with pytest.raises(ConfigError, match=r"recording.hash_key_file = .*key: cannot be read"):
        pseudonyms(chosen)
    key.write_bytes(b"short\n")
    with pytest.raises(ConfigError, match="holds 5 bytes, at least 16 are needed; make one with: head -c 32"):
        pseudonyms(chosen)
    key.write_bytes(b"k" * 32)
    assert pseudonyms(chosen) is not None
    assert pseudonyms(RecordingSettings()) is None
    with pytest.raises(ValueError, match="hash_fields needs hash_key_file"):
        RecordingSettings(hash_fields=("ticket_id",))


# Export


@pytest.fixture
def logs(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A thousand tickets over ten hours, in windows of some hundred."""
    monkeypatch.setattr(exporting, "_ROWS", 150)
    store.command(
        f"INSERT INTO {store.database}.execution_logs (timestamp, ticket_id, task_type, sla_met) "
        f"SELECT toDateTime({int(NOW.timestamp())}) - number * 36, concat('t,\"\\n', toString(number)), 'a', "
        "if(number = 0, NULL, number % 2) FROM numbers(1000)"
    )
    return store


def test_parquet_holds_every_row_once_with_its_types(logs: Store, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    file = tmp_path / "logs.parquet"
    assert export(logs, "execution_logs", file, progress=lambda done, total: steps.append((done, total))) == 1000
    table = pq.read_table(file)
    assert table.num_rows == len(set(table["ticket_id"].to_pylist())) == 1000
    assert table["sla_met"].null_count == 1
    assert table["timestamp"].to_pylist() == sorted(table["timestamp"].to_pylist())
    assert len(steps) > 3
    assert steps[-1] == (1000, 1000)


def test_csv_has_one_line_of_names_and_survives_awkward_texts(logs: Store, tmp_path: Path) -> None:
    file = tmp_path / "logs.csv"
    assert export(logs, "execution_logs", file) == 1000
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len({row["ticket_id"] for row in rows}) == 1000
    assert (rows[-1]["ticket_id"], rows[-1]["sla_met"]) == ('t,"\n0', "")


def test_a_text_of_any_length_is_exported(store: Store, tmp_path: Path) -> None:
    store.command(
        f"INSERT INTO {store.database}.execution_logs (timestamp, ticket_id) "
        f"SELECT toDateTime({int(NOW.timestamp())}), repeat('a\"\n', 100000) FROM numbers(2)"
    )
    assert export(store, "execution_logs", tmp_path / "long.csv") == 2


def test_a_span_cuts_at_the_second(logs: Store, tmp_path: Path) -> None:
    file = tmp_path / "part.parquet"
    since, until = NOW - dt.timedelta(seconds=36 * 500), NOW - dt.timedelta(seconds=36 * 100)
    assert export(logs, "tickets", file, since=since, until=until) == 400
    assert export(logs, "execution_logs", tmp_path / "none.csv", since=NOW + dt.timedelta(1)) == 0
    assert (tmp_path / "none.csv").read_text().startswith('"timestamp","ticket_id"')


def test_what_cannot_be_exported_is_named_and_leaves_nothing(logs: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="table 'nothing' cannot be exported; known are execution_logs"):
        export(logs, "nothing", tmp_path / "a.csv")
    with pytest.raises(StoreError, match=r"has to end in \.csv or \.parquet"):
        export(logs, "tickets", tmp_path / "a.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_its_key_does_not_start(tmp_path: Path) -> None:
    tree = {
        "data_dir": str(tmp_path / "data"),
        "metrics": {"enabled": False},
        "recording": {"hash_fields": ["ticket_id"], "hash_key_file": str(tmp_path / "absent")},
    }
    with pytest.raises(ConfigError, match=r"recording\.hash_key_file = .*absent: cannot be read"):
        SchedulerHost.from_config(tree)
    assert not (tmp_path / "data" / "spool").exists()
