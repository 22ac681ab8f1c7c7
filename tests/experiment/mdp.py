"""A small decision process whose values are known exactly, and logs of it as a rollout would write them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nhm_sched_plugin.experiment.ope import Log

STATES, ACTIONS, HORIZON = 3, 2, 4
REWARD = np.array([[0.1, 0.5], [0.0, -0.3], [0.4, 0.2]])
FOLLOWING = np.array(
    [
        [[0.7, 0.3, 0.0], [0.2, 0.5, 0.3]],
        [[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]],
        [[0.3, 0.3, 0.4], [0.6, 0.2, 0.2]],
    ]
)
START = np.array([0.6, 0.3, 0.1])
POLICY = np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9]])  # epsilon = 0.1; it agrees with the rules in the second state
RULES = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
NOISE = 0.3


def exact(policy: Any, horizon: int = HORIZON) -> float:
    """Mean reward of a decision over episodes of `horizon` decisions."""
    value = np.zeros(STATES)
    for _ in range(horizon):
        value = (policy * (REWARD + FOLLOWING @ value)).sum(axis=1)
    return float(START @ value) / horizon


def rollout(episodes: int, seed: int, chance: float = 0.5, horizon: int = HORIZON) -> Log:
    """Episodes that each follow the policy with that chance, else the rules."""
    draw = np.random.default_rng(seed)
    treated = draw.random(episodes) < chance
    state = np.array([draw.choice(STATES, p=START) for _ in range(episodes)]) if episodes else np.zeros(0, dtype=int)
    columns: dict[str, list[Any]] = {"reward": [], "state": [], "action": []}
    for _ in range(horizon):
        first = np.where(treated, POLICY[state, 0], RULES[state, 0])
        action = (draw.random(episodes) >= first).astype(int)
        columns["state"].append(state)
        columns["action"].append(action)
        columns["reward"].append(REWARD[state, action] + draw.normal(0, NOISE, episodes))
        edges = FOLLOWING[state, action].cumsum(axis=1)
        state = (draw.random(episodes)[:, None] > edges[:, :-1]).sum(axis=1)
    reward, state, action = (np.stack(columns[name], axis=1).ravel() for name in ("reward", "state", "action"))
    episode = np.repeat(np.arange(episodes), horizon)
    return Log(
        reward=reward,
        episode=episode,
        cluster=episode,
        unit=episode,
        chance=np.full(len(episode), chance),
        target=POLICY[state, action],
        rules=RULES[state, action],
        state=state,
        action=action,
        policy_actions=POLICY[state],
        rules_actions=RULES[state],
        differs=POLICY[state].argmax(axis=1) != 0,
    )
