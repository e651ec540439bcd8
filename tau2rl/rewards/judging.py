"""A group's advantages as the settings name them, in one shape: one value an attempt, or one a turn."""

from __future__ import annotations

from collections.abc import Sequence

from tau2rl.config import AlgoConfig
from tau2rl.rewards.advantages import TURN_ESTIMATORS, AdvantageSpec, group_advantages, turn_advantages


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
