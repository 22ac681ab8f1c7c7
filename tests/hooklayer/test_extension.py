"""The hook layer: what is found, what is refused, and that nobody's failure hurts anybody else."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nhm_sched_plugin import Action, Arm, Health, Outcome, Reason, Recommendation, Source, Veto, hookimpl
from nhm_sched_plugin.extension import Found, HookFailedError, HookManager, deadline, discover, inspect_hooks
from nhm_sched_plugin.hookspecs import ExtensionSpecs, SchedulerSpecs
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.settings import HooksSettings, load_settings

HOOKS = {
    name
    for specs in (SchedulerSpecs, ExtensionSpecs)
    for name, function in vars(specs).items()
    if inspect.isfunction(function)
}


@pytest.fixture
def manager() -> Any:
    made = HookManager(ExtensionSpecs, HooksSettings(max_strikes=3), Faults(Metrics()))
    yield made
    made.close()


def errors(manager: HookManager, hook: str, plugin: str) -> float:
    registry = manager._faults._metrics.registry
    return registry.get_sample_value("nhm_sched_hook_errors_total", {"hook": hook, "plugin": plugin}) or 0.0


# -- quick calls


class Own:
    """A built-in: one hook with a single answer, one with a list of answers."""

    answer: Any = Veto(guard="own", reason="x")

    @hookimpl(trylast=True)
    def nhm_sched_fallback(self, ticket: Any, state: Any, reason: str) -> Any:
        return reason

    @hookimpl(trylast=True)
    def nhm_sched_guard(self, ticket: Any, state: Any, recommendation: Any) -> Any:
        return self.answer

    @hookimpl(trylast=True)
    def nhm_sched_collect_state(self) -> Any:
        return {"own": 1.0}


def asked(manager: HookManager) -> list[Any]:
    """What `call` and `hook` answer, which must be the same."""
    arguments = {"ticket": None, "state": None}
    answers = [
        (
            calls.nhm_sched_fallback(reason="why", **arguments),
            calls.nhm_sched_guard(recommendation=None, **arguments),
            calls.nhm_sched_collect_state(ticket=None),
            calls.nhm_sched_reward(before=None, after=None),
        )
        for calls in (manager.call, manager.hook)
    ]
    assert answers[0] == answers[1]
    return list(answers[0])


def test_a_built_in_that_answers_alone_is_called_without_the_manager(manager: HookManager) -> None:
    own = Own()
    manager.add_builtin(own, "own")
    assert asked(manager) == ["why", [own.answer], [{"own": 1.0}], None]
    assert manager.call.nhm_sched_fallback == own.nhm_sched_fallback
    assert manager.call.nhm_sched_collect_state is manager.hook.nhm_sched_collect_state, "it takes fewer arguments"
    own.answer = None
    assert asked(manager)[1] == []


def test_a_third_party_is_asked_from_the_moment_it_is_there_until_it_is_removed(manager: HookManager) -> None:
    own, bad = Own(), SimpleNamespace()
    manager.add_builtin(own, "own")
    bad.nhm_sched_fallback = hookimpl(lambda: 1 / 0)
    no = Veto(guard="mine", reason="y")
    mine = SimpleNamespace(nhm_sched_guard=hookimpl(lambda: no))
    assert manager.add(Found("bad", "here", bad))
    assert manager.add(Found("mine", "here", mine))
    assert asked(manager)[1] == [no, own.answer]
    assert errors(manager, "nhm_sched_fallback", "bad") == 2, "once for each way to ask"
    manager.call.nhm_sched_fallback(ticket=None, state=None, reason="why")
    assert "bad" in manager.problems, "it had three strikes"
    assert manager.call.nhm_sched_fallback == own.nhm_sched_fallback
    manager.unregister(name="mine")
    assert asked(manager)[1] == [own.answer]


# -- discovery


def install(site: Path, name: str, code: str, entry_points: str) -> None:
    """A real installed distribution: a module and its dist-info with metadata, as pip leaves them."""
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[nhm_sched]\n{entry_points}\n")


def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from nhm_sched_plugin import hookimpl, Veto\n"
        "class Guard:\n"
        "    @hookimpl\n"
        "    def nhm_sched_guard(self, recommendation):\n"
        "        return Veto(guard='installed', reason='x')\n"
        "guard = Guard()\n"
    )
    install(tmp_path, "installed_good", code, "installed-guard = installed_good:guard")
    install(tmp_path, "installed_bad", "raise SystemExit(4)", "installed-bad = installed_bad:nothing")
    install(tmp_path, "installed_gone", "", "installed-gone = no_such_module:x")
    monkeypatch.syspath_prepend(tmp_path)
    found = {one.name: one for one in discover(HooksSettings(), None)}
    assert found["installed-guard"].problem is None
    assert "SystemExit: 4" in (found["installed-bad"].problem or "")
    assert "no_such_module" in (found["installed-gone"].problem or "")
    assert "nhm-sched-plugin" not in found, "our own entry point is no third party"
    assert not {"installed-guard"} & {one.name for one in discover(HooksSettings(disabled=("installed-guard",)), None)}
    sys.modules.pop("installed_good", None)


def test_an_entry_point_takes_part_in_a_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kit: Any) -> None:
    code = (
        "from nhm_sched_plugin import hookimpl, Veto\n"
        "@hookimpl\n"
        "def nhm_sched_guard(recommendation):\n"
        "    return Veto(guard='installed', reason='from a package')\n"
    )
    install(tmp_path, "installed_module", code, "by-module = installed_module")
    monkeypatch.syspath_prepend(tmp_path)
    decision = kit.start().decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.VETOED
    assert decision.vetoes == (Veto(guard="installed", reason="from a package"),)
    sys.modules.pop("installed_module", None)


def test_drop_ins_load_in_the_order_of_their_names_and_helpers_are_left_alone(tmp_path: Path) -> None:
    one = "from nhm_sched_plugin import hookimpl\n@hookimpl\ndef nhm_sched_collect_state(ticket): return {'x': 1}\n"
    for name in ("b.py", "a.py", "_helper.py", ".hidden.py", "c.txt"):
        (tmp_path / name).write_text(one)
    (tmp_path / "folder.py.d").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.py").write_text(one)
    assert [found.name for found in discover(HooksSettings(), tmp_path)] == ["a", "b"]
    assert [found.name for found in discover(HooksSettings(disabled=("a",)), tmp_path)] == ["b"]
    assert list(discover(HooksSettings(disabled=("all",)), tmp_path)) == []


def test_a_mounted_config_map_is_read_once_through_its_links(tmp_path: Path) -> None:
    """Kubernetes mounts `..2026_01_01/hook.py`, a link `..data` to that folder, and `hook.py` -> `..data/hook.py`."""
    real = tmp_path / "..2026_01_01_00"
    real.mkdir()
    (real / "hook.py").write_text(
        "from nhm_sched_plugin import hookimpl\n@hookimpl\ndef nhm_sched_collect_state(ticket): return {'x': 1}\n"
    )
    (tmp_path / "..data").symlink_to(real.name)
    (tmp_path / "hook.py").symlink_to("..data/hook.py")
    assert [(found.name, found.problem) for found in discover(HooksSettings(), tmp_path)] == [("hook", None)]


def test_a_hooks_dir_that_is_not_there_is_reported_and_the_host_runs(tmp_path: Path, kit: Any) -> None:
    host = kit.start({"hooks_dir": str(tmp_path / "nowhere")})
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED
    (health,) = [part for part in host.health() if part.component == "hooks"]
    assert not health.ok
    assert "nowhere" in health.detail


def test_both_kinds_of_hooks_of_one_file_share_its_variables(tmp_path: Path, kit: Any) -> None:
    folder = tmp_path / "hooks"
    folder.mkdir()
    (folder / "remembers.py").write_text(
        "from nhm_sched_plugin import hookimpl\n"
        "ended = 0\n"
        "@hookimpl\n"
        "def nhm_sched_task_finished(outcome):\n"
        "    global ended\n"
        "    ended += 1\n"
        "@hookimpl\n"
        "def nhm_sched_collect_state(ticket):\n"
        "    return {'ended': ended}\n"
    )
    host = kit.start({"hooks_dir": str(folder)})
    host.finished(Outcome(decision_id="x"))
    assert host.decide(kit.TICKET, kit.BUSY).state.features["ended"] == 1


def test_two_hosts_with_files_of_the_same_name_do_not_mix(tmp_path: Path, kit: Any) -> None:
    for number in (1, 2):
        folder = tmp_path / f"hooks{number}"
        folder.mkdir()
        (folder / "same.py").write_text(
            "from nhm_sched_plugin import hookimpl\n"
            f"@hookimpl\ndef nhm_sched_collect_state(ticket): return {{'which': {number}}}\n"
        )
    hosts = [kit.start({"hooks_dir": str(tmp_path / f"hooks{number}")}) for number in (1, 2)]
    assert [host.decide(kit.TICKET, kit.BUSY).state.features["which"] for host in hosts] == [1, 2]


# -- what is refused

REFUSED = {
    "invalid_unknown_hook": "did you mean nhm_sched_guard",
    "invalid_unknown_argument": "unknown argument 'recomendation'; it may take ticket, state, recommendation",
    "invalid_default_argument": "'ticket' has a default",
    "invalid_wrapper": "wrappers are not allowed",
    "invalid_old_wrapper": "wrappers are not allowed",
    "invalid_coroutine": "hooks are synchronous",
    "invalid_generator": "a generator does nothing",
    "invalid_missing_marker": "nhm_sched_guard has no @hookimpl",
    "invalid_keyword_only": "'recommendation' is keyword-only",
    "invalid_no_hook": "holds no @hookimpl function",
    "invalid_system_exit": "SystemExit: 3",
    "invalid_import_error": "no_such_library_anywhere",
    "invalid_syntax_error": "(line 7)",
}


def test_every_invalid_plugin_is_skipped_with_a_report_while_the_good_one_loads(
    kit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        host = kit.start({"hooks_dir": kit.drop_ins("good", *REFUSED)})
    problems = host._plugin.hooks.problems
    assert set(problems) == set(REFUSED)
    for name, text in REFUSED.items():
        assert text in problems[name], problems[name]
        assert f"{name}.py" in problems[name], "the report names the file"
        assert kit.counted(host, "nhm_sched_hook_errors_total", hook="load", plugin=name) == 1
        assert sum(name in record.getMessage() for record in caplog.records) == 1, "logged once"
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.APPLIED
    assert decision.state.features["good"] == 1


def test_inspect_hooks_says_the_same_without_a_host(kit: Any, tmp_path: Path) -> None:
    settings = load_settings({"data_dir": str(tmp_path), "hooks_dir": kit.drop_ins("good", "exploding", *REFUSED)})
    rows = {row.name: row for row in inspect_hooks(settings)}
    assert set(rows) == {"good", "exploding", *REFUSED}
    assert rows["good"].problem == ""
    assert set(rows["good"].hooks) == HOOKS - {"nhm_sched_decide"}
    assert "nhm_sched_decide is not called" in rows["exploding"].problem
    assert all(REFUSED[name] in rows[name].problem for name in REFUSED)


def test_a_dataclass_in_a_drop_in_works(kit: Any) -> None:
    decision = kit.start({"hooks_dir": kit.drop_ins("dataclass_inside")}).decide(kit.TICKET, kit.BUSY)
    assert decision.vetoes == (Veto(guard="night", reason="from 1 to 5"),)


def test_a_second_plugin_of_the_same_name_leaves_the_first_alone(manager: HookManager) -> None:
    first, second = (
        SimpleNamespace(nhm_sched_collect_state=hookimpl(lambda ticket, value=None: None)),
        SimpleNamespace(nhm_sched_collect_state=hookimpl(lambda ticket: {"second": 2})),
    )
    first.nhm_sched_collect_state = hookimpl(lambda ticket: {"first": 1})
    manager.add_builtin(SimpleNamespace(), "built-in")
    assert manager.add(Found("same", "here", first))
    assert not manager.add(Found("same", "there", second))
    assert "loaded already" in manager.problems["same"]
    assert not manager.add(Found("built-in", "there", second))
    assert manager.has_plugin("built-in")
    assert manager.hook.nhm_sched_collect_state(ticket=None) == [{"first": 1.0}]


def test_a_class_instead_of_an_instance_is_explained(manager: HookManager) -> None:
    class Guard:
        @hookimpl
        def nhm_sched_guard(self, recommendation: Any) -> None: ...

    assert not manager.add(Found("class", "here", Guard))
    assert "register an instance" in manager.problems["class"]
    assert manager.add(Found("instance", "here", Guard()))


def test_attributes_that_raise_are_only_that_plugins_problem(manager: HookManager) -> None:
    class Nasty:
        def __dir__(self) -> list[str]:
            raise RuntimeError("touched")

    assert not manager.add(Found("nasty", "here", Nasty()))
    assert "touched" in manager.problems["nasty"]


def test_an_optional_hook_of_a_later_version_is_fine_and_check_pending_stays_quiet(manager: HookManager) -> None:
    newer = SimpleNamespace(
        nhm_sched_not_yet=hookimpl(optionalhook=True)(lambda ticket: None),
        nhm_sched_collect_state=hookimpl(lambda ticket: {"x": 1}),
    )
    assert manager.add(Found("newer", "here", newer))
    manager.check_pending()
    assert manager.hook.nhm_sched_collect_state(ticket=None) == [{"x": 1.0}]


def test_a_hook_under_another_name_and_fewer_arguments(manager: HookManager) -> None:
    plugin = SimpleNamespace(mine=hookimpl(specname="nhm_sched_fallback")(lambda reason: None))
    assert manager.add(Found("renamed", "here", plugin))
    assert manager.hook.nhm_sched_fallback(ticket=None, state=None, reason="x") is None
    assert errors(manager, "nhm_sched_fallback", "renamed") == 0


# -- isolation: each hook's default when it fails; one test a hook


def test_there_is_a_test_for_every_hook() -> None:
    tested = {name.removeprefix("test_hook_") for name in globals() if name.startswith("test_hook_")}
    assert tested == {name.removeprefix("nhm_sched_") for name in HOOKS}


def boom(*_: Any) -> Any:
    raise ValueError("boom")


def failing(kit: Any, hook: str, implementation: Any, config: Any = None, **parts: Any) -> Any:
    """A host with a plugin `bad` that fails in one hook and a `good` one beside it."""
    return kit.start(config, plugins={"bad": kit.plugin(**{hook: implementation})}, **parts)


def health_of_hooks(host: Any) -> Health:
    return next(part for part in host.health() if part.component == "hooks")


def count(kit: Any, host: Any, hook: str, plugin: str = "bad") -> float:
    return kit.counted(host, "nhm_sched_hook_errors_total", hook=f"nhm_sched_{hook}", plugin=plugin)


def test_hook_startup(kit: Any) -> None:
    seen = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(startup=lambda config, host: boom()),
            "good": kit.plugin(startup=lambda config, host: seen.append((config.data_dir, host))),
        }
    )
    assert [host is given for _, given in seen] == [True]
    assert count(kit, host, "startup") == 1
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED


def test_hook_decide(kit: Any) -> None:
    """Nobody else decides: it would bypass the gate and the rollout. The plugin's other hooks work."""
    bad = kit.plugin(decide=lambda ticket, state: boom(), collect_state=lambda ticket: {"other": 1})
    host = kit.start(plugins={"bad": bad})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.APPLIED
    assert decision.state.features["other"] == 1
    assert count(kit, host, "decide") == 1
    assert "nhm_sched_decide is not called" in health_of_hooks(host).detail


