from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nhm_sched_plugin.errors import IngestError, RegistryError
from nhm_sched_plugin.experiment.arms import Comparison, Observed, compare
from nhm_sched_plugin.forecasting import SnapshotForecaster, read_table
from nhm_sched_plugin.settings import ProphetSettings, Settings, load_settings
from nhm_sched_plugin.training import Registry, approve, model_name, promote, republish, train
from nhm_sched_plugin.training import __main__ as command
from nhm_sched_plugin.training.data import from_store
from nhm_sched_plugin.training.fitting import SliceTask, fit_slice
from nhm_sched_plugin.training.promotion import missing_criteria, note_experiment

NOW = 1_750_000_000.0


def load(count: int, level: float = 400.0, seed: int = 1, tz: str | None = "UTC") -> pd.Series:
    index = pd.date_range("2025-01-06", periods=count, freq="h", tz=tz)
    shape = 1 + 0.6 * np.sin((index.hour - 8) / 24 * 2 * np.pi)
    return pd.Series(np.random.default_rng(seed).poisson(level * shape), index=index, dtype=float)


def task(series: pd.Series, **about: Any) -> SliceTask:
    about = {"horizons": (60,), "country": None, "config": ProphetSettings(), "max_mape": 25.0, "now": NOW} | about
    return SliceTask(key="x", series=series, **about)


