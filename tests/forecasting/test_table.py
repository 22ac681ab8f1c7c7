from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.advice.protocols import Forecaster
from nhm_sched_plugin.errors import ModelError
from nhm_sched_plugin.forecasting import table as module
from nhm_sched_plugin.forecasting.intervals import LEVELS, bottleneck_probability, confidence, thin
from nhm_sched_plugin.forecasting.table import (
    ForecastTable,
    SliceForecast,
    SnapshotForecaster,
    read_table,
    slice_key,
    write_table,
)

START = 1_700_000_000 // 3600 * 3600.0
FACTORS = (0.6, 0.8, 1.0, 1.2, 1.4)


def entry(mean: list[float], **more: object) -> SliceForecast:
    values: dict[str, object] = {
        "first_hour": START,
        "mean": mean,
        "quantiles": {str(level): [m * factor for m in mean] for level, factor in zip(LEVELS, FACTORS, strict=True)},
        "samples": 5000,
        "trained_at": START,
        "method": "prophet",
        "share": 1.0,
    }
    return SliceForecast(**(values | more))


def make(slices: dict[str, SliceForecast], **more: object) -> ForecastTable:
    values: dict[str, object] = {
        "generated_at": START,
        "origin": START,
        "model_version": "7",
        "method": "prophet",
        "slices": slices,
    }
    return ForecastTable(**(values | more))


def served(tmp_path: Path, slices: dict[str, SliceForecast], **more: object) -> SnapshotForecaster:
    write_table(tmp_path / "forecast.json", make(slices, **more))
    return SnapshotForecaster(tmp_path / "forecast.json")


