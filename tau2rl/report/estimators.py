"""How far a mean over tasks can be trusted.

Two questions, two answers: what would other tasks like these give (the 95% interval, which treats the tasks as a sample), and
what would another run on these very tasks give (`rerun_se`, which treats only the attempts as a sample).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, cast

Estimator = Callable[[int, int, int], float]


@lru_cache(maxsize=65536)
def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k of the n attempts succeeded. Integers all the way: exact, whatever the size of n.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 1.0)
    """
    _check(n, c, k)
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


@lru_cache(maxsize=65536)
def pass_hat_k(n: int, c: int, k: int) -> float:
    """The chance that all of k of the n attempts succeeded.

    >>> pass_hat_k(4, 3, 1), pass_hat_k(4, 3, 2), pass_hat_k(4, 3, 4)
    (0.75, 0.5, 0.0)
    """
    _check(n, c, k)
    return math.comb(c, k) / math.comb(n, k)


def measures(largest_k: int) -> list[tuple[str, Estimator, int]]:
    """Name, estimator and k of every number of a report, in its order.

    >>> [name for name, _, _ in measures(2)]
    ['pass@1', 'pass@2', 'pass^1', 'pass^2']
    """
    families: tuple[tuple[str, Estimator], ...] = (("pass@", pass_at_k), ("pass^", pass_hat_k))
    return [(f"{name}{k}", estimator, k) for name, estimator in families for k in range(1, largest_k + 1)]


def _check(n: int, c: int, k: int) -> None:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"need 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")


Z95 = NormalDist().inv_cdf(0.975)
ADDED = 0.5  # of a solved task, and of an unsolved one, in the spread of tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95% interval: `Estimate(value=0.57, ci95=(0.472, 0.663), method="wilson")`.

    What cannot be given is None, and `reason` says why.
    """

    value: float | None
    ci95: tuple[float, float] | None
    method: str = ""  # how the interval was made; "" when there is none
    reason: str = ""
    rerun_se: float | None = None  # standard error under another run on the same tasks, where it can be told

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values: `value` and `ci95` always, the others when they say something."""
        out: dict[str, Any] = {"value": self.value, "ci95": list(self.ci95) if self.ci95 else None}
        if self.method:
            out["method"] = self.method
        if self.reason:
            out["reason"] = self.reason
        if self.rerun_se is not None:
            out["rerun_se"] = self.rerun_se
        return out


def wilson(successes: float, total: float) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson 1927); unlike scipy's it takes the fractions that effective trials are.

    >>> [round(100 * bound, 1) for bound in wilson(57, 100)]
    [47.2, 66.3]
    """
    p, z2 = successes / total, Z95 * Z95
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # rounding must not push a bound past p


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean over tasks, which carries the spread between tasks and between attempts alike.

    sqrt(sum (e_i - mean)^2 / (T (T-1))); needs at least two tasks.

    >>> round(standard_error([0.0, 1.0]), 6)
    0.5
    """
    count = len(values)
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count * (count - 1)))


def mean_over_tasks(values: Sequence[float], *, trials: float = 1.0) -> Estimate:
    """The mean of one number per task, each from 0 to 1, with an interval for tasks like these.

    Wilson's interval, with as many trials as the tasks are worth. A task that is plainly solved or not is one trial; a task
    with several attempts is up to `trials` of them (attempts / k for pass@k and pass^k), the fewer the more its attempts agree.

    >>> mean_over_tasks([1.0, 1.0, 1.0, 0.0]).method, mean_over_tasks([0.5, 0.25], trials=4).method
    ('wilson', 'wilson, clustered')
    """
    if not values:
        return Estimate(value=None, ci95=None, reason="no tasks")
    count, value = len(values), math.fsum(values) / len(values)
    if all(v in (0.0, 1.0) for v in values):
        return Estimate(value=value, ci95=wilson(math.fsum(values), count), method="wilson")
    total = effective_trials(values, trials=trials)
    return Estimate(value=value, ci95=wilson(value * total, total), method="wilson, clustered")


