"""Runs on the same tasks: is a difference more than luck?

Per-task differences remove what makes tasks hard or easy, so far smaller effects show than by comparing two intervals.
With more than one difference to look at, p-values are Holm's.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
# scipy has no types.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tau2rl.errors import UserError
from tau2rl.report.estimators import Estimate, bootstrap_mean, standard_error
from tau2rl.report.power import smallest_effect

EXACT_FLIPS = 14  # up to so many differing tasks, every pattern of signs is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Test on solved-or-not per task: `McNemar(only_a=9, only_b=2, p=0.065, mid_p=0.039)`."""

    only_a: int  # tasks that only the first run solved
    only_b: int
    p: float  # exact: never too small, and too large by design
    mid_p: float  # what it says on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """First run minus second, on the same tasks: `Comparison(tasks=100, a=0.40, b=0.34, difference=Estimate(...), ...)`."""

    tasks: int
    a: float
    b: float
    difference: Estimate  # paired t
    bootstrap: tuple[float, float]  # paired, tasks drawn within domains
    p: float  # two-sided sign-flip permutation test, mid-p
    mcnemar: McNemar | None  # None when a task can be partly solved
    detects: float | None  # the true difference that as many tasks and attempts find with power 0.8; None: it cannot be told


def compare(values_a: Mapping[str, float], values_b: Mapping[str, float], *, draws: int = 10_000, seed: int = 300) -> Comparison:
    """Compare one number per task (`domain/task_id` -> c/n, or pass@k), task by task.

    Raises UserError when the two runs are not on the same tasks.

    >>> c = compare({"a/1": 1.0, "a/2": 1.0, "a/3": 0.0}, {"a/1": 0.0, "a/2": 1.0, "a/3": 0.0})
    >>> round(c.difference.value, 3), c.p, c.mcnemar.only_a, c.mcnemar.p
    (0.333, 1.0, 1, 1.0)
    """
    _same_tasks(values_a, values_b)
    keys = sorted(values_a)
    a, b = [values_a[key] for key in keys], [values_b[key] for key in keys]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    difference = paired_t(differences)
    strata: dict[str, list[float]] = {}
    for key, value in zip(keys, differences, strict=True):
        strata.setdefault(key.partition("/")[0], []).append(value)
    return Comparison(
        tasks=len(keys),
        a=math.fsum(a) / len(a),
        b=math.fsum(b) / len(b),
        difference=difference,
        bootstrap=bootstrap_mean(strata, draws=draws, seed=seed),
        p=sign_flip_p(differences, draws=draws, seed=seed),
        mcnemar=_mcnemar(a, b) if all(v in (0.0, 1.0) for v in (*a, *b)) else None,
        detects=smallest_effect(standard_error(differences), len(keys)) if difference.ci95 else None,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of any false finding among them is as low (Holm 1979).

    >>> holm([0.01, 0.04, 0.03]), holm([0.5])
    ([0.03, 0.06, 0.06], [0.5])
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, before = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        before = adjusted[i] = max(before, min(1.0, (len(p_values) - rank) * p_values[i]))
    return adjusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A task that most attempts of one run solved, and not those of the other: `Flip(task="retail/17", a=0.75, b=0.25)`."""

    task: str
    a: float
    b: float


def flips(values_a: Mapping[str, float], values_b: Mapping[str, float]) -> list[Flip]:
    """The tasks whose majority differs, the largest difference first.

    >>> [flip.task for flip in flips({"r/1": 1.0, "r/2": 0.5, "r/3": 0.75}, {"r/1": 1.0, "r/2": 0.75, "r/3": 0.0})]
    ['r/3', 'r/2']
    """
    _same_tasks(values_a, values_b)
    found = [Flip(task=key, a=a, b=values_b[key]) for key, a in values_a.items() if (a > 0.5) != (values_b[key] > 0.5)]
    return sorted(found, key=lambda flip: (-abs(flip.a - flip.b), flip.task))


def sign_flip_p(differences: Sequence[float], *, draws: int = 10_000, seed: int = 300) -> float:
    """How surprising a mean difference this far from 0 is if each task's sign were a coin flip: a mid-p value.

    P(larger) + P(equal) / 2 over all patterns of signs (mid-p: Lancaster 1961). Means of few attempts tie often, and a test
    that counts every tie as a surprise rejects too rarely. Exact with few differing tasks, else from `draws` random patterns, the
    one that was seen being one of them.

    Three tasks, all in favour: 2 of the 8 patterns are as far from 0, and none is farther.

    >>> sign_flip_p([1.0, 1.0, 1.0, 0.0])
    0.125
    """
    import numpy as np

    moved = np.asarray([difference for difference in differences if difference])  # the others flip to what they are
    if len(moved) < 2:  # nothing, or one task, whichever way: every pattern is as far
        return 1.0
    moved = np.sort(moved if moved.sum() > 0 else -moved)  # the same for either run first, and in any order of the tasks
    seen, near = abs(moved.sum()), 1e-9 * np.abs(moved).sum()
    if len(moved) <= EXACT_FLIPS:
        patterns = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        flipped = np.abs((2 * patterns - 1) @ moved)
        return float(np.mean(flipped > seen + near) + np.mean(np.abs(flipped - seen) <= near) / 2)
    generator = np.random.default_rng(seed)
    larger = equal = 0
    for start in range(0, draws, 500):  # in slices, so that thousands of tasks fit in memory
        signs = 2 * generator.integers(0, 2, (min(500, draws - start), len(moved)), dtype=np.int8) - 1
        flipped = np.abs(signs @ moved)
        larger += int(np.count_nonzero(flipped > seen + near))
        equal += int(np.count_nonzero(np.abs(flipped - seen) <= near))
    return (larger + (equal + 1) / 2) / (draws + 1)


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p: the binomial test on the tasks that one run alone solved.

    >>> mcnemar_p(1, 5)
    0.21875
    """
    from scipy import stats

    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def mcnemar_mid_p(only_a: int, only_b: int) -> float:
    """The exact p less half the probability of what was seen, which the exact test pays for being discrete.

    Fagerland, Lydersen and Laake 2013: of McNemar's tests the one whose level is nearest to what it says.

    >>> round(mcnemar_mid_p(1, 5), 6)
    0.125
    """
    from scipy import stats

    total = only_a + only_b
    if not total:
        return 1.0
    seen = float(stats.binom.pmf(only_a, total, 0.5))
    return 1 - seen / 2 if only_a == only_b else mcnemar_p(only_a, only_b) - seen


def _mcnemar(a: Sequence[float], b: Sequence[float]) -> McNemar:
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(y > x for x, y in zip(a, b, strict=True))
    return McNemar(only_a=only_a, only_b=only_b, p=mcnemar_p(only_a, only_b), mid_p=mcnemar_mid_p(only_a, only_b))


def paired_t(differences: Sequence[float]) -> Estimate:
    """The mean of one difference per task with its t interval, or why there is none."""
    value = math.fsum(differences) / len(differences)
    if len(differences) < 2:
        return Estimate(value=value, ci95=None, reason="one task has no spread to measure")
    if max(differences) - min(differences) < 1e-12:
        return Estimate(value=value, ci95=None, reason="every task differs by the same amount, so there is no spread to measure")
    from scipy import stats

    low, high = stats.t.interval(0.95, len(differences) - 1, loc=value, scale=standard_error(differences))
    return Estimate(value=value, ci95=(float(low), float(high)), method="paired t")


def _same_tasks(a: Mapping[str, float], b: Mapping[str, float]) -> None:
    if not a and not b:
        raise UserError("there are no tasks to compare")
    only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    if not only_a and not only_b:
        return
    sides = [
        f"{len(only)} only in the {name} run ({', '.join(f'`{key}`' for key in only[:3])}{', ...' if len(only) > 3 else ''})"
        for name, only in (("first", only_a), ("second", only_b))
        if only
    ]
    raise UserError(
        f"the two runs are not on the same tasks: {'; '.join(sides)}",
        hint="evaluate both on the same tasks; a difference between task sets is not a difference between models",
    )