WEEKS = [100.0 + hour % 24 + 200 * (hour // 168) for hour in range(336)]


def test_round_trip_and_digest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "forecast.json"
    written = write_table(path, make({"": entry(WEEKS), "a|b": entry([1.5, 2.5], share=0.2)}))
    assert read_table(path) == written
    assert len(written.digest) == 64
    assert [file.name for file in path.parent.iterdir()] == ["forecast.json"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: raw[: len(raw) // 2], "damaged"),
        (lambda raw: b"\xff\xfe", "damaged"),
        (lambda raw: raw.replace(b'"samples":5000', b'"samples":5001'), "digest"),
        (lambda raw: raw.replace(b'"version":1', b'"version":99'), "version 99"),
        (lambda raw: b"[]", "damaged"),
    ],
)
def test_a_bad_file_is_named_with_its_fix(tmp_path: Path, damage: object, words: str) -> None:
    path = tmp_path / "forecast.json"
    write_table(path, make({"": entry([1.0, 2.0])}))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ModelError, match=words) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert "nhm-sched train" in str(caught.value)


def test_unusable_numbers_are_not_written(tmp_path: Path) -> None:
    for bad in ([1.0, float("nan")], [-1.0], []):
        with pytest.raises(ModelError):
            write_table(tmp_path / "forecast.json", make({"": entry(bad)}))
    assert not (tmp_path / "forecast.json").exists()


def test_forecast_starts_now_and_interpolates(tmp_path: Path) -> None:
    forecaster = served(tmp_path, {"": entry(WEEKS)})
    assert isinstance(forecaster, Forecaster)
    answer = forecaster.forecast(180, START + 900 + 3600 * 5)
    assert answer is not None
    assert [point.timestamp for point in answer.points] == [
        dt.datetime.fromtimestamp(START + 900 + 3600 * (5 + i), dt.UTC) for i in range(3)
    ]
    assert [point.mean for point in answer.points] == pytest.approx([105.25, 106.25, 107.25])
    assert answer.predicted_volume == pytest.approx(107.25)
    assert answer.points[0].quantiles == pytest.approx(
        {level: 105.25 * factor for level, factor in zip(LEVELS, FACTORS, strict=True)}
    )
    assert answer.generated_at == dt.datetime.fromtimestamp(START, dt.UTC)
    # The hour that ends at the horizon, also when the horizon is no whole number of hours.
    odd = forecaster.forecast(90, START)
    assert odd is not None
    assert odd.predicted_volume == pytest.approx(100.5)
    assert len(odd.points) == 2
    short = forecaster.forecast(15, START)
    assert short is not None
    assert short.predicted_volume == pytest.approx(100.0)


@pytest.mark.parametrize("horizon", [0, -60, 10_081])
def test_horizon_out_of_range(tmp_path: Path, horizon: int) -> None:
    with pytest.raises(ValueError, match="horizon_minutes"):
        served(tmp_path, {"": entry(WEEKS)}).forecast(horizon, START)


def test_unknown_slice_answers_from_its_parent_at_lower_confidence(tmp_path: Path) -> None:
    forecaster = served(
        tmp_path,
        {"": entry(WEEKS), "ua": entry([m / 2 for m in WEEKS], share=0.5)},
        shares={"dl": 0.25, "ua|high": 0.125},
    )
    whole = forecaster.forecast(60, START)
    known = forecaster.forecast(60, START, "ua")
    listed = forecaster.forecast(60, START, "dl", "low")
    share = forecaster.forecast(60, START, "dl")
    nested = forecaster.forecast(60, START, "ua", "high")
    never = forecaster.forecast(60, START, "zz")
    assert whole is not None
    assert known is not None
    assert listed is not None
    assert share is not None
    assert nested is not None
    assert never is not None
    assert known.predicted_volume == pytest.approx(50)
    assert share.predicted_volume == pytest.approx(25)
    assert nested.predicted_volume == pytest.approx(12.5)  # a quarter of its parent
    assert never.predicted_volume == pytest.approx(100 * module.UNKNOWN_SHARE)
    assert listed.predicted_volume == pytest.approx(100 * module.UNKNOWN_SHARE)
    assert share.confidence < whole.confidence / 2
    values = list(share.points[0].quantiles.values())
    assert values == sorted(values)
    assert values[-1] - values[0] > 0.25 * (140 - 60)  # which tickets fall into the part is chance too


def test_stale_table_answers_from_the_same_hour_of_the_week(tmp_path: Path) -> None:
    forecaster = served(tmp_path, {"": entry(WEEKS)})
    inside = forecaster.forecast(60, START + 3600 * 170)
    sure = [inside.confidence if inside else 0.0]
    for weeks in (1, 2, 10, 500):
        answer = forecaster.forecast(60, START + 3600 * (170 + 168 * weeks))
        assert inside is not None
        assert answer is not None
        assert answer.predicted_volume == inside.predicted_volume
        sure.append(answer.confidence)
    assert sure == sorted(sure, reverse=True)
    assert sure[1] <= 0.5
    assert sure[-1] < 1e-6
    before = forecaster.forecast(60, START - 3600 * 166)
    assert before is not None
    assert before.predicted_volume == pytest.approx(WEEKS[2])
    assert before.confidence <= 0.5


def test_short_table_repeats_its_day(tmp_path: Path) -> None:
    forecaster = served(tmp_path, {"": entry([float(hour) for hour in range(30)])})
    answer = forecaster.forecast(60, START + 3600 * 30)
    assert answer is not None
    assert answer.predicted_volume == 6.0


def test_resource_demand_from_usage_per_ticket(tmp_path: Path) -> None:
    usage = {"cpu_core_hours_per_ticket": 0.5, "memory_gib_hours_per_ticket": 2.0}
    answer = served(tmp_path, {"": entry([10.0, 10.0], **usage)}).forecast(60, START)
    assert answer is not None
    assert (answer.resource_demand_cpu, answer.resource_demand_memory) == (5.0, 20.0)
    bare = served(tmp_path, {"": entry([10.0, 10.0])}).forecast(60, START)
    assert bare is not None
    assert bare.resource_demand_cpu is None


def test_method_of_the_nearest_trained_horizon(tmp_path: Path) -> None:
    forecaster = served(tmp_path, {"": entry(WEEKS, methods={"60": "ridge", "1440": "prophet"})})
    assert [forecaster.forecast(h, START).method for h in (60, 120, 1440)] == [  # type: ignore[union-attr]
        "ridge",
        "ridge",
        "prophet",
    ]


def test_answers_are_cached_by_the_minute_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = served(tmp_path, {"": entry(WEEKS)})
    assert forecaster.forecast(60, START) is forecaster.forecast(60, START + 59.9)
    assert forecaster.forecast(60, START) is not forecaster.forecast(60, START + 60)
    monkeypatch.setattr(module, "_CACHE_HOURS", 10)
    for minute in range(100):
        forecaster.forecast(60, START + 60 * minute)
    assert len(forecaster._loaded.answers) <= 10  # type: ignore[union-attr]
    forecaster.forecast(600, START)
    assert len(forecaster._loaded.answers) == 1, "a long one takes the room of many"  # type: ignore[union-attr]


def test_no_table_then_one_then_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    heard: list[str] = []
    forecaster = SnapshotForecaster(path, heard.append)
    assert forecaster.forecast(60, START) is None
    assert not forecaster.health().ok
    assert str(path) in forecaster.health().detail
    write_table(path, make({"": entry([1.0, 1.0])}))
    forecaster.refresh()
    forecaster.refresh()
    assert heard == ["success"]
    assert forecaster.health().ok
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(ModelError):
            forecaster.refresh()
    assert heard == ["success", "error"]
    kept = forecaster.forecast(60, START)
    assert kept is not None
    assert kept.predicted_volume == 1.0
    assert "damaged" in forecaster.health().detail
    write_table(path, make({"": entry([3.0, 3.0])}))
    forecaster.refresh()
    newer = forecaster.forecast(60, START)
    assert newer is not None
    assert newer.predicted_volume == 3.0


def test_starting_on_a_bad_file_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "forecast.json").write_text("not json")
    forecaster = SnapshotForecaster(tmp_path / "forecast.json")
    assert forecaster.forecast(60, START) is None
    assert "damaged" in forecaster.health().detail


