"""One embedded engine for the whole session (a process holds only one), an empty database for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
def client(engine_settings: Settings) -> Iterator[Any]:
    opened = connect(engine_settings)
    yield opened
    opened.close()


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
