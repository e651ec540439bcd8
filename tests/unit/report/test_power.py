"""How much evaluations can say, and whether intervals and tests keep what they promise.

- Power, tasks needed and the smallest effect are the textbook's, and the worked numbers of 100 tasks x 4, 8 and 16 attempts.
- Power is what simulated pairs of runs have; luck and the spread of effects are recovered from simulated runs.
- Over 2,000 simulated runs of Beta distributed tasks the intervals hold the truth in 93 to 97% of cases (nearer to 0 and 1
  in more), and where nothing differs the paired t test, sign flips and McNemar's mid-p reject in 4 to 6%.
  All of them are `slow`; 300 always run, with bounds that are wider by the luck of fewer.
- So do those of a difference (every measure, t and bootstrap), of selected@k and its gain, of a break-even, of what is left of
  tasks; a useless verifier gains, and Holm finds anything among equal runs, as rarely as the level says.
- On a grid of benchmarks, sizes and measures (`slow`): the counts that docs/decide.md states.
- Holm's p-values by hand.
"""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from tau2rl.report.best_of_k import Scored, point, selected_at
from tau2rl.report.break_even import BetaTasks, MeasuredTasks, Strategy, by_cost_per_success, resampled, success_of
from tau2rl.report.compare import compare, flips, holm, mcnemar_mid_p, paired_t, sign_flip_p
from tau2rl.report.estimators import bootstrap_mean, mean_over_groups, mean_over_tasks, pass_at_k, pass_hat_k, rerun_se
from tau2rl.report.power import Design, Spread, effect_sd_of, luck_of, power, smallest_effect, tasks_needed

SFT1 = BetaTasks(0.80, 1.97)  # fits the published pass@1 and pass@4 of a 4B model
FEWER = [pytest.param(60, 0.09, id="60"), pytest.param(2000, 0.02, id="2000", marks=pytest.mark.slow)]  # where each takes longer
SIMULATED = [pytest.param(300, 0.04, id="300"), pytest.param(2000, 0.02, id="2000", marks=pytest.mark.slow)]


def near(inside, expected, within):
    """Whether a share of simulated runs is what it should be, within so much; `-s` shows it."""
    print(f"{np.mean(inside):.4f} of {len(inside)}, expected {expected:g}")  # noqa: T201
    return abs(float(np.mean(inside)) - expected) <= within


@pytest.mark.parametrize(
    ("tasks", "attempts", "effect", "published"),
    [
        (100, 4, 0.06, 0.61), (100, 8, 0.03, 0.34), (100, 8, 0.06, 0.87),
        (100, 16, 0.03, 0.60), (278, 4, 0.03, 0.44), (278, 4, 0.06, 0.96),
    ],
)  # fmt: skip
def test_the_worked_powers(tasks, attempts, effect, published):
    se = Design(tasks=tasks, attempts=attempts).se(Spread(luck=luck_of(SFT1)))
    assert power(effect, se, tasks) == pytest.approx(published, abs=0.03)


def test_the_textbook_sample_size():
    # (1.960 + 0.842)^2 x 2 p (1 - p) / effect^2 = 392.4 for one attempt at p = 1/2, and two more for the t distribution
    assert tasks_needed(0.10, Spread(luck=0.25), attempts=1) == 395
    assert tasks_needed(0.10, Spread(luck=0.25), attempts=5) == pytest.approx(395 / 5, abs=2)


@given(luck=st.floats(0.01, 0.25), effect_sd=st.floats(0, 0.3), effect=st.floats(0.02, 0.3), attempts=st.sampled_from([1, 4, 16]))
def test_the_tasks_needed_are_enough_and_one_less_is_not(luck, effect_sd, effect, attempts):
    spread = Spread(luck=luck, effect_sd=effect_sd)
    tasks = tasks_needed(effect, spread, attempts=attempts)
    reached = [power(effect, Design(tasks=t, attempts=attempts).se(spread), t) for t in (tasks - 1, tasks)]
    assert reached[0] < 0.8 <= reached[1]
    assert smallest_effect(Design(tasks=tasks, attempts=attempts).se(spread), tasks) <= effect * (1 + 1e-6)


def test_no_number_of_tasks_makes_up_for_runs_that_differ():
    spread = Spread(luck=0.15, run_sd=0.02)  # the difference of two runs has an sd of 2.8 points, whatever is played in them
    assert tasks_needed(0.03, spread, attempts=16) is None
    assert tasks_needed(0.03, spread, attempts=16, repetitions=20) is not None


