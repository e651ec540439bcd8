"""Which checkpoint of a training to keep: the earliest that is not clearly worse than the best, by success and nothing else.

The best of several noisy numbers is best by luck as much as by merit, and the later it is, the further the policy has moved from
where it began. So the one-standard-error rule (Breiman et al. 1984, "Classification and Regression Trees", 3.4.3): of all
checkpoints whose success is within one standard error of the best, the one with the fewest steps. The standard error is
that of the paired difference over tasks, which leaves out what makes tasks hard or easy for both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tau2rl.errors import UserError
from tau2rl.report.estimators import standard_error

RULE = "fewest steps within one standard error of the best (paired over tasks)"
COMMON = 0.9  # of all tasks must have evidence at every checkpoint, or the numbers are not of one measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One checkpoint: `Candidate(step=40, success=0.46, se=0.07, gap=0.04, gap_se=0.05, within=True)`."""

    step: int
    success: float  # mean over tasks of the share of attempts that solved the task
    se: float | None  # of `success`, tasks taken as the sample; None with one task
    gap: float  # success of the best minus this one's
    gap_se: float | None  # of `gap`, paired over tasks; None with one task
    within: bool  # whether the gap is at most its standard error


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointChoice:
    """What the rule says, in steps: `CheckpointChoice(chosen=40, best=60, candidates=(...), tasks=("retail/3", ...), ...)`."""

    chosen: int
    best: int
    candidates: tuple[Candidate, ...]  # by step
    tasks: tuple[str, ...]  # that every checkpoint has evidence on, and that the numbers are of
    left_out: tuple[str, ...]  # the others


def choose_checkpoint(success: Mapping[int, Mapping[str, float]]) -> CheckpointChoice:
    """Apply the rule to step -> task key -> share of attempts that solved the task. Raises UserError.

    >>> early = {"a/1": 1.0, "a/2": 0.0, "a/3": 0.5, "a/4": 0.5}
    >>> choice = choose_checkpoint({20: early, 40: {**early, "a/2": 0.5}, 60: {**early, "a/1": 0.0}})
    >>> choice.best, choice.chosen, [one.within for one in choice.candidates]
    (40, 20, [True, True, False])
    """
    tasks, left_out = _common(success)
    if not any(values[task] > 0 for values in success.values() for task in tasks):
        raise UserError(
            "no checkpoint solved any of the tasks, so there is nothing to choose by",
            hint="validate on more tasks, or with more attempts a task (`val.limit`, `val.num_samples`)",
        )
    means = {step: math.fsum(values[task] for task in tasks) / len(tasks) for step, values in success.items()}
    best = min(means, key=lambda step: (-round(means[step], 12), step))  # of equals the earliest
    candidates = tuple(_candidate(step, success[step], success[best], tasks) for step in sorted(success))
    chosen = next(one.step for one in candidates if one.within)
    return CheckpointChoice(chosen=chosen, best=best, candidates=candidates, tasks=tuple(tasks), left_out=tuple(left_out))


def behind(values: Mapping[str, float], best: Mapping[str, float], tasks: list[str]) -> tuple[float, float | None]:
    """How far `values` are behind `best` over these tasks, and the standard error of that; None with one task.

    >>> behind({"a/1": 0.0, "a/2": 1.0}, {"a/1": 1.0, "a/2": 1.0}, ["a/1", "a/2"])
    (0.5, 0.5)
    """
    gaps = [best[task] - values[task] for task in tasks]
    return math.fsum(gaps) / len(gaps), standard_error(gaps) if len(gaps) > 1 else None


def _candidate(step: int, values: Mapping[str, float], best: Mapping[str, float], tasks: list[str]) -> Candidate:
    shares = [values[task] for task in tasks]
    gap, gap_se = behind(values, best, tasks)
    return Candidate(
        step=step,
        success=math.fsum(shares) / len(shares),
        se=standard_error(shares) if len(shares) > 1 else None,
        gap=gap,
        gap_se=gap_se,
        within=gap <= (gap_se or 0.0) + 1e-12,  # sums that differ by rounding are equal
    )


def _common(success: Mapping[int, Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """The tasks that all have, and the others."""
    if not success:
        raise UserError("there is no checkpoint to choose from")
    counts = Counter(task for values in success.values() for task in values)
    common, everything = {task for task, count in counts.items() if count == len(success)}, set(counts)
    if not common or len(common) < COMMON * len(everything):
        raise UserError(
            f"only {len(common)} of {len(everything)} tasks have evidence at every checkpoint",
            hint="evaluate the checkpoints again on the same tasks with `tau2rl eval`, and name these runs",
        )
    return sorted(common), sorted(everything - common)
