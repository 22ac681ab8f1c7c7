"""The steps of the demo, in order; each does with a library call what a user does with a command."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from nhm_sched_plugin.demo.flights import flights, with_durations
from nhm_sched_plugin.demo.foresight import HOUR_S, Foresight, Hindsight
from nhm_sched_plugin.demo.told import tell
from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.host import SchedulerHost
from nhm_sched_plugin.observe.report_data import Phase, PolicyResult, ReportData
from nhm_sched_plugin.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd

    from nhm_sched_plugin.store.repository import Store
    from nhm_sched_plugin.twin.controllers import Kind
    from nhm_sched_plugin.twin.simulator import Controller
    from nhm_sched_plugin.twin.traces import Trace

__all__ = ["Progress", "Step", "run"]

DAYS: Final = 14
STAGES: Final = ((0, "shadow"), (20, "20 %"), (50, "50 %"), (100, "100 %"))
TICK_S: Final = 60.0
PRETRAIN_DAYS: Final = 56
ROLLOUT: Final = {"unit": "switchback", "block_minutes": 60}
"""Actions change the whole pool, so whole hours go to one arm; single tickets would get in each other's way."""
CONFIG: Final[dict[str, Any]] = {
    "ml": {"forecasting": {"country": "US"}, "scheduling": {"seed": 7}, "caching": {"enabled": False}},
    "limits": {"max_workers": 400},
    # The policy is asked at any load. By default it is asked only when the load nears the capacity, which the rules see
    # to it seldom does: there would be little to see.
    # Simulated time waits for nobody, so a busy machine need not cost a decision its advice.
    "optimizer": {"forecast_volume_threshold": 0, "decision_budget_ms": 1000},
    "metrics": {"enabled": False},
}
CONFIG_FILE: Final = "nhm-sched.yaml"
MARKER: Final = "made-by-the-demo"
"""In every state folder of the demo: only those are made anew."""
DATA_DIR: Final = "NHM_SCHED_DATA_DIR"

Progress = Callable[[float, float | None], None]
Step = Callable[[str], AbstractContextManager[Progress]]
"""Opens a step of the demo by its title; what it gives moves the step's progress bar (done, total)."""


def run(
    output: Path,
    step: Step,
    *,
    days: int = DAYS,
    pretrain: int = 20_000,
    history: pd.DataFrame | None = None,
    program: str = "nhm-sched",
) -> ReportData:
    """Run everything, with `report.html` and a configuration file in `output`, and the state below it.

    `days` is the length of the replayed end of the year, `pretrain` the number of simulated decisions before it,
    `history` the tickets in the shape of `flights()` (default: all of them), `program` how the user calls the command.
    An earlier demo's state is made anew. Where `NHM_SCHED_DATA_DIR` names a folder that is empty or an earlier demo's,
    the state goes there, since commands look there afterwards; all other `NHM_SCHED_*` variables are ignored.
    Raises `NhmSchedError` when a part cannot be done.
    """
    from nhm_sched_plugin.observe.report import render_report
    from nhm_sched_plugin.store.client import open_store
    from nhm_sched_plugin.twin.traces import Trace

    began = time.monotonic()
    state = _state(output)
    with _own_environment():
        settings = _prepare(output, state)
        with step("Read the flights of 2013"):
            history = flights() if history is None else history
        split = history["timestamp"].max().ceil("D") - dt.timedelta(days=days)
        with open_store(settings) as store:
            with step(f"Ingest {len(history):,} tickets") as progress:
                _ingest(store, history, progress)
            with step("Train the forecasters") as progress:
                training = _train(settings, store, split, progress)
        trace = Trace.from_frame(with_durations(history), name="flights of 2013")
        past, coming = trace.slice(trace.start, split.timestamp()), trace.slice(split.timestamp(), trace.end)
        with step("Pre-train the policy in simulation") as progress:
            lesson = _pretrain(settings, past, pretrain, progress)
        phases = _phases(coming)
        with step(f"Run {days} days through the plugin") as progress:
            plugin, foreseen = _run_plugin(output, settings, past, coming, phases, progress)
        with step("Run them with rules, and a fixed pool") as progress:
            others = _run_rivals(settings, past, coming, foreseen, progress)
        with open_store(settings) as store:
            with step("Deliver the records") as progress:
                _deliver(settings, store, foreseen, progress)
            with step("Write the report"):
                data = tell(store, past, coming, phases, foreseen, [plugin, *others])
    data.done = [
        f"Took in {len(history):,} scheduled departures of 2013 as tickets.",
        training,
        lesson,
        f"Ran the last {days} days, {len(coming):,} tickets, through the plugin in simulated time.",
        "Ran the same tickets with the rules alone and with a fixed pool.",
        *data.done,
    ]
    data.command, data.generated_at, data.duration_s = f"{program} demo", time.time(), time.monotonic() - began
    _name_next(data, output, state, program)
    data.report_path = str(render_report(data, output / "report.html"))
    return data