def test_hook_decision_applied(kit: Any) -> None:
    seen = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(decision_applied=lambda decision: boom()),
            "good": kit.plugin(decision_applied=lambda decision, applied, error: seen.append((applied, error))),
        }
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.applied(decision, False, ValueError("no room"))
    assert seen == [(False, "no room")]
    assert count(kit, host, "decision_applied") == 1
    assert kit.counted(host, "nhm_sched_component_errors_total", component="host") == 1


def test_hook_task_finished(kit: Any) -> None:
    seen = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(task_finished=lambda outcome: boom()),
            "good": kit.plugin(task_finished=lambda outcome: seen.append(outcome.decision_id)),
        }
    )
    host.finished(Outcome(decision_id="d"))
    assert seen == ["d"]
    assert count(kit, host, "task_finished") == 1
    host.flush()
    assert [record.outcome.decision_id for record in kit.spooled(host)] == ["d"]


def test_hook_health(kit: Any) -> None:
    host = kit.start(
        plugins={
            "bad": kit.plugin(health=lambda: boom()),
            "garbage": kit.plugin(health=lambda: [True]),
            "good": kit.plugin(health=lambda: [Health(component="mine", ok=True)]),
        }
    )
    names = {part.component for part in host.health()}
    assert names == {"forecaster", "policy", "rules", "hooks", "mine"}
    assert (count(kit, host, "health"), count(kit, host, "health", "garbage")) == (1, 1)


