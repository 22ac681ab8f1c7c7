"""Level shifts, outages and drift in series whose errors are known; properties of the correction."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.shift import (
    DRIFT_LIMIT,
    LEADS,
    MAX_FACTOR,
    UNCORRECTED,
    Correction,
    Hour,
    LevelWatch,
    Running,
    corrected,
    correction,
    pit,
)

Z = (-1.959964, -1.281552, 0.0, 1.281552, 1.959964)


def promised(mean: float, spread: float) -> list[float]:
    """The quantiles of a lognormal with that median and spread."""
    return [mean * math.exp(z * spread) for z in Z]


def load(
    seed: int, hours: int, spread: float = 0.12, alike: float = 0.5, mean: float = 1000.0, wrong: float = 1.0
) -> list[Hour]:
    """Well-forecast load over the day's course: errors as promised (times `wrong`), an hour like the one before."""
    draw, error, result = random.Random(seed), 0.0, []
    for hour in range(hours):
        error = alike * error + math.sqrt(1 - alike**2) * draw.gauss(0, 1)
        level = mean * (1 + 0.6 * math.sin(hour / 24 * 2 * math.pi))
        actual = level * math.exp(wrong * spread * error)
        result.append(Hour(round(actual), level, promised(level, spread)))
    return result


def scaled(hours: Sequence[Hour], factor: float) -> list[Hour]:
    return [hour._replace(actual=None if hour.actual is None else round(hour.actual * factor)) for hour in hours]


def kinds(hours: Sequence[Hour], watch: LevelWatch | None = None) -> list[str]:
    watch = watch or LevelWatch()
    result = []
    for hour in hours:
        watch.observe(hour)
        result.append(watch.correction().kind)
    return result


def test_well_forecast_load_raises_less_than_one_alarm_in_four_weeks_and_no_drift() -> None:
    alarms = hours = 0
    for seed, alike in enumerate((0.0, 0.3, 0.5, 0.7, 0.85, 0.5)):
        watch = LevelWatch()
        seen = kinds(load(seed, 4 * 672, alike=alike), watch)
        alarms += sum(a == "none" != b for a, b in zip(["none", *seen], seen, strict=False))
        hours += len(seen)
        assert watch.drift < DRIFT_LIMIT
    assert alarms / (hours / 672) < 1


@pytest.mark.parametrize("factor", [0.3, 0.5, 2.0, 4.0])
def test_a_level_shift_is_noticed_within_two_hours(factor: float) -> None:
    late = 0
    for seed in range(40):
        hours = load(seed, 200)
        watch = LevelWatch()
        for hour in hours[:150]:
            watch.observe(hour)
        seen = kinds(scaled(hours[150:152], factor), watch)
        wanted = "shift_up" if factor > 1 else "shift_down"
        late += seen[-1] != wanted
        if seen[-1] == wanted:
            assert watch.correction().factor(1) == pytest.approx(factor, rel=0.35)
            assert watch.correction().factor(24) != pytest.approx(factor, rel=0.1)
    assert late <= 2


def test_the_running_hour_speeds_it_up() -> None:
    watch = LevelWatch()
    for hour in [*load(3, 100, alike=0.0), *scaled(load(4, 1, alike=0.0), 2.0)]:
        watch.observe(hour)
    calm, half = watch.correction(), Running(1000.0, 0.5, 1000.0, promised(1000.0, 0.12))
    assert calm.kind == "none"
    assert watch.correction(half).factor(1) > calm.factor(1)
    assert watch.correction(half._replace(actual=500.0)).factor(1) < calm.factor(1)
    early = Running(50.0, 0.05, 1000.0, promised(1000.0, 0.12))
    assert watch.correction(early) == calm  # three minutes say nothing
    assert watch.correction() == calm  # looking changes nothing


def test_a_shift_ends_when_the_load_comes_back() -> None:
    watch = LevelWatch()
    assert kinds([*load(1, 100), *scaled(load(2, 5), 2.0)], watch)[-1] == "shift_up"
    assert kinds(load(3, 2), watch)[-1] == "none"
    assert watch.correction().factor(1) == pytest.approx(1, abs=0.15)


def test_a_lasting_shift_is_believed_in_longer() -> None:
    hours = load(1, 100)
    short = correction([*hours, *scaled(load(2, 3), 2.0)])
    long = correction([*hours, *scaled(load(2, 48), 2.0)])
    assert short.kind == long.kind == "shift_up"
    assert short.factor(24) < long.factor(24)
    assert short.doubt > long.doubt


