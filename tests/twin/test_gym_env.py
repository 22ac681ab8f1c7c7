from __future__ import annotations

import math
import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from nhm_sched_plugin.decision.reward import reward
from nhm_sched_plugin.twin.gym_env import CHANGES, ID, OBSERVATION, WorkerPoolEnv, register, target_of
from nhm_sched_plugin.twin.simulator import Pool
from nhm_sched_plugin.twin.traces import Trace

DAY = 86_400.0
NAMES = tuple(OBSERVATION)


def day(seed: int = 1) -> Trace:
    """Two days with 5 Erlangs on average and a day curve."""
    draw = np.random.default_rng(seed)
    arrivals = draw.uniform(0, 2 * DAY, 20_000)
    arrivals = arrivals[draw.random(20_000) < 0.5 * (1 - np.cos(2 * math.pi * arrivals / DAY))]
    return Trace(arrivals, draw.exponential(80, len(arrivals)), name="two days", start=0.0, end=2 * DAY)


def rule(seen: np.ndarray) -> int:
    """More workers while tickets wait or nobody is idle, fewer when most are."""
    at = dict(zip(NAMES, seen, strict=True))
    if at["queue_depth"] > 0 or (at["utilisation_known"] and at["utilisation"] > 0.8) or not at["active_workers"]:
        return CHANGES.index(1.25)
    return CHANGES.index(0.9) if at["utilisation"] < 0.5 else CHANGES.index(1.0)


def episode(env: gymnasium.Env, choose: object, seed: int = 3) -> tuple[float, int, dict[str, float]]:
    seen, info = env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        seen, earned, terminated, over, info = env.step(choose(seen))
        assert not terminated
        assert env.observation_space.contains(seen)
        total, steps = total + earned, steps + 1
    return total, steps, info


