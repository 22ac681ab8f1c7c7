"""From the hosts' spool to the records database: `drain` and `quarantine`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, between, settings_of
from nhm_sched_plugin.cli.app import records as opened
from nhm_sched_plugin.cli.show import err, moment, out, plain, progress, record, show, table
from nhm_sched_plugin.errors import NhmSchedError
from nhm_sched_plugin.observe.words import count
from nhm_sched_plugin.settings import Settings

if TYPE_CHECKING:
    from nhm_sched_plugin.store.spool import Quarantined

quarantine_app = typer.Typer(help="Records that could not be stored: why, and once more.", no_args_is_help=True)
ATTEMPTS = 5
"""Of an insert while the database does not answer, with pauses of 7.5 to 9.5 seconds in all."""


@app.command()
def drain(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until SIGTERM or Ctrl-C, then deliver what waits and end.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(callback=between(1, 100_000), help="Records an insert. Default: recording.drain_batch."),
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option(
            callback=between(0.001, 3600),
            help="With --follow: seconds a record waits for its batch to fill. Default: recording.drain_max_age_s.",
        ),
    ] = None,
    grace: Annotated[
        float, typer.Option(callback=between(0), help="With --follow: seconds for delivering at the end.")
    ] = 20.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(callback=between(0, 65535), help="With --follow: serve /metrics and /healthz there; 0: any port."),
    ] = None,
    log_tickets: Annotated[
        bool, typer.Option("--log-tickets", help="Also write ended tickets to execution_logs, where nothing else does.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deliver what waits in the host's spool to the database, exactly once in effect."""
    settings = _with(settings_of(config), drain_batch=batch, drain_max_age_s=max_age)
    if follow:
        _follow(settings, grace, metrics_port, log_tickets)
        return
    from nhm_sched_plugin.store.delivery import retrying
    from nhm_sched_plugin.store.drain import drain as drain_spool
    from nhm_sched_plugin.store.spool import spool_of

    patiently = retrying(attempts=ATTEMPTS, before_sleep=_say_that_it_waits)
    with opened(settings) as store, progress("Draining") as update:
        result = drain_spool(
            spool_of(settings),
            store,
            settings.recording.drain_batch,
            progress=update,
            log_tickets=log_tickets,
            retry=patiently,
        )
    show(result, as_json, lambda: record(plain(result)))


def _with(settings: Settings, **given: Any) -> Settings:
    recording = settings.recording.model_copy(update={key: value for key, value in given.items() if value is not None})
    return settings.model_copy(update={"recording": recording})


def _say_that_it_waits(state: Any) -> None:
    pause, error = state.next_action.sleep, state.outcome.exception()
    err.print(f"again in {pause:.1f} s: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _follow(settings: Settings, grace: float, metrics_port: int | None, log_tickets: bool) -> None:
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.observe.listener import MetricsListener
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.store.delivery import delivery

    metrics = Metrics()
    work = delivery(settings, metrics, Faults(metrics), migrate=True, log_tickets=log_tickets)
    listener = None
    if metrics_port is not None:
        exposed = settings.metrics.model_copy(update={"port": metrics_port})
        listener = MetricsListener(metrics, exposed, work.health)
        listener.start()
    # SIGTERM ends it as Ctrl-C does; the thread has its own locks, which a signal's handler must not touch.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work.start()
    try:
        work.join()
        raise NhmSchedError("the drain ended by itself; the log above says why")
    except KeyboardInterrupt:
        work.close(grace)
    finally:
        if listener is not None:
            listener.close()


@quarantine_app.command("show")
def show_quarantine(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Which records could not be written down, read back or stored, and why."""
    from nhm_sched_plugin.store.spool import spool_of

    spool = spool_of(settings_of(config))
    rows = [_row(item) for item in spool.quarantined()]
    spool.close()
    show(rows, as_json, lambda: table(rows, "Nothing is in quarantine."))


def _row(item: Quarantined) -> dict[str, Any]:
    return {"record": item.record_id, "kind": item.kind, "since": moment(item.at), "reason": item.reason}


@quarantine_app.command("retry")
def retry_quarantine(
    records: Annotated[list[str] | None, typer.Argument(help="Decision ids; none: everything in quarantine.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put records from quarantine among the waiting ones again; the next drain tries them."""
    from nhm_sched_plugin.store.spool import spool_of

    spool = spool_of(settings_of(config))
    moved = spool.retry_quarantined(set(records) if records else None)
    left = spool.quarantined_count()
    spool.close()
    text = f"{count(moved, 'record')} put back for `nhm-sched drain`; {left:,} left in quarantine."
    show({"moved": moved, "left": left}, as_json, lambda: out.print(text, markup=False))


app.add_typer(quarantine_app, name="quarantine")
