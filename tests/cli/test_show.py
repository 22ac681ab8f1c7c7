"""What the commands print."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nhm_sched_plugin.cli import show


def test_a_table_that_is_too_wide_wraps_and_loses_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(show, "out", screen)
    words = [f"word{number}" for number in range(30)]
    show.table([{"reason": " ".join(words[:15]), "rows": 1, "example": " ".join(words[15:])}])
    printed = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in printed for word in words)


def test_values_are_written_for_people() -> None:
    values = {"a": None, "b": "", "c": 0.0123, "d": 12345, "e": True, "f": {"x": 1000, "y": 0.5}}
    assert [show.text(value) for value in values.values()] == ["-", "-", "0.01", "12,345", "yes", "x 1,000, y 0.50"]