def test_power_is_what_simulated_pairs_of_runs_have():
    generator = np.random.default_rng(1)
    chances = generator.beta(4, 6, size=(800, 100))
    shift = 0.06
    a, b = generator.binomial(4, np.clip(chances + shift, 0, 1)) / 4, generator.binomial(4, chances) / 4
    d = a - b
    t = d.mean(1) / (d.std(1, ddof=1) / 10)
    se = Design(tasks=100, attempts=4).se(Spread(luck=luck_of(BetaTasks(4, 6))))
    assert near(np.abs(t) > 1.9842, power(shift, se, 100), 0.05)


def test_luck_and_the_spread_of_effects_are_found_in_runs():
    generator = np.random.default_rng(2)
    p = generator.beta(2, 3, 20_000) * 0.6 + 0.2  # never near 0 or 1, where an effect would be cut off
    effects = generator.normal(0.05, 0.08, p.size).clip(-0.2, 0.2)
    a = [(4, int(c)) for c in generator.binomial(4, p + effects)]
    b = [(4, int(c)) for c in generator.binomial(4, p)]
    assert luck_of(b) == pytest.approx(np.mean(p * (1 - p)), abs=0.003)
    assert effect_sd_of(a, b) == pytest.approx(np.std(effects), abs=0.02)
    again = [(4, int(c)) for c in generator.binomial(4, p)]
    assert effect_sd_of(again, b) < 0.03
    assert luck_of([(1, 1), (4, 2)]) is None
    assert effect_sd_of([(1, 1)], [(1, 0)]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])  # 1 x 0.03 may not fall below 2 x 0.02
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_task_flips_where_the_majority_does():
    a, b = {"r/1": 1.0, "r/2": 0.5, "r/3": 0.75, "r/4": 0.0}, {"r/1": 0.0, "r/2": 0.75, "r/3": 1.0, "r/4": 0.5}
    assert [(flip.task, flip.a, flip.b) for flip in flips(a, b)] == [("r/1", 1.0, 0.0), ("r/2", 0.5, 0.75)]


@pytest.mark.parametrize(("runs", "within"), SIMULATED)
@pytest.mark.parametrize("tasks", [SFT1, BetaTasks(0.39, 0.70), BetaTasks(2.0, 2.0)], ids=str)
def test_intervals_hold_the_truth_as_often_as_they_say(tasks, runs, within):
    solved = np.random.default_rng(3).binomial(4, np.random.default_rng(4).beta(tasks.a, tasks.b, size=(runs, 100)))
    for estimator, k in ((pass_at_k, 1), (pass_at_k, 2), (pass_at_k, 4), (pass_hat_k, 2), (pass_hat_k, 4)):
        true = sum(weight * estimator(4, c, k) for c, weight in enumerate(tasks.successes(4)))
        intervals = [mean_over_tasks([estimator(4, int(c), k) for c in row], trials=4 / k).ci95 for row in solved]
        assert near([a <= true <= b for a, b in intervals], 0.95, within), (estimator.__name__, k)


@pytest.mark.parametrize("tasks", [BetaTasks(9.0, 1.0), BetaTasks(0.3, 9.0), BetaTasks(50.0, 2.0)], ids=str)
def test_near_0_and_1_they_hold_it_more_often_never_less(tasks):
    solved = np.random.default_rng(5).binomial(4, np.random.default_rng(6).beta(tasks.a, tasks.b, size=(300, 100)))
    true = tasks.a / (tasks.a + tasks.b)
    assert np.mean([a <= true <= b for a, b in (mean_over_tasks(list(row / 4), trials=4).ci95 for row in solved)]) >= 0.93


@pytest.mark.parametrize(("runs", "within"), SIMULATED)
def test_the_other_intervals_do_too(runs, within):
    generator = np.random.default_rng(4)
    chances = generator.beta(SFT1.a, SFT1.b, size=(runs, 100))
    solved = generator.binomial(4, chances)
    true, means = SFT1.a / (SFT1.a + SFT1.b), chances.mean(1)
    reruns = [(row.mean() / 4, rerun_se([(4, int(c)) for c in row])) for row in solved]
    assert near([abs(m - t) <= 1.96 * se for (m, se), t in zip(reruns, means, strict=True)], 0.95, within)
    boots = [bootstrap_mean({"a": list(row[:50] / 4), "b": list(row[50:] / 4)}, draws=500) for row in solved]
    assert near([a <= true <= b for a, b in boots], 0.95, within)
    halves = [mean_over_groups([mean_over_tasks(list(h / 4), trials=4) for h in (row[:50], row[50:])]) for row in solved]
    assert near([h.ci95[0] <= true <= h.ci95[1] for h in halves], 0.95, within)
    again = generator.binomial(4, np.clip(chances + 0.03, 0, 1))
    gain = np.mean(np.clip(generator.beta(SFT1.a, SFT1.b, 400_000) + 0.03, 0, 1)) - true
    paired = [
        compare(*({f"r/{i}": c / 4 for i, c in enumerate(row)} for row in pair), draws=20).difference.ci95
        for pair in zip(again, solved, strict=True)
    ]
    assert near([a <= gain <= b for a, b in paired], 0.95, within)


