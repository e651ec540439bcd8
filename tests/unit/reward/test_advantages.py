"""Scores of a group -> advantages.

- Closed forms of grpo, dr_grpo and rloo; golden vectors of mt_grpo and mt_gtpo (a ragged group of four, gamma 0.9, lambda 0.3).
- None is no evidence: out of mean and deviation, and it stays None.
- A group without variance, or too small, has advantages 0, exactly.
- The order of the group changes nothing; shifting all rewards changes nothing; scaling changes nothing where it is divided out.
- Late turns are compared only with members that got so far.
"""

import math
import statistics

import pytest
from hypothesis import assume, given, strategies as st

from tau2rl.reward.advantages import (
    TRAJECTORY_ESTIMATORS,
    TURN_ESTIMATORS,
    AdvantageSpec,
    group_advantages,
    informative,
    position_sizes,
    turn_advantages,
    turn_returns,
)

REWARDS = [[0, 1, 1], [0, -0.1, 0], [0, 0.75], [0, 1, 0]]
OUTCOMES = [1, 0, 0, 1]

rewards = st.lists(st.one_of(st.none(), st.floats(-5, 5, allow_nan=False)), max_size=8)


def test_closed_forms():
    group = [1.0, 0.0, 0.0, 0.0]  # mean 1/4, population deviation sqrt(3)/4
    assert group_advantages(group, AdvantageSpec(estimator="dr_grpo")) == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages(group, AdvantageSpec(estimator="rloo")) == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    grpo = group_advantages(group, AdvantageSpec(estimator="grpo"))
    assert grpo == pytest.approx([math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, abs=1e-5)


def test_rloo_is_the_reward_minus_the_mean_of_the_others():
    group = [0.3, 1.0, 0.0, 0.5, 0.9]
    expected = [r - statistics.fmean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)]
    assert group_advantages(group, AdvantageSpec(estimator="rloo")) == pytest.approx(expected)


def test_ddof_1_is_the_sample_deviation():
    group = [1.0, 0.0, 0.5]
    spec = AdvantageSpec(estimator="grpo", ddof=1)
    assert group_advantages(group, spec)[0] == pytest.approx(0.5 / (statistics.stdev(group) + 1e-6))


@pytest.mark.parametrize("estimator", TRAJECTORY_ESTIMATORS)
def test_no_evidence_is_out_of_every_mean_and_stays_none(estimator):
    spec = AdvantageSpec(estimator=estimator)
    with_gaps = group_advantages([None, 1.0, 0.0, None, 0.0], spec)
    assert [a for a in with_gaps if a is not None] == group_advantages([1.0, 0.0, 0.0], spec)
    assert [i for i, a in enumerate(with_gaps) if a is None] == [0, 3]


@pytest.mark.parametrize("estimator", TRAJECTORY_ESTIMATORS)
@pytest.mark.parametrize("group", [[0.1] * 7, [1.0], [None, 1.0, None], [], [None, None]])
def test_groups_that_teach_nothing_have_advantage_0_exactly(estimator, group):
    spec = AdvantageSpec(estimator=estimator)
    assert group_advantages(group, spec) == [None if r is None else 0.0 for r in group]
    assert not informative(group, spec)


def test_min_group_size_silences_small_groups():
    spec = AdvantageSpec(estimator="dr_grpo", min_group_size=3)
    assert group_advantages([1.0, 0.0, None], spec) == [0.0, 0.0, None]
    assert informative([1.0, 0.0, 0.0], spec)


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
    advantages = turn_advantages(REWARDS, OUTCOMES, AdvantageSpec(estimator=estimator))
    assert [len(row) for row in advantages] == [3, 3, 2, 3]
    for row, want in zip(advantages, expected, strict=True):
        assert row == pytest.approx(want, abs=5e-5)


def test_a_late_turn_that_only_one_member_reached_has_no_gradient_of_its_own():
    assert position_sizes([[0, 0, 5], [0, 0]]) == [2, 2, 1]
    (long, _) = turn_advantages([[0, 0, 5], [0, 0]], [1, 1], AdvantageSpec(estimator="gtpo"))
    assert long[2] == 0.0
    assert long[1] > 0


