"""Slices that are served as a share of their parent, because their own backtest says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting import read_table
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.training import Registry, model_name, republish, train
from nhm_sched_plugin.training.borrowing import METHOD, ShareOfParent

HOURS = 700
NOW = 1_750_000_000.0


def shaped(level: float, seed: int, count: int = HOURS, phase: float = 8.0) -> pd.Series:
    index = pd.date_range("2025-01-06", periods=HOURS, freq="h", tz="UTC")
    shape = 1 + 0.8 * np.sin((index.hour - phase) / 24 * 2 * np.pi)
    counts = pd.Series(np.random.default_rng(seed).poisson(level * shape), index=index, dtype=float)
    return counts.iloc[-count:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A total, a type of its own rhythm, one sparse, one a week old that follows the total, and its band."""
    settings = load_settings({"data_dir": str(tmp_path_factory.mktemp("data")), "metrics": {"enabled": False}})
    parts = {
        "odd": shaped(60, 2, phase=20.0),
        "sparse": shaped(0.2, 3),
        "young": shaped(40, 4, count=100),
        "big": shaped(300, 5),
    }
    total = sum(part.reindex(parts["big"].index, fill_value=0.0) for part in parts.values())
    report = train(settings, series={"": total, **parts}, horizons=(60, 1440), jobs=2, clock=lambda: NOW)
    return settings, report, {"": total, **parts}


def methods(report: Any, key: str) -> set[str]:
    return {row.method for row in report.rows if row.slice == key}


def test_the_backtest_chooses(trained: Any) -> None:
    _, report, _ = trained
    assert not report.failed
    assert methods(report, "sparse") == {METHOD}
    assert METHOD not in methods(report, "odd")  # its day is not the total's
    assert METHOD not in methods(report, "")


def test_shares_are_forecast_as_such_and_add_up(trained: Any) -> None:
    settings, report, series = trained
    slices = read_table(settings.forecast_table_path).slices
    row = slices["sparse"]
    assert row.method == METHOD
    assert sum(row.mean[:168]) == pytest.approx(series["sparse"].iloc[-168:].sum(), rel=0.4)
    assert all(high >= low for low, high in zip(row.quantiles["0.1"], row.quantiles["0.9"], strict=True))
    parts = np.sum([slices[key].mean for key in ("odd", "sparse", "young", "big")], axis=0)
    assert (np.array(slices[""].mean) >= parts - 1e-5).all()
    assert report.peak_worker_mib > 0


def test_the_registry_keeps_them_and_republish_serves_them(trained: Any) -> None:
    settings, _, series = trained
    state = Registry.of(settings).load(model_name(60, "sparse"), "1")
    again = ShareOfParent.from_state(state)
    assert again.parent == ""
    assert json.loads(json.dumps(again.to_state())) == state
    assert 0 < again.share < 0.01
    longer = {key: pd.concat([counts, counts.iloc[-24:].shift(24, freq="h")]) for key, counts in series.items()}
    table = republish(settings, longer, now=NOW + 86_400)
    assert table.slices["sparse"].method == METHOD
    assert table.slices["sparse"].first_hour == table.slices[""].first_hour == table.origin
    alone = republish(settings, {"sparse": longer["sparse"]}, now=NOW + 86_400)
    assert alone.slices["sparse"].mean == pytest.approx(table.slices["sparse"].mean, rel=0.2)


def test_damaged_states_are_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="version 7"):
        ShareOfParent.from_state({"kind": METHOD, "version": 7})
    with pytest.raises(ModelError, match="damaged"):
        ShareOfParent.from_state({"kind": METHOD, "version": 1, "share": "much"})


def test_many_hours_are_thinned_as_one_is() -> None:
    from nhm_sched_plugin.forecasting.intervals import thin
    from nhm_sched_plugin.training.borrowing import _part

    rng = np.random.default_rng(1)
    rows = np.sort(rng.gamma(2, 20, (30, 6)), axis=1)[:, [2, 0, 1, 3, 4, 5]]  # the mean is anywhere
    for share in (0.0, 0.004, 0.3, 1.0):
        for got, row in zip(_part(rows, share, 1.0), rows, strict=True):
            mean, quantiles = thin(float(row[0]), [float(value) for value in row[1:]], share)
            assert got == pytest.approx([mean, *quantiles])