@pytest.mark.parametrize(("runs", "within"), FEWER)
def test_intervals_of_a_difference_hold_it_for_every_measure(runs, within):
    """The paired t interval and the paired bootstrap of two runs whose tasks are all easier by so much for the first."""
    generator = np.random.default_rng(14)
    chances = generator.beta(SFT1.a, SFT1.b, size=(runs, 100))
    many = generator.beta(SFT1.a, SFT1.b, 400_000)
    one, other = generator.binomial(4, np.clip(chances + 0.05, 0, 1)), generator.binomial(4, chances)
    for estimator, k in ((pass_at_k, 1), (pass_at_k, 4), (pass_hat_k, 4)):
        table = np.array([estimator(4, c, k) for c in range(5)])
        true = np.mean(truth_of(np.clip(many + 0.05, 0, 1), table) - truth_of(many, table))
        differences = table[one] - table[other]
        t = [paired_t(list(row)).ci95 for row in differences]
        assert near([low <= true <= high for low, high in t], 0.95, within), (estimator.__name__, k)
        boots = [bootstrap_mean({"airline": list(row[:50]), "retail": list(row[50:])}, draws=500) for row in differences]
        # Percentiles of draws are a little narrow where few tasks carry a measure: 92.6% of 2,000 for pass^4.
        assert near([low <= true <= high for low, high in boots], 0.95, within + 0.01), (estimator.__name__, k)


def truth_of(chances, table):
    """The mean of a measure over runs of four attempts, at each chance of success."""
    return sum(stats.binom.pmf(c, 4, chances) * table[c] for c in range(5))


def verified(generator, chances, skill):
    """[runs][tasks] with four attempts each: solved or not, and a verifier's score, higher by `skill` where solved."""
    solved = generator.random((*chances.shape, 4)) < chances[..., None]
    return solved, solved * skill + generator.normal(size=solved.shape)


@pytest.mark.parametrize(("runs", "within"), FEWER)
@pytest.mark.parametrize("k", [2, 4])
def test_intervals_of_selected_and_its_gain_hold_the_truth(k, runs, within):
    generator = np.random.default_rng(9)
    solved, scores = verified(generator, generator.beta(SFT1.a, SFT1.b, size=(400_000,)), 1.0)
    best = np.take_along_axis(solved[:, :k], scores[:, :k].argmax(1)[:, None], 1)
    true, gained = float(best.mean()), float(best.mean() - solved.mean())
    inside, gains = [], []
    for attempts, values in zip(*verified(generator, generator.beta(SFT1.a, SFT1.b, size=(runs, 100)), 1.0), strict=True):
        tasks = {
            f"r/{i}": Scored(solved=tuple(map(bool, one)), scores=lambda played, row=row: [row[j] for j in played])
            for i, (one, row) in enumerate(zip(attempts, values, strict=True))
        }
        low, high = point(tasks, k, accept_from=None).selected.ci95
        inside.append(low <= true <= high)
        low, high = paired_t([value - np.mean(tasks[key].solved) for key, value in selected_at(tasks, k).items()]).ci95
        gains.append(low <= gained <= high)
    assert near(inside, 0.95, within), float(np.mean(inside))
    assert near(gains, 0.95, within), float(np.mean(gains))


@pytest.mark.parametrize(("runs", "within"), [pytest.param(100, 0.07), pytest.param(2000, 0.01, marks=pytest.mark.slow)])
def test_a_useless_verifier_gains_as_rarely_as_a_test_errs(runs, within):
    generator = np.random.default_rng(10)
    rejected = []
    for attempts, values in zip(*verified(generator, generator.beta(SFT1.a, SFT1.b, size=(runs, 100)), 0.0), strict=True):
        chosen = np.take_along_axis(attempts, values.argmax(1)[:, None], 1)[:, 0]
        rejected.append(sign_flip_p(list(chosen - attempts.mean(1)), draws=499) <= 0.05)
    assert near(rejected, 0.05, within), float(np.mean(rejected))