def test_hook_shutdown(kit: Any) -> None:
    seen = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(shutdown=lambda: boom()),
            "good": kit.plugin(shutdown=lambda grace_s: seen.append(grace_s)),
        }
    )
    host.decide(kit.TICKET, kit.BUSY)
    host.close(3.0)
    assert seen == [3.0]
    assert count(kit, host, "shutdown") == 1
    assert len(kit.spooled(host)) == 1


@pytest.mark.parametrize("behave", [boom, lambda *_: 42])
def test_hook_make_forecaster(kit: Any, behave: Any) -> None:
    host = kit.start(plugins={"bad": kit.plugin(make_forecaster=lambda settings: behave())})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.reason, decision.source) == (Reason.FORECAST_UNAVAILABLE, Source.FALLBACK)
    assert kit.counted(host, "optimizer_unavailable_total", reason="forecast_unavailable") == 1
    assert count(kit, host, "make_forecaster") == 1
    assert "forecaster" in {part.component for part in host.health() if not part.ok}


@pytest.mark.parametrize("behave", [boom, lambda *_: "no policy"])
def test_hook_make_policy(kit: Any, behave: Any) -> None:
    host = kit.start(plugins={"bad": kit.plugin(make_policy=lambda settings: behave())})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.reason, decision.source) == (Reason.OPTIMIZER_UNAVAILABLE, Source.FALLBACK)
    assert kit.counted(host, "optimizer_unavailable_total", reason="optimizer_unavailable") == 1
    assert count(kit, host, "make_policy") == 1


