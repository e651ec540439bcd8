"""Intervals.

- Wilson equals scipy's, and gives published values; the standard error equals scipy's.
- All-or-nothing tasks are one trial each; several attempts count for more, the fewer the more they agree, and never for more
  than there are.
- No interval has width 0. A result slightly worse than perfect has a lower bound below the perfect one's, and no narrower
  interval.
- What the interval promises: 95% of those of a simulated benchmark hold the true mean, also near 0 and 1.
- Macro: the interval of a mean over domains is made of the domains' own, and stays honest without spread.
- The re-run error looks at attempts only; the bootstrap is repeatable and agrees with the formula.
"""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from tau2rl.report.estimators import (
    Estimate,
    bootstrap_mean,
    effective_trials,
    mean_over_groups,
    mean_over_tasks,
    rerun_se,
    standard_error,
    wilson,
)

shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("c", "n", "low", "high"),
    [
        (57, 100, 47.2, 66.3),
        (59, 100, 49.2, 68.1),
        (60, 100, 50.2, 69.1),
        (27, 100, 19.3, 36.4),
        (23, 70, 23.0, 44.5),
        (6, 20, 14.5, 51.9),
    ],
)
def test_wilson_gives_the_published_percentages(c, n, low, high):
    assert [round(100 * bound, 1) for bound in wilson(c, n)] == [low, high]


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts):
    c, n = counts
    expected = stats.binomtest(c, n).proportion_ci(method="wilson")
    assert wilson(c, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_rounding_never_leaves_a_proportion_outside_its_interval():
    assert all(wilson(c, n)[0] <= c / n <= wilson(c, n)[1] for n in range(1, 400) for c in {0, 1, n - 1, n})


def test_the_standard_error_is_scipys():
    values = [0.25, 0.5, 0.5, 1.0, 0.0, 0.75]
    assert standard_error(values) == pytest.approx(stats.sem(values))


def test_all_or_nothing_tasks_use_wilson():
    estimate = mean_over_tasks([1.0] * 57 + [0.0] * 43)
    assert (estimate.value, estimate.method, estimate.ci95) == (0.57, "wilson", wilson(57, 100))


def test_the_effective_trials_by_hand():
    assert effective_trials([1.0, 1.0, 0.0], trials=4) == pytest.approx(3)  # nothing within tasks: one trial each
    # Half a solved and half an unsolved task added to 16: mean 1/2, spread (16/16 + 1/4) / 17 = 5/68;
    # (1/4) / (5/68) = 3.4 trials a task.
    values = [0.25, 0.25, 0.75, 0.75] * 4
    assert effective_trials(values, trials=4) == pytest.approx(16 * 3.4)
    assert effective_trials([0.5] * 96, trials=4) == 96 * 4  # no more than there were attempts
    assert effective_trials([0.5] * 96, trials=1) == 96


def test_attempts_that_differ_within_tasks_narrow_the_interval():
    estimate = mean_over_tasks([0.5] * 20, trials=4)
    assert (estimate.value, estimate.method) == (0.5, "wilson, clustered")
    assert estimate.ci95 == pytest.approx(wilson(40, 80))


def test_no_interval_is_narrower_than_that_of_a_perfect_result():
    assert mean_over_tasks([1.0] * 100, trials=8).ci95 == pytest.approx((100 / (100 + 1.959964**2), 1))
    perfect = 1.959964**2 / (100 + 1.959964**2)
    low, high = mean_over_tasks([1.0] * 99 + [0.75], trials=4).ci95  # it would have more trials
    assert high - low == pytest.approx(perfect)
    low, high = mean_over_tasks([0.5] * 4, trials=4).ci95  # it would have 16, and be 0.44 wide
    assert high - low == pytest.approx(1.959964**2 / (4 + 1.959964**2))


@pytest.mark.parametrize("values", [[1.0] * 20, [0.0] * 20, [0.5] * 20, [0.25], [1.0]])
def test_no_spread_gives_no_false_certainty(values):
    low, high = mean_over_tasks(values, trials=4).ci95
    assert high - low > 0.1


def near_perfect(tasks, attempts, lost, *, spread):
    """Shares of solved attempts when `lost` of them fail: one a task as long as there are tasks, or all of one task first."""
    if spread:
        return [1 - (lost // tasks + (i < lost % tasks)) / attempts for i in range(tasks)]
    return [1 - min(attempts, max(0, lost - i * attempts)) / attempts for i in range(tasks)]


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("attempts", [2, 4, 8])
@pytest.mark.parametrize("tasks", [1, 2, 5, 20, 100])
def test_a_slightly_worse_result_is_not_a_surer_one(tasks, attempts, spread):
    low, high = mean_over_tasks([1.0] * tasks, trials=attempts).ci95
    perfect = high - low
    for lost in range(1, tasks * attempts // 2 + 1):
        values = near_perfect(tasks, attempts, lost, spread=spread)
        below, above = mean_over_tasks(values, trials=attempts).ci95
        # Where one task was lost as a whole and the next one loses a first attempt, attempts are seen to differ.
        assert below < low + (1e-12 if spread else 1e-3)
        assert above - below >= perfect - 1e-12
        assert mean_over_tasks([1 - v for v in values], trials=attempts).ci95 == pytest.approx((1 - above, 1 - below))
        low = below


@pytest.mark.parametrize(("mean", "likeness"), [(0.3, 0.3), (0.9, 0.3), (0.97, 0.1), (0.99, 0.6)])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(mean, likeness):
    generator = np.random.default_rng(0)
    weight = 1 / likeness - 1  # chances of tasks are Beta, attempts at one task are alike by `likeness`
    chances = generator.beta(mean * weight, (1 - mean) * weight, size=(1500, 100))
    shares = generator.binomial(4, chances) / 4
    inside = [low <= mean <= high for low, high in (mean_over_tasks(list(row), trials=4).ci95 for row in shares)]
    assert np.mean(inside) > 0.935  # 95%, less two standard errors of 1500 draws and what Wilson itself lacks


def test_no_tasks_give_no_number_but_a_reason():
    assert mean_over_tasks([]).to_json() == {"value": None, "ci95": None, "reason": "no tasks"}


@given(shares)
def test_the_value_is_inside_its_interval_and_the_interval_inside_0_to_1(values):
    estimate = mean_over_tasks(values, trials=4)
    low, high = estimate.ci95
    assert 0.0 <= low <= estimate.value <= high <= 1.0
    assert low < high


@given(shares, st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(values, shuffle):
    shuffled = list(values)
    shuffle.shuffle(shuffled)
    assert mean_over_tasks(shuffled) == mean_over_tasks(values)


def test_the_mean_over_domains_by_hand():
    a, b = Estimate(value=0.5, ci95=(0.2, 0.8), method="x"), Estimate(value=1.0, ci95=(0.6, 1.0), method="y")
    estimate = mean_over_groups([a, b])
    assert estimate.value == 0.75
    assert estimate.method == "mover"
    assert estimate.ci95 == pytest.approx((0.75 - 0.5 / 2, 0.75 + 0.3 / 2))  # sqrt(.3^2 + .4^2) = .5; sqrt(.3^2 + 0) = .3


def test_a_mean_over_domains_needs_every_domain():
    missing = Estimate(value=None, ci95=None, reason="3 of 8 attempts missing or failed")
    assert mean_over_groups([Estimate(value=0.5, ci95=(0.2, 0.8)), missing]).to_json() == {
        "value": None, "ci95": None, "reason": "3 of 8 attempts missing or failed",
    }  # fmt: skip
    assert mean_over_groups([]).value is None


def test_the_rerun_error_by_hand_and_by_simulation():
    assert rerun_se([(4, 2), (4, 4)]) == pytest.approx((0.25 / 3) ** 0.5 / 2)
    assert rerun_se([(4, 4), (4, 0)]) == 0.0  # another run may still differ, but four attempts cannot tell
    assert rerun_se([(1, 1), (1, 0)]) is None
    assert rerun_se([]) is None
    chances = np.linspace(0.1, 0.9, 30)
    generator = np.random.default_rng(0)
    runs = generator.binomial(8, chances, size=(4000, 30))
    estimated = np.mean([rerun_se([(8, int(c)) for c in run]) ** 2 for run in runs[:400]])
    assert estimated == pytest.approx((runs / 8).mean(axis=1).var(), rel=0.1)


def test_the_bootstrap_agrees_with_the_stratified_formula_and_repeats_itself():
    generator = np.random.default_rng(1)
    strata = {"airline": list(generator.integers(0, 5, 50) / 4), "retail": list(generator.integers(2, 5, 100) / 4)}
    low, high = bootstrap_mean(strata)
    variance = sum(np.var(v) * len(v) for v in strata.values()) / 150**2
    assert (high - low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.05)
    assert bootstrap_mean({k: v[::-1] for k, v in reversed(strata.items())}) == (low, high)
    assert bootstrap_mean(strata, seed=7) != (low, high)


def test_a_bootstrap_within_strata_does_not_mix_them():
    assert bootstrap_mean({"a": [0.0] * 5, "b": [1.0] * 5}, draws=100) == (0.5, 0.5)
