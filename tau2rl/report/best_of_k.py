"""Best of k without an oracle: what the attempt that a verifier chooses is worth, from kept attempts with their scores.

Chosen is the highest score of k attempts, the earliest of equals. Of n kept attempts at a task every choice of k in every order
is as likely, so the numbers are averages over them: exact where there are few, over a fixed sample where there are many.

Three names that are not one number: pass@1 (any attempt), selected@k (the chosen one), pass@k (an oracle chooses).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tau2rl.errors import UserError
from tau2rl.report.compare import Comparison, compare
from tau2rl.report.estimators import Estimate, mean_over_tasks, pass_at_k

MOST_CHOICES = 500  # of k among n attempts of a task; more are sampled
Scores = Callable[[Sequence[int]], Sequence[float]]  # indices of the attempts that were played -> a score for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The attempts at one task: `Scored(solved=(True, False), scores=lambda played: [0.9, 0.2])`."""

    solved: tuple[bool, ...]
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the curve over k: `Point(k=4, selected=Estimate(value=0.46), passed=Estimate(value=0.6), attempts=2.9)`."""

    k: int
    selected: Estimate
    passed: Estimate  # pass@k, what an oracle would reach
    attempts: float | None  # expected, one after another until one is accepted; None: scores need all k


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepts:
    """How often attempts are accepted: `Accepts(successes=40, failures=60, accepted_successes=36, accepted_failures=6)`."""

    successes: int
    failures: int
    accepted_successes: int
    accepted_failures: int

    @property
    def precision(self) -> float | None:
        """Of the accepted attempts, those that are successes; None where none is accepted."""
        return _share(self.accepted_successes, self.accepted_successes + self.accepted_failures)

    @property
    def recall(self) -> float | None:
        """Of the successes, those that are accepted; None without successes."""
        return _share(self.accepted_successes, self.successes)

    @property
    def false_accepts(self) -> float | None:
        """Of the failures, those that are accepted; None without failures."""
        return _share(self.accepted_failures, self.failures)


def chosen_success(task: Scored, k: int) -> float:
    """The chance that the chosen one of k attempts is a success.

    >>> task = Scored(solved=(True, False, False), scores=lambda played: [[0.9, 0.1, 0.1][i] for i in played])
    >>> round(chosen_success(task, 1), 3), round(chosen_success(task, 2), 3), chosen_success(task, 3)
    (0.333, 0.667, 1.0)
    """
    return _mean([_of_best(task, played) for played in _choices(len(task.solved), k)])


def selected_at(tasks: Mapping[str, Scored], k: int) -> dict[str, float]:
    """`chosen_success` of every task. Raises UserError for more attempts than there are."""
    fewest = min((len(task.solved) for task in tasks.values()), default=0)
    if not 1 <= k <= fewest:
        raise UserError(f"k = {k}, and the run has {fewest} attempts a task", hint=f"a k from 1 to {fewest}")
    return {key: chosen_success(task, k) for key, task in tasks.items()}


def point(tasks: Mapping[str, Scored], k: int, *, accept_from: float | None) -> Point:
    """What k attempts are worth; `accept_from` is the score that ends the sampling, None where scores need all attempts."""
    counts = [(len(task.solved), sum(task.solved)) for task in tasks.values()]
    trials = min(n for n, _ in counts) / k
    stopped = None if accept_from is None else _mean([_attempts(task, k, accept_from) for task in tasks.values()])
    return Point(
        k=k,
        selected=mean_over_tasks(list(selected_at(tasks, k).values()), trials=trials),
        passed=mean_over_tasks([pass_at_k(n, c, k) for n, c in counts], trials=trials),
        attempts=stopped,
    )


def gain(tasks: Mapping[str, Scored], k: int) -> Comparison:
    """selected@k minus pass@1, paired over tasks."""
    return compare(selected_at(tasks, k), {key: sum(task.solved) / len(task.solved) for key, task in tasks.items()})


def accepts(tasks: Sequence[Scored], accept_from: float) -> Accepts:
    """Counts over all attempts, each scored among all attempts at its task."""
    pairs = [
        (solved, score >= accept_from)
        for task in tasks
        for solved, score in zip(task.solved, task.scores(range(len(task.solved))), strict=True)
    ]
    return Accepts(
        successes=sum(solved for solved, _ in pairs),
        failures=sum(not solved for solved, _ in pairs),
        accepted_successes=sum(solved and accepted for solved, accepted in pairs),
        accepted_failures=sum(not solved and accepted for solved, accepted in pairs),
    )


def _of_best(task: Scored, played: Sequence[int]) -> float:
    """Of the attempts with the highest score the share of successes: in a random order any of them may be the first."""
    scores = task.scores(played)
    best = max(scores)
    return _mean([float(task.solved[i]) for i, score in zip(played, scores, strict=True) if score == best])


def _choices(n: int, k: int) -> Iterator[tuple[int, ...]]:
    if math.comb(n, k) <= MOST_CHOICES:
        yield from combinations(range(n), k)
        return
    generator = random.Random(300)
    for _ in range(MOST_CHOICES):
        yield tuple(sorted(generator.sample(range(n), k)))


def _attempts(task: Scored, k: int, accept_from: float) -> float:
    """Expected attempts: the sum over t < k of the chance that none of the first t is accepted."""
    n = len(task.solved)
    rejected = sum(score < accept_from for score in task.scores(range(n)))
    return math.fsum(math.comb(rejected, t) / math.comb(n, t) for t in range(k))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
