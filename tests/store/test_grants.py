"""The grants that docs/questions.md lists are enough, and none is for nothing: the engine itself checks them."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.settings_ml import RetentionSettings
from nhm_sched_plugin.store import answers
from nhm_sched_plugin.store.client import open_store
from nhm_sched_plugin.store.erase import erase
from nhm_sched_plugin.store.export import export
from nhm_sched_plugin.store.ingest import ingest_frame
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.schema import upgrade
from nhm_sched_plugin.types import Decision, Outcome, RewardedOutcome

PAGE = Path(__file__).parents[2] / "docs" / "questions.md"
LINE = re.compile(r"^GRANT (.+) ON neural_hive\.\* TO nhm_(\w+);", re.MULTILINE)
GRANTS = {role: rights for rights, role in LINE.findall(PAGE.read_text(encoding="utf-8"))}
USERS = """<clickhouse><profiles><default/></profiles>
<quotas><default><interval><duration>3600</duration></interval></default></quotas>
<users><default><password></password><networks><ip>::/0</ip></networks><profile>default</profile>
<quota>default</quota><grants><query>GRANT {rights} ON neural_hive.*</query></grants></default></users></clickhouse>"""
CONFIG = "<clickhouse><user_directories><users_xml><path>{users}</path></users_xml></user_directories></clickhouse>"

Serve = Callable[..., Settings]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve("SELECT, INSERT", "db")`: a server on that data whose user has just these rights."""
    running: list[subprocess.Popen[bytes]] = []

    def start(rights: str, name: str = "db") -> Settings:
        stop()
        users, config, port = tmp_path / "users.xml", tmp_path / "config.xml", tmp_path / "port"
        users.write_text(USERS.format(rights=rights))
        config.write_text(CONFIG.format(users=users))
        port.unlink(missing_ok=True)
        front = Path(__file__).with_name("http_front.py")
        place = f"{tmp_path / name}?config-file={config}"
        running.append(subprocess.Popen([sys.executable, str(front), place, str(port)]))
        deadline = time.monotonic() + 120
        while not port.exists():
            assert running[-1].poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        dsn = f"http://default@127.0.0.1:{port.read_text()}"
        return load_settings({"data_dir": str(tmp_path), "ml": {"clickhouse": {"dsn": dsn}}})

    def stop() -> None:
        for process in running:
            process.terminate()
            process.wait()
        running.clear()

    yield start
    stop()


def write(store: Store) -> None:
    """What the drain and `ingest` do, a file taken in again and old rows included."""
    store.insert_decisions([(Decision(decision_id="d", ticket_id="t", decided_at=1e9), 1.0)])
    store.insert_outcomes([(RewardedOutcome(outcome=Outcome(decision_id="d", ticket_id="t"), reward=0.5), 1.0)])
    store.log_finished(["d"])
    now = dt.datetime.now(dt.UTC)
    frame = pd.DataFrame({"timestamp": [str(now), "2013-01-01"], "ticket_id": ["a", "b"]})
    ingest_frame(frame, store, name="history")
    ingest_frame(frame, store, name="history", replace=True)


def test_every_role_can_do_its_work_with_its_grants_alone(serve: Serve, tmp_path: Path) -> None:
    assert set(GRANTS) == {"admin", "writer", "reader"}
    with open_store(serve(GRANTS["admin"]), migrate=False) as store:
        assert upgrade(store, RetentionSettings(forecasts=7).by_table()).problems == ()
        store.command("DROP VIEW neural_hive.bottlenecks")
        assert upgrade(store).problems == (), "views are made again"

    with open_store(serve(GRANTS["writer"])) as store:
        write(store)
        assert {place.left for place in erase(store, tmp_path / "spool", ["t"])} == {0}
        write(store)

    with open_store(serve(GRANTS["reader"])) as store:
        assert len(answers.decisions(store)) == 1
        assert answers.arms(store)
        answers.miss_causes(store)
        answers.bottlenecks(store)
        assert export(store, "tickets", tmp_path / "t.csv") >= 2
        with pytest.raises(StoreError, match="Not enough privileges"):
            write(store)


@pytest.mark.parametrize("right", GRANTS["admin"].split(", "))
def test_without_any_one_of_its_grants_init_is_refused(serve: Serve, tmp_path: Path, right: str) -> None:
    others = ", ".join(other for other in GRANTS["admin"].split(", ") if other != right)
    if right == "DROP VIEW":  # needed only where a view is there already
        with open_store(serve(GRANTS["admin"])) as store:
            store.command("ALTER TABLE neural_hive.schema_migrations DELETE WHERE version = 7")
    with open_store(serve(others), migrate=False) as store, pytest.raises(StoreError, match="Not enough privileges"):
        upgrade(store)


@pytest.mark.parametrize("right", ["INSERT", "ALTER DELETE", "ALTER UPDATE"])
def test_without_any_one_of_its_grants_writing_is_refused(serve: Serve, right: str) -> None:
    rights = GRANTS["writer"].split(", ")
    assert right in rights
    assert len(rights) == 4
    with open_store(serve(GRANTS["admin"])):
        pass
    with (
        open_store(serve(", ".join(other for other in rights if other != right))) as store,
        pytest.raises(StoreError, match=f"(?s)Not enough privileges.*{right}"),
    ):
        write(store)
