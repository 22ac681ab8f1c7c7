"""Load forecasters: `train`, `models`, `approve`, `promote`, `forecast`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, between, settings_of
from nhm_sched_plugin.cli.asking import Agent, EndpointOption, TimeoutOption, TlsCaOption, TokenOption
from nhm_sched_plugin.cli.show import err, moment, out, show, table
from nhm_sched_plugin.errors import ModelError, RegistryError, TrainingError
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import Forecast

LONGEST = 7 * 24 * 60
"""Minutes that a forecast table covers at least."""


class Engines(StrEnum):
    """Where the fits run."""

    loky = "loky"
    dask = "dask"


SliceOption = Annotated[str | None, typer.Option(help="Only this slice.")]


@app.command()
def train(
    horizon: Annotated[
        list[int] | None, typer.Option(callback=between(60, LONGEST), help="Minutes ahead; repeatable. Default: all.")
    ] = None,
    task_type: SliceOption = None,
    risk_band: SliceOption = None,
    keep: Annotated[
        int | None, typer.Option(callback=between(0), help="Only the N busiest slices besides the global one.")
    ] = None,
    jobs: Annotated[int, typer.Option(callback=between(1), help="Worker processes.")] = 2,
    engine: Annotated[Engines, typer.Option(help="Processes on this machine, or a Dask cluster.")] = Engines.loky,
    scheduler: Annotated[str | None, typer.Option(help="Address of the Dask cluster: tcp://HOST:8786.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted training had finished.")] = False,
    if_needed: Annotated[
        bool, typer.Option("--if-needed", help="Only without a table, when the model is old, or when a host asks.")
    ] = False,
    max_age_days: Annotated[float, typer.Option(callback=between(0), help="How old is old, for --if-needed.")] = 7,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit the load forecasters, register them and publish the table that hosts serve from."""
    from nhm_sched_plugin.training.__main__ import INTERRUPTED, not_needed
    from nhm_sched_plugin.training.__main__ import show as tell
    from nhm_sched_plugin.training.due import why_now
    from nhm_sched_plugin.training.pipeline import train as fit
    from nhm_sched_plugin.training.progress import told

    settings = settings_of(config)
    reason = why_now(settings, time.time(), max_age_days) if if_needed else ""
    if reason is None:
        report = not_needed(settings)
        return show(report, as_json, lambda: tell(report))
    if reason and not as_json:
        err.print(f"training: {reason}", markup=False, highlight=False, soft_wrap=True)
    try:
        with told(quiet=as_json) as update:
            report = fit(
                settings,
                horizons=horizon,
                task_type=task_type,
                risk_band=risk_band,
                keep=keep,
                jobs=jobs,
                engine=engine.value,
                scheduler=scheduler,
                fresh=fresh,
                progress=update,
            )
    except KeyboardInterrupt:
        raise TrainingError(INTERRUPTED) from None
    report = msgspec.structs.replace(report, reason=reason)
    show(report, as_json, lambda: tell(report))
    if report.failed:
        raise typer.Exit(1)


