"""Files of regressors and holidays reach every slice's models, and newer ones the next table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.forecasting import LoadForecaster, read_table
from nhm_sched_plugin.settings import Settings, load_settings
from nhm_sched_plugin.training import Registry, model_name, republish, train

NOW = 1_750_000_000.0
HOURS = 700


def campaigns(path: Path, ahead: float, name: str = "campaign") -> pd.Series:
    """Writes the file; returns the flag of the past."""
    index = pd.date_range("2025-01-06", periods=HOURS + 72, freq="h", tz="UTC")
    flag = (np.random.default_rng(5).random(len(index) // 24 + 1) < 0.3)[np.arange(len(index)) // 24].astype(float)
    flag[HOURS:] = ahead
    pd.DataFrame({"timestamp": index.strftime("%Y-%m-%dT%H:%MZ"), name: flag}).to_csv(path, index=False)
    return pd.Series(flag, index=index).iloc[:HOURS]


def counts(flag: pd.Series, level: float, seed: int) -> pd.Series:
    index = pd.DatetimeIndex(flag.index)
    shape = level * (1 + 0.6 * np.sin((index.hour - 8) / 24 * 2 * np.pi)) * (1 + flag.to_numpy())
    return pd.Series(np.random.default_rng(seed).poisson(shape), index=index, dtype=float)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, dict[str, pd.Series], Any]:
    folder = tmp_path_factory.mktemp("data")
    flag = campaigns(folder / "known.csv", 0.0)
    (folder / "days.csv").write_text("date,name\n2025-02-20,Closed\n")
    ml = {"country": None, "regressors": str(folder / "known.csv"), "holidays": str(folder / "days.csv")}
    settings = load_settings({"data_dir": str(folder), "ml": {"forecasting": ml}})
    part = counts(flag, 100, 2)
    series = {"": counts(flag, 200, 1) + part, "processing": part, "young": part.iloc[-30:]}
    return settings, series, train(settings, series=series, horizons=[1440], jobs=1, clock=lambda: NOW)


def day_ahead(settings: Settings) -> float:
    return sum(read_table(settings.forecast_table_path).slices["processing"].mean[:24])


def test_every_slice_learns_them(trained: Any) -> None:
    settings, _, report = trained
    assert not report.failed
    registry = Registry.of(settings)
    for kind in (None, "processing"):
        name = model_name(1440, kind)
        model = LoadForecaster.from_state(registry.load(name, "1"))
        assert model.regressors == ("campaign",)
        assert "Closed" in model.holidays.values()


def test_the_next_table_follows_the_file(trained: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings, series, _ = trained
    file = settings.ml.forecasting.regressors
    quiet = day_ahead(settings)
    campaigns(file, 1.0)
    republish(settings, series, NOW)
    assert day_ahead(settings) > 1.1 * quiet
    # a file that has lost the column stops nothing: the models go on with what they know
    campaigns(file, 1.0, name="price")
    republish(settings, series, NOW)
    assert day_ahead(settings) == pytest.approx(quiet, rel=0.01)
    assert "keeps the regressors of its fit: regressors lack 'campaign'" in caplog.text


def test_an_unusable_file_stops_the_training_before_the_work(trained: Any, tmp_path: Path) -> None:
    settings, series, _ = trained
    path = tmp_path / "old.csv"
    path.write_text("timestamp,x\n2020-01-01T00:00Z,1\n")
    forecasting = settings.ml.forecasting.model_copy(update={"regressors": path})
    other = settings.model_copy(
        update={"data_dir": tmp_path, "ml": settings.ml.model_copy(update={"forecasting": forecasting})}
    )
    with pytest.raises(IngestError, match=r"old.csv: regressor 'x' has no value in the hours of the history"):
        train(other, series=series, jobs=1)
    path.unlink()
    with pytest.raises(IngestError, match=r"ml.forecasting.regressors = .*old.csv cannot be read"):
        train(other, series=series, jobs=1)
