"""Scores of a group -> advantages.

- Closed forms of grpo, dr_grpo and rloo; golden vectors of mt_grpo and mt_gtpo (a ragged group of four, gamma 0.9, lambda 0.3).
- None is no evidence: out of mean and deviation, and it stays None.
- A group without variance, or with one member, has advantages 0, exactly.
- The order of the group changes nothing; shifting all rewards changes nothing; scaling changes nothing where it is divided out.
- Late turns are compared only with members that got so far.
"""

import math
import statistics

import pytest
from hypothesis import assume, given, strategies as st

from tau2rl.config import AlgoConfig
from tau2rl.config.kinds import TRAJECTORY_ESTIMATORS, TURN_ESTIMATORS
from tau2rl.reward.advantages import trajectory_advantages, turn_advantages, turn_returns

REWARDS = [[0, 1, 1], [0, -0.1, 0], [0, 0.75], [0, 1, 0]]
OUTCOMES = [1, 0, 0, 1]

rewards = st.lists(st.one_of(st.none(), st.floats(-5, 5, allow_nan=False)), max_size=8)


def test_closed_forms():
    group = [1.0, 0.0, 0.0, 0.0]  # mean 1/4, population deviation sqrt(3)/4
    assert trajectory_advantages(group, AlgoConfig(estimator="dr_grpo")) == [0.75, -0.25, -0.25, -0.25]
    assert trajectory_advantages(group, AlgoConfig(estimator="rloo")) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    grpo = trajectory_advantages(group, AlgoConfig(estimator="grpo"))
    assert grpo == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, abs=1e-5)


def test_rloo_is_the_reward_minus_the_mean_of_the_others():
    group = [0.3, 1.0, 0.0, 0.5, 0.9]
    expected = [r - statistics.fmean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)]
    assert trajectory_advantages(group, AlgoConfig(estimator="rloo")) == pytest.approx(expected)


@pytest.mark.parametrize("estimator", TRAJECTORY_ESTIMATORS)
def test_no_evidence_is_out_of_every_mean_and_stays_none(estimator):
    spec = AlgoConfig(estimator=estimator)
    with_gaps = trajectory_advantages([None, 1.0, 0.0, None, 0.0], spec)
    assert [a for a in with_gaps if a is not None] == trajectory_advantages([1.0, 0.0, 0.0], spec)
    assert [i for i, a in enumerate(with_gaps) if a is None] == [0, 3]


@pytest.mark.parametrize("estimator", TRAJECTORY_ESTIMATORS)
@pytest.mark.parametrize("group", [[0.1] * 7, [1.0], [None, 1.0, None], [], [None, None]])
def test_a_group_without_signal_has_advantage_0_exactly(estimator, group):
    spec = AlgoConfig(estimator=estimator)
    assert trajectory_advantages(group, spec) == [None if r is None else 0.0 for r in group]


def test_golden_vector_of_the_returns():
    expected = [[2.439, 2.71, 1.9], [-0.09, -0.1, 0], [0.675, 0.75], [1.629, 1.81, 0.9]]
    for r, o, want in zip(REWARDS, OUTCOMES, expected, strict=True):
        assert turn_returns(r, o, 0.9) == pytest.approx(want)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("mt_gtpo", [[1.6349, 1.6349, 1.5457], [-1.6113, -1.6113, -1.5027], [-0.8109, -0.8109], [0.7873, 0.7873, 0.2570]]),
        ("mt_grpo", [[3.1610, 3.1610, 2.4142], [-3.3944, -3.3944, -1.7071], [-0.8064, -0.8064], [1.0397, 1.0397, 0.2929]]),
        ("gtpo", [[1.3349, 1.3349, 1.2457], [-1.3113, -1.3113, -1.2027], [-0.5109, -0.5109], [0.4873, 0.4873, -0.0430]]),
    ],
)
def test_golden_vectors_of_the_turn_estimators(estimator, expected):
    advantages = turn_advantages(REWARDS, OUTCOMES, AlgoConfig(estimator=estimator))
    assert [len(row) for row in advantages] == [3, 3, 2, 3]
    for row, want in zip(advantages, expected, strict=True):
        assert row == pytest.approx(want, abs=5e-5)