@pytest.mark.parametrize(("runs", "within"), [pytest.param(100, 0.07), pytest.param(2000, 0.01, marks=pytest.mark.slow)])
def test_holm_finds_anything_among_equal_runs_as_rarely_as_it_says(runs, within):
    """Three runs that are equal: the chance of any finding among their pairs is at most 5%, and not far below."""
    generator = np.random.default_rng(11)
    chances = generator.beta(SFT1.a, SFT1.b, size=(runs, 100))
    played = [generator.binomial(4, chances) / 4 for _ in range(3)]
    found = [
        min(holm([sign_flip_p(list(x - y), draws=499) for x, y in ((a, b), (a, c), (b, c))])) <= 0.05
        for a, b, c in zip(*played, strict=True)
    ]
    print(f"{np.mean(found):.4f} of {runs}")  # noqa: T201
    assert np.mean(found) <= 0.05 + within
    assert np.mean(found) >= 0.025 - within


@pytest.mark.parametrize(("runs", "within"), FEWER)
def test_the_interval_of_a_break_even_holds_it(runs, within):
    """Up to four attempts with a good verifier against one attempt of a better policy; by the cost of a success."""
    generator = np.random.default_rng(12)
    better, verifier = BetaTasks(1.6, 1.6), {"recall": 0.9, "false_accepts": 0.1}

    def answer(sampled, trained):
        sides = Strategy(attempts=4, attempt_cost=0.01, success=sampled), Strategy(attempts=1, attempt_cost=0.01, success=trained)
        return by_cost_per_success(*sides, 16.0)

    true = answer(success_of(SFT1, 4, **verifier), success_of(better, 1)).tasks
    # Over tasks the success is a mean, so that one value for each count of successes is all that a draw needs.
    tables = [np.array([success_of(MeasuredTasks([(4, c)]), k, **how) for c in range(5)]) for k, how in ((4, verifier), (1, {}))]
    inside = []
    for _ in range(runs):
        rank = generator.random(100)  # what is hard for one policy is hard for the other
        values = [
            table[generator.binomial(4, stats.beta.ppf(rank, tasks.a, tasks.b))]
            for table, tasks in zip(tables, (SFT1, better), strict=True)
        ]
        low, high = resampled(lambda chosen, v=values: answer(v[0][chosen].mean(), v[1][chosen].mean()), 100, draws=250)
        inside.append((math.inf if low is None else low) <= true <= (math.inf if high is None else high))
    assert near(inside, 0.95, within), float(np.mean(inside))


@pytest.mark.parametrize(("runs", "within"), SIMULATED)
def test_an_interval_over_what_is_left_of_tasks_holds_the_truth(runs, within):
    """As adjusted scores have it: episodes are left out at random, so that tasks have from none to four attempts."""
    generator = np.random.default_rng(13)
    left = generator.binomial(4, 0.8, size=(runs, 100))
    solved = generator.binomial(left, generator.beta(SFT1.a, SFT1.b, size=(runs, 100)))
    inside = []
    for n, c in zip(left, solved, strict=True):
        n, c = n[n > 0], c[n > 0]
        low, high = mean_over_tasks(list(c / n), trials=len(n) / np.sum(1 / n)).ci95
        inside.append(low <= SFT1.a / (SFT1.a + SFT1.b) <= high)
    assert near(inside, 0.95, within), float(np.mean(inside))


@pytest.mark.parametrize(("runs", "within"), [pytest.param(300, 0.03), pytest.param(2000, 0.01, marks=pytest.mark.slow)])
def test_paired_tests_reject_as_often_as_they_say_where_nothing_differs(runs, within):
    generator = np.random.default_rng(7)
    chances = generator.beta(SFT1.a, SFT1.b, size=(runs, 100))
    differences = (generator.binomial(4, chances) - generator.binomial(4, chances)) / 4
    t = differences.mean(1) / (differences.std(1, ddof=1) / 10)
    assert near(np.abs(t) > 1.9842, 0.05, within)  # the interval of the difference leaves 0 out
    assert near([sign_flip_p(list(d), draws=499) <= 0.05 for d in differences], 0.05, within)
    # This one is discrete, and its own share is 4.6% here: ten times as many runs, so that luck does not decide.
    chances = generator.beta(SFT1.a, SFT1.b, size=(10 * runs, 100))
    single = generator.binomial(1, chances), generator.binomial(1, chances)
    mid_p = functools.cache(mcnemar_mid_p)
    assert near([mid_p(*_alone(a, b)) <= 0.05 for a, b in zip(*single, strict=True)], 0.05, within)


