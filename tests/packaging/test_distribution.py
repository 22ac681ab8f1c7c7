"""What is shipped: the wheel, the sdist, and that they work in a clean environment outside the checkout. No network."""

from __future__ import annotations

import configparser
import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {
    "alembic", "chdb", "clickhouse_connect", "cmdstanpy", "grpc", "gymnasium", "holidays", "jinja2", "joblib",
    "matplotlib", "mlflow", "numba", "numpy", "pandas", "prophet", "pyarrow", "redis", "rich", "scipy", "sqlalchemy",
    "statsmodels", "typer",
}  # fmt: skip


def build(source: Path, target: Path, *what: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build(CHECKOUT, folder, "--sdist")
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build(CHECKOUT, folder, "--wheel")
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"nhm_sched_plugin-{PROJECT['version']}.dist-info/{name}").decode()


def files_under(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"nhm_sched_plugin", f"nhm_sched_plugin-{PROJECT['version']}.dist-info"}


def test_everything_in_the_package_is_shipped_with_the_drop_ins_and_the_rule_books(wheel: zipfile.ZipFile) -> None:
    expected = {f"nhm_sched_plugin/{name}" for name in files_under(CHECKOUT / "nhm_sched_plugin")}
    for kind in ("hooks", "fallback"):
        found = files_under(CHECKOUT / kind)
        assert found, f"{kind}/ is empty"
        expected |= {f"nhm_sched_plugin/bundled_files/{kind}/{name}" for name in found}
    assert {name for name in wheel.namelist() if name.startswith("nhm_sched_plugin/")} == expected
    assert "nhm_sched_plugin/py.typed" in expected


def test_the_wheel_made_from_the_sdist_is_the_same(sdist: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    build(unpacked, tmp_path / "out", "--wheel")
    (path,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(path) as from_sdist:
        assert sorted(from_sdist.namelist()) == sorted(wheel.namelist())
        assert all(from_sdist.read(name) == wheel.read(name) for name in wheel.namelist())


def test_the_sdist_can_be_tested_and_built_again(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "tox.ini",
        "proto/optimizer_agent.proto",
    }
    assert needed | {"requirements/dev.txt", "tests/packaging/test_distribution.py"} <= names
    assert not {name for name in names if name.startswith((".venv", ".tox", "dist/", "demo-output"))}


def test_the_entry_points(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(dist_info(wheel, "entry_points.txt"))
    assert list(points["nhm_sched"]) == ["nhm-sched-plugin"]
    assert dict(points["console_scripts"]) == {"nhm-sched": "nhm_sched_plugin.cli:main"}


def test_the_metadata(wheel: zipfile.ZipFile) -> None:
    said = email.message_from_string(dist_info(wheel, "METADATA"))
    assert (said["Name"], said["License-Expression"], said["Requires-Python"]) == (
        "nhm-sched-plugin",
        "Apache-2.0",
        ">=3.11",
    )
    assert set(said.get_all("Provides-Extra", [])) >= {"all", "cli", "store", "training", "report", "grpc", "demo"}
    licence = dist_info(wheel, "licenses/LICENSE")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


# -- in a clean environment


Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(wheel: zipfile.ZipFile, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command in an environment that holds the wheel and, from the one running now, everything it needs.

    The running environment's packages come by a plain line in a .pth file: that makes them importable without running
    the .pth files among them, so that an editable install of the checkout stays out of sight.
    """
    root = tmp_path_factory.mktemp("clean")
    venv.create(root / "env", with_pip=False)
    python = root / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel.filename)], check=True, capture_output=True)
    (packages,) = (root / "env" / "lib").glob("python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    home = root / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NHM_SCHED_", "COV_"))}

    def run(*command: str, stderr: bool = False) -> str:
        program = (
            [str(python), *command] if command[0].startswith("-") else [str(python.parent / command[0]), *command[1:]]
        )
        done = subprocess.run(
            program, cwd=home, env=kept | {"HOME": str(home)}, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr if stderr else done.stdout

    return run


def test_it_is_found_outside_the_checkout(installed: Run) -> None:
    code = "import nhm_sched_plugin, sys; print(nhm_sched_plugin.__file__); print(sys.path)"
    file, path = installed("-c", code).splitlines()
    assert "/env/lib/" in file
    assert str(CHECKOUT / "nhm_sched_plugin") not in path
    assert f"'{CHECKOUT}'" not in path


def test_the_drop_ins_and_rule_books_are_found(installed: Run) -> None:
    code = "from nhm_sched_plugin.settings import bundled\nfor kind in ('hooks', 'fallback'): print(bundled(kind))"
    hooks, fallback = map(Path, installed("-c", code).splitlines())
    assert hooks.parent.name == fallback.parent.name == "bundled_files"
    assert files_under(hooks) == files_under(CHECKOUT / "hooks")
    assert files_under(fallback) == files_under(CHECKOUT / "fallback")


# Blocks every module that does not come with the core dependencies, then lets a host decide.
HOST_ALONE = """
import importlib.metadata, sys
core = set(sys.argv[1].split())
for module, names in importlib.metadata.packages_distributions().items():
    if not core & {name.lower().replace("_", "-").replace(".", "-") for name in names}:
        sys.modules[module] = None
from nhm_sched_plugin import SchedulerHost, SchedulingState, Ticket
config = {"data_dir": "state", "metrics": {"enabled": False}}
with SchedulerHost.from_config(config) as host:
    decision = host.decide(Ticket(ticket_id="t1"), SchedulingState(queue_depth=150, active_workers=10))
    assert host.flush()
print(decision.action, decision.reason, decision.source)
"""


def test_a_host_decides_with_the_core_dependencies_alone(installed: Run) -> None:
    pins = re.findall(r"^([a-z0-9-]+)==", (CHECKOUT / "requirements" / "host.txt").read_text(), re.MULTILINE)
    said = installed("-c", HOST_ALONE, " ".join([*pins, "nhm-sched-plugin"])).split()
    assert said[0].isupper()
    assert said[1] != "internal_error"
    assert said[2] in {"fallback", "policy", "default"}


def test_a_host_loads_nothing_heavy(installed: Run) -> None:
    code = "import nhm_sched_plugin; from nhm_sched_plugin import SchedulerHost"
    report = installed("-X", "importtime", "-c", code, stderr=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in report.splitlines()}
    assert "nhm_sched_plugin" in loaded
    assert not loaded & HEAVY


def test_importing_the_package_loads_next_to_nothing(installed: Run) -> None:
    report = installed("-X", "importtime", "-c", "import nhm_sched_plugin", stderr=True)
    loaded = {line.rpartition("|")[2].strip() for line in report.splitlines()}
    assert {name for name in loaded if name.startswith("nhm_sched_plugin")} == {"nhm_sched_plugin"}


def test_the_entry_point_and_the_command_work(installed: Run) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "(point,) = entry_points(group='nhm_sched')\n"
        "print(point.name, hasattr(point.load(), 'nhm_sched_decide'))"
    )
    assert installed("-c", code).split() == ["nhm-sched-plugin", "True"]
    assert "demo" in installed("nhm-sched", "--help")


def test_the_version_is_the_same_everywhere(installed: Run) -> None:
    assert installed("-c", "import nhm_sched_plugin; print(nhm_sched_plugin.__version__)").strip() == PROJECT["version"]
    assert metadata.version("nhm-sched-plugin") == PROJECT["version"]
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{PROJECT['version']}]" in changelog
