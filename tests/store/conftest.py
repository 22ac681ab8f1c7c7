"""One embedded engine for the whole session (a process holds only one), an empty database for each test.

Every test that uses `store` or `bare` runs twice: on the embedded engine, and over HTTP on one in a process of its own.
With `NHM_TEST_CLICKHOUSE=http://user:password@host:8123` the second is that server.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.store.client import connect
from nhm_sched_plugin.store.repository import Store
from nhm_sched_plugin.store.schema import init

_numbers = itertools.count()


@pytest.fixture(scope="session")
def engine_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings({"data_dir": str(tmp_path_factory.mktemp("records")), "metrics": {"enabled": False}})


@pytest.fixture(scope="session")
def embedded(engine_settings: Settings) -> Iterator[Any]:
    """The client of the embedded engine of this process."""
    opened = connect(engine_settings)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client of a server: a real socket, and another process behind it."""
    folder = tmp_path_factory.mktemp("server")
    dsn = os.environ.get("NHM_TEST_CLICKHOUSE")
    process = None
    if dsn is None:
        port_file = folder / "port"
        front = Path(__file__).with_name("http_front.py")
        process = subprocess.Popen([sys.executable, str(front), str(folder / "db"), str(port_file)])
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        dsn = f"http://default@127.0.0.1:{port_file.read_text()}"
    opened = connect(load_settings({"data_dir": str(folder), "ml": {"clickhouse": {"dsn": dsn}}}))
    yield opened
    opened.close()
    if process is not None:
        process.kill()
        process.wait()


@pytest.fixture(scope="session", params=["embedded", "served"])
def client(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bare(client: Any) -> Iterator[Store]:
    """A store on a database of its own that does not exist yet."""
    store = Store(client, f"records_{next(_numbers)}")
    yield store
    store.command(f"DROP DATABASE IF EXISTS {store.database} SYNC")


@pytest.fixture(scope="session")
def initialised(client: Any) -> Store:
    store = Store(client, "records")
    init(store)
    return store


@pytest.fixture
def store(initialised: Store) -> Store:
    """A store with every table, all of them empty."""
    for table, rows in initialised.counts().items():
        if rows and table != "schema_migrations":
            initialised.command(f"TRUNCATE TABLE {initialised.database}.{table}")
    return initialised