def test_hook_make_sinks(kit: Any) -> None:
    class Mine:
        name = "mine"

        def __init__(self) -> None:
            self.got: list[Any] = []

        def write(self, records: Any) -> None:
            self.got += records

        def close(self) -> None: ...

    mine = Mine()
    host = kit.start(
        plugins={
            "bad": kit.plugin(make_sinks=lambda settings: boom()),
            "garbage": kit.plugin(make_sinks=lambda settings: [object()]),
            "good": kit.plugin(make_sinks=lambda settings: [mine]),
        }
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert host.flush()
    assert mine.got == [decision]
    assert [record.decision_id for record in kit.spooled(host)] == [decision.decision_id]
    assert count(kit, host, "make_sinks") == 1
    assert kit.counted(host, "nhm_sched_component_errors_total", component="recorder") == 1


def test_hook_collect_state(kit: Any) -> None:
    host = kit.start(
        plugins={
            "early": kit.plugin(collect_state=lambda ticket: {"mine": 1, "early": 1}),
            "bad": kit.plugin(collect_state=lambda ticket: boom()),
            "nan": kit.plugin(collect_state=lambda ticket: {"nan": float("nan")}),
            "list": kit.plugin(collect_state=lambda ticket: ["x"]),
            "late": kit.plugin(collect_state=lambda ticket: {"mine": 2, "arrivals_last_hour": 7, "given": 0}),
        }
    )
    state = kit.msgspec.structs.replace(kit.BUSY, features={"given": 9.0})
    lately = {**dict.fromkeys(ARRIVED, 1), "crowd_ahead": 0}  # this ticket
    assert host.decide(kit.TICKET, state).state.features == {
        **lately, "mine": 2, "early": 1, "arrivals_last_hour": 7, "given": 9,
    }, "who is loaded later wins over earlier ones and built-ins, the host over all"  # fmt: skip
    assert [count(kit, host, "collect_state", name) for name in ("bad", "nan", "list", "early")] == [1, 1, 1, 0]


@pytest.mark.parametrize("behave", [boom, lambda: 7, lambda: Recommendation(action="JUMP", confidence=0.9)])
def test_hook_recommend(kit: Any, behave: Any) -> None:
    """A failure does not fall through to the policy as if nobody had answered."""
    host = failing(kit, "recommend", lambda ticket, state, forecast: behave())
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.reason, decision.source) == (Reason.OPTIMIZER_UNAVAILABLE, Source.FALLBACK)
    assert decision.recommendation is None
    assert count(kit, host, "recommend") == 1


