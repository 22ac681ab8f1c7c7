"""The policy and what it is compared with: `learn`, `replay`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nhm_sched_plugin.cli.app import (
    ConfigOption,
    JsonOption,
    MapOption,
    app,
    between,
    pairs,
    records,
    settings_of,
    writable,
)
from nhm_sched_plugin.cli.show import as_json as json_text
from nhm_sched_plugin.cli.show import err, out, plain, progress, record, show, text, written
from nhm_sched_plugin.errors import IngestError

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.twin.learn import LearnReport
    from nhm_sched_plugin.twin.loads import Load
    from nhm_sched_plugin.twin.traces import Trace

MaxDurationOption = Annotated[
    float | None,
    typer.Option("--max-duration", metavar="SECONDS", callback=between(1e-3), help="No ticket takes longer than this."),
]
ServiceMeanOption = Annotated[
    float | None,
    typer.Option(
        "--service-mean",
        metavar="SECONDS",
        callback=between(1e-3),
        help="Mean of the service times drawn where the log has none; default: 300.",
    ),
]
ServiceSigmaOption = Annotated[
    float | None,
    typer.Option("--service-sigma", callback=between(0, 5), help="Their spread: sigma of the lognormal; default: 0.8."),
]
VolumeOption = Annotated[
    float,
    typer.Option(
        "--volume",
        metavar="FACTOR",
        callback=between(1e-3, 10_000),
        help="So many times the tickets: copies move by up to a minute.",
    ),
]
TraceArgument = Annotated[
    Path | None, typer.Argument(help="A trace (CSV or SWF); default: the tickets in the database.")
]


@app.command()
def learn(
    file: TraceArgument = None,
    mapping: MapOption = None,
    decisions: Annotated[int, typer.Option(callback=between(1), help="Simulated decisions.")] = 1_000_000,
    seed: int = 0,
    max_duration: MaxDurationOption = None,
    service_mean: ServiceMeanOption = None,
    service_sigma: ServiceSigmaOption = None,
    volume: VolumeOption = 1.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an interrupted run instead of going on.")] = False,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Calibrate the planner again, even where that is recent.")
    ] = False,
    register: Annotated[
        bool, typer.Option("--register", help="Keep it in the registry: a version of scheduling_policy, staged.")
    ] = False,
    report_path: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="OUT.html", callback=writable, help="Write a page: does confidence come true?"
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Calibrate the planner and pre-train the policy in the twin. An interrupted run goes on where it was."""
    from nhm_sched_plugin.twin.learn import learn as run

    settings = settings_of(config)
    if register:  # what is wrong with the registry shows before the work
        from nhm_sched_plugin.training.registry import Registry

        Registry.of(settings).open()
    made = _made_of(max_duration, service_mean, service_sigma)
    trace = _times(partial(_same, _trace(settings, file, pairs(mapping, "--map"), made, seed)), volume, seed)
    try:
        with progress("Learning") as update:
            report = run(
                settings,
                trace,
                decisions=decisions,
                seed=seed,
                fresh=fresh,
                recalibrate=recalibrate,
                progress=lambda what, share: update(share, 1.0, what.capitalize()),
            )
    except KeyboardInterrupt:
        err.print("Interrupted. The same command goes on where it was; --fresh begins anew.")
        raise typer.Exit(130) from None
    if register:
        from nhm_sched_plugin.training.policy_model import register_policy

        found = report.reliability
        ece = None if found is None or not found.trials else found.ece
        report.version = register_policy(settings, decisions=report.decisions, seed=seed, ece=ece)
    values = plain(report)
    checked, notes = values.pop("reliability"), values.pop("notes")
    if checked is not None:
        values |= {
            "calibration_error": checked["ece"],
            "brier_score": checked["brier"],
            "trials_held_out": checked["trials"],
        }
    if report_path is not None:
        _learn_page(report, values, report_path)

    def printed() -> None:
        record(values)
        for note in notes:
            out.print(f"Note: {note}.", markup=False, highlight=False, soft_wrap=True)

    show(report, as_json, printed)


def _learn_page(report: LearnReport, values: Mapping[str, Any], path: Path) -> None:
    from nhm_sched_plugin.observe.learn_page import Point, learn_page

    found = report.reliability
    points = [] if found is None else [Point(each.confidence, each.frequency, each.count) for each in found.bins]
    facts = {name.replace("_", " "): text(value) for name, value in values.items()}
    learn_page(path, facts, points, None if found is None else found.ece)