@app.command()
def models(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Every registered model version with its aliases and backtest errors."""
    from nhm_sched_plugin.training.registry import Registry

    registry = Registry.of(settings_of(config))
    rows = [
        {
            "name": found.name,
            "version": found.version,
            "aliases": ", ".join(found.aliases),
            "mape": found.metrics.get("mape"),
            "calibration_error": found.metrics.get("ece"),
            "created": moment(found.created_at),
            "approved_by": found.tags.get("approved_by"),
        }
        for found in (registry.list() if registry.exists() else [])
    ]
    days = [{**row, "created": str(row["created"])[:10]} for row in rows]
    show(rows, as_json, lambda: table(days, "No models yet; run `nhm-sched train`."))


def _with_models(settings: Settings) -> Settings:
    """Raises `RegistryError` before a registry is made just to find it empty."""
    from nhm_sched_plugin.training.registry import Registry

    if not Registry.of(settings).exists():
        raise RegistryError(f"no models in {settings.registry_path} yet; run `nhm-sched train`")
    return settings


@app.command()
def approve(
    name: str,
    version: str,
    by: Annotated[str, typer.Option("--by", help="Who approves.")],
    config: ConfigOption = None,
) -> None:
    """Note a person's approval of a model version: one of the four criteria for production."""
    from nhm_sched_plugin.training.promotion import approve as note

    note(_with_models(settings_of(config)), name, version, by)
    out.print(f"{name} version {version} is approved by {by}.", markup=False, soft_wrap=True)


@app.command()
def promote(name: str, version: str, config: ConfigOption = None) -> None:
    """Give a model version the alias `production`, if it meets all criteria; else say which are missing."""
    from nhm_sched_plugin.training.promotion import promote as promote_version

    promoted = promote_version(_with_models(settings_of(config)), name, version)
    text = " ".join([f"{promoted.name} version {promoted.version} is in production.", *promoted.notes])
    out.print(text, markup=False, soft_wrap=True)


@app.command()
def forecast(
    horizon: Annotated[
        list[int] | None, typer.Option(callback=between(1, LONGEST), help="Minutes ahead; repeatable. Default: all.")
    ] = None,
    task_type: SliceOption = None,
    risk_band: SliceOption = None,
    endpoint: EndpointOption = None,
    tls_ca_file: TlsCaOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a host would be told now: by an optimizer agent, or without one from the table published here."""
    settings = settings_of(config)
    horizons = horizon or settings.ml.forecasting.horizons
    agent = Agent.of(settings, endpoint, tls_ca_file, token_file, timeout)
    if agent is None:
        now = time.time()
        found, warning = _published(settings, horizons, now, task_type, risk_band)
        title = f"Forecast from now on, {moment(now)}"
    else:
        found, warning = _asked(agent, horizons, task_type, risk_band)
        title = f"Forecast of the optimizer agent at {agent.addresses}, {moment(time.time())}"

    def tell() -> None:
        rows = [
            {
                "minutes ahead": answer.horizon_minutes,
                "tickets in that hour": answer.points[-1].mean if answer.points else answer.predicted_volume,
                "10 %": answer.points[-1].quantiles.get(0.1) if answer.points else None,
                "90 %": answer.points[-1].quantiles.get(0.9) if answer.points else None,
                "confidence": answer.confidence,
                "method": answer.method,
            }
            for answer in found
        ]
        table(rows, title=title)
        if warning:
            err.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)

    show(found, as_json, tell)


def _published(
    settings: Settings, horizons: Sequence[int], now: float, task_type: str | None, risk_band: str | None
) -> tuple[list[Forecast], str]:
    """From the table on this machine, and what there is to say about it. Raises `ModelError`."""
    from nhm_sched_plugin.forecasting.table import SnapshotForecaster, read_table

    read_table(settings.forecast_table_path)  # raises where a host would go on without
    forecaster = SnapshotForecaster(settings.forecast_table_path)
    answers = [forecaster.forecast(minutes, now, task_type, risk_band) for minutes in horizons]
    found = [answer for answer in answers if answer is not None]
    served = forecaster.table
    if not found:
        slices = ", ".join(sorted(served.slices)).replace("|", "/") if served else "none"
        asked = "/".join(filter(None, (task_type, risk_band))) or "all tickets"
        raise ModelError(f"no forecast for {asked}; the table has: {slices}. Run `nhm-sched train` without a slice")
    old = served is not None and served.origin < now - 24 * 3600
    since = moment(served.origin) if served is not None else ""
    warning = f"the history behind it ends {since}, so the confidence is low; ingest newer tickets and train again"
    return found, warning if old else ""


def _asked(
    agent: Agent, horizons: Sequence[int], task_type: str | None, risk_band: str | None
) -> tuple[list[Forecast], str]:
    """The agent's own, and what there is to say about them. Raises `NhmSchedError` when there is no answer."""
    from nhm_sched_plugin.advice.remote.forecaster import sensible
    from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
    from nhm_sched_plugin.wire.convert import forecast_of

    def read(answer: Any) -> Forecast:
        forecast = forecast_of(answer)
        if not sensible(forecast):
            raise ValueError(f"a forecast of {forecast.predicted_volume:g} tickets, confidence {forecast.confidence:g}")
        return forecast

    requests = [
        pb.ForecastRequest(horizon_minutes=minutes, task_type=task_type, risk_band=risk_band) for minutes in horizons
    ]
    found = agent.ask("GetLoadForecast", requests, read)
    guessed = any(answer.method == "mean" for answer in found)
    return found, "the agent has no forecast table yet: this is the last hour going on" if guessed else ""
