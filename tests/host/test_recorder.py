"""Records: from the queue to the disk, through outages, with every drop counted."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Decision, Outcome, Reason, SchedulerHost, Ticket
from nhm_sched_plugin.errors import SpoolError, SpoolFullError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.recorder import Recorder
from nhm_sched_plugin.settings import RecordingSettings
from nhm_sched_plugin.store.spool import Spool
from nhm_sched_plugin.types import RewardedOutcome


class ListSink:
    """Keeps what it is given; fails or waits when told so."""

    def __init__(self, name: str = "list") -> None:
        self.name = name
        self.got: list[Any] = []
        self.sizes: list[int] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.closed = 0

    def write(self, records: Any) -> None:
        self.gate.wait()
        if self.error is not None:
            raise self.error
        self.sizes.append(len(records))
        self.got += records

    def close(self) -> None:
        self.closed += 1


def record(number: int) -> Decision:
    return Decision(decision_id=str(number))


class Bench:
    def __init__(self, *sinks: ListSink, **settings: Any) -> None:
        self.metrics = Metrics()
        self.recorder = Recorder(
            sinks, RecordingSettings(**{"flush_ms": 5, **settings}), self.metrics, Faults(self.metrics)
        )

    def count(self, state: str) -> float:
        return self.metrics.registry.get_sample_value("nhm_sched_records_total", {"state": state}) or 0.0

    def drops(self) -> dict[str, float]:
        (family,) = [one for one in self.metrics.registry.collect() if one.name == "nhm_sched_records_dropped"]
        return {one.labels["cause"]: one.value for one in family.samples if one.name.endswith("_total")}

    def failures(self, component: str) -> float:
        labels = {"component": component}
        return self.metrics.registry.get_sample_value("nhm_sched_component_errors_total", labels) or 0.0


def test_everything_arrives_in_order_and_is_counted() -> None:
    sink = ListSink()
    bench = Bench(sink)
    records = [record(i) for i in range(12_000)]
    assert all(bench.recorder.record(one) for one in records)
    assert bench.recorder.flush(10)
    assert sink.got == records
    assert max(sink.sizes) <= 5000
    assert (bench.count("queued"), bench.count("spooled"), bench.count("dropped")) == (12_000, 12_000, 0)
    bench.recorder.close(1)
    assert sink.closed == 1


def test_a_sink_that_fails_gets_everything_later_and_nothing_is_lost() -> None:
    sink = ListSink()
    sink.error = OSError("disk full")
    bench = Bench(sink)
    for i in range(10):
        bench.recorder.record(record(i))
    assert not bench.recorder.flush(0.1)
    assert bench.count("spooled") == 0
    assert bench.failures("sink list") >= 1
    sink.error = None
    assert bench.recorder.flush(5)
    assert [one.decision_id for one in sink.got] == [str(i) for i in range(10)]
    assert (bench.count("spooled"), bench.count("dropped")) == (10, 0)
    bench.recorder.close(1)


def test_the_pause_between_attempts_grows() -> None:
    sink = ListSink()
    sink.error = OSError("gone")
    bench = Bench(sink, flush_ms=1)
    bench.recorder.record(record(1))
    time.sleep(0.5)
    assert 2 <= bench.failures("sink list") <= 12, "1, 2, 4 ... 256 ms: not once a millisecond"
    bench.recorder.close(0.1)


@pytest.mark.parametrize("broken", ["raises", "hangs"])
def test_another_sink_that_fails_or_hangs_holds_up_nobody(broken: str) -> None:
    spool, other = ListSink("spool"), ListSink("other")
    if broken == "raises":
        other.error = RuntimeError("gone")
    else:
        other.gate.clear()
    bench = Bench(spool, other, queue_size=100)
    for i in range(1000):
        bench.recorder.record(record(i))
        if i % 50 == 0:
            until = time.monotonic() + 5
            while len(spool.got) <= i and time.monotonic() < until:
                time.sleep(0.002)
    until = time.monotonic() + 5
    while len(spool.got) < 1000 and time.monotonic() < until:
        time.sleep(0.005)
    assert len(spool.got) == 1000
    assert bench.count("dropped") == 0, "what the spool has is safe"
    assert bench.failures("sink other") >= 1
    other.error = None
    other.gate.set()
    bench.recorder.close(2)
    assert other.got


def test_a_full_queue_drops_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    sink = ListSink()
    sink.gate.clear()
    bench = Bench(sink, queue_size=100)
    results = [bench.recorder.record(record(i)) for i in range(150)]
    assert results.count(False) == 50
    assert bench.count("dropped") == 50
    assert bench.failures("recorder") == 50
    assert sum("queue_size is reached" in one.getMessage() for one in caplog.records) == 1
    sink.gate.set()
    assert bench.recorder.flush(5)
    assert len(sink.got) == 100
    bench.recorder.close(1)


def ended(number: int) -> RewardedOutcome:
    return RewardedOutcome(outcome=Outcome(decision_id=str(number)), reward=0.5)


def test_decisions_are_dropped_first_and_outcomes_last() -> None:
    sink = ListSink()
    sink.gate.clear()
    bench = Bench(sink, queue_size=100)
    assert all(bench.recorder.record(record(i)) for i in range(100))
    assert [bench.recorder.record(ended(i)) for i in range(30)] == [True] * 25 + [False] * 5
    assert not bench.recorder.record(record(100))
    assert bench.drops() == {"queue_full": 6}
    sink.gate.set()
    assert bench.recorder.flush(5)
    assert [one for one in sink.got if isinstance(one, RewardedOutcome)] == [ended(i) for i in range(25)]
    bench.recorder.close(1)


class FullForDecisions(ListSink):
    """A spool at its limit, which still takes outcomes."""

    def write(self, records: Any) -> None:
        if self.error is None and any(isinstance(one, Decision) for one in records):
            raise SpoolFullError("spool is full")
        super().write(records)


def test_outcomes_go_past_decisions_that_a_full_spool_refuses() -> None:
    sink = FullForDecisions("spool")
    bench = Bench(sink)
    for i in range(20):
        bench.recorder.record(record(i))
        bench.recorder.record(ended(i))
    until = time.monotonic() + 10
    while len(sink.got) < 20 and time.monotonic() < until:
        time.sleep(0.002)
    assert sink.got == [ended(i) for i in range(20)]
    assert bench.count("spooled") == 20
    sink.write = sink.got.extend  # type: ignore[method-assign]
    assert bench.recorder.flush(5)
    assert sink.got[20:] == [record(i) for i in range(20)]
    assert bench.count("spooled") == 40
    bench.recorder.close(1)


@pytest.mark.parametrize(
    ("error", "cause"),
    [(SpoolFullError("full"), "spool_full"), (SpoolError("no space left"), "disk"), (OSError("gone"), "sink")],
)
def test_a_drop_is_counted_by_its_cause(error: Exception, cause: str, caplog: pytest.LogCaptureFixture) -> None:
    sink = ListSink()
    sink.error = error
    bench = Bench(sink, queue_size=100)
    assert bench.recorder.record(record(0))
    until = time.monotonic() + 10
    while not bench.failures("sink list") and time.monotonic() < until:
        time.sleep(0.002)
    for i in range(1, 150):
        bench.recorder.record(record(i))
    assert bench.drops() == {cause: 50}
    assert sum("records are being dropped" in one.getMessage() for one in caplog.records) == 1
    bench.recorder.close(0.1)
    assert bench.drops() == {cause: 50, "shutdown": 100}
    assert not bench.recorder.record(record(1))
    assert bench.drops()["closed"] == 1
    assert bench.count("dropped") == 151


def test_what_is_left_at_the_end_is_counted_as_dropped() -> None:
    sink = ListSink()
    sink.error = OSError("gone")
    bench = Bench(sink)
    for i in range(7):
        bench.recorder.record(record(i))
    bench.recorder.close(0.2)
    assert bench.count("dropped") == 7
    assert not bench.recorder.record(record(8)), "closed"
    assert bench.count("dropped") == 8
    bench.recorder.close(0.2)
    assert sink.closed == 1


def test_waiting_for_the_disk() -> None:
    sink = ListSink()
    bench = Bench(sink, flush_ms=60_000)
    durable = threading.Event()
    assert bench.recorder.record(record(1), durable)
    assert durable.wait(5), "at once, not after flush_ms"
    assert len(sink.got) == 1
    sink.error = OSError("full")
    late = threading.Event()
    bench.recorder.record(record(2), late)
    assert not late.wait(0.1)
    sink.error = None
    bench.recorder.flush(5)
    assert late.wait(1)
    bench.recorder.close(1)


# -- through a host and its spool


def test_sync_durability_has_it_on_disk_when_decide_and_finished_return(kit: Any) -> None:
    host = kit.start({"recording": {"durability": "sync", "flush_ms": 60_000}, "decision_budget_ms": 5000})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert [record.decision_id for record in kit.spooled(host)] == [decision.decision_id]
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert len(kit.spooled(host)) == 2


def test_sync_durability_still_keeps_the_budget(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "spool").write_text("a file where the folder should be")
    host = kit.start({"recording": {"durability": "sync"}, "decision_budget_ms": 50})
    started = time.monotonic()
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.finished(Outcome(decision_id=decision.decision_id))
    assert time.monotonic() - started < 2, "it never gets durable, and nobody waits for that"
    assert decision.reason is Reason.APPLIED
    assert kit.counted(host, "nhm_sched_component_errors_total", component="recorder") >= 1


def test_a_spool_folder_that_comes_late_gets_everything(kit: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "spool").write_text("in the way")
    host = kit.start()
    ids = [host.decide(kit.TICKET, kit.BUSY).decision_id for _ in range(5)]
    assert not host.flush(0.2)
    assert kit.counted(host, "nhm_sched_component_errors_total", component="sink spool") >= 1
    (data / "spool").unlink()
    assert host.flush(10)
    assert [record.decision_id for record in kit.spooled(host)] == ids
    assert kit.counted(host, "nhm_sched_records_total", state="dropped") == 0


def test_a_spool_folder_that_goes_away_later_is_made_anew(kit: Any, tmp_path: Path) -> None:
    import shutil

    host = kit.start()
    host.decide(kit.TICKET, kit.BUSY)
    assert host.flush()
    shutil.rmtree(tmp_path / "data" / "spool")
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert host.flush(10)
    assert decision.decision_id in {record.decision_id for record in kit.spooled(host)}


def test_a_full_spool_takes_more_once_it_is_drained(kit: Any) -> None:
    host = kit.start({"recording": {"spool_max_mb": 1}})
    ticket = Ticket(ticket_id="x" * 20_000)
    decided = [host.decide(ticket, kit.BUSY).decision_id for _ in range(80)]
    assert not host.flush(1.0)
    assert kit.counted(host, "nhm_sched_component_errors_total", component="sink spool") >= 1
    delivered: list[str] = []
    spool = Spool(host.settings.spool_path)

    def drain() -> bool:
        for batch in spool.batches(1000):
            delivered.extend(item.record.decision_id for item in batch.records)
            spool.ack(batch)
        return len(delivered) >= 80

    until = time.monotonic() + 20
    while not drain() and time.monotonic() < until:
        host.flush(0.2)
    spool.close()
    assert delivered == decided
    assert kit.counted(host, "nhm_sched_records_total", state="dropped") == 0


FULL_DISK = """
    import json, resource, signal, sys, time
    from nhm_sched_plugin import SchedulerHost, SchedulingState, Ticket

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    config = {"data_dir": sys.argv[1], "metrics": {"enabled": False}, "decision_budget_ms": 1000}
    host = SchedulerHost.from_config(config)
    state = SchedulingState(queue_depth=50, active_workers=5)
    host.decide(Ticket(ticket_id="before"), state)
    assert host.flush(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))      # nothing can grow beyond 4 KB: the disk is full
    ids = [host.decide(Ticket(ticket_id=f"during-{i}"), state).decision_id for i in range(50)]
    full = host.flush(1.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recovered = host.flush(20)
    value = host.metrics.registry.get_sample_value
    print(json.dumps({
        "decided": len(set(ids)), "flushed while full": full, "flushed after": recovered,
        "failures": value("nhm_sched_component_errors_total", {"component": "sink spool"}),
        "dropped": value("nhm_sched_records_total", {"state": "dropped"}) or 0}))
    host.close()
"""


def test_a_full_disk_delays_records_and_loses_none(tmp_path: Path) -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["decided"], report["flushed while full"], report["flushed after"]) == (50, False, True)
    assert report["failures"] >= 1
    assert report["dropped"] == 0
    spool = Spool(tmp_path / "spool")
    tickets = [item.record.ticket_id for batch in spool.batches(1000) for item in batch.records]
    spool.close()
    assert sorted(tickets) == sorted(["before", *(f"during-{i}" for i in range(50))])


def test_recording_switched_off_writes_nothing(kit: Any, tmp_path: Path) -> None:
    host = kit.start({"recording": {"enabled": False}})
    host.finished(Outcome(decision_id=host.decide(kit.TICKET, kit.BUSY).decision_id))
    assert host.flush()
    host.close()
    assert not (tmp_path / "data" / "spool").exists()


def test_a_third_partys_own_trylast_sink_does_not_take_the_spools_place(kit: Any) -> None:
    mine = ListSink("mine")
    mine.error = RuntimeError("always")
    plugin = kit.SimpleNamespace(
        nhm_sched_make_sinks=kit.hookimpl(trylast=True)(lambda settings: [mine]),
    )
    host = kit.start(plugins={"mine": plugin})
    host.decide(kit.TICKET, kit.BUSY)
    kit.wait_for(lambda: kit.counted(host, "nhm_sched_records_total", state="spooled") == 1)
    assert len(kit.spooled(host)) == 1


def test_kill_after_flush_loses_nothing(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from nhm_sched_plugin import SchedulerHost, Ticket
        host = SchedulerHost.from_config({"data_dir": sys.argv[1], "metrics": {"enabled": False}})
        for i in range(30):
            host.decide(Ticket(ticket_id=str(i)))
        assert host.flush(20)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], timeout=60, check=False)
    config = {"data_dir": str(tmp_path), "metrics": {"enabled": False}}
    with SchedulerHost.from_config(config) as host:
        spool = Spool(host.settings.spool_path)
        assert spool.pending() == 30
        spool.close()
