"""pass@k and pass^k.

- Both are what counting over all subsets of k attempts gives, exactly.
- pass@1 = pass^1 = c/n; pass@k rises and pass^k falls with k; thousands of attempts are no trouble.
"""

import math
from itertools import combinations

import pytest
from hypothesis import given, strategies as st

from tau2rl.report.estimators import measures, pass_at_k, pass_hat_k

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@pytest.mark.parametrize("n", range(1, 7))
def test_both_equal_counting_over_all_subsets(n):
    for c in range(n + 1):
        attempts = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(attempts, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
            assert pass_hat_k(n, c, k) == pytest.approx(sum(map(all, subsets)) / len(subsets))


@given(counts)
def test_the_stable_product_gives_the_same(ncK):
    n, c, k = ncK
    product = 1.0 if n - c < k else 1.0 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))
    assert pass_at_k(n, c, k) == pytest.approx(product, abs=1e-12)


@given(counts)
def test_bounds_and_monotony(ncK):
    n, c, k = ncK
    assert 0 <= pass_hat_k(n, c, k) <= c / n + 1e-12 <= pass_at_k(n, c, k) + 2e-12 <= 1 + 2e-12
    assert pass_at_k(n, c, 1) == pass_hat_k(n, c, 1) == c / n
    if k < n:
        assert pass_at_k(n, c, k + 1) >= pass_at_k(n, c, k)
        assert pass_hat_k(n, c, k + 1) <= pass_hat_k(n, c, k)


@given(counts)
def test_all_fail_and_any_succeeds_are_the_two_sides_of_one_coin(ncK):
    n, c, k = ncK
    assert pass_at_k(n, c, k) == pytest.approx(1 - pass_hat_k(n, n - c, k), abs=1e-12)


def test_thousands_of_attempts_keep_their_precision():
    assert pass_at_k(10_000, 1, 100) == 0.01
    assert pass_hat_k(10_000, 9_999, 100) == 0.99
    assert pass_hat_k(2_000, 1_000, 10) == pytest.approx(math.prod((1_000 - i) / (2_000 - i) for i in range(10)), rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_more_successes_or_draws_than_attempts_are_a_bug(n, c, k):
    for estimator in (pass_at_k, pass_hat_k):
        with pytest.raises(ValueError, match="need 0 <= c <= n"):
            estimator(n, c, k)


def test_a_report_lists_every_k_of_both():
    assert [name for name, _, _ in measures(3)] == ["pass@1", "pass@2", "pass@3", "pass^1", "pass^2", "pass^3"]
