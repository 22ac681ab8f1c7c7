from __future__ import annotations

from pathlib import Path

import pytest

from nhm_sched_plugin.observe.learn_page import Point, colour_limit, draw_table, learn_page

POINTS = [Point(0.15, 0.2, 40), Point(0.95, 0.9, 60), Point(0.0, 0.0, 0)]


def test_the_page_says_how_far_off_confidence_is(tmp_path: Path) -> None:
    page = learn_page(tmp_path / "page.html", {"states": "<80>"}, POINTS, 0.0432).read_text()
    assert "4.3 points" in page
    assert page.count("<svg") == 2
    assert "&lt;80&gt;" in page
    assert page.count("<tr><td>0.") == 2, "empty bins are left out"


def test_without_days_held_out_it_says_so(tmp_path: Path) -> None:
    page = learn_page(tmp_path / "page.html", {}, [], None).read_text()
    assert "not known" in page
    assert "<svg" not in page


def test_the_heat_map_is_a_picture(tmp_path: Path) -> None:
    for cells in ({("u0-b0-s0-t0", "NO_ACTION"): 0.1, ("u1-b0-s0-t0", "NO_ACTION"): -0.2}, {}):
        assert draw_table(tmp_path / "q.png", cells, "gains").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing"):
        draw_table(tmp_path / "q.nothing", {}, "gains")


def test_a_few_extreme_numbers_do_not_pale_the_rest() -> None:
    assert colour_limit([*(0.01 * number for number in range(-50, 50)), 40.0, -30.0]) < 0.6
    assert colour_limit([-2.0]) == 2.0
    assert colour_limit([0.0, 0.0]) == colour_limit([]) == 1.0
    assert colour_limit([0.0] * 99 + [5.0]) == 5.0
