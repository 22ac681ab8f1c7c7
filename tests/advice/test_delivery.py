"""Outcomes reach the agent: all of them, in order, whatever dies in between; and forked children go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin import Action, Outcome, SchedulerHost, SchedulingState, load_settings
from nhm_sched_plugin.advice.remote.calls import Caller
from nhm_sched_plugin.advice.remote.delivery import BATCH, Delivery
from nhm_sched_plugin.advice.remote.outbox import Outbox, Waiting
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.types import Experience
from tests.advice.conftest import finish, remote
from tests.advice.scripted import AgentProcess, ScriptedAgent, free_port

Ask = Callable[..., SchedulerHost]
ROOT = Path(__file__).parents[2]
AFTER = SchedulingState(sla_compliance_rate=0.95)


def outbox(host: SchedulerHost) -> Outbox:
    return remote(host).delivery.outbox  # type: ignore[no-any-return]


@pytest.fixture
def agent(folder: Path) -> Iterator[ScriptedAgent]:
    made = ScriptedAgent(folder, threads=1).start()
    yield made
    made.stop()


@pytest.fixture
def process(folder: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(folder)
    yield made
    made.kill()


def test_what_was_executed_reaches_the_agent_in_order(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address, grpc_timeout=30)  # one that fails is sent again later, out of order
    ids = finish(host, kit, 300)
    kit.wait_for(lambda: len(agent.taken) == 300, 30)
    assert [one.decision_id for one in agent.taken] == ids
    first = agent.taken[0]
    assert first.action in list(Action)
    assert first.state.queue_depth == kit.BUSY.queue_depth
    assert first.next_state.sla_compliance_rate == 0.95
    assert -1 <= first.reward <= 1
    kit.wait_for(lambda: outbox(host).waiting() == 0)
    assert kit.counted(host, "nhm_sched_outcomes_sent_total", status="delivered") == 300
    assert kit.counted(host, "nhm_sched_outbox_waiting") == 0


def test_they_wait_on_disk_while_the_agent_is_away(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    agent.stop()
    host = ask(agent.address)
    ids = finish(host, kit, 50)
    kit.wait_for(lambda: outbox(host).waiting() == 50)
    host.close()
    again = ask(agent.address)
    agent.start()
    again.decide(None, kit.BUSY)
    kit.wait_for(lambda: len(agent.taken) == 50, 30)
    assert [one.decision_id for one in agent.taken] == ids


def test_a_refused_outcome_holds_up_nobody(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    agent.stop()
    host = ask(agent.address)
    ids = finish(host, kit, 20)
    agent.refuse = {ids[0], ids[7]}
    agent.start()
    kit.wait_for(lambda: len(agent.taken) == 18, 30)
    assert [one.decision_id for one in agent.taken] == [one for one in ids if one not in agent.refuse]
    kit.wait_for(lambda: kit.counted(host, "nhm_sched_outcomes_sent_total", status="refused") == 2)
    refused = outbox(host).refused()
    assert [one[0] for one in refused] == [ids[0], ids[7]]
    assert "decision_id: is not welcome" in refused[0][1]


def outcome(number: int = 0, **given: Any) -> Experience:
    usual = {"decision_id": f"d{number}", "state": AFTER, "action": Action.NO_ACTION, "reward": 0.1}
    return Experience(**{**usual, **given})


def test_a_whole_batch_that_is_refused_holds_up_nobody(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address)
    agent.refuse = {f"d{number}" for number in range(BATCH + 10)}
    for number in range(BATCH + 11):
        host._plugin.policy.learn(outcome(number))  # type: ignore[union-attr]
    kit.wait_for(lambda: [one.decision_id for one in agent.taken] == [f"d{BATCH + 10}"], 30)
    kit.wait_for(lambda: outbox(host).waiting() == 0, 30)


@pytest.mark.parametrize(
    "wrong",
    [
        {"decision_id": "\ud800"},
        {"decision_id": 1 << 63},
        {"parameters": {"target_workers": 1 << 70}},
        {"parameters": {"target_workers": None}},
    ],
)
def test_what_cannot_be_written_down_is_refused_at_once(
    agent: ScriptedAgent, ask: Ask, kit: Any, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    host = ask(agent.address)
    learn = host._plugin.policy.learn  # type: ignore[union-attr]
    for number in range(3):
        learn(outcome(number, **wrong))
        learn(outcome(number))
    kit.wait_for(lambda: len(agent.taken) == 3, 30)
    assert [one.decision_id for one in agent.taken] == ["d0", "d1", "d2"]
    assert kit.counted(host, "nhm_sched_outcomes_sent_total", status="unwritable") == 3
    assert outbox(host).refused() == []
    said = [
        one for one in caplog.records if "cannot be written down" in one.getMessage() and one.levelname == "WARNING"
    ]
    assert len(said) == 1


def test_an_outcome_too_long_for_this_agent_holds_up_nobody(folder: Path, ask: Ask, kit: Any) -> None:
    agent = ScriptedAgent(folder, threads=1, most_bytes=1024).start()
    try:
        host = ask(agent.address)
        learn = host._plugin.policy.learn  # type: ignore[union-attr]
        for number in range(10):
            learn(outcome(number, parameters={f"p{each}": "x" * 200 for each in range(10)}))
        learn(outcome(10))
        kit.wait_for(lambda: agent.taken, 30)
        kit.wait_for(lambda: outbox(host).waiting() == 0, 30)
        assert kit.counted(host, "nhm_sched_outcomes_sent_total", status="refused") == 10
        assert "larger than max" in outbox(host).refused()[0][1]
        assert remote(host)._caller.endpoints.ready() is not None
    finally:
        agent.stop()


def test_a_state_that_no_agent_would_take_is_sent_without_what_is_wrong(
    agent: ScriptedAgent, ask: Ask, kit: Any
) -> None:
    host = ask(agent.address)
    decision = host.decide(None, kit.BUSY)
    after: Any = SchedulingState(
        queue_depth=-5, sla_compliance_rate=0.9, resource_cpu_avg=1.7, features={"bad": float("nan"), "good": 1.0}
    )
    host.finished(Outcome(decision_id=decision.decision_id, state_after=after))
    kit.wait_for(lambda: agent.taken, 30)
    sent = agent.taken[0].next_state
    assert not sent.HasField("queue_depth")
    assert not sent.HasField("resource_cpu_avg")
    assert sent.sla_compliance_rate == 0.9
    assert dict(sent.features) == {"good": 1.0}


def test_an_agent_that_is_full_gets_everything_in_the_end(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    host = ask(agent.address)
    agent.mode = "full"
    ids = finish(host, kit, 40)
    kit.wait_for(lambda: agent.count("RecordActionOutcome") > 2, 30)
    agent.mode = "healthy"
    kit.wait_for(lambda: len({one.decision_id for one in agent.taken}) == 40, 30)
    assert {one.decision_id for one in agent.taken} == set(ids)


def test_nothing_is_lost_while_the_agent_dies_again_and_again(process: AgentProcess, ask: Ask, kit: Any) -> None:
    process.start()
    host = ask(process.address)
    ids: list[str] = []
    for _ in range(5):
        ids += finish(host, kit, 60)
        kit.wait_for(lambda: len(process.taken()) > 0, 30)
        process.kill()
        ids += finish(host, kit, 20)
        process.start()
    kit.wait_for(lambda: set(process.taken()) == set(ids), 60)
    kit.wait_for(lambda: outbox(host).waiting() == 0, 30)
    again = len(process.taken()) - len(ids)
    assert 0 <= again <= 5 * 32, "sent twice only where a confirmation was lost"


def test_nothing_is_lost_when_the_host_is_killed(process: AgentProcess, ask: Ask, kit: Any, tmp_path: Path) -> None:
    """`kill -9` in the middle: what `finished` had put into the outbox is delivered by the next host."""
    code = f"""
