"""Tables that hosts share through Redis: a fresh one starts from what the others have learned."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from calibrations import calibration

from nhm_sched_plugin import Action, Outcome, SchedulerHost, SchedulingState
from nhm_sched_plugin.advice.snapshots import Shelf, Snapshots, forget_learned, groups
from nhm_sched_plugin.errors import ConfigError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy.demand import DemandModel
from nhm_sched_plugin.policy.qtable import QTable, reset
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.store.cache import open_cache

BEFORE = SchedulingState(queue_depth=5, active_workers=10, avg_task_duration_ms=60_000, sla_compliance_rate=0.9)


@pytest.fixture
def place(redis_server: Any) -> Iterator[SimpleNamespace]:
    """`place.config(folder)` of a host in that Redis; `place.keys()` there; `place.key` of the Q-table."""
    url, prefix = f"redis://127.0.0.1:{redis_server.port}", uuid.uuid4().hex
    client = redis.Redis.from_url(url)

    def config(folder: Path, **caching: Any) -> dict[str, Any]:
        scheduling = {"update_interval": 2, "seed": 1}
        return {
            "data_dir": str(folder),
            "metrics": {"enabled": False},
            "ml": {"caching": {"redis_url": url, "key_prefix": prefix, **caching}, "scheduling": scheduling},
        }

    def keys() -> list[str]:
        return sorted(key.decode() for key in client.keys(f"{prefix}:*"))

    def names(settings: Settings) -> list[str]:
        return [f"{prefix}:{group.kind}:{group.key}" for group in groups(settings)]

    yield SimpleNamespace(url=url, config=config, keys=keys, names=names, client=client)
    client.close()


def learned(updates: int, value: float = 1.0) -> QTable:
    table = QTable()
    for _ in range(updates):
        table.update("u1-b0-s1-t1", "NO_ACTION", value, 0.01)
    return table


def shared(settings: Settings) -> tuple[Snapshots, Metrics]:
    """The part of a host that shares, not started: a `look` is a look."""
    metrics = Metrics()
    return Snapshots(settings, metrics, Faults(metrics)), metrics


def value_failures(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("nhm_sched_cache_failures_total", {"reason": "value"}) or 0.0


def teach(host: SchedulerHost, times: int) -> None:
    for number in range(times):
        decision = host.decide(None, BEFORE)
        host.finished(
            Outcome(
                decision_id=decision.decision_id,
                ticket_id=f"t{number}",
                status="success",
                actual_duration_ms=5000,
                sla_met=True,
                state_before=BEFORE,
                state_after=BEFORE,
            )
        )
    assert host.flush()


def test_a_fresh_host_elsewhere_starts_from_what_the_first_has_learned(
    kit: Any, place: SimpleNamespace, tmp_path: Path
) -> None:
    first = kit.start(place.config(tmp_path / "one"), built_in=True)
    kit.write_forecast(tmp_path / "one")
    assert Action(first.decide(None, BEFORE).action), "decided without any table"
    teach(first, 4)
    first.close(5.0)  # saves, and caches what was saved
    table = QTable.load(tmp_path / "one" / "snapshots" / "q_table.json")
    assert table.updates == 4
    second = kit.start(place.config(tmp_path / "two"), built_in=True)
    health = {part.component: part for part in second.health()}
    assert "1 states, 4 updates" in health["policy"].detail
    assert health["forecaster"].ok, "the forecast table too"
    for name in ("q_table.json", "forecast.json"):
        one, two = (tmp_path / host / "snapshots" / name for host in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert kit.counted(second, "optimizer_cache_hits_total", cache_type="q_table") == 1
    assert kit.counted(second, "optimizer_cache_hits_total", cache_type="forecast") == 1


def test_a_running_host_caches_each_save(kit: Any, place: SimpleNamespace, tmp_path: Path) -> None:
    host = kit.start(place.config(tmp_path), built_in=True)
    teach(host, 2)
    name = place.names(host.settings)[0]
    kit.wait_for(lambda: place.client.exists(name))
    assert 7_000_000 < place.client.pttl(name) <= 7_200_000
    before = place.client.get(name)
    teach(host, 2)
    kit.wait_for(lambda: place.client.get(name) != before)


def test_killed_under_a_running_host_and_back_again(
    kit: Any, place: SimpleNamespace, mortal_redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nhm_sched_plugin.advice.snapshots._AGAIN_S", 0.1)
    url = f"redis://127.0.0.1:{mortal_redis.port}"
    host = kit.start(place.config(tmp_path / "data", redis_url=url), built_in=True)
    mortal_redis.terminate()
    teach(host, 2)
    kit.wait_for(lambda: kit.counted(host, "nhm_sched_cache_failures_total", reason="connection"))
    assert host.decide(None, BEFORE).action
    mortal_redis.start()
    with redis.Redis.from_url(url) as client:
        kit.wait_for(lambda: client.exists(place.names(host.settings)[0]), 10.0)


def test_redis_that_is_down_stops_nobody_and_what_it_missed_comes_later(
    kit: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"data_dir": str(tmp_path), "ml": {"caching": {"redis_url": f"unix://{tmp_path}/none?password=hunter2"}}}
    began = time.monotonic()
    host = kit.start({**config, "metrics": {"enabled": False}}, built_in=True)
    assert time.monotonic() - began < 3.0
    assert host.decide(None, BEFORE).action
    kit.wait_for(lambda: kit.counted(host, "nhm_sched_cache_failures_total", reason="connection"))
    host.close(5.0)
    assert (tmp_path / "snapshots" / "q_table.json").exists()
    assert "this process caches alone" in caplog.text
    assert "hunter2" not in caplog.text


def test_a_start_waits_no_longer_than_the_timeouts(kit: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        caching = {"redis_url": f"redis://127.0.0.1:{deaf.getsockname()[1]}"}
        began = time.monotonic()
        host = kit.start({"data_dir": str(tmp_path), "metrics": {"enabled": False}, "ml": {"caching": caching}})
        assert time.monotonic() - began < 4.0
        assert host.decide(None, BEFORE).action


def test_a_file_that_is_there_is_never_replaced(place: SimpleNamespace, tmp_path: Path) -> None:
    one, two = (load_settings(place.config(tmp_path / name)) for name in ("one", "two"))
    learned(50).save(one.q_table_path)
    shared(one)[0].look(complete=True)
    learned(3, -1.0).save(two.q_table_path)
    mine = two.q_table_path.read_bytes()
    sharing, metrics = shared(two)
    for _ in range(3):
        sharing.look(complete=True)
    assert two.q_table_path.read_bytes() == mine
    (tmp_path / "three").mkdir()
    three = load_settings(place.config(tmp_path / "three"))
    shared(three)[0].look(complete=True)
    assert QTable.load(three.q_table_path).updates == 50, "fewer updates do not replace more"
    assert value_failures(metrics) == 0


def test_more_updates_replace_fewer(place: SimpleNamespace, tmp_path: Path) -> None:
    one, two, three = (load_settings(place.config(tmp_path / name)) for name in ("one", "two", "three"))
    for settings, updates in ((one, 3), (two, 50)):
        learned(updates).save(settings.q_table_path)
        shared(settings)[0].look(complete=True)
    shared(three)[0].look(complete=True)
    assert QTable.load(three.q_table_path).updates == 50


def test_table_and_planner_go_together(place: SimpleNamespace, tmp_path: Path) -> None:
    one, same, other, alone = (load_settings(place.config(tmp_path / name)) for name in ("1", "2", "3", "4"))
    learned(5).save(one.q_table_path)
    calibration().save(one.planner_path)
    shared(one)[0].look(complete=True)
    calibration().save(same.planner_path)
    calibration(tickets=7).save(other.planner_path)
    for settings in (same, other, alone):
        shared(settings)[0].look(complete=True)
    assert same.q_table_path.read_bytes() == one.q_table_path.read_bytes()
    assert not other.q_table_path.exists(), "learned with another planner"
    assert DemandModel.load(other.planner_path).tickets == 7
    assert alone.planner_path.read_bytes() == one.planner_path.read_bytes()
    assert alone.q_table_path.exists()


@pytest.mark.parametrize("kind", ["noise", "cut", "edited", "edited planner", "other files", "other bytes", "empty"])
def test_a_value_that_nobody_can_use_is_ignored_counted_and_replaced(
    place: SimpleNamespace, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    from nhm_sched_plugin.advice.snapshots import _packed

    one, two, three = (load_settings(place.config(tmp_path / name)) for name in ("one", "two", "three"))
    learned(5).save(one.q_table_path)
    calibration(tickets=100).save(one.planner_path)
    shared(one)[0].look(complete=True)
    name = place.names(one)[0]
    good = place.client.get(name)
    text = one.q_table_path.read_bytes()
    body = b"no MessagePack"
    bad = {
        "noise": b"\x00" * 500,
        "cut": good[:-3],
        "edited": _packed({"q_table.json": text.replace(b'"updates":5', b'"updates":6')}),
        "edited planner": good.replace(b'"tickets": 100', b'"tickets": 900'),
        "other files": _packed({"../../passwd": b"x", "q_table.json": text}),
        "other bytes": hashlib.sha256(body).digest() + body,
        "empty": _packed({}),
    }
    assert bad[kind] != good
    place.client.set(name, bad[kind])
    sharing, metrics = shared(two)
    sharing.look(complete=True)
    sharing.look(complete=True)
    assert not two.q_table_path.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) in (["one"], ["one", "two"])
    assert value_failures(metrics) == 1
    assert caplog.text.count("is not used") == 1
    assert str(tmp_path) not in caplog.text.partition("is not used")[2].partition("(repeats")[0]
    learned(1).save(two.q_table_path)
    sharing.look(complete=True)
    shared(three)[0].look(complete=True)
    assert QTable.load(three.q_table_path).updates == 1, "the next save mends it"


def test_nothing_learned_is_nothing_to_share(place: SimpleNamespace, tmp_path: Path) -> None:
    settings = load_settings(place.config(tmp_path))
    QTable().save(settings.q_table_path)
    sharing, _ = shared(settings)
    sharing.look(complete=True)
    settings.q_table_path.write_text("broken")
    sharing.look(complete=True)
    assert place.keys() == []


def test_a_reset_forgets_the_cached_copy(place: SimpleNamespace, tmp_path: Path) -> None:
    settings = load_settings(place.config(tmp_path))
    learned(5).save(settings.q_table_path)
    sharing, _ = shared(settings)
    sharing.look(complete=True)
    assert place.keys() == [place.names(settings)[0]]
    assert forget_learned(settings)
    assert place.keys() == []
    learned(6).save(settings.q_table_path)
    sharing.look(complete=True)
    assert place.keys() != []
    reset(settings.q_table_path)  # by a command that could not ask Redis: the running host sees it
    sharing.look(complete=True)
    assert place.keys() == []
    sharing.look(complete=True)
    assert QTable.load(settings.q_table_path).updates == 0
    unreachable = load_settings(place.config(tmp_path, redis_url=f"unix://{tmp_path}/none"))
    assert not forget_learned(unreachable)
    assert forget_learned(load_settings({"data_dir": str(tmp_path)})), "nothing there to forget"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_does_not_change_is_renewed_and_what_is_half_written_waits(place: SimpleNamespace, tmp_path: Path) -> None:
    settings = load_settings(place.config(tmp_path))
    metrics, clock = Metrics(), Clock()
    faults = Faults(metrics)
    cache = open_cache(settings, metrics, faults)
    assert cache is not None
    group, _ = groups(settings)
    shelf = Shelf(group, cache, 7200.0, metrics, faults, clock)
    (name, _) = place.names(settings)
    learned(5).save(settings.q_table_path)
    shelf.put()
    assert not place.client.exists(name), "the planner may be on its way"
    shelf.put()
    assert place.client.exists(name)
    place.client.delete(name)
    clock.now += 3599.0
    shelf.put()
    assert not place.client.exists(name)
    clock.now += 1.0
    shelf.put()
    assert place.client.exists(name)


def test_a_fresh_host_asks_again_while_redis_is_away(place: SimpleNamespace, tmp_path: Path) -> None:
    one = load_settings(place.config(tmp_path / "one"))
    learned(5).save(one.q_table_path)
    shared(one)[0].look(complete=True)
    # The address comes to life later, as a server that is started again does.
    link = tmp_path / "socket"
    two = load_settings(place.config(tmp_path / "two", redis_url=f"unix://{link}"))
    metrics, clock = Metrics(), Clock()
    faults = Faults(metrics)
    from nhm_sched_plugin.store.cache import ttls
    from nhm_sched_plugin.store.redis_cache import RedisCache

    cache = RedisCache(two.ml.caching, ttls(two), metrics, faults, clock=clock)
    shelf = Shelf(groups(two)[0], cache, 7200.0, metrics, faults, clock)
    shelf.take_over()
    assert not two.q_table_path.exists()
    link.symlink_to(place.client.config_get("unixsocket")["unixsocket"])
    shelf.take_over()
    assert not two.q_table_path.exists(), "a pause first"
    clock.now += 5.0
    shelf.take_over()
    assert QTable.load(two.q_table_path).updates == 5
    assert sorted(os.listdir(two.q_table_path.parent)) == [".q_table.json.lock", "q_table.json"]


def test_a_forked_child_shares_what_it_saves(place: SimpleNamespace, tmp_path: Path) -> None:
    settings = load_settings(place.config(tmp_path))
    sharing, _ = shared(settings)
    sharing.start()
    (name, _) = place.names(settings)
    child = os.fork()
    if child == 0:
        learned(5).save(settings.q_table_path)
        sharing.go_on()
        sharing.close(5.0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert b'"updates":5' in place.client.get(name)
    sharing.close(5.0)


def test_simulations_never_touch_the_cache(place: SimpleNamespace, tmp_path: Path) -> None:
    from nhm_sched_plugin.cli import tracing
    from nhm_sched_plugin.twin import bench

    settings = load_settings(place.config(tmp_path))
    rules = bench.Rules(tick_s=15.0, startup_s=120.0, sla_wait_s=60.0, sla_target=0.95, learn_decisions=0)
    for made in (bench._isolated(settings, tmp_path, rules, 1), tracing._isolated(settings, tmp_path / "new")):
        assert settings.ml.caching.in_redis
        assert not made.ml.caching.in_redis


def test_a_wrong_url_is_told_at_the_start(kit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="redis_url_file"):
        kit.start({"data_dir": str(tmp_path), "ml": {"caching": {"redis_url_file": str(tmp_path / "none")}}})
