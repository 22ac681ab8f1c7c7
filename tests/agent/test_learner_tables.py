"""Tables that somebody else writes: reset, pre-training, promotion, damage. What of the ledger is learned on top?"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nhm_sched_plugin.agent import ledger as ledger_module
from nhm_sched_plugin.cli.commands import app
from nhm_sched_plugin.policy.learning import QPolicy
from nhm_sched_plugin.policy.qtable import QTable

_found = importlib.util.spec_from_file_location("learning", Path(__file__).with_name("learning.py"))
assert _found is not None
assert _found.loader is not None
learning = importlib.util.module_from_spec(_found)
_found.loader.exec_module(learning)
Agent, outcome, policy_in = learning.Agent, learning.outcome, learning.policy_in
replayed, same, settings_in = learning.replayed, learning.same, learning.settings_in


def test_a_reset_while_running_forgets_what_came_before_it_and_nothing_else(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=4)
    agent, peer = Agent(settings), Agent(settings)
    agent.record(*range(10))
    agent.learner.follow()
    config = tmp_path / "config.yaml"
    config.write_text(f"data_dir: {tmp_path}\n")
    done = CliRunner().invoke(app, ["q-table", "reset", "--yes", "--config", str(config)])
    assert done.exit_code == 0, done.output
    agent.record(10, 11)
    peer.record(12)
    for each in (agent, peer, Agent(settings)):
        each.learner.follow()
        assert same(each.table, replayed(settings, [outcome(number) for number in (10, 11, 12)]))
    assert not agent.learner.record([outcome(3)])[0].accepted, "known, though forgotten"


def test_a_table_without_a_mark_counts_from_when_it_was_found(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=1)
    agent, peer = Agent(settings), Agent(settings)
    agent.record(1)
    agent.learner.follow()
    stranger = replayed(settings, [outcome(number) for number in range(100, 120)])
    stranger.save(settings.q_table_path)
    agent.record(2)
    peer.learner.follow()
    agent.record(3)
    for each in (agent, peer, Agent(settings)):
        each.learner.follow()
        assert same(each.table, replayed(settings, [outcome(3)], stranger.copy()))


def test_the_first_table_that_comes_gets_everything_on_top(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    agent = Agent(settings)
    agent.record(1, 2)
    stranger = replayed(settings, [outcome(number) for number in range(100, 120)])
    stranger.save(settings.q_table_path)
    again = Agent(settings)
    agent.learner.follow()
    expected = replayed(settings, [outcome(1), outcome(2)], stranger.copy())
    assert same(agent.table, expected)
    assert same(again.table, expected)


def test_what_was_recorded_during_a_pre_training_is_learned_on_top_of_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=2)
    agent = Agent(settings)
    agent.record(1, 2, 3)
    agent.learner.close()
    training = QPolicy(settings, lambda *_: learning.KEEP, autosave=False)
    agent.record(4, 5, 6, 7)
    agent.learner.follow()
    for number in range(100, 110):
        training.learn(outcome(number))
    training.save()
    trained = QTable.load(settings.q_table_path)
    agent.learner.follow()
    assert same(agent.table, replayed(settings, [outcome(number) for number in (4, 5, 6, 7)], trained))


def test_a_table_too_old_to_catch_up_counts_from_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "KEPT", 3)
    settings = settings_in(tmp_path, update_interval=1)
    agent = Agent(settings)
    agent.record(1, 2)
    agent.learner.follow()
    old = settings.q_table_path.read_bytes()
    for number in range(3, 13):
        agent.record(number)
        agent.learner.follow()
    settings.q_table_path.write_bytes(old)
    with caplog.at_level(logging.WARNING):
        agent.learner.follow()
    assert "can no longer be learned from" in caplog.text
    assert same(agent.table, replayed(settings, [outcome(1), outcome(2)]))
    agent.record(13)
    assert same(Agent(settings).table, replayed(settings, [outcome(1), outcome(2), outcome(13)]))


def test_a_host_that_saves_into_the_same_file_loses_nothing_of_either(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=1)
    agent = Agent(settings)
    agent.record(1, 2)
    agent.learner.follow()
    host = policy_in(settings)
    agent.record(3)
    agent.learner.follow()
    host.learn(outcome(100))
    agent.record(4)
    agent.learner.follow()
    assert agent.table.updates == 5
    assert same(agent.table, replayed(settings, [outcome(number) for number in (1, 2, 3, 100, 4)]))


def test_a_damaged_table_is_set_aside_and_learned_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_in(tmp_path, update_interval=2)
    agent = Agent(settings)
    agent.record(1, 2, 3)
    agent.learner.close()
    settings.q_table_path.write_bytes(b"rubbish")
    agent.learner.follow()
    assert same(QTable.load(settings.q_table_path), agent.table), "the one in memory takes its place"
    assert (tmp_path / "snapshots" / "q_table.json.corrupt-1").read_bytes() == b"rubbish"
    settings.q_table_path.write_bytes(b"rubbish again")
    again = Agent(settings)
    assert same(again.table, replayed(settings, [outcome(number) for number in (1, 2, 3)])), "from the ledger alone"
    agent.learner.follow()
    assert same(again.table, agent.table)


def test_a_table_that_has_gone(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=2)
    agent = Agent(settings)
    agent.record(1, 2, 3)
    agent.learner.close()
    settings.q_table_path.unlink()
    agent.learner.follow()
    assert QTable.load(settings.q_table_path).updates == 3, "a running agent writes it again"
    settings.q_table_path.unlink()
    again = Agent(settings)
    assert again.table.updates == 0, "one that starts takes it for somebody's wish to begin anew"
    again.record(4)
    again.learner.close()
    assert QTable.load(settings.q_table_path).updates == 1


def test_the_ledger_of_another_agent_means_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, update_interval=1)
    elsewhere = settings_in(tmp_path / "elsewhere", update_interval=1)
    other = Agent(elsewhere)
    other.record(*range(100, 110))
    other.learner.close()
    settings.q_table_path.parent.mkdir(parents=True)
    shutil.copy(elsewhere.q_table_path, settings.q_table_path)
    agent = Agent(settings)
    agent.record(1)
    assert same(agent.table, replayed(settings, [outcome(number) for number in (*range(100, 110), 1)]))
    assert same(Agent(settings).table, agent.table)


def test_a_planner_that_changes_makes_no_two_tables(tmp_path: Path) -> None:
    """What an outcome does is settled when it is recorded, not when it is applied."""
    settings = settings_in(tmp_path, update_interval=1000)
    agent = Agent(settings)
    agent.record(*range(30))
    other = settings.model_copy(update={"planner": settings.planner.model_copy(update={"startup_s": 3600.0})})
    other = other.model_copy(update={"limits": settings.limits.model_copy(update={"max_workers": 3})})
    assert same(Agent(other).table, agent.table)