def config(path: Path, **ml: Any) -> Settings:
    return load_settings({"data_dir": str(path), "ml": ml, "metrics": {"enabled": False}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any, list[tuple[int, int, str]]]:
    """Three good slices, one too noisy for the limit, one too short to judge, one that cannot be trained."""
    settings = config(tmp_path_factory.mktemp("data"))
    noise = load(400, level=1.5, seed=3)
    series = {
        "": load(400) + noise,
        "processing": load(400, level=200, seed=2),
        "processing|medium": load(400, level=100, seed=4),
        "noisy": noise,
        "young": load(30, level=50),
        "broken": -load(400),
    }
    heard: list[tuple[int, int, str]] = []
    report = train(settings, series=series, jobs=1, progress=lambda *what: heard.append(what), clock=lambda: NOW)
    return settings, report, heard


def rows_of(report: Any, key: str) -> list[Any]:
    return [row for row in report.rows if row.slice == key]


def test_good_slices_are_staged(trained: Any) -> None:
    settings, report, heard = trained
    assert len(report.rows) == 6 * 3
    assert [row.status for row in rows_of(report, "processing|medium")] == ["staged"] * 3
    assert [row.name for row in rows_of(report, "processing|medium")] == [
        model_name(horizon, "processing", "medium") for horizon in (60, 360, 1440)
    ]
    assert all(row.mape < 25 and row.version == "1" and row.samples == 400 for row in rows_of(report, ""))
    assert heard[-1][:2] == (6, 6)
    registry = Registry.of(settings)
    state = registry.load(model_name(60), "staging")
    assert state["trained_at"] == NOW


def test_what_misses_the_limit_is_a_baseline_without_alias(trained: Any) -> None:
    settings, report, _ = trained
    registry = Registry.of(settings)
    for key in ("noisy", "young"):
        assert {row.status for row in rows_of(report, key)} == {"baseline"}, key
        found = registry.latest(model_name(60, key))
        assert found is not None
        assert found.aliases == []
    assert rows_of(report, "young")[0].mape is None
    assert all(row.mape >= 25 for row in rows_of(report, "noisy"))
    table = read_table(settings.forecast_table_path)
    assert not table.slices["noisy"].trusted
    assert table.slices[""].trusted


def test_a_failed_slice_stops_no_other(trained: Any) -> None:
    settings, report, _ = trained
    assert {row.status for row in rows_of(report, "broken")} == {"failed"}
    assert "negative" in rows_of(report, "broken")[0].error
    assert {row.slice for row in report.failed} == {"broken"}
    assert set(read_table(settings.forecast_table_path).slices) == {
        "", "processing", "processing|medium", "noisy", "young"
    }  # fmt: skip


def test_a_host_serves_what_was_published(trained: Any) -> None:
    settings, _, _ = trained
    forecaster = SnapshotForecaster(settings.forecast_table_path)
    origin = load(400).index[-1].timestamp() + 3600
    for horizon in (60, 360, 1440):
        whole = forecaster.forecast(horizon, origin)
        part = forecaster.forecast(horizon, origin, "processing", "medium")
        assert whole is not None
        assert part is not None
        hour = (origin / 3600 + horizon / 60 - 1) % 24
        wanted = 100 * (1 + 0.6 * np.sin((hour - 8) / 24 * 2 * np.pi))
        assert part.predicted_volume == pytest.approx(wanted, rel=0.3)
        assert whole.predicted_volume > part.predicted_volume
    row = read_table(settings.forecast_table_path).slices["processing|medium"]
    assert len(row.mean) == 384
    assert set(row.methods) == {"60", "360", "1440"}
    assert row.model_version == "1/1/1"


def test_the_incumbent_stays_when_the_new_model_is_bad(trained: Any) -> None:
    settings, _, _ = trained
    wild = load(400, level=2.0, seed=9)
    report = train(settings, series={"": load(400), "processing": wild}, horizons=(60,), jobs=1)
    (row,) = rows_of(report, "processing")
    assert (row.status, row.version, row.alias) == ("incumbent kept", "1", "")
    assert rows_of(report, "")[0].version == "2"
    # The incumbent goes on from where the new history ends, and the other horizons are still served.
    table = read_table(settings.forecast_table_path)
    assert set(table.slices["processing"].methods) == {"60", "360", "1440"}


def test_one_slice_alone_leaves_the_others_in_the_table(trained: Any) -> None:
    settings, _, _ = trained
    before = set(read_table(settings.forecast_table_path).slices)
    series = {"": load(400), "processing|medium": load(420, level=100, seed=4)}
    report = train(settings, series=series, task_type="processing", risk_band="medium", horizons=(60,), jobs=1)
    assert [row.name for row in report.rows] == ["load_predictor_60m__processing__medium"]
    assert before <= set(read_table(settings.forecast_table_path).slices)


def test_republish_moves_the_origin_without_a_refit(trained: Any) -> None:
    settings, _, _ = trained
    longer = {"": load(448), "processing": load(448, level=200, seed=2), "stranger": load(448)}
    table = republish(settings, longer, now=NOW + 86_400)
    assert table.origin == longer[""].index[-1].timestamp() + 3600
    assert table.generated_at == NOW + 86_400
    assert table.slices[""].trained_at <= NOW or table.slices[""].samples == 400
    assert table.slices[""].first_hour == table.origin
    assert "stranger" not in table.slices
    assert "processing|medium" in table.slices  # as it was


def test_republish_without_models_says_so(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="nhm-sched train"):
        republish(config(tmp_path), {"": load(30)}, now=NOW)


def test_unknown_slice_and_horizon(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="'nope'"):
        train(config(tmp_path), series={"": load(30)}, task_type="nope")
    with pytest.raises(RegistryError, match="horizon 5 "):
        train(config(tmp_path), series={"": load(30)}, horizons=(5,))


def test_workers_give_what_this_process_gives(trained: Any) -> None:
    settings, _, _ = trained
    series = {"left": load(150, seed=6), "right": load(150, seed=5)}
    one = train(settings, series=series, jobs=1, clock=lambda: NOW)
    two = train(settings, series=series, jobs=2, clock=lambda: NOW)
    strip = [[(row.name, row.method, row.mape, row.status) for row in report.rows] for report in (one, two)]
    assert strip[0] == strip[1]
    assert all(row.method for row in two.rows)


def test_above_the_limit_the_grid_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from nhm_sched_plugin.training import fitting

    tried: list[str] = []
    whole = fitting.roll

    def counting(past: Any, makers: Any, folds: Any) -> Any:
        tried.extend(makers)
        return whole(past, makers, folds)

    monkeypatch.setattr(fitting, "roll", counting)
    # Calm enough for the limit by level, but in leaps that no model sees coming.
    wild = load(1000, level=20.0) * np.random.default_rng(4).choice([0.2, 1.0, 4.0], 1000)
    result = fit_slice(task(wild))
    assert result.error == ""
    assert tried == ["0", "1", "2"]
    tried.clear()
    assert fit_slice(task(load(1000, level=1.0))).error == ""
    assert fit_slice(task(wild, shortlist=("ridge",))).error == ""
    assert tried == []  # hopeless below ten tickets an hour, and costly where Prophet is no candidate
    for point in fitting.GRID:
        assert 0.001 <= point.changepoint_prior_scale <= 0.5
        assert 0.01 <= point.seasonality_prior_scale <= 10


def experiment(effect: float, samples: int = 100) -> Comparison:
    """120 blocks of ten decisions, half of them treated, with that effect."""
    draw = np.random.default_rng(1)
    treated = np.repeat(draw.random(120) < 0.5, 10)
    value = effect * treated + draw.normal(0, 0.3, 1200)
    seen = Observed(value, treated, np.repeat(np.arange(120), 10), np.full(1200, 0.5))
    return compare("reward", seen, min_samples=samples)


def test_promotion_asks_for_every_criterion(trained: Any) -> None:
    settings, _, _ = trained
    name = model_name(360)
    with pytest.raises(RegistryError, match=r"4\. nobody approved") as caught:
        promote(settings, name, "1")
    assert "3." not in str(caught.value)  # the very first one needs 1 and 4 only
    with pytest.raises(RegistryError, match="--by"):
        approve(settings, name, "1", " ")
    approve(settings, name, "1", "ana")
    assert "production" in promote(settings, name, "1").aliases
    # The next one is measured against it on the same backtest, and needs a test and an approval.
    train(settings, series={"": load(430)}, horizons=(360,), jobs=1)
    registry = Registry.of(settings)
    newest = registry.find(name, "staging")
    assert newest is not None
    assert newest.metrics["production_mape"] > 0
    with pytest.raises(RegistryError, match=r"3\. no A/B") as caught:
        promote(settings, name, newest.version)
    assert "4. nobody" in str(caught.value)
    assert f"nhm-sched experiment result {name} {newest.version}" in str(caught.value)
    # A treatment that did no better, cost SLA, or was seen too little is no evidence; one that did better is.
    for reward, sla, told in (
        (experiment(-0.5), experiment(0.0), "did no better than control"),
        (experiment(0.5), experiment(-0.5), "cost SLA"),
        (experiment(0.5, samples=10_000), experiment(0.0), "experiment.min_samples is 10,000"),
    ):
        with pytest.raises(RegistryError, match=told):
            note_experiment(settings, name, newest.version, reward, sla)
    assert note_experiment(settings, name, newest.version, experiment(0.5), experiment(0.0)) < 0.05
    with pytest.raises(RegistryError, match="cannot go") as caught:
        promote(settings, name, newest.version)
    assert "3." not in str(caught.value)
    with pytest.raises(RegistryError, match="no version"):
        note_experiment(settings, name, "99", experiment(0.5), experiment(0.0))
    with pytest.raises(RegistryError, match="no version"):
        promote(settings, name, "99")


def test_criteria_one_by_one(trained: Any) -> None:
    settings, _, _ = trained
    found = Registry.of(settings).find(model_name(60), "1")
    assert found is not None
    import msgspec

    def missing(current: Any = None, tags: dict[str, str] | None = None, **metrics: float) -> list[str]:
        changed = msgspec.structs.replace(found, metrics=metrics, tags=tags or {})
        return [line[0] for line in missing_criteria(changed, current, 25.0)]

    other = msgspec.structs.replace(found, version="77")
    good = {"approved_by": "ana", "experiment_p_value": "0.01"}
    assert missing(tags=good, mape=10.0) == []
    assert missing(tags=good, mape=25.0) == ["1"]
    assert missing(tags=good) == ["1"]
    assert missing(other, good, mape=10.0, production_mape=11.0) == []
    assert missing(other, good, mape=10.0, production_mape=9.0) == ["2"]
    assert missing(other, good, mape=10.0) == ["2"]
    assert missing(other, {"approved_by": "ana", "experiment_p_value": "0.2"}, mape=1.0, production_mape=2.0) == ["3"]
    assert missing(other, {"experiment_p_value": "x"}, mape=1.0, production_mape=2.0) == ["3", "4"]


class Records:
    """A store with two task types, one of them with a single risk band."""

    def slices(self) -> list[tuple[str, str, int]]:
        return [("a", "low", 600), ("a", "high", 300), ("b", "low", 100)]

    def hourly_volumes(self, slices: list[Any], **_: Any) -> list[pd.Series]:
        return [load(60, level=10) for _ in slices]

    def per_ticket_usage(self, **_: Any) -> list[Any]:
        from types import SimpleNamespace as Row

        return [
            Row(task_type="a", risk_band="low", tickets=600, cpu_core_hours=1.0, memory_gib_hours=None),
            Row(task_type="a", risk_band="high", tickets=300, cpu_core_hours=4.0, memory_gib_hours=2.0),
            Row(task_type="b", risk_band="low", tickets=100, cpu_core_hours=None, memory_gib_hours=None),
        ]


def test_slices_of_the_records(tmp_path: Path) -> None:
    data = from_store(Records(), config(tmp_path))
    assert [entry.key for entry in data.slices] == ["", "a", "a|low", "a|high", "b"]
    by_key = {entry.key: entry for entry in data.slices}
    assert by_key["a"].share == 0.9
    assert by_key["a"].cpu_core_hours == pytest.approx(2.0)
    assert by_key["a"].memory_gib_hours == pytest.approx(2.0)
    assert by_key["b"].cpu_core_hours is None
    assert data.shares == {"b|low": 0.1}
    few = from_store(Records(), config(tmp_path), keep=1)
    assert [entry.key for entry in few.slices] == ["", "a"]
    assert few.shares == {"a|low": 0.6, "a|high": 0.3, "b": 0.1, "b|low": 0.1}
    (one,) = from_store(Records(), config(tmp_path), "a", "high").slices
    assert (one.key, one.share) == ("a|high", 0.3)
    with pytest.raises(IngestError, match="'zzz'"):
        from_store(Records(), config(tmp_path), "zzz")
    short = from_store(Records(), config(tmp_path, training={"window_days": 1}))
    assert len(short.slices[0].series) == 24


FILL = """
import sys
import numpy as np, pandas as pd
from nhm_sched_plugin.settings import load_settings
from nhm_sched_plugin.store.client import open_store

rng = np.random.default_rng(7)
first = pd.Timestamp.now("UTC").floor("D") - pd.Timedelta(days=20)
stamps = pd.date_range(first, periods=24 * 14, freq="h").repeat(12)
stamps = stamps + pd.to_timedelta(rng.integers(0, 3600, len(stamps)), unit="s")
frame = pd.DataFrame({
    "timestamp": stamps, "ticket_id": [f"t{i}" for i in range(len(stamps))], "task_type": "processing",
    "risk_band": rng.choice(["medium", "high"], len(stamps), p=[0.75, 0.25]), "actual_duration_ms": 1_800_000,
    "resource_cpu": 2.0,
})
with open_store(load_settings(sys.argv[1])) as store:
    store.insert_execution_logs(frame)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the embedded database must not live in the one that runs the tests."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_command_line_on_real_records(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data_dir: {tmp_path / 'data'}\n")
    filled = run("-c", FILL, str(file))
    assert filled.returncode == 0, filled.stderr
    command_line = ("-m", "nhm_sched_plugin.training", "--config", str(file), "--horizon", "60")
    done = run(*command_line, "--task-type", "processing", "--risk-band", "medium", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["name"] for row in report["rows"]] == ["load_predictor_60m__processing__medium"]
    assert report["rows"][0]["samples"] == 24 * 14
    row = read_table(Path(report["table"])).slices["processing|medium"]
    assert row.cpu_core_hours_per_ticket == pytest.approx(1.0)
    assert row.share == pytest.approx(0.75, abs=0.03)
    assert row.mean[0] == pytest.approx(9, abs=3)
    whole = run(*command_line)
    assert whole.returncode == 0, whole.stderr
    assert "load_predictor_60m" in whole.stdout
    assert set(read_table(Path(report["table"])).slices) == {
        "", "processing", "processing|medium", "processing|high"
    }  # fmt: skip


def test_command_line_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("nonsense: 1\n")
    assert command.main(["--config", str(file)]) == 2
    assert "nonsense" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        command.main(["--horizon", "soon"])
    assert stopped.value.code == 2


def test_a_production_model_of_another_version_stops_no_training() -> None:
    """It serves nothing any more, so whatever is trained now is better than it."""
    from nhm_sched_plugin.training.fitting import UNREADABLE, incumbent_errors

    index = pd.date_range("2025-01-06", periods=200, freq="h")
    counts = pd.Series(5.0, index=index)
    assert incumbent_errors(counts, {60: {"version": 1}, 360: {"version": 1}}) == {60: UNREADABLE, 360: UNREADABLE}
