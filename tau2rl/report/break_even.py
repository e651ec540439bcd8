"""Sampling more or training: what each costs for N tasks, and the N at which they cost the same.

Sampling takes the first of up to k attempts that a verifier accepts, and where it accepts none, the last. The verifier has a
recall (the chance that it accepts a success) and false accepts (the chance that it accepts a failure). Tasks differ in how hard
they are, so everything is an average over tasks, never a formula at the mean success rate.

Costs are in one unit that the caller chooses (GPU hours, seconds of a machine, dollars).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tau2rl.errors import UserError


class Tasks(Protocol):
    """How many of some attempts at a task succeed, over the tasks that will be served."""

    def successes(self, attempts: int) -> list[float]:
        """[attempts + 1], the chance of 0, 1, ... successes among so many attempts at a random task. Raises UserError."""
        ...


@dataclass(frozen=True, slots=True)
class BetaTasks:
    """Tasks whose chance of success is Beta distributed: `BetaTasks(0.80, 1.97)`."""

    a: float
    b: float

    def successes(self, attempts: int) -> list[float]:
        """The beta-binomial distribution.

        >>> [round(chance, 9) for chance in BetaTasks(1.0, 1.0).successes(1)]
        [0.5, 0.5]
        """
        base = _log_beta(self.a, self.b)
        return [
            math.comb(attempts, c) * math.exp(_log_beta(self.a + c, self.b + attempts - c) - base) for c in range(attempts + 1)
        ]


def beta_tasks(pass_1: float, pass_k: float, k: int) -> BetaTasks:
    """The Beta distribution that has a published pass@1 and pass@k. Raises UserError where none has.

    >>> fitted = beta_tasks(0.29, 0.60, 4)
    >>> round(fitted.a, 2), round(fitted.b, 2)
    (0.8, 1.97)
    """
    alike = 1 - (1 - pass_1) ** k  # where all tasks are equally hard
    if not 0 < pass_1 < pass_k < alike or k < 2:
        raise UserError(
            f"no tasks have pass@1 {pass_1:g} and pass@{k} {pass_k:g}",
            hint=f"with that pass@1, pass@{k} is above it and at most {alike:.3f}, where all tasks are equally hard",
        )
    low, high = -20.0, 20.0  # log of a + b: the larger, the more alike the tasks are, and the higher pass@k
    for _ in range(100):
        middle = (low + high) / 2
        total = math.exp(middle)
        found = 1 - BetaTasks(total * pass_1, total * (1 - pass_1)).successes(k)[0]
        low, high = (middle, high) if found < pass_k else (low, middle)
    total = math.exp(low)
    return BetaTasks(total * pass_1, total * (1 - pass_1))


@dataclass(frozen=True, slots=True)
class MeasuredTasks:
    """Tasks as a run played them, as (n attempts, c successes) each: `MeasuredTasks([(4, 1), (4, 4)])`."""

    counts: Sequence[tuple[int, int]]

    def successes(self, attempts: int) -> list[float]:
        """Over every choice of so many of the attempts of each task: unbiased, as pass@k is. Raises UserError for too few.

        >>> MeasuredTasks([(2, 1)]).successes(1), MeasuredTasks([(2, 1), (2, 2)]).successes(2)
        ([0.5, 0.5], [0.0, 0.5, 0.5])
        """
        fewest = min((n for n, _ in self.counts), default=0)
        if fewest < attempts:
            raise UserError(
                f"k = {attempts} needs {attempts} attempts a task, the run has {fewest}",
                hint="take a smaller k, or evaluate with a larger `--num-samples`",
            )
        return [
            math.fsum(math.comb(c, i) * math.comb(n - c, attempts - i) / math.comb(n, attempts) for n, c in self.counts)
            / len(self.counts)
            for i in range(attempts + 1)
        ]


def success_of(tasks: Tasks, k: int, *, recall: float = 1.0, false_accepts: float = 0.0) -> float:
    """The chance that the chosen one of up to k attempts is a success.

    Of the accepted attempts the first is as likely to be any of them; with none accepted the last is as likely to be any of k.
    At one chance of success p it is [1 - (1-a)^k] p r / a + (1-a)^(k-1) p (1-r) with a = p r + (1-p) f.

    >>> success_of(MeasuredTasks([(2, 1)]), 2), success_of(MeasuredTasks([(2, 1)]), 2, recall=0.5, false_accepts=0.5)
    (1.0, 0.5)
    """
    return math.fsum(
        weight * _chosen_is_success(j, k - j, recall, false_accepts) for j, weight in enumerate(tasks.successes(k)) if weight
    )


def expected_attempts(tasks: Tasks, k: int, *, recall: float = 1.0, false_accepts: float = 0.0) -> float:
    """Attempts until one is accepted, k at most: the sum over t < k of the chance that none of the first t was.

    >>> expected_attempts(MeasuredTasks([(2, 1)]), 2), expected_attempts(MeasuredTasks([(2, 0)]), 2)
    (1.5, 2.0)
    """
    return math.fsum(
        math.fsum(
            weight * (1 - recall) ** i * (1 - false_accepts) ** (played - i) for i, weight in enumerate(tasks.successes(played))
        )
        for played in range(k)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to serve a task: `Strategy(attempts=4.0, attempt_cost=0.01, success=0.6)`."""

    attempts: float  # expected, of a task
    attempt_cost: float  # an episode and its verification
    success: float | None = None  # None: not known

    @property
    def cost(self) -> float:
        """Of a task."""
        return self.attempts * self.attempt_cost


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """From how many tasks on training costs less: `BreakEven(tasks=533.3)`; None: it never does, and `reason` says why."""

    tasks: float | None
    reason: str = ""