def _alone(a, b):
    """Tasks that only the first run solved, and only the second."""
    return int(np.sum(a > b)), int(np.sum(a < b))


BENCHMARKS = [
    (0.8, 1.97),
    (0.39, 0.7),
    (0.2, 2),
    (2, 0.2),
    (0.1, 1.9),
    (3, 3),
    (0.05, 0.95),
    (0.5, 9.5),
    (9, 1),
    (0.3, 9),
    (50, 2),
]
MEASURES = [
    (1, pass_at_k, 1), (4, pass_at_k, 1), (8, pass_at_k, 1), (4, pass_at_k, 2), (4, pass_at_k, 4),
    (4, pass_hat_k, 2), (4, pass_hat_k, 4), (8, pass_at_k, 4), (8, pass_hat_k, 4),
]  # fmt: skip


@pytest.mark.slow
def test_the_interval_on_a_grid_of_benchmarks():
    """Share of 2,000 intervals that hold the truth, by how many tasks are expected on the rarer side of a measure."""
    found: list[tuple[float, float]] = []
    for place, (a, b) in enumerate(BENCHMARKS):
        for tasks in (20, 50, 100, 278):
            generator = np.random.default_rng([place, tasks])
            for attempts, estimator, k in MEASURES:
                solved = generator.binomial(attempts, generator.beta(a, b, size=(2000, tasks)))
                table = [estimator(attempts, c, k) for c in range(attempts + 1)]
                true = sum(weight * value for weight, value in zip(BetaTasks(a, b).successes(attempts), table, strict=True))
                intervals = [mean_over_tasks([table[c] for c in row], trials=attempts / k).ci95 for row in solved]
                rarer = tasks * min(true, 1 - true)
                found.append((rarer, float(np.mean([low <= true <= high for low, high in intervals]))))
    common = [share for rarer, share in found if rarer >= 5]
    print(f"{len(common)} cells with 5 tasks or more: {sum(0.93 <= s <= 0.97 for s in common)} within 93 to 97%")  # noqa: T201
    print(f"least {min(common):.3f}, most {max(common):.3f}, mean {np.mean(common):.4f}")  # noqa: T201
    rare = [share for rarer, share in found if rarer < 5]
    print(f"{len(rare)} others: least {min(rare):.3f}, most {max(rare):.3f}, mean {np.mean(rare):.4f}")  # noqa: T201
    assert min(common) >= 0.925
    assert max(common) <= 0.985
    assert np.mean([0.93 <= share <= 0.97 for share in common]) >= 0.9


@pytest.mark.slow
def test_the_paired_tests_on_a_grid_of_benchmarks():
    """Share of 2,000 pairs of equal runs in which a test finds a difference, where ten tasks or more differ."""
    flips_, t_, mcnemar_ = [], [], []
    for place, (a, b) in enumerate([(0.8, 1.97), (0.39, 0.7), (3, 3), (0.2, 2)]):
        for tasks in (20, 50, 100, 278):
            generator = np.random.default_rng([place, tasks])
            for attempts, estimator, k in MEASURES[:5]:
                chances = generator.beta(a, b, size=(2000, tasks))
                table = np.array([estimator(attempts, c, k) for c in range(attempts + 1)])
                one, other = table[generator.binomial(attempts, chances)], table[generator.binomial(attempts, chances)]
                differences = one - other
                if np.count_nonzero(differences) / 2000 < 10:
                    continue
                flips_.append(np.mean([sign_flip_p(list(d), draws=999) <= 0.05 for d in differences]))
                bound = stats.t.ppf(0.975, tasks - 1) * differences.std(1, ddof=1) / tasks**0.5
                t_.append(np.mean(np.abs(differences.mean(1)) > bound))
                if attempts == k:
                    mcnemar_.append(np.mean([mcnemar_mid_p(*_alone(x, y)) <= 0.05 for x, y in zip(one, other, strict=True)]))
    for name, shares in (("sign flips", flips_), ("paired t", t_), ("McNemar mid-p", mcnemar_)):
        print(f"{name}: {len(shares)} cells, least {min(shares):.4f}, most {max(shares):.4f}, mean {np.mean(shares):.4f}")  # noqa: T201
        assert min(shares) >= 0.03
        assert max(shares) <= 0.07
        assert 0.04 <= np.mean(shares) <= 0.06
