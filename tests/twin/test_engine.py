"""The compiled event loop: its books, its seeds, its callers in compiled code, and its cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.twin import engine, layout
from nhm_sched_plugin.twin.classes import TicketClass, by_risk_band
from nhm_sched_plugin.twin.compiled import allocating, cache_folder, compiled, digest, sources
from nhm_sched_plugin.twin.simulator import Order, Pool, Run, simulate
from nhm_sched_plugin.twin.traces import Trace
from nhm_sched_plugin.types import SchedulingState

END = 600.0
BANDS = ("high", "low")


def mixed(tickets: list[tuple[int, int, bool]]) -> Trace:
    return Trace(
        [float(arrival) for arrival, _, _ in tickets],
        [float(duration) for _, duration, _ in tickets],
        risk_bands=[BANDS[low] for _, _, low in tickets],
        start=0.0,
        end=END,
    )


TICKETS = st.lists(st.tuples(st.integers(0, 599), st.integers(1, 300), st.booleans()), max_size=40)
CLASSES = (TicketClass("risky", sla_wait_s=10.0, weight=3.0, risk_band="high"), TicketClass("other"))


@settings(max_examples=60, deadline=None)
@given(
    tickets=TICKETS,
    targets=st.dictionaries(st.integers(0, 599), st.integers(0, 12), max_size=30),
    startup_s=st.sampled_from([0.0, 7.0, 120.0]),
    capacity=st.sampled_from([None, 1, 5]),
    failing=st.booleans(),
)
def test_the_books_balance_at_every_second(
    tickets: list[tuple[int, int, bool]],
    targets: dict[int, int],
    startup_s: float,
    capacity: int | None,
    failing: bool,
) -> None:
    """All times are whole seconds, so that the workers of each second add up to exactly what was paid."""
    pool = Pool(
        mixed(tickets),
        workers=2,
        startup_s=startup_s,
        sla_wait_s=60.0,
        classes=CLASSES,
        capacity=capacity,
        mtbf_s=200.0 if failing else float("inf"),
    )
    sim, paid = pool.sim, 0.0
    for second in range(int(END)):
        pool.advance(second)
        if second in targets:
            pool.scale_to(targets[second])
            assert pool.ordered == targets[second]
        paid += pool.idle + pool.busy + pool.starting
        assert min(pool.idle, pool.busy - pool.draining, pool.draining, pool.starting, sim.tally.min()) >= 0
        assert not (pool.waiting and pool.idle), "nobody waits beside an idle worker"
        arrived, away, waiting, *_ = sim.tally.sum(axis=0).tolist()
        assert arrived == away + waiting + pool.busy + pool.finished
        assert waiting == pool.waiting == len(pool.queue)
        assert pool.waiting + pool.busy <= (capacity or 99)
    pool.advance(END)
    if not failing:
        assert pool.worker_seconds == paid
    waits = pool.waits
    unseen = ~np.isfinite(sim.started)
    for kind, sla in enumerate((10.0, 60.0)):
        own = sim.classes == kind
        late = waits[own & ~np.isinf(sim.started)] > sla
        row = sim.tally[kind]
        assert row[layout.STARTED] - row[layout.MET] + pool_late(pool, kind) == late.sum()
        assert row[layout.STARTED] == (own & ~unseen).sum()
    assert pool.turned_away == np.isnan(waits).sum()


def pool_late(pool: Pool, kind: int) -> int:
    pool.overdue()
    return int(pool.sim.tally[kind, layout.LATE])


class Wild:
    """Orders this and that, and changes the weights."""

    name = "wild"

    def __init__(self, watches_tickets: bool) -> None:
        self.watches_tickets = watches_tickets
        self.told: list[object] = []

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None:
        self.told.append((index, state, now))

    def on_finished(self, index: int, wait_s: float, now: float) -> None:
        self.told.append((index, wait_s, now))

    def on_tick(self, state: SchedulingState, now: float) -> int | Order | None:
        self.told.append(state)
        tick = int(now // 60)
        return Order(3 + tick * 7 % 11, {"high": 1 + tick % 5}) if tick % 3 else None


def wild_run(seed: int, watched: bool = False) -> tuple[Run, Wild]:
    draw = np.random.default_rng(5)
    bands = [BANDS[at] for at in draw.integers(0, 2, 3000)]
    trace = Trace(draw.uniform(0, 36_000, 3000), draw.exponential(60, 3000), risk_bands=bands, start=0.0, end=36_000.0)
    pool = Pool(
        trace,
        workers=5,
        startup_s=120.0,
        sla_wait_s=60.0,
        classes=by_risk_band(trace),
        mtbf_s=3600.0,
        startup_cv=0.3,
        capacity=40,
        price_per_hour=2.0,
        seed=seed,
    )
    controller = Wild(watched)
    return simulate(pool, controller), controller


def test_the_same_seed_is_the_same_run_and_watching_changes_nothing() -> None:
    (run, _), (again, watcher), (other, _) = wild_run(1), wild_run(1, watched=True), wild_run(2)
    np.testing.assert_array_equal(run.waits, again.waits)
    assert run._replace(waits=()) == again._replace(waits=())
    assert (run.waits != other.waits).any()
    assert run.failures > 20
    assert run.turned_away > 0
    assert len([told for told in watcher.told if isinstance(told, tuple)]) > 3000
    assert [kind.name for kind in run.classes] == ["high", "low", "other"]
    assert sum(kind.tickets for kind in run.classes) == 3000
    for total, parts in (
        (run.met, "met"),
        (run.missed, "missed"),
        (run.finished, "finished"),
        (run.turned_away, "turned_away"),
    ):
        assert total == sum(getattr(kind, parts) for kind in run.classes)
    assert run.cost == pytest.approx(2.0 * run.worker_seconds / 3600)
    high, low, nobody = run.classes
    assert high.waits.mean < low.waits.mean
    assert high.waits.p50 <= high.waits.p95 <= high.waits.p99
    assert (nobody.tickets, nobody.sla, nobody.waits.p99) == (0, 1.0, 0.0)


@numba.njit
def kept_at(sim: object, tick_s: float, spare: int) -> int:
    """A compiled controller: busy and waiting tickets, and some spare workers."""
    ticks = 0
    while sim.t[layout.NOW] < sim.t[layout.END]:
        engine.observe(sim)
        engine.scale_to(sim, sim.n[layout.BUSY] + sim.n[layout.WAITING] + spare)
        engine.advance(sim, sim.t[layout.NOW] + tick_s, False)
        ticks += 1
    return ticks


class Kept:
    name, watches_tickets = "kept", False

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def on_arrival(self, index: int, state: SchedulingState, now: float) -> None: ...
    def on_finished(self, index: int, wait_s: float, now: float) -> None: ...
    def on_tick(self, state: SchedulingState, now: float) -> int:
        return self.pool.busy + self.pool.waiting + 2


def test_a_compiled_loop_is_the_same_as_one_in_python() -> None:
    draw = np.random.default_rng(1)
    trace = Trace(draw.uniform(0, 86_400, 5000), draw.exponential(100, 5000), start=0.0, end=86_400.0)
    compiled, plain = (Pool(trace, workers=3, startup_s=120.0, sla_wait_s=60.0) for _ in range(2))
    assert kept_at(compiled.sim, 15.0, 2) == 5760
    run = simulate(plain, Kept(plain), tick_s=15.0)
    np.testing.assert_array_equal(compiled.waits, run.waits)
    assert compiled.worker_seconds == run.worker_seconds


def test_room_for_orders_grows_and_never_overflows() -> None:
    pool = Pool(Trace([], [], start=0.0, end=1e4), workers=1, startup_s=60.0, sla_wait_s=60.0, startup_cv=0.2)
    room = len(pool.sim.ready)
    with pytest.raises(ValueError, match="more workers start up than the simulation has room for"):
        engine.scale_to(pool.sim, room + 2)
    assert pool.ordered == 1
    assert pool.scale_to(10 * room)
    assert (pool.ordered, pool.starting) == (10 * room, 10 * room - 1)
    assert pool.scale_to(2)
    assert pool.starting == 1, "the latest orders are cancelled, whenever they would have been ready"
    pool.advance(1e4)
    assert (pool.idle, pool.starting) == (2, 0)


def test_with_a_fixed_start_up_time_any_number_fits() -> None:
    pool = Pool(Trace([], [], start=0.0, end=1e4), workers=0, startup_s=5000.0, sla_wait_s=60.0)
    for second in range(3000):
        pool.advance(second)
        pool.scale_to(10**9 + second)
    assert len(pool.sim.ready) < 5000
    assert pool.starting == 10**9 + 2999
    pool.advance(5000.0)
    assert (pool.idle, pool.starting) == (10**9, 2999)


def test_weights_may_change_while_it_runs() -> None:
    trace = mixed([(0, 100, False), (1, 100, True), (2, 100, False)])
    pool = Pool(trace, workers=1, startup_s=0.0, sla_wait_s=60.0, classes=by_risk_band(trace))
    assert [kind.name for kind in pool.classes] == ["high", "low", "other"]
    pool.advance(50.0)
    assert pool.set_weights({"high": 4, "critical": 9})
    assert not pool.set_weights({"high": 4.0})
    pool.advance(END)
    assert pool.waits.tolist() == [0.0, 199.0, 98.0]
    with pytest.raises(ValueError, match=r"class 'high': weight is 0\.0; it must be above 0"):
        pool.set_weights({"high": 0})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workers": -1}, "workers is -1; it must be a number, 0 or more"),
        ({"startup_s": float("nan")}, "startup_s is nan"),
        ({"capacity": 0}, "capacity is 0; it must be a number, 1 or more"),
        ({"mtbf_s": 0.0}, "mtbf_s is 0.0"),
        ({"startup_cv": -0.1}, "startup_cv is -0.1"),
        ({"classes": (TicketClass("a", risk_band="low"),)}, "1 tickets fit no class, such as one of task type None"),
        ({"classes": (TicketClass("a"), TicketClass("a"))}, "different names"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, object], says: str) -> None:
    asked = {"workers": 1, "startup_s": 1.0, "sla_wait_s": 1.0} | wrong
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        Pool(mixed([(0, 1, False)]), **asked)


def test_no_time_between_ticks_is_refused() -> None:
    pool = Pool(mixed([]), workers=1, startup_s=1.0, sla_wait_s=1.0)
    with pytest.raises(ValueError, match="tick_s is 0"):
        simulate(pool, Wild(False), tick_s=0)


def test_compiled_code_belongs_to_the_sources_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "house"
    (package / "twin").mkdir(parents=True)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    files = {
        "kernel": "from house.twin.compiled import compiled\nfrom house.twin import called\n",
        "called": "from house.numbers import X\n",
        "report": "import house.twin.kernel\n",
    }
    for name, text in files.items():
        (package / "twin" / f"{name}.py").write_text(text)
    folders = []
    for version in range(6):
        (package / "numbers.py").write_text(f"X = {version}")
        folders.append(cache_folder(package))
        assert folders[-1] == cache_folder(package)
        os.utime(folders[-1], (version, version))
    assert len(set(folders)) == 6, "a number that a called function takes from elsewhere"
    assert [folder.exists() for folder in folders] == [False, False, True, True, True, True], "old ones are removed"
    assert [path.stem for path in sources(package)] == ["numbers", "called", "kernel"]
    before = digest(package)
    (package / "twin" / "report.py").write_text("import house.twin.kernel  # says more\n")
    assert digest(package) == before, "nothing compiled can see it"


def test_functions_that_make_arrays_are_told_apart() -> None:
    @allocating
    def ones(count: int) -> np.ndarray:
        return np.ones(count)

    @compiled
    def forbidden(count: int) -> np.ndarray:
        return np.ones(count)

    assert ones(3).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(numba.core.errors.NumbaError, match="forbidden"):
        forbidden(3)


def test_nothing_leaks_out_of_compiled_code() -> None:
    pool = Pool(mixed([(0, 100, False), (1, 100, True)]), workers=1, startup_s=10.0, sla_wait_s=60.0)
    before = [sys.getrefcount(column) for column in pool.sim]
    for second in range(600):
        pool.state()
        pool.scale_to(second % 3)
        pool.advance(second)
    kept_at(pool.sim, 15.0, 1)
    assert [sys.getrefcount(column) for column in pool.sim] == before


def test_the_caches_name_covers_the_engine() -> None:
    names = {path.stem for path in sources(Path(engine.__file__).parents[1])}
    assert names >= {"engine", "layout", "orders", "running", "chance", "compiled"}
    assert not names & {"simulator", "replay", "controllers", "settings"}


def test_without_a_folder_to_write_to_it_compiles_anew(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = (
        "from nhm_sched_plugin.twin.compiled import CACHE, compiled\nassert CACHE is None\n"
        "print(compiled(lambda number: number / 2)(3))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1.5\n"


def test_a_cache_that_breaks_later_does_not_stop_a_run(tmp_path: Path) -> None:
    """As a full disk would: here a file takes the folder's place before anything is compiled."""
    script = tmp_path / "script.py"
    script.write_text(
        "import shutil\nfrom nhm_sched_plugin.twin.compiled import CACHE, compiled\n"
        "@compiled\ndef half(number):\n    return number / 2\n"
        "shutil.rmtree(CACHE)\nCACHE.touch()\nprint(half(3))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("1.5\n", "")
