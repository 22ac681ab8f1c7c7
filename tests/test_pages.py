"""All pages: links lead somewhere, commands and options exist, settings shown in YAML can be loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from nhm_sched_plugin import Settings
from nhm_sched_plugin.cli.commands import app
from nhm_sched_plugin.twin.bench import POLICIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "fallback/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"```.*?```", re.DOTALL)
EXAMPLES = sorted((ROOT / "deploy" / "examples").iterdir())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], set[str]]:
    """Every command with its options."""
    found = {path: {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}}
    for name, sub in getattr(command, "commands", {}).items():
        found |= commands(sub, (*path, name))
    return found


COMMANDS = commands(get_command(app))


def wrong(words: list[str]) -> str | None:
    """What is wrong with the words after `nhm-sched`; None: nothing."""
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in COMMANDS:
        path = (*path, words.pop(0))
    if not path:
        return f"no such command: {words[0]}"
    given = {word.partition("=")[0].strip(".,;:()[]") for word in words if re.match(r"\[?-", word)}
    unknown = {option for option in given if re.match(r"--?[a-z]", option)} - COMMANDS[path]
    return f"{' '.join(path)} has no {', '.join(sorted(unknown))}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page() -> None:
    named = set(re.findall(r"]\((\S+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    shown = re.findall(r"(?:^ {4}|`|\bbin/|&& |\.lock )nhm-sched +([a-z][^`\n\"')|#&]*)", text, re.MULTILINE)
    shown += re.findall(r"^nhm-sched +([a-z][^#\n&]*)", text, re.MULTILINE)
    assert [problem for words in shown if (problem := wrong(words.split()))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_shown_can_be_loaded(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        shown = yaml.safe_load(block)
        if shown.keys() <= Settings.model_fields.keys():
            Settings.model_validate(shown)


def test_the_house_plan_has_every_room_and_no_other_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = text.partition("## Rooms")[2].partition("\n## ")[0].partition("\nBeside the package")[0]
    package = ROOT / "nhm_sched_plugin"
    there = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = {name for row in re.findall(r"^\| ([^|]*) \|", rooms, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)}
    assert named == there
    modules = {path.stem for path in package.rglob("*.py")}
    assert set(re.findall(r"`([a-z_]+)`", rooms)) <= modules


def test_replay_names_every_policy_that_it_knows() -> None:
    """In the option's help and on its page."""
    replay: Any = get_command(app)
    (option,) = (one for one in replay.commands["replay"].params if one.name == "policies")
    page = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    for policy in POLICIES:
        assert re.search(rf"(?<![\w-]){policy}[,;]? ", option.help), policy
        assert f"`{policy}`" in page, policy
