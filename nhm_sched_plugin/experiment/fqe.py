"""Fitted-Q evaluation (Le, Voloshin and Yue, 2019), tabular over the state key: what a model of the log says.

With h decisions to go, and means over the rows of the log that executed a in s:

    Q_h(s, a) = mean r + discount * mean over their next states s' of V_{h-1}(s'),   V_h(s) = sum_a pi(a | s) Q_h(s, a)

A table's least-squares fit is the cell's mean, so this is the iteration of the paper, exactly. It is *model-based*: it
takes the state key for all that matters. Where the rules chose by something that the key does not show, it is wrong,
and no interval here says so.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nhm_sched_plugin.experiment.bootstrap import Floats, Ints, Replicates

__all__ = ["Rows", "Table", "coverage", "evaluate", "fit", "plan"]


class Rows(NamedTuple):
    """Decisions with rewards, in the order of their episodes and times."""

    reward: Floats
    state: Ints
    """Number of the state key."""
    action: Ints
    """Number of the executed action."""
    episode: Ints
    """Non-decreasing."""
    cluster: Ints
    """Constant within an episode, numbered from 0."""


class Table(NamedTuple):
    """Means by cell."""

    reward: Floats
    """(S, A)"""
    following: Floats
    """P(next state | state, action), (S, A, S); rows of zeros where no next state is known."""
    weight: Floats
    """Rows in each cell, (S, A)."""


def _followed(rows: Rows) -> Ints:
    """Rows whose episode goes on with the next row. The others end by the cut of the episode, not by the world's."""
    return np.flatnonzero(np.diff(rows.episode) == 0).astype(np.int64)


def fit(rows: Rows, states: int, actions: int, weight: Floats | None = None) -> Table:
    """The cells' means; `weight` counts rows several times or not at all (the bootstrap)."""
    once = np.ones(len(rows.reward)) if weight is None else weight
    cell, cells = rows.state * actions + rows.action, states * actions
    total: Floats = np.bincount(cell, weights=once, minlength=cells).astype(np.float64)
    reward = np.bincount(cell, weights=once * rows.reward, minlength=cells) / np.maximum(total, 1e-12)
    moved = _followed(rows)
    step = cell[moved] * states + rows.state[moved + 1]
    following = np.bincount(step, weights=once[moved], minlength=cells * states).reshape(cells, states)
    following = following / np.maximum(following.sum(axis=1, keepdims=True), 1e-12)
    shape = (states, actions)
    return Table(reward.reshape(shape), following.reshape(*shape, states), total.reshape(shape))


def plan(table: Table, policy: Floats, horizon: int, discount: float = 1.0) -> tuple[Floats, Floats]:
    """Q (horizon + 1, S, A) and V (horizon + 1, S) by decisions to go, for a policy (S, A).

    A cell that was never executed has the mean of its state's executed ones: no difference is made up.
    """
    states, actions = table.reward.shape
    q, v = np.zeros((horizon + 1, states, actions)), np.zeros((horizon + 1, states))
    tried = table.weight > 0
    behaviour = table.weight / np.maximum(table.weight.sum(axis=1, keepdims=True), 1e-12)
    flat = table.following.reshape(states * actions, states)
    for left in range(1, horizon + 1):
        full = table.reward + discount * (flat @ v[left - 1]).reshape(states, actions)
        q[left] = np.where(tried, full, (behaviour * full).sum(axis=1, keepdims=True))
        v[left] = (policy * q[left]).sum(axis=1)
    return q, v


def averaged(policy: Floats, state: Ints, states: int, weight: Floats | None = None) -> Floats:
    """A policy given for each row, (N, A), as one for each state, (S, A). Rows of zeros say nothing."""
    once = np.ones(len(state)) if weight is None else weight
    total = np.zeros((states, policy.shape[1]))
    for action in range(policy.shape[1]):
        total[:, action] = np.bincount(state, weights=once * policy[:, action], minlength=states)
    shares: Floats = total / np.maximum(total.sum(axis=1, keepdims=True), 1e-12)
    return shares


def coverage(rows: Rows, policy: Floats) -> float:
    """Share of what the policy would do (N, A) that was executed in that state at least once."""
    states, actions = int(rows.state.max(initial=0)) + 1, policy.shape[1]
    tried = fit(rows, states, actions).weight > 0
    mass = float(policy.sum())
    return float((policy * tried[rows.state]).sum()) / mass if mass > 0 else 0.0


def evaluate(rows: Rows, policy: Floats, multiplicity: Floats, discount: float = 1.0) -> Replicates:
    """Mean reward of a decision under the policy (N, A), fitted anew on every draw of the clusters, (draws, C)."""
    states, actions = int(rows.state.max()) + 1, policy.shape[1]
    first = np.flatnonzero(np.append(True, np.diff(rows.episode) != 0))
    length = np.diff(np.append(first, len(rows.episode)))
    horizon = int(length.max())

    def value(weight: Floats) -> float:
        v = plan(fit(rows, states, actions, weight), averaged(policy, rows.state, states, weight), horizon, discount)[1]
        once = weight[first]
        return float((once * v[length, rows.state[first]]).sum() / max(float((once * length).sum()), 1e-12))

    draws = np.array([value(row[rows.cluster]) for row in multiplicity])
    return Replicates(value(np.ones(len(rows.reward))), draws)