def test_hook_guard(kit: Any) -> None:
    """It fails closed."""
    host = failing(kit, "guard", lambda recommendation: boom())
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.VETOED
    (veto,) = decision.vetoes
    assert veto.guard == "bad"
    assert "boom" in veto.reason
    assert decision.recommendation == kit.GROW
    assert count(kit, host, "guard") == 1


def test_hook_fallback(kit: Any) -> None:
    """Next one, at last the rule book."""
    hold = Recommendation(action=Action.LOAD_BALANCING_RECONFIG, justification="mine")
    host = kit.start(
        {"rollout": {"percentage": 0}},
        plugins={
            "good": kit.plugin(fallback=lambda reason: hold if reason == "shadow" else None),
            "bad": kit.plugin(fallback=lambda reason: boom()),
        },
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.action, decision.source) == (Action.LOAD_BALANCING_RECONFIG, Source.CUSTOM)
    assert decision.justification == "mine"
    assert count(kit, host, "fallback") == 1
    host = failing(kit, "fallback", lambda reason: boom(), {"rollout": {"percentage": 0}})
    assert host.decide(kit.TICKET, kit.BUSY).source is Source.FALLBACK


@pytest.mark.parametrize("behave", [boom, lambda: float("nan"), lambda: "good"])
def test_hook_reward(kit: Any, behave: Any) -> None:
    policy = kit.FixedPolicy()
    host = failing(kit, "reward", lambda before, after: behave(), policy=policy)
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert host.flush()
    assert kit.spooled(host)[-1].reward is None
    assert policy.learned == []
    assert count(kit, host, "reward") == 1


def test_hook_actuate(kit: Any) -> None:
    """Reported, not applied."""
    seen: list[Any] = []
    host = kit.start(
        plugins={"bad": kit.plugin(actuate=lambda decision: boom(), after_decision=lambda record: seen.append(record))}
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert host.flush()
    assert count(kit, host, "actuate") == 1
    assert seen == [decision]
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert host.flush()
    last = kit.spooled(host)[-1]
    assert (last.applied, last.executed_action) == (False, Action.NO_ACTION)
    assert "boom" in last.error


def test_an_actuator_that_succeeds_counts_as_applied_by_the_host(kit: Any) -> None:
    carried: list[Any] = []
    host = kit.start(plugins={"hand": kit.plugin(actuate=lambda decision: carried.append(decision.action) or True)})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert host.flush()
    assert carried == [Action.INCREASE_WORKER_POOL]
    host.finished(Outcome(decision_id=decision.decision_id))
    assert host.flush()
    assert kit.spooled(host)[-1].applied is True


def test_hook_after_decision(kit: Any) -> None:
    seen = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(after_decision=lambda record: boom()),
            "good": kit.plugin(after_decision=lambda record: seen.append(record)),
        }
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert host.flush()
    assert seen == [decision]
    assert count(kit, host, "after_decision") == 1


