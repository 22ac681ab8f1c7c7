"""SchedulerHost as an orchestrator meets it: it never raises, survives forks and exits, and loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pluggy
import pytest

from nhm_sched_plugin import (
    Action,
    Decision,
    Outcome,
    Reason,
    SchedulerHost,
    SchedulingState,
    Source,
    Ticket,
)
from nhm_sched_plugin.errors import ConfigError, RuleBookError
from nhm_sched_plugin.hookspecs import SchedulerSpecs
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.store.spool import Spool


def run(code: str, *arguments: str, timeout: float = 60) -> str:
    """A script in a process of its own; what it prints. Fails with its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_disk(folder: Path) -> list[Any]:
    spool = Spool(folder / "spool")
    try:
        return [item.record for batch in spool.batches(1000) for item in batch.records]
    finally:
        spool.close()


# -- starting


def test_nothing_configured_and_nothing_there_is_a_running_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NHM_SCHED_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NHM_SCHED_METRICS__PORT", "0")
    with SchedulerHost.from_config() as host:
        decision = host.decide(Ticket(ticket_id="t"), SchedulingState(queue_depth=100, active_workers=5))
        assert decision.reason is Reason.FORECAST_UNAVAILABLE
        assert decision.source is Source.FALLBACK
        assert not next(part for part in host.health() if part.component == "forecaster").ok


def test_only_what_a_person_must_mend_stops_a_start(tmp_path: Path, kit: Any) -> None:
    with pytest.raises(ConfigError, match=r"recommendation_confidence_threshold.*1\.7"):
        kit.start({"optimizer": {"recommendation_confidence_threshold": 1.7}})
    with pytest.raises(RuleBookError, match="no such rule book"):
        kit.start({"fallback": {"rule_book": "nowhere.yaml"}})
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        SchedulerHost.from_config(tmp_path / "missing.yaml")
    before = {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConfigError):  # beyond loopback without protection
        kit.start({"metrics": {"enabled": True, "host": "0.0.0.0", "port": 0}})  # noqa: S104
    # A refused start leaves no thread behind.
    kit.wait_for(lambda: not {thread.name for thread in threading.enumerate()} - before)


def test_services_that_are_down_do_not_stop_a_start(tmp_path: Path, kit: Any) -> None:
    """Unreadable snapshots, an unusable data_dir, a taken port, an agent that nobody can reach."""
    snapshots = tmp_path / "data" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "forecast.json").write_text("{ not json")
    (snapshots / "q_table.json").write_text("{ not json")
    broken = kit.start(built_in=True)
    assert broken.decide(kit.TICKET, kit.BUSY).reason is Reason.FORECAST_UNAVAILABLE
    assert {part.component for part in broken.health() if not part.ok} == {"forecaster", "policy"}

    (tmp_path / "file").write_text("")
    nowhere = kit.start({"data_dir": str(tmp_path / "file")})
    assert nowhere.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED
    assert not nowhere.flush(0.3)
    assert kit.counted(nowhere, "nhm_sched_component_errors_total", component="sink spool") >= 1

    taken = kit.start({"metrics": {"enabled": True, "port": 0}})
    port = taken._plugin._listener._server.server_port
    second = kit.start({"metrics": {"enabled": True, "port": port}})
    assert second.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED
    assert kit.counted(second, "nhm_sched_component_errors_total", component="metrics listener") == 1

    remote = kit.start({"optimizer": {"endpoint": "nowhere.invalid:50053"}}, built_in=True)
    assert remote.decide(kit.TICKET, kit.BUSY).reason is Reason.OPTIMIZER_UNAVAILABLE


def test_a_pluggy_host_of_its_own_can_load_the_plugin(tmp_path: Path) -> None:
    from nhm_sched_plugin.plugin import SchedulerPlugin

    manager = pluggy.PluginManager("nhm_sched")
    manager.add_hookspecs(SchedulerSpecs)
    manager.register(SchedulerPlugin(), "nhm-sched-plugin")
    manager.check_pending()
    assert manager.hook.nhm_sched_decide(ticket=None, state=SchedulingState()) is None, "idle before its start"
    config = {"data_dir": str(tmp_path), "metrics": {"enabled": False}}
    manager.hook.nhm_sched_startup.call_historic(kwargs={"config": config, "host": None})
    decision = manager.hook.nhm_sched_decide(ticket=Ticket(ticket_id="t"), state=SchedulingState())
    assert isinstance(decision, Decision)
    manager.hook.nhm_sched_shutdown(grace_s=2.0)


# -- outcomes


