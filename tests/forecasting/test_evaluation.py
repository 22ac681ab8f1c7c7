"""The one rolling-origin evaluation: nothing sees the future, and the figures are what their names say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.forecasting.evaluation import Answer, Method, evaluate, own_methods, plan_origins, roll_out
from nhm_sched_plugin.forecasting.scores import Rolled, paired, reliability, smape, sums, table
from nhm_sched_plugin.forecasting.series import HistoryError

HORIZONS = (60, 360)


def load(count: int, seed: int = 1, level: float = 60.0) -> pd.Series:
    """Poisson counts with a daily and a weekly cycle."""
    index = pd.date_range("2025-01-06", periods=count, freq="h")
    shape = (1 + 0.7 * np.sin((index.hour - 8) / 24 * 2 * np.pi)) * np.where(index.day_of_week < 5, 1.0, 0.5)
    return pd.Series(np.random.default_rng(seed).poisson(level * shape), index=index, dtype=float)


def always(name: str, value: float, width: float | None = None, refits: int | None = 1) -> Method:
    """A rival that says the same whatever it knows."""

    def ask(known: pd.Series, steps: int) -> Answer:
        mean = np.full(steps, value)
        if width is None:
            return Answer(mean)
        return Answer(mean, value + width * np.tile((-2.0, -1.0, 0.0, 1.0, 2.0), (steps, 1)))

    return Method(name, lambda known: ask, refits)


def forecasts_of(history: pd.Series, origin: int) -> dict[str, list[np.ndarray]]:
    methods = own_methods(history.iloc[:origin], HORIZONS, "BR", refits=1)
    rolled = roll_out(history, methods, 6, origins=[origin - 30, origin])
    assert not rolled.failures
    return {
        name: [found.mean, *([] if found.quantiles is None else [found.quantiles])]
        for name, found in rolled.methods.items()
    }


@pytest.mark.parametrize(("count", "expected"), [(1300, {"served", "prophet", "ridge"}), (500, {"served", "arima"})])
def test_no_forecast_knows_what_came_after_its_origin(count: int, expected: set[str]) -> None:
    history, origin = load(count), count - 40
    scrambled = history.copy()
    scrambled.iloc[origin:] = np.random.default_rng(9).uniform(0, 1e6, len(history) - origin).round()
    honest, other = forecasts_of(history, origin), forecasts_of(scrambled, origin)
    assert expected <= set(honest) == set(other)
    for name, rows in honest.items():
        for mine, theirs in zip(rows, other[name], strict=True):
            assert mine.tobytes() == theirs.tobytes(), f"{name} saw the future"


def test_the_leak_test_would_notice_a_leak() -> None:
    """A method that is handed more than the hours before its origin shows it: the series is not reachable."""
    history, seen = load(400), []

    def fit(known: pd.Series) -> Callable[[pd.Series, int], Answer]:
        seen.append(len(known))

        def ask(now: pd.Series, steps: int) -> Answer:
            seen.append(len(now))
            base = now.to_numpy().base
            seen.append(0 if base is None else base.size)
            now.iloc[:] = -1.0  # what a method does to its copy is nobody else's business
            return Answer(np.ones(steps))

        return ask

    rolled = roll_out(history, [Method("spy", fit, 1), always("next", 1.0)], 6, origins=[300, 350])
    assert max(seen) <= 350
    assert seen[0] == 300
    assert (rolled.actual == [history.to_numpy()[300:306], history.to_numpy()[350:356]]).all()


@pytest.mark.parametrize(("count", "steps"), [(17_000, 24), (1320, 24), (527, 24), (336, 24), (1000, 6)])
def test_every_hour_of_the_day_is_an_origin(count: int, steps: int) -> None:
    at = plan_origins(count, steps, 100)
    assert len(at) == min(100, min(count // 4, 672) - steps + 1)
    assert (np.diff(at) > 0).all()
    assert at[0] >= count - min(count // 4, 672)
    assert at[-1] + steps <= count
    met = np.bincount(at % 24, minlength=24)
    assert met.min() >= 2
    assert met.max() - met.min() <= 3


def test_a_test_region_of_ones_own() -> None:
    at = plan_origins(336, 24, 100, test_hours=123)
    assert list(at) == list(range(213, 313))
    with pytest.raises(HistoryError, match="too few"):
        plan_origins(40, 24, 100)
    with pytest.raises(HistoryError, match="too few"):
        plan_origins(1000, 24, 100, test_hours=20)


def by_hand(actual: list[list[float]], mean: list[list[float]]) -> Rolled:
    from nhm_sched_plugin.forecasting.scores import Forecasts

    rolled = Rolled(known=load(48), origins=np.arange(len(actual)), actual=np.array(actual), scale=5.0)
    rolled.methods["rival"] = Forecasts(np.array(mean))
    return rolled


def test_figures_by_hand() -> None:
    rolled = by_hand([[10.0, 0.0], [20.0, np.nan]], [[5.0, 2.0], [30.0, 99.0]])
    one, two = table(rolled, (60, 120))
    assert (one.mape, one.wape, one.mase) == (pytest.approx(50), pytest.approx(50), pytest.approx(1.5))
    assert two.mape == pytest.approx(50)  # the hour without traffic is skipped, the missing one is unknown
    assert two.wape == pytest.approx(100 * 17 / 30)
    assert two.smape == pytest.approx(100 * (10 / 15 + 2 + 20 / 50) / 3)
    assert two.mase == pytest.approx(17 / 3 / 5)
    assert two.covers_80 is None
    assert smape(np.zeros(3), np.zeros(3)) == 0


def test_coverage_width_and_reliability() -> None:
    history = load(3000)
    history[:] = np.random.default_rng(2).normal(500, 50, 3000).round()
    z = np.array((-1.959964, -1.281552, 0.0, 1.281552, 1.959964))

    def ask(known: pd.Series, steps: int) -> Answer:
        return Answer(np.full(steps, 500.0), np.tile(500 + 50 * z, (steps, 1)))

    rolled = roll_out(history, [Method("normal", lambda known: ask, 1)], 6, origins=100)
    (row,) = table(rolled, (360,))
    assert row.covers_80 == pytest.approx(80, abs=5)
    assert row.covers_95 == pytest.approx(95, abs=3)
    assert row.width_80 == pytest.approx(2 * 1.281552 * 10, rel=0.02)
    assert row.pinball is not None
    assert row.pinball > 0
    below, bins = reliability(rolled.actual, rolled.methods["normal"].quantiles)  # type: ignore[arg-type]
    assert below == pytest.approx([0.025, 0.1, 0.5, 0.9, 0.975], abs=0.05)
    assert bins.sum() == pytest.approx(1)


def test_ties_with_a_quantile_are_shared() -> None:
    """A series of nothing but zeros, forecast as such, is as reliable as can be."""
    below, bins = reliability(np.zeros((4, 3)), np.zeros((4, 3, 5)))
    assert below == pytest.approx([0.5] * 5)
    assert bins == pytest.approx([0.025, 0.075, 0.4, 0.4, 0.075, 0.025])


def test_a_difference_that_is_not_chance_and_one_that_is() -> None:
    history = load(1200, level=200)
    truth = float(history.mean())
    good, bad = always("served", truth), always("bad", 3 * truth)
    rolled = roll_out(history, [good, bad, always("twin", truth)], 6, origins=60)
    worse, same = paired(rolled, "bad", 360), paired(rolled, "twin", 360)
    assert 0 < worse.low <= worse.value <= worse.high
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert paired(rolled, "bad", 360) == worse
    over, under = sums(rolled.actual, rolled.methods["bad"].mean, "wape")
    row = next(row for row in table(rolled, (360,)) if row.method == "bad")
    assert 100 * over.sum() / under.sum() == pytest.approx(row.wape)


def test_a_method_that_fails_is_named_and_the_others_go_on() -> None:
    def broken(known: pd.Series) -> Callable[[pd.Series, int], Answer]:
        raise ValueError("no")

    rolled = roll_out(load(400), [Method("broken", broken, 1), always("short", 1.0), always("good", 1.0)], 6, origins=5)
    assert rolled.failures == {"broken": "ValueError: no"}
    assert set(rolled.methods) == {"short", "good"}
    nan = roll_out(load(400), [always("nan", float("nan"))], 6, origins=5)
    assert "finite" in nan.failures["nan"]
    with pytest.raises(ValueError, match="one name"):
        roll_out(load(400), [always("a", 1.0), always("a", 2.0)], 6, origins=5)


def test_worker_processes_change_nothing() -> None:
    history = load(400)
    methods = [method for method in own_methods(history, HORIZONS, None, refits=3) if "seasonal" in method.name]
    alone, together = (roll_out(history, methods, 6, origins=8, jobs=jobs) for jobs in (1, 2))
    assert set(alone.methods) == {method.name for method in methods} != set()
    for name, found in alone.methods.items():
        assert (found.mean == together.methods[name].mean).all()


def test_our_own_models_and_any_rival_in_one_call() -> None:
    history = load(600)
    heard: list[float] = []
    rows = evaluate(history, HORIZONS, None, origins=4, refits=1, rivals=[always("mine", 50.0)], progress=heard.append)
    assert heard[-1] == 1.0
    assert {"served", "mine", "ridge"} <= {row.method for row in rows}


def test_the_example_of_the_documentation_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "backtest.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "known.iloc[:-700], (60, 1440)" in code
    spared = code.replace("known.iloc[:-700], (60, 1440)", "known.iloc[:-140], (60, 1440), singles=False")
    space: dict[str, Any] = {"history": load(560)}
    exec(compile(spared, "docs/backtest.md", "exec"), space)  # noqa: S102 - our own documentation
    assert set(space["rolled"].methods) == {"served", "mine"}