def test_hook_after_outcome(kit: Any) -> None:
    seen = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(after_outcome=lambda record: boom()),
            "good": kit.plugin(after_outcome=lambda record, reward: seen.append((record.decision_id, reward))),
        }
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    assert host.flush()
    assert seen == [(decision.decision_id, 0.0)]
    assert count(kit, host, "after_outcome") == 1


def test_hook_on_error(kit: Any) -> None:
    """It hears of every plugin's failures by hook and plugin name; its own are swallowed."""
    heard = []
    host = kit.start(
        plugins={
            "bad": kit.plugin(
                collect_state=lambda ticket: boom(),
                decision_applied=lambda decision: boom(),
                on_error=lambda error: boom(),
            ),
            "good": kit.plugin(
                on_error=lambda hook_name, plugin_name, error: heard.append((hook_name, plugin_name, str(error)))
            ),
        }
    )  # fmt: skip
    host.applied(host.decide(kit.TICKET, kit.BUSY))
    assert host.flush()
    assert heard == [("nhm_sched_collect_state", "bad", "boom"), ("nhm_sched_decision_applied", "bad", "boom")]
    assert count(kit, host, "on_error") == 2


# -- whole plugins that misbehave


@pytest.mark.parametrize("name", ["exploding", "garbage"])
def test_a_plugin_that_misbehaves_in_every_hook(kit: Any, name: str) -> None:
    host = kit.start({"hooks_dir": kit.drop_ins("good", name), "hooks": {"max_strikes": 1000}})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert decision.source is Source.FALLBACK
    assert decision.state.features["good"] == 1
    host.applied(decision)
    host.finished(Outcome(decision_id=decision.decision_id, state_after=kit.BUSY))
    host.health()
    assert host.flush()
    for hook in ("make_forecaster", "make_policy", "collect_state", "decide"):
        assert count(kit, host, hook, name) >= 1, hook
    assert len(kit.spooled(host)) == 2


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_base_exceptions_stop_at_the_hook(kit: Any, raised: BaseException) -> None:
    def leave(ticket: Any) -> None:
        raise raised

    host = kit.start(plugins={"bad": kit.plugin(collect_state=leave)})
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.APPLIED
    assert count(kit, host, "collect_state") == 1