def _name_next(data: ReportData, output: Path, state: Path, program: str) -> None:
    """Commands that go on from here; `--config` leads them to the demo's state, unless a variable overrules it."""
    named = os.environ.get(DATA_DIR)
    if named and Path(named).expanduser().resolve() != state:
        program = f"env -u {DATA_DIR} {program}"
    data.options = f"-c {output / CONFIG_FILE}"
    wanted = [
        *((f"explain {example.decision['decision_id']}", "one decision's story") for example in data.examples[:1]),
        ("shadow report --since all", "whether the policy should decide more"),
        ("models", "the forecasters, each with its errors"),
        ("q-table show", "what the policy has learned"),
        ("doctor", "whether everything is in order"),
    ]
    data.next_commands = [(f"{program} {command} {data.options}", what) for command, what in wanted]


def _state(output: Path) -> Path:
    """Where the state goes; never a folder with something else in it."""
    named = os.environ.get(DATA_DIR)
    if named:
        wanted = Path(named).expanduser().resolve()
        if _ours(wanted):
            return wanted
    state = output.resolve() / "state"
    if not _ours(state):
        raise NhmSchedError(f"{state} holds something that no demo has made; choose another folder with --output")
    return state


def _ours(state: Path) -> bool:
    return not state.exists() or (state.is_dir() and ((state / MARKER).exists() or not any(state.iterdir())))


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Variables win over the configuration file: they would make another demo."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("NHM_SCHED_")}
    try:
        yield
    finally:
        os.environ.update(kept)


def _prepare(output: Path, state: Path) -> Settings:
    """A fresh state folder and a configuration file that every other command can use afterwards."""
    if state.exists():
        shutil.rmtree(state)
    state.mkdir(parents=True)
    (state / MARKER).touch()
    output.mkdir(parents=True, exist_ok=True)
    return _configure(output, state, 0)


def _configure(output: Path, state: Path, percentage: int) -> Settings:
    path = output / CONFIG_FILE
    tree = {**CONFIG, "data_dir": str(state)}
    tree["rollout"] = {**ROLLOUT, "percentage": percentage}
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return load_settings(path)


def _ingest(store: Store, history: pd.DataFrame, progress: Progress) -> None:
    from nhm_sched_plugin.store.ingest import ingest_frame

    ingest_frame(history, store, name="flights of 2013", keep_expired=True, progress=progress)


def _train(settings: Settings, store: Store, split: pd.Timestamp, progress: Progress) -> str:
    """On everything before `split`, and nothing after it: all flights together, and each airport."""
    from nhm_sched_plugin.training.pipeline import train

    until = split.to_pydatetime()
    series = {"": store.hourly_volume(until=until)}
    for airport in sorted({task_type for task_type, _, _ in store.slices()}):
        series[airport] = store.hourly_volume(task_type=airport, until=until)
    report = train(settings, series=series, progress=lambda done, total, _: progress(done, total))
    overall = ", ".join(
        f"{row.mape:.0f} % at {row.horizon_minutes // 60} h ({row.method})"
        for row in report.rows
        if not row.slice and row.mape is not None
    )
    return f"Trained {len(report.rows)} models on the days before; backtest error (MAPE): {overall}."


def _pretrain(settings: Settings, past: Trace, decisions: int, progress: Progress) -> str:
    from nhm_sched_plugin.twin.learn import pretrain

    recent = past.slice(max(past.start, past.end - PRETRAIN_DAYS * 86_400), past.end)
    report = pretrain(settings, recent, decisions=decisions, tick_s=TICK_S, progress=lambda share: progress(share, 1.0))
    return f"Pre-trained the policy on {report.decisions:,} simulated decisions in {report.states} states."