def test_one_wild_hour_is_no_shift() -> None:
    for factor in (0.1, 10.0):
        after = correction([*load(1, 100), *scaled(load(2, 1), factor)])
        assert after.kind == "none"
        assert 0.75 < after.factor(1) < 1.33


def test_an_outage_is_silence_where_tickets_were_promised() -> None:
    hours = load(1, 100)
    out = correction([*hours, *scaled(load(2, 1), 0.0)])
    assert out.kind == "outage"
    assert out.factor(1) < out.factor(6) < 1
    assert correction([*hours, *scaled(load(2, 8), 0.0)]).factor(1) < out.factor(1)
    assert correction([*hours, *scaled(load(2, 8), 0.0), *load(3, 1)]).kind == "none"
    few = load(1, 100, mean=2.0, spread=0.7)
    assert correction([*few, *scaled(few[:3], 0.0)]).kind != "outage"  # three idle hours are nothing special there


def test_an_outage_within_the_running_hour() -> None:
    watch = LevelWatch()
    for hour in load(1, 100):
        watch.observe(hour)
    running = Running(0.0, 0.5, 1000.0, promised(1000.0, 0.12), silent=1.3)
    assert watch.correction(running).kind == "outage"
    assert watch.correction(running._replace(silent=0.7)).kind != "outage"  # jobs that start on the hour
    watch.observe(Hour(0.0, 1000.0, promised(1000.0, 0.12)))
    assert watch.correction().kind == "outage"
    assert watch.correction(Running(100.0, 0.1, 1000.0, promised(1000.0, 0.12))).kind == "none"


def test_an_outage_teaches_nothing_about_the_forecast() -> None:
    watch = LevelWatch()
    for hour in [*load(1, 100), *scaled(load(2, 30), 0.0)]:
        watch.observe(hour)
    assert watch.drift < 3
    watch.observe(load(3, 1)[0])
    assert watch.correction().factor(1) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (scaled(load(2, 120, alike=0.3), 1.35), "above"),
        (scaled(load(2, 120, alike=0.3), 0.7), "below"),
        (load(2, 800, alike=0.3, wrong=4.0), "larger"),
    ],
)
def test_a_lasting_deterioration_is_drift(bad: list[Hour], reason: str) -> None:
    watch = LevelWatch()
    for hour in [*load(1, 300), *bad]:
        watch.observe(hour)
    assert watch.drift >= DRIFT_LIMIT
    assert reason in watch.drift_reason
    watch.restart(keep_drift=True)
    assert watch.drift >= DRIFT_LIMIT
    watch.restart()
    assert watch.drift == 0.0


def test_half_a_day_of_misses_is_no_drift() -> None:
    watch = LevelWatch()
    for hour in [*load(1, 100), *scaled(load(2, 12), 3.0), *load(3, 100)]:
        watch.observe(hour)
        assert watch.drift < DRIFT_LIMIT


def test_the_correction_helps_where_errors_last_and_does_no_harm_where_they_do_not() -> None:
    for alike, least, most in ((0.85, 0.0, 0.85), (0.0, 0.9, 1.02)):
        watch, plain, better = LevelWatch(), 0.0, 0.0
        hours = load(5, 1500, alike=alike)
        for hour, after in pairwise(hours):
            watch.observe(hour)
            assert after.actual is not None
            mean, _ = corrected(after.mean, after.quantiles, 1, watch.correction())
            plain += abs(after.actual - after.mean)
            better += abs(after.actual - mean)
        assert least <= better / plain <= most


def test_unknown_and_unusable_hours_are_skipped() -> None:
    watch = LevelWatch()
    for hour in load(1, 50):
        watch.observe(hour)
    known = watch.hours
    good = promised(100.0, 0.1)
    for bad in (
        Hour(None, 100.0, good),
        Hour(float("nan"), 100.0, good),
        Hour(-1.0, 100.0, good),
        Hour(1.0, float("inf"), good),
        Hour(1.0, 100.0, good[:4]),
    ):
        watch.observe(bad)
    assert watch.hours == known
    assert watch.correction(Running(float("nan"), 0.5, 100.0, good)) == watch.correction()


def test_no_hours_say_nothing() -> None:
    assert correction([]) == UNCORRECTED
    assert [UNCORRECTED.factor(ahead) for ahead in (1, 6, 500)] == [1.0] * 3
    assert UNCORRECTED.sure(1) == 1.0
    quantiles = promised(10.0, 0.3)
    mean, same = corrected(10.0, quantiles, 1, UNCORRECTED)
    assert mean == 10.0
    assert same == pytest.approx(quantiles)


