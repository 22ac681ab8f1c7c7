"""What the dashboards see of a policy."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nhm_sched_plugin.advice.gauges import publish
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.policy.qtable import QTable
from nhm_sched_plugin.settings import load_settings

SHARE = "optimizer_scheduling_policy_average_reward"


def shown(tmp_path: Path, policy: Any, name: str) -> float | None:
    metrics = Metrics()
    publish(metrics, load_settings({"data_dir": tmp_path}), None, policy, None, 0.0)
    return metrics.registry.get_sample_value(name)


def test_the_share_of_the_gap_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    table = QTable()
    policy = SimpleNamespace(table=table)
    table.update("u1-b0-s1-t1", "NO_ACTION", 0.5, 0.01)
    assert math.isnan(shown(tmp_path, policy, SHARE) or 0.0), "not measured is not as good as the rules"
    table.gap = 0.625
    assert shown(tmp_path, policy, SHARE) == 0.625
    assert shown(tmp_path, policy, "optimizer_q_table_size") == 1.0


def test_without_a_table_of_ours_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert shown(tmp_path, None, SHARE) == 0.0
    assert math.isnan(shown(tmp_path, SimpleNamespace(table={"a": 1}), SHARE) or 0.0)
