"""The public names: pinned, lazy, and typed as the contract's example uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nhm_sched_plugin

PINNED = [
    "Action",
    "Arm",
    "Decision",
    "Forecast",
    "ForecastPoint",
    "Health",
    "NhmSchedError",
    "OptimizerGRPCClient",
    "Outcome",
    "Reason",
    "Recommendation",
    "SchedulerHost",
    "SchedulingState",
    "Settings",
    "Source",
    "Ticket",
    "Veto",
    "__version__",
    "calculate_reward",
    "hookimpl",
    "load_settings",
]
ROOT = Path(__file__).parents[1]


def test_the_public_names_are_these() -> None:
    assert sorted(nhm_sched_plugin.__all__) == PINNED
    assert dir(nhm_sched_plugin) == PINNED
    for name in PINNED:
        assert getattr(nhm_sched_plugin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nhm_sched_plugin.nothing


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = (
        "import sys; before = set(sys.modules); import nhm_sched_plugin;"
        "print([name for name in set(sys.modules) - before if name.split('.')[0] in"
        " ('nhm_sched_plugin', 'pydantic', 'msgspec', 'pluggy', 'yaml', 'prometheus_client')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['nhm_sched_plugin']"


def test_types_alone_bring_no_host() -> None:
    code = "import sys; from nhm_sched_plugin import Ticket; print('nhm_sched_plugin.host' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_used_in_the_typing_example() -> None:
    text = (ROOT / "tests" / "typing" / "api.py").read_text(encoding="utf-8")
    assert [name for name in PINNED if name not in text] == []
