"""The command where gRPC and protobuf, which belong to an extra of their own, are not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = (
    "import sys\n"
    "for name in ('grpc', 'google.protobuf'): sys.modules[name] = None\n"  # as if nobody had installed them
)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Check configuration"),
        (["doctor"], "rule book"),
        (["recommend", "--state", "queue_depth=3"], "this machine's own policy"),
    ],
)
def test_what_asks_no_agent_needs_none_of_it(arguments: list[str], said: str) -> None:
    done = run("from nhm_sched_plugin.cli import main\nmain()", *arguments)
    assert said in done.stdout, done.stderr
    assert not done.stderr


def test_every_module_of_the_command_can_be_imported() -> None:
    code = """
import importlib, pkgutil
import nhm_sched_plugin.cli as cli
for found in pkgutil.iter_modules(cli.__path__, cli.__name__ + "."):
    importlib.import_module(found.name)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_asking_an_agent_says_what_is_missing() -> None:
    done = run("from nhm_sched_plugin.cli import main\nmain()", "recommend", "--endpoint", "127.0.0.1:1")
    assert done.returncode == 2
    assert "pip install 'nhm-sched-plugin[grpc]'" in done.stderr