def test_an_outcome_finds_its_decision_and_teaches_the_policy(kit: Any) -> None:
    policy = kit.FixedPolicy()
    host = kit.start(policy=policy)
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.applied(decision)
    better = kit.msgspec.structs.replace(kit.BUSY, sla_compliance_rate=1.0)
    host.finished(Outcome(decision_id=decision.decision_id, ticket_id="t1", sla_met=True, state_after=better))
    assert host.flush()
    (learned,) = policy.learned
    assert learned.action is Action.INCREASE_WORKER_POOL
    assert learned.parameters == {"target_workers": 12}
    assert learned.reward == pytest.approx(0.4)
    assert learned.state.predicted_load_1h == 500.0
    record = kit.spooled(host)[-1]
    assert (record.reward, record.applied, record.executed_action) == (
        pytest.approx(0.4), True, Action.INCREASE_WORKER_POOL,
    )  # fmt: skip
    assert record.outcome.finished_at is not None
    assert kit.counted(host, "optimizer_scheduling_policy_raw_reward") == pytest.approx(0.4)
    assert kit.counted(host, "optimizer_sla_compliance_after_optimization") == 1.0


def test_what_was_not_applied_was_no_action(kit: Any) -> None:
    policy = kit.FixedPolicy()
    host = kit.start(policy=policy)
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.applied(decision, False, "no quota")
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert host.flush()
    assert policy.learned[0].action is Action.NO_ACTION
    assert policy.learned[0].parameters == {}
    record = kit.spooled(host)[-1]
    assert (record.applied, record.executed_action, record.error) == (False, Action.NO_ACTION, "no quota")


def test_an_outcome_of_an_unknown_decision_is_recorded_with_its_own_states(kit: Any) -> None:
    policy = kit.FixedPolicy()
    host = kit.start(policy=policy)
    host.finished(Outcome(decision_id="from-before-the-restart", state_before=kit.BUSY, state_after=kit.BUSY))
    host.finished(Outcome(decision_id="nothing-known"))
    assert host.flush()
    first, second = kit.spooled(host)
    assert (first.reward, first.executed_action) == (0.0, None)
    assert (second.reward, second.executed_action) == (None, None)
    assert policy.learned == [], "nobody knows what was executed"


def test_an_outcome_before_its_decision_is_applied_and_twice(kit: Any) -> None:
    host = kit.start()
    decision = host.decide(kit.TICKET, kit.BUSY)
    outcome = Outcome(decision_id=decision.decision_id, state_after=kit.BUSY)
    host.finished(outcome)
    host.applied(decision)
    host.finished(outcome)
    assert host.flush()
    first, second = kit.spooled(host)[1:]
    assert first.applied in (None, True), "depends on whether the background was quicker"
    assert second.applied is True


def test_an_applied_pool_action_starts_the_cooldown(kit: Any) -> None:
    shrink = kit.Recommendation(action=Action.DECREASE_WORKER_POOL, parameters={"target_workers": 9}, confidence=1.0)
    now = [1_800_000_000.0]
    idle = kit.msgspec.structs.replace(kit.BUSY, queue_depth=0)
    host = kit.start(policy=kit.FixedPolicy(shrink), clock=lambda: now[0])
    first = host.decide(None, idle)
    assert first.reason is Reason.APPLIED
    host.applied(first)
    now[0] += 59
    assert [veto.guard for veto in host.decide(None, idle).vetoes] == ["cooldown"]
    now[0] += 2
    assert host.decide(None, idle).reason is Reason.APPLIED


@pytest.mark.parametrize("call", ["applied", "finished"])
@pytest.mark.parametrize("garbage", [None, 5, "x", object()])
def test_garbage_in_reports_never_raises(kit: Any, call: str, garbage: Any) -> None:
    host = kit.start()
    getattr(host, call)(garbage)
    assert host.flush()
    assert kit.counted(host, "nhm_sched_component_errors_total", component="host") == 1
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED


def test_an_error_without_a_text_of_its_own(kit: Any) -> None:
    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError("no text")

    host = kit.start()
    host.applied(host.decide(kit.TICKET, kit.BUSY), False, Mute())
    assert kit.counted(host, "nhm_sched_component_errors_total", component="host") == 1


# -- time


def test_a_clock_that_jumps_back_is_survived(kit: Any) -> None:
    now = [1_800_000_000.0]
    host = kit.start(clock=lambda: now[0])
    seen = []
    for step in (0, 3600, -7200, -(10**8), 10**8, 60):
        now[0] += step
        decision = host.decide(kit.TICKET, kit.BUSY)
        assert decision.reason is Reason.APPLIED
        assert decision.decided_at == now[0]
        seen.append(decision.state.features["arrivals_last_hour"])
    assert all(count >= 1 for count in seen)
    assert seen[-1] == 2


