"""Delivery through everything that can go wrong, on the real engine behind a real socket, in a process of its own."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks._kills import Server
from nhm_sched_plugin import SchedulerHost, SchedulingState, Ticket
from nhm_sched_plugin.errors import ConfigError, SpoolError, StoreError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.store import delivery as module
from nhm_sched_plugin.store.client import open_store
from nhm_sched_plugin.store.delivery import Delivery, cause_of
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import Action, Decision, Outcome, RewardedOutcome

TABLES = ("scheduling_decisions_raw", "scheduling_outcomes")
COMMAND = [sys.executable, "-c", "from nhm_sched_plugin.cli import main; main()"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("server"))
    try:
        with open_store(one.start()):
            pass
        yield one
    finally:
        one.kill()


@pytest.fixture
def settings(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of an empty database, with short pauses."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.2)
    made = load_settings(
        {
            "data_dir": str(tmp_path),
            "ml": {"clickhouse": {"dsn": server.dsn}},
            "metrics": {"enabled": False},
            "recording": {"drain_batch": 50, "drain_max_age_s": 0.2},
        }
    )
    with open_store(made) as store:
        for table in TABLES:
            store.command(f"TRUNCATE TABLE {store.database}.{table}")
    return made


class Running:
    """A delivery in its thread, with its metrics."""

    def __init__(self, settings: Settings, **changes: Any) -> None:
        self.metrics = Metrics()
        self.spool = Spool(settings.spool_path)
        recording = settings.recording.model_copy(update=changes)
        self.delivery = Delivery(
            Spool(settings.spool_path), partial(open_store, settings), recording, self.metrics, Faults(self.metrics)
        )

    def __enter__(self) -> Running:
        self.delivery.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.delivery.close(60)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def failures(self, cause: str) -> float:
        return self.value("nhm_sched_drain_failures_total", cause=cause)

    def empties(self) -> None:
        wait_for(lambda: self.spool.pending() == 0)


def wait_for(done: Callable[[], Any], patience_s: float = 90.0) -> None:
    until = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def decisions(first: int, last: int) -> list[Decision]:
    return [Decision(decision_id=f"d{n}", action=Action.NO_ACTION, decided_at=1.5e9 + n) for n in range(first, last)]


def outcomes(first: int, last: int) -> list[RewardedOutcome]:
    return [RewardedOutcome(outcome=Outcome(decision_id=f"d{n}"), reward=n / 1000) for n in range(first, last)]


def stored(settings: Settings) -> dict[str, float | None]:
    """Every decision with its reward; none of them doubled."""
    with open_store(settings) as store:
        rows = store.rows(f"SELECT decision_id, reward FROM {store.database}.scheduling_decisions")  # noqa: S608
    assert len(rows) == len({row[0] for row in rows})
    return dict(rows)


def on(settings: Settings, statement: str) -> None:
    with open_store(settings, migrate=False) as store:
        store.command(statement.format(db=store.database))


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    return sum(line.levelno >= logging.WARNING and text in line.getMessage() for line in caplog.records)


def test_full_batches_go_at_once_and_a_part_after_its_time(settings: Settings) -> None:
    with Running(settings, drain_batch=100, drain_max_age_s=3600.0) as running:
        running.spool.append(decisions(0, 99))
        wait_for(lambda: running.value("nhm_sched_spool_records") == 99)
        assert stored(settings) == {}
        running.spool.append(decisions(99, 100))
        running.empties()
        running.spool.append(decisions(100, 110))
    assert len(stored(settings)) == 110, "what waits is delivered at the end"
    assert running.value("nhm_sched_records_total", state="stored") == 110
    with Running(settings, drain_batch=1000, drain_max_age_s=0.1) as running:
        running.spool.append(outcomes(0, 110))
        running.empties()
    assert stored(settings) == {f"d{n}": n / 1000 for n in range(110)}


def test_an_outage_of_a_day(settings: Settings, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    hour = [0]
    host = Spool(settings.spool_path, clock=lambda: 1.7e9 + 3600 * hour[0])
    with Running(settings) as running:
        host.append(decisions(0, 10))
        running.empties()
        server.kill()
        for hour[0] in range(1, 25):
            host.append([*decisions(10 * hour[0], 10 * hour[0] + 10), *outcomes(10 * hour[0] - 10, 10 * hour[0])])
        wait_for(lambda: running.failures("unreachable") >= 3)
        assert (running.spool.pending(), running.delivery.health()[0].ok) == (480, False)
        server.start()
        running.empties()
        wait_for(lambda: running.delivery.health()[0].ok)
    assert stored(settings) == {f"d{n}": (n / 1000 if n < 240 else None) for n in range(250)}
    assert running.value("nhm_sched_spool_quarantined") == 0
    assert 1 <= said(caplog, "drain failed") <= 3, "once a cause: the insert, and the connection"
    assert said(caplog, "records are delivered again, after") == 1
    assert said(caplog, "Retrying") + said(caplog, "Unexpected Http Driver") == 0, "its libraries at each attempt"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("Code: 497. DB::Exception: nhm: Not enough privileges. To execute this query, it's necessary to have the "
         "grant INSERT(decision_id) ON records.scheduling_decisions_raw. (ACCESS_DENIED)", "access"),
        ("Code: 243. DB::Exception: Cannot reserve 1.00 MiB, not enough space. (NOT_ENOUGH_SPACE)", "disk"),
        ("Code: 164. DB::Exception: Table is in readonly mode. (READONLY)", "disk"),
        ("Code: 252. DB::Exception: Too many parts (3000). Merges are processing slower. (TOO_MANY_PARTS)", "other"),
    ],
    ids=["revoked grant", "full disk", "read-only", "too many parts"],
)  # fmt: skip
def test_a_server_that_refuses(
    settings: Settings, server: Server, answer: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    deny = server.folder / "port.deny"
    deny.write_text(answer)
    try:
        with Running(settings) as running:
            running.spool.append([*decisions(0, 120), *outcomes(0, 120)])
            wait_for(lambda: running.failures(cause) >= 3)
            assert (running.spool.pending(), running.spool.quarantined_count()) == (240, 0)
            deny.unlink()
            running.empties()
    finally:
        deny.unlink(missing_ok=True)
    assert stored(settings) == {f"d{n}": n / 1000 for n in range(120)}
    assert said(caplog, "drain failed") == 1


def test_a_disk_of_the_server_that_is_really_full(settings: Settings, server: Server) -> None:
    assert server.process is not None
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    with Running(settings) as running:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (512, limits[1]))
        try:
            running.spool.append(decisions(0, 120))
            wait_for(lambda: sum(running.failures(cause) for cause in ("disk", "other", "unreachable")) >= 2)
            assert running.spool.quarantined_count() == 0
        finally:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
        if server.process.poll() is not None:
            server.start()
        running.empties()
    assert len(stored(settings)) == 120


def test_a_schema_that_has_drifted(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    on(settings, "ALTER TABLE {db}.scheduling_decisions_raw RENAME COLUMN propensity TO chance")
    try:
        with Running(settings) as running:
            running.spool.append([*decisions(0, 60), *outcomes(0, 60)])
            wait_for(lambda: running.failures("schema") >= 2)
            assert (running.spool.pending(), running.spool.quarantined_count()) == (120, 0)
            on(settings, "ALTER TABLE {db}.scheduling_decisions_raw RENAME COLUMN chance TO propensity")
            running.empties()
    finally:
        on(settings, "ALTER TABLE {db}.scheduling_decisions_raw RENAME COLUMN IF EXISTS chance TO propensity")
    assert stored(settings) == {f"d{n}": n / 1000 for n in range(60)}
    assert said(caplog, "drain failed") == 1


def test_what_the_server_finds_wrong_with_a_row_is_that_rows_fault(settings: Settings) -> None:
    on(settings, "ALTER TABLE {db}.scheduling_decisions_raw ADD CONSTRAINT few CHECK decision_id NOT IN ('d7', 'd33')")
    try:
        with Running(settings) as running:
            running.spool.append([*decisions(0, 60), *outcomes(0, 60)])
            running.empties()
        kept = {f"d{n}" for n in range(60)} - {"d7", "d33"}
        assert set(stored(settings)) == kept
        assert {item.record_id for item in running.spool.quarantined()} == {"d7", "d33"}
        assert all("Constraint `few`" in item.reason for item in running.spool.quarantined())
        assert running.value("nhm_sched_records_total", state="stored") == 118, "not what is in quarantine"
    finally:
        on(settings, "ALTER TABLE {db}.scheduling_decisions_raw DROP CONSTRAINT few")
    assert running.spool.retry_quarantined() == 2
    with Running(settings) as running:
        running.empties()
    assert stored(settings) == {f"d{n}": n / 1000 for n in range(60)}
    assert running.spool.quarantined_count() == 0


def test_a_table_that_refuses_everything_fills_no_quarantine(settings: Settings) -> None:
    on(settings, "ALTER TABLE {db}.scheduling_decisions_raw ADD CONSTRAINT none CHECK decision_id = ''")
    try:
        with Running(settings) as running:
            running.spool.append(decisions(0, 50))
            wait_for(lambda: running.failures("schema") >= 1)
            assert (running.spool.pending(), running.spool.quarantined_count()) == (50, 0)
            on(settings, "ALTER TABLE {db}.scheduling_decisions_raw DROP CONSTRAINT none")
            running.empties()
    finally:
        on(settings, "ALTER TABLE {db}.scheduling_decisions_raw DROP CONSTRAINT IF EXISTS none")
    assert len(stored(settings)) == 50


def test_the_same_batch_has_the_same_token(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, tokens = Spool(settings.spool_path), []
    spool.append([*decisions(0, 20), *outcomes(0, 20)])

    def noted(self: Store, table: str, columns: Any, rows: Any, token: str | None = None) -> None:
        tokens.append(token)
        raise StoreError("gone")

    monkeypatch.setattr(Store, "insert_rows", noted)
    with open_store(settings, migrate=False) as store:
        for _ in range(2):
            with pytest.raises(StoreError):
                module.drain(spool, store)
        spool.append(decisions(20, 21))
        with pytest.raises(StoreError):
            module.drain(spool, store)
    assert tokens[0] == tokens[1] != tokens[2]
    assert "scheduling_decisions_raw" in tokens[0]


def test_a_spool_that_cannot_be_read_is_waited_for(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("in the way")
    with Running(settings) as running:
        wait_for(lambda: running.failures("spool") >= 2)
        assert not running.delivery.health()[0].ok
        (tmp_path / "spool").unlink()
        wait_for(lambda: running.delivery.health()[0].ok, 20)  # with nothing to deliver
        running.spool.append(decisions(0, 5))
        running.empties()
    assert len(stored(settings)) == 5


def test_causes() -> None:
    assert cause_of(SpoolError("x")) == "spool"
    assert cause_of(StoreError("ClickHouse at http://x refuses user 'y': check")) == "access"
    assert cause_of(StoreError("Code: 60. DB::Exception: Table does not exist")) == "schema"
    assert (
        cause_of(StoreError("insert x: Error HTTPConnectionPool(...): Max retries: Connection refused"))
        == "unreachable"
    )
    assert cause_of(StoreError("something else")) == "other"


def test_a_host_delivers_by_itself_to_a_server_and_its_children_do_not(settings: Settings) -> None:
    config = settings.model_copy(update={"recording": settings.recording.model_copy(update={"drain": "thread"})})
    with SchedulerHost.from_config(config) as host:
        ids = {host.decide(Ticket(ticket_id=str(n)), SchedulingState(queue_depth=5)).decision_id for n in range(20)}
        spool = Spool(settings.spool_path)
        wait_for(lambda: host.flush(5) and spool.pending() == 0)
        child = os.fork()
        if child == 0:
            names = {thread.name for thread in threading.enumerate()}
            decided = host.decide(Ticket(ticket_id="child"), SchedulingState(queue_depth=5))
            good = host.flush(30) and "nhm-sched-drain" not in names and bool(decided.decision_id)
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        wait_for(lambda: spool.pending() == 0)
        host.decide(Ticket(ticket_id="last"), SchedulingState(queue_depth=5))
    assert Spool(settings.spool_path).pending() == 0, "the last ones are delivered at shutdown"
    found = set(stored(settings))
    assert ids < found
    assert len(found) == 22


@pytest.mark.parametrize("clickhouse", [{}, {"dsn": "chdb:///var/lib/records"}])
def test_a_host_may_not_open_the_embedded_engine(tmp_path: Path, clickhouse: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"recording.drain = 'thread': .*set ml.clickhouse.dsn to a server"):
        load_settings({"data_dir": str(tmp_path), "recording": {"drain": "thread"}, "ml": {"clickhouse": clickhouse}})


def test_the_sidecar_delivers_shows_metrics_and_flushes_on_sigterm(settings: Settings, server: Server) -> None:
    spool = Spool(settings.spool_path)
    spool.append(decisions(0, 10))
    environment = {
        **os.environ,
        "NHM_SCHED_DATA_DIR": str(settings.data_dir),
        "NHM_SCHED_ML__CLICKHOUSE__DSN": server.dsn,
        "NHM_SCHED_RECORDING__DRAIN_MAX_AGE_S": "0.2",
    }
    port = free_port()
    options = ["drain", "--follow", "--metrics-port", str(port), "--grace", "60"]
    process = subprocess.Popen([*COMMAND, *options], env=environment)
    try:
        wait_for(lambda: process.poll() is not None or spool.pending() == 0)
        shown = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        assert 'nhm_sched_records_total{state="stored"} 10.0' in shown
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30).status == 200
        spool.append(decisions(10, 40))
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()
    assert len(stored(settings)) == 40
    assert spool.pending() == 0


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_statements_and_those_that_failed_are_counted(settings: Settings) -> None:
    metrics, spool = Metrics(), Spool(settings.spool_path)
    spool.append(decisions(0, 3))

    def counted(name: str) -> float:
        return metrics.registry.get_sample_value(f"optimizer_clickhouse_{name}_total") or 0.0

    on(settings, "RENAME TABLE {db}.scheduling_decisions_raw TO {db}.elsewhere")
    work = module.delivery(settings, metrics, Faults(metrics), migrate=False)
    try:
        work.start()
        wait_for(lambda: counted("query_errors") > 0)
    finally:
        on(settings, "RENAME TABLE {db}.elsewhere TO {db}.scheduling_decisions_raw")
    wait_for(lambda: spool.pending() == 0)
    work.close(60)
    assert counted("queries") > counted("query_errors")
