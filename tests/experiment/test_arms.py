"""Comparing arms: errors at the level promised, effects found, and no conclusion from too little."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nhm_sched_plugin.experiment.arms import Observed, compare
from nhm_sched_plugin.experiment.sequential import START, effects, first_look, sequence


def switchback(blocks: int, effect: float, seed: int, chance: float = 0.5, each: int = 10) -> Observed:
    """Blocks of correlated decisions: what a block has in common is as large as what sets its decisions apart."""
    draw = np.random.default_rng(seed)
    treated = draw.random(blocks) < chance
    common = draw.normal(0, 0.2, blocks) + effect * treated
    value = np.repeat(common, each) + draw.normal(0, 0.2, blocks * each)
    return Observed(value, np.repeat(treated, each), np.repeat(np.arange(blocks), each), np.full(blocks * each, chance))


def shared(blocks: int, effect: float, seed: int) -> Observed:
    draw = np.random.default_rng(seed)
    treated = draw.random(blocks * 10) < 0.3
    value = np.repeat(draw.normal(0, 1, blocks), 10) + draw.normal(0, 0.2, blocks * 10) + effect * treated
    return Observed(value, treated, np.repeat(np.arange(blocks), 10), np.full(blocks * 10, 0.3))


def test_an_effect_is_found_with_its_size() -> None:
    found = compare("reward", switchback(300, 0.15, seed=1), min_samples=500)
    assert found.difference == pytest.approx(0.15, abs=0.06)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.15 < found.high
    assert found.p_value is not None
    assert found.p_value < 0.001
    assert found.significant
    assert not found.shared


def test_no_effect_is_called_one_about_as_often_as_promised() -> None:
    values = [compare("reward", switchback(60, 0.0, seed)).p_value for seed in range(200)]
    assert 0.01 <= np.mean([value is not None and value < 0.05 for value in values]) <= 0.09


def test_decisions_of_a_block_are_not_counted_as_independent() -> None:
    seen = switchback(60, 0.0, seed=4, each=200)
    found = compare("reward", seen)
    naive = np.sqrt(seen.value.var() * (1 / seen.treated.sum() + 1 / (~seen.treated).sum()))
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 > 5 * 1.96 * naive


def test_arms_that_share_their_blocks_are_compared_within_them() -> None:
    found = compare("sla", shared(80, 0.1, seed=2), min_samples=100)
    assert found.shared
    assert found.difference == pytest.approx(0.1, abs=0.04)
    assert found.significant
    nothing = [compare("sla", shared(40, 0.0, seed)).p_value for seed in range(100)]
    assert np.mean([value is not None and value < 0.05 for value in nothing]) <= 0.11


def test_percentages_are_not_mixed_up() -> None:
    # Weeks at 20 % were bad, those at 80 % good, and the arms alike: the plain difference of means is far from 0.
    bad, good = switchback(200, 0.0, seed=1, chance=0.2), switchback(200, 0.0, seed=2, chance=0.8)
    seen = Observed(
        np.append(bad.value - 1, good.value + 1),
        np.append(bad.treated, good.treated),
        np.append(bad.block, good.block + 200),
        np.append(bad.chance, good.chance),
    )
    found = compare("reward", seen)
    assert seen.value[seen.treated].mean() - seen.value[~seen.treated].mean() > 0.8
    assert found.difference == pytest.approx(0.0, abs=0.1)
    assert found.p_value is not None
    assert found.p_value > 0.05


def test_too_little_says_so() -> None:
    few = compare("reward", switchback(5, 5.0, seed=1))
    assert (few.difference, few.significant) == (None, False)
    assert "4 are needed" in few.reason
    # Twenty blocks of each arm, but never at the same percentage.
    control, treatment = switchback(20, 0.0, seed=1, chance=0.2), switchback(20, 0.0, seed=1, chance=0.8)
    apart = Observed(
        np.append(control.value, treatment.value),
        np.repeat([False, True], 200),
        np.append(control.block, treatment.block + 20),
        np.append(control.chance, treatment.chance),
    )
    assert "with 0 blocks of the rarer arm" in compare("reward", apart).reason
    small = compare("reward", switchback(60, 1.0, seed=1), min_samples=1000)
    assert not small.enough
    assert not small.significant
    assert "experiment.min_samples is 1,000" in small.reason
    empty = compare("reward", Observed(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0)))
    assert empty.difference is None
    assert empty.reason == "nothing to compare: no decision could have been in either arm"
    one_arm = switchback(60, 0.0, seed=1)._replace(treated=np.ones(600, dtype=bool))
    assert "0 in control" in compare("reward", one_arm).reason


def looks(seed: int, effect: float = 0.0, blocks: int = 500, chance: float = 0.2) -> tuple[Any, int]:
    seen = switchback(blocks, effect, seed, chance, each=1)
    return effects(seen.value, seen.treated, seen.chance), first_look(seen.treated)


def test_looks_are_unbiased_whatever_the_share_of_treatment() -> None:
    assert np.mean([looks(seed, 0.3, 200)[0].mean() for seed in range(40)]) == pytest.approx(0.3, abs=0.02)


def test_looking_after_every_block_keeps_the_promise() -> None:
    seen = [looks(seed) for seed in range(300)]
    found = [sequence(values, start=start) for values, start in seen]
    wrong = np.mean([one.p_value is not None and one.p_value < 0.05 for one in found])
    assert wrong <= 0.06
    # An ordinary interval, looked at as often, would not: the test can fail.
    naive = 0
    for x, start in seen:
        n = np.arange(1, len(x) + 1)
        mean = np.cumsum(x) / n
        error = np.sqrt(np.maximum(np.cumsum(x**2) / n - mean**2, 1e-12) / n)
        naive += bool((np.abs(mean) > 1.96 * error)[start:].any())
    assert naive / 300 > 0.15


def test_the_sequence_finds_an_effect_and_its_p_value_belongs_to_it() -> None:
    found = sequence(looks(3, 0.3, 600, 0.5)[0])
    assert found.low is not None
    assert found.p_value is not None
    assert found.low > 0
    assert found.p_value < 0.05
    assert len(found.means) == 600 - START + 1
    assert "19 blocks; 20 are needed" in sequence(np.zeros(19)).reason
    assert first_look(np.arange(40) % 4 == 0) == 37  # ten of the rarer arm
