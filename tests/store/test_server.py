"""The same over HTTP: the stock client, a real socket, a server in a process of its own that gets killed."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from nhm_sched_plugin.errors import StoreError
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.store.client import connect, open_store
from nhm_sched_plugin.store.drain import drain
from nhm_sched_plugin.store.ingest import ingest_frame
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.store.statements import RejectedRowsError
from nhm_sched_plugin.types import Action, Decision, Outcome, RewardedOutcome


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Settings:
        port_file = self.folder / "port"
        port_file.unlink(missing_ok=True)
        front = Path(__file__).with_name("http_front.py")
        self.process = subprocess.Popen([sys.executable, str(front), str(self.folder / "db"), str(port_file)])
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        dsn = f"clickhouse://default@127.0.0.1:{port_file.read_text()}/logs"
        return load_settings({"data_dir": str(self.folder), "ml": {"clickhouse": {"dsn": dsn}}})

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def test_a_server_takes_everything_and_survives_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        settings = server.start()
        spool = Spool(tmp_path / "spool")
        first = [
            Decision(decision_id=f"a{n}", action=Action.NO_ACTION, decided_at=1e9, ticket_id=f"t{n}") for n in range(50)
        ]
        spool.append(first)
        with open_store(settings) as store:
            drain(spool, store, batch=20)
            (tmp_path / "port.drop").touch()  # the answer to the next insert is lost, and the client sends it again
            store.insert_execution_logs(pd.DataFrame({"timestamp": [pd.Timestamp.now("UTC")] * 3, "task_type": "new"}))
            assert not (tmp_path / "port.drop").exists()
            assert store.slices() == [("new", "", 3)]
            frame = pd.DataFrame({"timestamp": ["2013-01-01 10:00", "2013-01-01 12:00"], "task_type": "x' --"})
            report = ingest_frame(frame, store, name="old")
            assert (report.rows, report.kept_expired) == (2, 2)
            assert store.hourly_volume("x' --", until=dt.datetime(2013, 1, 1, 13)).tolist() == [1, 0, 1]
            with pytest.raises(RejectedRowsError):
                store.insert_rows("queue_snapshots", ["timestamp", "queue_depth"], [["soon", 1.0]])
            server.kill()
            spool.append([RewardedOutcome(outcome=Outcome(decision_id="a1", ticket_id="t1"), reward=0.5)])
            with pytest.raises(StoreError, match="insert scheduling_outcomes"):
                drain(spool, store)
        with pytest.raises(StoreError, match="cannot be reached"):
            connect(settings)
        assert (spool.pending(), spool.quarantined_count()) == (1, 0)
        with open_store(server.start()) as store:
            assert drain(spool, store, log_tickets=True).delivered == 1
            assert_all_there(store)
    finally:
        server.kill()


def assert_all_there(store: Store) -> None:
    assert store.database == "logs"
    rows = store.rows(f"SELECT decision_id, reward FROM {store.database}.scheduling_decisions FINAL")  # noqa: S608
    assert dict(rows) == {f"a{n}": (0.5 if n == 1 else None) for n in range(50)}
    assert len(rows) == 50
    story = store.decision("a1")
    assert story is not None
    assert story["reward"] == 0.5
