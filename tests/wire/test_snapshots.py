from __future__ import annotations

import pytest

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.wire.snapshots import etag, pack_policy, unpack_policy

TABLE = QTable()
TABLE.update("u1-b1-s1-t1", "NO_ACTION", 0.25, 0.1)
PLANNER = b'{"format": "planner",\n "numbers": [1.0, 2.50]}\n'


def test_both_files_come_back_as_they_went() -> None:
    q_table, planner = unpack_policy(pack_policy(TABLE.dump(), PLANNER))
    assert QTable.parse(q_table, "copy").rows == TABLE.rows, "its own digest still fits"
    assert planner == PLANNER.strip()


def test_a_policy_without_a_planner_has_none() -> None:
    q_table, planner = unpack_policy(pack_policy(TABLE.dump(), None))
    assert planner is None
    assert QTable.parse(q_table, "copy").updates == 1


def test_what_was_unpacked_packs_to_the_same_content() -> None:
    """A mirror names what it has by what it would pack; the agent must know that name."""
    content = pack_policy(TABLE.dump(), PLANNER)
    assert etag(pack_policy(*unpack_policy(content))) == etag(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b'{"format": "nhm-sched-policy-snapshot", "version": 1}',
        b'{"format": "another", "version": 1, "q_table": {}}',
        b'{"format": "nhm-sched-policy-snapshot", "version": 2, "q_table": {}}',
        b'{"format": "nhm-sched-policy-snapshot", "version": 1, "q_table": {}',
        b'\xff\xfe{"q_table": {}}',
    ],
)
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="policy snapshot"):
        unpack_policy(content)


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff\xfe"])
def test_files_that_hold_no_json_are_not_packed(broken: bytes) -> None:
    with pytest.raises(ModelError, match="no JSON"):
        pack_policy(broken, None)
    with pytest.raises(ModelError, match="no JSON"):
        pack_policy(TABLE.dump(), broken)
