"""Whether a history is fit to learn from: `quality`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, MapOption, app, pairs, records, settings_of
from nhm_sched_plugin.cli.show import out, show, table

if TYPE_CHECKING:
    from nhm_sched_plugin.forecasting.quality import Finding
    from nhm_sched_plugin.training.quality import Checked

SliceOption = Annotated[str | None, typer.Option(help="Only this slice of the records.")]
SHOWN = 5


@app.command()
def quality(
    file: Annotated[
        Path | None, typer.Argument(help="CSV or Parquet with timestamp and volume. Default: the records.")
    ] = None,
    task_type: SliceOption = None,
    risk_band: SliceOption = None,
    mapping: MapOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a history by the rules of data quality: which one fails where, and what training does about it."""
    from nhm_sched_plugin.training.quality import check_file, check_records

    if file is not None and (task_type or risk_band):
        raise typer.BadParameter("--task-type and --risk-band choose a slice of the records; leave out FILE")
    if file is None and mapping:
        raise typer.BadParameter("--map names columns of a file; give FILE")
    settings = settings_of(config)
    if file is not None:
        checked = check_file(file, pairs(mapping, "--map"), settings.ml.forecasting.country)
    else:
        with records(settings) as store:
            checked = check_records(store, settings, task_type, risk_band)
    show(checked, as_json, lambda: _tell(checked, settings.ml.training.outliers == "drop"))
    if not checked.report.ok:
        raise typer.Exit(1)


def _tell(checked: Checked, dropped: bool) -> None:
    from nhm_sched_plugin.forecasting.quality import many

    report = checked.report
    facts = [f"{many(report.rows, 'row')}"]
    if report.first is not None:
        facts.append(
            f"{many(report.hours, 'hour')} from {report.first} to {report.last}, {report.missing:,} of them missing"
        )
    out.print(f"{checked.source}: {', '.join(facts)}", style="bold", markup=False, highlight=False, soft_wrap=True)
    rows = [{"rule": one.rule, "result": _result(one), "detail": one.text} for one in report.findings]
    table(rows)
    worst = [row for one in report.findings if one.failed for row in _examples(one)]
    if worst:
        out.print()
        table(worst, title="Where")
    if checked.treatment is None:
        out.print(f"\nTraining refuses it: {checked.refused}", markup=False, highlight=False, soft_wrap=True)
        return
    done = checked.treatment
    odd = done.glitches
    verb = "made missing" if dropped else "left in (ml.training.outliers: keep)"
    lines = [
        f"{many(done.interpolated, 'hour')} in gaps under 3 h interpolated, {done.left_missing:,} in longer gaps "
        "still missing.",
        f"{many(len(odd.found), 'isolated glitch', 'es')} {verb}.",
        *([f"{odd.left[0].upper()}{odd.left[1:]}."] if odd.left else []),
    ]
    out.print()
    out.print("Before training", style="bold")
    out.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if odd.found:
        table([{"at": one.at, "count": one.value, "expected": one.expected, "sigmas": one.sigmas} for one in odd.found])


def _result(finding: Finding) -> str:
    return "FAILED" if finding.failed else "ok" if finding.checked else "-"


def _examples(finding: Finding) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for one in finding.examples[:SHOWN]:
        value = "" if one.value is None else f"{one.value:,g}" if isinstance(one.value, float) else one.value
        facts = [
            f"{one.field} {value}".strip() if one.field else value,
            f"median {one.expected:,g}" if one.expected is not None else "",
            f"{one.hours} h" if one.hours is not None else "",
        ]
        place = ", ".join(part for part in (f"row {one.row}" if one.row is not None else "", one.at or "") if part)
        rows.append({"rule": finding.rule, "where": place, "what": ", ".join(fact for fact in facts if fact)})
    return rows
