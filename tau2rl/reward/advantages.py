"""A group's scores to its advantages: one value an attempt, or one a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tau2rl.config import AlgoConfig
from tau2rl.config.kinds import TURN_ESTIMATORS

EPS = 1e-6  # added to the deviation, the population's
FLAT = 1e-9  # a group whose scores differ by no more than this has no variance


def group_advantages(
    scores_G: Sequence[float | None], turn_rewards_G: Sequence[Sequence[float]], algo: AlgoConfig
) -> list[tuple[float, ...] | None]:
    """The advantage of each attempt (one value), or of each of its turns; None where it is no evidence.

    `turn_rewards_G` is read by the estimators of turns alone.

    >>> group_advantages([1.0, None, 0.0], [(), (), ()], AlgoConfig(estimator="dr_grpo"))
    [(0.5,), None, (-0.5,)]
    """
    if algo.estimator in TURN_ESTIMATORS:
        return [None if row is None else tuple(row) for row in turn_advantages(turn_rewards_G, scores_G, algo)]
    return [None if value is None else (value,) for value in trajectory_advantages(scores_G, algo)]


def trajectory_advantages(rewards_G: Sequence[float | None], algo: AlgoConfig) -> list[float | None]:
    """One advantage a trajectory: `grpo` (r - mean) / (std + eps), `dr_grpo` r - mean, `rloo` N/(N-1) * (r - mean).

    A group without variance, or with fewer than two members, has advantages 0.

    >>> trajectory_advantages([1.0, 0.0, None, 0.0], AlgoConfig(estimator="rloo"))
    [1.0, -0.5, None, -0.5]
    >>> [round(a, 4) for a in trajectory_advantages([1.0, 0.0, 0.0, 1.0], AlgoConfig(estimator="grpo"))]
    [1.0, -1.0, -1.0, 1.0]
    """
    live = [r for r in rewards_G if r is not None]
    if algo.estimator == "grpo":
        values = _normalized(live)
    elif algo.estimator == "dr_grpo":
        values = _centered(live)
    elif algo.estimator == "rloo":
        values = [c * len(live) / (len(live) - 1) if c else 0.0 for c in _centered(live)]
    else:
        raise ValueError(f"{algo.estimator} gives an advantage to each turn: use turn_advantages")
    supply = iter(values)
    return [None if r is None else next(supply) for r in rewards_G]


def turn_advantages(
    turn_rewards_G: Sequence[Sequence[float]], outcomes_G: Sequence[float | None], algo: AlgoConfig
) -> list[list[float] | None]:
    """One advantage a turn, for `mt_grpo`, `gtpo` and `mt_gtpo`; None for a member whose outcome is None.

    turn_rewards_G: [group][num_turns of that member], outcomes_G: [group]. At each turn position only the members that got
    so far are compared. The outcome stands at a virtual turn after the last, so the last real turn sees gamma * outcome.

    >>> algo = AlgoConfig(estimator="mt_gtpo")
    >>> A = turn_advantages([[0, 1, 1], [0, -0.1, 0], [0, 0.75], [0, 1, 0]], [1, 0, 0, 1], algo)
    >>> [[round(a, 4) for a in row] for row in A]
    [[1.6349, 1.6349, 1.5457], [-1.6113, -1.6113, -1.5027], [-0.8109, -0.8109], [0.7873, 0.7873, 0.257]]
    """
    members = [g for g, outcome in enumerate(outcomes_G) if outcome is not None]
    rewards = [list(turn_rewards_G[g]) for g in members]
    outcomes = [o for o in outcomes_G if o is not None]
    if algo.estimator == "mt_grpo":
        # Normalize, then sum: each position's normalized rewards from here to the end.
        values = [suffix_sums(row) for row in _by_position(rewards)]
        weight = 1.0
    elif algo.estimator in ("gtpo", "mt_gtpo"):
        # Sum, then normalize: the two do not commute.
        values = _by_position([turn_returns(r, o, algo.gamma) for r, o in zip(rewards, outcomes, strict=True)])
        weight = algo.outcome_weight if algo.estimator == "mt_gtpo" else 0.0
    else:
        raise ValueError(f"{algo.estimator} gives one advantage to a trajectory: use trajectory_advantages")
    ends = _normalized(outcomes)
    out: list[list[float] | None] = [None] * len(outcomes_G)
    for g, row, end in zip(members, values, ends, strict=True):
        out[g] = [value + weight * end for value in row]
    return out


def turn_returns(rewards: Sequence[float], outcome: float, gamma: float) -> list[float]:
    """G_k = r_k + gamma * G_{k+1}, with the outcome after the last turn.

    >>> [round(g, 3) for g in turn_returns([0, 1, 1], 1, 0.9)]
    [2.439, 2.71, 1.9]
    """
    returns: list[float] = []
    value = float(outcome)
    for reward in reversed(rewards):
        value = reward + gamma * value
        returns.append(value)
    return returns[::-1]


def suffix_sums(values: Sequence[float]) -> list[float]:
    """The sum from each position to the end.

    >>> suffix_sums([1.0, 2.0, 3.0])
    [6.0, 5.0, 3.0]
    """
    return [math.fsum(values[k:]) for k in range(len(values))]


def _flat(values: Sequence[float]) -> bool:
    return len(values) < 2 or max(values) - min(values) <= FLAT


def _centered(values: Sequence[float]) -> list[float]:
    if _flat(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _normalized(values: Sequence[float]) -> list[float]:
    centered = _centered(values)
    if not any(centered):
        return centered
    std = math.sqrt(math.fsum(c * c for c in centered) / len(centered))
    return [c / (std + EPS) for c in centered]


def _by_position(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    out: list[list[float]] = [[] for _ in rows]
    for k in range(max(map(len, rows), default=0)):
        live = [i for i, row in enumerate(rows) if len(row) > k]
        for i, value in zip(live, _normalized([rows[i][k] for i in live]), strict=True):
            out[i].append(value)
    return out