def test_a_late_turn_that_only_one_member_reached_has_no_gradient_of_its_own():
    (long, _) = turn_advantages([[0, 0, 5], [0, 0]], [1, 1], AlgoConfig(estimator="gtpo"))
    assert long[2] == 0.0
    assert long[1] > 0


def test_a_member_without_evidence_changes_nothing_for_the_others():
    spec = AlgoConfig(estimator="mt_gtpo")
    with_gap = turn_advantages([*REWARDS, [9, 9, 9, 9]], [*OUTCOMES, None], spec)
    assert with_gap[-1] is None
    assert with_gap[:-1] == turn_advantages(REWARDS, OUTCOMES, spec)


def test_zero_rewards_still_carry_the_outcome():
    rows = turn_advantages([[0, 0], [0, 0]], [1, 0], AlgoConfig(estimator="mt_gtpo"))
    assert rows[0] == pytest.approx([1.3, 1.3], abs=1e-4)
    assert rows[1] == pytest.approx([-1.3, -1.3], abs=1e-4)


def test_an_episode_without_turns_still_counts_as_an_outcome():
    rows = turn_advantages([[], [0.0]], [0, 1], AlgoConfig(estimator="mt_grpo"))
    assert rows[0] == []
    assert rows[1] == pytest.approx([1.0], abs=1e-5)


def test_each_family_is_refused_by_the_function_of_the_other():
    with pytest.raises(ValueError, match="turn_advantages"):
        trajectory_advantages([1.0], AlgoConfig(estimator="gtpo"))
    with pytest.raises(ValueError, match="trajectory_advantages"):
        turn_advantages([[1.0]], [1.0], AlgoConfig(estimator="grpo"))


@given(group=rewards, seed=st.randoms(use_true_random=False), estimator=st.sampled_from(TRAJECTORY_ESTIMATORS))
def test_order_does_not_matter_and_advantages_sum_to_0(group, seed, estimator):
    spec = AlgoConfig(estimator=estimator)
    base = trajectory_advantages(group, spec)
    order = list(range(len(group)))
    seed.shuffle(order)
    assert trajectory_advantages([group[i] for i in order], spec) == [base[i] for i in order]
    live = [a for a in base if a is not None]
    assert math.fsum(live) == pytest.approx(0.0, abs=1e-6 * max(1.0, *map(abs, live), 0.0) if live else 1e-6)


@given(
    group=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=8),
    estimator=st.sampled_from(TRAJECTORY_ESTIMATORS),
)
def test_a_constant_added_to_every_reward_changes_nothing(group, estimator):
    spec = AlgoConfig(estimator=estimator)
    assert trajectory_advantages([r + 4.0 for r in group], spec) == pytest.approx(trajectory_advantages(group, spec))


@given(group=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=8))
def test_grpo_does_not_depend_on_the_scale_of_rewards(group):
    assume(len(set(group)) > 1)
    spec = AlgoConfig(estimator="grpo")
    assert trajectory_advantages([8 * r for r in group], spec) == pytest.approx(trajectory_advantages(group, spec), rel=1e-4)


ragged = st.lists(
    st.tuples(st.lists(st.sampled_from([-0.1, 0.0, 0.3, 1.0]), max_size=4), st.sampled_from([None, 0.0, 1.0])), max_size=6
)


@given(group=ragged, seed=st.randoms(use_true_random=False), estimator=st.sampled_from(TURN_ESTIMATORS))
def test_turn_advantages_do_not_depend_on_the_order_of_the_group(group, seed, estimator):
    spec = AlgoConfig(estimator=estimator)
    base = turn_advantages([r for r, _ in group], [o for _, o in group], spec)
    order = list(range(len(group)))
    seed.shuffle(order)
    assert turn_advantages([group[i][0] for i in order], [group[i][1] for i in order], spec) == [base[i] for i in order]
    for (turns, outcome), row in zip(group, base, strict=True):
        assert row is None if outcome is None else len(row) == len(turns)
