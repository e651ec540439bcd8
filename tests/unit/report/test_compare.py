"""Two runs on the same tasks.

- Different task sets are refused, and some of the tasks are named.
- The sign-flip p equals scipy's permutation test, less half the probability of a tie; McNemar equals scipy's binomial test; the
  interval equals the paired t.
- Swapping the runs turns the sign and keeps every p; equal runs have p = 1 and no false interval.
"""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from tau2rl.errors import UserError
from tau2rl.report.compare import compare, mcnemar_mid_p, mcnemar_p, sign_flip_p


def runs(a, b, domain="retail"):
    keys = [f"{domain}/{i}" for i in range(len(a))]
    return dict(zip(keys, a, strict=True)), dict(zip(keys, b, strict=True))


def test_different_task_sets_are_refused_by_name():
    with pytest.raises(
        UserError, match=r"1 only in the first run \(`a/1`\); 4 only in the second run \(`b/1`, `b/2`, `b/3`, \.\.\.\)"
    ):
        compare({"a/1": 1.0, "a/2": 1.0}, {"a/2": 1.0, "b/1": 0.0, "b/2": 0.0, "b/3": 0.0, "b/4": 0.0})
    with pytest.raises(UserError, match="no tasks to compare"):
        compare({}, {})


def test_the_interval_is_the_paired_t_interval():
    a, b = [0.5, 0.75, 1.0, 0.25, 0.5, 1.0], [0.25, 0.75, 0.5, 0.5, 0.25, 0.75]
    result = compare(*runs(a, b))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (result.a, result.b) == pytest.approx((4 / 6, 3 / 6))
    assert result.difference.ci95 == pytest.approx((expected.low, expected.high))
    assert result.mcnemar is None  # tasks can be partly solved


def test_the_exact_sign_flip_p_is_scipys_less_half_of_the_ties():
    d = [0.5, 0.25, -0.25, 1.0, 0.75, 0.0, 0.25]
    test = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    ties = np.mean(np.isclose(np.abs(test.null_distribution), sum(d)))
    assert ties > 0
    assert sign_flip_p(d) == pytest.approx(test.pvalue - ties / 2)


def test_the_random_sign_flip_p_is_near_the_exact_one_and_never_0():
    generator = np.random.default_rng(3)
    d = list(generator.choice([-0.25, 0.0, 0.25, 0.5], 100))
    expected = stats.norm.sf(abs(sum(d)) / np.sqrt(np.sum(np.square(d)))) * 2
    assert sign_flip_p(d) == pytest.approx(expected, abs=0.02)
    assert sign_flip_p([1.0] * 60, draws=999) == 0.5 / 1000
    assert sign_flip_p(d, seed=1) == sign_flip_p(d[::-1], seed=1)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 5), (9, 2), (30, 41), (0, 6)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(expected)


def test_mcnemars_mid_p_is_the_exact_one_less_half_of_what_was_seen():
    assert mcnemar_mid_p(0, 6) == pytest.approx(1 / 64)
    assert mcnemar_mid_p(1, 5) == mcnemar_mid_p(5, 1) == pytest.approx((2 * 1 + 6) / 64)
    assert mcnemar_mid_p(3, 3) == pytest.approx(1 - 20 / 64 / 2)
    assert mcnemar_mid_p(0, 0) == 1.0


def test_all_or_nothing_tasks_get_mcnemar():
    a, b = [1.0] * 9 + [0.0] * 2 + [1.0] * 5, [0.0] * 9 + [1.0] * 2 + [1.0] * 5
    result = compare(*runs(a, b))
    assert (result.mcnemar.only_a, result.mcnemar.only_b) == (9, 2)
    assert result.mcnemar.p == pytest.approx(2 * (1 + 11 + 55) / 2**11)


def test_equal_runs_differ_by_nothing_and_claim_no_certainty():
    result = compare(*runs([1.0, 0.5, 0.0], [1.0, 0.5, 0.0]))
    assert (result.difference.value, result.difference.ci95, result.p) == (0.0, None, 1.0)
    assert result.difference.reason


def test_one_task_gives_no_interval():
    assert compare(*runs([1.0], [0.0])).difference.reason == "one task has no spread to measure"


def test_a_true_gain_is_found_and_luck_is_not():
    generator = np.random.default_rng(0)
    p = generator.beta(0.8, 1.5, 100)
    better = generator.binomial(8, np.clip(p + 0.15, 0, 1)) / 8
    same, again = generator.binomial(8, p) / 8, generator.binomial(8, p) / 8
    gain, luck = compare(*runs(better, same)), compare(*runs(again, same))
    assert gain.p < 0.01
    assert gain.difference.ci95[0] > 0
    assert gain.bootstrap[0] > 0
    assert luck.p > 0.05
    assert luck.difference.ci95[0] < 0 < luck.difference.ci95[1]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=20))
def test_swapping_the_runs_turns_the_sign_only(pairs):
    a, b = runs([x for x, _ in pairs], [y for _, y in pairs])
    forth, back = compare(a, b, draws=200), compare(b, a, draws=200)
    assert forth.difference.value == pytest.approx(-back.difference.value)
    if len([1 for x, y in pairs if x != y]) <= 14:
        assert forth.p == back.p