@pytest.mark.parametrize("clock", [lambda: float("nan"), lambda: "noon", lambda: 1 / 0])
def test_a_broken_clock_gets_the_last_resort(kit: Any, clock: Any) -> None:
    host = kit.start(clock=clock)
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.action, decision.reason) == (Action.NO_ACTION, Reason.INTERNAL_ERROR)
    assert kit.counted(host, "nhm_sched_component_errors_total", component="host") >= 1


# -- several hosts, forks, exits


def test_two_hosts_in_one_process_share_nothing(tmp_path: Path, kit: Any) -> None:
    first, second = (kit.start({"data_dir": str(tmp_path / name)}) for name in ("a", "b"))
    ids = {host.decide(kit.TICKET, kit.BUSY).decision_id for host in (first, first, second)}
    assert len(ids) == 3
    for host in (first, second):
        assert host.flush()
    assert (len(kit.spooled(first)), len(kit.spooled(second))) == (2, 1)
    label = {"action": "INCREASE_WORKER_POOL", "source": "policy", "arm": "treatment"}
    assert kit.counted(first, "nhm_sched_decisions_total", **label) == 2
    assert kit.counted(second, "nhm_sched_decisions_total", **label) == 1


def test_many_threads_decide_at_once(kit: Any) -> None:
    host = kit.start({"decision_budget_ms": 5000}, plugins={"g": kit.plugin(guard=lambda recommendation: None)})
    decisions: list[Decision] = []

    def work() -> None:
        for _ in range(50):
            decision = host.decide(kit.TICKET, kit.BUSY)
            decisions.append(decision)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({decision.decision_id for decision in decisions}) == 300
    assert {decision.reason for decision in decisions} == {Reason.APPLIED}
    assert host.flush()
    assert len(kit.spooled(host)) == 300


FORKING = """
    import os, sys, threading
    from nhm_sched_plugin import SchedulerHost, SchedulingState, Ticket, hookimpl

    class Guard:
        @hookimpl
        def nhm_sched_guard(self, recommendation): return None
        @hookimpl
        def nhm_sched_collect_state(self, ticket): return {"pid": os.getpid()}

    host = SchedulerHost.from_config(
        {"data_dir": sys.argv[1], "metrics": {"enabled": False}, "decision_budget_ms": 2000,
         "recording": {"flush_ms": 2000}},
        plugins={"guard": Guard()})
    state = SchedulingState(queue_depth=50, active_workers=5)
    for i in range(20):
        host.decide(Ticket(ticket_id=f"before-{i}"), state)     # still queued when the fork happens
    stop = threading.Event()
    def keep_busy():
        i = 0
        while not stop.wait(0.001):
            host.decide(Ticket(ticket_id=f"meanwhile-{(i := i + 1)}"), state)
    thread = threading.Thread(target=keep_busy)
    thread.start()
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            decision = host.decide(Ticket(ticket_id=f"child-{number}"), state)
            ok = decision.state.features["pid"] == os.getpid() and host.flush(20)
            host.close()
            os._exit(0 if ok else 7)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    stop.set()
    thread.join()
    host.decide(Ticket(ticket_id="after"), state)
    host.close()
    print(codes)
"""


def test_a_forked_child_decides_and_records_and_nothing_is_doubled(tmp_path: Path) -> None:
    assert run(FORKING, str(tmp_path)).strip() == "[0, 0, 0, 0]"
    tickets = [record.ticket_id for record in on_disk(tmp_path)]
    expected = {f"before-{i}" for i in range(20)} | {f"child-{i}" for i in range(4)} | {"after"}
    assert expected <= set(tickets)
    assert len(tickets) == len(set(tickets)), "nothing twice"
    ids = [record.decision_id for record in on_disk(tmp_path)]
    assert len(ids) == len(set(ids))


def test_what_was_learned_before_a_fork_is_saved_once(tmp_path: Path) -> None:
    code = """
        import os, sys
        from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState, Ticket
        host = SchedulerHost.from_config({"data_dir": sys.argv[1], "metrics": {"enabled": False}})
        state = SchedulingState(queue_depth=50, active_workers=5, avg_task_duration_ms=60000, resource_cpu_avg=0.9)
        def learn(name):
            decision = host.decide(Ticket(ticket_id=name), state)
            host.applied(decision)
            host.finished(Outcome(decision_id=decision.decision_id, state_after=state))
        for i in range(10):
            learn(str(i))
        assert host.flush(20)
        child = os.fork()
        if child == 0:
            learn("child")
            ok = host.flush(20)
            host.close()
            os._exit(0 if ok else 7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        host.close()
    """
    run(code, str(tmp_path))
    assert QTable.load(tmp_path / "snapshots" / "q_table.json").updates == 11