import sys
from pathlib import Path
from nhm_sched_plugin import Action, SchedulingState
from nhm_sched_plugin.advice.remote.outbox import Outbox, written
from nhm_sched_plugin.types import Experience
outbox = Outbox(Path({str(tmp_path / "host" / "outbox")!r}), 1 << 20)
state = SchedulingState(queue_depth=3.0)
for number in range(100_000):
    outcome = Experience(decision_id=f"d{{number}}", state=state, action=Action.NO_ACTION, reward=0.1)
    outbox.put([written(outcome, 0.0)])
    print(number, flush=True)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None
    for line in other.stdout:
        if int(line) >= 200:
            break
    other.send_signal(signal.SIGKILL)
    last = int([line, *other.stdout.read().split()][-1])
    other.wait(10)
    other.stdout.close()
    process.start()
    ask(process.address).decide(None, kit.BUSY)
    kit.wait_for(lambda: len(process.taken()) > last, 30)
    assert process.taken()[: last + 1] == [f"d{number}" for number in range(last + 1)]


def test_a_disk_that_refuses_is_waited_for(agent: ScriptedAgent, ask: Ask, kit: Any, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "outbox").write_text("a file where the folder belongs")
    host = ask(agent.address)
    ids = finish(host, kit, 5)
    kit.wait_for(lambda: kit.counted(host, "nhm_sched_component_errors_total", component="policy") >= 5, 30)
    (tmp_path / "host" / "outbox").unlink()
    kit.wait_for(lambda: len(agent.taken) == 5, 30)
    assert [one.decision_id for one in agent.taken] == ids


