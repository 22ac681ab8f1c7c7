"""`kill -9` at random moments: what `python -m benchmarks.records --parts kills` does fifty times, a few times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks._kills import Survey, kill_drainers, kill_hosts, kill_stores

ROUNDS = 5


@pytest.mark.parametrize(
    "survey",
    [
        partial(kill_hosts, sync=False),
        partial(kill_hosts, sync=True),
        partial(kill_drainers, each=4000),
        partial(kill_stores, each=4000),
    ],
    ids=["host, batch", "host, sync", "drainer", "store"],
)
def test_nothing_safe_is_lost_and_nothing_doubled(tmp_path: Path, survey: Callable[[Path, int], Survey]) -> None:
    found = survey(tmp_path / "it", ROUNDS)
    assert (found.kills, found.acknowledged_lost, found.doubled, found.unreadable) == (ROUNDS, 0, 0, 0)
    assert found.records > ROUNDS
    # What the queue held is the end of what was recorded: never something with a later record kept.
    assert found.holes == 0
    if not found.victim.endswith("batch"):
        assert found.lost_in_queue <= ROUNDS, "at most the one that each caller was still waiting for"
