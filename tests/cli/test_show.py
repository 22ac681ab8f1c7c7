"""What the commands print."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from nhm_sched_plugin.cli import show


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    def made(width: int = 80, terminal: bool = True) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(show, "out", Console(file=written, width=width, force_terminal=terminal, color_system=None))
        return written

    return made


WORDS = [f"word{number}" for number in range(30)]


def test_a_table_that_is_too_wide_wraps_between_words(screen: Callable[..., io.StringIO]) -> None:
    written = screen()
    show.table([{"reason": " ".join(WORDS[:15]), "rows": 1, "example": " ".join(WORDS[15:])}])
    lines = written.getvalue().splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 80
    assert all(word in written.getvalue() for word in WORDS)


def test_a_table_without_room_for_single_words_becomes_a_block_for_each_row(screen: Callable[..., io.StringIO]) -> None:
    written = screen()
    show.table([{word: f"{word}-{row}-of-a-long-name" for word in WORDS[:9]} for row in range(2)], title="Too wide")
    lines = written.getvalue().splitlines()
    assert (lines[0], lines[10], len(lines)) == ("Too wide", "", 20)
    assert lines[1].split() == ["word0", "word0-0-of-a-long-name"]


def test_a_pipe_gets_whole_lines(screen: Callable[..., io.StringIO]) -> None:
    written = screen(terminal=False)
    show.table([{word: f"{word}-of-a-very-long-name" for word in WORDS}])
    header, _, row = written.getvalue().splitlines()
    assert header.count("┃") == row.count("│") == 29
    assert all(f"{word}-of-a-very-long-name" in row for word in WORDS)


def test_a_title_wider_than_its_table_stays_whole(screen: Callable[..., io.StringIO]) -> None:
    written = screen(terminal=False)
    show.table([{"a": 1, "b": 2}], title="Rejected, and why each of them was")
    assert written.getvalue().splitlines()[0] == "Rejected, and why each of them was"


def test_values_are_written_for_people() -> None:
    values = {"a": None, "b": "", "c": 0.0123, "d": 12345, "e": True, "f": {"x": 1000, "y": 0.5}}
    assert [show.text(value) for value in values.values()] == ["-", "-", "0.01", "12,345", "yes", "x 1,000, y 0.50"]
