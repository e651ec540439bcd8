"""Which tasks to roll out next: those whose group of attempts is likely to hold both a success and a failure.

A group of N attempts teaches only when it is mixed, which at success chance p happens with 1 - p^N - (1-p)^N. Each task has
a Beta posterior of p, and its weight is the expectation of that chance over the posterior, never below a floor: a task that
has never been solved, or always, is still visited now and then and comes back when the policy has changed.

The state is an explicit value that can be written to disk; the choice is a function of (state, seed) alone, so every worker
and every resumed run that asks gets the same answer.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tau2rl.config import CurriculumConfig
from tau2rl.hashing import derive_seed
from tau2rl.types import Episode, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumSpec:
    """How tasks are weighted: `CurriculumSpec(group_size=8, floor=0.05)`."""

    group_size: int = 8  # N, the attempts in a group
    floor: float = 0.05  # the least weight of a task; a certain mixed group weighs 1
    decay: float = 0.9  # what each update leaves of older evidence, which an older policy made
    prior_success: float = 1.0  # Beta prior; 1, 1 is uniform
    prior_failure: float = 1.0

    def __post_init__(self) -> None:
        if self.group_size < 2 or not 0 < self.floor <= 1 or not 0 < self.decay <= 1:
            raise ValueError("group_size >= 2, 0 < floor <= 1 and 0 < decay <= 1")
        if self.prior_success <= 0 or self.prior_failure <= 0:
            raise ValueError("a Beta prior has positive parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumState:
    """What is known of each task: `CurriculumState(evidence={"retail/17": (1.0, 4.0)})` = 1 success in 4 attempts."""

    evidence: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    updates: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; `from_json` reads them back."""
        return {"updates": self.updates, "evidence": {task: list(pair) for task, pair in sorted(self.evidence.items())}}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> CurriculumState:
        """The inverse of `to_json`.

        >>> state = CurriculumState(evidence={"mock/a": (1.0, 4.0)}, updates=2)
        >>> CurriculumState.from_json(state.to_json()) == state
        True
        """
        evidence = cast(Mapping[str, Sequence[float]], values["evidence"])
        return CurriculumState(
            evidence={task: (float(pair[0]), float(pair[1])) for task, pair in evidence.items()}, updates=int(values["updates"])
        )


def curriculum_spec(config: CurriculumConfig, *, group_size: int) -> CurriculumSpec:
    """The settings of `algo.curriculum`, for groups of `rollout.num_samples`."""
    return CurriculumSpec(group_size=group_size, floor=config.floor, decay=config.decay)


def outcome(episode: Episode) -> bool | None:
    """Whether an attempt is a success; None where it is no evidence: FAILED, or never graded."""
    return None if episode.status is Status.FAILED or episode.grade is None else episode.grade.success


def observe(state: CurriculumState, outcomes: Mapping[str, Sequence[bool | None]], spec: CurriculumSpec) -> CurriculumState:
    """The state after one round of groups; None is an attempt without evidence, and adds none.

    >>> state = observe(CurriculumState(), {"mock/a": [True, False, None]}, CurriculumSpec(decay=0.5))
    >>> observe(state, {"mock/a": [False]}, CurriculumSpec(decay=0.5)).evidence
    {'mock/a': (0.5, 2.0)}
    """
    evidence = {task: (won * spec.decay, tried * spec.decay) for task, (won, tried) in state.evidence.items()}
    for task, results in outcomes.items():
        live = [r for r in results if r is not None]
        if live:
            won, tried = evidence.get(task, (0.0, 0.0))
            evidence[task] = (won + sum(live), tried + len(live))
    return CurriculumState(evidence=evidence, updates=state.updates + 1)


def mixed_group_chance(a: float, b: float, group_size: int) -> float:
    """E[1 - p^N - (1-p)^N] for p ~ Beta(a, b); exact, from E[p^N] = prod_{i<N} (a+i)/(a+b+i).

    Uniform p and N = 2: 1 - 1/3 - 1/3.

    >>> round(mixed_group_chance(1, 1, 2), 6)
    0.333333
    """
    return 1.0 - _power_mean(a, b, group_size) - _power_mean(b, a, group_size)


def weight(state: CurriculumState, task: str, spec: CurriculumSpec) -> float:
    """How much a task is wanted, from `floor` to 1."""
    won, tried = state.evidence.get(task, (0.0, 0.0))
    chance = mixed_group_chance(spec.prior_success + won, spec.prior_failure + tried - won, spec.group_size)
    return max(spec.floor, chance)


def choose(state: CurriculumState, tasks: Sequence[str], count: int, spec: CurriculumSpec, *, seed: int) -> list[str]:
    """`count` tasks, drawn by weight without repetition until every task has had its turn, then again.

    The order of `tasks` does not matter: each task draws its own number from (seed, round, task).

    >>> state, spec = CurriculumState(), CurriculumSpec()
    >>> choose(state, ["mock/a", "mock/b"], 1, spec, seed=7) == choose(state, ["mock/b", "mock/a"], 1, spec, seed=7)
    True
    """
    names = sorted(set(tasks))
    if not names:
        return []
    weights = {task: weight(state, task, spec) for task in names}
    chosen: list[str] = []
    round_number = 0
    while len(chosen) < count:
        # Weighted sampling without replacement by exponential clocks (Efraimidis and Spirakis 2006): smallest -log(u)/w first.
        clocks = ((-math.log(_uniform(seed, round_number, task)) / weights[task], task) for task in names)
        chosen += [task for _, task in heapq.nsmallest(min(count - len(chosen), len(names)), clocks)]
        round_number += 1
    return chosen


def draw(state: CurriculumState, tasks: Sequence[str], count: int, spec: CurriculumSpec, *, seed: int, number: int) -> list[str]:
    """The tasks of draw number 1, 2, ... of a run: what every backend trains on next.

    >>> state, spec = CurriculumState(evidence={"mock/hopeless": (0.0, 400.0)}), CurriculumSpec(floor=0.01)
    >>> draw(state, ["mock/hopeless", "mock/new"], 1, spec, seed=7, number=1)
    ['mock/new']
    """
    return choose(state, tasks, count, spec, seed=derive_seed(seed, "tasks", number))


def _power_mean(a: float, b: float, n: int) -> float:
    return math.prod((a + i) / (a + b + i) for i in range(n))


def _uniform(seed: int, round_number: int, task: str) -> float:
    return (derive_seed("curriculum", seed, round_number, task) + 0.5) / 2**31