def test_a_member_without_evidence_changes_nothing_for_the_others():
    spec = AdvantageSpec(estimator="mt_gtpo")
    with_gap = turn_advantages([*REWARDS, [9, 9, 9, 9]], [*OUTCOMES, None], spec)
    assert with_gap[-1] is None
    assert with_gap[:-1] == turn_advantages(REWARDS, OUTCOMES, spec)


def test_zero_rewards_still_carry_the_outcome():
    rows = turn_advantages([[0, 0], [0, 0]], [1, 0], AdvantageSpec(estimator="mt_gtpo"))
    assert rows[0] == pytest.approx([1.3, 1.3], abs=1e-4)
    assert rows[1] == pytest.approx([-1.3, -1.3], abs=1e-4)


def test_an_episode_without_turns_still_counts_as_an_outcome():
    rows = turn_advantages([[], [0.0]], [0, 1], AdvantageSpec(estimator="mt_grpo"))
    assert rows[0] == []
    assert rows[1] == pytest.approx([1.0], abs=1e-5)


def test_each_family_is_refused_by_the_function_of_the_other():
    with pytest.raises(ValueError, match="turn_advantages"):
        group_advantages([1.0], AdvantageSpec(estimator="gtpo"))
    with pytest.raises(ValueError, match="group_advantages"):
        turn_advantages([[1.0]], [1.0], AdvantageSpec(estimator="grpo"))


@pytest.mark.parametrize("broken", [{"min_group_size": 1}, {"ddof": 2}, {"eps": 0.0}, {"gamma": 1.1}])
def test_constants_without_a_meaning_are_refused(broken):
    with pytest.raises(ValueError, match="min_group_size"):
        AdvantageSpec(**broken)


@given(group=rewards, seed=st.randoms(use_true_random=False), estimator=st.sampled_from(TRAJECTORY_ESTIMATORS))
def test_order_does_not_matter_and_advantages_sum_to_0(group, seed, estimator):
    spec = AdvantageSpec(estimator=estimator)
    base = group_advantages(group, spec)
    order = list(range(len(group)))
    seed.shuffle(order)
    assert group_advantages([group[i] for i in order], spec) == [base[i] for i in order]
    live = [a for a in base if a is not None]
    assert math.fsum(live) == pytest.approx(0.0, abs=1e-6 * max(1.0, *map(abs, live), 0.0) if live else 1e-6)


@given(
    group=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=8),
    estimator=st.sampled_from(TRAJECTORY_ESTIMATORS),
)
def test_a_constant_added_to_every_reward_changes_nothing(group, estimator):
    spec = AdvantageSpec(estimator=estimator)
    assert group_advantages([r + 4.0 for r in group], spec) == pytest.approx(group_advantages(group, spec))


@given(group=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=8))
def test_grpo_does_not_depend_on_the_scale_of_rewards(group):
    assume(len(set(group)) > 1)
    spec = AdvantageSpec(estimator="grpo")
    assert group_advantages([8 * r for r in group], spec) == pytest.approx(group_advantages(group, spec), rel=1e-4)


ragged = st.lists(
    st.tuples(st.lists(st.sampled_from([-0.1, 0.0, 0.3, 1.0]), max_size=4), st.sampled_from([None, 0.0, 1.0])), max_size=6
)


@given(group=ragged, seed=st.randoms(use_true_random=False), estimator=st.sampled_from(TURN_ESTIMATORS))
def test_turn_advantages_do_not_depend_on_the_order_of_the_group(group, seed, estimator):
    spec = AdvantageSpec(estimator=estimator)
    base = turn_advantages([r for r, _ in group], [o for _, o in group], spec)
    order = list(range(len(group)))
    seed.shuffle(order)
    assert turn_advantages([group[i][0] for i in order], [group[i][1] for i in order], spec) == [base[i] for i in order]
    for (turns, outcome), row in zip(group, base, strict=True):
        assert row is None if outcome is None else len(row) == len(turns)