def test_what_was_decided_is_written_when_nobody_closes_the_host(tmp_path: Path) -> None:
    code = """
        import sys
        from nhm_sched_plugin import SchedulerHost, Ticket
        host = SchedulerHost.from_config(
            {"data_dir": sys.argv[1], "metrics": {"enabled": False}, "recording": {"flush_ms": 60000}})
        host.decide(Ticket(ticket_id="last words"))
    """
    run(code, str(tmp_path))
    assert [record.ticket_id for record in on_disk(tmp_path)] == ["last words"]


def test_a_sleeping_hook_does_not_keep_the_process_from_exiting(tmp_path: Path) -> None:
    code = """
        import sys, time
        from nhm_sched_plugin import SchedulerHost, Ticket, hookimpl
        class Slow:
            @hookimpl
            def nhm_sched_collect_state(self, ticket): time.sleep(3600)
        host = SchedulerHost.from_config({"data_dir": sys.argv[1], "metrics": {"enabled": False}},
                                         plugins={"slow": Slow()})
        host.decide(Ticket(ticket_id="t"))
    """
    started = time.monotonic()
    run(code, str(tmp_path))
    assert time.monotonic() - started < 30


def test_close_twice_and_decide_afterwards(kit: Any) -> None:
    host = kit.start()
    host.decide(kit.TICKET, kit.BUSY)
    host.close()
    host.close()
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.action, decision.source, decision.ticket_id) == (Action.NO_ACTION, Source.DEFAULT, "t1")
    host.applied(decision)
    host.finished(Outcome(decision_id=decision.decision_id))
    assert host.health() == [kit.Health(component="plugin", ok=False, detail="not started")]
    assert len(kit.spooled(host)) == 1


def test_close_saves_what_the_policy_learned(kit: Any) -> None:
    policy = kit.FixedPolicy()
    kit.start(policy=policy).close()
    assert policy.saved == 1


def test_close_keeps_to_its_grace_while_everything_sleeps(kit: Any) -> None:
    class Sink:
        name = "stuck"

        def write(self, records: Any) -> None:
            time.sleep(30)

        def close(self) -> None: ...

    stuck = kit.plugin(
        make_sinks=lambda settings: [Sink()],
        after_decision=lambda record: time.sleep(30),
        shutdown=lambda grace_s: time.sleep(30),
    )
    host = kit.start(plugins={"stuck": stuck})
    host.decide(kit.TICKET, kit.BUSY)
    started = time.monotonic()
    host.close(1.0)
    assert time.monotonic() - started < 3.0
    assert len(kit.spooled(host)) == 1, "the spool did not wait for the others"


def test_a_context_manager_closes_and_lets_errors_through(tmp_path: Path) -> None:
    config = {"data_dir": str(tmp_path), "metrics": {"enabled": False}}

    def orchestrate() -> None:
        with SchedulerHost.from_config(config) as host:
            host.decide(Ticket(ticket_id="t"))
            raise KeyError("the orchestrator's own")

    with pytest.raises(KeyError):
        orchestrate()
    assert len(on_disk(tmp_path)) == 1


def test_importing_the_host_stays_light() -> None:
    code = """
        import sys
        import nhm_sched_plugin
        from nhm_sched_plugin import SchedulerHost
        import nhm_sched_plugin.host
        heavy = {"pandas", "numpy", "prophet", "statsmodels", "mlflow", "chdb", "clickhouse_connect", "matplotlib",
                 "typer", "rich", "grpc"}
        print(sorted(heavy & set(sys.modules)))
    """
    assert run(code).strip() == "[]"


def test_deciding_stays_light(tmp_path: Path, kit: Any) -> None:
    kit.write_forecast(tmp_path)
    code = """
        import sys
        from nhm_sched_plugin import Outcome, SchedulerHost, SchedulingState, Ticket
        with SchedulerHost.from_config({"data_dir": sys.argv[1], "metrics": {"port": 0}}) as host:
            state = SchedulingState(queue_depth=50, active_workers=5, avg_task_duration_ms=60000)
            decision = host.decide(Ticket(ticket_id="t"), state)
            assert decision.forecast is not None
            host.finished(Outcome(decision_id=decision.decision_id, state_after=state))
            host.flush()
        heavy = {"pandas", "numpy", "prophet", "statsmodels", "mlflow", "chdb", "clickhouse_connect", "matplotlib"}
        print(sorted(heavy & set(sys.modules)))
    """
    assert run(code, str(tmp_path)).strip() == "[]"
    assert os.path.exists(tmp_path / "spool")
