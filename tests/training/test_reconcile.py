from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.forecasting.intervals import LEVELS
from nhm_sched_plugin.forecasting.table import SliceForecast
from nhm_sched_plugin.training.reconcile import add_up, parent_key, reconcile

Z = {0.025: -1.959964, 0.1: -1.281552, 0.5: 0.0, 0.9: 1.281552, 0.975: 1.959964}
HOURS = 6


def row(mean: Any, deviation: float = 3.0, **about: Any) -> SliceForecast:
    values = np.broadcast_to(np.asarray(mean, dtype=float), (HOURS,))
    quantiles = {str(level): np.maximum(values + Z[level] * deviation, 0).tolist() for level in LEVELS}
    about = {"first_hour": 0.0, "samples": 1000, "trained_at": 0.0, "method": "ridge"} | about
    return SliceForecast(mean=values.tolist(), quantiles=quantiles, **about)


def total_of(rows: dict[str, SliceForecast], *keys: str) -> np.ndarray:
    return np.sum([rows[key].mean for key in keys], axis=0)


def test_it_is_the_trace_minimising_solution() -> None:
    """Against the matrix formula `S (S' W^-1 S)^-1 S' W^-1 y` of the paper, where nothing is near zero."""
    rng = np.random.default_rng(5)
    parents = [-1, 0, 0, 0, 1, 1, 2, 2, 2]
    leaves = [i for i in range(9) if i not in parents]
    summing = np.array([[float(leaf == i or below(leaf, i, parents)) for leaf in leaves] for i in range(9)])
    variance = rng.uniform(1, 50, (9, 4))
    mean = summing @ rng.uniform(500, 900, (len(leaves), 4)) + rng.normal(0, np.sqrt(variance))
    got = add_up(parents, mean, variance)
    for hour in range(4):
        inverse = np.diag(1 / variance[:, hour])
        bottom = np.linalg.solve(summing.T @ inverse @ summing, summing.T @ inverse @ mean[:, hour])
        assert got[:, hour] == pytest.approx(summing @ bottom)


def below(node: int, whole: int, parents: list[int]) -> bool:
    while node >= 0:
        node = parents[node]
        if node == whole:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_parts_add_up_at_every_hour_and_nothing_is_negative(seed: int, kinds: int, bands: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)

    def some(share: float | None) -> SliceForecast:
        return row(rng.gamma(0.3, 40, HOURS) * rng.integers(0, 2, HOURS), rng.gamma(1, 5), share=share)

    part = 1.0 if whole else 0.8
    rows = {"": some(1.0)}
    for kind in range(kinds):
        rows[f"k{kind}"] = some(part / kinds)
        for band in range(bands):
            rows[f"k{kind}|b{band}"] = some(part / kinds / bands)
    made = reconcile(rows)
    assert set(made) == set(rows)
    for entry in made.values():
        assert min(entry.mean) >= 0
        levels = np.array([entry.quantiles[str(level)] for level in LEVELS])
        assert (levels >= 0).all()
        assert (np.diff(levels, axis=0) >= 0).all()
    for kind in range(kinds):
        names = [f"k{kind}|b{band}" for band in range(bands)]
        assert np.array(made[f"k{kind}"].mean) == pytest.approx(total_of(made, *names), abs=1e-5)
    parts = total_of(made, *[f"k{kind}" for kind in range(kinds)])
    if whole:
        assert np.array(made[""].mean) == pytest.approx(parts, abs=1e-5)
    else:  # the slices that were not trained are the rest
        assert (parts <= np.array(made[""].mean) + 1e-5).all()


def test_what_adds_up_already_stays() -> None:
    wave = 50 + 30 * np.sin(np.arange(HOURS))
    rows = {
        "": row(wave * 3, 9, share=1.0),
        "a": row(wave * 2, 2, share=2 / 3),
        "b": row(wave, 5, share=1 / 3),
        "a|x": row(wave * 1.5, 3, share=0.5),
        "a|y": row(wave * 0.5, 1, share=1 / 6),
    }
    made = reconcile(rows)
    for key in rows:
        assert made[key].mean == pytest.approx(rows[key].mean, abs=1e-5)
        for level, values in rows[key].quantiles.items():
            assert made[key].quantiles[level] == pytest.approx(values, abs=1e-3)
    again = reconcile(made)
    assert all(again[key].mean == pytest.approx(made[key].mean, abs=1e-5) for key in rows)


