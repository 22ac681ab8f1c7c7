"""The lock files say what pyproject.toml says. Without network: nothing is resolved here, only compared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CHECKOUT = Path(__file__).resolve().parents[2]
LOCKS = CHECKOUT / "requirements"
DATA = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = DATA["project"]
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)")


def pins(lock: str) -> dict[str, set[Version]]:
    """Name -> versions: more than one when they depend on the Python version."""
    found: dict[str, set[Version]] = {}
    for line in (LOCKS / lock).read_text(encoding="utf-8").splitlines():
        if match := PIN.match(line):
            found.setdefault(canonicalize_name(match["name"]), set()).add(Version(match["version"]))
    return found


def of_extras(*extras: str) -> list[Requirement]:
    """The core and these extras, extras of our own resolved."""
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        for text in PROJECT["optional-dependencies"][extra]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                wanted += of_extras(*requirement.extras)
            else:
                wanted.append(requirement)
    return wanted


def of_group(group: str) -> list[Requirement]:
    wanted: list[Requirement] = []
    for item in DATA["dependency-groups"][group]:
        wanted += of_group(item["include-group"]) if isinstance(item, dict) else [Requirement(item)]
    return wanted


EVERY_EXTRA = of_extras(*PROJECT["optional-dependencies"])
EXPECTED = {
    "host.txt": of_extras(),
    "demo.txt": of_extras("demo") + of_group("build"),
    "dev.txt": EVERY_EXTRA + of_group("dev"),
    "bench.txt": of_extras("demo") + of_group("build") + of_group("bench"),
    "lowest.txt": EVERY_EXTRA + of_group("test"),
}


@pytest.mark.parametrize("lock", EXPECTED)
def test_every_direct_dependency_is_pinned_within_its_bounds(lock: str) -> None:
    pinned = pins(lock)
    for requirement in EXPECTED[lock]:
        versions = pinned.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement} is not in {lock}: run `make lock`"
        assert all(requirement.specifier.contains(version) for version in versions), (
            f"{requirement}: {lock} has {versions}"
        )


def test_the_lower_bounds_are_those_that_are_tested() -> None:
    pinned = pins("lowest.txt")
    for requirement in EXPECTED["lowest.txt"]:
        bounds = [Version(item.version) for item in requirement.specifier if item.operator == ">="]
        assert bounds, f"{requirement} has no lower bound"
        assert pinned[canonicalize_name(requirement.name)] == {max(bounds)}, f"{requirement}: not what is tested"


@pytest.mark.parametrize("lock", ["host.txt", "demo.txt"])
def test_the_smaller_locks_are_parts_of_the_development_lock(lock: str) -> None:
    whole = pins("dev.txt")
    assert {name: versions for name, versions in pins(lock).items() if whole.get(name) != versions} == {}


def test_a_host_needs_no_more_than_a_dozen_small_packages() -> None:
    assert len(pins("host.txt")) <= 15


@pytest.mark.parametrize("lock", [*EXPECTED, "uv.txt"])
def test_every_pin_has_its_hashes_and_no_index_is_named(lock: str) -> None:
    text = (LOCKS / lock).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
    pinned = [block for block in blocks if PIN.match(block)]
    assert len(pinned) == sum(len(versions) for versions in pins(lock).values()) > 0
    assert all("--hash=sha256:" in block for block in pinned)
    assert "://" not in text


def test_extra_all_is_every_extra() -> None:
    names = {requirement.name for requirement in of_extras("all")}
    assert names == {requirement.name for requirement in EVERY_EXTRA}
