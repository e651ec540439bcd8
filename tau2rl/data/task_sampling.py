"""Which tasks to roll out next, on every backend: all of them in shuffled epochs, or those from which most can be learned.

`TaskSampler` is what a backend holds. Its batches all have the size that is asked for, over the borders of epochs too.

The curriculum prefers tasks whose group of attempts is likely to hold both a success and a failure: only then has a group of N a
signal, which at success chance p happens with 1 - p^N - (1-p)^N. Each task has a Beta posterior of p, and its weight is the
expectation of that chance over the posterior, never below a floor: a task that has never been solved, or always, is still
visited now and then and comes back when the policy has changed. A profile (`task_profile.py`) gives the first evidence; what it
sets aside has the floor's weight until one of its groups ends otherwise.

States are explicit values that can be written to disk; the choice is a function of (state, seed) alone, so every worker and
every resumed run that asks gets the same answer.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from tau2rl.config import CurriculumConfig
from tau2rl.data.task_profile import read_profile
from tau2rl.hashing import derive_seed
from tau2rl.types import Episode, Status


class ShuffledEpochs:
    """Batches of the indices 0, 1, ..., `count` - 1; each index comes once an epoch, and no batch is shorter than another.

    A batch that goes over the border of an epoch begins the next one with indices that it does not hold yet, so nothing is twice
    in a batch that is no larger than the epoch.

    >>> order = ShuffledEpochs(3, seed=0)
    >>> [sorted(order.take(2)) for _ in range(3)]
    [[0, 2], [0, 1], [1, 2]]
    """

    def __init__(self, count: int, *, seed: int) -> None:
        if count < 1:
            raise ValueError("there is nothing to take from")
        self._count = count
        self._seed = seed
        self._epoch = 0  # epochs begun
        self._waiting: list[int] = []  # of the epoch that has begun

    def take(self, size: int) -> list[int]:
        """The next batch."""
        batch: list[int] = []
        held: set[int] = set()
        while len(batch) < size:
            if not self._waiting:
                self._begin_epoch()
            if len(held) == self._count:  # a batch larger than the epoch
                held.clear()
            at = next(i for i, index in enumerate(self._waiting) if index not in held)
            index = self._waiting.pop(at)
            batch.append(index)
            held.add(index)
        return batch

    def state(self) -> dict[str, Any]:
        """JSON-ready values; `restore` goes on behind them."""
        return {"epoch": self._epoch, "waiting": list(self._waiting)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._epoch, self._waiting = int(state["epoch"]), [int(index) for index in state["waiting"]]

    def _begin_epoch(self) -> None:
        self._waiting = list(range(self._count))
        random.Random(f"{self._seed}/{self._epoch}").shuffle(self._waiting)
        self._epoch += 1


class TaskSampler:
    """The tasks of one batch after another; its place can be saved.

    sampler = TaskSampler(["retail/1", "retail/2"], config.algo.curriculum, group_size=8, seed=300)
    keys = sampler.sample(16)  # 16 keys, whatever the number of tasks
    sampler.observe({"retail/1": [True, False, None]})
    """

    def __init__(self, tasks: Sequence[str], curriculum: CurriculumConfig, *, group_size: int, seed: int) -> None:
        """Raises UserError for a profile that is gone or was changed."""
        self._tasks = list(dict.fromkeys(tasks))
        self._seed = seed
        self._epochs = ShuffledEpochs(len(self._tasks), seed=seed)
        self._spec = curriculum_spec(curriculum, group_size=group_size) if curriculum.enabled else None
        self.known = CurriculumState()
        if self._spec is not None and curriculum.profile is not None:
            profile = read_profile(curriculum.profile)
            mine = profile.evidence.keys() & set(self._tasks)
            self.known = CurriculumState(evidence={task: profile.evidence[task] for task in sorted(mine)})
            self._spec = replace(self._spec, set_aside=profile.set_aside & mine)
        self.batches = 0  # so far

    def sample(self, count: int) -> list[str]:
        """Exactly `count` tasks; none is there twice unless there are fewer tasks than that."""
        self.batches += 1
        if self._spec is None:
            return [self._tasks[i] for i in self._epochs.take(count)]
        return draw(self.known, self._tasks, count, self._spec, seed=self._seed, number=self.batches)

    def observe(self, outcomes: Mapping[str, Sequence[bool | None]]) -> None:
        """Take note of how the groups of a step ended; None is an attempt without evidence."""
        if self._spec is not None:
            self.known = observe(self.known, outcomes, self._spec)

    def state(self) -> dict[str, Any]:
        """JSON-ready values; `restore` goes on behind them."""
        return {"batches": self.batches, "epochs": self._epochs.state(), "curriculum": self.known.to_json()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.batches = int(state["batches"])
        self._epochs.restore(state["epochs"])
        self.known = CurriculumState.from_json(state["curriculum"])


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumSpec:
    """How tasks are weighted: the settings of `algo.curriculum`, whose defaults these are, for groups of one size."""

    group_size: int = 8  # N, the attempts in a group
    floor: float = CurriculumConfig().floor  # the least weight of a task; a certain mixed group weighs 1
    decay: float = CurriculumConfig().decay  # what each update leaves of older evidence, which an older policy made
    prior_success: float = 1.0  # Beta prior; 1, 1 is uniform
    prior_failure: float = 1.0
    set_aside: frozenset[str] = frozenset()  # of no weight above the floor while all their evidence is of one kind

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
    """The state after the groups of one step; None is an attempt without evidence, and adds none.

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
    if task in spec.set_aside and won in (0.0, tried):
        return spec.floor
    chance = mixed_group_chance(spec.prior_success + won, spec.prior_failure + tried - won, spec.group_size)
    return max(spec.floor, chance)


def choose(state: CurriculumState, tasks: Sequence[str], count: int, spec: CurriculumSpec, *, seed: int) -> list[str]:
    """`count` tasks, drawn by weight without repetition until every task has had its turn, then again.

    The order of `tasks` does not matter: each task has its own random number, from (seed, pass, task).

    >>> state, spec = CurriculumState(), CurriculumSpec()
    >>> choose(state, ["mock/a", "mock/b"], 1, spec, seed=7) == choose(state, ["mock/b", "mock/a"], 1, spec, seed=7)
    True
    """
    names = sorted(set(tasks))
    if not names:
        return []
    weights = {task: weight(state, task, spec) for task in names}
    chosen: list[str] = []
    pass_number = 0
    while len(chosen) < count:
        # Weighted sampling without replacement by exponential clocks (Efraimidis and Spirakis 2006): smallest -log(u)/w first.
        clocks = ((-math.log(_uniform(seed, pass_number, task)) / weights[task], task) for task in names)
        chosen += [task for _, task in heapq.nsmallest(min(count - len(chosen), len(names)), clocks)]
        pass_number += 1
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


def _uniform(seed: int, pass_number: int, task: str) -> float:
    return (derive_seed("curriculum", seed, pass_number, task) + 0.5) / 2**31