def effective_trials(values: Sequence[float], *, trials: float) -> float:
    """How many independent trials have the spread that these tasks have: from one to `trials` a task.

    p (1 - p) / variance of a task's value (the inverse of Kish's design effect, 1965; Korn and Graubard 1998 put it into
    intervals of proportions), where half a solved and half an unsolved task are added, so that no variance is 0. Of the
    weights and methods that were simulated this one held the truth most nearly 95% of the time; see docs/decide.md.
    No more trials than leave the interval as wide as that of a perfect result: tasks that almost all agree prove little about
    how much attempts do, and a result that is slightly worse than perfect is no surer than a perfect one.

    >>> effective_trials([1.0, 0.0, 1.0], trials=4), effective_trials([0.5] * 20, trials=4.0)
    (3.0, 80.0)
    >>> round(effective_trials([1.0] * 99 + [0.75], trials=4), 1)
    114.4
    """
    tasks, count = len(values), len(values) + 2 * ADDED
    mean = (math.fsum(values) + ADDED) / count
    spread = (math.fsum((v - mean) ** 2 for v in values) + ADDED * ((1 - mean) ** 2 + mean**2)) / count
    found = tasks * max(1.0, min(trials, mean * (1 - mean) / spread))
    return max(float(tasks), min(found, _as_wide_as_perfect(math.fsum(values) / tasks, tasks)))


def _as_wide_as_perfect(p: float, tasks: int) -> float:
    """With how many trials Wilson's interval of `p` is as wide as that of so many tasks which are all solved.

    2 z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n) = z^2 / (tasks + z^2), solved for n: a quadratic equation.
    """
    z2 = Z95 * Z95
    width2 = (z2 / (tasks + z2)) ** 2
    half = z2 * (2 * p * (1 - p) - width2)
    return (half + math.sqrt(half * half + width2 * z2 * z2 * (1 - width2))) / width2


def mean_over_groups(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of independent estimates (domains), with an interval made from theirs.

    Recovers each side's variance from the distance between a value and its bound (Zou and Donner 2008, "MOVER"), so it
    stays honest where a domain has no spread.

    >>> mean_over_groups([Estimate(value=0.5, ci95=(0.4, 0.7)), Estimate(value=1.0, ci95=(0.8, 1.0))]).value
    0.75
    """
    if not estimates:
        return Estimate(value=None, ci95=None, reason="no domains")
    missing = next((e for e in estimates if e.value is None or e.ci95 is None), None)
    if missing is not None:
        return Estimate(value=None, ci95=None, reason=missing.reason)
    parts = [(cast(float, e.value), cast("tuple[float, float]", e.ci95)) for e in estimates]
    count = len(parts)
    value = math.fsum(v for v, _ in parts) / count
    below = math.sqrt(math.fsum((v - low) ** 2 for v, (low, _) in parts)) / count
    above = math.sqrt(math.fsum((high - v) ** 2 for v, (_, high) in parts)) / count
    return Estimate(value=value, ci95=(_clip(value - below), _clip(value + above)), method="mover")


def rerun_se(counts: Iterable[tuple[int, int]]) -> float | None:
    """Standard error of pass@1 under another run on the same tasks, from (n, c) of each task; None with one attempt.

    Var = (1/T^2) sum_i p_i (1 - p_i) / (n_i - 1).

    >>> round(rerun_se([(4, 2), (4, 4)]), 6)
    0.144338
    """
    terms: list[float] = []
    for n, c in counts:
        if n < 2:
            return None
        terms.append((c / n) * (1 - c / n) / (n - 1))
    return math.sqrt(math.fsum(terms)) / len(terms) if terms else None


def bootstrap_mean(strata: Mapping[str, Sequence[float]], *, draws: int = 10_000, seed: int = 300) -> tuple[float, float]:
    """95% percentile interval of the mean over all tasks, tasks drawn with replacement within each stratum (domain).

    Our own ten lines: scipy's bootstrap refuses a stratum of one task. The same for the same values and seed, whatever their
    order. Needs at least one value.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    total = sum(map(len, strata.values()))
    sums = np.zeros(draws)
    for name in sorted(strata):
        values = np.sort(np.asarray(strata[name], dtype=np.float64))
        for start in range(0, draws, 500):  # in slices, so that thousands of tasks fit in memory
            part = sums[start : start + 500]
            part += values[generator.integers(0, len(values), size=(len(part), len(values)))].sum(axis=1)
    low, high = np.quantile(sums / total, [0.025, 0.975])
    return float(low), float(high)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