@pytest.mark.parametrize("options", [{}, {"actions": "workers", "max_workers": 40}, {"reward": "cost"}])
def test_gymnasium_finds_nothing_wrong(options: dict[str, object]) -> None:
    register()
    register()
    env = gymnasium.make(ID, trace=day(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Counts have no bound, workers are no share, and there is nothing to draw.
        for known in ("maximum value is infinity", "symmetric and normalized", "alternative render modes"):
            warnings.filterwarnings("ignore", f".*{known}")
        check_env(env.unwrapped)


def test_a_rule_beats_a_random_agent_and_the_figures_agree() -> None:
    env = WorkerPoolEnv(day(), reward="cost", max_workers=60, window_s=DAY / 2)
    draw = np.random.default_rng(0)
    scored, steps, info = episode(env, rule)
    random_score, *_ = episode(env, lambda _: int(draw.integers(len(CHANGES))))
    assert steps == 720
    assert info["time"] == env.pool.trace.end
    assert info["met"] + info["missed"] <= len(env.pool.trace)
    assert info["sla"] > 0.8
    assert scored > random_score
    assert episode(env, rule) == (scored, steps, info), "the same seed is the same episode"
    assert scored == pytest.approx(-info["cost"] - env.late_penalty * info["missed"])
    assert info["cost"] == pytest.approx(info["worker_hours"])


def test_the_reward_is_the_contracts_over_the_lead_time() -> None:
    env = WorkerPoolEnv(day(), startup_s=90.0, tick_s=60.0)  # a lead of 3 ticks
    env.reset(seed=1, options={"start": 30_000.0, "workers": 5})
    assert env.pool.now == 30_000.0
    states, rewards = [env.pool.state()], []
    for step in range(40):
        _, earned, *_ = env.step(step % len(CHANGES))
        states.append(env.pool.state())
        rewards.append(earned)
    assert rewards[:2] == [0.0, 0.0]
    assert rewards[2:] == [reward(states[at - 3], states[at]) for at in range(3, 41)]
    assert any(rewards)


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    env = WorkerPoolEnv(Trace([100.0], [30.0], start=0.0, end=600.0), window_s=600.0)
    seen, _ = env.reset(options={"workers": 0})
    at = dict(zip(NAMES, seen.tolist(), strict=True))
    assert [at[name] for name in NAMES if name.endswith("_known")] == [0, 0, 0]
    assert (at["service_s"], at["sla_compliance_rate"], at["utilisation"], at["day_cos"]) == (0, 0, 0, 1)
    env.step(CHANGES.index(1.25))
    for _ in range(4):
        seen, *_ = env.step(CHANGES.index(1.0))
    at = dict(zip(NAMES, seen.tolist(), strict=True))
    assert [at[name] for name in NAMES if name.endswith("_known")] == [1, 1, 1]
    assert (at["service_s"], at["sla_compliance_rate"], at["active_workers"]) == (30, 1, 1)


def test_actions_stay_within_the_limits() -> None:
    assert [target_of(factor, 10) for factor in CHANGES] == [8, 9, 10, 11, 13, 15]
    assert [target_of(factor, 1) for factor in (0.9, 1.0, 1.1)] == [0, 1, 2]
    env = WorkerPoolEnv(day(), actions="workers", min_workers=2, max_workers=9)
    env.reset(seed=1)
    assert env.step(np.array([7.4], np.float32))[-1]["workers"] == 7
    assert env.step(np.array([6.4]))[-1]["workers"] == 6, "doubles are taken as they are"
    with pytest.raises(ValueError, match=r"action array\(\[10\.\].*is not in Box"):
        env.step(np.array([10.0], np.float32))
    changing = WorkerPoolEnv(day(), min_workers=2, max_workers=9)
    changing.reset(seed=1)
    for action, workers in ((5, 9), (0, 2)):
        for _ in range(20):
            info = changing.step(action)[-1]
        assert info["workers"] == workers


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reward": "money"}, "reward is 'money'; known: contract, cost"),
        ({"actions": "both"}, "actions is 'both'"),
        ({"tick_s": 0}, "tick_s is 0"),
        ({"min_workers": 5, "max_workers": 5}, "min_workers is 5 and max_workers 5"),
        ({"max_workers": 1.5}, "min_workers is 0 and max_workers 1.5; whole numbers are needed"),
        ({"startup_s": math.inf}, "startup_s is inf"),
        ({"foo": 1}, "no argument foo; of the pool these can be given: capacity, classes, mtbf_s"),
        ({"workers": 3}, "no argument workers"),
        ({"changes": ()}, "changes are"),
        ({"changes": (1.0, math.nan)}, "changes are"),
        ({"lead_s": -5.0}, "lead_s is -5.0"),
        ({"late_penalty": math.nan}, "late_penalty is nan"),
        ({"trace": Trace([], [], start=0.0, end=1.0)}, "no tickets to simulate"),
    ],
)
def test_wrong_options_are_named(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WorkerPoolEnv(**{"trace": day()} | wrong)


def test_a_wrong_start_is_refused() -> None:
    env = WorkerPoolEnv(day())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)
    with pytest.raises(ValueError, match=r"start is -1\.0; the trace goes from 0\.0"):
        env.reset(options={"start": -1})
    for options, told in (
        ({"begin": 1}, "no option begin; known: start, workers"),
        ({"workers": -1}, "workers is -1; a whole number from 0 to 1000 is needed"),
        ({"workers": 5.5}, "workers is 5.5; a whole number"),
        ({"workers": 2000}, "workers is 2000; a whole number"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            env.reset(options=options)


def documented(word: str) -> str:
    """The example in docs/twin.md that uses it."""
    text = (Path(__file__).parents[2] / "docs" / "twin.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    (example,) = [textwrap.dedent(block) for block in blocks if word in block and "import" in block]
    return example


def test_the_example_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = documented("gymnasium.make")
    assert len(example.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    jobs = [f"{n} {30 * n} -1 {20 + n % 50} 1\n" for n in range(300)]
    Path("jobs.swf").write_text("".join(jobs), encoding="utf-8")
    told: list[object] = []
    exec(example, {"print": lambda *figures: told.extend(figures)})  # noqa: S102 - our own documentation
    sla, worker_hours, cost = told
    assert 0 < sla <= 1
    assert 0 < worker_hours == cost


def test_the_compiled_example_in_the_documentation_runs() -> None:
    known: dict[str, Any] = {}
    exec(documented("numba.njit"), known)  # noqa: S102 - our own documentation
    pool = Pool(day(), workers=3, startup_s=120.0, sla_wait_s=60.0)
    known["run"](pool.sim, 60.0, 2)
    assert pool.now == 2 * DAY
    assert pool.met > 0.9 * len(pool.trace)
