"""The optimizer agent: `serve`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, app, between, settings_of
from nhm_sched_plugin.cli.show import out
from nhm_sched_plugin.settings import Settings

if TYPE_CHECKING:
    from nhm_sched_plugin.agent.server import AgentServer

_PORTS = between(0, 65535)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: agent.host.")] = None,
    port: Annotated[
        int | None, typer.Option(callback=_PORTS, help="0 takes any free one. Default: agent.port.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(callback=between(1, 256), help="Processes that share the port. Default: agent.workers."),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(callback=_PORTS, help="0 takes any free one. Default: metrics.port.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Answer orchestrators over gRPC until SIGTERM: forecasts, recommendations, and learning from outcomes."""
    from nhm_sched_plugin.agent.server import serve as run

    settings = _with(settings_of(config), host, port, workers, metrics_port)
    asyncio.run(run(settings, started=_tell))


def _with(
    settings: Settings, host: str | None, port: int | None, workers: int | None, metrics_port: int | None
) -> Settings:
    agent = {"host": host, "port": port, "workers": workers}
    changed = {name: value for name, value in agent.items() if value is not None}
    metrics = settings.metrics if metrics_port is None else settings.metrics.model_copy(update={"port": metrics_port})
    return settings.model_copy(update={"agent": settings.agent.model_copy(update=changed), "metrics": metrics})


def _tell(server: AgentServer) -> None:
    agent = server.settings.agent
    out.print(f"optimizer agent on {agent.host}:{server.port}", markup=False, highlight=False)