def test_slice_keys_cannot_collide() -> None:
    assert (slice_key(), slice_key("a"), slice_key("a", "b"), slice_key(None, "b")) == ("", "a", "a|b", "|b")
    assert slice_key("a|b") != slice_key("a", "b")
    assert slice_key("a%7Cb") != slice_key("a|b")


QUANTILES = st.lists(st.floats(0, 1e6), min_size=5, max_size=5).map(
    lambda values: dict(zip(LEVELS, sorted(values), strict=True))
)


@settings(max_examples=80, deadline=None)
@given(QUANTILES, st.floats(0, 2e6), st.floats(0, 2e6))
def test_bottleneck_probability_is_a_falling_probability(quantiles: dict[float, float], a: float, b: float) -> None:
    low, high = sorted((a, b))
    more, less = bottleneck_probability(quantiles, low), bottleneck_probability(quantiles, high)
    assert 0 <= less <= more + 1e-9 <= 1 + 1e-9


def test_bottleneck_probability_at_the_quantiles() -> None:
    quantiles = dict(zip(LEVELS, (60.0, 80.0, 100.0, 120.0, 140.0), strict=True))
    for level, value in quantiles.items():
        assert bottleneck_probability(quantiles, value) == pytest.approx(1 - level)
    assert bottleneck_probability(quantiles, 110) == pytest.approx(0.3)
    assert bottleneck_probability(quantiles, 0) == 1.0
    assert 0 < bottleneck_probability(quantiles, 160) == pytest.approx(0.025 / 4)
    certain = dict.fromkeys(LEVELS, 5.0)
    assert (bottleneck_probability(certain, 4.9), bottleneck_probability(certain, 5.1)) == (pytest.approx(0.9755), 0.0)
    assert bottleneck_probability(dict.fromkeys(LEVELS, 0.0), 0.0) == 0.0
    with pytest.raises(ValueError, match="capacity"):
        bottleneck_probability(quantiles, float("nan"))


@settings(max_examples=80, deadline=None)
@given(QUANTILES, st.integers(0, 20_000))
def test_confidence_is_in_range(quantiles: dict[float, float], samples: int) -> None:
    assert 0 <= confidence(quantiles, samples) <= 1
    assert confidence(quantiles, 99) < 0.32


@settings(max_examples=80, deadline=None)
@given(QUANTILES, st.floats(0, 1))
def test_thinned_quantiles_stay_ordered(quantiles: dict[float, float], share: float) -> None:
    mean, values = thin(quantiles[0.5], list(quantiles.values()), share)
    assert mean == pytest.approx(share * quantiles[0.5])
    assert values == sorted(values)
    assert values[0] >= 0


def test_serving_needs_no_heavy_library(tmp_path: Path) -> None:
    write_table(tmp_path / "forecast.json", make({"": entry(WEEKS)}))
    script = (
        "import sys, json, pathlib\n"
        "from nhm_sched_plugin.forecasting import SnapshotForecaster\n"
        f"forecaster = SnapshotForecaster(pathlib.Path({str(tmp_path / 'forecast.json')!r}))\n"
        f"assert forecaster.forecast(60, {START}) is not None\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"pandas", "numpy", "prophet", "statsmodels", "mlflow", "rich", "holidays", "joblib"}
    assert not heavy & set(json.loads(done.stdout))


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    write_table(tmp_path / "forecast.json", make({"": entry([1.0])}))
    assert msgspec.json.decode((tmp_path / "forecast.json").read_bytes())["slices"][""]["mean"] == [1.0]
