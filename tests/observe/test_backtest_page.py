"""The page of a backtest: complete in itself, and it says what the numbers say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from nhm_sched_plugin.observe.backtest_page import BacktestData, Fan, MethodError, render_backtest
from tests.observe.test_report import Reader


def error(method: str, horizon: int, mape: float | None, **more: object) -> MethodError:
    values = {"wape": mape, "smape": mape, "mase": 0.5, **more}
    return MethodError(method=method, horizon_minutes=horizon, mape=mape, **values)  # type: ignore[arg-type]


def some() -> BacktestData:
    day = [float(10 + hour) for hour in range(24)]
    fan = Fan(
        title="A <good> one",
        origin=1_736_121_600.0,
        error=12.5,
        history=[*day, None, *day],
        actual=[None, *day[1:]],
        median=day,
        low_80=[value - 2 for value in day],
        high_80=[value + 2 for value in day],
        low_95=[value - 4 for value in day],
        high_95=[value + 4 for value in day],
    )
    return BacktestData(
        name="load & <more>",
        hours=1000,
        origins=100,
        first=1_736_121_600.0,
        last=1_737_121_600.0,
        errors=[
            error("served", 60, 12.0, covers_80=81.0, covers_95=95.5),
            error("prophet", 60, 38.9, worse=(26.9, 20.0, 33.0)),
            error("served", 1440, 26.0, covers_80=79.0, covers_95=94.0),
            error("prophet", 1440, None),
        ],
        targets={60: 15.0, 1440: 25.0},
        fans=[fan],
        inside_80=[80.0, None, 78.0],
        inside_95=[96.0, None, 94.0],
        levels=[0.025, 0.1, 0.5, 0.9, 0.975],
        below=[0.03, 0.1, 0.62, 0.9, 0.97],
        bins=[0.03, 0.07, 0.52, 0.28, 0.07, 0.03],
        failures={"mstl": "ValueError: too short"},
        command="nhm-sched backtest load.csv",
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    return render_backtest(some(), tmp_path / "sub" / "page.html").read_text(encoding="utf-8")


def test_it_is_complete_in_itself_and_escapes_names(page: str) -> None:
    reader = Reader(page)
    assert reader.tags["script"] == reader.tags["img"] == reader.tags["link"] == 0
    assert all(link.startswith("#") for link in reader.links)
    assert len(reader.ids) == len(set(reader.ids))
    assert "<more>" not in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"#0102[01][0-9a-f]", page)  # every colour is one of the theme's
    for section in ("errors", "fans", "coverage", "reliability", "methods", "made"):
        assert section in reader.ids


def test_it_says_what_the_numbers_say(page: str) -> None:
    text = " ".join(" ".join(Reader(page).words).replace("\u00a0", " ").split())
    assert "12.0 % mean error (MAPE), up to 60 minutes ahead asked for: under 15 %. Met" in text
    assert "asked for: under 25 %. Missed" in text
    assert "Least error: served up to 60 minutes ahead (12.0 %)" in text
    assert "+26.9 (+20.0 to +33.0)" in text
    assert "62 % of the counts were below the 50 % quantile" in text
    assert "left out: ValueError: too short" in text


def test_a_method_without_intervals_gets_a_page_too(tmp_path: Path) -> None:
    bare = msgspec.structs.replace(some(), fans=[], inside_80=[], inside_95=[], levels=[], below=[], bins=[], errors=[])
    text = render_backtest(bare, tmp_path / "page.html").read_text(encoding="utf-8")
    assert not {"errors", "fans", "coverage", "reliability"} & set(Reader(text).ids)
    assert "<figure>" not in text