def test_an_error_is_logged_once_per_cause_and_counted_each_time(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    numbers = iter(range(100))

    def fail(ticket: Any) -> None:
        raise ValueError(f"number {next(numbers)} at 0x7f{next(numbers)}")

    host = kit.start({"hooks": {"max_strikes": 100}}, plugins={"bad": kit.plugin(collect_state=fail)})
    with caplog.at_level(logging.WARNING, "nhm_sched_plugin"):
        for _ in range(5):
            host.decide(kit.TICKET, kit.BUSY)
    assert count(kit, host, "collect_state") == 5
    (record,) = [record for record in caplog.records if "nhm_sched_collect_state of bad" in record.getMessage()]
    assert record.exc_info, "with its traceback"


# -- strikes


def test_a_plugin_is_removed_after_errors_in_a_row(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    host = failing(kit, "guard", lambda recommendation: boom(), {"hooks": {"max_strikes": 3}})
    reasons = [host.decide(kit.TICKET, kit.BUSY).reason for _ in range(4)]
    assert reasons == [Reason.VETOED] * 3 + [Reason.APPLIED]
    assert count(kit, host, "guard") == 3
    assert "removed after 3 errors of nhm_sched_guard" in host._plugin.hooks.problems["bad"]
    assert any(record.levelno == logging.ERROR and "bad" in record.getMessage() for record in caplog.records)
    assert not health_of_hooks(host).ok


def test_a_success_of_the_same_hook_starts_the_count_anew_and_another_hooks_does_not(manager: HookManager) -> None:
    answers = iter([boom, boom, dict, boom, boom, boom])
    plugin = SimpleNamespace(
        nhm_sched_collect_state=hookimpl(lambda ticket: next(answers)()),
        nhm_sched_guard=hookimpl(lambda recommendation: None),
    )
    manager.add(Found("p", "here", plugin))
    for _ in range(6):
        assert manager.has_plugin("p")
        manager.hook.nhm_sched_collect_state(ticket=None)
        manager.hook.nhm_sched_guard(ticket=None, state=None, recommendation=None)
    assert not manager.has_plugin("p")


def test_many_threads_that_fail_at_once_remove_it_once(manager: HookManager) -> None:
    manager.add(Found("p", "here", SimpleNamespace(nhm_sched_collect_state=hookimpl(lambda ticket: boom()))))
    results: list[Any] = []

    def call() -> None:
        for _ in range(20):
            answer = manager.hook.nhm_sched_collect_state(ticket=None)
            results.append(answer)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[]] * 80
    assert not manager.has_plugin("p")


# -- time


def test_a_sleeping_hook_is_left_behind_and_skipped_until_it_is_back(manager: HookManager) -> None:
    release, calls = threading.Event(), []

    def sleep(ticket: Any) -> dict[str, float]:
        calls.append(1)
        release.wait(10)
        return {"x": 1}

    manager.add(Found("sleepy", "here", SimpleNamespace(nhm_sched_collect_state=hookimpl(sleep))))
    started = time.monotonic()
    for _ in range(10):
        with deadline(0.3):
            assert manager.hook.nhm_sched_collect_state(ticket=None) == []
    assert time.monotonic() - started < 2, "only the first call waits"
    assert len(calls) == 1
    assert errors(manager, "nhm_sched_collect_state", "sleepy") == 10
    assert manager.has_plugin("sleepy"), "one long sleep is one strike"
    release.set()
    until = time.monotonic() + 5
    while manager.hook.nhm_sched_collect_state(ticket=None) != [{"x": 1.0}]:
        assert time.monotonic() < until


def test_a_hook_that_cannot_start_in_time_gets_no_strike(manager: HookManager) -> None:
    manager.add(Found("p", "here", SimpleNamespace(nhm_sched_recommend=hookimpl(lambda ticket: None))))
    for _ in range(5):
        with deadline(0.0), pytest.raises(HookFailedError) as caught:
            manager.hook.nhm_sched_recommend(ticket=None, state=None, forecast=None)
        assert isinstance(caught.value.error, TimeoutError)
    assert manager.has_plugin("p")


def test_deadlines_nest_and_only_get_shorter(manager: HookManager) -> None:
    manager.add(Found("p", "here", SimpleNamespace(nhm_sched_collect_state=hookimpl(lambda ticket: time.sleep(5)))))
    started = time.monotonic()
    with deadline(0.05), deadline(60):
        manager.hook.nhm_sched_collect_state(ticket=None)
    assert time.monotonic() - started < 3


def test_one_thread_is_enough_for_hooks_in_a_row() -> None:
    manager = HookManager(ExtensionSpecs, HooksSettings(pool_size=1), Faults(Metrics()))
    for name in ("a", "b", "c"):
        manager.add(Found(name, "here", SimpleNamespace(nhm_sched_collect_state=hookimpl(lambda ticket: {"x": 1}))))
    for _ in range(200):
        assert len(manager.hook.nhm_sched_collect_state(ticket=None)) == 3
    manager.close()


# -- parts that a third party made


class SlowPart:
    """A forecaster that answers in its own time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def forecast(self, horizon_minutes: int, now: float, task_type: Any = None, risk_band: Any = None) -> None:
        time.sleep(self.seconds)

    def refresh(self) -> None: ...

    def health(self) -> Health:
        return Health(component="forecaster", ok=True)


def test_a_made_forecaster_cannot_hold_the_host(kit: Any) -> None:
    host = kit.start({"decision_budget_ms": 50}, forecaster=SlowPart(6.0))
    started = time.monotonic()
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert time.monotonic() - started < 3
    assert decision.reason is Reason.FORECAST_UNAVAILABLE
    assert count(kit, host, "make_forecaster", "parts") >= 1


@pytest.mark.parametrize("volume", [float("nan"), float("inf"), "many", RuntimeError("down"), None])
def test_a_made_forecaster_may_answer_garbage(kit: Any, volume: Any) -> None:
    decision = kit.start(forecaster=kit.FixedForecaster(volume)).decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.FORECAST_UNAVAILABLE


@pytest.mark.parametrize("answer", [RuntimeError("down"), None, 7, Recommendation(action="JUMP", confidence=0.9)])
def test_a_made_policy_may_answer_garbage(kit: Any, answer: Any) -> None:
    decision = kit.start(policy=kit.FixedPolicy(answer)).decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.OPTIMIZER_UNAVAILABLE


# -- nobody bypasses the gate and the rollout


def test_a_hook_that_insists_is_still_gated(kit: Any) -> None:
    insists = SimpleNamespace(
        nhm_sched_recommend=hookimpl(tryfirst=True)(lambda ticket, state, forecast: kit.sure(0.69))
    )
    host = kit.start(plugins={"insists": insists})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.CONFIDENCE_BELOW_THRESHOLD
    assert decision.source is Source.FALLBACK
    assert decision.recommendation is not None
    assert decision.recommendation.source == "custom:insists"


def test_a_sure_hook_is_followed_and_named(kit: Any) -> None:
    host = kit.start(plugins={"mine": kit.plugin(recommend=lambda ticket, state, forecast: kit.sure(0.7))})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.reason, decision.source, decision.action) == (
        Reason.APPLIED, Source.CUSTOM, Action.INCREASE_WORKER_POOL,
    )  # fmt: skip


def test_nobody_lifts_another_ones_veto(kit: Any) -> None:
    host = kit.start(
        plugins={
            "no": kit.plugin(guard=lambda recommendation: Veto(guard="no", reason="no")),
            "yes": kit.plugin(guard=lambda recommendation: None),
        }
    )
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.VETOED


def test_shadow_applies_the_rules_whatever_a_hook_says(kit: Any) -> None:
    host = kit.start(
        {"rollout": {"percentage": 0}},
        plugins={"sure": kit.plugin(recommend=lambda ticket, state, forecast: kit.sure(1.0))},
    )
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert (decision.arm, decision.reason, decision.source) == (Arm.SHADOW, Reason.SHADOW, Source.FALLBACK)
    assert decision.recommendation is not None
    assert decision.recommendation.confidence == 1.0


def test_the_built_in_limits_hold_for_a_custom_recommendation(kit: Any) -> None:
    wild = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 10**6}, confidence=1.0)
    host = kit.start(plugins={"wild": kit.plugin(recommend=lambda ticket, state, forecast: wild)})
    decision = host.decide(kit.TICKET, kit.BUSY)
    assert decision.reason is Reason.VETOED
    assert decision.vetoes[0].guard == "limits"


# -- switches


def test_the_trace_switch_logs_every_call(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nhm_sched_plugin.extension"):
        host = kit.start({"hooks": {"trace": True}}, plugins={"mine": kit.plugin(guard=lambda recommendation: None)})
        host.decide(kit.TICKET, kit.BUSY)
    lines = [record.getMessage() for record in caplog.records if "nhm_sched_guard" in record.getMessage()]
    assert len(lines) == 1
    assert "recommendation: Recommendation" in lines[0]
    assert "by ['mine', 'built-in'] -> [] in" in lines[0]


def test_a_traced_call_is_timed_from_its_own_start_not_from_that_of_a_call_inside_it(
    kit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def recommend(ticket: Any, state: Any, forecast: Any) -> None:
        time.sleep(0.05)
        host._plugin.hooks.hook.nhm_sched_guard(
            recommendation=Recommendation(action=Action.NO_ACTION), ticket=ticket, state=state
        )

    with caplog.at_level(logging.INFO, "nhm_sched_plugin.extension"):
        host = kit.start({"hooks": {"trace": True}}, plugins={"mine": kit.plugin(recommend=recommend)})
        host.decide(kit.TICKET, kit.BUSY)
    outer = next(record for record in caplog.records if record.getMessage().startswith("nhm_sched_recommend("))
    inner = next(record for record in caplog.records if record.getMessage().startswith("nhm_sched_guard("))
    assert outer.__dict__["started"] + 0.05 <= inner.__dict__["started"]
    assert isinstance(outer.args, tuple)
    assert float(str(outer.args[4])) >= 50_000


def test_no_trace_without_the_switch(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nhm_sched_plugin.extension"):
        kit.start().decide(kit.TICKET, kit.BUSY)
    assert not [record for record in caplog.records if "nhm_sched_guard" in record.getMessage()]


@pytest.mark.parametrize("disabled", ["exploding", "all", '["exploding"]', "other, exploding"])
def test_the_disable_switch_works_from_the_environment(
    kit: Any, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    monkeypatch.setenv("NHM_SCHED_HOOKS__DISABLED", disabled)
    host = kit.start({"hooks_dir": kit.drop_ins("exploding")}, built_in=True)
    assert host._plugin.hooks.problems == {}
    assert not host._plugin.hooks.has_plugin("exploding")


def test_the_disable_switch_also_holds_for_what_the_host_gives(kit: Any) -> None:
    host = kit.start(
        {"hooks": {"disabled": ["bad", "parts"]}}, plugins={"bad": kit.plugin(guard=lambda recommendation: boom())}
    )
    assert not host._plugin.hooks.has_plugin("bad")
    assert host.decide(kit.TICKET, kit.BUSY).reason is Reason.FORECAST_UNAVAILABLE


def test_the_trace_switch_works_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NHM_SCHED_HOOKS__TRACE", "1")
    assert load_settings({}).hooks.trace is True
    assert os.environ["NHM_SCHED_HOOKS__TRACE"] == "1"