def by_cost(sampling: Strategy, trained: Strategy, training_cost: float) -> BreakEven:
    """Equal total cost: N = C_T / (cost of sampling - cost of the trained policy), whatever either achieves.

    >>> by_cost(Strategy(attempts=4, attempt_cost=0.01), Strategy(attempts=1, attempt_cost=0.01), 16).tasks
    533.3333333333334
    """
    return _break_even(training_cost, sampling.cost - trained.cost, "sampling costs no more, so training is never paid back")


def by_cost_per_success(sampling: Strategy, trained: Strategy, training_cost: float) -> BreakEven:
    """Equal cost of a success: N = C_T / (cost of sampling x S_R / S_S - cost of the trained policy).

    >>> sampling = Strategy(attempts=4, attempt_cost=0.01, success=0.6)
    >>> trained = Strategy(attempts=1, attempt_cost=0.01, success=0.36)
    >>> round(by_cost_per_success(sampling, trained, 16).tasks)
    1143
    """
    if sampling.success is None or trained.success is None:
        return BreakEven(tasks=None, reason="the success of both is needed")
    if not sampling.success:
        return BreakEven(tasks=0.0 if trained.success else None, reason="" if trained.success else "neither ever succeeds")
    saved = sampling.cost * trained.success / sampling.success - trained.cost
    return _break_even(training_cost, saved, "a success by sampling costs no more, so training is never paid back")


def by_value(sampling: Strategy, trained: Strategy, training_cost: float, value: float) -> BreakEven:
    """Equal value less cost, where a success is worth `value`: N = C_T / (difference of costs - value x (S_S - S_R)).

    >>> sampling = Strategy(attempts=4, attempt_cost=0.01, success=0.6)
    >>> trained = Strategy(attempts=1, attempt_cost=0.01, success=0.36)
    >>> by_value(sampling, trained, 16, 0.2).reason
    'sampling is worth more than it costs for any number of tasks'
    """
    if sampling.success is None or trained.success is None:
        return BreakEven(tasks=None, reason="the success of both is needed")
    saved = sampling.cost - trained.cost - value * (sampling.success - trained.success)
    return _break_even(training_cost, saved, "sampling is worth more than it costs for any number of tasks")


def resampled(
    of: Callable[[Sequence[int]], BreakEven], tasks: int, *, draws: int = 500, seed: int = 300
) -> tuple[float | None, float | None]:
    """95% percentile interval of a break-even; `of` gives it for indices of tasks drawn with replacement. None: never."""
    generator = random.Random(seed)
    drawn = (of(generator.choices(range(tasks), k=tasks)).tasks for _ in range(draws))
    found = sorted(math.inf if tasks is None else tasks for tasks in drawn)
    low, high = found[int(0.025 * draws)], found[math.ceil(0.975 * draws) - 1]
    return (None if math.isinf(low) else low), (None if math.isinf(high) else high)


def _break_even(training_cost: float, saved_per_task: float, otherwise: str) -> BreakEven:
    if saved_per_task <= 1e-12:
        return BreakEven(tasks=None, reason=otherwise)
    return BreakEven(tasks=training_cost / saved_per_task)


def _chosen_is_success(successes: int, failures: int, recall: float, false_accepts: float) -> float:
    """Given how many of the attempts succeed, in a random order."""
    chosen = math.fsum(
        _binomial(successes, x, recall) * _binomial(failures, y, false_accepts) * x / (x + y)
        for x in range(1, successes + 1)
        for y in range(failures + 1)
    )
    none = (1 - recall) ** successes * (1 - false_accepts) ** failures
    return chosen + none * successes / (successes + failures)


def _binomial(n: int, i: int, p: float) -> float:
    return math.comb(n, i) * p**i * (1 - p) ** (n - i)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
