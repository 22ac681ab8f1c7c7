"""What the policy has learned: `q-table`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, settings_of, writable
from nhm_sched_plugin.cli.show import out, show, table

q_table_app = typer.Typer(help="What the policy has learned.", no_args_is_help=True)


@q_table_app.command("show")
def q_table_show(
    state: Annotated[str | None, typer.Option(help="Only the states whose key begins so: u2-b0.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="OUT.png", callback=writable, help="Draw what each action saves, as a heat map."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What was learned, a row per state and action: the value, visits, confidence against the rules and its trials."""
    from nhm_sched_plugin.policy.confidence import confidence
    from nhm_sched_plugin.policy.qtable import PLANNED, RULES, QTable

    path = settings_of(config).q_table_path
    learned = QTable.load(path) if path.exists() else QTable()

    def sure(key: str, arm: str) -> float | None:
        if arm.startswith(RULES):
            return None  # against the rules' action itself there is nothing to say
        return confidence(learned, key, arm.removeprefix(PLANNED), "", planned=arm.startswith(PLANNED))

    rows = [
        {
            "state": key,
            "action": arm,
            "q": cell.q,
            "visits": cell.visits,
            "confidence": sure(key, arm),
            "trials": cell.trials,
            "days": cell.days if cell.trials else None,
            "saved": cell.over if cell.trials else None,
            "gain": cell.gain if cell.pairs else None,
        }
        for key, row in sorted(learned.rows.items())
        for arm, cell in sorted(row.items())
        if key.startswith(state or "")
    ]
    nothing = f"Nothing learned yet ({path})."
    if learned.rows and not rows:
        nothing = f"No state begins with {state!r}; {path} has {', '.join(sorted(learned.rows)[:5])}, ..."
        if plot is not None:
            raise typer.BadParameter(f"--state: {nothing}")
    if plot is not None:
        from nhm_sched_plugin.observe.learn_page import draw_table

        gains = {
            (key, arm): cell.gain
            for key, row in learned.rows.items()
            for arm, cell in row.items()
            if cell.pairs and key.startswith(state or "")
        }
        try:
            draw_table(plot, gains, "saved against the planner's own action (shares of what usual tickets take)")
        except ValueError as error:
            raise typer.BadParameter(f"--plot {plot}: {error}") from None
    show(rows, as_json, lambda: table(rows, nothing))


@q_table_app.command("reset")
def q_table_reset(
    planner: Annotated[bool, typer.Option("--planner", help="Forget the planner's calibration too.")] = False,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget everything learned; the old table is kept beside the new one."""
    from nhm_sched_plugin.advice.snapshots import forget_learned
    from nhm_sched_plugin.agent.ledger import mark_of
    from nhm_sched_plugin.files import set_aside
    from nhm_sched_plugin.policy.qtable import reset
    from nhm_sched_plugin.twin.checkpoint import Checkpoint

    settings = settings_of(config)
    path = settings.q_table_path
    if not yes:
        typer.confirm(f"Forget everything learned in {path}?", abort=True)
    kept = [reset(path, lambda: mark_of(settings.ledger_path))]
    Checkpoint(path).forget()
    if planner and settings.planner_path.exists():
        kept.append(set_aside(settings.planner_path, "reset"))
    names = " and ".join(str(each) for each in kept if each is not None)
    text = f"Reset. What was there is kept as {names}." if names else "There was nothing to forget."
    if not forget_learned(settings):
        text += f" The cached copy stays: Redis did not answer. It ends within {settings.ml.caching.q_table_ttl} s."
    out.print(text, markup=False, soft_wrap=True)


app.add_typer(q_table_app, name="q-table")
