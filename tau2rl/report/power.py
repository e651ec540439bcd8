"""How many tasks, attempts and repetitions a claim takes: the power of two runs that are compared task by task.

Of a task the difference is c_A / n - c_B / n. Over T tasks, n attempts and R repetitions of each run its mean has the variance

    (effect_sd^2 + 2 luck / (n R)) / T  +  2 run_sd^2 / R

luck is the mean of p (1 - p) over tasks, which attempts average out; effect_sd says how much the true gain differs between
tasks, which only tasks average out; run_sd is what differs between whole runs (a training seed, a day of an API), which only
repetitions average out. The test is the paired t test, its power the tail of the noncentral t distribution.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# scipy has no types.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tau2rl.report.break_even import BetaTasks
from tau2rl.report.estimators import standard_error

MOST_TASKS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What makes two runs differ by luck, all in shares of 1: `Spread(luck=0.15, effect_sd=0.1, run_sd=0.02)`."""

    luck: float  # mean over tasks of p (1 - p), of the mean of both policies
    effect_sd: float = 0.0  # of the true difference, between tasks
    run_sd: float = 0.0  # of a whole run, between repetitions


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The size of each of the two runs: `Design(tasks=100, attempts=4, repetitions=1)`."""

    tasks: int
    attempts: int  # at each task, in each repetition
    repetitions: int = 1

    @property
    def episodes(self) -> int:
        """Of both runs together."""
        return 2 * self.tasks * self.attempts * self.repetitions

    def se(self, spread: Spread) -> float:
        """Standard error of the mean difference."""
        per_task = spread.effect_sd**2 + 2 * spread.luck / (self.attempts * self.repetitions)
        return math.sqrt(per_task / self.tasks + 2 * spread.run_sd**2 / self.repetitions)


def power(effect: float, se: float, tasks: int, *, alpha: float = 0.05) -> float:
    """The chance that a paired t test over so many tasks finds a true difference, in either direction of the test.

    >>> round(power(0.06, 0.0275, 100), 2), round(power(0.0, 0.0275, 100), 2)
    (0.58, 0.05)
    """
    from scipy import stats

    if tasks < 2:
        return 0.0
    if se == 0:
        return 1.0 if effect else alpha
    bound = float(stats.t.ppf(1 - alpha / 2, tasks - 1))
    shift = abs(effect) / se
    # The other tail as an upper tail too: scipy's lower one is not a number far out.
    return float(stats.nct.sf(bound, tasks - 1, shift) + stats.nct.sf(bound, tasks - 1, -shift))


def smallest_effect(se: float, tasks: int, *, wanted: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true difference that is found with the power that is wanted; None with fewer than two tasks.

    >>> round(smallest_effect(0.0275, 100), 3)
    0.078
    """
    if tasks < 2:
        return None
    low, high = 0.0, 30 * se
    for _ in range(25):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, se, tasks, alpha=alpha) < wanted else (low, middle)
    return high


def tasks_needed(
    effect: float, spread: Spread, *, attempts: int, repetitions: int = 1, wanted: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The fewest tasks that give the power; None where no number of them does, because whole runs differ too much.

    >>> tasks_needed(0.10, Spread(luck=0.25), attempts=1), tasks_needed(0.03, Spread(luck=0.15, run_sd=0.02), attempts=4)
    (395, None)
    """

    def enough(tasks: int) -> bool:
        design = Design(tasks=tasks, attempts=attempts, repetitions=repetitions)
        return power(effect, design.se(spread), tasks, alpha=alpha) >= wanted

    if not enough(MOST_TASKS):
        return None
    low, high = 1, MOST_TASKS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def luck_of(tasks: BetaTasks | Sequence[tuple[int, int]]) -> float | None:
    """The mean of p (1 - p): of Beta distributed tasks, or unbiased from the (n, c) of each; None with a single attempt.

    >>> luck_of(BetaTasks(1.0, 1.0)), luck_of([(4, 2), (4, 4)])
    (0.16666666666666666, 0.16666666666666666)
    """
    if isinstance(tasks, BetaTasks):
        total = tasks.a + tasks.b
        return tasks.a * tasks.b / (total * (total + 1))
    if not tasks or any(n < 2 for n, _ in tasks):
        return None
    return math.fsum(c * (n - c) / (n * (n - 1)) for n, c in tasks) / len(tasks)


def effect_sd_of(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> float | None:
    """How much the true difference varies between tasks, from (n, c) of the same tasks in two runs; None where it cannot be told.

    The variance of the measured differences, less what the attempts' luck adds to it; 0 where luck explains all of it.

    >>> effect_sd_of([(4, 2), (4, 2)], [(4, 2), (4, 2)])
    0.0
    """
    if len(a) < 2 or any(n < 2 for n, _ in (*a, *b)):
        return None
    differences = [c / n - d / m for (n, c), (m, d) in zip(a, b, strict=True)]
    measured = standard_error(differences) ** 2 * len(differences)
    by_luck = math.fsum((c / n) * (1 - c / n) / (n - 1) for n, c in (*a, *b)) / len(a)
    return math.sqrt(max(0.0, measured - by_luck))
