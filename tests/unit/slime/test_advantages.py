"""The advantages of a batch of samples. Pinned here:

- groups are compared among themselves whatever their sizes and order; what is no evidence has no advantage and moves no mean
- an attempt that fanned out into several samples is one member of its group; each sample has the advantage of its attempt
- an estimator of turns gives each token the advantage of its turn, and 0 to what the environment wrote; every sample has a row
"""

from __future__ import annotations

from typing import Any

from tau2rl.config import AlgoConfig
from tau2rl.reward.advantages import group_advantages
from tau2rl.slime.advantages import Member, batch_advantages
from tau2rl.slime.samples import SampleMetadata
from tests.contract.slime_episodes import settings

CENTERED = AlgoConfig(estimator="dr_grpo")
PER_TURN = AlgoConfig(estimator="mt_gtpo", gamma=0.5, outcome_weight=0.0)


def member(group: int, number: int, score: float | None, *, length: int = 4, **more: Any) -> Member:
    status = "failed" if score is None else "completed"
    given = {"task": "mock/a", "domain": "mock", "split": "base", "status": status, "evidence": score is not None, "score": score}
    return Member(metadata=SampleMetadata(**{**given, "reward": score, **more}), group=group, attempt=number, length=length)


def test_groups_of_any_size_are_compared_among_themselves() -> None:
    batch = [member(0, 0, 1.0), member(1, 1, 9.0), member(0, 2, 0.0), member(1, 3, 3.0), member(1, 4, 0.0)]
    assert batch_advantages(batch, CENTERED).rewards == [0.5, 5.0, -0.5, -1.0, -4.0]


def test_what_failed_has_no_advantage_and_moves_no_mean() -> None:
    found = batch_advantages([member(0, 0, 1.0), member(0, 1, None), member(0, 2, 0.0)], CENTERED)
    assert found.rewards == [0.5, 0.0, -0.5] and found.trained == [True, False, True]
    assert found.raw == [1.0, 0.5, 0.0]  # the mean of those that are known: slime's curve stays at 0.5


def test_an_attempt_with_an_average_score_is_in_the_mean_of_the_loss() -> None:
    found = batch_advantages([member(0, 0, 1.0), member(0, 1, 0.5), member(0, 2, 0.0)], CENTERED)
    assert found.rewards == [0.5, 0.0, -0.5] and found.trained == [True, True, True]


def test_a_group_that_is_all_alike_or_all_failed_has_no_signal() -> None:
    batch = [member(0, 0, 1.0), member(0, 1, 1.0), member(1, 2, None), member(1, 3, None), member(2, 4, 1.0)]
    found = batch_advantages(batch, AlgoConfig(estimator="grpo"))
    assert found.rewards == [0.0] * 5 and not any(found.trained)


def test_an_attempt_that_fanned_out_is_one_member() -> None:
    batch = [member(0, 7, 1.0), member(0, 7, 1.0), member(0, 7, 1.0), member(0, 8, 0.0)]
    assert batch_advantages(batch, CENTERED).rewards == [0.5, 0.5, 0.5, -0.5]


def test_a_broken_sample_of_an_attempt_does_not_speak_for_it() -> None:
    batch = [member(0, 7, None), member(0, 7, 1.0), member(0, 8, 0.0)]
    assert batch_advantages(batch, CENTERED).rewards == [0.0, 0.5, -0.5]


def test_each_token_has_the_advantage_of_its_turn() -> None:
    # Returns with gamma 1/2 and the outcome behind the last turn: 1 + (0 + 1/2)/2 = 1.25, 0.5 for the first; 0, 0 for the second.
    spans = ((0, 0, 2), (1, 5, 6))
    batch = [
        member(0, 0, 1.0, length=8, spans=spans, turn_rewards=(1.0, 0.0)),
        member(0, 1, 0.0, length=8, spans=spans, turn_rewards=(0.0, 0.0)),
        member(0, 2, None, length=3),
    ]
    found = batch_advantages(batch, PER_TURN)
    assert found.tokens is not None
    assert [[round(value, 5) for value in row] for row in found.tokens] == [
        [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        [-1.0, -1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0],
    ]
    assert [round(value, 5) for value in found.rewards] == [1.0, -1.0, 0.0]  # of the outcome alone, for the curves


def test_a_sample_with_a_part_of_the_turns_has_the_advantages_of_that_part() -> None:
    turns = {"turn_rewards": (1.0, 0.0, 0.0)}
    batch = [
        member(0, 0, 1.0, length=2, spans=((0, 0, 2),), **turns),
        member(0, 0, 1.0, length=3, spans=((2, 1, 3),), **turns),
        member(0, 1, 0.0, length=1, spans=((0, 0, 1),), turn_rewards=(0.0, 0.0, 1.0)),
    ]
    first, later, _ = batch_advantages(batch, PER_TURN).tokens or []
    whole = group_advantages([1.0, 0.0], [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)], PER_TURN)[0]
    assert whole is not None and first == [whole[0]] * 2 and later == [0.0, whole[2], whole[2]]


def test_the_settings_reach_the_estimator() -> None:
    algo = settings(algo={"estimator": "mt_gtpo", "gamma": 0.25, "outcome_weight": 2.0}).algo
    assert algo == AlgoConfig(estimator="mt_gtpo", gamma=0.25, outcome_weight=2.0)