def test_pit_at_the_quantiles_beyond_them_and_in_a_jump() -> None:
    quantiles = [60.0, 80.0, 100.0, 120.0, 140.0]
    for level, value in zip(LEVELS, quantiles, strict=True):
        assert pit(value, quantiles) == pytest.approx(level)
    assert pit(110.0, quantiles) == pytest.approx(0.7)
    assert pit(0.0, quantiles) == 0.0
    assert pit(160.0, quantiles) == pytest.approx(1 - 0.025 / 4)
    assert pit(0.0, [0.0] * 5) == 0.5
    assert pit(0.0, [0.0, 0.0, 0.0, 5.0, 9.0]) == pytest.approx(0.25)
    assert pit(1.0, [0.0] * 5) == 1.0


# -- properties

COUNTS = st.floats(0, 1e6)
QUANTILES = st.lists(COUNTS, min_size=5, max_size=5).map(sorted)
HOURS = st.lists(st.builds(Hour, st.one_of(st.none(), COUNTS), COUNTS, QUANTILES), max_size=40)
CORRECTIONS = st.builds(
    lambda level, left, outage, doubt: Correction(level, tuple(sorted(left, reverse=True)), outage, doubt),
    st.floats(-math.log(MAX_FACTOR), math.log(MAX_FACTOR)),
    st.lists(st.floats(0, 1), min_size=len(LEADS), max_size=len(LEADS)),
    st.one_of(st.just(0.0), st.floats(0, 100)),
    st.floats(0, 1),
)


@settings(max_examples=150, deadline=None)
@given(HOURS, st.floats(0.5, 200))
def test_any_correction_is_bounded(hours: list[Hour], ahead: float) -> None:
    found = correction(hours)
    low = 0.0 if found.kind == "outage" else 1 / MAX_FACTOR
    assert low <= found.factor(ahead) <= MAX_FACTOR * (1 + 1e-12)
    assert 0 < found.sure(ahead) <= 1
    assert all(0 <= b <= a <= 1 for a, b in pairwise(found.persistence))


@settings(max_examples=150, deadline=None)
@given(COUNTS, QUANTILES, st.floats(0.5, 200), CORRECTIONS)
@example(0.0, [0.0, 0.0, 0.0625, 1.875, 1.875], 1.0, Correction(0.0, (0.0,) * len(LEADS), 1.4e-45, 0.0))
def test_corrected_quantiles_stay_in_order(mean: float, quantiles: list[float], ahead: float, by: Correction) -> None:
    moved, values = corrected(mean, quantiles, ahead, by)
    assert moved == pytest.approx(mean * by.factor(ahead))
    assert values == sorted(values)
    assert values[0] >= 0


@settings(max_examples=150, deadline=None)
@given(CORRECTIONS, st.floats(0.5, 200), st.floats(0.5, 200))
def test_a_correction_fades_with_the_hour_ahead(by: Correction, a: float, b: float) -> None:
    near, far = sorted((a, b))
    assert (
        abs(math.log(by._replace(outage_h=0.0).factor(far)))
        <= abs(math.log(by._replace(outage_h=0.0).factor(near))) + 1e-9
    )
    assert by.silence(far) <= by.silence(near)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 1.0), st.floats(0.1, 8), st.floats(0.1, 8))
def test_more_tickets_never_lower_the_next_forecast(seed: int, elapsed: float, a: float, b: float) -> None:
    """Monotone in the evidence of the running hour, as long as no shift begins or ends with it."""
    watch = LevelWatch()
    for hour in load(seed, 40):
        watch.observe(hour)
    few, many = (
        watch.correction(Running(factor * 1000.0 * elapsed, elapsed, 1000.0, promised(1000.0, 0.12)))
        for factor in sorted((a, b))
    )
    if few.kind == many.kind:
        assert few.factor(1) <= many.factor(1) + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.floats(1, 1e5), st.floats(0.05, 1.0))
def test_a_forecast_that_is_right_is_left_alone(count: int, mean: float, spread: float) -> None:
    found = correction([Hour(mean, mean, promised(mean, spread))] * count)
    assert found.factor(1) == pytest.approx(1.0)
    assert found.kind == "none"


def test_the_module_needs_the_standard_library_only() -> None:
    script = (
        "import sys, nhm_sched_plugin.forecasting.shift as s; print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"numpy", "pandas", "msgspec", "pydantic"} & set(eval(done.stdout))  # noqa: S307 - our own output
