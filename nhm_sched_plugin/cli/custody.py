"""Records that leave: `export` to a file, `erase` for good."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, settings_of, writable
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.questions import SinceOption, UntilOption
from nhm_sched_plugin.cli.show import out, plain, progress, show, table
from nhm_sched_plugin.observe.words import count


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="A table or view, such as execution_logs.")],
    file: Annotated[Path, typer.Argument(help="Ends in .csv or .parquet.", callback=writable)],
    since: SinceOption = None,
    until: UntilOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a table or view to a file."""
    from nhm_sched_plugin.store.export import export as write

    with opened(settings_of(config)) as store, progress(f"Writing {file.name}") as update:
        rows = write(store, name, file, since=since, until=until, progress=update)
    told = {"table": name, "file": file, "rows": rows, "bytes": file.stat().st_size}
    show(
        told,
        as_json,
        lambda: out.print(f"{count(rows, 'row')} of {name} written to {file}.", markup=False, soft_wrap=True),
    )


@app.command()
def erase(
    ticket_ids: Annotated[list[str], typer.Argument(metavar="TICKET_ID...", help="As the orchestrator calls them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is there.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove everything about tickets from the database, the spool and its quarantine, and look again."""
    from nhm_sched_plugin.pseudonyms import pseudonyms
    from nhm_sched_plugin.store.erase import erase as remove

    if "" in ticket_ids:
        raise typer.BadParameter("an empty TICKET_ID names no ticket; nothing was removed")
    settings = settings_of(config)
    with opened(settings) as store:
        hidden = pseudonyms(settings.recording)
        places = remove(store, settings.spool_path, ticket_ids, hidden=hidden, dry_run=dry_run)
    left = sum(place.left for place in places)

    def tell() -> None:
        table([plain(place) for place in places], "Nothing about these tickets is there.")
        if places and not dry_run:
            verdict = (
                f"{count(left, 'record')} left: run the command again." if left else "Looked again: nothing is left."
            )
            out.print(verdict, markup=False)

    show({"places": places, "left": left, "dry_run": dry_run}, as_json, tell)
    if left and not dry_run:
        raise typer.Exit(1)
