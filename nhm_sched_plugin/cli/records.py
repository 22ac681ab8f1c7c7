"""The records database made, and one decision told from it: `init`, `explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, settings_of
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.show import err, out, show
from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.observe.words import count

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings
    from nhm_sched_plugin.store.schema import Report, Step


@app.command()
def init(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL that would be run, and run none.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create the database and its tables, or bring them up to date; check them and apply the retention."""
    from nhm_sched_plugin.store import schema

    settings = settings_of(config)
    chosen = settings.ml.clickhouse
    days, cluster = chosen.retention_days.by_table(), chosen.cluster
    if dry_run:
        steps, problems = _planned(settings, days)
        show({"steps": steps, "problems": problems}, as_json, lambda: _tell_plan(steps))
    else:
        with opened(settings, migrate=False) as store:
            report = schema.upgrade(store, days, cluster)
        problems = list(report.problems)
        show(report, as_json, lambda: _tell_upgrade(report))
    for problem in problems:
        err.print(f"problem: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def _planned(settings: Settings, days: Mapping[str, int | None]) -> tuple[list[Step], list[str]]:
    """What `init` would do, and what does not fit already. Makes nothing, the embedded database's folder included."""
    from nhm_sched_plugin.store import schema
    from nhm_sched_plugin.store.client import target
    from nhm_sched_plugin.store.schema.drift import differences

    place, cluster = target(settings), settings.ml.clickhouse.cluster
    if place.path is not None and not place.path.exists():
        return schema.plan(None, place.database, days, cluster), []
    with opened(settings, migrate=False) as store:
        steps = schema.plan(store, place.database, days, cluster)
        return steps, [] if any(step.version for step in steps) else differences(store, cluster)


def _tell_plan(steps: Sequence[Step]) -> None:
    """SQL that can be read, kept or piped into a client as it is."""
    if not steps:
        out.print("-- Everything is up to date.")
    for step in steps:
        title = f"migration {step.version}: {step.name}" if step.version else step.name
        out.print(f"-- {title}", markup=False, highlight=False, soft_wrap=True)
        for statement in step.statements:
            out.print(f"{statement};", markup=False, highlight=False, soft_wrap=True)


def _tell_upgrade(report: Report) -> None:
    done = []
    if report.applied:
        done.append(f"{count(len(report.applied), 'migration')} applied: {', '.join(report.applied)}")
    if report.retention:
        done.append(f"retention changed: {', '.join(report.retention)}")
    if done or not report.problems:
        out.print("\n".join(done) or "Everything is up to date.", markup=False)


@app.command()
def explain(decision_id: str, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Tell one decision's story: what was seen, expected, advised and done, and what came of it."""
    from nhm_sched_plugin.observe.story import chapters, facts

    settings = settings_of(config)
    with opened(settings) as store:
        decision = store.decision(decision_id)
    if decision is None:
        raise NhmSchedError(
            f"no decision {decision_id!r} in the database; run `nhm-sched drain` if it was made just now"
        )
    known = facts(
        decision,
        confidence_threshold=settings.optimizer.recommendation_confidence_threshold,
        volume_threshold=settings.optimizer.forecast_volume_threshold,
    )

    def tell() -> None:
        for chapter in chapters(known):
            out.print(chapter.title, style="bold", markup=False)
            out.print(chapter.text, markup=False, highlight=False)

    show(known, as_json, tell)
