"""The optimizer agent: `serve`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, app, between, settings_of
from nhm_sched_plugin.cli.show import log_elsewhere, out
from nhm_sched_plugin.settings import Settings

_PORTS = between(0, 65535)


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on, or unix:/path/to/socket. Default: agent.host.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(callback=_PORTS, help="0 takes any free one. Default: agent.port.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(callback=between(1, 256), help="Processes on one port. Default: agent.workers.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(callback=_PORTS, help="Of the first process, the next have the next. Default: metrics.port."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Answer orchestrators over gRPC until SIGTERM: forecasts, recommendations, and learning from outcomes."""
    from nhm_sched_plugin.agent.logs import AgentLog

    settings = _with(settings_of(config), host, port, workers, metrics_port)
    log_elsewhere()
    with AgentLog(settings.agent):
        if settings.agent.workers > 1:
            _several(settings)
        else:
            _alone(settings)


def _several(settings: Settings) -> None:
    from nhm_sched_plugin.agent.workers import run

    run(settings, lambda listening: _tell(settings, listening.port, listening.metrics_ports))


def _alone(settings: Settings) -> None:
    from nhm_sched_plugin.agent.ports import free_socket, reserved
    from nhm_sched_plugin.agent.server import serve as run

    agent = settings.agent
    if agent.host.startswith("unix:"):
        free_socket(agent.host)
    else:
        reserved(agent.host, agent.port, shared=False).close()  # says it better than grpc would
    asyncio.run(run(settings, started=lambda server: _tell(settings, server.port, (server.metrics_port,))))


def _with(
    settings: Settings, host: str | None, port: int | None, workers: int | None, metrics_port: int | None
) -> Settings:
    agent = {"host": host, "port": port, "workers": workers}
    changed = {name: value for name, value in agent.items() if value is not None}
    metrics = settings.metrics if metrics_port is None else settings.metrics.model_copy(update={"port": metrics_port})
    return settings.model_copy(update={"agent": settings.agent.model_copy(update=changed), "metrics": metrics})


def _tell(settings: Settings, port: int, metrics_ports: tuple[int | None, ...]) -> None:
    from nhm_sched_plugin.addresses import address_of
    from nhm_sched_plugin.agent.access import described

    agent, metrics = settings.agent, settings.metrics
    processes = "" if agent.workers == 1 else f", {agent.workers} processes"
    shown = ", ".join(address_of(metrics.host, number) for number in metrics_ports if number is not None)
    lines = [
        f"optimizer agent on {address_of(agent.host, port)} ({described(agent)}{processes})",
        f"metrics on {shown}" if shown else "no metrics",
    ]
    if settings.optimizer.endpoint is not None:
        lines.append(f"an edge of {', '.join(settings.optimizer.endpoint)}: mirrors its tables, passes outcomes on")
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
