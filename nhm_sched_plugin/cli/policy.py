"""The policy and what it is compared with: `learn`, `replay`, `q-table`."""

from __future__ import annotations

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
from nhm_sched_plugin.cli.show import out, plain, progress, record, show, table, written

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.twin.traces import Trace

q_table_app = typer.Typer(help="What the policy has learned.", no_args_is_help=True)

Load = dict[str, float | None]
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
    decisions: Annotated[int, typer.Option(callback=between(1), help="Simulated decisions.")] = 100_000,
    seed: int = 0,
    max_duration: MaxDurationOption = None,
    service_mean: ServiceMeanOption = None,
    service_sigma: ServiceSigmaOption = None,
    volume: VolumeOption = 1.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pre-train the policy in the twin."""
    from nhm_sched_plugin.twin.learn import pretrain

    settings = settings_of(config)
    load: Load = {"max_duration_s": max_duration, "service_mean_s": service_mean, "service_sigma": service_sigma}
    trace = _trace(settings, file, pairs(mapping, "--map"), load, volume, seed)
    with progress("Learning") as update:
        report = pretrain(settings, trace, decisions=decisions, seed=seed, progress=lambda share: update(share, 1.0))
    show(report, as_json, lambda: record(plain(report)))


@app.command()
def replay(
    file: TraceArgument = None,
    policies: Annotated[str, typer.Option(help="Comma-separated: plugin, rules, static.")] = "plugin,rules,static",
    mapping: MapOption = None,
    train_fraction: Annotated[
        float, typer.Option(callback=between(0.05, 0.95), help="Share of the time to train on.")
    ] = 0.7,
    seed: int = 0,
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
    from nhm_sched_plugin.twin.replay import POLICIES
    from nhm_sched_plugin.twin.replay import replay as run
    from nhm_sched_plugin.twin.summary import report_data

    names = list(dict.fromkeys(name.strip() for name in policies.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        wrong = repr(unknown[0]) if unknown else "none"
        raise typer.BadParameter(f"--policies names {wrong}; known: {', '.join(POLICIES)}")
    settings = settings_of(config)
    load: Load = {"max_duration_s": max_duration, "service_mean_s": service_mean, "service_sigma": service_sigma}
    trace = _trace(settings, file, pairs(mapping, "--map"), load, volume, seed)
    with progress("Replaying") as update:
        report = run(
            trace,
            names,
            settings,
            train_fraction=train_fraction,
            seed=seed,
            progress=lambda _, share: update(share, 1.0),
        )
    data = report_data(report)
    written(json_path, json_text(report.to_dict()))
    if report_path is not None:
        from nhm_sched_plugin.observe.report import render_report

        data.report_path = str(render_report(data, report_path))
    print_summary(data, out)


def _trace(
    settings: Settings, file: Path | None, mapping: dict[str, str], load: Load, volume: float, seed: int
) -> Trace:
    from nhm_sched_plugin.twin.traces import read_records, read_trace

    given: dict[str, Any] = {key: value for key, value in load.items() if value is not None}
    if file is not None:
        trace = read_trace(file, mapping=mapping, seed=seed, **given)
    else:
        with records(settings) as store:
            trace = read_records(store, seed=seed, **given)
    return trace if volume == 1 else trace.scaled(volume, seed)


@q_table_app.command("show")
def q_table_show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The learned values: a row per state and action, with the number of visits."""
    from nhm_sched_plugin.policy.qtable import QTable

    path = settings_of(config).q_table_path
    learned = QTable.load(path) if path.exists() else QTable()
    rows = [
        {"state": state, "action": arm, "q": cell.q, "visits": cell.visits, "mean": cell.mean}
        for state, row in sorted(learned.rows.items())
        for arm, cell in sorted(row.items())
    ]
    show(rows, as_json, lambda: table(rows, f"Nothing learned yet ({path})."))


@q_table_app.command("reset")
def q_table_reset(
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget everything learned; the old table is kept beside the new one."""
    from nhm_sched_plugin.policy.qtable import reset

    path = settings_of(config).q_table_path
    if not yes:
        typer.confirm(f"Forget everything learned in {path}?", abort=True)
    kept = reset(path)
    text = f"Reset. The old table is kept as {kept}." if kept else "There was nothing to forget."
    out.print(text, markup=False, soft_wrap=True)


app.add_typer(q_table_app, name="q-table")
