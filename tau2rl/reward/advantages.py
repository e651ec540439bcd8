"""A group's advantages as the settings name them, in one shape: one value an attempt, or one a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tau2rl.config import AlgoConfig

Estimator = Literal["grpo", "dr_grpo", "rloo", "mt_grpo", "gtpo", "mt_gtpo"]
TRAJECTORY_ESTIMATORS: tuple[Estimator, ...] = ("grpo", "dr_grpo", "rloo")
TURN_ESTIMATORS: tuple[Estimator, ...] = ("mt_grpo", "gtpo", "mt_gtpo")
FLAT = 1e-9  # a group whose rewards differ by no more than this has no variance


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageSpec:
    """Which estimator and its constants: `AdvantageSpec(estimator="mt_gtpo", gamma=0.9, outcome_weight=0.3)`."""

    estimator: Estimator = "grpo"
    gamma: float = 0.9  # discount of a turn's return, `gtpo` and `mt_gtpo`
    outcome_weight: float = 0.3  # lambda: weight of the normalised outcome, `mt_gtpo`
    eps: float = 1e-6  # added to the deviation
    min_group_size: int = 2  # with fewer live members there is nothing to compare: advantage 0
    ddof: int = 0  # 0 = population deviation, 1 = sample deviation (what torch.std and slime use)

    def __post_init__(self) -> None:
        if self.min_group_size < 2 or self.ddof not in (0, 1) or self.eps <= 0 or not 0 <= self.gamma <= 1:
            raise ValueError("min_group_size >= 2, ddof 0 or 1, eps > 0 and 0 <= gamma <= 1")


def group_advantages(rewards_G: Sequence[float | None], spec: AdvantageSpec) -> list[float | None]:
    """One advantage a trajectory: `grpo` (r - mean) / (std + eps), `dr_grpo` r - mean, `rloo` N/(N-1) * (r - mean).

    A group without variance, or with fewer than `min_group_size` members, has advantages 0.

    >>> group_advantages([1.0, 0.0, None, 0.0], AdvantageSpec(estimator="rloo"))
    [1.0, -0.5, None, -0.5]
    >>> [round(a, 4) for a in group_advantages([1.0, 0.0, 0.0, 1.0], AdvantageSpec(estimator="grpo"))]
    [1.0, -1.0, -1.0, 1.0]
    """
    live = [r for r in rewards_G if r is not None]
    if spec.estimator == "grpo":
        values = _normalised(live, spec)
    elif spec.estimator == "dr_grpo":
        values = _centred(live, spec)
    elif spec.estimator == "rloo":
        values = [c * len(live) / (len(live) - 1) if c else 0.0 for c in _centred(live, spec)]
    else:
        raise ValueError(f"{spec.estimator} gives an advantage to each turn: use turn_advantages")
    supply = iter(values)
    return [None if r is None else next(supply) for r in rewards_G]


def turn_advantages(
    turn_rewards_G: Sequence[Sequence[float]], outcomes_G: Sequence[float | None], spec: AdvantageSpec
) -> list[list[float] | None]:
    """One advantage a turn, for `mt_grpo`, `gtpo` and `mt_gtpo`; None for a member whose outcome is None.

    turn_rewards_G: [group][num_turns of that member], outcomes_G: [group]. At each turn position only the members that got
    so far are compared. The outcome stands at a virtual turn after the last, so the last real turn sees gamma * outcome.

    >>> spec = AdvantageSpec(estimator="mt_gtpo")
    >>> A = turn_advantages([[0, 1, 1], [0, -0.1, 0], [0, 0.75], [0, 1, 0]], [1, 0, 0, 1], spec)
    >>> [[round(a, 4) for a in row] for row in A]
    [[1.6349, 1.6349, 1.5457], [-1.6113, -1.6113, -1.5027], [-0.8109, -0.8109], [0.7873, 0.7873, 0.257]]
    """
    members = [g for g, outcome in enumerate(outcomes_G) if outcome is not None]
    rewards = [list(turn_rewards_G[g]) for g in members]
    outcomes = [o for o in outcomes_G if o is not None]
    if spec.estimator == "mt_grpo":
        # Normalise, then sum: each position's normalised rewards from here to the end.
        values = [suffix_sums(row) for row in _by_position(rewards, spec)]
        weight = 1.0
    elif spec.estimator in ("gtpo", "mt_gtpo"):
        # Sum, then normalise: the two do not commute.
        values = _by_position([turn_returns(r, o, spec.gamma) for r, o in zip(rewards, outcomes, strict=True)], spec)
        weight = spec.outcome_weight if spec.estimator == "mt_gtpo" else 0.0
    else:
        raise ValueError(f"{spec.estimator} gives one advantage to a trajectory: use group_advantages")
    ends = _normalised(outcomes, spec)
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


def position_sizes(turn_rewards_G: Sequence[Sequence[float]]) -> list[int]:
    """How many members are compared at each turn position; where it is 1 the turn has no gradient of its own.

    >>> position_sizes([[0, 0, 0], [0], [0, 0]])
    [3, 2, 1]
    """
    lengths = [len(row) for row in turn_rewards_G]
    return [sum(length > k for length in lengths) for k in range(max(lengths, default=0))]


def informative(rewards_G: Sequence[float | None], spec: AdvantageSpec) -> bool:
    """Whether a group teaches anything: enough members, and not all with the same reward.

    >>> informative([1.0, None, 0.0], AdvantageSpec()), informative([1.0, 1.0, 1.0], AdvantageSpec())
    (True, False)
    """
    live = [r for r in rewards_G if r is not None]
    return not _flat(live, spec)


def _flat(values: Sequence[float], spec: AdvantageSpec) -> bool:
    return len(values) < spec.min_group_size or max(values) - min(values) <= FLAT


def _centred(values: Sequence[float], spec: AdvantageSpec) -> list[float]:
    if _flat(values, spec):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _normalised(values: Sequence[float], spec: AdvantageSpec) -> list[float]:
    centred = _centred(values, spec)
    if not any(centred):
        return centred
    std = math.sqrt(math.fsum(c * c for c in centred) / (len(centred) - spec.ddof))
    return [c / (std + spec.eps) for c in centred]


def _by_position(rows: Sequence[Sequence[float]], spec: AdvantageSpec) -> list[list[float]]:
    out: list[list[float]] = [[] for _ in rows]
    for k in range(max(map(len, rows), default=0)):
        live = [i for i, row in enumerate(rows) if len(row) > k]
        for i, value in zip(live, _normalised([rows[i][k] for i in live], spec), strict=True):
            out[i].append(value)
    return out


def advantage_spec(algo: AlgoConfig) -> AdvantageSpec:
    """The settings as `advantages.py` takes them."""
    return AdvantageSpec(estimator=algo.estimator, gamma=algo.gamma, outcome_weight=algo.outcome_weight)


def judge_group(
    scores_G: Sequence[float | None], turn_rewards_G: Sequence[Sequence[float]], spec: AdvantageSpec
) -> list[tuple[float, ...] | None]:
    """The advantage of each attempt (one value), or of each of its turns; None where it is no evidence.

    `turn_rewards_G` is read by the estimators of turns alone.

    >>> judge_group([1.0, None, 0.0], [(), (), ()], AdvantageSpec(estimator="dr_grpo"))
    [(0.5,), None, (-0.5,)]
    """
    if spec.estimator in TURN_ESTIMATORS:
        return [None if row is None else tuple(row) for row in turn_advantages(turn_rewards_G, scores_G, spec)]
    return [None if value is None else (value,) for value in group_advantages(scores_G, spec)]
