"""`ingest` beyond a plain file: check, profiles, another table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks._kills import Server
from nhm_sched_plugin.errors import StoreError


def test_a_check_writes_nothing_and_its_exit_code_tells(nhm: Any, folder: Path) -> None:
    good = folder / "good.csv"
    good.write_text("when,id\n2026-11-01 08:00,a\n2026-11-01 12:00,a\nnever,b\n", encoding="utf-8")
    asked = ("ingest", good, "--check", "-m", "timestamp=when", "-m", "ticket_id=id")
    found = nhm(*asked, "--json")
    assert (found.code, found.json["rows"], found.json["rejected"], found.json["gap_hours"]) == (0, 2, 1, 3)
    assert found.json["duplicates"]["tickets_within"] == 1
    assert not list(folder.rglob("clickhouse")), "no database was made"
    one = folder / "one.csv"
    one.write_text("timestamp,ticket_id\n2026-11-01 08:00,a\n", encoding="utf-8")
    assert "would be written 1 row " in " ".join(nhm("ingest", one, "--check").out.split())
    shown = nhm(*asked)
    text = " ".join(shown.out.split())
    assert shown.code == 0
    assert "would be written 2 rows" in text
    assert "ticket ids in several rows 1" in text
    assert "timestamp cannot be read" in text
    missing = nhm("ingest", good, "--check")
    assert missing.code == 1
    assert "good.csv has no column 'timestamp'" in missing.said
    assert [path.name for path in folder.glob("good*")] == ["good.csv"]
    assert "1 ticket, " in nhm("ingest", one).out


def test_a_profile_is_saved_shown_and_used(nhm: Any, folder: Path) -> None:
    first = folder / "first.csv"
    first.write_text("when,id\n2026-11-01 08:00,a\n", encoding="utf-8")
    second = folder / "second.csv"
    second.write_text("when,id\n2026-11-01 09:00,b\n", encoding="utf-8")
    assert "No profiles yet" in nhm("ingest-profiles").out
    options = (
        "-m",
        "timestamp=when",
        "-m",
        "ticket_id=id",
        "--timezone",
        "America/Sao_Paulo",
        "--save-profile",
        "desk",
    )
    saved = nhm("ingest", first, *options)
    assert saved.code == 0
    assert "desk.yaml" in saved.err
    (listed,) = nhm("ingest-profiles", "--json").json
    assert yaml.safe_load(Path(listed["file"]).read_text(encoding="utf-8"))["timezone"] == "America/Sao_Paulo"
    assert nhm("ingest-profiles", "desk", "--json").json["mapping"] == {"timestamp": "when", "ticket_id": "id"}
    taken = nhm("ingest", second, "--profile", "desk", "--json")
    assert (taken.code, taken.json["rows"], taken.json["first"]) == (0, 1, "2026-11-01T12:00:00Z")
    assert "there is no profile 'disk'" in nhm("ingest", second, "--profile", "disk").said


def test_a_table_of_the_same_database(nhm: Any, folder: Path) -> None:
    from nhm_sched_plugin.settings import load_settings
    from nhm_sched_plugin.store.client import open_store

    with open_store(load_settings({})) as store:
        store.command(
            "CREATE TABLE neural_hive.old (at DateTime, no UInt32, what String) ENGINE = MergeTree ORDER BY at"
        )
        store.command("INSERT INTO neural_hive.old SELECT now() - number * 600, number, 'x' FROM numbers(500)")
    asked = ("ingest", "--from-table", "neural_hive.old", "-m", "timestamp=at", "-m", "ticket_id=no", "--json")
    assert nhm(*asked, "--check").json["rows"] == 500
    assert nhm(*asked, "--where", "no < 100").json["rows"] == 100
    everything = nhm(*asked)
    assert (everything.json["rows"], everything.json["duplicates"]["tickets_elsewhere"]) == (500, 100)
    assert nhm(*asked).json["already_ingested"]
    wrong = nhm("ingest", "--from-table", "neural_hive.none")
    assert wrong.code == 1
    assert "there is no such table" in wrong.said
    away = nhm(*asked, "--dsn", "http://127.0.0.1:9000")
    assert away.code == 1
    assert "--dsn = 9000: that is ClickHouse's native port" in away.said


def test_errors_of_the_own_database_are_not_the_sources(nhm: Any, folder: Path) -> None:
    from nhm_sched_plugin.cli.ingesting import _table
    from nhm_sched_plugin.settings import load_settings
    from nhm_sched_plugin.store.client import open_store

    (folder / "server").mkdir()
    server = Server(folder / "server")
    try:
        with open_store(server.start()) as store:
            store.command("CREATE TABLE records.old (timestamp DateTime) ENGINE = Memory")
        ours = StoreError("ml.clickhouse.dsn: gone")

        def failing() -> None:
            with _table(load_settings({}), None, "records.old", server.dsn, None) as source:
                assert source is not None
                assert source.types == {"timestamp": "DateTime"}
                raise ours

        with pytest.raises(StoreError) as raised:
            failing()
        assert raised.value is ours
    finally:
        server.kill()


def test_one_source_at_a_time(nhm: Any, folder: Path) -> None:
    assert nhm("ingest").code == 2
    both = nhm("ingest", "x.csv", "--from-table", "a.b")
    assert both.code == 2
    assert "one of them" in both.said
    assert nhm("ingest", "x.csv", "--where", "1").code == 2