def test_the_surer_one_moves_less_and_quantiles_move_with_their_mean() -> None:
    rows = {"": row(100, 1, share=1.0), "a": row(50, 1, share=0.5), "b": row(80, 20, share=0.5)}
    made = reconcile(rows)
    assert made[""].mean[0] == pytest.approx(100, abs=1)
    assert made["a"].mean[0] == pytest.approx(50, abs=1)
    assert made["b"].mean[0] == pytest.approx(50, abs=1)
    shift = made["b"].mean[0] - 80
    assert made["b"].quantiles["0.9"][0] == pytest.approx(rows["b"].quantiles["0.9"][0] + shift, abs=1e-3)


def test_stale_slices_and_bands_without_a_type_stay_as_they_are() -> None:
    rows = {
        "": row(100, share=1.0),
        "a": row(30, share=0.5),
        "late": row(7, share=0.5, first_hour=-7200.0),
        "|x": row(13, share=0.2),
    }
    made = reconcile(rows)
    assert made["late"] is rows["late"]
    assert made["|x"] is rows["|x"]
    assert made["a"].mean[0] > 30  # `late` is part of the rest: half of the total
    assert made["a"].mean[0] < made[""].mean[0]


def test_without_a_total_task_types_are_wholes() -> None:
    made = reconcile({"a": row(90), "a|x": row(40), "a|y": row(40), "b": row(5)})
    assert made["a"].mean == pytest.approx(total_of(made, "a|x", "a|y").tolist())
    assert made["b"].mean[0] == 5
    assert reconcile({"": row(3)})[""].mean[0] == 3
    assert reconcile({}) == {}


def test_whose_part_a_slice_is() -> None:
    known = {"", "a"}
    assert parent_key("a|x", known) == "a"
    assert parent_key("b|x", known) == ""
    assert parent_key("a", known) == ""
    assert parent_key("", known) is None
    assert parent_key("|x", known) == ""
    assert parent_key("a|x", {"b"}) is None


def test_the_total_does_not_lose_accuracy() -> None:
    """Base forecasts with errors of known size: reconciled, neither the total nor the parts are farther off."""
    rng = np.random.default_rng(11)
    kinds, hours = 40, 400
    truth = rng.gamma(2, 40, (kinds, 1)) * (1 + 0.5 * np.sin(np.arange(hours) / 24 * 2 * np.pi))
    whole = truth.sum(axis=0)
    noise = 0.15 * truth
    mean = np.vstack(
        (whole * (1 + 0.05 * rng.standard_normal(hours)), truth + noise * rng.standard_normal(truth.shape))
    )
    variance = np.vstack(((0.05 * whole) ** 2, noise**2))
    parents = [-1] + [0] * kinds
    made = add_up(parents, mean, variance)
    before = np.abs(mean - np.vstack((whole, truth)))
    after = np.abs(made - np.vstack((whole, truth)))
    assert after[0].mean() <= before[0].mean() * 1.02
    assert after[1:].mean() <= before[1:].mean() * 1.02
    assert made[0] == pytest.approx(made[1:].sum(axis=0))


def test_a_thousand_slices_by_two_weeks() -> None:
    rng = np.random.default_rng(2)
    rows = {"": row(1000, share=1.0)}
    for kind in range(100):
        rows[f"k{kind}"] = row(rng.gamma(1, 10), share=0.01)
        rows |= {f"k{kind}|b{band}": row(rng.gamma(1, 1), share=0.001) for band in range(10)}
    long = {
        key: msgspec.structs.replace(
            entry, mean=entry.mean * 64, quantiles={name: values * 64 for name, values in entry.quantiles.items()}
        )
        for key, entry in rows.items()
    }
    made = reconcile(long)
    parts = total_of(made, *[f"k{kind}" for kind in range(100)])
    assert np.array(made[""].mean) == pytest.approx(parts, rel=1e-6)