def test_what_waits_is_delivered_on_the_way_out(
    agent: ScriptedAgent, ask: Ask, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may need longer than a host waits; what is left then stays on disk.
    monkeypatch.setattr("nhm_sched_plugin.advice.remote.agent._LAST_DELIVERY_S", 30.0)
    host = ask(agent.address, grpc_timeout=30)
    host.decide(None, kit.BUSY)
    kit.wait_for(
        lambda: remote(host).mirror.fresh, 20
    )  # no decision calls the agent: a late answer would end the calls
    ids = finish(host, kit, 30)
    host.close(60.0)
    assert [one.decision_id for one in agent.taken] == ids
    assert outbox(host).waiting() == 0


class LateOutbox(Outbox):
    """In which something comes just after a look has found nothing more."""

    late: Callable[[], None] | None = None

    def first(self, count: int, after: int = 0) -> list[Waiting]:
        found = super().first(count, after)
        if not found and self.late is not None:
            late, self.late = self.late, None
            late()
        return found


def test_what_comes_at_the_end_of_a_look_is_waited_for(agent: ScriptedAgent, tmp_path: Path) -> None:
    metrics, box = Metrics(), LateOutbox(tmp_path / "outbox", 1 << 20)
    caller = Caller(load_settings({"endpoint": agent.address}).optimizer, metrics)
    delivery = Delivery(box, caller, metrics, Faults(metrics))
    try:
        assert not delivery.wait(0), "nobody has looked yet"
        box.late = lambda: delivery.put(outcome(1))
        delivery.deliver()
        assert not agent.taken
        assert not delivery.wait(0)
        delivery.deliver()
        assert [one.decision_id for one in agent.taken] == ["d1"]
        assert delivery.wait(0)
    finally:
        caller.close()
        delivery.close()


def test_what_the_disk_refuses_to_the_end_is_counted(ask: Ask, kit: Any, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "outbox").write_text("a file where the folder belongs")
    host = ask(f"127.0.0.1:{free_port()}")
    finish(host, kit, 3)
    host.close()
    assert kit.counted(host, "nhm_sched_outcomes_sent_total", status="dropped") == 3


def test_what_the_disk_takes_again_at_the_end_is_kept(ask: Ask, kit: Any, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "outbox").write_text("a file where the folder belongs")
    host = ask(f"127.0.0.1:{free_port()}")
    finish(host, kit, 3)
    assert host.flush(20)
    (tmp_path / "host" / "outbox").unlink()
    host.close()
    assert outbox(host).waiting() == 3


def test_a_forked_child_decides_and_delivers(process: AgentProcess, ask: Ask, kit: Any) -> None:
    """In the middle of calls, over and over; the parent goes on as well, and nobody crashes or hangs."""
    process.start()
    host = ask(process.address)
    host.decide(None, kit.BUSY)
    kit.wait_for(lambda: remote(host).mirror.fresh, 20)
    ids: list[str] = []
    for _ in range(10):
        ids += finish(host, kit, 5)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                mine = finish(host, kit, 3)
                assert host.decide(None, kit.BUSY).forecast is not None
                host._plugin._background.flush(20)  # `finished` learns in the background
                os.write(write, "\n".join(mine).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read) as told:
            ids += told.read().split()
        assert os.waitpid(child, 0)[1] == 0
    kit.wait_for(lambda: set(process.taken()) == set(ids), 60)


def test_a_child_goes_on_when_its_parent_is_gone(process: AgentProcess, folder: Path, tmp_path: Path, kit: Any) -> None:
    """Its own threads, its own connections, and its turn at the outbox."""
    code = f"""
import os, sys, time
from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState
busy = dict(queue_depth=5, active_workers=10, avg_task_duration_ms=60000, sla_compliance_rate=0.9)
host = SchedulerHost.from_config({{
    "data_dir": {str(tmp_path / "host")!r}, "metrics": {{"enabled": False}}, "decision_budget_ms": 400,
    "optimizer": {{"endpoint": {process.address!r}, "mirror_interval_s": 0.1}},
}})
remote = host._plugin._defaults._remote
while not remote.mirror.fresh:
    host.decide(None, busy)
    time.sleep(0.01)
if os.fork():
    os._exit(0)
while os.getppid() == {os.getpid()}:
    time.sleep(0.01)
while not remote._caller.endpoints.ready():
    decision = host.decide(None, busy)
    time.sleep(0.01)
decision = host.decide(None, busy)
assert decision.forecast is not None, decision
host.finished(Outcome(decision_id=decision.decision_id, state_after=SchedulingState(sla_compliance_rate=0.95)))
host.flush(20)
host.close()
print(decision.decision_id, flush=True)
"""
    process.start()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip(), done.stderr
    kit.wait_for(lambda: done.stdout.strip() in process.taken(), 30)


def test_two_hosts_of_one_folder_do_not_send_the_same(agent: ScriptedAgent, ask: Ask, kit: Any) -> None:
    """One delivers for both; each process of a host is one like that."""
    first, second = ask(agent.address), ask(agent.address)
    ids = []
    for _ in range(20):
        ids += finish(first, kit, 5) + finish(second, kit, 5)
    kit.wait_for(lambda: len(agent.taken) >= 200, 30)
    kit.wait_for(lambda: outbox(first).waiting() == 0)
    assert sorted(one.decision_id for one in agent.taken) == sorted(ids)


def test_the_oldest_are_dropped_and_counted(ask: Ask, kit: Any) -> None:
    host = ask(f"127.0.0.1:{free_port()}", outbox_max_mb=1)
    state = SchedulingState(queue_depth=3.0, features={f"feature_{number}": 1.0 for number in range(60)})
    until = time.monotonic() + 60
    number = 0
    while not kit.counted(host, "nhm_sched_outcomes_sent_total", status="dropped"):
        assert time.monotonic() < until
        remote(host).delivery.put(
            Experience(decision_id=f"d{number}", state=state, action=Action.NO_ACTION, reward=0.1, next_state=state)
        )
        number += 1
    dropped = kit.counted(host, "nhm_sched_outcomes_sent_total", status="dropped")
    assert outbox(host).waiting() == number - dropped
    assert outbox(host).first(1)[0].experience.decision_id == f"d{dropped:.0f}"
