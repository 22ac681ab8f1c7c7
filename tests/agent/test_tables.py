"""The tables that hosts mirror."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nhm_sched_plugin.agent.tables import forecast_table
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.wire.snapshots import etag


@pytest.fixture
def in_a_hurry() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_whoever_asks_while_the_table_changes_hears_of_one_table_only(tmp_path: Path, in_a_hurry: None) -> None:
    path, contents = tmp_path / "forecast.json", [b"one", b"two, longer"]
    tags = [etag(content) for content in contents]
    table = forecast_table(path)
    done = threading.Event()

    def change() -> None:
        for number in range(3000):
            path.write_bytes(contents[number % 2])
            table.refresh()
        done.set()

    changing = threading.Thread(target=change)
    changing.start()
    told = []
    while not done.is_set():
        told += [(tag, table.answer(tag)) for tag in tags]
    changing.join()
    for known, raw in told:
        answer = pb.SnapshotResponse.FromString(raw)
        if answer.not_modified:
            assert answer.etag == known
        elif answer.content:
            assert answer.etag == etag(answer.content) != known