@app.command()
def replay(
    file: TraceArgument = None,
    load: Annotated[
        str | None, typer.Option(metavar="NAME", help="A made load instead: smooth, flash, regime, outage, two-types.")
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help="Comma-separated: plugin, planner, rules, hpa, keda, sqrt, sqrt-quick, seasonal, headroom, static, "
            "oracle, or MODULE:FACTORY of your own; a rival is tuned unless its knob is given: hpa=0.7."
        ),
    ] = "plugin,rules,hpa,keda,sqrt,seasonal,headroom,static,oracle",
    mapping: MapOption = None,
    train_fraction: Annotated[
        float, typer.Option(callback=between(0.05, 0.95), help="Share of the time to train on.")
    ] = 0.7,
    seeds: Annotated[int, typer.Option(callback=between(1), help="How many draws to repeat it with.")] = 5,
    seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    tick: Annotated[float, typer.Option(callback=between(1), help="Seconds between control decisions.")] = 15.0,
    startup: Annotated[
        float | None,
        typer.Option(callback=between(0), help="Seconds until a new worker can start. Default: as configured."),
    ] = None,
    sla_target: Annotated[
        float, typer.Option(callback=between(0.5, 0.9999), help="Share in time that the rivals are tuned to.")
    ] = 0.95,
    frontier: Annotated[
        bool, typer.Option(help="Sweep the rivals' knobs on the replayed tickets: cost at equal SLA.")
    ] = True,
    decisions: Annotated[
        int, typer.Option(callback=between(0), help="Simulated decisions the plugin learns from, without a Q-table.")
    ] = 1_000_000,
    jobs: Annotated[int, typer.Option(callback=between(1), help="Worker processes.")] = 1,
    max_duration: MaxDurationOption = None,
    service_mean: ServiceMeanOption = None,
    service_sigma: ServiceSigmaOption = None,
    volume: VolumeOption = 1.0,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", callback=writable, help="Write everything as JSON.")
    ] = None,
    report_path: Annotated[
        Path | None,
        typer.Option("--report", metavar="OUT.html", callback=writable, help="Write a report with plots."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the same tickets through several policies and compare SLA, cost and waits."""
    from nhm_sched_plugin.observe.summary import print_summary
    from nhm_sched_plugin.twin.bench import checked
    from nhm_sched_plugin.twin.replay import replay as run
    from nhm_sched_plugin.twin.summary import report_data

    began = time.monotonic()
    try:
        names = checked([name.strip() for name in policies.split(",") if name.strip()])
    except IngestError as error:
        raise typer.BadParameter(f"--policies: {error}") from None
    made = _made_of(max_duration, service_mean, service_sigma)
    if load is not None and (file is not None or mapping or made):
        options = ["--max-duration", "--service-mean", "--service-sigma"]
        values = [file, mapping, max_duration, service_mean, service_sigma]
        given = [
            name for name, value in zip(["FILE", "--map", *options], values, strict=True) if value not in (None, [])
        ]
        raise typer.BadParameter(f"--load {load} makes its tickets; leave {' and '.join(given)} out")
    settings = settings_of(config)
    with progress("Reading the tickets") as update:
        source = (
            _load(load, volume)
            if load is not None
            else _tickets(settings, file, pairs(mapping, "--map"), made, volume, range(seed, seed + seeds))
        )
        report = run(
            source,
            names,
            settings,
            train_fraction=train_fraction,
            tick_s=tick,
            startup_s=startup,
            sla_target=sla_target,
            seed=seed,
            seeds=seeds,
            frontier_seeds=int(frontier),
            jobs=jobs,
            learn_decisions=decisions,
            progress=lambda what, share: update(share, 1.0, what[:1].upper() + what[1:]),
        )
    data = report_data(report, shlex.join(["nhm-sched", *sys.argv[1:]]))
    data.duration_s = time.monotonic() - began
    written(json_path, json_text(report.to_dict()))
    if report_path is not None:
        from nhm_sched_plugin.observe.report import render_report

        data.report_path = str(render_report(data, report_path))
    print_summary(data, out)


def _load(name: str, volume: float) -> Load:
    from nhm_sched_plugin.twin.loads import load

    try:
        made = load(name)
        return made._replace(make=partial(_times, made.make, volume))
    except IngestError as error:
        raise typer.BadParameter(f"--load: {error}") from None


def _made_of(max_duration: float | None, service_mean: float | None, service_sigma: float | None) -> dict[str, float]:
    """What the options say of service times."""
    options = {"max_duration_s": max_duration, "service_mean_s": service_mean, "service_sigma": service_sigma}
    return {name: value for name, value in options.items() if value is not None}


def _tickets(
    settings: Settings,
    file: Path | None,
    mapping: dict[str, str],
    made: dict[str, float],
    volume: float,
    seeds: range,
) -> Load:
    """The user's tickets for any seed: service times that a file does not have, and copies, are drawn anew for each."""
    from nhm_sched_plugin.twin.loads import Load
    from nhm_sched_plugin.twin.traces import read_trace

    first = _trace(settings, file, mapping, made, seeds[0])
    make: partial[Trace] = partial(_same, first)
    if file is not None and len(seeds) > 1:
        other = read_trace(file, mapping=mapping, seed=seeds[1], **made)
        if other.durations.tolist() != first.durations.tolist():
            make = partial(_read_anew, file, mapping, made)
    drawn = volume != 1 or make.func is not _same
    return Load(first.name, "", partial(_times, make, volume), drawn=drawn)


def _same(trace: Trace, seed: int) -> Trace:
    return trace


def _read_anew(file: Path, mapping: dict[str, str], made: dict[str, float], seed: int) -> Trace:
    from nhm_sched_plugin.twin.traces import read_trace

    return read_trace(file, mapping=mapping, seed=seed, **made)


def _times(make: Callable[[int], Trace], volume: float, seed: int) -> Trace:
    trace = make(seed)
    return trace if volume == 1 else trace.scaled(volume, seed)


def _trace(settings: Settings, file: Path | None, mapping: dict[str, str], made: dict[str, float], seed: int) -> Trace:
    from nhm_sched_plugin.twin.traces import read_records, read_trace

    if file is not None:
        return read_trace(file, mapping=mapping, seed=seed, **made)
    with records(settings) as store:
        return read_records(store, name="the records", seed=seed, **made)