def _phases(coming: Trace) -> list[Phase]:
    hours = round((coming.end - coming.start) / HOUR_S)
    edges = [coming.start + HOUR_S * round(hours * part / len(STAGES)) for part in range(len(STAGES) + 1)]
    return [
        Phase(name=name, start=start, end=end, percentage=percentage)
        for (percentage, name), (start, end) in zip(STAGES, pairwise(edges), strict=True)
    ]


def _run_plugin(
    output: Path, settings: Settings, past: Trace, coming: Trace, phases: list[Phase], progress: Progress
) -> tuple[PolicyResult, Foresight]:
    """The real host on a simulated clock; each phase is switched on as a user would, in the configuration file."""
    from nhm_sched_plugin.twin.controllers import Clock, PluginController
    from nhm_sched_plugin.twin.learn import lead_s

    foresight = Foresight(settings, past, coming)
    ahead = list(phases)

    def before_tick(now: float) -> None:
        fresh = foresight.advance(now)
        if ahead and now >= ahead[0].start:
            _configure(output, settings.data_dir, ahead.pop(0).percentage or 0)
            fresh = True
        if fresh:
            host.flush(60)
            host.refresh()

    clock = Clock(coming.start)
    with SchedulerHost.from_config(output / CONFIG_FILE, clock=clock) as host:
        planner = settings.planner
        controller = PluginController(
            host,
            coming,
            clock=clock,
            lead_s=lead_s(planner.startup_s, TICK_S),
            sla_wait_s=planner.sla_wait_s,
            before_tick=before_tick,
        )
        result = _simulate(settings, past, coming, controller, progress, decisions=controller.decisions)
        host.flush(60)
    return result, foresight


def _run_rivals(
    settings: Settings, past: Trace, coming: Trace, foresight: Foresight, progress: Progress
) -> list[PolicyResult]:
    from nhm_sched_plugin.twin.controllers import RulesController, StaticController, static_workers

    hindsight = Hindsight(foresight.tables, settings.data_dir / "snapshots" / "replayed.json")
    rules = RulesController(settings, hindsight, before_tick=hindsight.advance)
    recent = past.slice(past.end - PRETRAIN_DAYS * 86_400, past.end)
    fixed = StaticController(static_workers(recent, sla_wait_s=settings.planner.sla_wait_s))
    rivals: list[tuple[Controller, str]] = [
        (rules, "same forecasts"),
        (fixed, f"{fixed.workers} workers"),
    ]
    results = []
    for number, (controller, note) in enumerate(rivals):

        def moved(done: float, total: float | None, base: int = number) -> None:
            progress(base + done, float(len(rivals)))

        results.append(_simulate(settings, past, coming, controller, moved, note=note))
    return results


def _simulate(
    settings: Settings,
    past: Trace,
    coming: Trace,
    controller: Controller,
    progress: Progress,
    *,
    note: str = "",
    decisions: Counter[Kind] | None = None,
) -> PolicyResult:
    from nhm_sched_plugin.twin.learn import lead_s
    from nhm_sched_plugin.twin.results import Scored, measured
    from nhm_sched_plugin.twin.simulator import Pool, simulate
    from nhm_sched_plugin.twin.summary import shown

    planner = settings.planner
    # The pool starts empty, as it is at midnight when the first flight leaves at five.
    pool = Pool(
        coming,
        workers=settings.limits.min_workers,
        startup_s=planner.startup_s,
        sla_wait_s=planner.sla_wait_s,
        service_s=past.service_mean_s,
    )
    scored = Scored(controller, lead_s(planner.startup_s, TICK_S))
    began = time.perf_counter()
    run = simulate(pool, scored, tick_s=TICK_S, progress=lambda share: progress(share, 1.0))
    result = measured(controller.name, run, scored.mean, decisions or Counter(), time.perf_counter() - began)
    return shown(result, note)


def _deliver(settings: Settings, store: Store, foresight: Foresight, progress: Progress) -> None:
    from nhm_sched_plugin.store.drain import drain
    from nhm_sched_plugin.store.spool import spool_of

    drain(spool_of(settings), store, progress=progress)
    store.insert_forecasts(foresight.rows())
